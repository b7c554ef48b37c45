"""So many log lines of one kind a second, and a count of those that were left out: a flood is no flood of the log."""

from __future__ import annotations


class Ration:
    """Of one kind of line.

    Args:
        per_second: lines that may be written in one second of the wall clock.
    """

    __slots__ = ("_left", "_left_out", "_per_second", "_second")

    def __init__(self, per_second: int) -> None:
        self._per_second = self._left = per_second
        self._left_out = 0
        self._second = -1

    def take(self, wall_us: int) -> bool:
        """Whether one more line may be written now; if not, it is counted."""
        second = wall_us // 1_000_000
        if second != self._second:
            self._second, self._left = second, self._per_second
        if self._left:
            self._left -= 1
            return True
        self._left_out += 1
        return False

    def untold(self, wall_us: int) -> int:
        """How many were left out in seconds that are over, and not told by an earlier answer of this."""
        if not self._left_out or wall_us // 1_000_000 == self._second:
            return 0
        count, self._left_out = self._left_out, 0
        return count

    def __repr__(self) -> str:
        return f"<Ration {self._left}/{self._per_second} left_out={self._left_out}>"
