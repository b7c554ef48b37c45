"""The Responses dialect beyond what the transcripts show: who owns a frame, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.dialects.base import NOTHING, Codec, Content, Event, Faulted, Finished, Prompt, Started
from sidecar.dialects.responses import MAX_SLOTS, RESPONSES
from sidecar.errors import MalformedFrame
from sidecar.wire import ChatMessage, Options

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))


def started(slots: int = 1, *taken: int) -> Codec:
    """A codec with these slots taken."""
    codec = RESPONSES.codec(slots=slots)
    for slot in taken or (0,):
        codec.encode(slot, PROMPT)
    return codec


def say(codec: Codec, kind: str, **fields: Any) -> list[Event]:
    """One event comes down."""
    return list(codec.decode(json.dumps({"type": kind, **fields}).encode()))


def delta(codec: Codec, text: str, **fields: Any) -> list[Event]:
    """One delta comes down."""
    return say(codec, "response.output_text.delta", delta=text, **fields)


def created(codec: Codec, name: str, **fields: Any) -> list[Event]:
    """`response.created` comes down."""
    return say(codec, "response.created", response={"id": name, "model": "m-1"}, **fields)


def completed(codec: Codec, name: str | None = None, **fields: Any) -> list[Event]:
    """`response.completed` comes down."""
    response = {"id": name, "status": "completed", **fields.pop("response", {})}
    return say(codec, "response.completed", response=response, **fields)


def test_the_dialect_is_found_by_its_name() -> None:
    """The configuration names dialects."""
    assert DIALECTS["responses"] is RESPONSES


@pytest.mark.parametrize("slots", [0, -1, MAX_SLOTS + 1])
def test_no_more_slots_than_a_service_has_names(slots: int) -> None:
    """Services take 32 stream names per socket."""
    with pytest.raises(ValueError, match="1 to 32"):
        RESPONSES.codec(slots=slots)


def test_a_taken_slot_is_not_given_twice() -> None:
    """And nothing is changed by the attempt."""
    codec = started()
    with pytest.raises(ValueError, match="taken"):
        codec.encode(0, PROMPT)
    assert repr(codec) == "<ResponsesCodec 1/1 taken>"
    assert delta(codec, "HO") == [Content(0, "HO")]


def test_a_prompt_that_cannot_be_written_takes_no_slot() -> None:
    """An encoding that fails leaves the slot free."""
    codec = RESPONSES.codec()
    with pytest.raises(TypeError):
        codec.encode(0, Prompt(model="m", messages=(), options=Options(extra_body={"a": object()})))
    codec.encode(0, PROMPT)


def test_there_is_nothing_to_conclude() -> None:
    """An answer and its usage end in one frame."""
    with pytest.raises(ValueError, match="not ending"):
        started().conclude(0)


def test_content_for_a_free_slot_is_malformed() -> None:
    """Before any call, and after its end; an empty delta is no content."""
    codec = RESPONSES.codec()
    with pytest.raises(MalformedFrame):
        delta(codec, "x")
    assert delta(codec, "") == []
    codec.encode(0, PROMPT)
    completed(codec)
    with pytest.raises(MalformedFrame):
        delta(codec, "x")


@pytest.mark.parametrize("stream", ["s1", "s9", "other", None])
def test_content_for_an_unknown_stream_is_malformed(stream: str | None) -> None:
    """With slots, a frame must name the stream of a call in flight."""
    codec = started(2, 0)
    with pytest.raises(MalformedFrame):
        delta(codec, "x", stream_id=stream)


def test_without_slots_a_server_may_label_its_stream_if_it_sticks_to_it() -> None:
    """The first frame of a call says the label; another one in its midst is another call's."""
    codec = started()
    assert created(codec, "r1", stream_id="default") == [Started(0, "r1", "m-1")]
    assert delta(codec, "HO", stream_id="default") == [Content(0, "HO")]
    with pytest.raises(MalformedFrame):
        delta(codec, "evil", stream_id="other")
    assert completed(codec, "r1", stream_id="other") == []
    assert len(completed(codec, "r1", stream_id="default")) == 1


def test_text_of_an_old_call_never_reaches_a_new_one() -> None:
    """Told by its item, with or without `response.created` of the new call."""
    codec = started()
    delta(codec, "HOLD", item_id="msg_1")
    completed(codec, "r1")
    codec.encode(0, PROMPT)
    with pytest.raises(MalformedFrame, match="another answer"):
        delta(codec, "late", item_id="msg_1")


