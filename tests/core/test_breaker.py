"""The breaker: it trips for what counts, lets one trial at a time through, and believes no stale news."""

import math

import pytest

from sidecar.core import outcome as o
from sidecar.core.breaker import ANSWERING, TRANSITIONS, Breaker
from sidecar.core.classifier import classify
from sidecar.core.permit import Permit, Refusal
from sidecar.core.transitions import IllegalTransition
from sidecar.core.trials import PATIENCE
from sidecar.errors import ConnectFailed, ConnectionLost, UpgradeRefused, UpstreamError

FAILURE = classify(ConnectionLost())
THROTTLED = classify(UpstreamError("slow down", status=429))
REJECTED = classify(UpstreamError("too long", code="context_length_exceeded"))


def breaker(**fields):
    """A breaker whose dice always show the middle."""
    return Breaker("openai/gpt", jitter=lambda: 0.5, **fields)


def one(it, what, now, **fields):
    """One admitted attempt, ended at once."""
    permit = it.admit(now)
    assert isinstance(permit, Permit), it
    it.record(permit, what, now, **fields)


def tripped(**fields):
    """A breaker that tripped at 0 and stays open until 1.5."""
    it = breaker(**fields)
    for _ in range(5):
        one(it, FAILURE, 0)
    assert it.state(0) == "open"
    return it


def test_five_failures_in_a_row_trip_it():
    """Four do not; a success in between starts the count anew."""
    it = breaker()
    for _ in range(4):
        one(it, FAILURE, 0)
    one(it, o.SUCCESS, 0)
    for _ in range(4):
        one(it, FAILURE, 0)
    assert it.state(0) == "closed"
    one(it, FAILURE, 0)
    assert repr(it) == "<Breaker openai/gpt open failures=5 trips=1>"


def test_half_of_ten_trip_it():
    """50 % of at least ten outcomes of the window, however they are mixed."""
    it = breaker()
    for _ in range(4):
        one(it, o.SUCCESS, 0)
        one(it, FAILURE, 0)
    one(it, o.SUCCESS, 0)
    assert it.state(0) == "closed", "nine are too few to judge"
    one(it, FAILURE, 0)
    assert it.state(0) == "open"


def test_old_failures_are_forgotten():
    """What left the window counts no more, slice by slice or after a long silence."""
    it = breaker()
    for _ in range(4):
        one(it, FAILURE, 0)
    one(it, o.SUCCESS, 15)
    assert it.statistics(29).failures == 4
    assert it.statistics(30).failures == 0
    assert it.statistics(30).total == 1
    assert it.statistics(1e6).total == 0


def test_slow_answers_trip_it():
    """80 % slow of at least ten, even when every one of them succeeded."""
    it = breaker()
    for _ in range(2):
        one(it, o.SUCCESS, 0)
    for _ in range(7):
        one(it, o.SUCCESS, 0, slow=True)
    assert it.state(0) == "closed"
    one(it, o.SUCCESS, 0, slow=True)
    assert it.state(0) == "open"


def test_an_overtaken_attempt_is_slow_though_it_was_cancelled():
    """A loser of a backup race ends "cancelled"; that it was slow is remembered."""
    it = breaker()
    for _ in range(10):
        one(it, o.CANCELLED, 0, slow=True)
    assert it.state(0) == "open"


@pytest.mark.parametrize("what", [THROTTLED, REJECTED, o.CANCELLED, o.DEADLINE])
def test_what_does_not_count_does_not_count(what):
    """429, the call's own fault, a cancel, a short deadline: no trip, and no success either."""
    it = breaker()
    for _ in range(50):
        one(it, what, 0)
    for _ in range(4):
        one(it, FAILURE, 0)
    one(it, what, 0)
    one(it, FAILURE, 0)
    assert it.state(0) == "open"


def test_open_refuses_with_the_time_left():
    """A refusal says when to come back, jittered so that the herd does not come as one."""
    it = tripped()
    said = it.admit(0.5)
    assert said == Refusal(1.0 + 0.1)
    assert it.next_wakeup_at() == 1.5
    assert it.statistics(0.5).refused == 1
    assert isinstance(it.admit(1.4999), Refusal), "not a moment before"


