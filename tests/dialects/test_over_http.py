"""Over HTTP an answer has a body of its own: other requests, the same events, and ids that prove less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Codec, Content, Ending, Event, Faulted, Finished, Prompt, Started
from sidecar.dialects.chat import CHAT
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.responses import RESPONSES
from sidecar.errors import MalformedFrame
from sidecar.wire import ChatMessage, Options, Usage

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))
TURN = {"role": "user", "content": "hi"}


def started(dialect: str) -> Codec:
    """A codec whose answer is awaited."""
    codec = DIALECTS[dialect].stream_codec()
    codec.encode(0, PROMPT)
    return codec


def say(codec: Codec, **fields: Any) -> list[Event]:
    """The data of one event."""
    return list(codec.decode(json.dumps(fields).encode()))


def events_of(codec: Codec, payloads: Iterator[bytes]) -> list[Event]:
    """The events of all of them."""
    return [event for payload in payloads for event in codec.decode(payload)]


def chunk(text: str | None = None, *, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


def text_of(events: list[Event]) -> str:
    """The content in events."""
    return "".join(event.text for event in events if isinstance(event, Content))


def test_how_each_dialect_travels() -> None:
    """By WebSocket and by HTTP, with a bearer's token."""
    for dialect in (RESPONSES, CHAT):
        assert dialect.transports == {"websocket", "sse"}
        assert dialect.credential_header == ("Authorization", "Bearer ")
        assert dialect.headers == ()
        assert dialect.stream_codec().slots == 1


@pytest.mark.parametrize(
    ("dialect", "prompt", "body"),
    [
        (
            "responses",
            PROMPT,
            {
                "model": "m",
                "input": [TURN],
                "store": False,
                "stream": True,
                "stream_options": {"include_obfuscation": False},
            },
        ),
        (
            "responses",
            Prompt(model="m", messages=PROMPT.messages, instructions="be brief", store=True),
            {
                "model": "m",
                "instructions": "be brief",
                "input": [TURN],
                "store": True,
                "stream": True,
                "stream_options": {"include_obfuscation": False},
            },
        ),
        (
            "chat",
            PROMPT,
            {"model": "m", "messages": [TURN], "stream": True, "stream_options": {"include_usage": True}},
        ),
        (
            "chat",
            Prompt(model="m", messages=PROMPT.messages, instructions="be brief", options=Options(seed=1)),
            {
                "model": "m",
                "messages": [{"role": "system", "content": "be brief"}, TURN],
                "stream": True,
                "stream_options": {"include_usage": True},
                "seed": 1,
            },
        ),
    ],
)
def test_the_body_of_a_post(dialect: str, prompt: Prompt, body: dict[str, Any]) -> None:
    """No type, no id and no stream name of ours: what it is says its path. And it asks for a stream."""
    sent = DIALECTS[dialect].stream_codec().encode(0, prompt)
    assert json.loads(sent) == body
    assert list(json.loads(sent)) == list(body)


@pytest.mark.parametrize("dialect", ["responses", "chat"])
def test_extra_body_cannot_turn_the_stream_off(dialect: str) -> None:
    """`stream`, `type`, `id` and their like belong to the protocol; the vendor's own fields go through."""
    extra = {"stream": False, "type": "x", "id": "x", "stream_id": "x", "background": True, "top_k": 3}
    prompt = Prompt(model="m", messages=PROMPT.messages, options=Options(extra_body=extra))
    sent = json.loads(DIALECTS[dialect].stream_codec().encode(0, prompt))
    assert sent["stream"] is True
    assert sent["top_k"] == 3
    assert not {"type", "id", "stream_id", "background"} & set(sent)


@pytest.mark.parametrize("dialect", ["responses", "chat"])
def test_a_codec_over_http_has_one_slot_and_one_answer_at_a_time(dialect: str) -> None:
    """As on a WebSocket, a taken slot is not given twice."""
    with pytest.raises(ValueError, match="taken"):
        started(dialect).encode(0, PROMPT)


