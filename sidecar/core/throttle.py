"""The pace of one credential: a 429 says "not before", and says nothing against the upstream.

One instant, `ready_at`; before it nothing is sent with this credential. With Retry-After it is that, plus up to 20 %,
so that many who were told the same do not come back as one; without, full jitter that doubles with each wait that was
not enough. Throttled while a wait runs is no news (forty in flight are all refused together): only a longer
Retry-After moves it. A Retry-After below `base` that proved too short is a floor under the growing wait.

Sources: RFC 6585 and RFC 9110 (429, Retry-After), AWS (full jitter, 1 s base for throttling), gRPC A6 (the server's
word goes before the client's own backoff).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from sidecar.core.backoff import full_jitter
from sidecar.core.outcome import Outcome

#: What is added to a Retry-After at most, as a share of it.
SPREAD: Final = 0.2


class ThrottleStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot. `in_a_row`: waits since the last success; `throttled`: outcomes since the start."""

    ready_at: float
    in_a_row: int
    throttled: int


class Throttle:
    """When one credential may be used again.

    Args:
        base, cap: seconds, of the full jitter without Retry-After.
        longest: seconds; no Retry-After is taken for more.
        jitter: U(0, 1).

    Attributes:
        ready_at: instant from which it may be used; -inf when it never was throttled, possibly past. Read only.
    """

    __slots__ = ("_base", "_cap", "_grew_at", "_in_a_row", "_jitter", "_longest", "_throttled", "ready_at")

    def __init__(
        self, *, base: float = 1.0, cap: float = 30.0, longest: float = 3600.0, jitter: Callable[[], float]
    ) -> None:
        if not 0 < base <= cap <= longest:
            raise ValueError("0 < base <= cap <= longest")
        self.ready_at = -math.inf
        self._base, self._cap, self._longest = base, cap, longest
        self._jitter = jitter
        self._in_a_row = 0
        self._grew_at = -math.inf
        self._throttled = 0

    def throttled(self, outcome: Outcome, now: float) -> None:
        """An attempt, or a connect, was told to be patient."""
        self._throttled += 1
        asked = outcome.retry_after
        if asked is None or not asked > 0:
            asked = 0.0  # "now" from one who has just refused is no instant
        # The clock may stand still between many; a wait that jitter made nothing of is still one wait.
        fresh = now >= self.ready_at and now > self._grew_at
        if fresh:
            self._in_a_row += 1
            self._grew_at = now
        wait = min(self._longest, asked * (1 + SPREAD * self._jitter())) if asked else 0.0
        if fresh and (not asked or (asked < self._base and self._in_a_row > 1)):
            wait = max(wait, full_jitter(self._in_a_row, base=self._base, cap=self._cap, jitter=self._jitter))
        self.ready_at = max(self.ready_at, now + wait)

    def hold(self, seconds: float, now: float) -> None:
        """Nothing is left for the moment, by the upstream's own count: not before so many seconds, and some jitter.

        No refusal, so the next wait does not grow for it.
        """
        self.ready_at = max(self.ready_at, now + min(self._longest, seconds) * (1 + SPREAD * self._jitter()))

    def succeeded(self, now: float) -> None:
        """An attempt was answered. While a wait runs that is old news; afterwards the next wait begins small again."""
        if self._in_a_row and now >= self.ready_at:
            self._in_a_row = 0

    def credential_changed(self) -> None:
        """Another credential has limits of its own: it may be used at once."""
        self.ready_at = self._grew_at = -math.inf
        self._in_a_row = 0

    def statistics(self) -> ThrottleStatistics:
        """A snapshot."""
        return ThrottleStatistics(ready_at=self.ready_at, in_a_row=self._in_a_row, throttled=self._throttled)

    def __repr__(self) -> str:
        return f"<Throttle ready_at={self.ready_at:.3f} in_a_row={self._in_a_row} throttled={self._throttled}>"
