"""Whatever an upstream sends, a codec gives events or `MalformedFrame`, and never an end that was not said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.dialects.base import Codec, Content, Ending, Faulted, Finished, Prompt
from sidecar.errors import MalformedFrame
from sidecar.wire import ChatMessage
from tests.dialects.transcript import PATHS, WAYS, load, new_codec, payload

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))
FRAMES = [payload(step["down"]) for path in PATHS for step in load(path)[1] if "down" in step]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "s0", "stop", "error"])
WORDS = [
    "type",
    "delta",
    "response",
    "item",
    "item_id",
    "stream_id",
    "error",
    "code",
    "message",
    "status",
    "output",
    "usage",
    "choices",
    "content",
    "finish_reason",
    "index",
    "id",
    "data",
    "model",
    "text",
    "refusal",
    "input_tokens",
    "headers",
    "content_block",
    "stop_reason",
    "stop_details",
    "object",
]
KINDS = [
    "response.output_text.delta",
    "response.created",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "error",
    "response.output_item.added",
    "response.output_text.done",
    "response.refusal.delta",
    "response.refusal.done",
    "message_start",
    "content_block_start",
    "content_block_delta",
    "message_delta",
    "message_stop",
    "message",
    "text_delta",
]
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=4,
)
maps = st.builds(
    lambda kind, fields: {**fields, "type": kind} if kind else fields,
    st.none() | st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(WORDS), values, max_size=6),
)

#: The machine may be busy: slow is not wrong.
BRIEF = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

connections = pytest.mark.parametrize(("dialect", "slots"), WAYS)


def codec_of(dialect: str, slots: int) -> Codec:
    """A connection with calls in all slots but the last (of several)."""
    codec = new_codec(dialect, slots)
    for slot in range(max(1, slots - 1)):
        codec.encode(slot, PROMPT)
    return codec


def check_that_it_carries_nothing(context: BaseException | None) -> None:
    """A cause could carry the frame, and with it somebody's text, into a log."""
    assert context is None


def feed(codec: Codec, frame: bytes) -> None:
    """Decode; anything but events and MalformedFrame fails the test."""
    try:
        events = codec.decode(frame)
    except MalformedFrame as fault:
        context = None if fault.__suppress_context__ else fault.__context__
        check_that_it_carries_nothing(context)
        return
    for event in events:
        if isinstance(event, Content):
            assert event.text
            event.text.encode()
        elif isinstance(event, Ending):
            codec.conclude(event.slot)
        elif isinstance(event, Finished | Faulted) and event.slot is not None:
            codec.encode(event.slot, PROMPT)


@connections
@BRIEF
@given(frame=st.binary(max_size=200))
def test_arbitrary_bytes(dialect: str, slots: int, frame: bytes) -> None:
    """Bytes of any kind."""
    feed(codec_of(dialect, slots), frame)


@connections
@BRIEF
@given(frames=st.lists(maps, max_size=3))
def test_arbitrary_json(dialect: str, slots: int, frames: list[dict[str, Any]]) -> None:
    """Maps with the right words and the wrong values, NaN among them."""
    codec = codec_of(dialect, slots)
    for frame in frames:
        feed(codec, json.dumps(frame).encode())


@connections
@BRIEF
@given(
    picks=st.lists(st.tuples(st.integers(0, len(FRAMES) - 1), st.integers(0, 400), st.integers(0, 255)), max_size=12)
)
def test_real_frames_in_any_order_with_a_byte_changed(
    dialect: str, slots: int, picks: list[tuple[int, int, int]]
) -> None:
    """Frames of all dialects, shuffled and damaged."""
    codec = codec_of(dialect, slots)
    for index, place, byte in picks:
        frame = bytearray(FRAMES[index])
        if place < len(frame):
            frame[place] = byte
        feed(codec, bytes(frame))


@connections
@BRIEF
@given(
    texts=st.lists(
        st.text(st.sampled_from("a\ud83d\ude80é"), min_size=1),
        min_size=1,
    )
)
def test_halves_of_pairs_are_joined_whatever_the_cut(dialect: str, slots: int, texts: list[str]) -> None:
    """All the text comes out, as one reading of the whole would have it."""
    codec = codec_of(dialect, slots)
    stream = {"stream_id": "s0"} if slots > 1 else {}

    def text_of(frame: dict[str, Any]) -> str:
        events = codec.decode(json.dumps(frame).encode())
        return "".join(event.text for event in events if isinstance(event, Content))

    def delta(text: str) -> dict[str, Any]:
        if dialect == "responses":
            return {"type": "response.output_text.delta", "delta": text, **stream}
        if dialect == "messages":
            return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return {"id": "s0-1", "choices": [{"delta": {"content": text}}]}

    ends: dict[str, dict[str, Any]] = {
        "responses": {"type": "response.completed", "response": {}, **stream},
        "messages": {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        "chat": {"id": "s0-1", "choices": [{"delta": {}, "finish_reason": "stop"}]},
    }
    got = text_of({"type": "message_start", "message": {}}) if dialect == "messages" else ""
    got += "".join(text_of(delta(text)) for text in texts) + text_of(ends[dialect])
    assert got == "".join(texts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
