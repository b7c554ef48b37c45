"""The chat dialect beyond what the transcripts show: late frames, ids, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Codec, Content, Ending, Event, Faulted, Finished, Prompt, Started
from sidecar.dialects.chat import CHAT
from sidecar.dialects.chat_frames import MAX_LINES
from sidecar.errors import MalformedFrame
from sidecar.wire import ChatMessage, Options

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))


def started(slots: int = 1, *taken: int) -> Codec:
    """A codec with these slots taken."""
    codec = CHAT.codec(slots=slots)
    for slot in taken or (0,):
        codec.encode(slot, PROMPT)
    return codec


def down(codec: Codec, **fields: Any) -> list[Event]:
    """One frame comes down."""
    return list(codec.decode(json.dumps(fields).encode()))


def chunk(text: str | None = None, *, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


USAGE = {"prompt_tokens": 3, "completion_tokens": 1}


def test_the_dialect_is_found_by_its_name() -> None:
    """The configuration names dialects."""
    assert DIALECTS["chat"] is CHAT
    assert CHAT.unsupported(Options(stop="x", seed=1)) == []


def test_slots_are_held_to() -> None:
    """At least one; a taken one is not given twice."""
    with pytest.raises(ValueError, match="at least one"):
        CHAT.codec(slots=0)
    codec = started()
    with pytest.raises(ValueError, match="taken"):
        codec.encode(0, PROMPT)
    with pytest.raises(ValueError, match="not ending"):
        codec.conclude(0)
    assert repr(codec) == "<ChatCodec 1/1 taken>"


def test_a_relay_without_ids_is_understood() -> None:
    """Two answers in turn, the second without text."""
    codec = started()
    assert down(codec, **chunk("HO")) == [Started(0), Content(0, "HO")]
    assert down(codec, **chunk("LD")) == [Content(0, "LD")]
    assert down(codec, **chunk(finish="stop")) == [Ending(0)]
    assert codec.conclude(0) == Finished(slot=0, finish="stop")
    codec.encode(0, PROMPT)
    assert down(codec, choices=[], usage=USAGE) == []
    assert down(codec, **chunk("", finish=None)) == [Started(0)]
    assert down(codec, **chunk(finish="stop")) == [Ending(0)]
    [event] = codec.decode(b"[DONE]")
    assert event == Finished(slot=0, finish="stop")


def test_an_end_that_may_be_the_last_answers_is_malformed() -> None:
    """Nothing of this answer came, and no id tells whose it is."""
    codec = started()
    down(codec, **chunk("x", finish="stop"))
    codec.conclude(0)
    codec.encode(0, PROMPT)
    with pytest.raises(MalformedFrame, match="last answer"):
        down(codec, **chunk(finish="stop"))


def test_usage_before_the_end_is_kept() -> None:
    """An end finds it there, and needs no waiting; an empty map is no usage."""
    codec = started()
    down(codec, **chunk("x", usage={}))
    down(codec, choices=[], usage=USAGE)
    [event] = down(codec, **chunk(finish="stop"))
    assert isinstance(event, Finished)
    assert event.usage is not None
    assert event.usage.input_tokens == 3


def test_late_frames_of_an_ended_answer_are_known_by_its_id() -> None:
    """Usage, end and [DONE] are dropped; its text is malformed."""
    codec = started()
    down(codec, **chunk("x", id="c1"))
    down(codec, **chunk(finish="stop", id="c1"))
    codec.conclude(0)
    assert down(codec, id="c1", choices=[], usage=USAGE) == []
    assert down(codec, id="c1", error={"message": "late"}) == []
    codec.encode(0, PROMPT)
    assert down(codec, id="c1", choices=[], usage=USAGE) == []
    assert down(codec, **chunk(finish="stop", id="c1")) == []
    assert down(codec, id="c1", error={"message": "late"}) == []
    assert codec.decode(b"[DONE]") == ()
    down(codec, **chunk("y", id="c2"))
    assert down(codec, id="c1", choices=[], usage=USAGE) == []
    with pytest.raises(MalformedFrame):
        down(codec, **chunk("late", id="c1"))


def test_a_relay_whose_ids_never_change_is_believed_when_it_opens_each_answer() -> None:
    """A role chunk says aloud that an answer begins; text at once under an old id is malformed."""
    codec = started()
    for _ in range(3):
        assert down(codec, choices=[{"delta": {"role": "assistant"}}], id="same") == [Started(0, "same")]
        assert down(codec, **chunk("x", id="same")) == [Content(0, "x")]
        down(codec, **chunk(finish="stop", id="same"))
        codec.conclude(0)
        codec.encode(0, PROMPT)
    with pytest.raises(MalformedFrame):
        down(codec, **chunk("late", id="same"))


def test_another_id_in_the_middle_of_an_answer_is_malformed() -> None:
    """All chunks of an answer have one id; ours, echoed, is as good. What is no content is dropped."""
    codec = started()
    down(codec, **chunk("x", id="c1"))
    assert down(codec, **chunk("y", id="s0-1")) == [Content(0, "y")]
    assert down(codec, **chunk(finish="stop", id="c9")) == []
    with pytest.raises(MalformedFrame):
        down(codec, **chunk("evil", id="c9"))


def test_an_id_may_come_after_the_first_chunk() -> None:
    """Azure's first chunk has an empty one."""
    codec = started()
    assert down(codec, id="", choices=[], prompt_filter_results=[]) == []
    assert down(codec, **chunk("", id="")) == [Started(0)]
    assert down(codec, **chunk("x", id="c1")) == [Content(0, "x")]
    down(codec, **chunk(finish="stop", id="c1"))
    assert codec.conclude(0).upstream_request_id == "c1"


