"""A breaker's evidence: counts of the last seconds against a list that remembers everything, and what chance brings."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.window import CHANCE, SLICES, Window, by_chance

events = st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.booleans()), max_size=60)


@given(st.floats(0.5, 60), events)
def test_it_counts_what_a_list_would(width, history):
    """All of the last nine tenths of the window are counted, and nothing older than the whole of it."""
    it, now, made = Window(width), 0.0, []
    for gap, failed, slow in history:
        now += gap
        it.add(now, failed, slow)
        made.append((now, failed, slow))
        surely = [e for e in made if now - e[0] <= width * (SLICES - 1) / SLICES - 1e-6]
        possibly = [e for e in made if now - e[0] <= width + 1e-6]
        for counted, at_least, at_most in zip(it.sums(now), sums(surely), sums(possibly), strict=True):
            assert at_least <= counted <= at_most


def sums(made):
    """total, failures, slow."""
    return len(made), sum(e[1] for e in made), sum(e[2] for e in made)


def test_where_the_clock_goes_back_nothing_is_lost():
    """An instant before the newest slice belongs to that."""
    it = Window(30)
    it.add(100, True, False)
    it.add(50, True, False)
    assert it.sums(100) == it.sums(50) == (2, 2, 0)
    it.clear()
    assert it.sums(100) == (0, 0, 0)
    assert repr(it) == "<Window of 30 s>"


@pytest.mark.parametrize(
    ("run", "before", "failures_before", "chance"),
    [
        (5, 0, 0, False),  # nothing before it: an outage
        (5, 9, 8, False),  # too little before it
        (5, 100, 0, False),  # one in a hundred at most
        (5, 60, 10, True),  # one in six
        (7, 60, 10, True),
        (8, 60, 10, False),
        (12, 60, 20, True),  # one in three
        (13, 60, 20, False),
    ],
)
def test_a_run_is_chance_by_the_share_of_failures_before_it(run, before, failures_before, chance):
    """p^n against one in a million."""
    assert by_chance(run, before + run, failures_before + run, known=10) is chance


@given(st.integers(1, 60), st.integers(10, 500), st.data())
def test_a_longer_run_is_never_likelier(run, before, data):
    """What is an outage at n failures in a row is one at n + 1; more failures before it make it likelier."""
    failures = data.draw(st.integers(0, before))
    longer = by_chance(run + 1, before + run + 1, failures + run + 1, known=10)
    now = by_chance(run, before + run, failures + run, known=10)
    more = by_chance(run, before + run, min(before, failures + 1) + run, known=10)
    assert now >= longer
    assert more >= now


def test_chance_alone_trips_as_seldom_as_it_says():
    """Two hundred thousand calls of which a sixth fail, seeded: hardly a run is taken for an outage."""
    dice, run, taken = random.Random(5), 0, 0
    for _ in range(200_000):
        run = run + 1 if dice.random() < 1 / 6 else 0
        taken += run >= 5 and not by_chance(run, 60 + run, 10 + run, known=10)
    assert taken <= 3
    assert CHANCE == 1e-6
