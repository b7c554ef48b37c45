"""How many attempts of the last seconds failed or were slow, and whether chance brings that: a breaker's evidence."""

from __future__ import annotations

from typing import Final

#: The window is kept in this many slices, so that it costs the same at any rate.
SLICES: Final = 10
#: A run of failures that chance alone would bring more often than this is no outage.
CHANCE: Final = 1e-6


class Window:
    """Counts of the last `width` seconds, to a slice's precision: a slice is forgotten whole.

    Memory and time are constant. Where the clock goes back, what is added belongs to the newest slice.

    Args:
        width: seconds, more than 0.
    """

    __slots__ = ("_counts", "_newest", "_slice")

    def __init__(self, width: float) -> None:
        self._slice = width / SLICES
        self._newest = 0
        self._counts: list[list[int]] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._counts = [[0, 0, 0] for _ in range(SLICES)]

    def add(self, now: float, failed: bool, slow: bool) -> None:  # noqa: FBT001  (one caller, on each call's path)
        """An attempt ended."""
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

    def __repr__(self) -> str:
        return f"<Window of {self._slice * SLICES:g} s>"


def by_chance(run: int, total: int, failures: int, *, known: int) -> bool:
    """Whether a run of failures this long is to be expected anyway at the share of failures before it.

    At a share of one in six and thousands of calls a minute, five in a row come by chance alone, and a breaker that
    opened on it would turn a sixth into all. Without outcomes before the run there is no share: it is an outage.

    Args:
        run: failures in a row, the last ones of `total` outcomes.
        total, failures: of the window, the run included.
        known: so many outcomes before the run, at least, make a share.
    """
    before = total - run
    if before < known:
        return False
    share = max(failures - run, 1) / before
    return share**run > CHANCE
