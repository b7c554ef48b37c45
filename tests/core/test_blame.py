"""Whose fault: one bot's failures are its own only while others are answered; then it is barred, and nobody else."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from sidecar.core import blame
from sidecar.core import outcome as o
from sidecar.core.blame import HOLDERS, NEWS, TRANSITIONS, TRIAL_TIMEOUT, Blame
from sidecar.core.breaker import Breaker
from sidecar.core.classifier import classify
from sidecar.core.permit import Permit
from sidecar.core.transitions import IllegalTransition
from sidecar.errors import ConnectionLost

LOST = classify(ConnectionLost())
NOT_COUNTED = structs.replace(LOST, kind=o.Kind.IGNORED, counts_against_breaker=False)
BAD, WORSE, GOOD, FINE = "bad", "worse", "good", "fine"


def judge():
    """Whose dice show the middle: it bars for 1.5, 3, 6, 12, 22.5, 22.5 s."""
    return Blame(jitter=lambda: 0.5)


def barred(it=None, now=0.0):
    """A judge that has just barred `BAD`, at `now`, until `now` + 1.5."""
    it = it or judge()
    it.failed(BAD, now - 3)
    it.failed(BAD, now - 2)
    it.succeeded(GOOD, now - 1)
    assert not any(it.failed(BAD, now) for _ in range(5))
    return it


def test_the_third_in_a_row_is_its_own_doing_while_another_is_answered():
    """The first two count in any case."""
    it = judge()
    assert it.failed(BAD, 0)
    it.succeeded(GOOD, 1)
    assert it.failed(BAD, 2)
    assert not it.failed(BAD, 3)
    assert repr(it) == "<Blame failing=1 barred=0 own_doing=1 refused=0>"


def test_a_bot_alone_is_nobody_to_be_compared_with():
    """However often it fails: it is the upstream. Also after successes of its own."""
    it = judge()
    it.succeeded(BAD, 0)
    assert all(it.failed(BAD, now) for now in range(1, 50))
    assert it.refused_for(BAD, 50) == 0


def test_a_success_of_its_own_starts_the_count_anew():
    """Every third prompt is answered: that is no bot whose every prompt breaks."""
    it = judge()
    for now in range(0, 90, 3):
        it.succeeded(GOOD, now)
        assert it.failed(BAD, now + 1)
        assert it.failed(BAD, now + 2)
        it.succeeded(BAD, now + 2)
    assert it.statistics(90).own_doing == 0


def test_when_everybody_fails_it_is_the_upstream():
    """An outage: who was answered a moment ago fails now, and so bears no witness any more."""
    it = judge()
    it.succeeded(GOOD, 0)
    it.failed(BAD, 0.1)
    it.succeeded(GOOD, 0.2)  # its last answer before the outage
    assert it.failed(BAD, 0.3)
    assert not it.failed(BAD, 0.4), "as far as is known, the upstream answers others"
    assert it.failed(GOOD, 0.5)
    assert all(it.failed(BAD, 1 + now) for now in range(20))
    assert it.refused_for(BAD, 21) == 0


def test_the_witness_before_the_last_one_still_counts():
    """Two others were answered; that one of them failed since does not excuse the bot."""
    it = judge()
    it.failed(BAD, 0)
    it.failed(BAD, 0)
    it.succeeded(GOOD, 1)
    it.succeeded(FINE, 2)
    it.failed(FINE, 3)
    assert not it.failed(BAD, 4)
    it.succeeded(FINE, 5)
    it.failed(GOOD, 6)
    assert not it.failed(BAD, 7)
    it.failed(FINE, 8)
    assert it.failed(BAD, 9), "now nobody is answered"


def test_a_failure_silences_only_who_failed():
    """The bot fails beside two that are answered; when the later of them fails, the earlier still bears witness."""
    it = judge()
    it.failed(BAD, 0)
    it.failed(BAD, 0)
    it.succeeded(GOOD, 1)
    it.succeeded(FINE, 2)
    assert not it.failed(BAD, 3)
    it.failed(FINE, 4)
    assert not it.failed(BAD, 5)
    it.failed(FINE, 5)
    assert it.failed(FINE, 6), "the third in a row, but nobody was answered since its run began"


def test_a_witness_is_heard_for_ten_seconds():
    """Who was answered 11 s ago says nothing of now."""
    it = judge()
    it.failed(BAD, 0)
    it.failed(BAD, 0)
    it.succeeded(GOOD, 1)
    assert not it.failed(BAD, 11)
    assert it.failed(BAD, 11.1)


def test_a_witness_from_before_the_run_is_not_heard():
    """Others were answered, then this bot began to fail: perhaps the upstream broke in between."""
    it = judge()
    it.succeeded(GOOD, 0)
    assert all(it.failed(BAD, 0.1 * number) for number in range(1, 20))


def test_with_a_clock_that_stands_still_nobody_is_blamed():
    """Before and after cannot be told apart: in doubt it is the upstream."""
    it = judge()
    for _ in range(20):
        it.succeeded(GOOD, 5)
        assert it.failed(BAD, 5)


def test_five_of_its_own_doing_bar_it_here():
    """It is told how long; others may ask."""
    it = barred()
    assert it.refused_for(BAD, 0.5) == 1.0
    assert it.refused_for(GOOD, 0.5) == 0
    assert it.refused_for("new", 0.5) == 0
    said = it.statistics(0.5)
    assert (said.failing, said.barred, said.against_upstream, said.own_doing, said.refused) == (1, 1, 2, 5, 1)
    assert repr(it) == "<Blame failing=1 barred=1 own_doing=5 refused=1>"


def test_then_one_call_is_its_trial():
    """Of those that ask when the time is over one may; the others hear when its trial is given up for lost."""
    it = barred()
    assert it.refused_for(BAD, 1.5) == 0
    assert it.refused_for(BAD, 1.5) == TRIAL_TIMEOUT
    assert it.refused_for(BAD, 2.5) == TRIAL_TIMEOUT - 1
    it.succeeded(BAD, 3)
    assert [it.refused_for(BAD, 3) for _ in range(3)] == [0, 0, 0]


def test_a_failed_trial_bars_it_for_longer():
    """1.5, 3, 6, 12, 22.5 s at most, while others are answered all along."""
    it, now, waits = barred(), 0.0, []
    for _ in range(6):
        now += it.refused_for(BAD, now)
        assert it.refused_for(BAD, now) == 0
        it.succeeded(GOOD, now)
        assert not it.failed(BAD, now)
        waits.append(it.refused_for(BAD, now))
    assert waits == pytest.approx([3, 6, 12, 22.5, 22.5, 22.5])


def test_a_lost_trial_is_followed_by_another():
    """Nobody told how it ended: after a while the next call is the trial."""
    it = barred()
    assert it.refused_for(BAD, 2) == 0
    assert it.refused_for(BAD, 2 + TRIAL_TIMEOUT) == 0
    assert it.refused_for(BAD, 2 + TRIAL_TIMEOUT) == TRIAL_TIMEOUT


def test_an_unused_trial_is_given_back():
    """No connection was to be had: the next call is the trial. Without one out nothing happens."""
    it = barred()
    it.give_back(BAD, 0)
    it.give_back(GOOD, 0)
    assert it.refused_for(BAD, 0) == 1.5
    assert it.refused_for(BAD, 2) == 0
    it.give_back(BAD, 2)
    assert it.refused_for(BAD, 2) == 0
    assert it.refused_for(BAD, 2) > 0


def test_stragglers_of_a_barred_bot_do_not_bar_it_for_longer():
    """Forty were in flight, all fail: one trip, no growth, and none counts against the upstream."""
    it = barred()
    for number in range(33):
        assert not it.failed(BAD, 0.01 * number)
    assert it.refused_for(BAD, 0.5) == 1.0


@pytest.mark.parametrize("ask", [True, False])
def test_an_outage_lifts_the_bar(ask):
    """Barred, or at its trial, it fails while nobody is answered: the upstream's own breaker sees to that."""
    it = barred()
    if ask:
        assert it.refused_for(BAD, 2) == 0
    it.failed(GOOD, 2)
    assert it.failed(BAD, 2)
    assert it.refused_for(BAD, 2) == 0
    assert it.statistics(2).barred == 0


