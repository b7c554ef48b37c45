"""Connects per second: bounded over any time, never stuck, not in step."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.connect_rate import ConnectRate


def rate(**fields):
    """A rate whose dice always show the middle."""
    return ConnectRate(jitter=lambda: 0.5, **fields)


def test_a_burst_and_then_one_by_one():
    """Sixteen at once; the next one waits for its token and a little more."""
    it = rate()
    assert it.room(0) == 16
    assert it.next_at == -math.inf
    it.started(0, 16)
    assert it.room(0) == 0
    assert it.next_at == pytest.approx(1.5 / 20)
    assert it.room(it.next_at) == 1
    assert it.statistics(1000).room == 16, "a quiet hour saves no more than a burst"
    assert it.statistics(0).started == 16
    assert it.statistics(0).held_back == 1
    assert repr(it) == "<ConnectRate 0.0/16 20/s>"


def test_what_could_not_wait_is_paid_for_later():
    """More than there was room for: the next ones wait until that is made good."""
    it = rate(burst=1, per_second=1)
    it.started(0, 3)
    assert it.room(2.9) == 0
    assert it.next_at == pytest.approx(3.5)
    assert it.room(3.5) == 1


def test_none_started_changes_nothing():
    """Nothing, or less: no token is taken, none is given."""
    it = rate()
    it.started(5, 0)
    it.started(5, -3)
    assert it.room(5) == 16
    assert it.statistics(5).started == 0


@pytest.mark.parametrize(
    "bad", [{"burst": 0}, {"per_second": 0}, {"per_second": -1}, {"per_second": math.inf}, {"per_second": math.nan}]
)
def test_impossible_rates_are_refused(bad):
    """A rate that allows nothing, or everything, is a mistake."""
    with pytest.raises(ValueError, match="at least"):
        rate(**bad)


@given(
    burst=st.integers(1, 20),
    per_second=st.floats(0.1, 100),
    asks=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30)), max_size=60),
    seed=st.integers(0, 1000),
)
def test_over_any_time_there_are_never_more(burst, per_second, asks, seed):
    """However it is asked: at most `burst` + `per_second` * T in each T, and never none for good."""
    it = ConnectRate(burst=burst, per_second=per_second, jitter=random.Random(seed).random)
    now, made = 0.0, []
    for gap, wanted in asks:
        now += gap
        room = it.room(now)
        assert 0 <= room <= burst
        if not room:
            assert now < it.next_at <= now + 2 / per_second + 1e-9
            assert it.room(it.next_at) >= 1
        count = min(wanted, room)
        it.started(now, count)
        made.append((now, count))
    for first, (begin, _) in enumerate(made):
        in_all = 0
        for end, count in made[first:]:
            in_all += count
            assert in_all <= burst + per_second * (end - begin) + 1e-6


def test_daemons_that_ran_dry_together_do_not_go_on_in_step():
    """A hundred of them, one instant: their next connects are spread over a token's time."""
    instants = []
    for seed in range(100):
        it = ConnectRate(jitter=random.Random(seed).random)
        it.started(0, 16)
        instants.append(it.next_at)
    assert len(set(instants)) == 100
    assert 0.05 <= min(instants) < 0.06
    assert 0.09 < max(instants) <= 0.1


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away():
    """No time, no tokens."""
    it = rate(burst=2)
    it.started(10, 2)
    assert it.room(10) == it.room(9) == 0
    it.started(9)
    assert it.room(10) == 0
