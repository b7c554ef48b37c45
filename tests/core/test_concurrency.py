"""The limit of attempts at once: cut once per overload, grown by what is answered, never stuck, never below 1."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core import outcome as o
from sidecar.core.classifier import classify
from sidecar.core.concurrency import ConcurrencyLimit
from sidecar.core.transitions import IllegalTransition
from sidecar.errors import ConnectionLost, UpstreamError

THROTTLED = classify(UpstreamError("slow down", status=429))
TRY_LATER = classify(ConnectionLost(1013, how="close"))
UNAVAILABLE = classify(UpstreamError("unavailable", status=503))
OVERLOADED = classify(UpstreamError("overloaded", status=529))
BROKEN = classify(UpstreamError("broken", status=500))
CUT = classify(ConnectionLost())
REJECTED = classify(UpstreamError("too long", code="context_length_exceeded"))


def attempts(it, number, outcome, *, slow=False):
    """So many at once, all ended alike."""
    for _ in range(number):
        it.taken()
    for _ in range(number):
        it.released(outcome, slow=slow)


def fill(it, lane="entry"):
    """Take every place that this lane has; how many that were."""
    number = 0
    while it.has_room(lane):
        it.taken()
        number += 1
    return number


def crowded(it, number, outcome=o.SUCCESS, lane="exit"):
    """So many ends, one after the other, while every place that this lane has is taken again at once."""
    fill(it, lane)
    for _ in range(number):
        it.released(outcome)
        fill(it, lane)
    return it.limit


def test_it_starts_at_its_maximum():
    """Without a signal there is nothing to limit."""
    it = ConcurrencyLimit(64)
    assert it.limit == 64
    assert repr(it) == "<ConcurrencyLimit 0/64 maximum=64 cuts=0>"
    attempts(it, 64, o.SUCCESS)
    assert it.limit == 64


def test_the_maximum_may_turn_out_to_be_another():
    """What has not been cut goes with it; what has been is not given more for that, and never more than there is."""
    it = ConcurrencyLimit(32)
    it.bound(4)
    assert it.limit == 4
    attempts(it, 4, o.SUCCESS)
    assert it.limit == 4
    it.bound(32)
    assert it.limit == 32
    attempts(it, 32, OVERLOADED)
    cut = it.limit
    assert cut < 32
    it.bound(64)
    assert it.limit == cut
    it.bound(2)
    assert it.limit == 2


@pytest.mark.parametrize("outcome", [THROTTLED, TRY_LATER, UNAVAILABLE, OVERLOADED])
def test_an_overload_cuts_once_for_all_that_were_in_flight(outcome):
    """Forty on their way together are refused together: one cut. The next two to be refused are news."""
    it = ConcurrencyLimit(100)
    attempts(it, 40, outcome)
    assert it.limit == 70
    attempts(it, 1, outcome)
    assert it.limit == 70
    attempts(it, 1, outcome)
    assert it.limit == 49
    assert it.statistics().cuts == 2


@pytest.mark.parametrize("outcome", [BROKEN, CUT, REJECTED, o.CANCELLED, o.DEADLINE, o.IDLE_TIMEOUT])
def test_what_is_no_overload_does_not_move_it(outcome):
    """Losses, plain errors, the call's own fault, a cancel: neither less nor more."""
    it = ConcurrencyLimit(64)
    attempts(it, 10, outcome)
    assert it.limit == 64
    attempts(it, 40, THROTTLED)
    before = it.limit
    attempts(it, 100, outcome)
    assert it.limit == before


@pytest.mark.parametrize("outcome", [o.SUCCESS, o.CANCELLED, o.FIRST_DELTA_TIMEOUT])
def test_slow_is_overloaded_whatever_came_of_it(outcome):
    """Who was overtaken by its full first-delta timeout tells of load, also when it was answered at last."""
    it = ConcurrencyLimit(10)
    attempts(it, 4, outcome, slow=True)
    assert it.limit == 7