def test_an_answer_lifts_the_bar():
    """A call sent before it was barred is answered: not every prompt breaks."""
    it = barred()
    it.succeeded(BAD, 0.5)
    assert it.refused_for(BAD, 0.5) == 0
    assert it.statistics(0.5).failing == 0


def test_two_poisonous_bots_are_both_barred_beside_a_healthy_one():
    """They bear no witness for each other; the healthy one bears it against both."""
    it = judge()
    counted = 0
    for number in range(20):
        now = number * 0.1
        it.succeeded(GOOD, now)
        for holder in (BAD, WORSE):
            if it.refused_for(holder, now) == 0:
                counted += it.failed(holder, now)
    assert counted == 4
    assert it.refused_for(BAD, 2) > 0
    assert it.refused_for(WORSE, 2) > 0
    assert it.refused_for(GOOD, 2) == 0


def test_two_poisonous_bots_alone_are_an_outage():
    """Nobody is answered: who could know better?"""
    it = judge()
    assert all(it.failed(holder, 0.1 * number) for number in range(20) for holder in (BAD, WORSE))


def test_a_bot_may_be_at_fault_on_one_target_only():
    """Each target has a judge of its own: barred here, welcome there."""
    here, there = judge(), judge()
    for number in range(12):
        now = number / 10
        for target in (here, there):
            target.succeeded(GOOD, now)
        here.failed(BAD, now)
        there.succeeded(BAD, now)
    assert here.refused_for(BAD, 1.2) > 0
    assert there.refused_for(BAD, 1.2) == 0


