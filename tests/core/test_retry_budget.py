"""The retry budget: it starts full, is never negative, and bounds what failures may add."""

# ruff: noqa: D102  (a state machine's rules are named for what they do)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.breaker import Breaker
from sidecar.core.classifier import classify
from sidecar.core.retry import SECONDS_OF_LOAD, RetryBudget
from sidecar.errors import ConnectionLost


def test_it_starts_full_and_runs_dry():
    """Ten at once, not eleven."""
    budget = RetryBudget()
    assert [budget.withdraw(5) for _ in range(11)] == [True] * 10 + [False]
    assert repr(budget) == "<RetryBudget 0.0/10 denied=1>"


def test_it_refills_by_the_second_and_by_first_attempts():
    """So much per second, and 0.1 per first attempt."""
    budget = RetryBudget(per_second=1.0)
    for _ in range(10):
        budget.withdraw(0)
    assert not budget.withdraw(0.9)
    assert budget.withdraw(1.0)
    assert not budget.withdraw(1.0)
    for _ in range(11):
        budget.deposit(1.0)
    assert budget.balance(1.0) == pytest.approx(1.1)
    assert budget.withdraw(1.0)


def test_it_never_holds_more_than_its_capacity():
    """A quiet hour saves nothing up."""
    budget = RetryBudget()
    budget.withdraw(0)
    assert budget.balance(3600) == 10
    budget.deposit(3600)
    assert budget.statistics(3600).balance == 10


def test_an_unused_withdrawal_can_be_given_back():
    """An attempt that found no connection costs nothing."""
    budget = RetryBudget()
    budget.withdraw(0)
    budget.give_back()
    budget.give_back()
    assert budget.balance(0) == 10
    assert budget.statistics(0).withdrawn == 1


@pytest.mark.parametrize("bad", [{"capacity": 0.5}, {"per_second": -1}, {"per_first_attempt": -0.1}])
def test_impossible_budgets_are_refused(bad):
    """A budget that could never pay is a mistake."""
    with pytest.raises(ValueError, match="at least"):
        RetryBudget(**bad)


@given(st.lists(st.tuples(st.sampled_from("dw"), st.floats(0, 5)), max_size=200))
def test_the_books_balance(history):
    """Never below 0, nor above its capacity; no more is withdrawn than was there, came by time, was deposited."""
    budget, now = RetryBudget(), 0.0
    for what, gap in history:
        now += gap
        if what == "d":
            budget.deposit(now)
        else:
            budget.withdraw(now)
        assert 0 <= budget.balance(now) <= 10
    said = budget.statistics(now)
    assert said.withdrawn <= 10 + now + 0.1 * said.deposits + 1e-6


