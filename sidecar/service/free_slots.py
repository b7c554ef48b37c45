"""A pool's connections that can take a call now, the one that waited longest first."""

from __future__ import annotations

from collections import deque

from sidecar.service.connection import Connection


class FreeSlots:
    """A queue in which each connection stands at most once, for as long as it has a free slot."""

    def __init__(self) -> None:
        self._queue: deque[Connection] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def any(self) -> bool:
        """Whether `take` would give something."""
        return any(connection.free for connection in self._queue)

    def oldest(self) -> Connection | None:
        """The one that would be taken first, taken or not."""
        return self._queue[0] if self._queue else None

    def put(self, connection: Connection) -> None:
        """Let it stand in the queue if it can take a call and does not stand there yet."""
        if connection.free and not connection.in_rotation:
            connection.in_rotation = True
            self._queue.append(connection)

    def remove(self, connection: Connection) -> None:
        """It is gone."""
        if connection.in_rotation:
            connection.in_rotation = False
            self._queue.remove(connection)

    def take(self, avoid: frozenset[int], not_on: frozenset[int] = frozenset()) -> Connection | None:
        """The first one; one of `avoid` only when there is no other, one of `not_on` never. None when there is none."""
        queue = self._queue
        skipped: list[Connection] = []
        found = None
        while queue:
            connection = queue.popleft()
            connection.in_rotation = False
            if not connection.free:
                continue  # taken, draining or gone since: whoever frees it puts it back
            if connection.key in avoid or connection.key in not_on:
                skipped.append(connection)
                continue
            found = connection
            break
        if found is None and skipped:
            found = next((connection for connection in skipped if connection.key not in not_on), None)
            if found is not None:
                skipped.remove(found)
        for connection in skipped:
            self.put(connection)
        return found