def test_a_silent_holder_is_forgotten():
    """After a minute without a failure its run is over: the next is the first of a new one."""
    it = judge()
    it.failed(BAD, 0)
    it.failed(BAD, 1)
    it.succeeded(GOOD, 60)
    assert it.failed(BAD, 61)
    assert it.failed(BAD, 61.5)
    assert it.statistics(61.5).failing == 1
    assert it.statistics(130).failing == 0
    assert repr(it) == "<Blame failing=0 barred=0 own_doing=0 refused=0>"


def test_no_more_holders_than_fit_are_remembered():
    """Ten thousand bots that all fail: the last ones are known, the memory is bounded."""
    it = judge()
    for number in range(10_000):
        it.failed(number, 0)
    assert it.statistics(0).failing == HOLDERS
    it.failed(5, 0)
    assert it.statistics(0).failing == HOLDERS


@pytest.mark.parametrize("bad", [{"base": 0.0}, {"base": 2.0, "cap": 1.0}])
def test_impossible_times_are_refused(bad):
    """0 < base <= cap."""
    with pytest.raises(ValueError, match="base <= cap"):
        Blame(jitter=lambda: 0.5, **bad)


def opened_after(seed, *, poisonous=(), failing=0.0, bots=4, judged=True):
    """Calls of so many bots, 20 a second, 400 good ones first: how many more until the breaker opens, of 1,000 at most.

    Then every call of the poisonous fails, and this share of everybody's.
    """
    dice, now = random.Random(seed), 0.0
    breaker, it = Breaker("openai/gpt", jitter=dice.random), Blame(jitter=dice.random)
    for number in range(-400, 1000):
        now += dice.expovariate(20)
        holder = dice.randrange(bots)
        if judged and it.refused_for(holder, now):
            continue
        permit = breaker.admit(now)
        if not isinstance(permit, Permit):
            return number
        if number >= 0 and (holder in poisonous or dice.random() < failing):
            breaker.record(permit, LOST if not judged or it.failed(holder, now) else NOT_COUNTED, now)
        else:
            it.succeeded(holder, now)
            breaker.record(permit, o.SUCCESS, now)
    return 1000


