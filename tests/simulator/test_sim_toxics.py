"""Bad lines: when bytes come, in which pieces and how far; never other bytes."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from sidecar.simulator import Behaviour
from sidecar.simulator.behaviour import steer
from sidecar.simulator.scenarios import SCENARIOS, scenario
from sidecar.simulator.toxics import TOXICS, End, Line, Toxic, line_of
from tests.simulator.harness import QUICK, Talk, relaying, request, said, until

DATA = bytes(range(256)) * 8


async def over(line: Line, clock: trio.testing.MockClock, *data: bytes) -> tuple[list[tuple[float, bytes]], list[End]]:
    """What comes out of `line` when, in virtual time, if all of `data` is put in at 0."""
    came: list[tuple[float, bytes]] = []
    ended: list[End] = []
    began = trio.current_time()
    toxic = Toxic(
        line,
        dice=random.Random(1),
        clock=trio.current_time,
        deliver=lambda piece: came.append((trio.current_time() - began, piece)),
        end=ended.append,
    )
    with trio.move_on_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(toxic.run)
            for one in data:
                toxic.put(one)
            await trio.sleep(500)
            nursery.cancel_scope.cancel()
    assert toxic.size == 0
    return came, ended


@pytest.mark.parametrize("names", [*TOXICS, "latency-jitter-bandwidth-slicer", "-".join(TOXICS)])
async def test_what_comes_is_a_beginning_of_what_was_said(names: str, autojump_clock: trio.testing.MockClock) -> None:
    """Whatever the mix, the bytes that come are those that were put in, in order; all of them unless the line ends."""
    line = line_of(f"toxic_{names}", Behaviour(link_after_bytes=700))
    assert line is not None
    came, ended = await over(line, autojump_clock, DATA, b"more")
    whole = b"".join(piece for _, piece in came)
    ends = {"silence", "reset", "limit"} & set(names.split("-"))
    assert whole == ((DATA + b"more")[:700] if ends else DATA + b"more")
    assert ended == (["reset"] if "reset" in ends else ["limit"] if "limit" in ends else [])
    instants = [at for at, _ in came]
    assert instants == sorted(instants)


async def test_latency_jitter_and_bandwidth_are_as_said(autojump_clock: trio.testing.MockClock) -> None:
    """Latency is added to each write; jitter stays below its bound; bandwidth spreads bytes evenly."""
    late, _ = await over(Line(latency_s=0.3), autojump_clock, b"a", b"b")
    assert [at for at, _ in late] == pytest.approx([0.3, 0.3])
    shaken, _ = await over(Line(jitter_s=0.5), autojump_clock, *[b"x"] * 50)
    assert 0.1 < shaken[-1][0] <= 0.5
    slow, _ = await over(Line(bytes_per_s=1000), autojump_clock, b"x" * 500, b"y" * 500)
    assert [at for at, _ in slow] == pytest.approx([0.5, 1.0])


async def test_a_slicer_cuts_small(autojump_clock: trio.testing.MockClock) -> None:
    """Pieces are between one byte and twice the size, and of that size on average."""
    came, _ = await over(Line(slice_bytes=16), autojump_clock, DATA)
    sizes = [len(piece) for _, piece in came]
    assert max(sizes) < 32
    assert 12 < sum(sizes) / len(sizes) < 20


@pytest.mark.parametrize("names", ["latency", "jitter-slicer", "bandwidth", "slow_close", "latency-bandwidth-slicer"])
async def test_a_call_over_a_line_without_an_end_is_answered_whole(names: str) -> None:
    """The WebSocket, its handshake too, comes through; and the connection closes when the client goes."""
    behaviour = steer(QUICK, {"link_latency_ms": 5, "link_jitter_ms": 5, "link_slow_close_ms": 50})
    async with relaying(f"toxic_{names}", behaviour=behaviour) as relay:
        talk = await Talk.open(relay.port)
        assert said(await talk.answer(request("[[text='a b c' tokens=3]]"))) == "a b c"
        await talk.goodbye()
        await until(lambda: relay.counters.open == 0)
    assert relay.counters.calls_finished == 1
    assert relay.counters.scenarios[f"toxic_{names}"] == 1


@pytest.mark.parametrize(("name", "lost"), [("reset", "reset"), ("limit", "eof")])
async def test_a_line_that_ends_cuts_the_call(name: str, lost: str) -> None:
    """After so many bytes RST or EOF, mid-frame if it falls so; the call counts as cut."""
    behaviour = steer(QUICK, {"link_after_bytes": 1500, "link_slow_close_s": 0, "tokens": 60})
    async with relaying(f"toxic_{name}", behaviour=behaviour) as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request())
        while await talk.event() is not None:
            pass
        assert talk.lost == lost
        await until(lambda: relay.counters.in_flight == 0)
    assert relay.counters.calls_cut == 1


async def test_a_silent_line_stays_open() -> None:
    """Nothing more comes, no EOF either; what the client does ends it, and its call counts as stopped."""
    behaviour = steer(QUICK, {"link_after_bytes": 1500, "tokens": 60})
    async with relaying("toxic_silence", behaviour=behaviour) as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request("[[scenario=cut]]"))
        with trio.move_on_after(0.2) as scope:
            while await talk.event() is not None:
                pass
        assert scope.cancelled_caught
        assert talk.lost is None
        await talk.stream.aclose()
        await until(lambda: relay.counters.open == 0)


def test_every_toxic_has_a_name() -> None:
    """Each alone is listed; mixes are understood in any order; other words are not."""
    assert {f"toxic_{name}" for name in TOXICS} <= set(SCENARIOS)
    assert scenario("toxic_slicer-latency-slow_close").kind == "door"
    for wrong in ("toxic_", "toxic_rain", "toxic_latency-", "toxic_latency-rain"):
        with pytest.raises(ValueError, match="no scenario is named"):
            scenario(wrong)
    assert line_of("ok", Behaviour()) is None