def test_content_without_a_call_is_malformed() -> None:
    """Before any call, for a slot that is free, for one nobody named, and after the end."""
    with pytest.raises(MalformedFrame):
        down(CHAT.codec(), **chunk("x"))
    for name in ("s1-1", None, "c1"):
        with pytest.raises(MalformedFrame):
            down(started(2, 0), **chunk("x", id=name))
    codec = started()
    down(codec, **chunk("x", finish="stop"))
    with pytest.raises(MalformedFrame):
        down(codec, **chunk("late"))


def test_without_a_call_all_else_is_nothing() -> None:
    """Ends, usage, role chunks, [DONE], in both forms."""
    codec = CHAT.codec()
    assert down(codec, **chunk(finish="stop")) == []
    assert down(codec, choices=[], usage=USAGE) == []
    assert codec.decode(b"[DONE]") == ()
    many = started(2, 0)
    assert many.decode(b"[DONE]") == ()
    assert down(many, id="s9-9", data="[DONE]") == []
    assert down(many, id="s9-9", data=chunk(finish="stop")) == []


def test_bare_chunks_can_carry_our_id_with_many_slots() -> None:
    """A relay that echoes the id as the chunk's own."""
    codec = started(2, 0, 1)
    assert down(codec, **chunk("a", id="s1-2")) == [Started(1), Content(1, "a")]
    assert down(codec, **chunk("b", id="s0-1")) == [Started(0), Content(0, "b")]
    assert down(codec, **chunk("c", id="s1-2")) == [Content(1, "c")]


def test_only_the_first_choice_is_ours() -> None:
    """Whatever order they come in."""
    codec = started()
    two = [{"index": 1, "delta": {"content": "B"}}, {"index": 0, "delta": {"content": "A"}}]
    assert down(codec, choices=two)[-1] == Content(0, "A")
    assert down(codec, choices=two) == [Content(0, "A")]
    assert down(codec, choices=two[:1]) == []
    assert down(codec, choices=[{"index": 1, "delta": {"content": "\ud83d"}}]) == []


