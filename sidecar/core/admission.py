"""Admission: how many calls are in flight at once, who waits, who goes first, and who is shed.

    | place of a call | event | place after |
    |---|---|---|
    | (none) | offer | in_flight, queued, or shed at once |
    | queued | admit (a place came free) | in_flight |
    | queued | shed (a better call needed its place), remove | gone |
    | in_flight | leave | gone |

The higher lane goes first, within a lane the earlier deadline. When the queue is full, a newcomer takes the place of
the worst call queued in a lower lane (the lowest lane, there the latest deadline); within its own lane, who came first
stays. While others call, too, nobody holds more than a share of the places (`SHARE`, docs/decisions/0008): further
calls of such a holder wait, and are passed over. Lanes are Google SRE's criticality classes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, TypeAlias

from msgspec import Struct

from sidecar.core.transitions import IllegalTransition
from sidecar.wire import Lane

#: Who goes first.
LANES: Final[tuple[Lane, ...]] = ("exit", "entry", "research")
#: Of the places in flight, and of the queue, that one holder may have while others call: a flood leaves room.
SHARE: Final = 0.75
#: Seconds for which a holder that has called counts as calling.
MEMORY: Final = 60.0
_RANK: Final = {lane: rank for rank, lane in enumerate(LANES)}


class Admitted(Struct, frozen=True):
    """It is in flight."""


class Queued(Struct, frozen=True):
    """It waits; a later `leave` or `resize` names it."""


class Shed(Struct, frozen=True):
    """`key` is to be failed `overloaded`, with `retry_after` seconds (jittered).

    When `key` is not the call that was offered, it was queued before, and the call offered is queued in its place.
    """

    key: Hashable
    retry_after: float


Decision: TypeAlias = Admitted | Queued | Shed


class AdmissionStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot; the counts per lane are of calls queued, the rest since the start."""

    in_flight: int
    max_in_flight: int
    queued: int
    queue_max: int
    queued_by_lane: dict[str, int]
    admitted: int
    shed: int


_ADMITTED: Final = Admitted()
_QUEUED: Final = Queued()


