"""The breaker: it trips for what counts, lets one trial at a time through, and believes no stale news."""

# ruff: noqa: D102  (a state machine's rules are named for what they do)

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core import outcome as o
from sidecar.core.breaker import TRANSITIONS, Breaker, Permit, Refusal
from sidecar.core.transitions import IllegalTransition
from sidecar.errors import ConnectFailed, ConnectionLost, UpstreamError

FAILURE = o.classify(ConnectionLost())
THROTTLED = o.classify(UpstreamError("slow down", status=429))
REJECTED = o.classify(UpstreamError("too long", code="context_length_exceeded"))


def breaker(**fields):
    """A breaker whose dice always show the middle."""
    return Breaker("openai/gpt", jitter=lambda: 0.5, **fields)


def one(it, what, now, **fields):
    """One admitted attempt, ended at once."""
    permit = it.admit(now)
    assert isinstance(permit, Permit), it
    it.record(permit, what, now, **fields)


def tripped(**fields):
    """A breaker that tripped at 0 and stays open until 1.5."""
    it = breaker(**fields)
    for _ in range(5):
        one(it, FAILURE, 0)
    assert it.state(0) == "open"
    return it


def test_five_failures_in_a_row_trip_it():
    """Four do not; a success in between starts the count anew."""
    it = breaker()
    for _ in range(4):
        one(it, FAILURE, 0)
    one(it, o.SUCCESS, 0)
    for _ in range(4):
        one(it, FAILURE, 0)
    assert it.state(0) == "closed"
    one(it, FAILURE, 0)
    assert repr(it) == "<Breaker openai/gpt open failures=5 trips=1>"


def test_half_of_ten_trip_it():
    """50 % of at least ten outcomes of the window, however they are mixed."""
    it = breaker()
    for _ in range(4):
        one(it, o.SUCCESS, 0)
        one(it, FAILURE, 0)
    one(it, o.SUCCESS, 0)
    assert it.state(0) == "closed", "nine are too few to judge"
    one(it, FAILURE, 0)
    assert it.state(0) == "open"


def test_old_failures_are_forgotten():
    """What left the window counts no more, slice by slice or after a long silence."""
    it = breaker()
    for _ in range(4):
        one(it, FAILURE, 0)
    one(it, o.SUCCESS, 15)
    assert it.statistics(29).failures == 4
    assert it.statistics(30).failures == 0
    assert it.statistics(30).total == 1
    assert it.statistics(1e6).total == 0


def test_slow_answers_trip_it():
    """80 % slow of at least ten, even when every one of them succeeded."""
    it = breaker()
    for _ in range(2):
        one(it, o.SUCCESS, 0)
    for _ in range(7):
        one(it, o.SUCCESS, 0, slow=True)
    assert it.state(0) == "closed"
    one(it, o.SUCCESS, 0, slow=True)
    assert it.state(0) == "open"


def test_an_overtaken_attempt_is_slow_though_it_was_cancelled():
    """A loser of a backup race ends "cancelled"; that it was slow is remembered."""
    it = breaker()
    for _ in range(10):
        one(it, o.CANCELLED, 0, slow=True)
    assert it.state(0) == "open"


@pytest.mark.parametrize("what", [THROTTLED, REJECTED, o.CANCELLED, o.DEADLINE])
def test_what_does_not_count_does_not_count(what):
    """429, the call's own fault, a cancel, a short deadline: no trip, and no success either."""
    it = breaker()
    for _ in range(50):
        one(it, what, 0)
    for _ in range(4):
        one(it, FAILURE, 0)
    one(it, what, 0)
    one(it, FAILURE, 0)
    assert it.state(0) == "open"


def test_open_refuses_with_the_time_left():
    """A refusal says when to come back, jittered so that the herd does not come as one."""
    it = tripped()
    said = it.admit(0.5)
    assert said == Refusal(1.0 + 0.1)
    assert it.next_wakeup_at() == 1.5
    assert it.statistics(0.5).refused == 1


def test_half_open_lets_one_trial_through_and_two_successes_close_it():
    """While the trial is out everybody else is refused; after the second success all may pass."""
    it = tripped()
    assert it.state(1.5) == "half_open"
    trial = it.admit(1.5)
    assert isinstance(trial, Permit)
    assert trial.trial
    assert it.admit(1.5) == Refusal(0.75, soon=True)
    assert "half_open trial" in repr(it)
    it.record(trial, o.SUCCESS, 2)
    assert it.next_wakeup_at() == math.inf
    one(it, o.SUCCESS, 2)
    assert it.state(2) == "closed"
    assert it.statistics(2).failures == 0, "it starts with a clean window"