def test_chat_chunks_with_an_id_each_are_one_answer() -> None:
    """Gateways make up ids: where no two agree, none is held against any."""
    codec = started("chat")
    events: list[Event] = []
    for number, piece in enumerate(("HO", "LD", "\ud83d", "\ude80", " now", " and", " then")):
        events += say(codec, **chunk(piece, id=f"c{number}"))
    assert text_of(events) == "HOLD\U0001f680 now and then"
    assert not codec._live, "nor is any kept"  # type: ignore[attr-defined]
    assert say(codec, **chunk(finish="stop", id="c8")) == [Ending(0)]
    [event] = say(codec, id="c9", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4})
    assert isinstance(event, Finished)
    assert event.upstream_request_id == "c0"
    assert event.usage == Usage(input_tokens=3, output_tokens=4)


@pytest.mark.parametrize("role", [True, False])
@pytest.mark.parametrize("foreign", [chunk("SELL", id="c2"), chunk(finish="stop", id="c2")], ids=["text", "end"])
def test_a_chunk_of_another_chat_answer_is_malformed(role: bool, foreign: dict[str, Any]) -> None:
    """Once two chunks agree, what goes by another id is not this answer's: two streams were mixed up on the way."""
    codec = started("chat")
    events = say(codec, **chunk("", id="c1")) if role else []
    for piece in ("H", "O", "L"):
        events += say(codec, **chunk(piece, id="c1"))
    assert text_of(events) == "HOL"
    with pytest.raises(MalformedFrame, match="another answer"):
        say(codec, **foreign)


def test_a_chat_chunk_without_an_id_is_this_answers() -> None:
    """Azure's first and last, for example."""
    codec = started("chat")
    events = say(codec, **chunk("", id=""))
    for piece in ("HO", "LD"):
        events += say(codec, **chunk(piece, id="c1"))
    events += say(codec, **chunk(" now", id=""))
    assert text_of(events) == "HOLD now"
    assert say(codec, **chunk(finish="stop", id="")) == [Ending(0)]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_delta_of_an_item_that_was_not_added_is_malformed(at: int) -> None:
    """Of a server that adds its items: before them, between them and behind them, it is of another answer."""
    codec = started("responses")
    say(codec, type="response.created", response={"id": "r1"})
    say(codec, type="response.output_item.added", item={"type": "message", "id": "i1"})
    deltas = [{"type": "response.output_text.delta", "delta": piece, "item_id": "i1"} for piece in ("H", "O", "L")]
    deltas.insert(at, {"type": "response.output_text.delta", "delta": "SELL", "item_id": "i9"})
    payloads = iter([json.dumps(delta).encode() for delta in deltas])
    with pytest.raises(MalformedFrame, match="answer"):
        events_of(codec, payloads)


def test_a_gateway_that_renames_its_items_is_believed() -> None:
    """It adds one, and names others in every delta: a known fault of gateways that translate."""
    codec = started("responses")
    say(codec, type="response.output_item.added", item={"type": "message", "id": "i1"})
    events: list[Event] = []
    for number, piece in enumerate(("HO", "LD", " now")):
        events += say(codec, type="response.output_text.delta", delta=piece, item_id=f"x{number}")
    assert text_of(events) == "HOLD now"


def test_after_the_end_of_a_chat_answer_only_more_text_is_malformed() -> None:
    """Usage, [DONE] and even an error come too late to say anything."""
    codec = started("chat")
    say(codec, **chunk("x", finish="stop", id="c1"))
    codec.conclude(0)
    assert say(codec, id="c1", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4}) == []
    assert list(codec.decode(b"[DONE]")) == []
    assert say(codec, error={"message": "late"}) == []
    with pytest.raises(MalformedFrame):
        say(codec, **chunk("late", id="c1"))


def test_done_without_an_answer_ends_nothing() -> None:
    """A body of [DONE] alone is no answer; after some text it is a cut one."""
    codec = started("chat")
    assert list(codec.decode(b"[DONE]")) == []
    say(codec, **chunk("x"))
    with pytest.raises(MalformedFrame, match="cut"):
        codec.decode(b"[DONE]")


def test_responses_deltas_under_many_names_are_one_answer() -> None:
    """Items nobody added, a second `created`, a terminal under another id: all of this one body."""
    codec = started("responses")
    events = say(codec, type="response.created", response={"id": "r1", "model": "m-1"})
    assert events == [Started(0, "r1", "m-1")]
    for number, piece in enumerate(("HO", "LD", " now")):
        events += say(codec, type="response.output_text.delta", delta=piece, item_id=f"i{number}")
    assert text_of(events) == "HOLD now"
    assert say(codec, type="response.created", response={"id": "r2"}) == []
    [event] = say(codec, type="response.completed", response={"id": "r3", "status": "completed"})
    assert event == Finished(slot=0, finish="stop", upstream_request_id="r3", model="m-1")


