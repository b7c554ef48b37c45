"""`decode_pass` says of many frames what `decode` says of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.dialects.base import Codec, Content, Ending, Event, Faulted, Finished, Prompt
from sidecar.errors import MalformedFrame
from sidecar.wire import ChatMessage
from tests.dialects.transcript import PATHS, WAYS, codec_of, load, new_codec, payload, play

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))
FRAMES = [payload(step["down"]) for path in PATHS for step in load(path)[1] if "down" in step]

connections = pytest.mark.parametrize(("dialect", "slots"), WAYS)


class Told:
    """What the holders of slots were told, slot by slot: text that comes together counts as one piece."""

    def __init__(self, codec: Codec, *, act: bool) -> None:
        self.codec = codec
        self.act = act
        self.log: dict[int | None, list[str]] = {}
        self.malformed = False

    def text(self, slot: int, text: str) -> None:
        """A piece of content."""
        assert text
        log = self.log.setdefault(slot, [])
        if log and log[-1].startswith("text "):
            log[-1] += text
        else:
            log.append(f"text {text}")

    def event(self, event: Event) -> None:
        """Any event; acted upon, if wanted, as a connection would whose slots are in use always."""
        if isinstance(event, Content):
            self.text(event.slot, event.text)
            return
        slot = getattr(event, "slot", None)
        self.log.setdefault(slot, []).append(repr(event))
        if not self.act:
            return
        if isinstance(event, Ending):
            self.log[slot].append(repr(self.codec.conclude(event.slot)))
        elif isinstance(event, Finished | Faulted) and event.slot is not None:
            self.codec.encode(event.slot, PROMPT)


def frame_by_frame(codec: Codec, frames: Iterable[bytes], *, act: bool = True) -> Told:
    """By `decode`."""
    told = Told(codec, act=act)
    try:
        for frame in frames:
            for event in codec.decode(frame):
                told.event(event)
    except MalformedFrame:
        told.malformed = True
    return told


def in_passes(codec: Codec, reads: Iterable[Sequence[bytes]], *, act: bool = True) -> Told:
    """By `decode_pass`, read by read."""
    told = Told(codec, act=act)
    texts: list[list[str]] = [[] for _ in range(codec.slots)]

    def hand_on() -> None:
        for slot, pieces in enumerate(texts):
            for piece in pieces:
                told.text(slot, piece)
            pieces.clear()

    try:
        for read in reads:
            payloads = iter(read)
            while events := codec.decode_pass(payloads, texts):
                hand_on()
                for event in events:
                    told.event(event)
            hand_on()
    except MalformedFrame:
        hand_on()
        told.malformed = True
    return told


def check_same(one: Told, other: Told) -> None:
    """Of each slot the same, and the same end."""
    assert one.log == other.log
    assert one.malformed == other.malformed


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_transcripts_read_in_one_pass(path: Path) -> None:
    """Whatever comes between two requests arrives in one read."""
    head, steps = load(path)
    one, other = codec_of(head), codec_of(head)
    read: list[bytes] = []
    for step in [*steps, None]:
        if step is not None and "down" in step and not step.get("malformed"):
            read.append(payload(step["down"]))
            continue
        told, passed = frame_by_frame(one, read, act=False), in_passes(other, [read], act=False)
        check_same(told, passed)
        read = []
        if step is None or step.get("malformed"):
            return
        play(one, step)
        play(other, step)


@connections
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    picks=st.lists(st.tuples(st.integers(0, len(FRAMES) - 1), st.integers(0, 400), st.integers(0, 511)), max_size=24),
    cuts=st.sets(st.integers(0, 24), max_size=6),
)
def test_any_frames_in_any_reads(dialect: str, slots: int, picks: list[tuple[int, int, int]], cuts: set[int]) -> None:
    """Frames of all dialects, shuffled, half of them damaged, cut into reads anywhere: the same for every slot."""
    frames: list[bytes] = []
    for index, place, byte in picks:
        frame = bytearray(FRAMES[index])
        if place < len(frame) and byte < 256:
            frame[place] = byte
        frames.append(bytes(frame))
    codecs = [new_codec(dialect, slots) for _ in range(2)]
    for codec in codecs:
        for slot in range(max(1, slots - 1)):
            codec.encode(slot, PROMPT)
    edges = sorted({0, len(frames), *(cut for cut in cuts if cut < len(frames))})
    reads = [frames[start:end] for start, end in itertools.pairwise(edges)]
    check_same(frame_by_frame(codecs[0], frames), in_passes(codecs[1], reads))


DELTAS = {
    "responses": b'{"type":"response.output_text.delta","item_id":"i","delta":"a"}',
    "chat": b'{"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}',
    "messages": b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}',
}


@pytest.mark.parametrize(("dialect", "slots"), [way for way in WAYS if way[1] < 3])
def test_text_before_a_bad_frame_stands(dialect: str, slots: int) -> None:
    """The pass ends in `MalformedFrame`; what came before it is in the lists."""
    codec = new_codec(dialect, slots)
    codec.encode(0, PROMPT)
    if dialect == "messages":
        codec.decode(b'{"type":"message_start","message":{}}')
    delta = DELTAS[dialect]
    if (dialect, slots) == ("chat", 0):
        codec.decode(delta)  # over HTTP a second chunk has to agree with the first before it is believed blindly
    texts: list[list[str]] = [[]]
    payloads = iter([delta, delta, delta, b"{"])
    first = codec.decode_pass(payloads, texts)
    assert [event.text for event in first if isinstance(event, Content)] == ["a"]
    with pytest.raises(MalformedFrame):
        codec.decode_pass(payloads, texts)
    assert texts == [["a", "a"]]
    assert codec.decode_pass(iter(()), texts) == ()