def add(codec: Codec, name: str) -> None:
    """`response.output_item.added` comes down."""
    assert say(codec, "response.output_item.added", item={"id": name, "type": "message"}) == []


def test_a_stray_delta_in_the_middle_is_malformed() -> None:
    """Under an item that was never added, though its stream is right; items that were added may follow each other."""
    codec = started()
    add(codec, "msg_1")
    assert delta(codec, "HO", item_id="msg_1") == [Content(0, "HO")]
    add(codec, "msg_2")
    assert delta(codec, "LD", item_id="msg_2") == [Content(0, "LD")]
    assert delta(codec, "!", item_id="msg_1") == [Content(0, "!")]
    with pytest.raises(MalformedFrame, match="another answer"):
        delta(codec, " STRAY", item_id="msg_0")


def test_a_gateway_whose_deltas_name_other_items_is_borne() -> None:
    """As long as it does so throughout: back at an item it added, the first delta was a stray, and that is the end."""
    codec = started()
    add(codec, "msg_1")
    assert delta(codec, "HO", item_id="raw_1") == [Content(0, "HO")]
    assert delta(codec, "LD", item_id="raw_2") == [Content(0, "LD")]
    assert delta(codec, "!", item_id="raw_1") == [Content(0, "!")]
    with pytest.raises(MalformedFrame, match="two answers"):
        delta(codec, "BUY", item_id="msg_1")


def test_a_stray_before_the_item_is_added_is_found_out() -> None:
    """Text under an item, then another item is added and speaks: one of the two is somebody else's."""
    codec = started()
    assert delta(codec, " STRAY", item_id="msg_0") == [Content(0, " STRAY")]
    add(codec, "msg_1")
    with pytest.raises(MalformedFrame, match="two answers"):
        delta(codec, "BUY", item_id="msg_1")


def test_an_item_may_be_added_after_its_first_text() -> None:
    """Late, but the same: nothing is wrong with it, nor with the next one."""
    codec = started()
    assert delta(codec, "HO", item_id="msg_1") == [Content(0, "HO")]
    add(codec, "msg_1")
    assert delta(codec, "LD", item_id="msg_1") == [Content(0, "LD")]
    add(codec, "msg_2")
    assert delta(codec, "!", item_id="msg_2") == [Content(0, "!")]


def test_a_server_that_announces_must_announce_each_answer() -> None:
    """Text without ids before its `response.created` can only be late."""
    codec = started()
    created(codec, "r1")
    delta(codec, "HOLD")
    completed(codec, "r1")
    codec.encode(0, PROMPT)
    with pytest.raises(MalformedFrame, match=r"before its response\.created"):
        delta(codec, "late")


def test_a_server_that_counts_its_items_from_one_each_time_is_believed() -> None:
    """`output_item.added` says aloud whose the item is, in two slots at once, too."""
    codec = started(2, 0, 1)
    for _ in range(2):
        for slot in (0, 1):
            stream = f"s{slot}"
            assert created(codec, "resp_1", stream_id=stream) == [Started(slot, "resp_1", "m-1")]
            say(codec, "response.output_item.added", item={"id": "msg_1", "type": "message"}, stream_id=stream)
        for slot in (0, 1):
            assert delta(codec, "x", item_id="msg_1", stream_id=f"s{slot}") == [Content(slot, "x")]
        for slot in (1, 0):
            ended = completed(codec, None, stream_id=f"s{slot}")
            assert [type(event) for event in ended] == [Finished]
            codec.encode(slot, PROMPT)


def test_a_second_terminal_neither_ends_nor_feeds_the_next_call() -> None:
    """With slots too; a terminal that repeats an id from a server without announcements is believed once text came."""
    codec = started()
    created(codec, "r1")
    assert len(completed(codec, "r1")) == 1
    assert completed(codec, "r1") == []
    codec.encode(0, PROMPT)
    assert completed(codec, "r1", response={"output": [text_item("late")]}) == []
    created(codec, "r2")
    delta(codec, "BUY")
    assert completed(codec, "r1") == []
    assert len(completed(codec, "r2")) == 1
    silent = started()
    completed(silent, "same")
    silent.encode(0, PROMPT)
    delta(silent, "x")
    assert len(completed(silent, "same")) == 1


