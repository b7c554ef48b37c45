"""Calls per minute: never more in any 60 s, and no needless no."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.rate import CallRate


def test_so_many_at_once_then_none_for_a_minute():
    """The limit may be spent at once; the first is forgotten a minute after its second, not before."""
    rate = CallRate(3)
    assert [rate.take(100.25) for _ in range(3)] == [0.0] * 3
    assert rate.take(100.25) == 60.75
    assert rate.take(160.99) == pytest.approx(0.01)
    assert repr(rate) == "<CallRate 3/3>"
    assert [rate.take(161.0) for _ in range(4)] == [0.0, 0.0, 0.0, 61.0]


def test_a_refused_call_does_not_count():
    """Whoever hammers is let in again at the same moment as who waits."""
    rate = CallRate(1)
    rate.take(0.0)
    for tenth in range(1, 609):
        assert rate.take(tenth / 10) > 0
    assert rate.take(61.0) == 0.0


def test_what_counts_now():
    """For who looks: what the limit sees."""
    rate = CallRate(5)
    assert rate.counted(0.0) == 0
    rate.take(0.0)
    rate.take(30.0)
    assert rate.counted(60.9) == 2
    assert rate.counted(61.0) == 1
    assert rate.counted(1e9) == 0


def test_a_clock_that_goes_back_frees_nothing():
    """An instant before the last is taken as the last."""
    rate = CallRate(2)
    rate.take(100.0)
    assert rate.take(10.0) == 0.0
    assert rate.take(60.0) == 101.0
    assert rate.take(160.0) == 1.0


@pytest.mark.parametrize("per_minute", [0, -1])
def test_no_calls_at_all_is_no_rate(per_minute):
    """To forbid calls there are lanes and `halt`."""
    with pytest.raises(ValueError, match="at least 1"):
        CallRate(per_minute)


@given(
    st.integers(1, 8),
    st.floats(-1e6, 1e6),
    st.lists(st.one_of(st.floats(0, 0.5), st.floats(0, 70), st.floats(0, 500)), max_size=200),
)
def test_never_more_in_any_minute_and_the_wait_is_right(per_minute, start, steps):
    """In every 60 s at most the limit are taken; who is told to wait finds a place then; nobody waits past 61 s."""
    rate, now, taken = CallRate(per_minute), start, []
    for step in steps:
        now += step
        counting = [at for at in taken if math.floor(at) >= math.floor(now) - 60]
        assert rate.counted(now) == len(counting)
        wait = rate.take(now)
        if len(counting) < per_minute:
            assert wait == 0.0
        else:
            assert wait == math.floor(counting[0]) + 61 - now
            assert 0 < wait <= 61
        if wait == 0.0:
            taken.append(now)
    for index in range(len(taken) - per_minute):
        assert taken[index + per_minute] - taken[index] > 60 - 1e-9
