"""How many calls a bot may make in a minute, strictly: an operator's brake, not a way of shaping traffic.

Calls are counted in slices of a second, and a slice is forgotten when its last instant lies more than a minute back:
in no 60 s, wherever they begin, are there more than the limit. The price of 61 counters instead of the instants of all
calls: one call may be remembered for up to a second longer.
"""

from __future__ import annotations

import math
from typing import Final

#: Seconds, and slices of a second that reach into any such window: those before the present one, and it.
WINDOW: Final = 60
_SLICES: Final = WINDOW + 1


class CallRate:
    """At most `per_minute` calls in any 60 s. Constant memory; a call costs one look, whatever the limit.

    Args:
        per_minute: at least 1.
    """

    __slots__ = ("_counts", "_now", "_taken", "per_minute")

    def __init__(self, per_minute: int) -> None:
        if per_minute < 1:
            raise ValueError("per_minute is at least 1")
        self.per_minute = per_minute
        self._counts = [0] * _SLICES  # of second s at s modulo their number
        self._now: int | None = None  # the second of the last look
        self._taken = 0  # in all of them

    def take(self, now: float) -> float:
        """May another call be made? `now` is an instant.

        Returns:
            0.0: yes, and it is counted. Else no, and nothing is: seconds until one may be (not jittered), up to 61.
        """
        second = self._look(now)
        if self._taken < self.per_minute:
            self._counts[second % _SLICES] += 1
            self._taken += 1
            return 0.0
        oldest = next(s for s in range(second - WINDOW, second + 1) if self._counts[s % _SLICES])
        return oldest + _SLICES - now

    def counted(self, now: float) -> int:
        """Calls that count against the limit now."""
        self._look(now)
        return self._taken

    def _look(self, now: float) -> int:
        """The second of `now`, with what is older than a minute forgotten; a clock that went back stands still."""
        second = math.floor(now)
        if self._now is None:
            self._now = second
        elif second > self._now:
            for old in range(self._now + 1, min(second, self._now + _SLICES) + 1):
                self._taken -= self._counts[old % _SLICES]
                self._counts[old % _SLICES] = 0
            self._now = second
        return self._now

    def __repr__(self) -> str:
        return f"<CallRate {self._taken}/{self.per_minute}>"
