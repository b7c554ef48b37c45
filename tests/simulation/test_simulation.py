"""The simulation in CI: a fixed count of schedules, the same run from the same seed, and mutants that are found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.__main__ import main
from tests.simulation.mutants import MUTANTS, find
from tests.simulation.schedule import draw
from tests.simulation.world import play

SCHEDULES = 135
PER_TEST = 45
#: What 45 schedules must have reached, or they test less than they seem to.
REACHED = (
    "attempts by websocket", "attempts by http1", "attempts by http2", "attempts by the second way",
    "extra attempts", "replays",
    "log breaker.opened", "toxic link", "log connection.lost", "closed while idle", "answer too_late", "end done",
)  # fmt: skip
#: Where each mutant was found first, when this was written: the search begins there, and goes on from there.
FIRST = {
    "two trials at half-open": 81, "permit leaked": 228, "halt for new calls only": 135, "cut is done": 43,
    "idle close is a failure": 333, "exchange is answer": 109, "each request of a GOAWAY counts": 1180,
    "GOAWAY is an end": 393, "streams mixed up": 58,
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, SCHEDULES, PER_TEST))
def test_schedules(first: int) -> None:
    """Every invariant of the wire holds in each of them, nothing is left behind, and well upstreams are used again."""
    counts: Counter[str] = Counter()
    for seed in range(first, first + PER_TEST):
        result = play(seed)
        assert not result.broken, (
            f"python -m tests.simulation --seed {seed} --trace: {result.broken[0].invariant}: {result.broken[0].what}"
        )
        counts.update(result.counts)
    assert all(counts[what] > 0 for what in REACHED), counts


def ways_of(seed: int) -> set[str]:
    """How the upstreams of a busy schedule are reached; of one with little to do, nothing."""
    schedule = draw(seed)
    if sum(len(bot.steps) for bot in schedule.bots) < 10:
        return set()
    return {_way(plan.config) for plan in schedule.upstreams}


def _way(config: dict[str, Any]) -> str:
    if "fallback_url" in config:
        return "both"
    return "http2" if config.get("http_version") == "2" else config.get("transport", "websocket")


def test_a_seed_is_a_run() -> None:
    """Two processes whose sets and dictionaries are ordered differently give the same trace, event by event.

    So it is over WebSockets, over HTTP/1.1, over HTTP/2, and with two ways to one upstream.
    """
    ways = ("websocket", "sse", "http2", "both")
    seeds = [next(seed for seed in range(100, 200) if ways_of(seed) == {way}) for way in ways]

    def digests(hash_seed: str) -> str:
        code = f"from tests.simulation.world import play\nprint(*[play(seed, tracing=True).digest for seed in {seeds}])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    first = digests("1")
    assert first == digests("4711")
    assert len(set(first.split())) == len(ways)


def test_a_schedule_is_drawn_from_its_seed() -> None:
    """The same seed draws the same schedule; another one another."""
    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_found(name: str) -> None:
    """A policy broken on purpose breaks the invariant that it is about, within some hundred schedules."""
    first = FIRST.get(name, 0)
    found = find(MUTANTS[name], range(first, first + 200))
    assert found is not None, f"{name}: not found"


def test_one_seed_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`--seed N --trace` prints what happens, and the same digest each time."""
    assert main(["--seed", "1", "--trace"]) == 0
    first = capsys.readouterr().out
    assert main(["--seed", "1", "--trace"]) == 0
    assert capsys.readouterr().out == first
    assert "is sent b" in first


def test_many_seeds_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A count of schedules prints how calls ended, what happened, and how fast it went."""
    assert main(["--seeds", "6", "--first", "3"]) == 0
    said = capsys.readouterr().out
    assert "how calls ended" in said
    assert "6 schedules (seeds 3 to 8)" in said


def test_a_failing_seed_says_how_to_play_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A broken invariant gives exit status 1, the seed, and one command."""
    from tests.simulation.mutants import applied

    with applied(MUTANTS["deadline after the read"]):
        assert main(["--seeds", "5"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN by the deadline" in said
    assert "python -m tests.simulation --seed" in said
