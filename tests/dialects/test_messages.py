"""The Messages dialect beyond what the transcripts show: what is nobody's, what is refused, and the request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.core.classifier import classify
from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Codec, Content, Ending, Event, Faulted, Finished, Prompt, Started
from sidecar.dialects.messages import MESSAGES
from sidecar.dialects.options import lay
from sidecar.errors import MalformedFrame
from sidecar.wire import ChatMessage, Options, Usage

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))


def started(*, begun: bool = True) -> Codec:
    """A codec whose answer is awaited, or has begun."""
    codec = MESSAGES.stream_codec()
    codec.encode(0, PROMPT)
    if begun:
        say(codec, "message_start", message={"id": "m1", "usage": {"input_tokens": 3, "output_tokens": 1}})
    return codec


def say(codec: Codec, kind: str | None, **fields: Any) -> list[Event]:
    """One event comes down."""
    return list(codec.decode(json.dumps(({} if kind is None else {"type": kind}) | fields).encode()))


def text(codec: Codec, text: str) -> list[Event]:
    """A piece of content comes down."""
    return say(codec, "content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def end(codec: Codec, reason: str | None, **usage: int) -> list[Event]:
    """The reason comes down."""
    return say(codec, "message_delta", delta={"stop_reason": reason}, usage=usage)


def test_how_it_travels() -> None:
    """Over HTTP alone, with the version in a header and the key in one of its own."""
    assert DIALECTS["messages"] is MESSAGES
    assert MESSAGES.transports == {"sse"}
    assert MESSAGES.headers == (("anthropic-version", "2023-06-01"),)
    assert MESSAGES.credential_header == ("x-api-key", "")
    with pytest.raises(ValueError, match="not spoken over WebSockets"):
        MESSAGES.codec()


def test_the_one_slot_is_held_to() -> None:
    """A taken one is not given twice, and there is no other."""
    codec = started(begun=False)
    assert repr(codec) == "<MessagesCodec 1/1 taken>"
    for slot in (0, 1):
        with pytest.raises(ValueError, match="taken, or not there"):
            codec.encode(slot, PROMPT)
        with pytest.raises(ValueError, match="not ending"):
            codec.conclude(slot)


def test_what_it_cannot_carry() -> None:
    """No seed, no cache key; of tiers and formats those that exist there."""
    assert MESSAGES.unsupported(Options(seed=1, prompt_cache_key="k", stop="x", temperature=2)) == [
        "prompt_cache_key",
        "seed",
    ]
    for tier, missing in (("auto", []), ("standard_only", []), ("flex", ["service_tier"])):
        assert MESSAGES.unsupported(Options(service_tier=tier)) == missing
    for given in ({"type": "json_object"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 7}, {}):
        assert MESSAGES.unsupported(Options(response_format=given)) == ["response_format"]
        assert lay({}, Options(response_format=given), "messages") == {}


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_schema", "name": "v", "strict": True, "schema": {"type": "object"}},
        {"type": "json_schema", "json_schema": {"name": "v", "strict": True, "schema": {"type": "object"}}},
    ],
)
def test_a_schema_of_either_shape_suits_it(given: dict[str, Any]) -> None:
    """A bot need not know which dialect answers."""
    options = Options(response_format=given, reasoning_effort="low", stop=["a", "b"])
    assert MESSAGES.unsupported(options) == []
    assert lay({}, options, "messages") == {
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "stop_sequences": ["a", "b"],
    }


def test_extra_body_touches_no_field_of_the_protocol() -> None:
    """The stream stays on; the vendor's own fields go through, and what is said of storing goes nowhere."""
    options = Options(max_output_tokens=7, extra_body={"stream": False, "id": "x", "thinking": {"type": "disabled"}})
    prompt = Prompt(model="m", messages=PROMPT.messages, options=options, store=True)
    assert json.loads(MESSAGES.stream_codec().encode(0, prompt)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": 7,
        "thinking": {"type": "disabled"},
    }


