"""Every clock of every call in one heap, and the one task that sleeps until the earliest.

A clock is armed by the call's own `next_wakeup_at()`; a call that moved its clock later is looked at once for
nothing and armed anew. So a token costs no timer: it only moves an instant inside the call.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

import trio

#: Entries of calls that ended before their deadline are thrown out when the heap is longer than this, and has doubled.
_COMPACT_ABOVE: Final = 512


class Clocked(Protocol):
    """What has clocks."""

    armed_at: float  # earliest entry in the heap; inf when there is none
    ended: bool

    def next_wakeup_at(self) -> float:
        """The earliest instant at which `tick` has something to do."""
        ...

    def tick(self, now: float) -> None:
        """Do what is due."""
        ...


class Clocks:
    """The heap and its task.

    Args:
        clock: the loop's time.
        after: called after each sweep that did something: the flush.
        guard: runs one call's tick and contains what goes wrong in it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        after: Callable[[], None],
        guard: Callable[[Clocked, Callable[[float], None], float], None],
    ) -> None:
        self._clock = clock
        self._after = after
        self._guard = guard
        self._heap: list[tuple[float, int, Clocked]] = []
        self._sequence = 0
        self._sweeping = False
        self._afterwards: deque[Callable[[], None]] = deque()
        self._compact_above = _COMPACT_ABOVE
        self._scope = trio.CancelScope()
        self._sleeping_until = math.inf

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def due_at(self) -> float:
        """When the earliest clock falls due; inf when there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def arm(self, item: Clocked) -> None:
        """See to it that `item.tick` runs at `item.next_wakeup_at()`."""
        when = item.next_wakeup_at()
        if when >= item.armed_at:
            return  # an earlier entry stands already; it arms this one when it comes up
        item.armed_at = when
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, item))
        if when < self._sleeping_until:
            self._sleeping_until = when
            self._scope.deadline = when

    def afterwards(self, step: Callable[[], None]) -> None:
        """Do this when everything that is due has been said; now, outside of a sweep."""
        if self._sweeping:
            self._afterwards.append(step)
        else:
            step()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Sweep for ever."""
        task_status.started()
        while True:
            self._sleeping_until = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=self._sleeping_until) as self._scope:
                await trio.sleep_forever()
            self.sweep(self._clock())

    def sweep(self, now: float) -> None:
        """Tick everything that is due at `now`."""
        if self._sweeping:
            return
        self._sweeping = True
        try:
            self._tick_due(now)
            while self._afterwards:
                self._afterwards.popleft()()
                now = self._clock()
                if now >= self.due_at:
                    self._tick_due(now)
        finally:
            self._sweeping = False

    def _tick_due(self, now: float) -> None:
        heap = self._heap
        worked = False
        while heap and heap[0][0] <= now:
            when, _, item = heapq.heappop(heap)
            if item.armed_at == when:
                item.armed_at = math.inf
            if item.ended:
                continue
            worked = True
            self._guard(item, item.tick, now)
            if not item.ended:
                self.arm(item)
        if worked:
            self._after()
        self.tidy()

    def tidy(self) -> None:
        """A call has ended: throw out what such calls left here, once that may be the greater part.

        Else an entry, and the call with it, would stay until a deadline that nobody waits for any more.
        """
        heap = self._heap
        if len(heap) > self._compact_above:
            heap[:] = [entry for entry in heap if not entry[2].ended]  # in place: a sweep may be under way
            heapq.heapify(heap)
            self._compact_above = max(_COMPACT_ABOVE, 2 * len(heap))