@pytest.mark.parametrize(("what", "slow"), [(FAILURE, False), (o.SUCCESS, True)])
def test_a_failed_or_slow_trial_opens_it_again_for_longer(what, slow):
    """2, 4, 8 ... seconds, equal-jittered, up to 30."""
    it = tripped()
    now, waits = 1.5, []
    for _ in range(6):
        one(it, what, now, slow=slow)
        assert it.state(now) == "open"
        waits.append(it.next_wakeup_at() - now)
        now = it.next_wakeup_at()
    assert waits == pytest.approx([3, 6, 12, 22.5, 22.5, 22.5])


def test_growth_is_forgotten_after_a_closed_window():
    """A trip soon after closing goes on growing; one after a quiet window starts small."""
    it = tripped()
    one(it, o.SUCCESS, 2)
    one(it, o.SUCCESS, 2)
    for _ in range(5):
        one(it, FAILURE, 10)
    assert it.next_wakeup_at() == pytest.approx(13)
    one(it, o.SUCCESS, 14)
    one(it, o.SUCCESS, 14)
    for _ in range(5):
        one(it, FAILURE, 44)
    assert it.next_wakeup_at() == pytest.approx(45.5)


def test_an_ignored_trial_gives_the_permit_back():
    """A trial that says nothing about the upstream (a cancel, a 400) lets the next one try at once."""
    it = tripped()
    for what in (o.CANCELLED, REJECTED, THROTTLED):
        one(it, what, 2)
    assert it.state(2) == "half_open"
    assert isinstance(it.admit(2), Permit)


def test_an_unused_permit_is_given_back():
    """No connection was to be had for the trial: as if it had not been asked for. Others' permits change nothing."""
    it = tripped()
    trial = it.admit(2)
    it.give_back(Permit(0))
    it.give_back(Permit(trial.generation, trial=True))
    assert isinstance(it.admit(2), Refusal)
    it.give_back(trial)
    assert isinstance(it.admit(2), Permit)


def test_news_of_an_earlier_generation_is_ignored():
    """Calls begun before the trip cannot re-open or close it, nor can a permit handed back twice."""
    it = breaker()
    old = it.admit(0)
    for _ in range(5):
        one(it, FAILURE, 0)
    trial = it.admit(2)
    it.record(old, o.SUCCESS, 2)
    it.record(old, FAILURE, 2)
    assert it.state(2) == "half_open"
    it.record(trial, o.SUCCESS, 2)
    it.record(trial, o.SUCCESS, 2)
    assert it.state(2) == "half_open", "one success, handed in twice, is one"
    assert it.statistics(2).stale == 3


def test_a_lost_trial_expires():
    """A trial never recorded does not block for ever, and cannot speak for the one that came after it."""
    it = tripped(trial_timeout=30)
    lost = it.admit(2)
    assert it.next_wakeup_at() == 32
    assert isinstance(it.admit(31.9), Refusal)
    second = it.admit(32)
    assert isinstance(second, Permit)
    it.record(lost, FAILURE, 33)
    assert it.state(33) == "half_open"
    it.record(second, o.SUCCESS, 33)
    assert it.statistics(33).trials == 2


NO_WAY_IN = o.classify(ConnectFailed("tcp", "refused"))


def test_failed_connects_count_and_open_it():
    """Five connects that fail in a row: no call need fail to find out. Further ones say nothing new."""
    it = breaker()
    for _ in range(5):
        it.connect_failed(NO_WAY_IN, 0)
    assert it.state(0) == "open"
    at = it.next_wakeup_at()
    it.connect_failed(NO_WAY_IN, 0.5)
    assert it.next_wakeup_at() == at
    it.connect_failed(o.classify(ConnectFailed("credential", "no file")), 100)
    assert it.state(100) == "half_open", "a credential is not the upstream's fault"


def test_a_failed_connect_is_a_failed_trial():
    """Its time over, nobody asked yet, and no way in: open again, for longer; but a call's trial knows better."""
    it = tripped()
    it.connect_failed(NO_WAY_IN, 1.5)
    assert it.next_wakeup_at() == pytest.approx(4.5)
    trial = it.admit(4.5)
    it.connect_failed(NO_WAY_IN, 4.6)
    assert it.state(4.6) == "half_open"
    it.record(trial, o.SUCCESS, 4.7)


