"""The order of targets: as configured while all is well, the unfit last, and who returns returns gradually."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core import preference
from sidecar.core.preference import Preference

ALIKE = (0.0, 0.0, 0.0)


def dice(*values):
    """These, one after the other."""
    return iter(values).__next__


def share(it, fit, now, place=0, first=0, number=2000):
    """The share of so many orders in which `place` stands at `first`."""
    return sum(it.order(fit, ALIKE, now)[first] == place for _ in range(number)) / number


def test_while_all_is_well_it_is_the_same_tuple():
    """No list is made for a call, and no die is thrown."""
    it = Preference(3, jitter=dice())
    assert it.order([True] * 3, ALIKE, 0) == (0, 1, 2)
    assert it.order([True] * 3, (9.0, 1.0, 0.0), 1) is it.order([True] * 3, ALIKE, 2)
    assert repr(it) == "<Preference targets=3 unfit=[] returning=[]>"


def test_the_unfit_stand_last_by_cost():
    """Fit ones in the order of the configuration, whatever they cost; of the unfit the cheapest first."""
    it = Preference(4, jitter=dice())
    assert it.order([False, True, False, True], (3.0, 9.0, 1.0, 0.0), 0) == (1, 3, 2, 0)
    assert it.statistics(0).unfit == (0, 2)
    assert repr(it) == "<Preference targets=4 unfit=[0, 2] returning=[]>"


def test_when_nobody_is_fit_all_are_named_by_cost():
    """And by preference where they cost the same."""
    it = Preference(3, jitter=dice())
    assert it.order([False] * 3, (5.0, 0.1, 5.0), 0) == (1, 0, 2)
    assert it.order([False] * 3, ALIKE, 0) == (0, 1, 2)


def test_one_target_is_always_that():
    """With one target only there is no other to stand in, fit, unfit or ramping."""
    it = Preference(1, jitter=lambda: 0.99)
    for now, fit in enumerate([True, False, True, True, False, True]):
        assert it.order([fit], ALIKE, now) == (0,)


def test_who_returns_gets_its_place_back_by_and_by():
    """A tenth at first, then the share of the ramp that has passed, then all; and the fast path again."""
    it = Preference(2, jitter=random.Random(7).random)
    it.order([False, True], ALIKE, 0)
    fit = [True, True]
    assert it.order(fit, ALIKE, 100) in {(0, 1), (1, 0)}
    for passed, expected in ((0, 0.1), (0.5, 0.1), (3, 0.3), (7, 0.7), (9.5, 0.95)):
        assert share(it, fit, 100 + passed) == pytest.approx(expected, abs=0.05)
        assert it.statistics(100 + passed).ramping == (0,)
    assert repr(it) == "<Preference targets=2 unfit=[] returning=[0]>"
    assert share(it, fit, 110) == 1
    assert it.order(fit, ALIKE, 111) is it.order(fit, ALIKE, 112)
    assert it.statistics(112).ramping == ()
    assert it.statistics(112).returns == 1


def test_failing_again_during_the_ramp_starts_it_anew():
    """9 s into its ramp it fails, comes back at once, and finds a tenth again."""
    it = Preference(2, jitter=random.Random(7).random)
    it.order([False, True], ALIKE, 0)
    it.order([True, True], ALIKE, 1)
    assert share(it, [True, True], 10) == pytest.approx(0.9, abs=0.05)
    assert it.order([False, True], ALIKE, 10) == (1, 0)
    assert share(it, [True, True], 10.1) == pytest.approx(0.1, abs=0.05)
    assert it.statistics(10.1).returns == 2
    assert share(it, [True, True], 20.2) == 1


def test_it_stands_behind_the_next_settled_one():
    """Not behind all: the third stays third. And never behind an unfit one."""
    it = Preference(3, jitter=lambda: 0.99)
    it.order([False, True, True], ALIKE, 0)
    assert it.order([True, True, True], ALIKE, 0) == (1, 0, 2)
    assert it.order([True, False, True], ALIKE, 0) == (2, 0, 1)
    assert it.order([True, False, False], ALIKE, 0) == (0, 1, 2)


def test_two_that_return_together():
    """Both behind the settled third, in their order; when nobody has settled, whom the dice favour goes first."""
    it = Preference(3, jitter=lambda: 0.99)
    it.order([False, False, True], ALIKE, 0)
    assert it.order([True, True, True], ALIKE, 0) == (2, 0, 1)
    two = Preference(2, jitter=dice(0.99, 0.0, 0.99, 0.99, 0.0, 0.99))
    two.order([False, False], ALIKE, 0)
    assert [two.order([True, True], ALIKE, 0) for _ in range(3)] == [(1, 0), (0, 1), (0, 1)]


def test_the_least_preferred_returns_to_its_place():
    """Behind the fit ones it stands anyway."""
    it = Preference(2, jitter=lambda: 0.99)
    it.order([True, False], ALIKE, 0)
    assert it.order([True, True], ALIKE, 0) == (0, 1)


def test_no_ramp_returns_at_once():
    """Zero seconds: the place is back with the first order."""
    it = Preference(2, ramp=0, jitter=dice())
    it.order([False, True], ALIKE, 0)
    assert it.order([True, True], ALIKE, 0) == (0, 1)
    assert it.order([True, True], ALIKE, 0) is it.order([True, True], ALIKE, 0)


@pytest.mark.parametrize(("targets", "ramp"), [(0, 1.0), (1, -1.0)])
def test_impossible_routes_are_refused(targets, ramp):
    """No target, or a ramp that ends before it begins."""
    with pytest.raises(ValueError, match="at least"):
        Preference(targets, ramp=ramp, jitter=dice())


@settings(deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(
                st.tuples(
                    st.lists(st.booleans(), min_size=n, max_size=n),
                    st.lists(st.floats(0, 9), min_size=n, max_size=n),
                    st.floats(0, 8),
                ),
                max_size=40,
            ),
        )
    ),
    st.integers(),
)
def test_each_is_named_once_and_the_unfit_never_before_the_fit(made, seed):
    """Whatever comes and goes; and after a calm ramp it is the configured order again."""
    targets, history = made
    it, now = Preference(targets, jitter=random.Random(seed).random), 0.0
    for fit, cost, gap in history:
        now += gap
        order = it.order(fit, cost, now)
        assert sorted(order) == list(range(targets))
        assert [fit[place] for place in order] == sorted(fit, reverse=True)
        unfit = [cost[place] for place in order if not fit[place]]
        assert unfit == sorted(unfit)
        assert set(it.statistics(now).unfit) == {place for place in range(targets) if not fit[place]}
        assert not set(it.statistics(now).ramping) & set(it.statistics(now).unfit)
    it.order([True] * targets, [0.0] * targets, now)
    it.order([True] * targets, [0.0] * targets, now + 11)
    assert it.order([True] * targets, [0.0] * targets, now + 12) is it.order([True] * targets, [0.0] * targets, now)


def test_the_table_at_the_head_names_its_words():
    """The states that the table speaks of are those of the statistics."""
    head = Path(preference.__file__).read_text().split('"""')[1]
    assert set(re.findall(r"^ +\| (\w+) \|", head, re.MULTILINE)) == {"target", "settled", "unfit", "ramping"}