@pytest.mark.parametrize(("outcome", "slow", "tolerated", "too_many"), [
    (UNAVAILABLE, False, 12, 8),
    (o.CANCELLED, True, 7, 4),
])  # fmt: skip
@pytest.mark.parametrize("in_flight", [1, 30])
def test_what_is_refused_now_and_then_is_no_overload(outcome, slow, tolerated, too_many, in_flight):
    """One in twelve, or one in seven slow, cuts nothing for ever; one in eight, or one in four slow, does."""
    for every, cuts in ((tolerated, False), (too_many, True)):
        it = ConcurrencyLimit(64)
        for _ in range(in_flight):
            it.taken()
        for number in range(1000):
            bad = number % every == 0
            it.released(outcome if bad else o.SUCCESS, slow=slow and bad)
            it.taken()
        assert (it.statistics().cuts > 0) == cuts, every


def test_by_chance_alone_it_stays_near_its_maximum():
    """2 % refused, whatever is asked: a few are cut off at times, and they come back also where few are in flight."""
    for in_flight in (2, 60):
        chance, it, limits = random.Random(4).random, ConcurrencyLimit(64), []
        for _ in range(20_000):
            while it.in_flight < min(in_flight, it.limit):
                it.taken()
            it.released(OVERLOADED if chance() < 0.02 else o.SUCCESS)
            limits.append(it.limit)
        assert sum(limits) / len(limits) > 24


def test_above_the_threshold_it_grows_by_one_per_limits_worth():
    """Congestion avoidance after a cut; never above the maximum."""
    it = ConcurrencyLimit(10)
    attempts(it, 10, THROTTLED)
    assert it.limit == 7
    assert [crowded(it, 8), crowded(it, 9), crowded(it, 10), crowded(it, 100)] == [8, 9, 10, 10]


def test_it_grows_slowly_while_it_is_hardly_used():
    """Successes of a few say little of many: a quarter of what those say that fill half of it."""
    it = ConcurrencyLimit(100)
    attempts(it, 100, THROTTLED)
    for _ in range(4 * 70):
        attempts(it, 1, o.SUCCESS)
    assert it.limit == 70
    for _ in range(8):
        attempts(it, 1, o.SUCCESS)
    assert it.limit == 71


def test_what_was_in_flight_at_a_cut_does_not_let_it_grow():
    """They were sent before the overload: their success says nothing of what comes after."""
    it = ConcurrencyLimit(10)
    for _ in range(10):
        it.taken()
    it.released(THROTTLED)
    it.released(THROTTLED)
    for _ in range(8):
        it.released(o.SUCCESS)
    assert it.limit == 7


def test_after_an_outage_it_starts_small_and_doubles_up_to_half_of_before():
    """Slow start from `first`, then one by one."""
    it = ConcurrencyLimit(64)
    it.restart()
    assert it.limit == 4
    assert [crowded(it, ends) for ends in (4, 8, 16)] == [8, 16, 32]
    assert [crowded(it, 33), crowded(it, 34)] == [33, 34]
    assert it.statistics().restarts == 1


def test_a_restart_never_gives_more():
    """Who bore less than `first` before the outage is not given more after it."""
    it = ConcurrencyLimit(64)
    assert crowded(it, 1000, THROTTLED) == 1
    it.restart()
    assert it.limit == 1


def test_a_restart_takes_no_place_from_who_is_in_flight():
    """Another model of the upstream is well: its thirty go on, and as many may follow them."""
    it = ConcurrencyLimit(64)
    for _ in range(30):
        it.taken()
    it.restart()
    assert it.limit == 30
    it.released(o.SUCCESS)
    assert it.has_room("exit")


def test_an_outage_of_overloads_does_not_forget_what_was_borne_before():
    """503 only, until nothing is left: then the way back is doubling, as the threshold is that of the first cut."""
    it = ConcurrencyLimit(64)
    attempts(it, 64, o.SUCCESS)
    assert crowded(it, 1000, UNAVAILABLE) == 1
    assert it.statistics().threshold == 44
    it.restart()
    it.restart()
    assert it.statistics().threshold == 44
    assert crowded(it, 44) >= 44