def test_a_gateways_done_says_nothing_in_responses() -> None:
    """Some end every stream with it; on a WebSocket nobody does."""
    codec = started("responses")
    assert list(codec.decode(b"[DONE]")) == []
    say(codec, type="response.completed", response={"id": "r1", "status": "completed"})
    assert list(codec.decode(b"[DONE]")) == []
    with pytest.raises(MalformedFrame):
        RESPONSES.codec().decode(b"[DONE]")


def test_a_whole_chat_completion_is_an_answer() -> None:
    """A server that ignores `stream` sends one JSON body: its text, its end and its usage."""
    message = {"role": "assistant", "content": "HOLD", "refusal": None, "tool_calls": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    body = {
        "id": "c1",
        "object": "chat.completion",
        "model": "m-1",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
    }
    expected = Finished(
        slot=0,
        finish="stop",
        usage=Usage(input_tokens=3, output_tokens=1),
        upstream_request_id="c1",
        model="m-1",
    )
    assert say(started("chat"), **body) == [Started(0, "c1", "m-1"), Content(0, "HOLD"), expected]
    assert say(started("chat"), **{**body, "usage": None})[-1] == Ending(0)
    cut = {**body, "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
    [*_, event] = say(started("chat"), **cut)
    assert isinstance(event, Finished)
    assert event.finish == "length"
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}
    called = {**body, "choices": [{"index": 0, "message": calls, "finish_reason": "tool_calls"}]}
    [*_, event] = say(started("chat"), **called)
    assert isinstance(event, Finished)
    assert event.finish == "tool_calls"


def whole_response(**fields: Any) -> dict[str, Any]:
    """A response that was not streamed."""
    part = {"type": "output_text", "text": "HOLD", "annotations": []}
    return {
        "id": "r1",
        "object": "response",
        "status": "completed",
        "model": "m-1",
        "error": None,
        "incomplete_details": None,
        "output": [{"type": "message", "id": "i1", "role": "assistant", "content": [part]}],
        "usage": {"input_tokens": 3, "output_tokens": 1},
        **fields,
    }


def test_a_whole_response_is_an_answer() -> None:
    """The same for Responses: by its `status`, with its usage, whether it ended well or not."""
    usage = Usage(input_tokens=3, output_tokens=1)
    assert say(started("responses"), **whole_response()) == [
        Content(0, "HOLD"),
        Finished(slot=0, finish="stop", usage=usage, upstream_request_id="r1", model="m-1"),
    ]
    cut = whole_response(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    [*_, event] = say(started("responses"), **cut)
    assert isinstance(event, Finished)
    assert event.finish == "length"
    failed = whole_response(status="failed", output=[], error={"code": "server_error", "message": "boom"})
    [event] = say(started("responses"), **failed)
    assert isinstance(event, Faulted)
    assert (event.error.code, event.usage) == ("server_error", usage)


@pytest.mark.parametrize("status", ["in_progress", "queued", None])
def test_a_whole_response_that_has_not_ended_is_no_answer(status: str | None) -> None:
    """Whatever text it holds."""
    with pytest.raises(MalformedFrame, match="not ended"):
        say(started("responses"), **whole_response(status=status))


@pytest.mark.parametrize("dialect", ["responses", "chat"])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "boom", "type": "server_error", "code": "503"}},
        {"type": "error", "error": {"message": "boom", "type": "server_error", "code": 503}},
        {"type": "error", "code": "503", "message": "boom"},
        {"error": {"message": "boom", "code": 503}, "object": "error"},
    ],
)
def test_an_error_as_the_only_payload_is_one(dialect: str, body: dict[str, Any]) -> None:
    """In a 200, as some gateways have it."""
    [event] = say(started(dialect), **body)
    assert isinstance(event, Faulted)
    assert (event.slot, event.error.message, event.error.status) == (0, "boom", 503)


def test_a_dialect_that_no_websocket_speaks_says_so() -> None:
    """Asked for a WebSocket's codec, it is an error of the caller."""
    dialect = Dialect("paper", None, CHAT.stream_codec)
    assert dialect.transports == {"sse"}
    assert repr(dialect) == "<Dialect paper>"
    with pytest.raises(ValueError, match="paper is not spoken over WebSockets"):
        dialect.codec()