def test_what_belongs_to_no_call_is_nothing_and_content_is_malformed() -> None:
    """Before any call, as after its end."""
    ended = started()
    end(ended, "end_turn", output_tokens=1)
    ended.conclude(0)
    for codec in (MESSAGES.stream_codec(), ended):
        assert say(codec, "message_start", message={"id": "m2"}) == []
        assert end(codec, "end_turn", output_tokens=1) == []
        assert say(codec, "message_stop") == []
        assert say(codec, "message", id="m2", content=[{"type": "text", "text": "x"}], stop_reason="end_turn") == []
        assert say(codec, "error", error={"type": "api_error", "message": "late"}) == []
        assert say(codec, "content_block_start", index=0, content_block={"type": "text", "text": ""}) == []
        assert text(codec, "") == []
        with pytest.raises(MalformedFrame):
            text(codec, "late")
        with pytest.raises(MalformedFrame):
            say(codec, "content_block_start", index=0, content_block={"type": "text", "text": "late"})


def test_a_message_that_never_begun_ends_nothing() -> None:
    """Its end and its usage alone are no answer."""
    codec = started(begun=False)
    assert end(codec, "end_turn", output_tokens=1) == []
    assert say(codec, "message_stop") == []
    with pytest.raises(MalformedFrame):
        text(codec, "x")


def test_a_whole_message_has_to_be_whole_and_alone() -> None:
    """With a reason why it stopped, and not in the middle of a stream."""
    whole = {"id": "m1", "content": [{"type": "text", "text": "x\ud83d"}], "stop_reason": "max_tokens"}
    codec = started(begun=False)
    assert say(codec, "message", **whole) == [
        Started(0, "m1"),
        Content(0, "x\ufffd"),
        Finished(slot=0, finish="length", upstream_request_id="m1"),
    ]
    with pytest.raises(MalformedFrame):
        say(started(begun=False), "message", **{**whole, "stop_reason": None})
    with pytest.raises(MalformedFrame):
        say(started(), "message", **whole)
    codec = started(begun=False)
    codec.discard(0)
    [event] = say(codec, "message", **whole)
    assert isinstance(event, Finished)


def test_a_discarded_answer_gives_only_its_end() -> None:
    """At the reason: nobody waits for more. A free slot cannot be discarded, nor one that is not there."""
    codec = started()
    assert text(codec, "a\ud83d") == [Content(0, "a")]
    codec.discard(1)
    assert text(codec, "\ude80") == [Content(0, "\U0001f680")]
    codec.discard(0)
    assert text(codec, "b") == []
    assert text(codec, "b") == []
    [event] = end(codec, "end_turn", output_tokens=4)
    assert event == Finished(
        slot=0, finish="stop", usage=Usage(input_tokens=3, output_tokens=4), upstream_request_id="m1"
    )
    codec.discard(0)
    codec.encode(0, PROMPT)
    assert say(codec, "message_start", message={"id": "m2", "model": "x"}) == [Started(0, "m2", "x")]
    quiet = started(begun=False)
    quiet.discard(0)
    assert say(quiet, "message_start", message={}) == []
    [event] = end(quiet, "refusal")
    assert isinstance(event, Faulted)


def test_a_slot_discarded_in_its_ending_still_ends() -> None:
    """By its stop, or when somebody asks."""
    for last in ("message_stop", None):
        codec = started()
        assert end(codec, "end_turn") == [Ending(0)]
        codec.discard(0)
        events = say(codec, last) if last else [codec.conclude(0)]
        assert events == [Finished(slot=0, finish="stop", upstream_request_id="m1")]


def test_a_gateways_done_is_an_end_after_the_reason_only() -> None:
    """Before it, it says nothing; after the end, too."""
    codec = started()
    assert list(codec.decode(b"[DONE]")) == []
    assert text(codec, "x") == [Content(0, "x")]
    assert end(codec, "end_turn") == [Ending(0)]
    assert list(codec.decode(b" [DONE]")) == [Finished(slot=0, finish="stop", upstream_request_id="m1")]
    assert list(codec.decode(b"[DONE]")) == []


