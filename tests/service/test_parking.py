"""Where calls wait: order, stale entries, and who is looked at when prospects change."""

from __future__ import annotations

from typing import Any, cast

from sidecar.service.parking import Parking
from sidecar.service.ports import Peer


class FakeProber:
    """All breakers are closed."""

    def wants_trials(self, now: float) -> bool:
        """See `Prober`."""
        return False


class FakePool:
    """A pool by what parking asks of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prober = FakeProber()
        self.slots = 0
        self.connects_at = 0.0
        self.pokes = 0

    def can_take(self, lane: str, now: float) -> bool:
        """See `Pool`."""
        return self.slots > 0

    def may_connect_at(self) -> float:
        """See `Pool`."""
        return self.connects_at

    def poke(self) -> None:
        """See `Pool`."""
        self.pokes += 1


class FakePolicy:
    """Only a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


class FakeCall:
    """A call by what parking asks of it."""

    def __init__(self, name: str, lane: str = "entry", deadline: float = 10.0, pid: int = 1) -> None:
        self.name, self.lane, self.policy = name, lane, FakePolicy(deadline)
        self.peer = Peer(uid=1, gid=1, pid=pid)
        self.parked_in: tuple[str, ...] = ()
        self.parked_as = 0


class Yard:
    """Parking whose calls take a slot if there is one, else park again."""

    def __init__(self) -> None:
        self.parking = Parking(lambda: 0.0, cast("Any", self.look))
        self.looked: list[str] = []
        self.pools = {name: FakePool(name) for name in "ab"}

    def park(self, call: FakeCall, *pools: str) -> None:
        """Wait in these."""
        self.parking.park(cast("Any", call), cast("Any", [self.pools[name] for name in pools]))

    def look(self, call: FakeCall, now: float) -> None:
        """What a call does when it is told."""
        self.looked.append(call.name)
        pools = call.parked_in
        self.parking.unpark(cast("Any", call))
        for name in pools:
            if self.pools[name].slots:
                self.pools[name].slots -= 1
                return
        if call.policy.deadline > self.pools[pools[0]].connects_at:
            self.park(call, *pools)

    def capacity(self, name: str, slots: int) -> list[str]:
        """Something changed: who was looked at?"""
        self.looked.clear()
        self.pools[name].slots = slots
        self.parking.on_capacity(cast("Any", self.pools[name]))
        return list(self.looked)


def test_the_most_urgent_goes_first() -> None:
    """Lane, then deadline, then who came first; as many as there are slots."""
    yard = Yard()
    for call in (
        FakeCall("r", "research", 1), FakeCall("n2", "entry", 5), FakeCall("n1", "entry", 2), FakeCall("x", "exit", 9),
        FakeCall("n2b", "entry", 5),
    ):  # fmt: skip
        yard.park(call, "a")
    assert yard.parking.waiting("a") == 5
    assert yard.capacity("a", 2) == ["x", "n1"]
    assert yard.capacity("a", 9) == ["n2", "n2b", "r"]
    assert yard.parking.waiting("a") == 0
    assert yard.capacity("a", 9) == []


def test_no_slot_and_a_prospect_disturbs_nobody() -> None:
    """While the pool may connect before their deadlines, parked calls are left alone: no storm of looks."""
    yard = Yard()
    for number in range(50):
        yard.park(FakeCall(str(number)), "a")
    assert yard.capacity("a", 0) == []
    assert yard.parking.waiting("a") == 50


def test_those_that_cannot_make_it_are_told() -> None:
    """Whose deadline comes before any connection is looked at, behind whomever of a higher lane it stands."""
    yard = Yard()
    yard.park(FakeCall("patient", "exit", 10), "a")
    yard.park(FakeCall("hasty", "entry", 1), "a")
    yard.pools["a"].connects_at = 2.0
    assert yard.capacity("a", 0) == ["hasty"]
    assert yard.parking.waiting("a") == 1
    assert yard.capacity("a", 1) == ["patient"]


def test_a_call_in_two_pools_starts_once() -> None:
    """Its entry in the other heap is passed over."""
    yard = Yard()
    yard.park(FakeCall("one"), "a", "b")
    assert (yard.parking.waiting("a"), yard.parking.waiting("b")) == (1, 1)
    assert yard.capacity("b", 1) == ["one"]
    assert (yard.parking.waiting("a"), yard.parking.waiting("b")) == (0, 0)
    assert yard.capacity("a", 1) == []


def test_parked_again_and_again_it_has_one_entry_that_counts() -> None:
    """Stale entries of the same call are passed over, and thrown out when they are many."""
    yard = Yard()
    call = FakeCall("again")
    for _ in range(5000):
        yard.parking.unpark(cast("Any", call))
        yard.park(call, "a")
    assert yard.parking.waiting("a") == 1
    assert len(yard.parking._heaps["a"]) <= 1100
    assert yard.capacity("a", 1) == ["again"]
    assert yard.capacity("a", 1) == []


def test_a_flood_stands_behind_anothers_few() -> None:
    """Of one bot sixteen calls wait by deadline with everybody's; its further ones wait behind the others' few."""
    yard = Yard()
    for number in range(40):
        yard.park(FakeCall(f"flood{number}", deadline=1.0 + number / 100, pid=1), "a")
    yard.park(FakeCall("good", deadline=9.0, pid=2), "a")
    yard.pools["a"].slots = 17
    yard.parking.on_capacity(cast("Any", yard.pools["a"]))
    assert yard.looked[:17] == [*(f"flood{number}" for number in range(16)), "good"]