class BudgetMachine(RuleBasedStateMachine):
    """One budget, shared by retries, backup requests and restarts; some of them are never made after all."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.it = RetryBudget(capacity=4, per_second=0.5, per_first_attempt=0.25)
        #: (instant, +1 paid, -1 given back, 0 deposit, what was there before)
        self.log = []
        self.paid = 0

    @rule(gap=st.one_of(st.just(0.0), st.floats(0, 20)))
    def wait(self, gap):
        self.now += gap

    @rule(times=st.integers(1, 8))
    def first_attempt(self, times):
        for _ in range(times):
            self.log.append((self.now, 0, self.it.balance(self.now)))
            self.it.deposit(self.now)

    @rule(what=st.sampled_from(["retry", "backup", "restart"]), times=st.integers(1, 6))
    def further(self, what, times):
        for _ in range(times):
            before = self.it.balance(self.now)
            paid = self.it.withdraw(self.now)
            assert paid == (before >= 1), what
            if paid:
                self.paid += 1
                self.log.append((self.now, 1, before))

    @precondition(lambda self: self.paid)
    @rule()
    def never_made(self):
        self.paid -= 1
        self.log.append((self.now, -1, self.it.balance(self.now)))
        self.it.give_back()

    @invariant()
    def it_is_between_nothing_and_full(self):
        most = self.it.statistics(self.now).capacity
        assert 0 <= self.it.balance(self.now) <= most
        deposits = self.it.statistics(self.now).deposits
        assert 4 <= most <= max(4, SECONDS_OF_LOAD * deposits / 10 + 1e-6)

    def teardown(self):
        """Over any time: no more further attempts than were there, came by time, and were earned by first ones."""
        for start, (begin, _, there) in enumerate(self.log):
            made = earned = 0
            for at, what, _ in self.log[start:]:
                made += max(what, 0)
                earned += 0.25 if what == 0 else 1 if what == -1 else 0
                assert made <= there + 0.5 * (at - begin) + earned + 1e-6


BudgetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBudget = BudgetMachine.TestCase


@given(st.integers(0, 30), st.integers(0, 30))
def test_what_is_given_back_never_makes_it_more_than_full(withdrawn, given_back):
    """Given back twice, or for nothing: never above the capacity."""
    budget = RetryBudget()
    for _ in range(withdrawn):
        budget.withdraw(0)
    for _ in range(given_back):
        budget.give_back()
    assert budget.balance(0) == min(10, max(0, 10 - withdrawn) + given_back)


def calls_lost_until_it_trips(capacity, consecutive=5):
    """Calls to a dead primary beside a healthy secondary, each failing over once if the secondary's budget pays."""
    primary = Breaker("primary", consecutive=consecutive, jitter=lambda: 0.5)
    budget = RetryBudget(capacity=capacity, per_second=0, per_first_attempt=0)
    permits = [primary.admit(0) for _ in range(2 * consecutive)]  # in flight together when the first one fails
    lost = 0
    for permit in permits:
        primary.record(permit, classify(ConnectionLost()), 0)
        lost += not budget.withdraw(0)
    assert primary.state(0) == "open"
    return lost


def test_a_budget_of_twice_the_threshold_outlasts_the_breakers_patience():
    """The rule of its smallest size: until the breaker has tripped, every call that was in flight can fail over."""
    assert calls_lost_until_it_trips(10) == 0
    assert calls_lost_until_it_trips(3) == 7


def test_a_first_attempt_that_answers_pays_for_later_ones():
    """A tenth each: after a hundred answered calls the budget is full again, however empty it was."""
    budget = RetryBudget(per_second=0)
    while budget.withdraw(0):
        pass
    for _ in range(100):
        budget.deposit(0)
    assert budget.balance(0) == pytest.approx(10)


def test_a_healthy_upstream_may_be_given_all_that_falls_to_it_at_once():
    """At 50 calls a second, with 0.3 s to a first delta, 15 lose their connection in one instant: none is refused."""
    budget, now = RetryBudget(), 0.0
    for _ in range(50 * 60):
        now += 0.02
        budget.deposit(now)
    assert all(budget.withdraw(now) for _ in range(15))
    assert budget.statistics(now).capacity == pytest.approx(100, rel=0.02)


def test_what_a_busy_hour_allowed_is_forgotten():
    """The load was high, and is not any more: what may fall to it is as little as at the start."""
    budget, now = RetryBudget(per_second=0), 0.0
    for _ in range(50 * 60):
        now += 0.02
        budget.deposit(now)
    now += 100
    budget.deposit(now)
    assert budget.statistics(now).capacity == 10
    assert budget.balance(now) == 10


def test_a_dearer_attempt_needs_more_and_gets_as_much_back():
    """At a price of two: five of them, the rest is not enough for another, and given back is given back."""
    budget = RetryBudget(capacity=11, per_second=0)
    assert [budget.withdraw(0, 2.0) for _ in range(6)] == [True] * 5 + [False]
    assert budget.withdraw(0)
    budget.give_back(2.0)
    assert budget.balance(0) == 2