@pytest.mark.parametrize(("poisonous", "most_judged"), [((0,), 1), ((0, 1), 6)])
def test_poisonous_bots_do_not_open_the_breaker_of_the_others(poisonous, most_judged):
    """One of four bots, or two, in 20 seeded histories: rarely; without a judge two of four open it nearly always."""
    seeds = range(20)
    assert sum(opened_after(seed, poisonous=poisonous) < 1000 for seed in seeds) <= most_judged
    if len(poisonous) == 2:
        assert sum(opened_after(seed, poisonous=poisonous, judged=False) < 1000 for seed in seeds) >= 15


@pytest.mark.parametrize(("failing", "within"), [(0.6, 80), (0.8, 40), (1.0, 6)])
def test_an_outage_is_found_as_soon_with_the_judge_as_without(failing, within):
    """Ten bots, of whose calls most or all begin to fail: the median of 20 histories, in calls, is nearly the same."""
    with_it, without = (
        sorted(opened_after(seed, failing=failing, bots=10, judged=judged) for seed in range(20))[10]
        for judged in (True, False)
    )
    assert with_it <= min(within, 1.5 * without)


def test_the_table_stands_at_the_head_and_refuses_what_it_does_not_know():
    """Every word of it is in the module's docstring; an unknown event raises."""
    head = Path(blame.__file__).read_text().split('"""')[1]
    for line in TRANSITIONS.markdown().splitlines()[2:]:
        for word in re.findall(r"\w+", line):
            assert word in head, word
    with pytest.raises(IllegalTransition):
        TRANSITIONS.after("failing", "try")


events = st.lists(
    st.tuples(st.sampled_from("sfar"), st.sampled_from([BAD, WORSE, GOOD, FINE]), st.floats(0, 12)), max_size=120
)


@settings(deadline=None)
@given(events, st.integers())
def test_nobody_is_blamed_without_a_witness_nor_barred_for_long(history, seed):
    """Blamed only from the third in a row on and after another's success; refused 30 s at most; a success ends it."""
    it, now = Blame(jitter=random.Random(seed).random), 0.0
    runs, ends = {}, {}  # holder -> failures in a row, (instant, answered) of its last end
    for what, holder, gap in history:
        now += gap
        others = [at for other, (at, answered) in ends.items() if answered and other != holder]
        if what == "s":
            it.succeeded(holder, now)
            runs[holder], ends[holder] = 0, (now, True)
            assert it.refused_for(holder, now) == 0
        elif what == "f":
            runs[holder], ends[holder] = runs.get(holder, 0) + 1, (now, False)
            if not it.failed(holder, now):
                assert runs[holder] > 2
                assert any(now - at <= 10 for at in others)
        elif what == "a":
            refused = it.refused_for(holder, now)
            assert 0 <= refused <= 30
            assert not (refused and runs.get(holder, 0) < 7)
        else:
            it.give_back(holder, now)
        said = it.statistics(now)
        assert said.failing <= len(runs)
        assert said.barred <= said.failing


@pytest.mark.parametrize("how", ["answered", "excused", "forgotten", "crowded out"])
def test_every_end_of_a_bar_is_news(how):
    """Who was barred is let in again by an answer, by an outage, by a minute's silence, or where too many fail."""
    it = barred()
    assert list(it.news) == [(BAD, 1.5)]
    assert it.barred(1) == [(BAD, 0.5)]
    assert it.refused_for(BAD, 2) == 0
    assert it.barred(2) == [(BAD, 0.0)], "its trial"
    it.news.clear()
    if how == "answered":
        it.succeeded(BAD, 3)
    elif how == "excused":
        it.failed(GOOD, 3)
        it.failed(BAD, 3)
    elif how == "forgotten":
        it.statistics(100)
    else:
        for number in range(HOLDERS):
            it.failed(number, 3)
    assert list(it.news) == [(BAD, 0.0)]
    assert it.barred(3) == []


def test_news_that_nobody_takes_are_bounded():
    """The newest are kept."""
    it = judge()
    for number in range(2 * NEWS):
        it.failed(number, number)
        it.failed(number, number)
        it.succeeded(GOOD, number + 0.1)
        assert not any(it.failed(number, number + 0.2) for _ in range(5))
    assert len(it.news) == NEWS
    assert it.news[-1][0] == 2 * NEWS - 1
