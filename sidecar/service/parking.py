"""Where calls wait for a connection: one heap per pool, the most urgent first (lane, then deadline).

A call may wait in several heaps at once; its entries in the others are passed over when they come up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from sidecar.service.calls import CallView
from sidecar.service.pool import Pool

CallT = TypeVar("CallT", bound=CallView)

_LANE_RANK: Final = {"exit": 0, "entry": 1, "research": 2}
#: Entries of calls that wait no more are thrown out when a heap is longer than this and mostly stale.
_COMPACT_ABOVE: Final = 1024


class Parking(Generic[CallT]):
    """The heaps.

    Args:
        clock: the loop's time.
        look_again: makes a parked call seek; contains what goes wrong in it.
    """

    def __init__(self, clock: Callable[[], float], look_again: Callable[[CallT, float], None]) -> None:
        self._clock = clock
        self._look_again = look_again
        self._heaps: dict[str, list[tuple[int, float, int, CallT]]] = {}
        self._waiting: dict[str, int] = {}
        self._sequence = 0

    def park(self, call: CallT, pools: Iterable[Pool]) -> None:
        """The call waits for a connection of any of `pools`."""
        self._sequence += 1
        entry = (_LANE_RANK[call.lane], call.policy.deadline, self._sequence, call)
        by_name = {pool.name: pool for pool in pools}
        call.parked_in = tuple(by_name)
        call.parked_as = self._sequence
        for name, pool in by_name.items():
            heap = self._heaps.setdefault(name, [])
            heapq.heappush(heap, entry)
            waiting = self._waiting[name] = self._waiting.get(name, 0) + 1
            if len(heap) > max(_COMPACT_ABOVE, 2 * waiting):
                heap[:] = [kept for kept in heap if kept[2] == kept[3].parked_as and kept[3].parked_in]
                heapq.heapify(heap)
            pool.poke()

    def unpark(self, call: CallT) -> None:
        """It waits no more."""
        for name in call.parked_in:
            self._waiting[name] -= 1
        call.parked_in = ()

    def waiting(self, pool: str) -> int:
        """How many calls wait for a connection of `pool`."""
        return self._waiting.get(pool, 0)

    def on_capacity(self, pool: Pool) -> None:
        """A connection of `pool` came free, or its prospects changed: waiting calls look again."""
        heap = self._heaps.get(pool.name)
        if not heap:
            return
        now = self._clock()
        # A call that finds nothing parks again, in the new heap: each is looked at once at most.
        entries, self._heaps[pool.name] = heap, []
        while entries and pool.has_free_slot():
            self._look(heapq.heappop(entries), now)
        if not entries:
            return
        may_connect_at = pool.may_connect_at()
        for entry in entries:
            if entry[1] <= may_connect_at:
                self._look(entry, now)  # no use waiting for this pool any longer
            elif entry[2] == entry[3].parked_as and entry[3].parked_in:
                heapq.heappush(self._heaps[pool.name], entry)

    def _look(self, entry: tuple[int, float, int, CallT], now: float) -> None:
        call = entry[3]
        if entry[2] == call.parked_as and call.parked_in:
            self._look_again(call, now)
