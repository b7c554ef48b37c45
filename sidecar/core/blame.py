"""Whose fault is a failure on one target: the upstream's, or one bot's, whose every prompt breaks it?

A bot (a holder) that fails again and again while others are answered fails by its own doing: that must not open the
upstream's breaker for everybody. Instead it gets a breaker of its own on this target:

    | state | event | state after |
    |---|---|---|
    | failing | trip (`TRIPS_AFTER` failures of its own doing in a row) | barred |
    | failing | excuse (the upstream is at fault) | failing |
    | barred | try (its time is over, and it asks) | trial |
    | barred | excuse | failing |
    | trial | trip (failed again by its own doing) | barred |
    | trial | excuse | failing |

Any success of it, on this target, ends all that. "Others are answered" is: somebody else's last end on this target is
a success, after this bot's run of failures began and no longer ago than `ANSWERED_WITHIN`. When everybody fails, nobody
is to blame but the upstream; a bot alone on its host has nobody to be compared with, and its failures count.

Sources: Finagle's failure accrual (consecutive failures, equal-jittered growing time, one trial), per client instead of
per endpoint; the comparison is ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct

from sidecar.core.transitions import Table

Holder = TypeVar("Holder", bound=Hashable)
State: TypeAlias = Literal["failing", "barred", "trial"]

TRANSITIONS: Final[Table[State]] = Table(
    "a bot's breaker",
    {
        ("failing", "trip"): "barred",
        ("failing", "excuse"): "failing",
        ("barred", "try"): "trial",
        ("barred", "excuse"): "failing",
        ("trial", "trip"): "barred",
        ("trial", "excuse"): "failing",
    },
)

#: Failures of one holder in a row that count against the upstream in any case.
BENEFIT: Final = 2
#: Failures of its own doing in a row that bar a holder.
TRIPS_AFTER: Final = 5
#: Seconds for which somebody else's success shows that the target answers.
ANSWERED_WITHIN: Final = 10.0
#: Seconds after which a holder that is silent is forgotten, and how many are remembered at most.
MEMORY: Final = 60.0
HOLDERS: Final = 1024
#: Pieces of news kept for whoever asks for them; the oldest go first.
NEWS: Final = 64
#: Seconds after which a trial whose end was not told is given up for lost.
TRIAL_TIMEOUT: Final = 5.0


class BlameStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot. `failing`, `barred` count holders, the rest since the start."""

    failing: int
    barred: int
    against_upstream: int
    own_doing: int
    refused: int


class _Run:
    """One holder's failures in a row."""

    __slots__ = ("began_at", "failures", "growth", "last_at", "own", "state", "until")

    def __init__(self, now: float) -> None:
        self.state: State = "failing"
        self.began_at = self.last_at = now
        self.failures = self.own = self.growth = 0
        self.until = -math.inf  # barred: until then; trial: lost by then


