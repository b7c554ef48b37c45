"""Admission: never more in flight than allowed, the better call first, the worse call shed."""

# ruff: noqa: D102  (a state machine's rules are named for what they do)

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.admission import LANES, Admission, Admitted, Queued, Shed
from sidecar.core.transitions import IllegalTransition


def admission(limit=1, queue=2):
    """One place and a queue of two, unless said."""
    return Admission(limit, queue, jitter=lambda: 0.5)


def test_places_first_then_the_queue_then_overloaded():
    """One place, a queue of two: the fourth is turned away, with a time to come back."""
    it = admission()
    assert it.offer("a", "entry", 1, 0) == Admitted()
    assert it.offer("b", "entry", 1, 0) == Queued()
    assert it.offer("c", "entry", 1, 0) == Queued()
    assert it.offer("d", "entry", 0.1, 0) == Shed("d", 0.75)
    assert repr(it) == "<Admission in_flight=1/1 queued=2/2>"
    assert (it.in_flight, it.queued) == (1, 2)


def test_the_higher_lane_goes_first_then_the_earlier_deadline_then_who_came_first():
    """Exit > entry > research; within a lane by deadline; equals in the order they came."""
    it = admission(1, 10)
    it.offer("now", "entry", 1, 0)
    for key, lane, deadline in [
        ("r", "research", 0.1, ),
        ("e2", "entry", 5),
        ("e1", "entry", 2),
        ("e3", "entry", 5),
        ("x2", "exit", 9),
        ("x1", "exit", 8),
    ]:  # fmt: skip
        it.offer(key, lane, deadline, 0)
    order, running = [], "now"
    while it.queued:
        (running,) = it.leave(running)
        order.append(running)
    assert order == ["x1", "x2", "e1", "e2", "e3", "r"]


def test_a_better_newcomer_takes_the_place_of_the_worst_of_a_lower_lane():
    """Research is shed first, there the latest deadline; the newcomer is queued in its stead."""
    it = admission(1, 3)
    it.offer("a", "entry", 1, 0)
    it.offer("e", "entry", 99, 0)
    it.offer("r1", "research", 1, 0)
    it.offer("r2", "research", 2, 0)
    assert it.offer("x", "exit", 5, 0).key == "r2"
    assert it.offer("f", "entry", 5, 0).key == "r1"
    assert it.offer("g", "entry", 0.5, 0).key == "g", "its own lane is not a lower one"
    assert it.offer("s", "research", 0.5, 0).key == "s"
    assert it.offer("y", "exit", 5, 0).key == "e"
    assert it.offer("z", "exit", 5, 0).key == "f"
    assert it.offer("w", "exit", 1, 0).key == "w"
    assert it.leave("a") == ["x"]
    assert it.statistics().shed == 7


def test_no_queue_is_allowed():
    """queue_max 0: a place or nothing."""
    it = admission(1, 0)
    it.offer("a", "entry", 1, 0)
    assert it.offer("b", "exit", 1, 0).key == "b"


def test_a_queued_call_may_go():
    """Its deadline passed or it was cancelled: it is never admitted, and its place is free."""
    it = admission(1, 2)
    for key in "abc":
        it.offer(key, "entry", 1, 0)
    it.remove("b")
    assert it.offer("d", "entry", 1, 0) == Queued()
    assert it.leave("a") == ["c"]
    assert it.statistics().queued_by_lane == {"exit": 0, "entry": 1, "research": 0}


def test_the_wrong_door_raises_and_changes_nothing():
    """Twice the same key, leaving without being in flight, removing what does not wait."""
    it = admission()
    it.offer("a", "entry", 1, 0)
    it.offer("b", "entry", 1, 0)
    before = it.statistics()
    for wrong in (
        lambda: it.offer("a", "entry", 1, 0),
        lambda: it.offer("b", "entry", 1, 0),
        lambda: it.leave("b"),
        lambda: it.leave("never"),
        lambda: it.remove("a"),
        lambda: it.remove("never"),
    ):
        with pytest.raises(IllegalTransition):
            wrong()
    assert it.statistics() == before


def test_the_limit_may_change():
    """Raised: the next ones go at once. Lowered: those above it run on, nobody follows until it is kept."""
    it = admission(1, 5)
    for key in "abcde":
        it.offer(key, "entry", 1, 0)
    assert it.resize(3, 0) == ["b", "c"]
    assert it.resize(1, 0) == []
    assert it.in_flight == 3
    assert it.leave("a") == []
    assert it.leave("b") == []
    assert it.leave("c") == ["d"]


@pytest.mark.parametrize(("limit", "queue"), [(0, 1), (-1, 1), (1, -1)])
def test_impossible_sizes_are_refused(limit, queue):
    """No place at all is a mistake, not a policy."""
    with pytest.raises(ValueError, match="at least"):
        Admission(limit, queue, jitter=lambda: 0.5)
    with pytest.raises(ValueError, match="at least"):
        admission().resize(0, 0)


