"""Waits: full jitter for calls, decorrelated jitter and first delays for connects."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.backoff import (
    CAP,
    LONE_LOSS_AFTER,
    THROTTLED_BASE,
    TRANSIENT_BASE,
    TRANSITIONS,
    ConnectBackoff,
    call_backoff,
    full_jitter,
)
from sidecar.core.classifier import classify
from sidecar.core.outcome import OWN
from sidecar.core.transitions import IllegalTransition
from sidecar.errors import ConnectFailed, ConnectionLost, MalformedFrame, UpgradeRefused, UpstreamError

FAILED = classify(ConnectFailed("tcp", "refused"))
REFUSED = classify(UpgradeRefused(401, {}))
CUT = ConnectionLost(1006, how="eof")
GOING = ConnectionLost(1001, how="close")


def low():
    """The shortest wait."""
    return 0.0


def high():
    """The longest wait."""
    return 1.0


def half():
    """The middle."""
    return 0.5


@given(st.integers(min_value=-3, max_value=10_000), st.floats(0, 1, exclude_max=True))
def test_full_jitter_stays_within_its_bounds(attempt, chance):
    """U(0, min(cap, base * 2^(attempt-1))), for any attempt."""
    wait = full_jitter(attempt, jitter=lambda: chance)
    assert 0 <= wait <= min(2.0, 0.1 * 2 ** min(max(attempt - 1, 0), 60))


def test_full_jitter_doubles_up_to_the_cap():
    """The ceilings are 0.1, 0.2, 0.4 ... 2 s."""
    assert [full_jitter(n, jitter=high) for n in (1, 2, 3, 5, 6, 70)] == [0.1, 0.2, 0.4, 1.6, 2.0, 2.0]


def said(status, retry_after=None, code=None):
    """An error frame's outcome."""
    return classify(UpstreamError("m", status=status, retry_after=retry_after, code=code))


outcomes = st.one_of(
    st.sampled_from([outcome for _, outcome in OWN]),
    st.builds(said, st.sampled_from([400, 401, 402, 429, 500, 503, 529]), st.none() | st.floats(0, 1e4)),
    st.builds(lambda code: classify(ConnectionLost(code, how="close")), st.sampled_from([1001, 1006, 1011, 1013])),
)
chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 1000), outcomes, st.floats(-5, 3600), chances)
def test_a_calls_wait_fits_into_what_remains(count, outcome, remaining, chance):
    """At most half of what remains and never above the cap, but for a Retry-After, which is a floor plus a fifth."""
    wait = call_backoff(count, outcome, remaining, lambda: chance)
    if outcome.retry in {"never", "next_target"}:
        assert wait == math.inf
        return
    longest = min(CAP, max(0.0, remaining) / 2)
    floor = outcome.retry_after or 0.0
    assert floor <= wait <= max(longest, 1.2 * floor) + 1e-9
    if outcome.retry == "now" and not floor:
        assert wait == (0 if count == 1 else min(LONE_LOSS_AFTER, max(0.0, remaining) / 8))


@given(st.integers(1, 40), st.floats(0, 600), chances, chances)
def test_a_calls_wait_grows_with_each_loss_and_with_what_remains(count, remaining, chance, other):
    """At the same throw of the dice: never shorter after one more loss, with more time, or with a higher throw."""
    lower, higher = sorted((chance, other))
    for status in (500, 429):
        wait = call_backoff(count, said(status), remaining, lambda: lower)
        assert call_backoff(count + 1, said(status), remaining, lambda: lower) >= wait
        assert call_backoff(count, said(status), remaining * 2, lambda: lower) >= wait
        assert call_backoff(count, said(status), remaining, lambda: higher) >= wait


