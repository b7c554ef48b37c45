"""How many attempts one upstream is given at once: as many as it bears, found by trying.

The limit starts at its maximum: without a signal there is nothing to limit. Overload cuts it, successes let it grow
again, at a quarter of the pace while less than half of it is in use:

    | limit | a success | overload | restart |
    |---|---|---|---|
    | at its maximum | stays | cut | slow start |
    | below the threshold: slow start | grows by 1 | cut | slow start |
    | above it: congestion avoidance | grows by 1 per limit's worth | cut | slow start |

Overload is two refusals in a row, or a steady one in eleven (of calls that are merely slow one in six): the pressure, a
leaky bucket. An upstream that refuses one call in a hundred, or is late with it, does so for reasons of its own; if
each such call cut the limit, it would be 17 of 64, and 5 where two are in flight: a limit is to bound, not to hinder.

A cut takes 30 %, at most once per as many ends of attempts as were in flight at the last one: what was on its way
together tells of one overload, not of forty. The threshold is the limit after a cut. While nothing is answered between
cuts, and at a restart in slow start, it stays where the first one put it: an upstream that is down says nothing of how
much it bears when it is up, and the way back would take an hour.

Sources: RFC 5681 (slow start, congestion avoidance, the threshold held over repeated losses), RFC 6582 (one cut per
window), Mathis et al. 1997 (what random losses do to such a limit), Netflix concurrency-limits' AIMDLimit (what is not
used proves little).
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from sidecar.core.outcome import Kind, Outcome
from sidecar.core.transitions import IllegalTransition
from sidecar.wire import Lane

#: What an overloaded outcome, and one that was merely slow, add to the pressure; what a success takes off; what cuts.
BY_OVERLOADED: Final = 1.0
BY_SLOW: Final = 0.5
RELIEF: Final = 0.1
TOO_MUCH: Final = 2.0
#: Growth by a success while less than half of the limit is in use.
UNUSED: Final = 0.25
#: What is left of the limit after a cut.
CUT: Final = 0.7
#: One place of so many, and one at least, is kept for exit calls.
RESERVE: Final = 8


class ConcurrencyStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot; `cuts` and `restarts` since the start."""

    in_flight: int
    limit: int
    maximum: int
    threshold: int
    cuts: int
    restarts: int


class ConcurrencyLimit:
    """The limit of one upstream. Every method is constant in time; `has_room`, `taken`, `released` allocate nothing.

    Args:
        maximum: attempts at once, whatever happens; 1 or more.
        first: attempts at once after an outage.

    Attributes:
        in_flight: attempts taken and not released. Read only.
    """

    __slots__ = (
        "_answered", "_cuts", "_first", "_limit", "_maximum", "_pressure", "_restarts", "_room", "_threshold", "_whole",
        "_window", "in_flight",
    )  # fmt: skip

    def __init__(self, maximum: int, *, first: int = 4) -> None:
        if maximum < 1 or first < 1:
            raise ValueError("maximum and first are at least 1")
        self.in_flight = 0
        self._maximum = maximum
        self._first = first
        self._threshold = float(maximum)
        self._pressure = 0.0
        self._window = 0  # ends of attempts that still belong to the last cut
        self._answered = True  # since the last cut
        self._cuts = self._restarts = 0
        self._set(float(maximum))

    @property
    def limit(self) -> int:
        """Attempts at once, as of now; 1 or more."""
        return self._whole

    def bound(self, maximum: int) -> None:
        """Its connections carry so many at once, 1 or more: that is the maximum from here on."""
        whole = self._limit >= self._maximum
        self._maximum = maximum
        self._set(float(maximum) if whole else self._limit)

    def has_room(self, lane: Lane) -> bool:
        """Whether one more attempt may be given, to a call of this lane: the last places are for exit calls."""
        return self.in_flight < (self._whole if lane == "exit" else self._room)

    def taken(self) -> None:
        """An attempt begins. It counts also when there was no room: who may go beyond is decided elsewhere."""
        self.in_flight += 1

    def released(self, outcome: Outcome, *, slow: bool = False) -> None:
        """An attempt ended.

        Args:
            outcome: classified. `overload` says what its name says, a success speaks against it, nothing else counts.
            slow: it was overtaken by its full first-delta timeout; that speaks of overload, too, whatever came of it.

        Raises:
            IllegalTransition: none is in flight.
        """
        in_flight = self.in_flight
        if in_flight == 0:
            raise IllegalTransition("concurrency: released, and none is in flight")
        self.in_flight = in_flight - 1
        window = self._window
        if window:
            self._window = window - 1
        kind = outcome.kind
        if outcome.overload:
            if not window:
                self._press(BY_OVERLOADED, in_flight)
        elif slow:
            if not window:
                self._press(BY_SLOW, in_flight)
        elif kind is Kind.SUCCESS:
            self._answered = True
            if self._pressure:
                self._pressure = max(0.0, self._pressure - RELIEF)
            limit = self._limit
            if limit < self._maximum and not window:
                # Against the whole number: with one place kept for exit calls others never fill half of 2.5.
                pace = 1.0 if 2 * in_flight >= self._whole else UNUSED
                self._set(limit + (pace if limit < self._threshold else pace / limit))

    def restart(self) -> None:
        """After an outage: begin small, slow start up to half of the limit before it.

        What is in flight goes on: another model of the upstream may have been well all along.
        """
        if self._limit >= self._threshold:
            self._threshold = max(1.0, self._limit / 2)
        self._window = 0
        self._pressure = 0.0
        self._restarts += 1
        self._set(min(self._limit, float(max(self._first, self.in_flight))))

    def statistics(self) -> ConcurrencyStatistics:
        """A snapshot."""
        return ConcurrencyStatistics(
            in_flight=self.in_flight,
            limit=self._whole,
            maximum=self._maximum,
            threshold=int(self._threshold),
            cuts=self._cuts,
            restarts=self._restarts,
        )

    def _press(self, by: float, in_flight: int) -> None:
        self._pressure += by
        if self._pressure < TOO_MUCH:
            return
        self._pressure = 0.0
        self._window = in_flight - 1
        self._cuts += 1
        self._set(max(1.0, CUT * self._limit))
        if self._answered:
            self._threshold = self._limit
        self._answered = False

    def _set(self, limit: float) -> None:
        self._limit = min(limit, float(self._maximum))
        self._whole = whole = int(self._limit)
        self._room = whole - max(1, whole // RESERVE) if whole > 1 else whole

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self.in_flight}/{self._whole} maximum={self._maximum} cuts={self._cuts}>"
