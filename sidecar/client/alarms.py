"""When the client gives a call or a question up: a heap that tolerates ended entries and moved deadlines. Pure."""

from __future__ import annotations

import heapq
import math
from typing import Any


class Alarms:
    """Items with an `expire_at` that may move later unseen; `over` says which need no alarm any more.

    Looking costs nothing per token: `earliest` is read by every pass, the rest only when that instant has come.
    """

    __slots__ = ("_count", "_heap", "earliest")

    def __init__(self) -> None:
        #: no item is due before this instant
        self.earliest = math.inf
        self._heap: list[tuple[float, int, Any]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, item: Any, *, alive: int, over: Any) -> None:
        """Watch an item; `alive` is how many there are that are not over."""
        self._count += 1  # a tie-breaker: heapq must never compare two calls
        heapq.heappush(self._heap, (item.expire_at, self._count, item))
        if len(self._heap) > 64 + 4 * alive:
            # Ended calls with far deadlines would pile up behind an early one, texts and all.
            self._heap = [entry for entry in self._heap if not over(entry[2])]
            heapq.heapify(self._heap)
        self.earliest = self._heap[0][0] if self._heap else math.inf

    def next_at(self, over: Any) -> float | None:
        """The instant the first item is due, None when there is none."""
        heap = self._heap
        found: float | None = None
        while heap:
            at, number, item = heap[0]
            if over(item):
                heapq.heappop(heap)
            elif item.expire_at > at:  # it was handed over, or `accepted` told a later deadline
                heapq.heapreplace(heap, (item.expire_at, number, item))
            else:
                found = at
                break
        self.earliest = math.inf if found is None else found
        return found

    def first(self) -> Any:
        """The item that `next_at` spoke of."""
        return self._heap[0][2]
