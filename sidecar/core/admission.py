"""Admission: how many calls are in flight at once, who waits, who goes first, and who is shed.

    | place of a call | event | place after |
    |---|---|---|
    | (none) | offer | in_flight, queued, or turned away at once (shed, unreachable) |
    | queued | admit (a place came free) | in_flight |
    | queued | shed (a better call needed its place), remove | gone |
    | in_flight | leave | gone |

The higher lane goes first, within a lane the earlier deadline. Some places in flight are kept for exit calls; the rest
is for everybody. When the queue is full, a newcomer takes the place of the worst call queued in a lower lane (the
lowest lane, there the latest deadline); within its own lane, who came first stays. While others call, too, nobody holds
more than a share of the places (`SHARE`, docs/decisions/0008): further calls of such a holder wait, and are passed
over. Lanes are Google SRE's criticality classes.

How long a newcomer would wait follows from Little's law: so many must leave before it, and `places` of them leave every
`hold`, the time that a call keeps its place, learnt from those that left. A call for which that is too long is told so
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from sidecar.core.lane_queue import LaneQueue, one_less
from sidecar.core.transitions import IllegalTransition
from sidecar.wire import Lane

#: Who goes first.
LANES: Final[tuple[Lane, ...]] = ("exit", "entry", "research")
#: Of the places in flight, of those kept for exit calls, and of the queue, that one holder may have while others call:
#: a flood leaves room.
SHARE: Final = 0.75
#: Seconds for which a holder that has called counts as calling.
MEMORY: Final = 60.0
#: `hold` is the mean of the calls that left until there were so many, from then on a moving one with this weight.
SAMPLES: Final = 32
#: Before so many calls have left, `hold` is a guess, on which no call is told that it cannot make it.
KNOWN: Final = 8
#: Seconds: nobody is told to come back sooner than about this, however short the calls are.
SOONEST: Final = 0.01
_RANK: Final = {lane: rank for rank, lane in enumerate(LANES)}

#: Why a call is shed: the queue is full ("full"), or its holder's share of it is ("share"); a call of a higher lane
#: took its place in the queue ("displaced").
Reason: TypeAlias = Literal["full", "share", "displaced"]


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
    reason: Reason = "full"


class Unreachable(Struct, frozen=True):
    """The call offered would have to wait, and longer than its deadline allows; it is not here.

    `retry_after`: seconds (jittered) until the queue has shrunk to what would have fitted, if nobody else comes.
    """

    key: Hashable
    retry_after: float


Decision: TypeAlias = Admitted | Queued | Shed | Unreachable


class AdmissionStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot; the counts per lane are of calls queued, `hold` is in seconds; the last four are since the start."""

    in_flight: int
    exit_in_flight: int
    max_in_flight: int
    exit_reserved: int
    queued: int
    queue_max: int
    queued_by_lane: dict[str, int]
    hold: float
    admitted: int
    shed: int
    shed_by_reason: dict[str, int]
    unreachable: int


_ADMITTED: Final = Admitted()
_QUEUED: Final = Queued()