def test_half_open_lets_one_trial_through_and_two_successes_close_it():
    """While the trial is out everybody else is refused; after the second success all may pass."""
    it = tripped()
    assert it.state(1.5) == "half_open"
    trial = it.admit(1.5)
    assert isinstance(trial, Permit)
    assert trial.trial
    assert it.admit(1.5) == Refusal(0.75, soon=True)
    assert "half_open trial" in repr(it)
    it.record(trial, o.SUCCESS, 2)
    assert it.next_wakeup_at() == math.inf
    one(it, o.SUCCESS, 2)
    assert it.state(2) == "closed"
    assert it.statistics(2).failures == 0, "it starts with a clean window"


@pytest.mark.parametrize(("what", "slow"), [(FAILURE, False), (o.SUCCESS, True)])
def test_a_failed_or_slow_trial_opens_it_again_for_longer(what, slow):
    """2, 4, 8 ... seconds, equal-jittered, up to 30."""
    it = tripped()
    now, waits = 1.5, []
    for _ in range(6):
        one(it, what, now, slow=slow)
        assert it.state(now) == "open"
        waits.append(it.next_wakeup_at() - now)
        now = it.next_wakeup_at()
    assert waits == pytest.approx([3, 6, 12, 22.5, 22.5, 22.5])


def test_growth_is_forgotten_after_a_closed_window():
    """A trip soon after closing goes on growing; one after a quiet window starts small."""
    it = tripped()
    one(it, o.SUCCESS, 2)
    one(it, o.SUCCESS, 2)
    for _ in range(5):
        one(it, FAILURE, 10)
    assert it.next_wakeup_at() == pytest.approx(13)
    one(it, o.SUCCESS, 14)
    one(it, o.SUCCESS, 14)
    for _ in range(5):
        one(it, FAILURE, 44)
    assert it.next_wakeup_at() == pytest.approx(45.5)


def test_an_ignored_trial_gives_the_permit_back():
    """A trial that says nothing about the upstream (a cancel, a 400) lets the next one try at once."""
    it = tripped()
    for what in (o.CANCELLED, REJECTED, THROTTLED):
        one(it, what, 2)
    assert it.state(2) == "half_open"
    assert isinstance(it.admit(2), Permit)


def test_trials_that_only_ever_end_by_their_deadlines_open_it_again():
    """One says nothing, three in a row do: not every call of a bot in a hurry is to be spent on a silent upstream."""
    it = tripped()
    for what in (o.DEADLINE, o.DEADLINE, REJECTED, o.DEADLINE, o.DEADLINE):
        one(it, what, 2)
    assert it.state(2) == "half_open", "an answer, if only a refusal, starts the count anew"
    one(it, o.CANCELLED, 2)
    one(it, o.DEADLINE, 2)
    assert it.state(2) == "open", "a cancel does not"
    for _ in range(2):
        one(it, o.DEADLINE, 5.5)
    assert it.state(5.5) == "half_open", "each time anew"
    for _ in range(2):
        one(it, o.SUCCESS, 6)
    assert it.state(6) == "closed"


def test_an_unused_permit_is_given_back():
    """No connection was to be had for the trial: as if it had not been asked for. Others' permits change nothing."""
    it = tripped()
    trial = it.admit(2)
    it.give_back(Permit(0))
    it.give_back(Permit(trial.generation, trial=True))
    assert isinstance(it.admit(2), Refusal)
    it.give_back(trial)
    assert isinstance(it.admit(2), Permit)


def test_news_of_an_earlier_generation_is_ignored():
    """Calls begun before the trip cannot re-open or close it, nor can a permit handed back twice."""
    it = breaker()
    old = it.admit(0)
    for _ in range(5):
        one(it, FAILURE, 0)
    trial = it.admit(2)
    it.record(old, o.SUCCESS, 2)
    it.record(old, FAILURE, 2)
    assert it.state(2) == "half_open"
    it.record(trial, o.SUCCESS, 2)
    it.record(trial, o.SUCCESS, 2)
    assert it.state(2) == "half_open", "one success, handed in twice, is one"
    assert it.statistics(2).stale == 3


