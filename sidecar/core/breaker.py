"""The circuit breaker of one upstream and model: stop asking who cannot answer, and find out gently when it can.

    | state | event | state after |
    |---|---|---|
    | closed | trip | open |
    | open | half_open (its time is over, and somebody asks) | half_open |
    | half_open | close (enough trials succeeded) | closed |
    | half_open | trip (a trial failed, or was slow) | open |

Counted are outcomes with `counts_against_breaker`, successes, and whatever was slow (an attempt that its backup
overtook ends "cancelled", and still was slow); every other outcome says nothing about the upstream and gives a
half-open permit back. Half-open admits one trial at a time. Each state is a generation: an outcome that
belongs to a permit of an earlier one is ignored, so that calls begun before a trip cannot close or re-open it. A trial
that is never recorded expires.

Sources: gobreaker (generations), Polly (lost trials), resilience4j (slow-call rate), Finagle (equal-jittered,
growing). The numbers: docs/decisions/0006.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from sidecar.core.outcome import Kind, Outcome
from sidecar.core.transitions import Table

State: TypeAlias = Literal["closed", "open", "half_open"]

TRANSITIONS: Final[Table[State]] = Table(
    "breaker",
    {
        ("closed", "trip"): "open",
        ("open", "half_open"): "half_open",
        ("half_open", "close"): "closed",
        ("half_open", "trip"): "open",
    },
)

#: The window is kept in this many slices, so that it costs the same at any rate.
SLICES: Final = 10
#: A run of failures that chance alone would bring more often than this is no outage.
CHANCE: Final = 1e-6


class Permit(Struct, frozen=True):
    """Leave to make one attempt; hand it back with its outcome to `Breaker.record`. `trial`: it decides much."""

    generation: int
    trial: bool = False


class Refusal(Struct, frozen=True):
    """No. `retry_after`: seconds, jittered."""

    retry_after: float


class BreakerStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot. `total`, `failures`, `slow` are of the window; the rest since the start."""

    name: str
    state: State
    consecutive_failures: int
    total: int
    failures: int
    slow: int
    trips: int
    refused: int
    trials: int
    stale: int
    next_wakeup_at: float


