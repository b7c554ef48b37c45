"""The pace of a credential: not before what was asked, longer each time that was not enough, once per wait."""

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.classifier import classify
from sidecar.core.throttle import Throttle
from sidecar.errors import UpstreamError

PLAIN = classify(UpstreamError("slow down", status=429))


def asking(seconds):
    """A 429 with Retry-After."""
    return msgspec.structs.replace(PLAIN, retry_after=seconds)


def high():
    """The longest wait."""
    return 1.0


def low():
    """The shortest wait."""
    return 0.0


def test_a_fresh_credential_is_ready():
    """Nothing has happened: -inf, and a success changes nothing."""
    it = Throttle(jitter=high)
    it.succeeded(5)
    assert it.ready_at == -math.inf
    assert repr(it) == "<Throttle ready_at=-inf in_a_row=0 throttled=0>"


def test_retry_after_is_what_was_asked_and_up_to_a_fifth_more():
    """Never before it; not all at the same instant after it."""
    for dice, at in ((low, 12.0), (high, 12.4)):
        it = Throttle(jitter=dice)
        it.throttled(asking(2.0), 10)
        assert it.ready_at == pytest.approx(at)


def test_without_retry_after_the_ceiling_doubles_with_each_wait():
    """1, 2, 4 ... 30 s, and 1 again after a success."""
    it, now, waits = Throttle(jitter=high), 0.0, []
    for _ in range(7):
        it.throttled(PLAIN, now)
        waits.append(it.ready_at - now)
        now = it.ready_at
    assert waits == pytest.approx([1, 2, 4, 8, 16, 30, 30])
    it.succeeded(now)
    it.throttled(PLAIN, now + 1)
    assert it.ready_at == pytest.approx(now + 2)


def test_forty_in_flight_count_once():
    """All were sent before anybody knew: one wait, one growth."""
    it = Throttle(jitter=high)
    for late in range(40):
        it.throttled(PLAIN, late / 1000)
    assert it.ready_at == 1.0
    assert it.statistics().in_a_row == 1
    assert it.statistics().throttled == 40


def test_of_forty_different_requests_the_longest_wins():
    """In whatever order they come; and they grow nothing."""
    asked = [0.01 * number for number in range(40)] + [7.0, 3.0, 0.0]
    random.Random(1).shuffle(asked)
    it = Throttle(jitter=low)
    for seconds in asked:
        it.throttled(asking(seconds), 0)
    it.throttled(PLAIN, 0.5)
    assert it.ready_at == 7.0
    assert it.statistics().in_a_row == 1


def test_a_shorter_word_later_does_not_shorten_the_wait():
    """Who was told 20 s waits 20 s, though another was told 1."""
    it = Throttle(jitter=low)
    it.throttled(asking(20.0), 0)
    it.throttled(asking(1.0), 5)
    assert it.ready_at == 20


def test_retry_after_zero_is_no_leave_to_hammer():
    """The upstream says now, and refuses again: that is a wait without Retry-After."""
    it, now, waits = Throttle(jitter=high), 0.0, []
    for _ in range(4):
        it.throttled(asking(0.0), now)
        waits.append(it.ready_at - now)
        now = it.ready_at
    assert waits == pytest.approx([1, 2, 4, 8])


def test_a_retry_after_that_is_too_short_is_obeyed_once():
    """0.2 s may be right; when it proves not to be, it is only a floor."""
    it, now, waits = Throttle(jitter=high), 0.0, []
    for _ in range(3):
        it.throttled(asking(0.2), now)
        waits.append(it.ready_at - now)
        now = it.ready_at
    assert waits == pytest.approx([0.24, 2, 4])
    floor = Throttle(jitter=low)
    floor.throttled(asking(0.2), 0)
    floor.throttled(asking(0.2), 1)
    assert floor.ready_at == pytest.approx(1.2)


def test_a_retry_after_of_the_base_and_more_is_the_upstreams_word():
    """However often it is said: its own backoff goes before ours."""
    it, now = Throttle(jitter=high), 0.0
    for _ in range(8):
        it.throttled(asking(2.0), now)
        assert it.ready_at - now == pytest.approx(2.4)
        now = it.ready_at


@pytest.mark.parametrize("asked", [5000.0, 1e300, math.inf, math.nan])
def test_nobody_is_locked_out_for_days(asked):
    """An hour at most, whatever was asked."""
    it = Throttle(jitter=high)
    it.throttled(asking(asked), 0)
    assert 0 < it.ready_at <= 3600


def test_a_clock_that_stands_still_is_one_wait():
    """Also when the dice make nothing of it."""
    it = Throttle(jitter=low)
    for _ in range(40):
        it.throttled(PLAIN, 3.0)
    assert it.ready_at == 3.0
    assert it.statistics().in_a_row == 1


def test_a_success_while_it_waits_is_old_news():
    """What was sent before the 429 is answered still; that lifts nothing and forgets nothing."""
    it = Throttle(jitter=high)
    it.throttled(PLAIN, 0)
    it.throttled(PLAIN, 1)
    it.succeeded(2)
    assert it.ready_at == 3
    it.throttled(PLAIN, 3)
    assert it.ready_at == 7


def test_another_credential_has_limits_of_its_own():
    """It may be used at once, and its first wait is small."""
    it = Throttle(jitter=high)
    it.throttled(asking(600.0), 0)
    it.credential_changed()
    assert it.ready_at == -math.inf
    it.throttled(PLAIN, 0)
    assert it.ready_at == 1


@pytest.mark.parametrize("bad", [{"base": 0.0}, {"cap": 0.5}, {"longest": 1.0}])
def test_impossible_paces_are_refused(bad):
    """0 < base <= cap <= longest."""
    with pytest.raises(ValueError, match="base <= cap"):
        Throttle(jitter=high, **bad)


events = st.lists(
    st.tuples(
        st.sampled_from(["plain", "asking", "good", "changed"]), st.floats(0, 40), st.floats(0, 1e4), st.floats(0, 1)
    ),
    max_size=60,
)


@settings(deadline=None)
@given(events)
def test_waits_are_bounded_and_never_shortened(history):
    """At least what was asked (up to an hour), at most that and a fifth, or 30 s; only a new credential shortens it."""
    dice = [0.5]
    it, now = Throttle(jitter=lambda: dice[0]), 0.0
    for what, gap, seconds, chance in history:
        now += gap
        before, dice[0] = it.ready_at, chance
        row = it.statistics().in_a_row
        if what == "changed":
            it.credential_changed()
            assert it.ready_at == -math.inf
            continue
        if what == "good":
            it.succeeded(now)
            assert it.ready_at == before
            continue
        asked = seconds if what == "asking" else 0.0
        it.throttled(asking(asked) if asked else PLAIN, now)
        assert it.ready_at >= before
        assert it.ready_at >= min(now + asked, now + 3600)
        assert it.ready_at <= max(before, now + 30, min(now + 1.2 * asked, now + 3600))
        assert it.statistics().in_a_row <= row + 1
        if before > now:
            assert it.statistics().in_a_row == row


def test_a_count_that_is_used_up_holds_without_growing():
    """`hold`: not before so many seconds, jittered, never shorter than a wait that runs, and no step of the growth."""
    it = Throttle(jitter=high)
    it.hold(2.0, 10)
    assert it.ready_at == pytest.approx(12.4)
    it.hold(0.1, 10)
    assert it.ready_at == pytest.approx(12.4)
    assert (it.statistics().in_a_row, it.statistics().throttled) == (0, 0)