def test_a_lost_trial_expires():
    """A trial never recorded does not block for ever, and cannot speak for the one that came after it."""
    it = tripped(trial_timeout=30)
    lost = it.admit(2)
    assert it.next_wakeup_at() == 32
    assert isinstance(it.admit(31.9), Refusal)
    second = it.admit(32)
    assert isinstance(second, Permit)
    it.record(lost, FAILURE, 33)
    assert it.state(33) == "half_open"
    it.record(second, o.SUCCESS, 33)
    assert it.statistics(33).trials == 2


NO_WAY_IN = classify(ConnectFailed("tcp", "refused"))


def test_failed_connects_count_and_open_it():
    """Five connects that fail in a row: no call need fail to find out. Further ones say nothing new."""
    it = breaker()
    for _ in range(5):
        it.connect_failed(NO_WAY_IN, 0)
    assert it.state(0) == "open"
    at = it.next_wakeup_at()
    it.connect_failed(NO_WAY_IN, 0.5)
    assert it.next_wakeup_at() == at
    it.connect_failed(classify(ConnectFailed("credential", "no file")), 100)
    assert it.state(100) == "half_open", "a credential is not the upstream's fault"


def test_a_failed_connect_is_a_failed_trial():
    """Its time over, nobody asked yet, and no way in: open again, for longer; but a call's trial knows better."""
    it = tripped()
    it.connect_failed(NO_WAY_IN, 1.5)
    assert it.next_wakeup_at() == pytest.approx(4.5)
    trial = it.admit(4.5)
    it.connect_failed(NO_WAY_IN, 4.6)
    assert it.state(4.6) == "half_open"
    it.record(trial, o.SUCCESS, 4.7)


def test_a_connect_that_succeeds_ends_an_outage_of_connects():
    """Open because nothing could be reached: the first connection lets a trial through at once, and only one."""
    it = breaker()
    for _ in range(5):
        it.connect_failed(NO_WAY_IN, 0)
    it.connected(0.2)
    assert it.state(0.2) == "half_open"
    assert isinstance(it.admit(0.2), Permit)
    assert isinstance(it.admit(0.2), Refusal)


def test_a_connect_that_succeeds_does_not_pardon_failing_calls():
    """Open because calls failed: it waits its time, whatever connects do; closed, a connect changes nothing."""
    it = tripped()
    it.connected(0.2)
    assert it.state(0.2) == "open"
    it.connect_failed(NO_WAY_IN, 2)
    assert it.state(2) == "open"
    one_more = it.next_wakeup_at()
    it.connected(one_more + 1)
    assert it.next_wakeup_at() == one_more, "its time was over already"
    fresh = breaker()
    fresh.connected(0)
    assert fresh.state(0) == "closed"


def test_an_illegal_transition_raises_and_changes_nothing():
    """An open breaker cannot trip, a closed one cannot close."""
    for state, event in (("open", "trip"), ("closed", "close"), ("open", "close"), ("closed", "half_open")):
        with pytest.raises(IllegalTransition, match="breaker"):
            TRANSITIONS.after(state, event)
    it = breaker()
    before = repr(it)
    with pytest.raises(IllegalTransition):
        it._close(0)
    assert repr(it) == before


def test_a_run_that_chance_brings_is_no_outage():
    """At a share of one failure in six, five in a row do not trip it, and a run that chance does not bring does."""
    it = breaker()
    for number in range(60):
        one(it, FAILURE if number % 6 == 0 else o.SUCCESS, number * 0.1)
    for run in range(1, 8):
        one(it, FAILURE, 6.0 + run * 0.01)
        assert it.state(6.1) == "closed", run
    one(it, FAILURE, 6.2)
    assert it.state(6.3) == "open"


# ---------------------------------------------------------------------- Retry-After


