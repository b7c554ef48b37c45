"""Admission: never more in flight than allowed, the better call first, the worse call shed."""

# ruff: noqa: D102  (a state machine's rules are named for what they do)

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.admission import LANES, Admission, Admitted, Queued, Shed, Unreachable
from sidecar.core.transitions import IllegalTransition


def admission(limit=1, queue=2):
    """One place and a queue of two, unless said."""
    return Admission(limit, queue, jitter=lambda: 0.5)


def expected_wait(it, lane, now):
    """Seconds that a call of a holder below its share, offered now with a late deadline, waits; 0: a place is free.

    What decides that a call is `Unreachable`, for calls that nobody offers.
    """
    exits = lane == "exit"
    if len(it._in_flight) < it._max and (exits or it._ordinary < it._room):
        return 0.0
    return it._wait_behind(it._queue.up_to(LANES.index(lane)), now, exits=exits)


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
        (running,) = it.leave(running, 0)
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
    assert it.leave("a", 0) == ["x"]
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
    assert it.leave("a", 0) == ["c"]
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
        lambda: it.leave("b", 0),
        lambda: it.leave("never", 0),
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
    assert it.leave("a", 0) == []
    assert it.leave("b", 0) == []
    assert it.leave("c", 0) == ["d"]


@pytest.mark.parametrize(("limit", "queue", "reserved"), [(0, 1, 0), (-1, 1, 0), (1, -1, 0), (1, 1, 1), (2, 2, -1)])
def test_impossible_sizes_are_refused(limit, queue, reserved):
    """No place at all is a mistake, not a policy; exit calls cannot have all of them."""
    with pytest.raises(ValueError, match="at least"):
        Admission(limit, queue, jitter=lambda: 0.5, exit_reserved=reserved)
    with pytest.raises(ValueError, match="at least"):
        admission().resize(0, 0)