def test_no_half_is_lost_when_it_ends_badly() -> None:
    """It is handed out as U+FFFD before the error."""
    codec = started()
    text(codec, "a\ud83d")
    half, event = say(codec, "error", error={"type": "api_error", "message": "boom"})
    assert half == Content(0, "\ufffd")
    assert isinstance(event, Faulted)
    assert event.usage is None, "how much had come, nobody said"
    codec = started()
    text(codec, "a\ud83d")
    assert [type(event) for event in end(codec, "refusal", output_tokens=3)] == [Content, Faulted]


@pytest.mark.parametrize(
    ("type_", "status", "code", "retry"),
    [
        ("invalid_request_error", 400, "upstream_refused", "never"),
        ("authentication_error", 401, "upstream_auth", "next_target"),
        ("billing_error", 402, "insufficient_quota", "next_target"),
        ("permission_error", 403, "upstream_auth", "next_target"),
        ("not_found_error", 404, "upstream_refused", "never"),
        ("request_too_large", 413, "upstream_refused", "never"),
        ("rate_limit_error", 429, "upstream_rate_limited", "backoff"),
        ("api_error", 500, "upstream_error", "backoff"),
        ("timeout_error", 504, "upstream_error", "backoff"),
        ("overloaded_error", 529, "upstream_error", "backoff"),
        ("news_error", None, "upstream_error", "backoff"),
        (None, None, "upstream_error", "backoff"),
    ],
)
def test_an_error_in_the_stream_means_what_it_means_as_a_status(
    type_: str | None, status: int | None, code: str, retry: str
) -> None:
    """The stream began with 200; its type stands for the status it would have had."""
    [event] = say(started(), "error", error={"type": type_, "message": "m"})
    assert isinstance(event, Faulted)
    assert (event.slot, event.error.status, event.upstream_request_id) == (0, status, "m1")
    outcome = classify(event.error)
    assert (outcome.code, outcome.retry) == (code, retry)


def test_a_status_that_an_error_says_itself_counts() -> None:
    """Of a gateway, with an error in any shape."""
    [event] = say(started(), "error", status=503, error={"type": "api_error", "message": "m"})
    assert isinstance(event, Faulted)
    assert event.error.status == 503
    [event] = say(started(), None, error="boom")
    assert isinstance(event, Faulted)
    assert (event.error.message, event.error.status) == ("boom", None)
    [event] = say(started(), "error", message="flat", code=502)
    assert isinstance(event, Faulted)
    assert (event.error.message, event.error.status) == ("flat", 502)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "vendor", "delta": 7},
        {"type": "ping", "delta": []},
        {"type": "content_block_stop", "index": "x"},
        {"type": "content_block_delta", "delta": None, "x": "\ud83d"},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "\ud83d", "text": None}},
        {"type": "content_block_start", "content_block": {"type": "tool_use", "text": "no"}},
    ],
)
def test_what_is_unknown_or_no_content_is_ignored(frame: dict[str, Any]) -> None:
    """Whatever it holds."""
    assert list(started().decode(json.dumps(frame).encode())) == []


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":7}',
        b'{"type":"content_block_delta","delta":7}',
        b'{"type":"content_block_delta","delta":{"type":"text_delta","text":7}}',
        b'{"type":"content_block_start"}',
        b'{"type":"content_block_start","content_block":{"type":"text","text":[]}}',
        b'{"type":"message_start"}',
        b'{"type":"message_start","message":{"usage":{"input_tokens":"3"}}}',
        b'{"type":"message_delta"}',
        b'{"type":"message_delta","delta":{"stop_reason":7}}',
        b'{"type":"message_delta","delta":{},"usage":{"output_tokens":-1}}',
        b'{"type":"message","content":"x"}',
        b'{"type":"error","error":[7]}',
        b"{}",
        b'{"id":"x"}',
        b"",
        b"[]",
        b"[DONE]x",
        b"\xff",
        b"[" * 100_000,
        b'{"type":"message_stop","x":NaN}',
    ],
)
def test_what_is_not_of_the_dialect_is_malformed(frame: bytes) -> None:
    """Fields of the wrong kind in what is known, an event without a type, and bytes that are none."""
    with pytest.raises(MalformedFrame):
        started().decode(frame)