def test_a_whole_message_is_an_answer_too() -> None:
    """A relay that does not stream, with halves of pairs in it for good measure."""
    codec = started()
    whole = {"index": 0, "message": {"role": "assistant", "content": "HOLD\ud83d"}, "finish_reason": "stop"}
    events = down(codec, choices=[{"index": 1}, whole], usage=USAGE)
    assert [type(event) for event in events] == [Started, Content, Content, Finished]
    assert events[1:3] == [Content(0, "HOLD"), Content(0, "\ufffd")]


@pytest.mark.parametrize("reason", ["error", "eos"])
def test_an_end_nobody_knows_is_no_answer(reason: str) -> None:
    """Only what is known to be an end is one."""
    codec = started()
    [*_, event] = down(codec, **chunk("x", finish=reason))
    assert isinstance(event, Faulted)
    assert event.error.code == reason


def test_an_error_beside_content_wins() -> None:
    """In the frame, and in the chunk of an envelope."""
    codec = started(2, 0, 1)
    down(codec, **chunk("x", id="s0-1"))
    [event] = down(codec, **chunk("y", id="s0-1", error={"message": "boom", "code": "502"}))
    assert isinstance(event, Faulted)
    assert (event.slot, event.error.status) == (0, 502)
    [event] = down(
        codec, id="s1-2", data={"type": "error", "code": "rate_limit_exceeded", "message": "Slow."}, status=429
    )
    assert isinstance(event, Faulted)
    assert (event.slot, event.error.code, event.error.status) == (1, "rate_limit_exceeded", 429)


def test_an_error_of_nobody_is_the_connections() -> None:
    """Every slot is free again, and no half is lost; with one slot it is the call's in flight, whatever its id."""
    codec = started(2, 0, 1)
    down(codec, **chunk("x\ud83d", id="s0-1"))
    half, event = down(codec, error={"message": "boom"})
    assert half == Content(0, "\ufffd")
    assert isinstance(event, Faulted)
    assert event.slot is None
    codec.encode(1, PROMPT)
    [event] = down(codec, error={"message": "boom"})
    assert isinstance(event, Faulted)
    assert event.slot == 1
    single = started()
    down(single, **chunk("x\ud83d", id="c1"))
    half, event = down(single, id="evt_1", error={"message": "boom"})
    assert half == Content(0, "\ufffd")
    assert isinstance(event, Faulted)
    assert event.slot == 0


def test_an_event_streams_lines_are_read() -> None:
    """Several in one frame, with comments, names, blank lines; halves of pairs, too."""
    codec = started()
    frame = ": hello\nevent: message\nid: 7\nretry: 10\ndata: " + json.dumps(chunk("a\ud83d")) + "\n\n"
    frame += "data: " + json.dumps(chunk("\ude80")) + "\r\n\r\ndata: " + json.dumps(chunk("b")) + "\n\n"
    assert codec.decode(frame.encode()) == (Started(0), Content(0, "a"), Content(0, "\U0001f680"), Content(0, "b"))
    assert codec.decode(b": keep-alive") == ()
    twice = "data: " + json.dumps(chunk("d")) + "\n\n"
    assert codec.decode(twice.encode() * 2) == (Content(0, "d"), Content(0, "d"))
    assert codec.decode(twice.encode()) == (Content(0, "d"),)
    assert codec.decode(b" \n" + json.dumps(chunk("c")).encode()) == (Content(0, "c"),)


@pytest.mark.parametrize("line", [b"data: {}\n", b": x\n", b"event: x\n"])
def test_a_frame_of_very_many_lines_is_malformed(line: bytes) -> None:
    """A mebibyte of them in one event took a third of a second, in which nobody else was served."""
    assert started().decode(line * MAX_LINES) == ()
    with pytest.raises(MalformedFrame, match="too many lines"):
        started().decode(line * (MAX_LINES + 1))


