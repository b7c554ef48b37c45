"""Times to first delta: what is usual, when a backup is due, and what a target costs; the slow are not forgotten."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.latency import ENOUGH, FEW, SAMPLES, WEIGHT, FirstDeltaTimes


def with_samples(*seconds, gap=0.01, times=None, **fields):
    """Answers, one after the other; and the instant of the last."""
    times, now = times or FirstDeltaTimes(**fields), 0.0
    for number, one in enumerate(seconds):
        now = number * gap
        times.observe(one, now)
    return times, now


def test_nothing_is_known_of_who_was_never_asked():
    """No usual, no quantile, no backup, no cost."""
    it = FirstDeltaTimes()
    assert it.usual(0) is None
    assert it.quantile(0.95, 0) is None
    assert it.backup_after(0) is None
    assert it.cost(0) == 0.0
    assert repr(it) == "<FirstDeltaTimes samples=0 answered=0 stopped=0 failed=0 peak=0.000>"


def test_few_samples_are_no_knowledge():
    """Seven are too few for anything; from twenty on a backup knows when."""
    it, now = with_samples(*[0.1] * (FEW - 1))
    assert it.usual(now) is None
    assert it.quantile(0.5, now) is None
    it.observe(0.1, now)
    assert it.usual(now) == 0.1
    assert it.quantile(0.5, now) == 0.1
    assert it.backup_after(now) is None
    for _ in range(ENOUGH - FEW):
        it.observe(0.1, now)
    assert it.backup_after(now) == 0.1


def test_quantiles_are_by_nearest_rank():
    """Of 1 to 100 hundredths."""
    values = [number / 100 for number in range(1, 101)]
    random.Random(3).shuffle(values)
    it, now = with_samples(*values)
    assert [it.quantile(q, now + 1) for q in (0, 0.01, 0.5, 0.95, 0.99, 1)] == [0.01, 0.01, 0.5, 0.95, 0.99, 1.0]


def test_what_is_usual_is_of_the_recent():
    """A target that becomes slower, or quicker, as a whole: a few answers later that is usual."""
    it, now = with_samples(*[0.02] * 200)
    for expected in (2.0, 0.02):
        for _ in range(16):
            now += 0.01
            it.observe(expected, now)
        assert it.usual(now + 1) == 0.02, "half of the recent: the lower one"
        for _ in range(16):
            now += 0.01
            it.observe(expected, now)
        assert it.usual(now + 1) == expected


def test_after_a_slow_spell_backups_are_prompt_again_at_once():
    """Two hundred answers took 3 s, the last twenty 20 ms: a backup is due after 60 ms, not after 2 s."""
    it, now = with_samples(*[3.0] * 200, *[0.02] * 20)
    assert it.quantile(0.95, now + 1) == 3.0
    assert it.backup_after(now + 1) == pytest.approx(0.06)


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_mode_of_just_five_percent_does_not_hide_itself(seed):
    """5 % take 1 s, the rest 20 ms: the 95th percentile may be either; the backup is due at 50 to 60 ms."""
    values = [1.0] * 12 + [0.02] * 228
    random.Random(seed).shuffle(values)
    it, now = with_samples(*values)
    assert 0.05 <= it.backup_after(now) <= 0.0601
    assert it.usual(now) == 0.02


@settings(deadline=None)
@given(st.floats(0, 0.12), st.integers(0, 10_000))
def test_a_slow_mode_of_about_that_share_never_makes_a_backup_wait_for_it(share, seed):
    """Whatever the dice make of up to 12 %, after each single sample."""
    chance, it, now = random.Random(seed).random, FirstDeltaTimes(), 0.0
    for _ in range(150):
        now += 0.01
        it.observe(1.0 if chance() < share else 0.02, now)
        due = it.backup_after(now)
        median = it.usual(now)
        assert due is None or median == 1.0 or due <= 0.0601


def test_equal_samples():
    """All alike: every quantile is that."""
    it, now = with_samples(*[0.3] * 40)
    assert it.quantile(0, now) == it.quantile(0.5, now) == it.quantile(1, now) == it.backup_after(now) == 0.3


def test_two_modes_of_equal_weight():
    """Half at 20 ms, half at 1 s: half of the answers would be late, so the backup waits for three times the usual."""
    it, now = with_samples(*[0.02, 1.0] * 30)
    assert it.usual(now + 1) == 0.02
    assert it.backup_after(now + 1) == pytest.approx(0.06)
    slower, now = with_samples(*[0.02, 1.0, 1.0] * 20)
    assert slower.usual(now + 1) == 1.0
    assert slower.backup_after(now + 1) == 1.0


@pytest.mark.parametrize(("seconds", "due"), [(0.0, 0.05), (0.001, 0.05), (0.4, 0.4), (9.0, 2.0)])
def test_a_backup_is_neither_hasty_nor_too_late(seconds, due):
    """Clamped to 50 ms .. 2 s, or to what the route says."""
    it, now = with_samples(*[seconds] * 30)
    assert it.backup_after(now) == due
    assert it.backup_after(now, at_least=0.0, at_most=100.0) == seconds


def test_the_quantile_may_be_chosen():
    """A route may ask for its backups later or sooner; three medians bound them still."""
    it, now = with_samples(*[number / 100 for number in range(1, 101)])
    now += 1
    assert it.backup_after(now, quantile=0.5) == 0.5
    assert it.backup_after(now, quantile=0.99) == 0.99
    skewed, now = with_samples(*[0.1, 10.0] * 50)
    assert skewed.backup_after(now + 1, quantile=0.9) == pytest.approx(0.3)


def test_samples_are_believed_for_the_window():
    """Then nothing is known again; a new sample alone does not bring back the old ones."""
    it, now = with_samples(*[0.1] * 30)
    assert it.usual(now + 59) == 0.1
    assert it.backup_after(now + 59) == 0.1
    assert it.usual(now + 61) is None
    assert it.backup_after(now + 61) is None
    assert it.quantile(0.5, now + 61) is None
    it.observe(0.2, now + 61)
    assert it.statistics(now + 61).samples <= 1 + 30
    assert it.usual(now + 61) is None
    assert it.statistics(now + 62).samples == 1


def test_the_newest_push_the_oldest_out():
    """Constant memory: what changed is known after as many samples as are kept."""
    it, now = with_samples(*[0.1] * 1000, *[0.4] * SAMPLES)
    assert it.quantile(0.0, now + 1) == 0.4
    assert it.statistics(now + 1).samples == SAMPLES
    assert it.statistics(now + 1).answered == 1000 + SAMPLES


def test_who_was_stopped_took_longer_than_that():
    """5 % overtaken by their backup at 60 ms: the quantiles keep them above the answered."""
    it, now = with_samples(*[0.02] * 57)
    for _ in range(3):
        it.observe_at_least(0.08, now)
    assert it.quantile(1, now + 1) == 0.08
    assert it.quantile(0.95, now + 1) == 0.02
    for _ in range(3):
        it.observe_at_least(0.08, now)
    assert it.quantile(0.95, now + 1.6) == 0.08
    assert it.backup_after(now + 1.6) == pytest.approx(0.06)
    assert it.usual(now + 1.6) == 0.02


def test_who_never_answered_is_not_known():
    """Only stopped attempts: nobody knows how long an answer would take, so nothing is usual, and no backup is due."""
    it = FirstDeltaTimes()
    for number in range(60):
        it.observe_at_least(2.0, number * 0.1)
    assert it.usual(6) is None
    assert it.backup_after(6) is None
    assert it.quantile(0.5, 6) == 2.0
    assert it.cost(6) > 1.9


def test_backups_do_not_pull_their_own_instant_down():
    """Losers are stopped just after their backup was sent, again and again: the instant stays where it was."""
    chance, it, now, dues = random.Random(5).random, FirstDeltaTimes(), 0.0, []
    for _ in range(3000):
        now += 0.02
        late = chance() < 0.05
        due = it.backup_after(now)
        if late and due is not None:
            it.observe_at_least(due + 0.02, now)
        else:
            it.observe(1.0 if late else 0.02 + 0.01 * chance(), now)
        dues.append(due)
    assert all(0.05 <= due <= 0.0901 for due in dues[-1000:])


def test_a_steady_distribution_gets_the_share_of_backups_asked_for():
    """Exponential times, mean 0.2 s, p95 at 0.6 s, beyond 3 medians (0.42 s): about an eighth are late, not more."""
    dice, it, now, late = random.Random(11), FirstDeltaTimes(), 0.0, 0
    for _ in range(4000):
        now += 0.01
        seconds, due = dice.expovariate(5.0), it.backup_after(now)
        if due is not None and seconds > due:
            late += 1
            it.observe_at_least(due + 0.1, now)
        else:
            it.observe(seconds, now)
    assert 0.09 <= late / 4000 <= 0.16


def test_the_peak_goes_up_at_once_and_down_with_time():
    """One slow answer is felt at once; after 5 s a third of it is left; it fades also when nobody asks."""
    it = FirstDeltaTimes()
    it.observe(0.1, 0)
    it.observe(2.0, 0)
    assert it.cost(0) == 2.0
    it.observe(0.1, 0)
    assert it.cost(0) == 2.0, "no time has passed"
    it.observe(0.1, 5)
    assert it.cost(5) == pytest.approx(0.1 + 1.9 / math.e)
    assert it.cost(15) == pytest.approx((0.1 + 1.9 / math.e) * math.exp(-2))
    assert it.cost(1000) == pytest.approx(0.0, abs=1e-9)


def test_a_clock_that_goes_back_does_no_harm():
    """Nothing grows above what was seen."""
    it = FirstDeltaTimes()
    it.observe(1.0, 10)
    it.failed(10)
    assert it.cost(5) == it.cost(10)
    it.observe(0.1, 5)
    assert it.cost(5) <= 1.0 + 5 * WEIGHT


def test_being_stopped_early_says_nothing_of_the_cost():
    """A call in a hurry that gave up after 10 ms makes nobody slower, and nobody faster."""
    it = FirstDeltaTimes()
    it.observe(0.5, 0)
    it.observe_at_least(0.01, 0)
    assert it.cost(0) == 0.5
    it.observe_at_least(3.0, 0)
    assert it.cost(0) == 3.0


def test_a_fast_rejecter_never_looks_attractive():
    """Refusing in 1 ms costs up to 5 s, answering in 0.8 s costs that; it is forgiven with answers, and with time."""
    rejecter, honest = FirstDeltaTimes(), FirstDeltaTimes()
    for number in range(20):
        rejecter.failed(number * 0.01)
        honest.observe(0.8, number * 0.01)
    assert rejecter.cost(0.2) > 4 > honest.cost(0.2)
    assert FirstDeltaTimes().cost(0) == 0
    assert rejecter.cost(5.2) < rejecter.cost(0.2) / 2
    for _ in range(40):
        rejecter.observe(0.02, 0.2)
    assert rejecter.cost(0.2) < 0.1


def test_one_outlier_or_failure_makes_no_bad_target():
    """It keeps up as long as the usual answer does, and until a fifth fails: three in a row, forgotten with time."""
    it, now = with_samples(*[0.3] * 40)
    it.observe(9.0, now)
    it.observe_at_least(9.0, now)
    assert it.cost(now) == 9.0
    assert it.keeps_up(0.31, now)
    assert not it.keeps_up(0.3, now)
    it.failed(now)
    it.failed(now)
    assert it.keeps_up(0.31, now)
    it.failed(now)
    assert not it.keeps_up(100, now)
    assert it.keeps_up(0.31, now + 2)
    slowly = FirstDeltaTimes()
    for second in range(3):
        assert slowly.keeps_up(1, second)
        slowly.failed(second)
    assert not slowly.keeps_up(1, 2)
    assert FirstDeltaTimes().keeps_up(0.001, 0), "nothing is known against it"


@pytest.mark.parametrize(("share", "least", "most"), [(0.02, 0, 0.02), (0.1, 0, 0.2), (0.25, 0.4, 0.9), (0.5, 0.98, 1)])
def test_who_fails_often_does_not_keep_up(share, least, most):
    """By the share of calls that fail, the share of the time in which it does not."""
    chance, it, behind = random.Random(9).random, FirstDeltaTimes(), 0
    for number in range(4000):
        now = number * 0.02
        if chance() < share:
            it.failed(now)
        else:
            it.observe(0.2, now)
        behind += not it.keeps_up(1.0, now)
    assert least <= behind / 4000 <= most


def test_bots_in_a_hurry_make_no_target_look_quick():
    """Four of five attempts are stopped after 5 to 100 ms, those that may run take 300 ms: that stays usual."""
    dice, it, now = random.Random(2), FirstDeltaTimes(), 0.0
    for _ in range(1000):
        now += 0.01
        if dice.random() < 0.8:
            it.observe_at_least(0.005 + 0.095 * dice.random(), now)
        else:
            it.observe(0.3, now)
    assert it.usual(now) == 0.3
    assert it.quantile(0.05, now) == 0.3
    assert it.backup_after(now) == 0.3
    assert it.statistics(now).stopped > 700


def test_statistics_say_what_is_known():
    """A snapshot for people and metrics."""
    it, now = with_samples(*[0.1] * 20)
    it.failed(now)
    it.observe_at_least(0.15, now)
    said = it.statistics(now + 1)
    assert (said.samples, said.median, said.p95) == (21, 0.1, 0.1)
    assert (said.answered, said.stopped, said.failed) == (20, 1, 1)
    assert said.cost == it.cost(now + 1)


@pytest.mark.parametrize("bad", [{"decay": 0.0}, {"penalty": -1.0}, {"window": 0.0}])
def test_impossible_settings_are_refused(bad):
    """Nothing fades in no time."""
    with pytest.raises(ValueError, match="above 0"):
        FirstDeltaTimes(**bad)


events = st.lists(
    st.tuples(st.sampled_from(["answer", "stop", "fail", "look"]), st.floats(0, 100), st.floats(0, 30)), max_size=150
)


@settings(deadline=None)
@given(events)
def test_what_it_says_is_of_what_it_saw(history):
    """Every quantile is a sample that was there (a little stale at most), quantiles rise, costs stay in bounds."""
    it, now, seen = FirstDeltaTimes(), 0.0, []
    for what, seconds, gap in history:
        now += gap * (gap > 15)  # often no time passes
        if what == "answer":
            it.observe(seconds, now)
            seen.append(seconds)
        elif what == "stop":
            it.observe_at_least(seconds, now)
            seen.append(seconds)  # or not: then it says nothing
        elif what == "fail":
            it.failed(now)
        values = [it.quantile(q, now) for q in (0, 0.1, 0.5, 0.9, 1)]
        if None not in values:
            assert values == sorted(values)
            assert set(values) <= set(seen)
        due, usual = it.backup_after(now), it.usual(now)
        assert due is None or (0.05 <= due <= 2.0 and usual is not None)
        assert 0 <= it.cost(now) <= max([*seen, 0]) + 5
        assert it.keeps_up(1000.0, now) or it.statistics(now).failed > 2
        assert it.statistics(now).samples <= SAMPLES


def test_what_hardly_any_answer_was_faster_than():
    """`at_best`: the twentieth part of the recent; nothing is claimed of who is not known."""
    assert FirstDeltaTimes().at_best(0) == 0.0
    it, now = with_samples(*[0.1] * (FEW - 1))
    assert it.at_best(now) == 0.0, "too few"
    it, now = with_samples(*[number / 100 for number in range(1, 101)])
    assert it.at_best(now) == 0.05