class AdmissionMachine(RuleBasedStateMachine):
    """Any sequence of comings and goings, against a naive model that looks at everybody each time."""

    @initialize(size=st.sampled_from([(3, 0, 4), (4, 1, 4), (6, 2, 5), (8, 3, 2), (2, 1, 0), (1, 0, 3)]))
    def begin(self, size):
        self.limit, self.reserved, self.queue_max = size
        self.it = Admission(self.limit, self.queue_max, jitter=lambda: 0.5, exit_reserved=self.reserved)
        self.now, self.count, self.left = 1000.0, 0, 0
        self.flying = {}  # key -> (lane, holder)
        self.waiting = {}  # key -> (rank, deadline, key, lane, holder): sorted as who goes first
        self.called = {}  # holder -> when it called last
        self.outcomes = {"admitted": 0, "shed": 0, "unreachable": 0}

    # the model

    def held(self, holder=None, exits=None):
        return sum(
            1 for lane, whose in self.flying.values()
            if holder in (None, whose) and exits in (None, lane == "exit")
        )  # fmt: skip

    def room(self):
        return self.limit - min(self.reserved, self.limit - 1)

    def free(self, lane):
        return len(self.flying) < self.limit and (lane == "exit" or self.held(exits=False) < self.room())

    def crowded(self, holder):
        return any(self.now - at < 60 for whose, at in self.called.items() if whose != holder)

    def below_share(self, holder, lane):
        total, exits = self.held(holder), self.held(holder, exits=True)
        if lane == "exit":
            return total < 0.75 * self.limit or exits < 0.75 * (self.limit - self.room())
        return total < 0.75 * self.limit and total - exits < 0.75 * self.room()

    def may_go(self, key):
        _, _, _, lane, holder = self.waiting[key]
        return self.free(lane) and (not self.crowded(holder) or self.below_share(holder, lane))

    def admitted(self, keys):
        """Each was the best of those that might go, and nobody who might go is left."""
        for key in keys:
            assert key == min(filter(self.may_go, self.waiting), key=self.waiting.get)
            _, _, _, lane, holder = self.waiting.pop(key)
            self.flying[key] = (lane, holder)
            self.outcomes["admitted"] += 1
        assert not any(map(self.may_go, self.waiting)), "nobody waits while a place it may use is free"

    # what happens

    @rule(
        lane=st.sampled_from(LANES), timeout=st.integers(0, 5), holder=st.sampled_from("aaab"),
        usual=st.sampled_from([None, None, 0.0, 2.0]),
    )  # fmt: skip
    def offer(self, lane, timeout, holder, usual):
        self.count += 1
        key, deadline = self.count, self.now + timeout
        waits = {each: expected_wait(self.it, each, self.now) for each in LANES}
        own_waiting = {k: w for k, w in self.waiting.items() if w[4] == holder}
        said = self.it.offer(key, lane, deadline, self.now, holder=holder, usual=usual)
        self.called[holder] = self.now
        goes = (not self.crowded(holder) and not own_waiting) or self.below_share(holder, lane)
        if self.free(lane) and goes:
            assert said == Admitted()
            self.flying[key] = (lane, holder)
            self.outcomes["admitted"] += 1
            return
        exits = self.held(exits=True)
        assert not (lane == "exit" and exits < 0.75 * self.reserved and len(self.flying) < self.limit), "its own places"
        others, full = self.waiting, None
        if self.crowded(holder) and len(own_waiting) >= max(1.0, 0.75 * self.queue_max):
            others, full = own_waiting, "share"
        elif len(self.waiting) >= self.queue_max:
            full = "full"
        rank = LANES.index(lane)
        loser = max(others, key=others.get) if full and others else None
        if full and (loser is None or self.waiting[loser][0] <= rank):
            self.shed(said, key, full)
            return
        if isinstance(said, Unreachable):
            assert self.left >= 8, "of a guess nobody is told that it cannot make it"
            assert usual is not None
            assert said.key == key
            assert said.retry_after > 0
            ahead = sum(1 for other in self.waiting.values() if other < (rank, deadline, key))
            assert ahead <= sum(1 for other in self.waiting.values() if other[0] <= rank)
            if self.free(lane):  # it is at its share: one of its own must leave first
                assert self.held(holder) >= 0.75 * self.room()
            else:
                assert self.now + waits[lane] + usual > deadline
            self.outcomes["unreachable"] += 1
            return
        assert usual is None or self.left < 8 or self.now + usual <= deadline
        self.waiting[key] = (rank, deadline, key, lane, holder)
        if full:
            self.shed(said, loser, "displaced")
            del self.waiting[loser]
        else:
            assert said == Queued()
            assert all(expected_wait(self.it, each, self.now) >= waits[each] for each in LANES), "behind one more"

    def shed(self, said, key, reason):
        assert (said.key, said.reason) == (key, reason)
        assert said.retry_after > 0
        self.outcomes["shed"] += 1

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0, 61.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0))
    def leave(self, which):
        key = sorted(self.flying)[which % len(self.flying)]
        del self.flying[key]
        self.left += 1
        self.admitted(self.it.leave(key, self.now))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def remove(self, which):
        key = sorted(self.waiting)[which % len(self.waiting)]
        del self.waiting[key]
        self.it.remove(key)

    @rule(limit=st.integers(1, 9))
    def resize(self, limit):
        self.limit = limit
        self.admitted(self.it.resize(limit, self.now))

    @invariant()
    def agrees(self):
        said = self.it.statistics()
        assert (said.in_flight, said.queued) == (len(self.flying), len(self.waiting))
        assert said.exit_in_flight == self.held(exits=True)
        assert said.queued <= self.queue_max
        assert (said.max_in_flight, said.exit_reserved) == (self.limit, self.limit - self.room())
        lanes = [waiting[3] for waiting in self.waiting.values()]
        assert said.queued_by_lane == {lane: lanes.count(lane) for lane in LANES}
        assert self.outcomes == {"admitted": said.admitted, "shed": said.shed, "unreachable": said.unreachable}
        whose = [holder for _, holder in self.flying.values()]
        behind = [waiting[4] for waiting in self.waiting.values()]
        assert self.it.holders() == {h: (whose.count(h), behind.count(h)) for h in {*whose, *behind}}

    @invariant()
    def waits_make_sense(self):
        waits = [expected_wait(self.it, lane, self.now) for lane in LANES]
        assert all(0 <= wait < math.inf for wait in waits)
        assert waits == sorted(waits), "a higher lane never waits longer"
        assert [wait == 0 for wait in waits] == [self.free(lane) for lane in LANES]


AdmissionMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase


def test_exit_calls_have_places_of_their_own():
    """Research takes all but what is kept; exit calls go at once, up to all that is left; the rest of them go first."""
    it = Admission(8, 9, jitter=lambda: 0.5, exit_reserved=2)
    for number in range(6):
        assert isinstance(it.offer(f"r{number}", "research", 9, 0), Admitted)
    assert isinstance(it.offer("e", "entry", 9, 0), Queued)
    for number in range(2):
        assert isinstance(it.offer(f"x{number}", "exit", 9, 0), Admitted)
    assert isinstance(it.offer("x2", "exit", 99, 0), Queued)
    assert it.leave("r0", 0) == ["x2"]
    assert it.leave("x0", 0) == ["e"]
    assert (it.statistics().exit_in_flight, it.statistics().in_flight) == (2, 8)
    assert it.leave("x1", 0) == []
    assert isinstance(it.offer("f", "entry", 9, 0), Queued), "the free place is not its"


def test_a_flood_of_research_does_not_lock_its_own_holder_out_of_exit():
    """A holder that is at its share by research has three quarters of the places kept for exit calls, and no more."""
    it = Admission(16, 9, jitter=lambda: 0.5, exit_reserved=4)
    it.offer("other", "entry", 9, 0, holder="other")
    for number in range(9):
        assert isinstance(it.offer(f"r{number}", "research", 9, 0, holder="flood"), Admitted), "of twelve"
    assert isinstance(it.offer("r9", "research", 9, 0, holder="flood"), Queued)
    assert [type(it.offer(f"x{number}", "exit", 9, 0, holder="flood")) for number in range(5)] == [
        Admitted, Admitted, Admitted, Queued, Queued
    ]  # fmt: skip
    assert isinstance(it.offer("y", "exit", 9, 0, holder="other"), Admitted)
    assert it.leave("y", 0) == []
    assert it.leave("x0", 0) == ["x3"]
    assert it.leave("r0", 0) == ["x4"], "fewer than twelve of sixteen in all"


def test_of_a_full_share_of_the_queue_the_holder_loses_its_own_worst():
    """An exit call of whoever floods the queue with research displaces that research, nobody else's."""
    it = Admission(1, 4, jitter=lambda: 0.5)
    it.offer("a", "entry", 9, 0, holder="other")
    it.offer("b", "research", 99, 0, holder="other")
    for number in range(3):
        assert isinstance(it.offer(f"r{number}", "research", number, 0, holder="flood"), Queued)
    assert it.offer("r3", "research", 9, 0, holder="flood") == Shed("r3", it.retry_after(), "share")
    assert it.offer("x", "exit", 9, 0, holder="flood") == Shed("r2", it.retry_after(), "displaced")
    assert it.statistics().queued_by_lane == {"exit": 1, "entry": 0, "research": 3}


def settled(hold, limit=4, queue=100, reserved=0):
    """An admission that has learnt how long its calls take; time is at 1000, all is free."""
    it = Admission(limit, queue, jitter=lambda: 0.0, exit_reserved=reserved)
    for number in range(400):
        it.offer(number, "entry", 9999, 1000 - hold)
        it.leave(number, 1000)
    return it