class Admission:
    """Places in flight, and the queue before them.

    Args:
        max_in_flight: calls at once; `resize` changes it.
        queue_max: calls that wait.
        hold: seconds that a place is usually taken, for `retry_after` only.
        jitter: U(0, 1).
    """

    __slots__ = (
        "_admitted", "_held", "_hold", "_in_flight", "_jitter", "_lanes", "_max", "_queue_max", "_queued", "_recent",
        "_sequence", "_shed", "_waiting",
    )  # fmt: skip

    def __init__(self, max_in_flight: int, queue_max: int, *, jitter: Callable[[], float], hold: float = 0.25) -> None:
        if max_in_flight < 1 or queue_max < 0:
            raise ValueError("max_in_flight is at least 1, queue_max at least 0")
        self._max, self._queue_max = max_in_flight, queue_max
        self._jitter, self._hold = jitter, hold
        self._in_flight: dict[Hashable, Hashable] = {}  # call -> whose
        self._held: dict[Hashable, int] = {}  # holder -> calls in flight
        self._waiting: dict[Hashable, int] = {}  # holder -> calls queued
        self._recent: OrderedDict[Hashable, float] = OrderedDict()  # the two holders that called last, and when
        # Per lane, sorted so that who goes next stands last (cheap to take): (-deadline, -sequence, key).
        self._lanes: tuple[list[tuple[float, int, Hashable]], ...] = ([], [], [])
        self._queued: dict[Hashable, tuple[int, tuple[float, int, Hashable], Hashable]] = {}
        self._sequence = 0
        self._admitted = self._shed = 0

    @property
    def in_flight(self) -> int:
        """Calls in flight."""
        return len(self._in_flight)

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return len(self._queued)

    def offer(
        self, call_key: Hashable, lane: Lane, deadline: float, now: float, *, holder: Hashable = None
    ) -> Decision:
        """A call came.

        Args:
            call_key: names it until it leaves.
            lane: who goes first.
            deadline: instant.
            now: instant.
            holder: whose call it is. While others call, too, none holds more than `SHARE` of the places or the queue.

        Raises:
            IllegalTransition: the key is queued or in flight already.
        """
        if call_key in self._in_flight or call_key in self._queued:
            raise IllegalTransition(f"admission: {call_key!r} is here already")
        crowded = self._is_crowded(holder, now)
        held = self._held.get(holder, 0)
        if len(self._in_flight) < self._max and not (crowded and held >= SHARE * self._max):
            self._take_place(call_key, holder)
            return _ADMITTED
        rank = _RANK[lane]
        if crowded and self._waiting.get(holder, 0) >= max(1.0, SHARE * self._queue_max):
            self._shed += 1
            return Shed(call_key, self.retry_after())
        if len(self._queued) < self._queue_max:
            self._enqueue(call_key, rank, deadline, holder)
            return _QUEUED
        self._shed += 1
        for worse in range(len(LANES) - 1, rank, -1):
            if self._lanes[worse]:
                victim = self._lanes[worse].pop(0)[2]
                self._unqueue(victim)
                self._enqueue(call_key, rank, deadline, holder)
                return Shed(victim, self.retry_after())
        return Shed(call_key, self.retry_after())

    def leave(self, call_key: Hashable) -> list[Hashable]:
        """A call in flight is over.

        Returns:
            the calls that are in flight from now on, in the order they were admitted.

        Raises:
            IllegalTransition: it is not in flight.
        """
        if call_key not in self._in_flight:
            raise IllegalTransition(f"admission: {call_key!r} is not in flight")
        _one_less(self._held, self._in_flight.pop(call_key))
        return self._admit() if self._queued else []

    def remove(self, call_key: Hashable) -> None:
        """A queued call is over: its deadline passed, it was cancelled, its bot is gone.

        Raises:
            IllegalTransition: it is not queued.
        """
        if call_key not in self._queued:
            raise IllegalTransition(f"admission: {call_key!r} is not queued")
        rank, entry = self._unqueue(call_key)
        lane = self._lanes[rank]
        # (-deadline, -sequence) is unique, so the key itself is never compared.
        del lane[bisect_left(lane, entry[:2], key=_place)]

    def resize(self, max_in_flight: int) -> list[Hashable]:
        """Change the limit. Calls above a lower one run on; returns the calls admitted by a higher one."""
        if max_in_flight < 1:
            raise ValueError("max_in_flight is at least 1")
        self._max = max_in_flight
        return self._admit()

    def retry_after(self) -> float:
        """Seconds, jittered by half, until a call turned away now may find a place."""
        return self._hold * (1 + len(self._queued) / self._max) * (0.5 + self._jitter())

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        return AdmissionStatistics(
            in_flight=len(self._in_flight),
            max_in_flight=self._max,
            queued=len(self._queued),
            queue_max=self._queue_max,
            queued_by_lane={lane: len(queue) for lane, queue in zip(LANES, self._lanes, strict=True)},
            admitted=self._admitted,
            shed=self._shed,
        )

    def _is_crowded(self, holder: Hashable, now: float) -> bool:
        """Somebody else called within `MEMORY`; who did not is forgotten, so that no place is kept free for it."""
        recent = self._recent
        recent[holder] = now
        recent.move_to_end(holder)
        oldest, called_at = next(iter(recent.items()))
        if len(recent) > 2 or now - called_at >= MEMORY:
            del recent[oldest]
        return len(recent) > 1

    def _take_place(self, call_key: Hashable, holder: Hashable) -> None:
        self._in_flight[call_key] = holder
        self._held[holder] = self._held.get(holder, 0) + 1
        self._admitted += 1

    def _enqueue(self, call_key: Hashable, rank: int, deadline: float, holder: Hashable) -> None:
        self._sequence += 1
        entry = (-deadline, -self._sequence, call_key)
        insort(self._lanes[rank], entry, key=_place)
        self._queued[call_key] = (rank, entry, holder)
        self._waiting[holder] = self._waiting.get(holder, 0) + 1

    def _unqueue(self, call_key: Hashable) -> tuple[int, tuple[float, int, Hashable]]:
        rank, entry, holder = self._queued.pop(call_key)
        _one_less(self._waiting, holder)
        return rank, entry

    def _admit(self) -> list[Hashable]:
        admitted: list[Hashable] = []
        while self._queued and len(self._in_flight) < self._max:
            key = self._next()
            if key is None:
                break
            holder = self._queued[key][2]
            self._unqueue(key)
            self._take_place(key, holder)
            admitted.append(key)
        return admitted

    def _next(self) -> Hashable | None:
        """Who goes next: the best call of a holder below its share; it leaves its lane. None when all are at it."""
        limit = SHARE * self._max if len(self._recent) > 1 else self._max
        for lane in self._lanes:
            for index in range(len(lane) - 1, -1, -1):
                key = lane[index][2]
                if self._held.get(self._queued[key][2], 0) < limit:
                    del lane[index]
                    return key
        return None

    def __repr__(self) -> str:
        return f"<Admission in_flight={len(self._in_flight)}/{self._max} queued={len(self._queued)}/{self._queue_max}>"


def _place(entry: tuple[float, int, Hashable]) -> tuple[float, int]:
    return entry[:2]


def _one_less(counts: dict[Hashable, int], holder: Hashable) -> None:
    if counts[holder] == 1:
        del counts[holder]
    else:
        counts[holder] -= 1
