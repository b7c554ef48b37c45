"""How long to wait: before a call tries the same upstream again, and before a pool connects again.

`call_backoff` is for calls, `ConnectBackoff` for connects; the two never mix. Jitter shapes the peak of a storm, it
does not bound its volume: that is the budget's work (`core.retry`) and, for connects, that of `core.connect_rate`.

`ConnectBackoff` keeps one of these states:

    | state | event | state after |
    |---|---|---|
    | steady | lost, failed | waiting |
    | steady, waiting | refused (failed, by its credential) | refused |
    | waiting | lost, failed | waiting |
    | refused | failed (once its wait is over) | waiting |
    | refused | lost, refused | refused |
    | any | connected | steady |
    | refused | credential_changed | steady; elsewhere it changes nothing |

Source: AWS, "Exponential Backoff And Jitter" (full and decorrelated). Figures, of 1,000 simulated clients after 30 s of
outage, as the peak of handshakes to their mean: 65 without jitter, 17 with full jitter, 7.8 decorrelated; after a
graceful close 22.8 without a first delay, 1.7 with U(0, 5 s).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct

from sidecar.core.outcome import Kind, Outcome
from sidecar.core.transitions import Table
from sidecar.errors import ConnectionLost, UpstreamFault

Jitter = Callable[[], float]
State = Literal["steady", "waiting", "refused"]

TRANSITIONS: Final[Table[State]] = Table(
    "connect backoff",
    {
        ("steady", "lost"): "waiting",
        ("steady", "failed"): "waiting",
        ("steady", "refused"): "refused",
        ("steady", "connected"): "steady",
        ("steady", "credential_changed"): "steady",
        ("waiting", "lost"): "waiting",
        ("waiting", "failed"): "waiting",
        ("waiting", "refused"): "refused",
        ("waiting", "connected"): "steady",
        ("waiting", "credential_changed"): "waiting",
        ("refused", "lost"): "refused",
        ("refused", "failed"): "waiting",
        ("refused", "refused"): "refused",
        ("refused", "connected"): "steady",
        ("refused", "credential_changed"): "steady",
    },
)

#: Close codes by which a server goes in good order: everybody connected to it comes back at once.
GRACEFUL: Final = frozenset({1001, 1012, 1013})

#: Seconds after a loss by which the others of the same outage have been noticed too.
LONE_LOSS_AFTER: Final = 0.05

#: Seconds, the longest first wait of a call: before a second try after a failure, and at an upstream that asked for
#: patience (AWS: 50 ms for transient errors, 1 s for throttling). `CAP`: the longest wait.
TRANSIENT_BASE: Final = 0.1
THROTTLED_BASE: Final = 1.0
CAP: Final = 2.0


def full_jitter(attempt: int, *, base: float = 0.1, cap: float = 2.0, jitter: Jitter) -> float:
    """Seconds before the next try: U(0, min(cap, base * 2^(attempt-1))). (AWS, full jitter)

    Args:
        attempt: the number of the attempt that failed, from 1.
        base: seconds, the longest first wait.
        cap: seconds, the longest wait.
        jitter: U(0, 1).
    """
    return jitter() * min(cap, math.ldexp(base, min(max(attempt, 1), 64) - 1))


def call_backoff(count: int, outcome: Outcome, remaining: float, jitter: Jitter) -> float:
    """Seconds before a call may try the same upstream again.

    Full jitter from a base by the outcome's kind, scaled down to what remains: a call of 300 ms cannot wait out 2 s.
    The longest first wait is an eighth of what remains, the longest of all a half. A Retry-After is a floor, plus
    U(0, 20 %), and not scaled: the caller sees whether it still fits.

    Args:
        count: how often this call lost an attempt there, from 1.
        outcome: of the last one.
        remaining: seconds until the deadline.
        jitter: U(0, 1).

    Returns:
        0 for the first outcome that says "now"; from the second on `LONE_LOSS_AFTER`: a server that goes away says so
        on all of its connections in one moment, and a call that hurries from one to the next would meet it on each.
        inf for one after which that upstream is not asked again.
    """
    if outcome.retry in {"never", "next_target"}:
        return math.inf
    wait = 0.0 if count < 2 else min(LONE_LOSS_AFTER, max(0.0, remaining) / 8)
    if outcome.retry == "backoff" or outcome.retry_after is not None:
        remaining = max(0.0, remaining)
        base = THROTTLED_BASE if outcome.kind is Kind.THROTTLED else TRANSIENT_BASE
        wait = full_jitter(count, base=min(base, remaining / 8), cap=min(CAP, remaining / 2), jitter=jitter)
    if outcome.retry_after is not None:
        wait = max(wait, outcome.retry_after * (1.0 + 0.2 * jitter()))
    return wait


class BackoffStatistics(Struct, frozen=True, kw_only=True):
    """`delay` is the last one drawn, in seconds; `next_attempt_at` an instant, possibly past."""

    state: State
    failures: int
    delay: float
    next_attempt_at: float


class ConnectBackoff:
    """When the next connect to one upstream may start.

    - The first loss of an outage draws U(0, 1 s), or U(0, 5 s) when the server went in good order (then all its
      clients come back at once); further losses of the same outage draw nothing new.
    - Failed connects draw decorrelated jitter, min(cap, U(base, 3 * previous)).
    - A connection that stood for less than `stable_after` does not reset the growth, and the wait after its loss is not
      lifted by those that were being made meanwhile: a server that takes everybody in and throws them out again is
      down.
    - `Retry-After` is a floor, plus U(0, 20 %); neither a success elsewhere nor a new credential lowers it.
    - A refused credential waits decorrelated `refused_base` .. `refused_cap`, until it changes.

    Args:
        base, cap: seconds, of the decorrelated jitter.
        lost_spread, graceful_spread: seconds, of the first delay.
        stable_after: seconds.
        refused_base, refused_cap: seconds.
        longest_floor: seconds; no Retry-After is taken for more. A connect in so many is no storm, and a proxy that
            says "tomorrow" is mostly wrong.
    """

    def __init__(
        self,
        *,
        base: float = 0.25,
        cap: float = 10.0,
        lost_spread: float = 1.0,
        graceful_spread: float = 5.0,
        stable_after: float = 60.0,
        refused_base: float = 30.0,
        refused_cap: float = 300.0,
        longest_floor: float = 300.0,
    ) -> None:
        self._base, self._cap = base, cap
        self._lost_spread, self._graceful_spread = lost_spread, graceful_spread
        self._stable_after = stable_after
        self._refused_base, self._refused_cap = refused_base, refused_cap
        self._longest_floor = longest_floor
        self._state: State = "steady"
        self._delay_until = -math.inf
        self._floor_until = -math.inf
        self._unstable_until = -math.inf  # the wait after the loss of a connection that did not last
        self._previous: float | None = None  # last decorrelated draw; None: no growth to remember
        self._spread = 0.0  # of the last first delay
        self._lost_at: float | None = None  # the loss whose first delay is being waited for; None after anything worse
        self._up_since: float | None = None
        self._failures = 0
        self._delay = 0.0

    @property
    def next_attempt_at(self) -> float:
        """The earliest instant of the next connect; in the past (or -inf) means now."""
        return max(self._floor_until, self._delay_until)

    @property
    def early_attempt_at(self) -> float:
        """The earliest instant of a connect while other connections of this upstream stand.

        Losing one of many is no outage: once `LONE_LOSS_AFTER` has passed and the others still stand, the first delay
        is not for its replacement. After a failed connect, or one that did not last, this is `next_attempt_at`.
        """
        if self._lost_at is None:
            return self.next_attempt_at
        return max(self._floor_until, min(self._delay_until, self._lost_at + LONE_LOSS_AFTER))

    @property
    def early_spare_at(self) -> float:
        """As `early_attempt_at`, for a spare that nobody waits for.

        A graceful close (1001, 1012) is how a service empties a node: many hosts lose one of many at the same instant,
        and their spares must not come back as one.
        """
        return self.next_attempt_at if self._spread >= self._graceful_spread else self.early_attempt_at

    @property
    def only_lost(self) -> bool:
        """Connects work, as far as known: what delays the next is the loss of a connection, or nothing."""
        return self._lost_at is not None or self._state == "steady"

    @property
    def refused(self) -> bool:
        """The credential was refused, and neither a connect nor a new credential has mended it."""
        return self._state == "refused"

    def connected(self, now: float) -> None:
        """A connect succeeded: others may follow at once (how many, `pool_policy` says).

        Not if one was lost lately that did not last: whether this one does is not known yet.
        """
        if self._state == "refused":
            self._previous = None
        self._state = TRANSITIONS.after(self._state, "connected")
        self._failures = 0
        self._lost_at = None
        self._delay_until = max(min(self._delay_until, now), self._unstable_until)
        if self._up_since is None:
            self._up_since = now

    def failed(self, outcome: Outcome, now: float, jitter: Jitter) -> None:
        """A connect failed. Several that fail while one delay runs (a first handful, together) grow it once."""
        self._failures += 1
        self._lost_at = None
        if outcome.retry_after is not None:
            asked = min(outcome.retry_after, self._longest_floor)
            self._floor_until = max(self._floor_until, now + asked * (1 + 0.2 * jitter()))
        running = self._delay_until > now
        if running and (self._state == "refused" or not outcome.credential_refused):
            if self._state == "steady":  # one that was taken in meanwhile
                self._state = TRANSITIONS.after(self._state, "failed")
            return
        if self._up_since is not None and now - self._up_since >= self._stable_after:
            self._previous = None
        self._up_since = None
        before = self._state
        self._state = TRANSITIONS.after(before, "refused" if outcome.credential_refused else "failed")
        if self._state == "refused":
            previous = self._previous if before == "refused" and self._previous else self._refused_base
            self._previous = delay = _decorrelated(self._refused_base, self._refused_cap, previous, jitter)
        elif self._previous is None or before == "refused":
            self._previous, delay = self._base, self._lost_spread * jitter()
        else:
            self._previous = delay = _decorrelated(self._base, self._cap, self._previous, jitter)
        self._wait(now, delay)

    def lost(self, fault: UpstreamFault, now: float, jitter: Jitter, *, lived: float | None = None) -> None:
        """A connection that stood is gone, and not by our doing.

        Args:
            fault: how.
            now: instant.
            jitter: U(0, 1).
            lived: seconds that this connection stood, when known. Without it, the time since the first success.
        """
        if lived is None:
            lived = math.inf if self._up_since is None else now - self._up_since
        graceful = isinstance(fault, ConnectionLost) and fault.how == "close" and fault.close_code in GRACEFUL
        spread = self._graceful_spread if graceful else self._lost_spread
        first = self._state == "steady" and now >= self._unstable_until
        self._state = TRANSITIONS.after(self._state, "lost")
        self._up_since = None
        if not first:
            # A straggler of the same outage. Only a wider kind of outage than the one drawn for is news.
            if self._lost_at is not None and self._spread < spread:
                self._spread = spread
                self._wait(now, max(self._delay_until - now, spread * jitter()))
            return
        self._spread = spread
        delay = spread * jitter()
        if lived >= self._stable_after:
            self._previous = self._base
            self._lost_at = now
        else:
            self._previous = _decorrelated(self._base, self._cap, self._previous or self._base, jitter)
            delay = max(delay, self._previous)
            self._unstable_until = now + delay
        self._wait(now, delay)

    def credential_changed(self) -> None:
        """Another credential is there: if the old one was refused, try at once."""
        if self._state == "refused":
            self._delay_until = -math.inf
            self._previous = None
        self._state = TRANSITIONS.after(self._state, "credential_changed")

    def told_to_try(self) -> None:
        """An operator says that it is worth a try: what was told before is older."""
        self._delay_until = self._floor_until = self._unstable_until = -math.inf

    def statistics(self) -> BackoffStatistics:
        """A snapshot."""
        return BackoffStatistics(
            state=self._state, failures=self._failures, delay=self._delay, next_attempt_at=self.next_attempt_at
        )

    def _wait(self, now: float, delay: float) -> None:
        self._delay = delay
        self._delay_until = now + delay

    def __repr__(self) -> str:
        return f"<ConnectBackoff {self._state} failures={self._failures} delay={self._delay:.3f}>"


def _decorrelated(base: float, cap: float, previous: float, jitter: Jitter) -> float:
    # The range is clamped, not the draw: else two thirds of all draws are the cap, and hosts come back in step.
    return base + (min(cap, 3 * previous) - base) * jitter()