def test_how_long_calls_keep_their_place_is_learnt():
    """From the mean of those that left; until eight have left it is a guess."""
    it = Admission(1, 1, jitter=lambda: 0.0, hold=0.3)
    it.offer("a", "entry", 9, 0)
    assert expected_wait(it, "exit", 0) == pytest.approx(0.3)
    it.leave("a", 0.9)
    assert it.statistics().hold == pytest.approx(0.6), "the guess counts as one"
    assert settled(5.0).statistics().hold == pytest.approx(5, rel=1e-3)
    assert settled(0.0).retry_after() >= 0.004, "nobody is told to come back at once"


def test_how_long_one_would_wait():
    """So many must leave first, and places of them leave in each hold: by lane, and 0 while a place is free."""
    it = settled(2.0, limit=4, reserved=1)
    for number in range(3):
        assert expected_wait(it, "entry", 1000) == 0
        it.offer(f"e{number}", "entry", 9999, 1000)
    assert expected_wait(it, "exit", 1000) == 0
    assert expected_wait(it, "research", 1000) == pytest.approx(2 / 3, rel=1e-3)
    it.offer("x", "exit", 9999, 1000)
    assert expected_wait(it, "exit", 1000) == pytest.approx(2 / 4, rel=1e-3)
    for number in range(5):
        it.offer(f"q{number}", "entry", 9999, 1000)
    it.offer("x2", "exit", 9999, 1000)
    waits = [expected_wait(it, lane, 1000) for lane in LANES]
    assert waits == pytest.approx([2 * 2 / 4, 7 * 2 / 3, 7 * 2 / 3], rel=1e-3)
    assert expected_wait(it, "exit", 1010) == pytest.approx(2 * 10 / 4), "nobody has left for ten seconds"


def test_a_call_that_cannot_make_it_is_told_so_at_once():
    """Wait plus the usual time to the first delta do not fit: unreachable, and nothing is displaced for it."""
    it = settled(2.0, limit=1, queue=2)
    it.offer("a", "entry", 9999, 1000)
    assert isinstance(it.offer("b", "entry", 1009, 1000, usual=1.0), Queued)
    late = it.offer("c", "entry", 1004.5, 1000, usual=3.0)
    assert late == Unreachable("c", pytest.approx(0.5, rel=1e-2)), "before b it waits two seconds"
    assert isinstance(it.offer("c", "entry", 1005.5, 1000, usual=3.0), Queued)
    assert it.offer("d", "entry", 1000, 1000, usual=0.0).reason == "full", "it would not be queued either"
    it.remove("c")
    it.offer("r", "research", 1099, 1000)
    assert it.offer("x", "exit", 1001, 1000, usual=0.0).key == "x"
    assert it.queued == 2, "no room is made for it"
    assert isinstance(it.offer("x", "exit", 1001, 1000), Shed), "without `usual` it may wait however long"
    assert it.statistics().unreachable == 2


def test_of_a_guess_nobody_is_told_that_it_cannot_make_it():
    """Only when eight calls have left is `hold` known well enough."""
    it = Admission(1, 9, jitter=lambda: 0.0, hold=100)
    for number in range(9):
        it.offer(number, "entry", 9, 0)
        said = it.offer("late", "entry", 0.01, 0, usual=0.0)
        if number < 8:
            assert said == Queued()
            it.remove("late")
            it.leave(number, 0)
        else:
            assert isinstance(said, Unreachable)


def test_what_is_passed_over_does_not_stand_before_anybody():
    """Calls of a holder at its share do not count for another that has to queue, too."""
    it = settled(2.0, limit=4, queue=100)
    it.offer("g0", "entry", 9999, 1000, holder="good")
    for number in range(23):
        it.offer(f"f{number}", "entry", 9000, 1000, holder="flood")
    assert it.holders() == {"good": (1, 0), "flood": (3, 20)}
    assert isinstance(it.offer("g1", "entry", 9999, 1000, holder="good"), Queued)
    assert isinstance(it.offer("g2", "entry", 1002, 1000, holder="good", usual=0.0), Queued)
    assert isinstance(it.offer("f", "entry", 1000.4, 1000, holder="flood", usual=0.0), Unreachable)