def test_a_retry_after_is_a_floor_of_the_open_time():
    """503 with Retry-After: nobody asks before that, nor all at the same instant after it; believed up to the cap."""
    for asked, until in ((0.1, 1.5), (8.0, 8.0 * 1.1), (3600.0, 30.0 * 1.1)):
        it = breaker()
        for _ in range(5):
            one(it, classify(UpstreamError("later", status=503, retry_after=asked)), 0)
        assert it.next_wakeup_at() == pytest.approx(until)
    it = breaker()
    for _ in range(5):
        it.connect_failed(classify(UpgradeRefused(503, {"retry-after": "8"})), 0)
    assert it.next_wakeup_at() == pytest.approx(8.8)


# ---------------------------------------------------------------------- lanes


def half_open(**fields):
    """A breaker that is half-open from 1.5 on, and has not been asked yet."""
    it = tripped(**fields)
    if fields.get("probed"):
        it.probe_started(1.5)
        it.probe_ended(1.5, ok=True)
    return it


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize(("lane", "patience"), [("research", 0.0), ("entry", 0.1), ("exit", 0.25)])
def test_a_trial_is_kept_from_those_who_have_more_to_lose(lane, patience, probed):
    """Research at once, an entry after 0.1 s, an exit after 0.25 s; until then they are told to look again soon."""
    it = half_open(probed=probed)
    if patience:
        said = it.admit(1.5, lane)
        assert said.soon
        assert said.retry_after == pytest.approx(patience + 0.015), "a little later, so that it does not look twice"
        assert isinstance(it.admit(1.5 + patience - 0.001, lane), Refusal)
    assert it.admit(1.5 + patience + 1e-9, lane).trial
    assert PATIENCE[lane] == patience


def test_with_exits_only_it_closes_all_the_same():
    """Two trials, a quarter of a second each: what research never comes for goes to exits."""
    it = half_open()
    now = 1.5
    for _ in range(2):
        said = it.admit(now, "exit")
        assert said.soon
        now += said.retry_after
        trial = it.admit(now, "exit")
        assert trial.trial
        it.record(trial, o.SUCCESS, now)
    assert it.state(now) == "closed"
    assert now < 1.5 + 0.6


def test_a_trial_given_back_unused_is_not_kept_anew():
    """As if it had never been asked for: an exit that waited its quarter of a second need not wait another."""
    it = half_open()
    trial = it.admit(2, "exit")
    it.give_back(trial)
    assert it.admit(2, "exit").trial


def test_a_lost_trial_is_free_from_its_expiry_on():
    """The next one is kept for research from then, not from when somebody asks."""
    it = half_open(trial_timeout=20)
    it.admit(2)
    assert it.admit(22.1, "exit").soon
    assert it.admit(22.26, "exit").trial


def test_where_the_clock_stands_still_an_exit_waits_and_research_goes():
    """No time, no patience: the refusal is finite, and a lower lane is not held up by it."""
    it = half_open()
    for _ in range(100):
        assert 0 < it.admit(1.5, "exit").retry_after < 0.3
    assert it.admit(1.5, "research").trial


def test_lanes_mean_nothing_to_a_closed_or_an_open_breaker():
    """Closed everybody passes, open nobody, and "soon" is not said."""
    for lane in PATIENCE:
        assert isinstance(breaker().admit(0, lane), Permit)
        assert tripped().admit(0.5, lane) == Refusal(1.1)


# ---------------------------------------------------------------------- probes


def test_with_probes_no_call_is_risked_before_one_succeeded():
    """Its time over, a probe is due; until it has succeeded every call is refused, with a wait that can be waited."""
    it = tripped(probed=True)
    assert it.probe_due_at() == 1.5
    for now in (1.5, 100.0):
        assert it.state(now) == "open"
        assert it.admit(now) == Refusal(0.75)
    it.probe_started(100)
    assert it.admit(100) == Refusal(0.75)
    assert repr(it) == "<Breaker openai/gpt open probe failures=5 trips=1>"
    it.probe_ended(100.1, ok=True)
    assert it.state(100.1) == "half_open"
    assert it.probe_due_at() == math.inf
    assert it.admit(100.1).trial
    assert it.statistics(100.1).probes == 1