def test_the_end_of_a_response_that_never_began_is_malformed() -> None:
    """An announced response ends under its own name."""
    codec = started()
    created(codec, "r1")
    with pytest.raises(MalformedFrame, match="never began"):
        completed(codec, "r7")


def test_a_second_response_in_the_middle_of_one_is_malformed() -> None:
    """Two texts are never stitched; the same announcement twice, or anew before any text, harms nothing."""
    codec = started()
    assert created(codec, "r1") == [Started(0, "r1", "m-1")]
    assert created(codec, "r1") == []
    assert created(codec, "r2") == [Started(0, "r2", "m-1")]
    delta(codec, "HO")
    with pytest.raises(MalformedFrame, match="second response"):
        created(codec, "r3")


def text_item(text: str) -> dict[str, Any]:
    """An output message."""
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def test_the_text_of_a_part_stands_in_for_deltas_that_never_came() -> None:
    """From `output_text.done`, where the terminal has no output; deltas, where they came, are not repeated."""
    codec = started()
    say(codec, "response.output_text.done", text="HO")
    say(codec, "response.output_text.done", text="LD")
    assert completed(codec)[0] == Content(0, "HOLD")
    codec.encode(0, PROMPT)
    delta(codec, "BUY")
    say(codec, "response.output_text.done", text="BUY")
    assert [type(event) for event in completed(codec, response={"output": [text_item("BUY")]})] == [Finished]


def test_events_for_no_call_are_nothing() -> None:
    """Set-up, refusals and terminals of a slot that no call holds."""
    codec = RESPONSES.codec(slots=2)
    assert created(codec, "r1", stream_id="s0") == []
    assert say(codec, "response.output_item.added", item={"id": "i", "type": "message"}) == []
    assert say(codec, "response.output_text.done", text="x") == []
    assert say(codec, "response.refusal.delta", delta="x") == []
    assert say(codec, "response.refusal.done", refusal="x") == []
    assert completed(codec, "r1", stream_id="s1") == []


def test_a_refusal_said_only_at_the_end_is_no_answer() -> None:
    """In `refusal.done`, or in the terminal's output alone."""
    codec = started()
    say(codec, "response.refusal.done", refusal="No.")
    [event] = completed(codec)
    assert isinstance(event, Faulted)
    assert (event.error.code, event.error.message) == ("content_filter", "No.")
    codec.encode(0, PROMPT)
    [event] = completed(
        codec, response={"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "N"}]}]}
    )
    assert isinstance(event, Faulted)


@pytest.mark.parametrize(
    ("response", "code", "message"),
    [
        ({"status": "cancelled"}, None, "the response is cancelled"),
        ({"status": "failed", "error": {"code": "server_error", "message": "Sorry."}}, "server_error", "Sorry."),
        ({"status": "incomplete"}, "incomplete", "the response ended incomplete: incomplete"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "bored"}},
            "bored",
            "the response ended incomplete: bored",
        ),
    ],
)
def test_a_completed_response_whose_status_says_otherwise_is_not_done(
    response: dict[str, Any], code: str | None, message: str
) -> None:
    """The worse of the two words counts."""
    [event] = completed(started(), response=response)
    assert isinstance(event, Faulted)
    assert (event.error.code, event.error.message) == (code, message)


def test_a_usage_that_says_nothing_is_no_usage() -> None:
    """An empty map is not zero tokens."""
    [event] = completed(started(), response={"usage": {}})
    assert isinstance(event, Finished)
    assert event.usage is None


def test_a_discarded_slot_drops_everything_but_its_end() -> None:
    """Set-up, text, half pairs; a free slot is discarded without ado."""
    codec = started()
    delta(codec, "up \ud83d")
    codec.discard(0)
    assert delta(codec, "HO") == []
    assert say(codec, "response.output_text.done", text="HO") == []
    [event] = completed(codec, response={"output": [text_item("HOLD")]})
    assert isinstance(event, Finished)
    codec.discard(0)
    codec.encode(0, PROMPT)
    codec.discard(0)
    assert created(codec, "r2") == []
    assert isinstance(completed(codec, "r2")[0], Finished)


