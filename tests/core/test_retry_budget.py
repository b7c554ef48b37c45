"""The retry budget: it starts full, is never negative, and bounds what failures may add."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.retry import RetryBudget


def test_it_starts_full_and_runs_dry():
    """Ten at once, not eleven."""
    budget = RetryBudget()
    assert [budget.withdraw(5) for _ in range(11)] == [True] * 10 + [False]
    assert repr(budget) == "<RetryBudget 0.0/10 denied=1>"


def test_it_refills_by_the_second_and_by_first_attempts():
    """1/s, and 0.1 per first attempt."""
    budget = RetryBudget()
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
    """0 <= balance <= capacity; withdrawals never exceed what was there, came by time, and was deposited."""
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