class Blame(Generic[Holder]):
    """The judge of one target (upstream and model). `succeeded` and `refused_for` are on each call's path: a lookup.

    Args:
        base, cap: seconds; a holder is barred for an equal-jittered time in between, doubling each time.
        jitter: U(0, 1).
    """

    __slots__ = (
        "_against_upstream", "_base", "_cap", "_jitter", "_last", "_last_at", "_other", "_other_at", "_own_doing",
        "_refused", "_runs", "news",
    )  # fmt: skip

    def __init__(self, *, base: float = 1.0, cap: float = 30.0, jitter: Callable[[], float]) -> None:
        if not 0 < base <= cap:
            raise ValueError("0 < base <= cap")
        self._base, self._cap, self._jitter = base, cap, jitter
        self._runs: dict[Holder, _Run] = {}  # only holders whose last end was a failure; who failed last stands last
        # The two holders that were answered last, and whose last end was that.
        self._last: Hashable = None
        self._other: Hashable = None
        self._last_at = self._other_at = -math.inf
        self._against_upstream = self._own_doing = self._refused = 0
        #: (holder, for how many seconds it was barred; 0: it is let in again), until somebody takes and tells it
        self.news: deque[tuple[Holder, float]] = deque(maxlen=NEWS)

    def succeeded(self, holder: Holder, now: float) -> None:
        """A call of this holder was answered."""
        if holder != self._last:
            self._other, self._other_at = self._last, self._last_at
            self._last = holder
        self._last_at = now
        if self._runs:
            self._over(holder, self._runs.pop(holder, None))

    def failed(self, holder: Holder, now: float) -> bool:
        """An attempt of this holder failed in a way that counts against upstreams.

        Returns:
            whether it counts against this one. False: it is the holder's own doing.
        """
        run = self._run(holder, now)
        run.failures += 1
        self._no_longer_answered(holder)
        if run.failures <= BENEFIT or not self._others_are_answered(run, now):
            self._against_upstream += 1
            self._over(holder, run)
            run.state = TRANSITIONS.after(run.state, "excuse")
            run.own = 0
            return True
        self._own_doing += 1
        run.own += 1
        if run.state == "trial" or (run.state == "failing" and run.own >= TRIPS_AFTER):
            run.state = TRANSITIONS.after(run.state, "trip")
            # Equal jitter between half and the whole of 2, 4, 8 ... times the base, as the upstreams' breakers have it.
            longest = min(self._cap, math.ldexp(2 * self._base, min(run.growth, 32)))
            run.until = now + max(self._base, longest / 2 * (1 + self._jitter()))
            run.growth += 1
            self.news.append((holder, run.until - now))
        return False

    def late(self, holder: Holder, now: float) -> bool:
        """An attempt of this holder was slow, whatever came of it.

        Returns:
            as `failed`; but slow prompts bar nobody.
        """
        run = self._run(holder, now)
        run.failures += 1
        self._no_longer_answered(holder)
        return run.failures <= BENEFIT or not self._others_are_answered(run, now)

    def refused_for(self, holder: Holder, now: float) -> float:
        """Whether this holder may ask the target.

        Returns:
            0.0: it may. Once its time is over this lets one call pass as a trial: ask once per attempt, and
            `give_back` when nothing was sent. Else seconds until it is worth asking again.
        """
        run = self._runs.get(holder)
        if run is None or run.state == "failing":
            return 0.0
        if now < run.until:
            self._refused += 1
            return run.until - now
        if run.state == "barred":
            run.state = TRANSITIONS.after(run.state, "try")
        run.until = now + TRIAL_TIMEOUT
        return 0.0

    def give_back(self, holder: Holder, now: float) -> None:
        """The attempt that `refused_for` allowed was not made: if it was a trial, another call may be."""
        run = self._runs.get(holder)
        if run is not None and run.state == "trial":
            run.until = now

    def barred(self, now: float) -> list[tuple[Holder, float]]:
        """Who is barred, and for how many seconds from now; 0: its next call is a trial, or one is out."""
        self._forget(now)
        return [
            (holder, max(0.0, run.until - now) if run.state == "barred" else 0.0)
            for holder, run in self._runs.items()
            if run.state != "failing"
        ]

    def statistics(self, now: float) -> BlameStatistics:
        """A snapshot."""
        self._forget(now)
        return BlameStatistics(
            failing=len(self._runs),
            barred=sum(run.state != "failing" for run in self._runs.values()),
            against_upstream=self._against_upstream,
            own_doing=self._own_doing,
            refused=self._refused,
        )

    def _run(self, holder: Holder, now: float) -> _Run:
        """The holder's run, a new one if it had none; it stands last."""
        self._forget(now)
        run = self._runs.pop(holder, None)
        if run is None:
            run = _Run(now)
        self._runs[holder] = run
        run.last_at = now
        if len(self._runs) > HOLDERS:
            self._drop(next(iter(self._runs)))
        return run

    def _forget(self, now: float) -> None:
        """Let go of holders that did not fail for `MEMORY`; the oldest stand first."""
        while self._runs:
            oldest = next(iter(self._runs))
            if now - self._runs[oldest].last_at < MEMORY:
                break
            self._drop(oldest)

    def _drop(self, holder: Holder) -> None:
        self._over(holder, self._runs.pop(holder))

    def _over(self, holder: Holder, run: _Run | None) -> None:
        """The end of a run, or its excuse: who was barred by it is let in."""
        if run is not None and run.state != "failing":
            self.news.append((holder, 0.0))

    def _no_longer_answered(self, holder: Holder) -> None:
        """Who fails now bears no witness for the upstream any more: else an outage would be blamed on the first bot."""
        if holder == self._last:
            self._last, self._last_at = self._other, self._other_at
            self._other, self._other_at = None, -math.inf
        elif holder == self._other:
            self._other, self._other_at = None, -math.inf

    def _others_are_answered(self, run: _Run, now: float) -> bool:
        """Of those who were answered last this holder is none: it just failed."""
        return self._last_at > run.began_at and now - self._last_at <= ANSWERED_WITHIN

    def __repr__(self) -> str:
        barred = sum(run.state != "failing" for run in self._runs.values())
        return f"<Blame failing={len(self._runs)} barred={barred} own_doing={self._own_doing} refused={self._refused}>"