def test_a_failed_probe_keeps_it_open_for_longer():
    """As a failed trial does, but for 10 s at most, since no call paid for it; nor is it another trip."""
    it = tripped(probed=True)
    now, waits = 1.5, []
    for _ in range(5):
        it.probe_started(now)
        it.probe_ended(now, ok=False)
        assert it.state(now) == "open"
        waits.append(it.probe_due_at() - now)
        now = it.probe_due_at()
    assert waits == pytest.approx([3, 6, 7.5, 7.5, 7.5])
    assert it.statistics(now).trips == 1


def test_a_failed_trial_asks_for_another_probe():
    """A connect and a ping work, and calls do not: open for longer, and a probe before the next trial."""
    it = half_open(probed=True)
    one(it, FAILURE, 2)
    assert it.probe_due_at() == it.next_wakeup_at() == pytest.approx(5)
    assert it.admit(6) == Refusal(0.75)


def test_without_probes_none_is_ever_due():
    """A pool that asks is told so, and what it says of one changes nothing."""
    it = tripped()
    assert it.probe_due_at() == math.inf
    it.probe_started(2)
    it.probe_ended(2, ok=False)
    assert it.admit(2).trial
    assert breaker(probed=True).probe_due_at() == math.inf, "closed"


def test_a_lost_probe_expires():
    """One that never ends does not keep it open for good: the next is due then, and the lost one is void."""
    it = tripped(probed=True, trial_timeout=20)
    it.probe_started(2)
    assert it.probe_due_at() == it.next_wakeup_at() == 22
    it.probe_started(10)
    assert it.statistics(10).probes == 1, "one at a time"
    it.probe_ended(22, ok=True)
    assert it.state(22) == "open"
    it.probe_started(22)
    it.probe_ended(23, ok=True)
    assert it.state(23) == "half_open"


def test_a_probe_that_was_not_due_says_nothing():
    """Too early, or of another breaker of the same pool: neither its end nor its beginning is this one's business."""
    for it in (tripped(probed=True), breaker(probed=True)):
        before = it.state(1)
        it.probe_started(1)
        for ok in (True, False):
            it.probe_ended(1.2, ok=ok)
        assert it.state(1.2) == before
        assert it.statistics(1.2).probes == 0


@pytest.mark.parametrize("ok", [True, False])
def test_a_probe_ends_once(ok):
    """A second end, or one after a trip or a close, changes nothing."""
    it = half_open(probed=True)
    it.probe_ended(1.6, ok=ok)
    assert it.state(1.6) == "half_open"
    one(it, FAILURE, 2)
    due = it.probe_due_at()
    it.probe_ended(2.1, ok=ok)
    assert (it.state(2.1), it.probe_due_at()) == ("open", due)
    it.probe_started(due)
    it.probe_ended(due, ok=True)
    for _ in range(2):
        one(it, o.SUCCESS, due + 1)
    it.probe_ended(due + 1, ok=ok)
    assert it.state(due + 1) == "closed"


def test_the_first_connect_after_an_outage_of_connects_makes_a_probe_due_and_no_more():
    """A connect is half of a probe: a ping is asked for before a call is risked."""
    it = breaker(probed=True)
    for _ in range(5):
        it.connect_failed(NO_WAY_IN, 0)
    it.connected(0.2)
    assert it.probe_due_at() == 0.2
    assert isinstance(it.admit(0.2), Refusal)
    it.probe_started(0.2)
    it.probe_ended(0.3, ok=True)
    assert it.admit(0.3).trial


def test_a_connect_that_works_while_a_probe_is_out_is_not_its_end():
    """The probe's own connect, or another's: the ping is still to come."""
    it = tripped(probed=True)
    it.probe_started(2)
    it.connected(2.1)
    assert it.state(2.1) == "open"
    assert isinstance(it.admit(2.1), Refusal)
    it.probe_ended(2.2, ok=False)
    due = it.probe_due_at()
    assert due == pytest.approx(5.2)
    it.connected(3)
    assert it.probe_due_at() == due, "there was a way in, and it did not help: it waits its time"


def test_a_connect_that_fails_is_a_probe_that_failed():
    """Its time over, nobody probed yet, and no way in: open for longer, and ended by the next connect."""
    it = tripped(probed=True)
    it.connect_failed(NO_WAY_IN, 1.5)
    assert it.probe_due_at() == pytest.approx(4.5)
    it.connect_failed(NO_WAY_IN, 2)
    assert it.probe_due_at() == pytest.approx(4.5), "before its time, it says nothing new"
    it.connected(2.5)
    assert it.probe_due_at() == 2.5


