"""How many connects to one upstream may start per second, at any time and whatever they are for.

`core.backoff` spaces connects after what went wrong. This bounds their number where nothing is wrong for long enough
to be noticed: a server that takes everybody in and throws them out again, or calls that are given up by the hundred,
each of which closes a connection, since neither dialect can cancel.
"""

from __future__ import annotations

import math

from msgspec import Struct

from sidecar.core.backoff import Jitter

#: A token that is there but for a rounding is there.
_ROUNDING = 1e-9


class ConnectRateStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot. `room`: connects that may start now; `held_back`: how often there was none left after one."""

    room: int
    started: int
    held_back: int


class ConnectRate:
    """A token bucket: never more than `burst` + `per_second` * T connects in any T seconds. It starts full.

    Once it is empty, the next connect waits for its token and U(0, 1) of a token's time more, so that many daemons that
    ran dry together do not go on in step.

    Args:
        burst: connects at once after a quiet time, at least 1.
        per_second: connects, more than 0.
        jitter: U(0, 1).
    """

    __slots__ = ("_at", "_balance", "_burst", "_held_back", "_jitter", "_not_before", "_per_second", "_started")

    def __init__(self, *, burst: int = 16, per_second: float = 20.0, jitter: Jitter) -> None:
        if burst < 1 or not 0 < per_second < math.inf:
            raise ValueError("burst is at least 1, per_second finite and more than 0")
        self._burst, self._per_second, self._jitter = burst, per_second, jitter
        self._balance = float(burst)
        self._at = -math.inf
        self._not_before = -math.inf
        self._started = self._held_back = 0

    @property
    def next_at(self) -> float:
        """The earliest instant of the next connect; in the past (or -inf) means now."""
        return self._not_before

    def room(self, now: float) -> int:
        """Connects that may start now."""
        return 0 if now < self._not_before else max(0, int(self._level(now) + _ROUNDING))

    def started(self, now: float, count: int = 1) -> None:
        """So many connects start. Those above `room` (one that cannot wait) are owed, and paid for later."""
        if count <= 0:
            return
        self._balance = self._level(now) - count
        self._at = max(self._at, now)
        self._started += count
        if self._balance < 1:
            self._held_back += 1
            self._not_before = now + (1 - self._balance + self._jitter()) / self._per_second

    def statistics(self, now: float) -> ConnectRateStatistics:
        """A snapshot."""
        return ConnectRateStatistics(room=self.room(now), started=self._started, held_back=self._held_back)

    def _level(self, now: float) -> float:
        return min(float(self._burst), self._balance + self._per_second * max(0.0, now - self._at))

    def __repr__(self) -> str:
        return f"<ConnectRate {self._balance:.1f}/{self._burst} {self._per_second:g}/s>"
