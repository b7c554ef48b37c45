"""One timer for all streams: a heap of beats and a single task that sleeps until the next.

A task and a cancel scope per token cost several times what the token does; here a stream parks once, and its
tokens are steps that the metronome calls.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import NoReturn, TypeAlias

import trio

#: Called at its time; returns when it wants to be called again, or None when it is over.
Step: TypeAlias = Callable[[], float | None]


class _Beat:
    __slots__ = ("_over", "step", "task")

    def __init__(self, step: Step, task: trio.lowlevel.Task) -> None:
        self.step, self.task, self._over = step, task, False

    def over(self) -> bool:
        """The task was cancelled."""
        return self._over

    def end(self) -> None:
        self._over = True


class Metronome:
    """Plays steps at their times, in order; two of the same time in the order in which they were given.

    Error handling: a step must not raise; if one does, `run` does.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Beat]] = []
        self._number = count()
        self._earlier = trio.Event()

    async def run(self) -> NoReturn:
        """Beat, for ever."""
        heap = self._heap
        while True:
            self._earlier = trio.Event()
            with trio.move_on_at(heap[0][0] if heap else math.inf):
                await self._earlier.wait()
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                beat = heapq.heappop(heap)[2]
                if beat.over():
                    continue
                again = beat.step()
                if beat.over():  # the step ended its own connection
                    continue
                if again is None:
                    trio.lowlevel.reschedule(beat.task)
                else:
                    heapq.heappush(heap, (again, next(self._number), beat))

    async def play(self, at: float, step: Step) -> None:
        """Have `step` called at the instant `at`, and again at each instant that it returns, until it returns None.

        Cancellation: the step is not called any more.
        """
        beat = _Beat(step, trio.lowlevel.current_task())
        entry = (at, next(self._number), beat)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._earlier.set()

        def abort(_: object) -> trio.lowlevel.Abort:
            beat.end()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