class AdmissionMachine(RuleBasedStateMachine):
    """Any sequence of comings and goings, against a naive model."""

    def __init__(self):
        super().__init__()
        self.it = Admission(3, 4, jitter=lambda: 0.5)
        self.limit = 3
        self.flying, self.waiting = set(), {}
        self.count = 0

    @rule(lane=st.sampled_from(LANES), deadline=st.integers(0, 5))
    def offer(self, lane, deadline):
        self.count += 1
        key = self.count
        rank = (LANES.index(lane), deadline, key)
        said = self.it.offer(key, lane, deadline, 0)
        if len(self.flying) < self.limit:
            assert said == Admitted()
            self.flying.add(key)
            return
        self.waiting[key] = rank
        if len(self.waiting) <= 4:
            assert said == Queued()
            return
        worst = max(self.waiting, key=self.waiting.get)
        if self.waiting[worst][0] <= rank[0]:
            worst = key  # nobody of a lower lane waits
        assert said.key == worst
        assert said.retry_after > 0
        del self.waiting[worst]

    def admitted(self, keys):
        for key in keys:
            assert key == min(self.waiting, key=self.waiting.get), "the best of those that wait goes first"
            del self.waiting[key]
            self.flying.add(key)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0))
    def leave(self, which):
        key = sorted(self.flying)[which % len(self.flying)]
        self.flying.remove(key)
        self.admitted(self.it.leave(key))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def remove(self, which):
        key = sorted(self.waiting)[which % len(self.waiting)]
        del self.waiting[key]
        self.it.remove(key)

    @rule(limit=st.integers(1, 5))
    def resize(self, limit):
        self.limit = limit
        self.admitted(self.it.resize(limit, 0))

    @invariant()
    def agrees(self):
        said = self.it.statistics()
        assert (said.in_flight, said.queued) == (len(self.flying), len(self.waiting))
        assert said.queued <= 4
        assert not said.queued or said.in_flight >= self.limit, "nobody waits beside a free place"
        assert sum(said.queued_by_lane.values()) == said.queued


AdmissionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase


def test_a_flood_of_one_holder_leaves_room_for_others():
    """While another calls, one holder has three quarters of the places and of the queue at most; alone it has all."""
    it = Admission(8, 4, jitter=lambda: 0.5)
    for number in range(8):
        assert isinstance(it.offer(f"early{number}", "entry", 9, 0, holder="flood"), Admitted), "alone"
    assert isinstance(it.offer("good0", "entry", 9, 0, holder="good"), Queued)
    assert it.leave("early0") == ["good0"]
    for number in range(1, 3):
        it.leave(f"early{number}")
    assert isinstance(it.offer("late0", "entry", 9, 1, holder="flood"), Admitted)
    assert isinstance(it.offer("late1", "entry", 9, 1, holder="flood"), Queued), "six of eight"
    assert isinstance(it.offer("good1", "entry", 9, 1, holder="good"), Admitted)
    for number in range(2, 4):
        assert isinstance(it.offer(f"late{number}", "entry", 9, 1, holder="flood"), Queued)
    assert it.offer("late4", "entry", 9, 1, holder="flood") == Shed("late4", it.retry_after(), "share")
    assert isinstance(it.offer("good2", "entry", 9, 1, holder="good"), Queued)
    assert it.leave("good0") == ["good2"], "the flood is at its share"
    assert it.leave("early3") == ["late1"]
    assert isinstance(it.offer("late5", "entry", 9, 100, holder="flood"), Queued)
    for key in ("good1", "good2", "early4"):
        it.leave(key)
    assert (it.in_flight, it.queued) == (8, 0), "nobody else has called for a minute: it has all again"


def test_who_has_long_gone_keeps_no_place_free():
    """Another that called once, long ago, leaves the one that calls now all of the places, those of the queue too."""
    it = Admission(4, 4, jitter=lambda: 0.5)
    it.offer("other", "entry", 9, 0, holder="other")
    it.leave("other")
    for number in range(4):
        assert isinstance(it.offer(f"a{number}", "entry", 1999, 1000, holder="alone"), Admitted)
    assert isinstance(it.offer("a4", "entry", 1999, 1000, holder="alone"), Queued)
    assert it.leave("a0") == ["a4"]


def test_holders_that_are_over_leave_no_trace():
    """Counts of holders do not outlive their calls."""
    it = Admission(2, 2, jitter=lambda: 0.5)
    it.offer("a", "entry", 9, 0, holder=1)
    it.offer("b", "entry", 9, 0, holder=2)
    it.offer("c", "entry", 9, 0, holder=3)
    it.remove("c")
    it.leave("a")
    it.leave("b")
    assert not it._held
    assert not it._waiting
