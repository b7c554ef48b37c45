"""The figures of endurance are computed as they say: slopes, growth, and timers that count while the loop stands."""

from __future__ import annotations

import importlib
import os
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import trio


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> object:
    """Imports a benchmark as its command does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module


def _module(load: object, name: str) -> ModuleType:
    assert callable(load)
    module = load(name)
    assert isinstance(module, ModuleType)
    return module


def test_a_slope_is_that_of_the_line(load: object) -> None:
    """Exactly, for points on a line; nothing is made of one point or of none."""
    slope = _module(load, "subject").slope
    assert slope([(0.0, 5.0), (200.0, 405.0), (1000.0, 2005.0)]) == pytest.approx(2.0)
    assert slope([(7.0, 5.0)]) == slope([]) == slope([(1.0, 2.0), (1.0, 9.0)]) == 0.0


def test_growth_is_seen_and_the_warm_up_is_not_growth(load: object) -> None:
    """A jump in the first tenth is nobody's; a steady rise after it is, by line and at the end."""
    grown = _module(load, "hundred_million").grown
    jump = [(n, 40_000 if n < 100 else 50_000, 0) for n in range(0, 1001, 10)]
    assert grown(jump, 1)["by_slope"] == pytest.approx(0.0)
    assert grown(jump, 1)["at_end"] == pytest.approx(0.0)
    rise = [(n, 50_000 + 10 * n, 0) for n in range(0, 1001, 10)]
    assert grown(rise, 1)["by_slope"] > 0.15
    assert grown(rise, 1)["at_end"] > 0.1


def test_memory_of_this_process_adds_up(load: object) -> None:
    """What is its alone is no more than its share, and that no more than what is resident."""
    found = _module(load, "subject").memory(os.getpid())
    assert 0 < found.uss <= found.pss <= found.rss


def test_timers_that_fall_due_while_the_loop_stands_all_count(load: object, tmp_path: Path) -> None:
    """The schedule has no gaps: a stall of 50 ms is seen by 20 timers, each later than the one due after it."""
    watched = _module(load, "watched_daemon")
    file = tmp_path / "lag"

    async def main() -> None:
        with trio.move_on_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watched.watch_lag, file)
                await trio.sleep(0.02)
                time.sleep(0.05)
                await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

    trio.run(main)
    bench = _module(load, "subject").Subject
    with bench() as subject:
        (subject.folder / "lag").write_bytes(file.read_bytes())
        lags = subject.lags()
    dues = [due for due, _ in lags]
    assert all(abs(after - before - 2000) <= 1 for before, after in pairwise(dues))
    worst = max(range(len(lags)), key=lambda index: lags[index][1])
    assert lags[worst][1] >= 40_000
    assert [late for _, late in lags[worst : worst + 20]] == sorted((late for _, late in lags[worst : worst + 20]))[
        ::-1
    ]