def test_when_some_are_answered_the_threshold_follows():
    """An upstream that answers half of the calls is there, and bears only so much."""
    it = ConcurrencyLimit(64)
    for _ in range(40):
        attempts(it, 2, o.SUCCESS)
        attempts(it, 2, THROTTLED)
    assert it.limit <= 2
    assert it.statistics().threshold <= 2


@pytest.mark.parametrize("maximum", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("lane", ["exit", "entry", "research"])
def test_it_is_never_stuck(maximum, lane):
    """From 1, and with the exit lane's places never used, whoever is answered brings it back to its maximum."""
    it = ConcurrencyLimit(maximum)
    for _ in range(40):
        attempts(it, 1, o.SUCCESS)
        attempts(it, 6, THROTTLED)
    assert it.limit == 1
    assert crowded(it, 3000, lane=lane) == maximum


@pytest.mark.parametrize(("maximum", "ordinary"), [(1, 1), (2, 1), (3, 2), (15, 14), (16, 14), (64, 56)])
def test_the_last_places_are_for_exit(maximum, ordinary):
    """An eighth, one at least; a limit of one is everybody's."""
    it = ConcurrencyLimit(maximum)
    assert fill(it, "research") == ordinary
    assert not it.has_room("entry")
    assert fill(it, "exit") == maximum - ordinary
    assert not it.has_room("exit")


def test_what_never_began_cannot_end():
    """A bug of ours raises, and nothing has changed."""
    it = ConcurrencyLimit(4)
    with pytest.raises(IllegalTransition, match="none is in flight"):
        it.released(THROTTLED)
    assert it.in_flight == 0
    assert it.limit == 4


@pytest.mark.parametrize("bad", [{"maximum": 0}, {"maximum": 1, "first": 0}])
def test_impossible_limits_are_refused(bad):
    """A limit below 1 would never end."""
    with pytest.raises(ValueError, match="at least 1"):
        ConcurrencyLimit(**bad)


steps = st.lists(
    st.tuples(st.sampled_from(["exit", "entry", "good", "bad", "plain", "slow", "restart"]), st.integers(1, 20)),
    max_size=80,
)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 10), steps)
def test_whatever_happens_it_stays_within_its_bounds(maximum, first, history):
    """1 <= limit <= maximum; cuts only by overloads, at most one per release; room is what the limit says."""
    it = ConcurrencyLimit(maximum, first=first)
    flying = overloads = 0
    for what, number in history:
        for _ in range(number):
            before = it.limit
            if what == "restart":
                it.restart()
                assert it.limit <= max(first, flying)
            elif what in {"exit", "entry"}:
                assert it.has_room("entry") <= it.has_room("exit")
                assert it.has_room("exit") == (flying < it.limit)
                it.taken()
                flying += 1
            elif flying:
                flying -= 1
                overloads += what in {"bad", "slow"}
                it.released({"good": o.SUCCESS, "bad": OVERLOADED}.get(what, CUT), slow=what == "slow")
                assert it.limit <= before + 1
                if what != "good":
                    assert it.limit <= before
                if what == "plain":
                    assert it.limit == before
            assert it.in_flight == flying
            assert 1 <= it.limit <= maximum
    said = it.statistics()
    assert said.cuts <= overloads
    assert (said.in_flight, said.limit, said.maximum) == (flying, it.limit, maximum)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(0, 40))
def test_it_settles_around_what_the_upstream_bears(capacity, turns):
    """An upstream that refuses what is above its capacity: the limit ends between half of it and a little more."""
    it = ConcurrencyLimit(128)
    for _ in range(40 + turns):
        number = fill(it, "exit")
        for place in range(number):
            it.released(o.SUCCESS if place < capacity else THROTTLED)
    assert capacity / 2 <= it.limit <= capacity + 2