def test_a_probe_whose_connect_failed_counts_once():
    """The pool tells of the connect and of the probe's end: one failure; and a connect that works ends the wait."""
    it = tripped(probed=True)
    it.probe_started(2)
    it.connect_failed(NO_WAY_IN, 2.1)
    assert it.probe_due_at() == 32, "the probe's end is yet to be told"
    it.probe_ended(2.1, ok=False)
    assert it.probe_due_at() == pytest.approx(5.1)
    it.connected(3)
    assert it.probe_due_at() == 3


def test_a_half_open_breaker_needs_no_permit_for_a_failed_connect():
    """It counts neither as a trial nor as a refusal, whether one is out or not."""
    it = half_open()
    trial = it.admit(2)
    it.connect_failed(NO_WAY_IN, 2.1)
    it.record(trial, o.SUCCESS, 2.2)
    it.connect_failed(NO_WAY_IN, 2.3)
    said = it.statistics(2.3)
    assert (said.state, said.trials, said.refused, said.trips) == ("open", 1, 0, 2)


def test_a_waiting_call_without_a_connection_is_told_when_to_come_again():
    """`retry_after` is what a refusal would say, whatever the state."""
    it = tripped(probed=True)
    assert it.retry_after(0.5) == pytest.approx(1.1)
    assert it.retry_after(50) == 0.75


def test_a_trial_that_goes_on_answering_need_not_end_to_be_a_success():
    """First content, and ten seconds later it counts; its end, whenever it comes, says nothing more."""
    it = tripped(trials=2)
    now = 100.0
    first = it.admit(now)
    it.answering(first, now + 1)
    assert isinstance(it.admit(now + 10), Refusal)
    second = it.admit(now + 11.5)
    assert isinstance(second, Permit)
    assert second.trial
    it.record(first, FAILURE, now + 12)
    assert it.state(now + 12) == "half_open", "the first one's end is old news"
    it.answering(second, now + 12)
    it.answering(first, now + 12)
    closed = it.admit(now + 23)
    assert closed == it.admit(now + 23)
    assert it.state(now + 23) == "closed"


def test_a_trial_that_stayed_silent_is_given_up_for_lost_as_before():
    """No content, no success."""
    it = tripped(trials=1)
    it.admit(100.0)
    assert isinstance(it.admit(131.0), Permit)
    assert it.state(131.0) == "half_open"


def test_a_trial_that_answers_for_long_enough_is_a_success_before_its_end():
    """Who waits for the last word of a long answer keeps everybody else waiting, too."""
    it = tripped(trials=1)
    trial = it.admit(1.5)
    assert it.settles_at() == math.inf, "a silent trial settles nothing"
    it.answering(trial, 2.0)
    settles_at = it.settles_at()
    assert settles_at == 2.0 + ANSWERING
    assert not it.settle(settles_at - 0.1)
    assert it.state(settles_at - 0.1) == "half_open"
    assert it.settle(settles_at)
    assert it.state(settles_at) == "closed"
    assert it.settles_at() == math.inf
    assert not it.settle(settles_at + 1), "once"


def test_a_trial_that_stays_silent_is_a_loss_and_closes_nothing():
    """Its time over, the next one is free: `settle` says no."""
    it = tripped(trials=1, trial_timeout=3.0)
    it.admit(1.5)
    assert not it.settle(4.4)
    assert isinstance(it.admit(4.4), Refusal)
    assert not it.settle(4.5)
    assert it.state(4.5) == "half_open"
    assert isinstance(it.admit(5.5), Permit)


def test_who_may_come_in():
    """`is_shut`: while open, and while the one trial is out; not closed, not half-open with a trial to have."""
    it = breaker()
    assert not it.is_shut(0)
    it = tripped()
    assert it.is_shut(1.4)
    assert not it.is_shut(1.5)
    trial = it.admit(1.5)
    assert it.is_shut(1.6)
    it.give_back(trial)
    assert not it.is_shut(1.6)