def test_an_error_of_the_connection_frees_every_slot_and_loses_no_half() -> None:
    """Without a stream, or with one we never named; a late one of an ended call is dropped."""
    codec = started(3, 0, 1)
    assert delta(codec, "\ud83d", stream_id="s1") == []
    assert say(codec, "error", error={"message": "late"}, stream_id="s2") == []
    content, event = say(codec, "error", error={"message": "all over"}, stream_id="s77")
    assert content == Content(1, "\ufffd")
    assert isinstance(event, Faulted)
    assert event.slot is None
    for slot in range(3):
        codec.encode(slot, PROMPT)
    [event] = say(codec, "error", error={"message": "yours"}, stream_id="s2")
    assert isinstance(event, Faulted)
    assert event.slot == 2
    [event] = say(codec, "error", message="everybody's")
    assert isinstance(event, Faulted)
    assert event.slot is None
    codec.encode(1, PROMPT)
    [event] = say(codec, "error", message="of the only one there is")
    assert isinstance(event, Faulted)
    assert event.slot == 1


def test_an_error_without_a_type_is_an_error_and_other_nameless_events_are_malformed() -> None:
    """A frame that lost its type may have lost a piece of text."""
    codec = started()
    [event] = codec.decode(b'{"error":{"message":"boom","code":"server_error"}}')
    assert isinstance(event, Faulted)
    with pytest.raises(MalformedFrame, match="without a type"):
        codec.decode(b'{"delta":"HO"}')


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":5}',
        b'{"type":null}',
        b'{"type":"response.output_text.delta","delta":7}',
        b'{"type":"response.output_text.delta","delta":null}',
        b'{"type":"response.output_text.delta","delta":"x","item_id":1}',
        b'{"type":"response.output_text.delta","delta":"x","stream_id":[]}',
        b'{"type":"response.created"}',
        b'{"type":"response.created","response":[]}',
        b'{"type":"response.output_item.added","item":"x"}',
        b'{"type":"response.output_text.done","text":{}}',
        b'{"type":"response.refusal.done","refusal":0}',
        b'{"type":"response.completed"}',
        b'{"type":"response.completed","response":{"usage":{"input_tokens":-1}}}',
        b'{"type":"response.completed","response":{"usage":{"input_tokens":9007199254740992}}}',
        b'{"type":"response.completed","response":{"output":[3]}}',
        b'{"type":"response.completed","response":{"output":[{"type":"message","content":"x"}]}}',
        b'{"type":"error","error":[]}',
        b'{"delta":{}}',
        b"[]",
        b"",
        b"null",
        b'{"type":"x","delta":NaN}',
        b'{"type":"response.output_text.delta","delta":"\xff"}',
        b"[" * 100_000,
        b'{"type":"response.output_text.delta","delta":' + b"[" * 50_000,
        b'{"delta":' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_not_of_the_dialect_is_malformed(frame: bytes) -> None:
    """Fields of the wrong kind in an event we know, and bytes that are no event."""
    with pytest.raises(MalformedFrame):
        started().decode(frame)


def test_half_a_pair_where_it_does_not_belong_does_no_harm() -> None:
    """In the middle, alone at the start, in a field we do not stream, and in an unknown event."""
    codec = started()
    assert delta(codec, "a\ud83db") == [Content(0, "a\ufffdb")]
    assert delta(codec, "\ude80") == [Content(0, "\ufffd")]
    assert delta(codec, "\ud83d") == []
    assert delta(codec, "\ud83d") == [Content(0, "\ufffd")]
    assert delta(codec, "x") == [Content(0, "\ufffdx")]
    assert delta(codec, "y") == [Content(0, "y")]
    assert say(codec, "response.sung", delta={"a": "\ud83d"}) == []
    [event] = completed(codec, response={"model": "m\ud83d"})
    assert isinstance(event, Finished)
    assert event.model == "m\ufffd"


def test_ids_are_forgotten_in_the_end() -> None:
    """A connection lives an hour: what it remembers is bounded."""
    codec = RESPONSES.codec()
    for number in range(1000):
        codec.encode(0, PROMPT)
        delta(codec, "x", item_id=f"m{number}")
        completed(codec, f"r{number}")
    assert len(codec._owners._owners) == 256  # type: ignore[attr-defined]


def test_nothing_is_one_object() -> None:
    """Metadata costs no allocation."""
    assert started().decode(b'{"type":"response.in_progress"}') is NOTHING


def test_options_without_a_field_are_named() -> None:
    """`stop` and `seed` do not exist here."""
    assert RESPONSES.unsupported(Options(stop="x", seed=1, temperature=0)) == ["stop", "seed"]