class _Window:
    """Counts of the last `width` seconds, to a slice's precision: a slice is forgotten whole."""

    __slots__ = ("_counts", "_newest", "_slice")

    def __init__(self, width: float) -> None:
        self._slice = width / SLICES
        self._newest = 0
        self._counts: list[list[int]] = []
        self.clear()

    def clear(self) -> None:
        self._counts = [[0, 0, 0] for _ in range(SLICES)]

    def add(self, now: float, failed: bool, slow: bool) -> None:  # noqa: FBT001  (private, hot)
        self._forget(now)
        counts = self._counts[self._newest % SLICES]
        counts[0] += 1
        counts[1] += failed
        counts[2] += slow

    def sums(self, now: float) -> tuple[int, int, int]:
        """total, failures, slow."""
        self._forget(now)
        total = failures = slow = 0
        for counts in self._counts:
            total += counts[0]
            failures += counts[1]
            slow += counts[2]
        return total, failures, slow

    def _forget(self, now: float) -> None:
        newest = int(now // self._slice)
        if newest > self._newest:
            for index in range(max(self._newest + 1, newest - SLICES + 1), newest + 1):
                self._counts[index % SLICES] = [0, 0, 0]
            self._newest = newest


class Breaker:
    """One breaker. Every method is synchronous and constant in time; `admit` while closed is one comparison.

    Args:
        name: upstream and model, for statistics.
        consecutive: counted failures in a row that trip it, unless chance alone would bring such a run (`CHANCE`).
        rate, rate_minimum: share of counted failures that trips it, once there are so many outcomes in the window.
        window: seconds.
        slow_rate: share of slow outcomes that trips it, with the same minimum.
        open_base, open_cap: seconds; it stays open for an equal-jittered time in between, doubling with each trip
            until it was closed for a whole window.
        trials: successful trials, one after the other, that close it.
        trial_timeout: seconds after which a trial that was not recorded is given up for lost. More than the longest
            first-delta time to be expected; a trial still running then does no harm, its outcome is ignored.
        jitter: U(0, 1).
    """

    __slots__ = (
        "_closed_at", "_consecutive", "_consecutive_limit", "_growth", "_jitter", "_name", "_no_way_in", "_open_base",
        "_open_cap", "_open_until", "_permit", "_rate", "_rate_minimum", "_refused", "_slow_rate", "_stale", "_state",
        "_successes", "_trial", "_trial_timeout", "_trial_until", "_trials", "_trials_needed", "_trips", "_window",
        "_window_width",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        consecutive: int = 5,
        rate: float = 0.5,
        rate_minimum: int = 10,
        window: float = 30.0,
        slow_rate: float = 0.8,
        open_base: float = 1.0,
        open_cap: float = 30.0,
        trials: int = 2,
        trial_timeout: float = 30.0,
        jitter: Callable[[], float],
    ) -> None:
        self._name = name
        self._consecutive_limit = consecutive
        self._rate, self._rate_minimum, self._slow_rate = rate, rate_minimum, slow_rate
        self._open_base, self._open_cap = open_base, open_cap
        self._trials_needed, self._trial_timeout = trials, trial_timeout
        self._jitter = jitter
        self._window, self._window_width = _Window(window), window
        self._state: State = "closed"
        self._permit = Permit(0)
        self._consecutive = 0
        self._growth = 0
        self._closed_at = -math.inf
        self._open_until = -math.inf
        self._trial: Permit | None = None
        self._trial_until = -math.inf
        self._successes = 0
        self._no_way_in = False  # the last trip was a failed connect's
        self._trips = self._refused = self._trials = self._stale = 0

    def admit(self, now: float) -> Permit | Refusal:
        """May an attempt be made? A permit is handed back once: to `record`, or unused to `give_back`."""
        if self._state == "closed":
            return self._permit
        if self._state == "open":
            if now < self._open_until:
                self._refused += 1
                # The herd that waits for this instant must not arrive as one.
                return Refusal((self._open_until - now) + self._open_base * 0.2 * self._jitter())
            self._step("half_open")
            self._successes = 0
        elif self._trial is not None and now < self._trial_until:
            self._refused += 1
            return Refusal(self._open_base * (0.5 + 0.5 * self._jitter()))
        self._trials += 1
        # A new generation per trial: a trial given up for lost cannot speak for the one after it.
        self._trial = self._permit = Permit(self._permit.generation + 1, trial=True)
        self._trial_until = now + self._trial_timeout
        return self._trial

    def record(self, permit: Permit, outcome: Outcome, now: float, *, slow: bool = False) -> None:
        """Hand a permit back with what came of it.

        Args:
            permit: of `admit`. One of an earlier generation, or a trial handed back before, is ignored.
            outcome: classified.
            now: instant.
            slow: the attempt was ended or overtaken by its first-delta clock, and that clock had run its full
                first_delta_timeout (a call in a hurry must not make an upstream look slow).
        """
        if permit.generation != self._permit.generation or (permit.trial and self._trial is None):
            self._stale += 1
            return
        failed = outcome.counts_against_breaker
        if permit.trial:
            self._trial = None
            if failed or slow:
                self._trip(now)
            elif outcome.kind is Kind.SUCCESS:
                self._successes += 1
                if self._successes >= self._trials_needed:
                    self._close(now)
            return
        if failed:
            self._consecutive += 1
        elif outcome.kind is Kind.SUCCESS:
            self._consecutive = 0
        elif not slow:
            return
        self._window.add(now, failed, slow)
        if (failed or slow) and self._too_bad(now):
            self._trip(now)

    def connect_failed(self, outcome: Outcome, now: float) -> None:
        """A connect to the upstream failed; no permit was needed for it.

        Closed, it counts like an attempt. Half-open, it is the trial that failed (unless a call's trial is out, which
        knows better). Open, it says nothing new.
        """
        if not outcome.counts_against_breaker or self.state(now) == "open":
            return
        permit = self.admit(now)
        if isinstance(permit, Permit):
            trips = self._trips
            self.record(permit, outcome, now)
            self._no_way_in = self._no_way_in or self._trips > trips

    def connected(self, now: float) -> None:
        """A connect succeeded. If the breaker is open because none did, its reason is gone: a trial may go at once.

        A breaker that calls have opened waits its time: an upstream in trouble mostly takes connections still.
        """
        if self._no_way_in and self._state == "open" and self._open_until > now:
            self._open_until = now
        self._no_way_in = False

    def give_back(self, permit: Permit) -> None:
        """Hand a permit back unused (no connection was to be had): as if it had never been asked for."""
        if permit.trial and permit is self._trial:
            self._trial = None

    def state(self, now: float) -> State:
        """The state that a call asking now would meet: an open breaker whose time is over is half-open."""
        return "half_open" if self._state == "open" and now >= self._open_until else self._state

    def next_wakeup_at(self) -> float:
        """When a refusal may next become a permit by time alone; inf when nobody waits for time."""
        if self._state == "open":
            return self._open_until
        return self._trial_until if self._trial is not None else math.inf

    def statistics(self, now: float) -> BreakerStatistics:
        """A snapshot."""
        total, failures, slow = self._window.sums(now)
        return BreakerStatistics(
            name=self._name,
            state=self.state(now),
            consecutive_failures=self._consecutive,
            total=total,
            failures=failures,
            slow=slow,
            trips=self._trips,
            refused=self._refused,
            trials=self._trials,
            stale=self._stale,
            next_wakeup_at=self.next_wakeup_at(),
        )

    def _too_bad(self, now: float) -> bool:
        total, failures, slow = self._window.sums(now)
        if self._consecutive >= self._consecutive_limit and not self._by_chance(total, failures):
            return True
        return total >= self._rate_minimum and (failures >= self._rate * total or slow >= self._slow_rate * total)

    def _by_chance(self, total: int, failures: int) -> bool:
        """Whether a run of failures this long is to be expected anyway at the share of failures before it.

        At a share of one in six and thousands of calls a minute, five in a row come by chance alone, and a breaker that
        opened on it would turn a sixth into all. Without outcomes before the run there is no share: it is an outage.
        """
        run = self._consecutive
        before = total - run
        if before < self._rate_minimum:
            return False
        share = max(failures - run, 1) / before
        return share**run > CHANCE

    def _step(self, event: str) -> None:
        self._state = TRANSITIONS.after(self._state, event)
        self._permit = Permit(self._permit.generation + 1)

    def _trip(self, now: float) -> None:
        if self._state == "closed" and now - self._closed_at >= self._window_width:
            self._growth = 0
        self._step("trip")
        # Equal jitter between half and the whole of 2, 4, 8 ... times the base: never below it, never above the cap.
        longest = min(self._open_cap, math.ldexp(2 * self._open_base, min(self._growth, 32)))
        self._open_until = now + max(self._open_base, longest / 2 * (1 + self._jitter()))
        self._growth += 1
        self._trips += 1
        self._no_way_in = False

    def _close(self, now: float) -> None:
        self._step("close")
        self._closed_at = now
        self._consecutive = 0
        self._window.clear()

    def __repr__(self) -> str:
        trial = " trial" if self._trial is not None else ""
        return f"<Breaker {self._name} {self._state}{trial} failures={self._consecutive} trips={self._trips}>"