def test_a_discarded_slot_drops_everything_but_its_end() -> None:
    """And waits for no usage; the next call is not fed what is late."""
    codec = started(2, 0, 1)
    down(codec, **chunk("x\ud83d", id="s0-1"))
    codec.discard(0)
    assert down(codec, **chunk("y", id="s0-1")) == []
    assert down(codec, **chunk("z", id="s0-1")) == []
    [event] = down(codec, **chunk("z", finish="stop", id="s0-1"))
    assert isinstance(event, Finished)
    codec.encode(0, PROMPT)
    assert down(codec, id="s0-1", choices=[], usage=USAGE) == []
    codec.discard(0)
    assert down(codec, **chunk("", id="s0-3")) == []


def test_a_slot_discarded_after_its_end_is_freed_by_any_frame() -> None:
    """Nobody asks for its `conclude`; if somebody does, it is ended once."""
    codec = started(2, 0, 1)
    down(codec, **chunk("x", finish="stop", id="s0-1"))
    codec.discard(0)
    first, second = down(codec, **chunk("y", id="s1-2"))[1:]
    assert first == Content(1, "y")
    assert isinstance(second, Finished)
    assert second.slot == 0
    codec.encode(0, PROMPT)
    down(codec, **chunk("x", finish="stop", id="s0-3"))
    codec.discard(0)
    assert codec.conclude(0).finish == "stop"
    assert down(codec, **chunk("", id="s1-2")) == []
    codec.discard(0)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "ping"},
        {"type": "ping", "id": 5},
        {"type": 7, "note": "error"},
        {"event": "heartbeat", "data": 3},
        {"event": "heartbeat", "data": "error"},
        {"data": {"id": 4, "note": "error"}},
        {"model": 5, "usage": 7},
        {"type": "x", "data": {"type": {}, "note": "error"}},
    ],
)
def test_unknown_events_are_ignored_whatever_they_hold(frame: dict[str, Any]) -> None:
    """They belong to somebody else's extension."""
    assert down(started(), **frame) == []


@pytest.mark.parametrize(
    "frame",
    [
        b'{"choices":7}',
        b'{"choices":[{"delta":{"content":7}}]}',
        b'{"choices":[{"delta":{"content":["x"]}}]}',
        b'{"choices":[{"index":"0","delta":{"content":"x"}}]}',
        b'{"choices":[{"delta":{"content":"x"}}],"model":5}',
        b'{"choices":[],"usage":{"prompt_tokens":"3"}}',
        b'{"choices":[],"usage":{"prompt_tokens":1e300}}',
        b'{"choices":[{"finish_reason":true}]}',
        b'{"id":"s0-1","data":7}',
        b'{"id":"s0-1","data":"x"}',
        b'{"id":"s0-1","data":{"choices":{}}}',
        b'{"error":[7]}',
        b'{"type":"error","code":[]}',
        b"",
        b"[]",
        b"null",
        b"DONE",
        b"data:",
        b"data: data: data: {}",
        b"data: " * 100_000,
        b"data: {}\nnonsense",
        b": x\n\xff",
        b"\xff",
        b"[" * 100_000,
        b'{"choices":' + b"[" * 50_000,
        b'{"data":' * 5_000,
        b'{"choices":[{"delta":{"content":"x"}}],"created":NaN}',
    ],
)
def test_what_is_not_of_the_dialect_is_malformed(frame: bytes) -> None:
    """Fields of the wrong kind in a chunk, and bytes that are none."""
    with pytest.raises(MalformedFrame):
        started().decode(frame)


def test_ids_are_forgotten_in_the_end() -> None:
    """A connection lives an hour: what it remembers is bounded."""
    codec = CHAT.codec()
    for number in range(500):
        codec.encode(0, PROMPT)
        down(codec, **chunk("x", id=f"c{number}", finish="stop"))
        codec.conclude(0)
    assert len(codec._owners._owners) == 256  # type: ignore[attr-defined]
    assert not codec._named  # type: ignore[attr-defined]
    assert not codec._live  # type: ignore[attr-defined]
