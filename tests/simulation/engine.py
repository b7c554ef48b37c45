"""Virtual time and one heap of events: everything outside the daemon happens here, in one task and in one order.

The daemon runs on Trio, under a clock that jumps. What surrounds it (networks, upstreams, bots, operators) needs no
tasks: an event is a function called at an instant, and a process is a generator that yields how long it wants to
wait. So a schedule costs little, and its order is a matter of the seed alone.
"""

from __future__ import annotations

import functools
import gc
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias

import trio
import trio.testing

#: Waits for as many seconds as it yields.
Process: TypeAlias = Generator[float, None, None]


def virtual_clock(start: float) -> trio.testing.MockClock:
    """A `MockClock` that jumps whenever everybody waits, to the very instant waited for, and costs little to read.

    Trio insists on its own class, which must not be subclassed.
    """
    clock: Any = trio.testing.MockClock(autojump_threshold=0)
    clock._virtual_base = start

    def jump() -> None:
        deadline = trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if clock._virtual_base < deadline < math.inf:
            clock._virtual_base = deadline

    clock.current_time = lambda: clock._virtual_base
    clock._autojump = jump
    made: trio.testing.MockClock = clock
    return made


def run_virtual(main: Callable[[], Awaitable[None]], *, seed: int) -> None:
    """Run in virtual time; the same seed gives the same order of tasks, another one another."""
    run: Any = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        # Trio's own clock starts somewhere between 10,000 and a million seconds; nothing may rely on zero.
        trio.run(main, clock=virtual_clock(1000.0 + seed % 997 * 13.7))
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before


def collect_rarely() -> None:
    """For a process that plays many: a world that is over is garbage, full of circles.

    Looked for now and then, not all along, it costs a sixth less CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


class Stuck(BaseException):
    """Nothing moves any more in virtual time, or everything moves and time does not."""


class Engine:
    """The heap, and the task that sleeps until the earliest event.

    Attributes:
        stopped: set to end the task after the event in hand.
        events: how many there were.
    """

    #: Events, and turns of the engine at one instant, beyond which a schedule is taken to run away.
    MAX_EVENTS = 400_000

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._scope = trio.CancelScope()
        self._sleeping_until = math.inf
        self.stopped = False
        self.events = 0

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Call `event` at that instant, after all that was asked for before it at the same one."""
        heapq.heappush(self._heap, (when, next(self._numbers), event))
        if when < self._sleeping_until:
            self._sleeping_until = when
            self._scope.deadline = when

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Call `event` so many seconds from now."""
        self.at(trio.current_time() + seconds, event)

    def start(self, process: Process) -> None:
        """Begin a process in the engine's next step."""
        self.at(trio.current_time(), functools.partial(self._step, process))

    def _step(self, process: Process) -> None:
        try:
            delay = next(process)
        except StopIteration:
            return
        self.after(delay, functools.partial(self._step, process))

    async def run(self) -> None:
        """Until `stopped`, or cancelled."""
        heap = self._heap
        while not self.stopped:
            self._sleeping_until = heap[0][0] if heap else math.inf
            with trio.CancelScope(deadline=self._sleeping_until) as self._scope:
                await trio.sleep_forever()
            self._sleeping_until = -math.inf
            now = trio.current_time()
            while heap and heap[0][0] <= now and not self.stopped:
                self.events += 1
                heapq.heappop(heap)[2]()
            if self.events > self.MAX_EVENTS:
                raise Stuck(f"{self.events} events")