def test_a_throttled_call_waits_from_a_second_on_a_failed_one_from_a_tenth():
    """The two bases, as the longest waits of a call that has a minute left; scaled down where less is left."""
    for outcome, waits in (
        (said(500), [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]),
        (said(503), [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]),
        (said(429), [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        (classify(ConnectionLost(1013, how="close")), [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
    ):
        assert [call_backoff(n, outcome, 60, high) for n in range(1, 7)] == waits
    assert (TRANSIENT_BASE, THROTTLED_BASE) == (0.1, 1.0)
    assert call_backoff(1, said(429), 0.4, high) == pytest.approx(0.05)
    assert call_backoff(9, said(429), 0.4, high) == pytest.approx(0.2)
    assert call_backoff(1, said(500), 0, high) == call_backoff(1, said(500), -1, high) == 0


def test_a_call_does_not_run_through_all_connections_that_a_server_ends_in_one_moment():
    """The first time it is sent again at once; then when what was said on the others has been heard, too."""
    going = classify(ConnectionLost(1006, "going away before it was looked at", how="unprocessed"))
    for outcome in (going, classify(GOING)):
        assert [call_backoff(n, outcome, 3.0, low) for n in (1, 2, 3)] == [0, LONE_LOSS_AFTER, LONE_LOSS_AFTER]
    assert call_backoff(2, going, 0.08, high) == pytest.approx(0.01)


def test_a_retry_after_is_a_floor_for_a_call():
    """What the upstream asked for, plus up to a fifth, even where it does not fit; a short one shortens nothing."""
    assert call_backoff(1, said(429, 3), 1, low) == 3
    assert call_backoff(1, said(503, 3), 60, high) == pytest.approx(3.6)
    assert call_backoff(2, said(429, 0.1), 60, high) == 2.0
    assert call_backoff(1, said(429, 0), 60, low) == 0


def test_a_fresh_backoff_lets_connects_start_at_once():
    """Nothing has happened: no wait."""
    backoff = ConnectBackoff()
    assert backoff.next_attempt_at == -math.inf
    assert repr(backoff) == "<ConnectBackoff steady failures=0 delay=0.000>"
    backoff.connected(5)
    assert backoff.next_attempt_at <= 5


def test_the_first_failure_waits_up_to_a_second_then_decorrelated():
    """First U(0, 1), then min(10, U(0.25, 3 * previous)), never above the cap."""
    backoff = ConnectBackoff()
    now, waits = 100.0, []
    for _ in range(7):
        backoff.failed(FAILED, now, high)
        waits.append(backoff.next_attempt_at - now)
        now = backoff.next_attempt_at
    assert waits == pytest.approx([1, 0.75, 2.25, 6.75, 10, 10, 10])
    assert backoff.statistics().failures == 7
    assert backoff.statistics().state == "waiting"


def test_failures_of_one_handful_grow_the_wait_once():
    """Sixteen connects that were started together and fail together are one piece of news."""
    backoff = ConnectBackoff()
    backoff.failed(FAILED, 0, half)
    at = backoff.next_attempt_at
    for _ in range(15):
        backoff.failed(FAILED, 0.1, high)
    assert backoff.next_attempt_at == at


@pytest.mark.parametrize(
    ("fault", "spread"),
    [
        (CUT, 1),
        (ConnectionLost(1011, how="close"), 1),
        (ConnectionLost(1006, how="silence"), 1),
        (MalformedFrame("?"), 1),
        (GOING, 5),
        (ConnectionLost(1012, how="close"), 5),
        (ConnectionLost(1013, how="close"), 5),
    ],
)
def test_the_first_delay_after_a_loss(fault, spread):
    """U(0, 1 s) after a cut, U(0, 5 s) when the server went in good order and all its clients come back."""
    backoff = ConnectBackoff()
    backoff.lost(fault, 10, high)
    assert backoff.next_attempt_at == pytest.approx(10 + spread)
    gentle = ConnectBackoff()
    gentle.lost(fault, 10, low)
    assert gentle.next_attempt_at == pytest.approx(10)


def test_stragglers_of_one_outage_draw_nothing_new():
    """64 connections lost together: one draw, unless a wider kind of outage shows."""
    backoff = ConnectBackoff()
    backoff.lost(CUT, 10, half)
    backoff.lost(CUT, 10.01, high)
    assert backoff.next_attempt_at == pytest.approx(10.5)
    backoff.lost(GOING, 10.02, half)
    assert backoff.next_attempt_at == pytest.approx(12.52)
    backoff.lost(GOING, 10.03, high)
    assert backoff.next_attempt_at == pytest.approx(12.52)


def test_a_connection_that_did_not_last_lets_the_wait_grow():
    """Taken in and thrown out again, over and over: decorrelated growth, as if it had failed."""
    backoff, now, waits = ConnectBackoff(), 0.0, []
    for _ in range(6):
        backoff.connected(now)
        now += 0.5
        backoff.lost(CUT, now, high)
        waits.append(backoff.next_attempt_at - now)
        now = backoff.next_attempt_at
    assert waits == pytest.approx([1, 2.25, 6.75, 10, 10, 10])
    assert backoff.early_attempt_at == backoff.next_attempt_at, "no shortcut"


def test_a_spare_after_a_graceful_close_waits_as_after_an_outage():
    """A cut one is replaced soon while others stand; one of a service that empties a node is not."""
    for fault, spare_waits in ((CUT, LONE_LOSS_AFTER), (GOING, 2.5)):
        backoff = ConnectBackoff()
        backoff.connected(0)
        backoff.lost(fault, 100, half, lived=100)
        assert backoff.early_attempt_at == pytest.approx(100 + LONE_LOSS_AFTER)
        assert backoff.early_spare_at == pytest.approx(100 + spare_waits)


def test_a_server_that_takes_all_in_and_throws_them_out_is_not_hammered():
    """Eight connects at once, each taken in and dropped a moment later: none of them lifts the wait of the others."""
    backoff, dice = ConnectBackoff(), random.Random(3).random
    now, made = 0.0, 0
    while now < 60:
        for _ in range(8):  # those that were being made when the first was dropped
            backoff.connected(now)
            backoff.lost(CUT, now + 0.01, dice, lived=0.01)
            now += 0.002
            made += 1
        assert backoff.next_attempt_at > now
        waited = backoff.next_attempt_at - now
        now = backoff.next_attempt_at
    assert waited > 1, "it has grown"
    assert made <= 8 * 40
    backoff.connected(now)
    assert backoff.next_attempt_at <= now, "once the wait is over, a success is one"


def test_a_connect_that_fails_while_such_a_wait_runs_grows_nothing():
    """It was started before the loss: the same trouble."""
    backoff = ConnectBackoff()
    backoff.connected(0)
    backoff.lost(CUT, 0.1, half, lived=0.1)
    at = backoff.next_attempt_at
    backoff.connected(0.12)
    assert backoff.only_lost
    backoff.failed(FAILED, 0.15, half)
    assert backoff.next_attempt_at == at
    assert not backoff.only_lost, "nothing is replaced at once while connects fail"


def test_sixty_stable_seconds_forget_the_growth():
    """After a minute without trouble an outage starts from its first delay again."""
    backoff = ConnectBackoff()
    for at in (0, 20, 40):
        backoff.failed(FAILED, at, high)
    backoff.connected(100)
    backoff.connected(120)  # a rotation's connect does not start the minute anew
    backoff.failed(FAILED, 161, high)
    assert backoff.next_attempt_at == pytest.approx(162)
    soon = ConnectBackoff()
    for at in (0, 20, 40):
        soon.failed(FAILED, at, high)
    soon.connected(100)
    soon.failed(FAILED, 130, high)
    assert soon.next_attempt_at == pytest.approx(130 + 6.75), "not stable yet: the growth goes on"


def test_the_age_of_the_lost_connection_decides_when_known():
    """One old connection lost just after a new one was opened is no sign of flapping."""
    backoff = ConnectBackoff()
    backoff.connected(100)
    backoff.lost(CUT, 101, high, lived=3000)
    assert backoff.next_attempt_at == pytest.approx(102)
    assert backoff.early_attempt_at == pytest.approx(101 + LONE_LOSS_AFTER)
    backoff.failed(FAILED, 101.5, high)
    assert backoff.early_attempt_at == backoff.next_attempt_at, "a failed connect ends the shortcut"


def test_retry_after_is_a_floor_that_nothing_lowers():
    """Retry-After plus U(0, 20 %); a success of another connect does not lift it."""
    backoff = ConnectBackoff()
    throttled = classify(UpgradeRefused(429, {"retry-after": "20"}))
    backoff.failed(throttled, 0, high)
    assert backoff.next_attempt_at == pytest.approx(24)
    backoff.connected(1)
    assert backoff.next_attempt_at == pytest.approx(24)
    assert backoff.early_attempt_at == pytest.approx(24)
    backoff.failed(classify(UpgradeRefused(429, {"retry-after": "1"})), 2, low)
    assert backoff.next_attempt_at == pytest.approx(24)


def test_a_refused_credential_waits_long_and_says_so():
    """401: from 30 s up to 5 min, no hot loop, until a connect succeeds."""
    backoff, now, waits = ConnectBackoff(), 0.0, []
    for _ in range(4):
        backoff.failed(REFUSED, now, high)
        assert backoff.refused
        waits.append(backoff.next_attempt_at - now)
        now = backoff.next_attempt_at
    assert waits == pytest.approx([90, 270, 300, 300])
    backoff.connected(now)
    assert not backoff.refused
    backoff.failed(FAILED, now + 1, high)
    assert backoff.next_attempt_at == pytest.approx(now + 2), "the long waits are forgotten"


def test_a_refusal_outweighs_the_failures_around_it():
    """Within its wait neither a failed straggler nor a lost connection shortens the refusal; afterwards one may."""
    backoff = ConnectBackoff()
    backoff.failed(FAILED, 0, high)
    backoff.failed(REFUSED, 0.1, low)
    assert backoff.next_attempt_at == pytest.approx(30.1)
    backoff.failed(FAILED, 0.2, high)
    backoff.failed(REFUSED, 0.3, high)
    backoff.lost(CUT, 0.4, high)
    assert backoff.refused
    assert backoff.next_attempt_at == pytest.approx(30.1)
    backoff.failed(FAILED, 31, high)
    assert not backoff.refused
    assert backoff.next_attempt_at == pytest.approx(32)


def test_a_new_credential_is_tried_at_once():
    """`credential_changed` clears a refusal, and nothing else."""
    backoff = ConnectBackoff()
    backoff.failed(REFUSED, 0, high)
    backoff.credential_changed()
    assert not backoff.refused
    assert backoff.next_attempt_at == -math.inf
    backoff.failed(FAILED, 1, high)
    at = backoff.next_attempt_at
    backoff.credential_changed()
    assert backoff.next_attempt_at == at


def test_the_table_refuses_what_it_does_not_know():
    """An unknown event raises."""
    with pytest.raises(IllegalTransition, match="connect backoff: 'explode' in state 'steady'"):
        TRANSITIONS.after("steady", "explode")


events = st.lists(
    st.tuples(st.sampled_from(["failed", "refused", "cut", "going", "connected", "changed"]), st.floats(0, 100)),
    max_size=60,
)


@given(events, st.integers())
def test_waits_are_bounded_whatever_happens(history, seed):
    """No wait is longer than 10 s, or 5 min while refused; and no two failures in a row are without any wait."""
    backoff, chance, now, short_lived = ConnectBackoff(), random.Random(seed).random, 0.0, False
    for event, gap in history:
        now += gap
        short_lived = short_lived or event in {"cut", "going"}
        if event == "failed":
            backoff.failed(FAILED, now, chance)
        elif event == "refused":
            backoff.failed(REFUSED, now, chance)
        elif event in {"cut", "going"}:
            backoff.lost(CUT if event == "cut" else GOING, now, chance)
        elif event == "connected":
            backoff.connected(now)
            # It lifts every wait but that after a connection that did not last.
            assert backoff.next_attempt_at <= now or short_lived
        else:
            backoff.credential_changed()
        assert backoff.next_attempt_at - now <= (300 if backoff.refused else 10)
        assert backoff.early_attempt_at <= backoff.next_attempt_at
        if event == "refused":
            assert backoff.refused
            assert backoff.next_attempt_at > now


def test_an_operators_word_is_newer_than_what_was_told():
    """`told_to_try`: neither a Retry-After, nor a failure's wait, nor one lost too soon keeps the next connect."""
    backoff = ConnectBackoff()
    backoff.failed(classify(UpgradeRefused(429, {"retry-after": "20"})), 0, high)
    backoff.lost(CUT, 1, high, lived=0.5)
    assert backoff.next_attempt_at > 20
    backoff.told_to_try()
    assert backoff.next_attempt_at == backoff.early_attempt_at == -math.inf
    backoff.connected(2)
    assert backoff.next_attempt_at <= 2, "nothing of it comes back with a success"
    backoff.failed(FAILED, 3, high)
    assert backoff.next_attempt_at > 3, "what is learnt afterwards holds"