def test_a_flood_of_one_holder_leaves_room_for_others():
    """While another calls, one holder has three quarters of the places and of the queue at most; alone it has all."""
    it = Admission(8, 4, jitter=lambda: 0.5)
    for number in range(8):
        assert isinstance(it.offer(f"early{number}", "entry", 9, 0, holder="flood"), Admitted), "alone"
    assert isinstance(it.offer("good0", "entry", 9, 0, holder="good"), Queued)
    assert it.leave("early0", 0) == ["good0"]
    for number in range(1, 3):
        it.leave(f"early{number}", 0)
    assert isinstance(it.offer("late0", "entry", 9, 1, holder="flood"), Admitted)
    assert isinstance(it.offer("late1", "entry", 9, 1, holder="flood"), Queued), "six of eight"
    assert isinstance(it.offer("good1", "entry", 9, 1, holder="good"), Admitted)
    for number in range(2, 4):
        assert isinstance(it.offer(f"late{number}", "entry", 9, 1, holder="flood"), Queued)
    assert it.offer("late4", "entry", 9, 1, holder="flood") == Shed("late4", it.retry_after(), "share")
    assert isinstance(it.offer("good2", "entry", 9, 1, holder="good"), Queued)
    assert it.leave("good0", 0) == ["good2"], "the flood is at its share"
    assert it.leave("early3", 0) == ["late1"]
    assert isinstance(it.offer("late5", "entry", 9, 100, holder="flood"), Queued)
    for key in ("good1", "good2", "early4"):
        it.leave(key, 100)
    assert (it.in_flight, it.queued) == (8, 0), "nobody else has called for a minute: it has all again"


def test_who_has_long_gone_keeps_no_place_free():
    """Another that called once, long ago, leaves the one that calls now all of the places, those of the queue too."""
    it = Admission(4, 4, jitter=lambda: 0.5)
    it.offer("other", "entry", 9, 0, holder="other")
    it.leave("other", 0)
    for number in range(4):
        assert isinstance(it.offer(f"a{number}", "entry", 1999, 1000, holder="alone"), Admitted)
    assert isinstance(it.offer("a4", "entry", 1999, 1000, holder="alone"), Queued)
    assert it.leave("a0", 1000) == ["a4"]


def test_who_is_alone_again_does_not_overtake_itself():
    """Its calls that wait for its share to shrink go before those that come after, though it has no share any more."""
    it = Admission(4, 4, jitter=lambda: 0.5)
    it.offer("other", "entry", 9, 0, holder="other")
    it.leave("other", 0)
    for number in range(3):
        assert isinstance(it.offer(f"a{number}", "entry", 1999, 1, holder="flood"), Admitted)
    assert isinstance(it.offer("a3", "entry", 1999, 1, holder="flood"), Queued), "three of four"
    assert isinstance(it.offer("a4", "entry", 1999, 100, holder="flood"), Queued), "a place is free, but a3 is first"
    assert it.leave("a0", 100) == ["a3", "a4"]


def test_holders_that_are_over_leave_no_trace():
    """Counts of holders do not outlive their calls."""
    it = Admission(2, 2, jitter=lambda: 0.5)
    it.offer("a", "entry", 9, 0, holder=1)
    it.offer("b", "entry", 9, 0, holder=2)
    it.offer("c", "entry", 9, 0, holder=3)
    it.remove("c")
    it.offer("d", "exit", 9, 0, holder=4)
    assert it.holders() == {1: (1, 0), 2: (1, 0), 4: (0, 1)}
    assert it.leave("a", 0) == ["d"]
    it.leave("b", 0)
    it.leave("d", 0)
    assert it.holders() == {}
    assert not it._held
    assert not it._exit_held
    assert not it._queue.by_holder