def test_a_connect_that_succeeds_ends_an_outage_of_connects():
    """Open because nothing could be reached: the first connection lets a trial through at once, and only one."""
    it = breaker()
    for _ in range(5):
        it.connect_failed(NO_WAY_IN, 0)
    it.connected(0.2)
    assert it.state(0.2) == "half_open"
    assert isinstance(it.admit(0.2), Permit)
    assert isinstance(it.admit(0.2), Refusal)


def test_a_connect_that_succeeds_does_not_pardon_failing_calls():
    """Open because calls failed: it waits its time, whatever connects do; closed, a connect changes nothing."""
    it = tripped()
    it.connected(0.2)
    assert it.state(0.2) == "open"
    it.connect_failed(NO_WAY_IN, 2)
    assert it.state(2) == "open"
    one_more = it.next_wakeup_at()
    it.connected(one_more + 1)
    assert it.next_wakeup_at() == one_more, "its time was over already"
    fresh = breaker()
    fresh.connected(0)
    assert fresh.state(0) == "closed"


def test_an_illegal_transition_raises_and_changes_nothing():
    """An open breaker cannot trip, a closed one cannot close."""
    for state, event in (("open", "trip"), ("closed", "close"), ("open", "close"), ("closed", "half_open")):
        with pytest.raises(IllegalTransition, match="breaker"):
            TRANSITIONS.after(state, event)
    it = breaker()
    before = repr(it)
    with pytest.raises(IllegalTransition):
        it._close(0)
    assert repr(it) == before


class BreakerMachine(RuleBasedStateMachine):
    """Any history of calls, in any order of endings."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.out = []
        self.it = Breaker("x", jitter=random.Random(7).random, trial_timeout=20)
        self.trial_given_at = None
        self.tripped_at = None

    @rule(gap=st.floats(0, 40))
    def wait(self, gap):
        self.now += gap

    @rule()
    def ask(self):
        state = self.it.state(self.now)
        said = self.it.admit(self.now)
        if isinstance(said, Refusal):
            assert state != "closed"
            assert 0 < said.retry_after <= 30.2
            return
        assert said.trial == (state == "half_open")
        if said.trial:
            out = [trial for trial, at in self.out if trial.trial and self.now < at + 20]
            assert not out, "two trials at once"
        self.out.append((said, self.now))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0), slow=st.booleans(), what=st.sampled_from([o.SUCCESS, FAILURE, FAILURE, REJECTED]))
    def end(self, which, slow, what):
        permit, _ = self.out.pop(which % len(self.out))
        before = self.it.statistics(self.now)
        self.it.record(permit, what, self.now, slow=slow)
        after = self.it.statistics(self.now)
        if after.trips > before.trips:
            assert 1 <= self.it.next_wakeup_at() - self.now <= 30 + 1e-9
        if what is FAILURE and after.stale == before.stale:
            self.a_run_is_by_chance()

    def a_run_is_by_chance(self):
        """Closed in spite of five failures in a row: only where enough outcomes before them say what is usual."""
        said = self.it.statistics(self.now)
        if said.state == "closed" and said.consecutive_failures >= 5:
            assert said.total - said.consecutive_failures >= 10

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0))
    def never_used(self, which):
        self.it.give_back(self.out.pop(which % len(self.out))[0])

    @rule(good=st.booleans())
    def connect(self, good):
        if good:
            self.it.connected(self.now)
        else:
            self.it.connect_failed(NO_WAY_IN, self.now)
            self.a_run_is_by_chance()

    @invariant()
    def counts_are_sane(self):
        said = self.it.statistics(self.now)
        assert 0 <= said.failures <= said.total
        assert 0 <= said.slow <= said.total
        if said.state == "closed":
            assert said.next_wakeup_at == math.inf

    def teardown(self):
        """Whatever happened, two good trials close it."""
        self.now += 60
        for _ in range(2):
            permit = self.it.admit(self.now)
            assert isinstance(permit, Permit)
            self.it.record(permit, o.SUCCESS, self.now)
        assert self.it.state(self.now) == "closed"


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase


def test_a_run_that_chance_brings_is_no_outage():
    """At a share of one failure in six, five in a row do not trip it, and a run that chance does not bring does."""
    it = breaker()
    for number in range(60):
        one(it, FAILURE if number % 6 == 0 else o.SUCCESS, number * 0.1)
    for run in range(1, 8):
        one(it, FAILURE, 6.0 + run * 0.01)
        assert it.state(6.1) == "closed", run
    one(it, FAILURE, 6.2)
    assert it.state(6.3) == "open"
