"""The heap of clocks: who is ticked when, how often, and what is flushed after."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from sidecar.service.clocks import _COMPACT_ABOVE, Clocked, Clocks
from tests.fakes.clockwork import clockwork, virtual


class Thing:
    """Has one clock; each tick moves it to the next of `plan`."""

    def __init__(self, *plan: float) -> None:
        self.armed_at = math.inf
        self.ended = False
        self.plan = list(plan)
        self.ticks: list[float] = []

    def next_wakeup_at(self) -> float:
        """See `Clocked`."""
        return self.plan[0] if self.plan else math.inf

    def tick(self, now: float) -> None:
        """See `Clocked`."""
        self.ticks.append(now)
        while self.plan and self.plan[0] <= now:
            self.plan.pop(0)
        self.ended = not self.plan


class Bench:
    """Clocks with a guard that lets everything through and counts flushes."""

    def __init__(self) -> None:
        self.flushes: list[float] = []
        self.clocks = Clocks(trio.current_time, lambda: self.flushes.append(trio.current_time()), self._guard)

    def _guard(self, item: Clocked, step: Callable[[float], None], now: float) -> None:
        try:
            step(now)
        except ZeroDivisionError:
            item.ended = True


@virtual
async def test_everything_is_ticked_when_it_is_due() -> None:
    """In order of time, at the instant, with one flush for what falls together."""
    bench = Bench()
    late, early, both = Thing(3.0), Thing(1.0, 2.0), Thing(1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.clocks.run)
        for thing in (late, early, both):
            bench.clocks.arm(thing)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert (late.ticks, early.ticks, both.ticks) == ([3.0], [1.0, 2.0], [1.0])
    assert bench.flushes == [1.0, 2.0, 3.0]
    assert len(bench.clocks) == 0


@virtual
async def test_an_earlier_clock_wakes_the_sleeper() -> None:
    """Armed while the task sleeps for a later one, before and after it; a clock moved later costs one idle look."""
    bench = Bench()
    first, second, moved = Thing(10.0), Thing(1.0), Thing(2.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.clocks.run)
        bench.clocks.arm(first)
        await trio.sleep(0.5)
        bench.clocks.arm(second)
        bench.clocks.arm(moved)
        moved.plan[0] = 4.0
        bench.clocks.arm(moved)  # later than what stands: nothing to do
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert (second.ticks, first.ticks) == ([1.0], [10.0])
    assert moved.ticks == [2.0, 4.0]


@virtual
async def test_a_clock_moved_earlier_is_kept() -> None:
    """The earlier entry counts; the stale later one finds nothing to do."""
    bench = Bench()
    thing = Thing(5.0, 6.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.clocks.run)
        bench.clocks.arm(thing)
        thing.plan[0] = 1.0
        bench.clocks.arm(thing)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert thing.ticks[0] == 1.0
    assert thing.ticks[-1] == 6.0


@virtual
async def test_what_has_ended_is_not_ticked_nor_kept() -> None:
    """Ended things are passed over, and thrown out when they are many."""
    bench = Bench()
    things = [Thing(100.0 + number) for number in range(_COMPACT_ABOVE + 10)]
    for thing in things:
        bench.clocks.arm(thing)
        thing.ended = True
    last = Thing(1.0)
    bench.clocks.arm(last)
    bench.clocks.sweep(1.0)
    assert last.ticks == [1.0]
    assert len(bench.clocks) == 0
    assert bench.flushes == [0.0]
    bench.clocks.arm(dead := Thing(1.0))
    dead.ended = True
    bench.clocks.sweep(1.0)
    assert not dead.ticks
    assert bench.flushes == [0.0], "nothing done, nothing to send"


@virtual
async def test_one_that_breaks_harms_no_other() -> None:
    """The guard contains it; the rest of the sweep goes on."""
    bench = Bench()

    class Broken(Thing):
        def tick(self, now: float) -> None:
            raise ZeroDivisionError

    broken, whole = Broken(1.0), Thing(1.0)
    bench.clocks.arm(broken)
    bench.clocks.arm(whole)
    bench.clocks.sweep(1.0)
    assert broken.ended
    assert whole.ticks == [1.0]


@virtual
async def test_calls_that_ended_are_not_kept_until_their_deadline() -> None:
    """Thousands of answered calls with a day's deadline, and no clock ever due: what they were is let go of."""
    async with clockwork({"a": {"warm_connections": 2}}, route={"timeout_ms": 86_400_000}) as house:
        bot = house.bot()
        for _ in range(3 * _COMPACT_ABOVE // 2):
            assert (await bot.ask())["type"] == "done"
        assert len(house.daemon.dispatcher.clocks) <= _COMPACT_ABOVE + 2
