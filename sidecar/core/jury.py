"""Two judges of one target (`core.blame`), by process and by user: a failure counts unless either says it is own doing.

A poisonous job may be a new process for each call; a user may have one poisonous bot beside good ones.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.core.blame import Blame, BlameStatistics


class Jury:
    """See the module. A holder is (uid, pid). Args: `jitter`: U(0, 1)."""

    __slots__ = ("_processes", "_users")

    def __init__(self, *, jitter: Callable[[], float]) -> None:
        self._processes: Blame[tuple[int, int]] = Blame(jitter=jitter)
        self._users: Blame[int] = Blame(jitter=jitter)

    def succeeded(self, holder: tuple[int, int], now: float) -> None:
        """See `Blame.succeeded`."""
        self._processes.succeeded(holder, now)
        self._users.succeeded(holder[0], now)

    def failed(self, holder: tuple[int, int], now: float) -> bool:
        """See `Blame.failed`."""
        counts = self._processes.failed(holder, now)
        return self._users.failed(holder[0], now) and counts

    def late(self, holder: tuple[int, int], now: float) -> bool:
        """See `Blame.late`."""
        counts = self._processes.late(holder, now)
        return self._users.late(holder[0], now) and counts

    def refused_for(self, holder: tuple[int, int], now: float) -> float:
        """See `Blame.refused_for`."""
        wait = self._users.refused_for(holder[0], now)
        if wait:
            return wait
        wait = self._processes.refused_for(holder, now)
        if wait:
            self._users.give_back(holder[0], now)
        return wait

    def give_back(self, holder: tuple[int, int], now: float) -> None:
        """See `Blame.give_back`."""
        self._processes.give_back(holder, now)
        self._users.give_back(holder[0], now)

    def news(self) -> list[tuple[int, int | None, float]]:
        """Who was barred and let in since this was last asked: uid, pid (None: the whole user), seconds (0: let in)."""
        users, processes = self._users.news, self._processes.news
        if not (users or processes):  # as nearly always: this is asked at each attempt's end
            return []
        told = [*((uid, None, seconds) for uid, seconds in users), *((*who, seconds) for who, seconds in processes)]
        users.clear()
        processes.clear()
        return told

    def barred(self, now: float) -> list[tuple[int, int | None, float]]:
        """Who is barred, as `news` says it; 0 seconds: its next call is a trial, or one is out."""
        users, processes = self._users.barred(now), self._processes.barred(now)
        return [*((uid, None, left) for uid, left in users), *((*who, left) for who, left in processes)]

    def statistics(self, now: float) -> BlameStatistics:
        """Of the processes."""
        return self._processes.statistics(now)

    def __repr__(self) -> str:
        return f"<Jury processes={self._processes!r} users={self._users!r}>"
