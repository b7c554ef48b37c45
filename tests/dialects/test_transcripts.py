"""Every transcript means what it says, whole and cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar.dialects.base import Content, Faulted, Finished
from sidecar.errors import MalformedFrame
from tests.dialects.transcript import PATHS, codec_of, load, payload, plain, play, prompt

everywhere = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def test_there_are_transcripts_of_all_dialects() -> None:
    """An empty folder proves nothing."""
    assert {path.name.partition("-")[0] for path in PATHS} == {"responses", "chat", "messages"}
    assert len(PATHS) > 50


@everywhere
def test_a_transcript_gives_its_events(path: Path) -> None:
    """Every frame gives the events written beside it, all of them and in order."""
    head, steps = load(path)
    codec = codec_of(head)
    for number, step in enumerate(steps, 2):
        where = f"{path.name}:{number}"
        if "up" in step:
            frame = codec.encode(step["up"], prompt(step["prompt"]))
            assert "frame" not in step or json.loads(frame) == step["frame"], where
        elif step.get("malformed"):
            with pytest.raises(MalformedFrame):
                play(codec, step)
        else:
            assert [plain(event) for event in play(codec, step)] == step["events"], where


@everywhere
def test_a_memoryview_reads_as_bytes_do(path: Path) -> None:
    """The transport may hand over a view of its buffer."""
    head, steps = load(path)
    one, other = codec_of(head), codec_of(head)
    for step in steps:
        if "down" in step and not step.get("malformed"):
            assert list(map(plain, one.decode(memoryview(payload(step["down"]))))) == [
                plain(e) for e in play(other, step)
            ]
        elif "down" not in step:
            play(one, step)
            play(other, step)


@everywhere
def test_a_frame_cut_anywhere_is_malformed(path: Path) -> None:
    """No beginning of a frame is taken for a frame, whatever the state of the connection."""
    head, steps = load(path)
    for index, step in enumerate(steps):
        if "down" not in step:
            continue
        whole = payload(step["down"])
        codec = codec_of(head)
        for before in steps[:index]:
            play(codec, before)
        for length in {*range(0, len(whole), 1 + len(whole) // 40), len(whole) - 1}:
            with pytest.raises(MalformedFrame):
                codec.decode(whole[:length])


@everywhere
def test_a_cut_conversation_finishes_nothing_more(path: Path) -> None:
    """After any number of frames, exactly the calls that the transcript has ended so far have ended."""
    head, steps = load(path)
    codec = codec_of(head)
    taken: set[int] = set()
    for step in steps:
        if step.get("malformed"):
            break
        if "up" in step:
            taken.add(step["up"])
        for event in play(codec, step):
            if isinstance(event, Finished | Faulted):
                taken -= {event.slot} if event.slot is not None else set(taken)
        for slot in range(head["slots"]):
            if slot in taken:
                with pytest.raises(ValueError, match="taken"):
                    codec.encode(slot, prompt({"model": "m", "messages": []}))


@everywhere
def test_a_discarded_call_gives_no_text_and_still_ends(path: Path) -> None:
    """Nobody reads the slot: no content of it comes out, and its end does, as `Finished` or `Faulted`."""
    head, steps = load(path)
    codec = codec_of(head)
    ends = expected = 0
    for step in steps:
        if step.get("malformed") or "conclude" in step:
            return
        events = play(codec, step)
        if "up" in step:
            codec.discard(step["up"])
        assert not any(isinstance(event, Content) for event in events)
        ends += sum(isinstance(event, Finished | Faulted) for event in events)
        expected += sum(event["event"] in ("finished", "faulted") for event in step.get("events", ()))
    assert ends == expected
