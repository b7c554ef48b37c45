"""May an upstream be given an attempt now: the operator's word, its credential's patience, room under its limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from sidecar.core.concurrency import ConcurrencyLimit
from sidecar.core.outcome import CANCELLED, Kind, Outcome
from sidecar.core.throttle import Throttle
from sidecar.wire import Lane

#: Seconds of a pace after which the upstream is given few attempts at first.
LONG_PACE: Final = 0.5
#: Seconds after an exit call for which room is kept for the next one.
EXITS_REMEMBERED: Final = 3600.0
#: Seconds for which nothing is sent, at most, after an answer that said that nothing is left.
LONGEST_HOLD: Final = 1.0
SPENT: Final = Outcome(
    kind=Kind.THROTTLED,
    code="upstream_rate_limited",
    message="nothing is left of the upstream's rate limit, by its own count",
    retry="backoff",
    retryable=True,
)


class Gate:
    """One upstream's.

    Args:
        maximum: attempts at once, at most.
        adaptive: the limit follows what the upstream can take; else it stays at `maximum`, with its room for exits.
        jitter: 0 <= x < 1.
    """

    __slots__ = ("_adaptive", "_exits_until", "_paced_at", "enabled", "limit", "throttle", "throttled_by")

    def __init__(self, maximum: int, *, adaptive: bool, jitter: Callable[[], float]) -> None:
        #: False: an operator took the upstream out
        self.enabled = True
        self.limit = ConcurrencyLimit(maximum)
        self.throttle = Throttle(jitter=jitter)
        #: the last 429; None once something was answered after it
        self.throttled_by: Outcome | None = None
        self._adaptive = adaptive
        self._exits_until = -math.inf
        self._paced_at = math.inf  # when the pace began that holds, or was the last to

    def is_open(self, now: float) -> bool:
        """Neither an operator nor the upstream has said that nothing is to come now."""
        return self.enabled and (self.throttled_by is None or self.throttle.ready_at <= now)

    def has_room(self, lane: Lane, now: float) -> bool:
        """Whether it is open, and has room for an attempt of `lane`.

        Room is kept for exit calls while there are any: from one on, for an hour.
        """
        if not self.enabled:
            return False
        if self._paced_at < math.inf:
            if self.throttle.ready_at > now:
                return False
            if self.throttle.ready_at - self._paced_at >= LONG_PACE:
                self.limit.restart()  # what has been waiting is not to arrive as one
            self._paced_at = math.inf
        if lane == "exit":
            self._exits_until = now + EXITS_REMEMBERED
        elif now >= self._exits_until:
            lane = "exit"  # nobody to keep room for
        return self.limit.has_room(lane)

    def released(self, outcome: Outcome, now: float, *, slow: bool) -> bool:
        """An attempt is over. `slow`: it was overtaken by its full first-delta timeout.

        Returns:
            whether it is closed now, and was open: who waits for room waits for something else from here on.
        """
        # What says nothing leaves the limit as it is.
        self.limit.released(outcome if self._adaptive else CANCELLED, slow=slow and self._adaptive)
        if outcome.throttles:
            was_open = self.is_open(now)
            self.throttle.throttled(outcome, now)
            self.throttled_by = outcome
            self._paced_at = min(self._paced_at, now)
            return was_open and not self.is_open(now)
        elif self.throttled_by is not None and outcome.kind is Kind.SUCCESS:
            self.throttle.succeeded(now)
            if self.throttle.ready_at <= now:
                self.throttled_by = None
        return False

    def spent(self, seconds: float, now: float) -> bool:
        """By the upstream's own count nothing is left of its rate limit, for so many seconds, of which few are heeded.

        What the services say is when all of it is there again; a little of it is much sooner.

        Returns:
            whether it is closed now, and was open.
        """
        was_open = self.is_open(now)
        self.throttle.hold(min(seconds, LONGEST_HOLD), now)
        self.throttled_by = self.throttled_by or SPENT
        self._paced_at = min(self._paced_at, now)
        return was_open and not self.is_open(now)

    def throttled_for(self, now: float) -> float:
        """Seconds until the credential may be used again; 0 when it may."""
        return 0.0 if self.throttled_by is None else max(0.0, self.throttle.ready_at - now)
