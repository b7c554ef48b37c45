"""Where calls wait for a connection: one heap per pool, the most urgent first (lane, then deadline).

A call may wait in several heaps at once; its entries in the others are passed over when they come up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeAlias, TypeVar

from sidecar.core.admission import LANES
from sidecar.service.calls import CallView
from sidecar.service.pool import Pool

CallT = TypeVar("CallT", bound=CallView)
#: lane, group, deadline, sequence (unique: the call itself is never compared), call
_Entry: TypeAlias = tuple[int, int, float, int, CallT]

#: How many calls of one bot wait in deadline order with everybody else's before its further ones stand behind.
GROUP: Final = 16
#: Calls that look again for one trial: enough for one of them to be of the lane it is for.
FEW: Final = 8
_RANK: Final = {lane: rank for rank, lane in enumerate(LANES)}
#: Entries of calls that wait no more are thrown out when a heap is longer than this and mostly stale.
_COMPACT_ABOVE: Final = 1024


class Parking(Generic[CallT]):
    """The heaps.

    The lane goes first; then, by groups of `GROUP`, those of whom fewer calls wait already, so that one bot's flood
    stands behind another's few; then the deadline.

    Args:
        clock: the loop's time.
        look_again: makes a parked call seek; contains what goes wrong in it.
    """

    def __init__(self, clock: Callable[[], float], look_again: Callable[[CallT, float], None]) -> None:
        self._clock = clock
        self._look_again = look_again
        self._heaps: dict[str, list[_Entry[CallT]]] = {}
        self._waiting: dict[str, int] = {}
        self._of: dict[tuple[int, int], int] = {}  # holder -> how many of its calls wait
        self._sequence = 0

    def park(self, call: CallT, pools: Iterable[Pool]) -> None:
        """The call waits for a connection of any of `pools`."""
        self._sequence += 1
        holder = call.peer.holder
        before = self._of.get(holder, 0)
        by_name = {pool.name: pool for pool in pools}
        if by_name:
            self._of[holder] = before + 1
        entry = (_RANK[call.lane], before // GROUP, call.policy.deadline, self._sequence, call)
        call.parked_in = tuple(by_name)
        call.parked_as = self._sequence
        for name, pool in by_name.items():
            heap = self._heaps.setdefault(name, [])
            heapq.heappush(heap, entry)
            waiting = self._waiting[name] = self._waiting.get(name, 0) + 1
            if len(heap) > max(_COMPACT_ABOVE, 2 * waiting):
                heap[:] = [kept for kept in heap if _waits(kept)]
                heapq.heapify(heap)
            pool.poke()

    def unpark(self, call: CallT) -> None:
        """It waits no more."""
        if not call.parked_in:
            return
        for name in call.parked_in:
            self._waiting[name] -= 1
        call.parked_in = ()
        holder = call.peer.holder
        self._of[holder] -= 1
        if not self._of[holder]:
            del self._of[holder]

    def waiting(self, pool: str) -> int:
        """How many calls wait for a connection of `pool`."""
        return self._waiting.get(pool, 0)

    def on_capacity(self, pool: Pool) -> None:
        """A connection of `pool` came free, or its prospects changed: waiting calls look again."""
        heap = self._heaps.get(pool.name)
        if not heap:
            return
        now = self._clock()
        newest = self._sequence
        parked_again: list[_Entry[CallT]] = []
        in_vain = 0
        while heap and in_vain < FEW and pool.can_take(heap[0][4].lane, now):
            entry = heapq.heappop(heap)
            if entry[3] > newest:
                parked_again.append(entry)  # looked at in this very step: once is enough
            elif _waits(entry):
                self._look_again(entry[4], now)
                if entry[4].parked_in and pool.prober.wants_trials(now):
                    in_vain += 1  # a trial is there for one at most, and it has its own clock now
        for entry in parked_again:
            heapq.heappush(heap, entry)
        may_connect_at = pool.may_connect_at()
        if may_connect_at > now:
            for entry in [entry for entry in heap if entry[2] <= may_connect_at]:
                if _waits(entry):
                    self._look_again(entry[4], now)  # no use waiting for this pool any longer


def _waits(entry: _Entry[CallT]) -> bool:
    """Whether this is the entry under which its call waits: not one of an earlier wait."""
    return entry[3] == entry[4].parked_as and bool(entry[4].parked_in)
