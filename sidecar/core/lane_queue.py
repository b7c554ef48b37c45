"""Calls that wait, by lane: who goes next, who goes first when one must go, and how many stand before a newcomer.

Lanes are numbered, 0 goes first; within a lane the earlier deadline goes first, of equal ones whoever came first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator


class LaneQueue:
    """Adding and removing take time that grows with the logarithm of how many wait.

    Args:
        lanes: how many.
    """

    __slots__ = ("_lanes", "_sequence", "by_holder", "records")

    def __init__(self, lanes: int) -> None:
        # Per lane, sorted so that who goes next stands last (cheap to take): (-deadline, -sequence, key). Two of these
        # are unique together, so that keys are never compared.
        self._lanes: tuple[list[tuple[float, int, Hashable]], ...] = tuple([] for _ in range(lanes))
        #: key -> lane, place in it, holder: for reading (membership and how many, without a call)
        self.records: dict[Hashable, tuple[int, tuple[float, int, Hashable], Hashable]] = {}
        self._sequence = 0
        #: holder -> its calls here; who has none is not in it
        self.by_holder: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self.records)

    def add(self, key: Hashable, rank: int, deadline: float, holder: Hashable) -> None:
        """A call that is not here yet."""
        self._sequence += 1
        entry = (-deadline, -self._sequence, key)
        lane = self._lanes[rank]
        lane.insert(bisect_left(lane, entry), entry)
        self.records[key] = (rank, entry, holder)
        self.by_holder[holder] = self.by_holder.get(holder, 0) + 1

    def remove(self, key: Hashable) -> tuple[int, Hashable]:
        """A call that is here; its lane and its holder."""
        rank, entry, holder = self.records.pop(key)
        lane = self._lanes[rank]
        del lane[bisect_left(lane, entry)]
        one_less(self.by_holder, holder)
        return rank, holder

    def in_order(self, rank: int) -> Iterator[tuple[Hashable, Hashable]]:
        """(key, holder) of one lane, who goes first first."""
        for _, _, key in reversed(self._lanes[rank]):
            yield key, self.records[key][2]

    def before(self, rank: int, deadline: float) -> int:
        """How many would go before a call of this lane and deadline that came now."""
        lane = self._lanes[rank]
        # Of equal deadlines those that are here already go first: they stand behind it in the list.
        return self.up_to(rank - 1) + len(lane) - bisect_left(lane, (-deadline,))

    def up_to(self, rank: int) -> int:
        """How many wait in this lane and higher ones."""
        return sum(map(len, self._lanes[: rank + 1]))

    def worst_below(self, rank: int) -> Hashable | None:
        """Who must go for a call of lane `rank`: of the lowest lane the latest deadline; None: no lower one has any."""
        for lane in reversed(self._lanes[rank + 1 :]):
            if lane:
                return lane[0][2]
        return None

    def worst_of(self, holder: Hashable, rank: int) -> Hashable | None:
        """The same among the calls of one holder; takes a look at each call of the lower lanes."""
        for lane in reversed(self._lanes[rank + 1 :]):
            for _, _, key in lane:
                if self.records[key][2] == holder:
                    return key
        return None

    def counts(self) -> list[int]:
        """How many wait in each lane."""
        return [len(lane) for lane in self._lanes]


def one_less(counts: dict[Hashable, int], key: Hashable) -> None:
    """Count one down; what is at nought is not kept."""
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