class Admission:
    """Places in flight, and the queue before them.

    Args:
        max_in_flight: calls at once; `resize` changes it.
        queue_max: calls that wait.
        jitter: U(0, 1).
        exit_reserved: of the places in flight, those that only exit calls may use; fewer than all.
        hold: seconds that a place is usually taken, until it is known better.
    """

    __slots__ = (
        "_admitted", "_at_share", "_called_at", "_caller", "_exit_held", "_exit_share", "_held", "_hold", "_in_flight",
        "_jitter", "_left", "_max", "_ordinary", "_other_at", "_queue", "_queue_max", "_queue_share", "_queued",
        "_reserved", "_room", "_room_share", "_share", "_shed", "_taken_at", "_unreachable",
    )  # fmt: skip

    def __init__(
        self,
        max_in_flight: int,
        queue_max: int,
        *,
        jitter: Callable[[], float],
        exit_reserved: int = 0,
        hold: float = 0.25,
    ) -> None:
        if max_in_flight < 1 or queue_max < 0:
            raise ValueError("max_in_flight is at least 1, queue_max at least 0")
        if not 0 <= exit_reserved < max_in_flight:
            raise ValueError("exit_reserved is at least 0 and less than max_in_flight")
        self._queue_max = queue_max
        self._queue_share = max(1.0, SHARE * queue_max)
        self._reserved = exit_reserved
        self._set_size(max_in_flight)
        self._jitter, self._hold = jitter, hold
        self._left = 1  # calls that taught us `hold`, up to SAMPLES; the value to start from counts as one
        self._in_flight: dict[Hashable, tuple[Hashable, bool, float]] = {}  # call -> whose, is it an exit call, since
        self._ordinary = 0  # calls in flight that are not exit calls
        self._held: dict[Hashable, int] = {}  # holder -> calls in flight
        self._exit_held: dict[Hashable, int] = {}  # holder -> exit calls in flight
        self._at_share: Hashable = None  # the holder that was last seen with its share of the places
        self._taken_at = -math.inf  # when a place was last taken: everybody in flight has been there since
        # Who called last and when, and when somebody else did last.
        self._caller: Hashable = None
        self._called_at = self._other_at = -math.inf
        self._queue = LaneQueue(len(LANES))
        self._queued = self._queue.records
        self._admitted = self._unreachable = 0
        self._shed: dict[str, int] = {"full": 0, "share": 0, "displaced": 0}

    @property
    def in_flight(self) -> int:
        """Calls in flight."""
        return len(self._in_flight)

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return len(self._queued)

    def offer(
        self,
        call_key: Hashable,
        lane: Lane,
        deadline: float,
        now: float,
        *,
        holder: Hashable = None,
        usual: float | None = None,
    ) -> Decision:
        """A call came.

        Args:
            call_key: names it until it leaves.
            lane: who goes first.
            deadline: instant.
            now: instant.
            holder: whose call it is. While others call, too, none holds more than `SHARE` of the places or the queue.
            usual: seconds from its turn until its first delta: with the wait before it, they must fit before the
                deadline. None: it may wait however long.

        Raises:
            IllegalTransition: the key is queued or in flight already.
        """
        if call_key in self._in_flight or call_key in self._queued:
            raise IllegalTransition(f"admission: {call_key!r} is here already")
        if holder != self._caller:
            self._other_at, self._caller = self._called_at, holder
        self._called_at = now
        held = self._held.get(holder, 0)
        exits = lane == "exit"
        if len(self._in_flight) < self._max and (exits or self._ordinary < self._room):
            # Whoever waits because of its share, and is alone now, does not overtake itself: until the next `leave`.
            alone = now - self._other_at >= MEMORY and holder not in self._queue.by_holder
            if held < self._room_share or alone or self._below_share(holder, exits=exits):
                self._take_place(call_key, holder, exits, now)
                return _ADMITTED
        return self._enqueue(call_key, _RANK[lane], deadline, now, holder, usual)

    def leave(self, call_key: Hashable, now: float) -> list[Hashable]:
        """A call in flight is over.

        Returns:
            the calls that are in flight from now on, in the order they were admitted.

        Raises:
            IllegalTransition: it is not in flight.
        """
        record = self._in_flight.pop(call_key, None)
        if record is None:
            raise IllegalTransition(f"admission: {call_key!r} is not in flight")
        holder, exits, since = record
        one_less(self._held, holder)
        if exits:
            one_less(self._exit_held, holder)
        else:
            self._ordinary -= 1
        if self._left < SAMPLES:
            self._left += 1
        self._hold += (now - since - self._hold) / self._left
        return self._admit(now) if self._queued else []

    def remove(self, call_key: Hashable) -> None:
        """A queued call is over: its deadline passed, it was cancelled, its bot is gone.

        Raises:
            IllegalTransition: it is not queued.
        """
        if call_key not in self._queued:
            raise IllegalTransition(f"admission: {call_key!r} is not queued")
        self._queue.remove(call_key)

    def resize(self, max_in_flight: int, now: float) -> list[Hashable]:
        """Change the limit; of a small one, one place at least is for everybody.

        Calls above a lower limit run on; returns the calls admitted by a higher one.
        """
        if max_in_flight < 1:
            raise ValueError("max_in_flight is at least 1")
        self._set_size(max_in_flight)
        return self._admit(now)

    def retry_after(self) -> float:
        """Seconds, jittered by half, until a call turned away now may find a place."""
        return max(SOONEST, self._hold * (1 + len(self._queued) / self._max)) * (0.5 + self._jitter())

    def holders(self) -> dict[Hashable, tuple[int, int]]:
        """Holder -> its calls in flight, its calls queued; who has neither is not in it."""
        waiting = self._queue.by_holder
        return {holder: (self._held.get(holder, 0), waiting.get(holder, 0)) for holder in {**self._held, **waiting}}

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        return AdmissionStatistics(
            in_flight=len(self._in_flight),
            exit_in_flight=len(self._in_flight) - self._ordinary,
            max_in_flight=self._max,
            exit_reserved=self._max - self._room,
            queued=len(self._queued),
            queue_max=self._queue_max,
            queued_by_lane=dict(zip(LANES, self._queue.counts(), strict=True)),
            hold=self._hold,
            admitted=self._admitted,
            shed=sum(self._shed.values()),
            shed_by_reason=dict(self._shed),
            unreachable=self._unreachable,
        )

    # ------------------------------------------------------------------ places

    def _set_size(self, max_in_flight: int) -> None:
        reserved = min(self._reserved, max_in_flight - 1)
        self._max = max_in_flight
        self._room = max_in_flight - reserved
        self._share, self._room_share, self._exit_share = SHARE * max_in_flight, SHARE * self._room, SHARE * reserved

    def _may_take(self, holder: Hashable, now: float, *, exits: bool = False) -> bool:
        """Whether a holder may have one more of the places in flight: nobody else calls, or it is below its share."""
        # Who did not call last has been followed by another.
        other_at = self._other_at if holder == self._caller else self._called_at
        return now - other_at >= MEMORY or self._below_share(holder, exits=exits)

    def _below_share(self, holder: Hashable, *, exits: bool) -> bool:
        """An exit call may also go when its holder has its share by others, but not yet of what is kept for exit."""
        held, exit_held = self._held.get(holder, 0), self._exit_held.get(holder, 0)
        if exits:
            return held < self._share or exit_held < self._exit_share
        return held < self._share and held - exit_held < self._room_share

    def _take_place(self, call_key: Hashable, holder: Hashable, exits: bool, now: float) -> None:  # noqa: FBT001
        self._in_flight[call_key] = (holder, exits, now)
        held = self._held[holder] = self._held.get(holder, 0) + 1
        if exits:
            self._exit_held[holder] = self._exit_held.get(holder, 0) + 1
        else:
            self._ordinary += 1
        if held >= self._room_share:
            self._at_share = holder
        self._taken_at = now
        self._admitted += 1

    def _admit(self, now: float) -> list[Hashable]:
        admitted: list[Hashable] = []
        while self._queued and len(self._in_flight) < self._max:
            key = self._next(now)
            if key is None:
                break
            rank, holder = self._queue.remove(key)
            self._take_place(key, holder, rank == 0, now)
            admitted.append(key)
        return admitted

    def _next(self, now: float) -> Hashable | None:
        """Who goes next: the best call that may take a place of its lane, of a holder below its share; None: nobody."""
        queue, flood = self._queue, self._at_share
        if queue.by_holder.get(flood) == len(queue) and not (queue.up_to(0) or self._may_take(flood, now)):
            return None  # nobody waits but who is at its share: often, and a long queue to look through
        for rank in range(len(LANES) if self._ordinary < self._room else 1):
            for key, holder in queue.in_order(rank):
                if self._may_take(holder, now, exits=rank == 0):
                    return key
        return None

    # ------------------------------------------------------------------ the queue

    def _enqueue(
        self, call_key: Hashable, rank: int, deadline: float, now: float, holder: Hashable, usual: float | None
    ) -> Decision:
        """No place for it: it waits, or is turned away."""
        queue = self._queue
        loser: Hashable | None = None
        if now - self._other_at < MEMORY and queue.by_holder.get(holder, 0) >= self._queue_share:
            loser = queue.worst_of(holder, rank)
            if loser is None:
                return self._turn_away(call_key, "share")
        elif len(queue) >= self._queue_max:
            loser = queue.worst_below(rank)
            if loser is None:
                return self._turn_away(call_key, "full")
        if usual is not None and self._left > KNOWN:
            late = now + self._wait_of(rank, deadline, now, holder) + usual - deadline
            if late > 0:
                self._unreachable += 1
                return Unreachable(call_key, max(SOONEST, late) * (1 + 0.5 * self._jitter()))
        if loser is not None:
            queue.remove(loser)
        queue.add(call_key, rank, deadline, holder)
        return _QUEUED if loser is None else self._turn_away(loser, "displaced")

    def _turn_away(self, call_key: Hashable, reason: Reason) -> Shed:
        self._shed[reason] += 1
        return Shed(call_key, self.retry_after(), reason)

    # ------------------------------------------------------------------ how long one waits

    def _wait_of(self, rank: int, deadline: float, now: float, holder: Hashable) -> float:
        """Seconds that this call would wait."""
        ahead, flood = self._queue.before(rank, deadline), self._at_share
        if flood != holder and self._held.get(flood, 0) >= self._room_share:
            ahead = max(0, ahead - self._queue.by_holder.get(flood, 0))  # whoever is at its share is passed over
        return self._wait_behind(ahead, now, exits=rank == 0)

    def _wait_behind(self, ahead: int, now: float, *, exits: bool) -> float:
        """Seconds until it is the turn of a call before which `ahead` others go (Little's law)."""
        in_flight = len(self._in_flight)
        leaving = in_flight - self._max + 1
        places = self._max
        if not exits:
            leaving = max(leaving, self._ordinary - self._room + 1)
            places = max(1, min(self._room, self._max - in_flight + self._ordinary))
        # Everybody in flight has been there since the last place was taken: no shorter than that are calls now.
        return (ahead + max(1, leaving)) * max(self._hold, now - self._taken_at) / places

    def __repr__(self) -> str:
        return f"<Admission in_flight={len(self._in_flight)}/{self._max} queued={len(self._queued)}/{self._queue_max}>"
