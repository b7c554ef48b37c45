"""The life of a call: examples of every rule, and a state machine over whatever order events come in."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from sidecar.core.attempt_state import AttemptState
from sidecar.core.call import FIRST_DELTA_SHARE, MAX_ATTEMPTS, Call, State
from sidecar.core.classifier import classify
from sidecar.core.losses import OVERLOADED_PRICE
from sidecar.core.outcome import (
    CANCELLED,
    DEADLINE,
    DEADLINE_COUNTED,
    FIRST_DELTA_TIMEOUT,
    IDLE_TIMEOUT,
    Kind,
    Outcome,
)
from sidecar.core.transitions import IllegalTransition
from sidecar.core.verdict import Due, End, Seek, Wait
from sidecar.errors import ConnectionLost, UpstreamError

LOST = classify(ConnectionLost())
GOODBYE = classify(ConnectionLost(1001, how="close"))
REJECTED = classify(UpstreamError("no", status=400))
NEXT = classify(UpstreamError("no", status=402))
BROKEN = classify(UpstreamError("sorry", status=500))


def throttled(seconds: float) -> Outcome:
    """429 with Retry-After."""
    return classify(UpstreamError("slow down", status=429, retry_after=seconds))


def call(targets: int = 2, *, deadline: float = 10.0, jitter: float = 0.5, **settings: Any) -> Call:
    """A call that was admitted at 0."""
    made = Call(
        **{
            "first_delta_timeout": 1.0, "idle_timeout": 0.5, "restart": False, "services": range(targets), **settings
        },
        order=range(targets), deadline=deadline, jitter=lambda: jitter,
    )  # fmt: skip
    made.admitted()
    return made


def has_lost(of: Call, target: int) -> bool:
    """It has lost an attempt there."""
    return of._losses is not None and target in of._losses


# ------------------------------------------------------------------ steps that are not there


def test_nothing_starts_in_the_queue() -> None:
    """Before admission no attempt is wanted, and asking for one changes nothing."""
    queued = Call(
        order=(0,), services=(0,), deadline=1, first_delta_timeout=1, idle_timeout=1, restart=False, jitter=lambda: 0.0
    )
    before = repr(queued)
    with pytest.raises(IllegalTransition):
        queued.started(0, 0.0)
    assert repr(queued) == before
    assert (queued.phase(), queued.made) == ("queue", 0)
    queued.end()
    with pytest.raises(IllegalTransition):
        queued.admitted()


def test_one_attempt_for_one_wish() -> None:
    """An attempt is started when one is wanted, once."""
    running = call()
    running.started(0, 0.0)
    with pytest.raises(IllegalTransition):
        running.started(1, 0.0)
    assert running.made == 1


def test_an_end_is_an_end() -> None:
    """Nothing steps out of ENDED, and no clock falls due there."""
    ended = call()
    attempt = ended.started(0, 0.0)
    assert ended.finished(attempt) == []
    assert ended.state is State.ENDED
    for step in (
        ended.admitted,
        ended.end,
        lambda: ended.started(0, 0.0),
        lambda: ended.content(attempt, 0.0),
        lambda: ended.finished(attempt),
        lambda: ended.lost(attempt, LOST, 0.0, committed=False),
    ):
        with pytest.raises(IllegalTransition):
            step()
    assert ended.due(99.0) is None


def test_there_is_one_winner() -> None:
    """The first content wins; content of any other attempt, or again, is no step."""
    racing = call(3)
    first = racing.started(0, 0.0)
    assert racing.want_backup()
    second = racing.started(1, 1.0)
    assert racing.content(second, 2.0) == [first]
    assert racing.winner is second
    for attempt in (first, second):
        with pytest.raises(IllegalTransition):
            racing.content(attempt, 2.0)
    assert (racing.phase(), racing.seeking) == ("stream", False)


# ------------------------------------------------------------------ clocks


def test_the_deadline_beats_all_others_in_the_same_instant() -> None:
    """Deadline, idle, first delta, conclude and seek fall due at 1.0: only the deadline is said."""
    for prepare in ("silent", "streaming", "ending", "parked"):
        due = call(1, deadline=1.0, first_delta_timeout=1.0, idle_timeout=1.0)
        if prepare == "parked":
            due.park(1.0, 0.0)
        else:
            attempt = due.started(0, 0.0)
            if prepare != "silent":
                due.content(attempt, 0.0)
            if prepare == "ending":
                attempt.conclude_at = 1.0
        assert due.next_wakeup_at() == 1.0
        assert due.due(math.nextafter(1.0, 0)) is None
        assert due.due(1.0) == Due("deadline")
        assert due.due(5.0) == Due("deadline")


def test_the_first_delta_clock() -> None:
    """It falls once per attempt, after its timeout, or 60 % of what remains while an untried target is left."""
    hurried = call(2, deadline=1.0, first_delta_timeout=5.0)
    attempt = hurried.started(0, 0.0)
    assert attempt.first_delta_at == pytest.approx(FIRST_DELTA_SHARE)
    assert hurried.due(0.59) is None
    due = hurried.due(FIRST_DELTA_SHARE)
    assert (due and due.clock, due and due.attempt) == ("first_delta", attempt)
    assert attempt.overtaken
    assert hurried.due(0.9) is None
    assert call(1, deadline=1.0, first_delta_timeout=5.0).started(0, 0.0).first_delta_at == 5.0


def test_the_idle_clock_runs_from_the_last_content() -> None:
    """It runs from first content, moves with each piece, and stops when the content is over."""
    streaming = call(1)
    attempt = streaming.started(0, 0.0)
    assert streaming.due(0.9) is None
    streaming.content(attempt, 0.9)
    assert streaming.next_wakeup_at() == pytest.approx(1.4)
    attempt.last_content_at = 1.3
    assert streaming.due(1.7) is None
    assert streaming.due(1.8) == Due("idle", attempt)
    streaming.ending(attempt, 1.3, 0.7)
    assert streaming.next_wakeup_at() == pytest.approx(2.0)
    assert streaming.due(1.9) is None
    assert streaming.due(2.0) == Due("conclude", attempt)
    assert attempt.conclude_at == math.inf


def test_an_answer_complete_in_time_is_concluded_in_time() -> None:
    """The grace for the usage never reaches the deadline; without content no other clock of that attempt runs."""
    ending = call(1, deadline=1.0, first_delta_timeout=0.5)
    attempt = ending.started(0, 0.0)
    ending.ending(attempt, 0.98, 0.05)
    assert attempt.conclude_at == pytest.approx(0.99)
    assert ending.next_wakeup_at() == pytest.approx(0.99)
    assert ending.due(0.985) is None


def test_how_a_deadline_is_judged() -> None:
    """Counted against the upstream only if the attempt was silent for its full first_delta_timeout."""
    judged = call(1, first_delta_timeout=1.0)
    attempt = judged.started(0, 0.0)
    assert judged.deadline_outcome(attempt, 0.9) is DEADLINE
    assert judged.deadline_outcome(attempt, 1.0) is DEADLINE_COUNTED
    judged.content(attempt, 1.0)
    assert judged.deadline_outcome(attempt, 5.0) is DEADLINE


def test_a_retry_whose_time_has_come_does_not_wake_itself() -> None:
    """Parked for a connection after the backoff is over: only what lies ahead wakes the call."""
    parked = call(1, jitter=0.0)
    attempt = parked.started(0, 0.0)
    assert isinstance(parked.lost(attempt, GOODBYE, 1.0, committed=False), Seek)
    assert parked.candidates(1.0) == [0]
    parked.park(math.inf, 1.0)
    assert parked.next_wakeup_at() == parked.deadline
    parked.park(0.5, 1.0)
    assert parked.next_wakeup_at() == parked.deadline
    parked.park(2.0, 1.0)
    assert parked.due(2.0) == Due("seek")
    assert parked.due(2.0) is None


# ------------------------------------------------------------------ losses


def test_untried_targets_come_first() -> None:
    """In order of preference; a lost one again after its backoff, behind them."""
    tried = call(3)
    assert list(tried.candidates(0.0)) == [0, 1, 2]
    attempt = tried.started(0, 0.0)
    assert tried.candidates(0.0) == [1, 2]
    assert isinstance(tried.lost(attempt, LOST, 1.0, committed=False), Seek)
    assert has_lost(tried, 0)
    assert not has_lost(tried, 1)
    assert tried.candidates(1.0) == [1, 2]
    assert tried.retry_is_due_later(1.0)
    assert tried.candidates(3.0) == [1, 2, 0]
    assert not tried.retry_is_due_later(3.0)


def test_never_more_than_three_attempts() -> None:
    """The fourth is not wanted, whatever there is to try."""
    lost = call(9)
    for target in range(MAX_ATTEMPTS):
        attempt = lost.started(target, 0.0)
        verdict = lost.lost(attempt, BROKEN if target == 0 else LOST, 0.0, committed=False)
    assert verdict == End(BROKEN), "the first failure is the call's"


def test_a_silent_target_is_not_asked_again() -> None:
    """Overtaken by its first-delta clock and then lost: not a candidate any more."""
    silent = call(1)
    attempt = silent.started(0, 0.0)
    assert silent.due(1.0) == Due("first_delta", attempt)
    assert not silent.want_backup(), "no untried target"
    assert isinstance(silent.lost(attempt, LOST, 2.0, committed=False), End)


@pytest.mark.parametrize("outcome", [REJECTED, CANCELLED])
def test_what_may_not_be_tried_again_ends_the_call(outcome: Outcome) -> None:
    """`never`: the end, however many targets there are."""
    ended = call(3)
    assert ended.lost(ended.started(0, 0.0), outcome, 0.1, committed=False) == End(outcome)
    assert ended.phase() == "first_delta"


def test_next_target_only() -> None:
    """A quota is used up: another target, never this one again."""
    moved = call(2)
    assert isinstance(moved.lost(moved.started(0, 0.0), NEXT, 0.1, committed=False), Seek)
    assert moved.candidates(9.9) == [1]
    assert moved.lost(moved.started(1, 0.1), NEXT, 0.2, committed=False) == End(NEXT)


def test_a_loss_beside_a_running_attempt_waits() -> None:
    """One of two running is lost: the other goes on, whatever the loss was; once both are, the first one counts."""
    for outcome in (LOST, REJECTED, NEXT):
        racing = call(2)
        first = racing.started(0, 0.0)
        assert racing.due(1.0) == Due("first_delta", first)
        assert racing.want_backup()
        second = racing.started(1, 1.0)
        assert isinstance(racing.lost(first, outcome, 1.5, committed=False), Wait)
        assert racing.lost(second, NEXT, 2.0, committed=False) == End(outcome)


def test_a_loss_beside_a_running_attempt_starts_no_third() -> None:
    """One of two running is lost and a target is left: that one is for the running attempt's own clock to start."""
    racing = call(3)
    first = racing.started(0, 0.0)
    assert racing.want_backup()
    second = racing.started(1, 0.5)
    assert isinstance(racing.lost(first, LOST, 0.6, committed=False), Wait)
    assert not racing.seeking
    assert racing.due(1.5) == Due("first_delta", second)
    assert racing.want_backup()
    assert racing.candidates(1.5) == [2]


def test_committed_is_committed() -> None:
    """After a delta was forwarded: the end, with this loss; with restart, or nothing forwarded, another attempt."""
    for restart, committed in ((False, True), (True, True), (False, False)):
        streaming = call(2, restart=restart)
        attempt = streaming.started(0, 0.0)
        streaming.content(attempt, 0.1)
        verdict = streaming.lost(attempt, LOST, 0.2, committed=committed)
        assert verdict == (End(LOST) if committed and not restart else Seek())
        assert streaming.phase() == "stream"
        if isinstance(verdict, Seek):
            assert streaming.winner is None
            streaming.started(1, 0.3)
            assert streaming.phase() == "first_delta"


def test_the_failure_of_a_committed_stream_is_told() -> None:
    """The primary failed silently, the secondary streamed and was cut: the cut is what the bot sees and is told."""
    cut = call(2)
    cut.lost(cut.started(0, 0.0), BROKEN, 0.1, committed=False)
    second = cut.started(1, 0.1)
    cut.content(second, 0.2)
    assert cut.lost(second, LOST, 0.3, committed=True) == End(LOST)


def test_retry_after() -> None:
    """It is waited for, and a little longer, if it fits; else the target is out."""
    fits = call(1)
    assert isinstance(fits.lost(fits.started(0, 0.0), throttled(2.0), 0.0, committed=False), Seek)
    assert fits.candidates(2.1) == []
    assert fits.candidates(2.2) == [0]
    fits.park(math.inf, 0.0)
    assert fits.next_wakeup_at() == pytest.approx(2.2)
    late = call(1)
    assert isinstance(late.lost(late.started(0, 0.0), throttled(9.5), 0.0, committed=False), End)
    usual = call(1)
    verdict = usual.lost(usual.started(0, 0.0), throttled(8.0), 0.0, committed=False, usual=1.5)
    assert isinstance(verdict, End), "the answer would come too late"


def test_backoff_is_scaled_to_what_remains() -> None:
    """A 300 ms call cannot wait out a 2 s backoff; 1001 needs none."""
    short = call(1, deadline=0.3, jitter=0.999)
    short.lost(short.started(0, 0.0), LOST, 0.0, committed=False)
    assert short.candidates(0.05) == [0]
    goodbye = call(1)
    goodbye.lost(goodbye.started(0, 0.0), GOODBYE, 1.0, committed=False)
    assert goodbye.candidates(1.0) == [0]
    polite = call(1)
    polite.lost(polite.started(0, 0.0), structs.replace(GOODBYE, retry_after=1.0), 1.0, committed=False)
    assert polite.candidates(2.0) == []


def test_what_was_not_looked_at_gives_no_reason() -> None:
    """A server goes away, then one refuses: of that the call has failed. A goodbye after a failure is no reason."""
    unread = classify(ConnectionLost(1006, "going away before it was looked at", how="unprocessed"))
    denied = classify(UpstreamError("no such key", status=401))
    one = call(1)
    one.lost(one.started(0, 0.0), unread, 0.0, committed=False)
    one.lost(one.started(0, 0.1), denied, 0.1, committed=False)
    assert one.first_outcome == denied
    other = call(1)
    other.lost(other.started(0, 0.0), BROKEN, 0.0, committed=False)
    other.lost(other.started(0, 1.0), unread, 1.0, committed=False)
    assert other.first_outcome == BROKEN


def test_a_backup_that_cannot_be_had() -> None:
    """Given up: the attempt in hand goes on alone. Without one in hand there is nothing to give up."""
    alone = call(2)
    alone.give_up_backup()
    assert alone.seeking
    alone.started(0, 0.0)
    assert alone.want_backup()
    alone.give_up_backup()
    assert not alone.seeking
    assert alone.phase() == "first_delta"


# ------------------------------------------------------------------ whatever the order


class CallLife(RuleBasedStateMachine):
    """Random steps at random times; the promises are looked at after each."""

    @initialize(
        services=st.lists(st.integers(0, 2), min_size=1, max_size=4),
        restart=st.booleans(),
        stream=st.booleans(),
        deadline=st.sampled_from([0.1, 2.0, 30.0]),
        jitter=st.floats(0, 0.999),
        backup_after=st.sampled_from([math.inf, 0.05, 0.9]),
    )
    def begin(
        self, services: list[int], *, restart: bool, stream: bool, deadline: float, jitter: float, backup_after: float
    ) -> None:
        """A call that has just come in."""
        self.now = 0.0
        self.services = services
        self.asked: set[int] = set()
        self.restart, self.stream = restart, stream
        self.call = Call(
            order=range(len(services)), services=services, deadline=deadline, first_delta_timeout=1.0,
            idle_timeout=0.5, restart=restart, jitter=lambda: jitter,
        )  # fmt: skip
        self.backup_after = backup_after
        self.committed = False
        self.silent: set[int] = set()
        self.lost: set[int] = set()
        self.ends = 0
        self.first: Outcome | None = None

    def _alive(self) -> bool:
        return self.call.state is not State.ENDED

    @rule()
    def admit(self) -> None:
        """Out of the queue, legal once."""
        if self.call.state is State.QUEUED:
            self.call.admitted()
        else:
            self._illegal(self.call.admitted)

    @precondition(lambda self: self._alive())
    @rule(choice=st.integers(0, 9))
    def start(self, choice: int) -> None:
        """An attempt on one of the candidates."""
        candidates = list(self.call.candidates(self.now))
        assert len(set(candidates)) == len(candidates)
        asked = [attempt.target for attempt in self.call.attempts]
        untried = [target for target in candidates if not has_lost(self.call, target) and target not in asked]
        known = self.asked | {self.services[target] for target in asked}
        wanted = sorted(untried, key=lambda target: (self.services[target] in known, target))
        assert candidates[: len(untried)] == wanted, "untried ones first, in order of preference, new services first"
        if not self.call.seeking:
            self._illegal(lambda: self.call.started(0, self.now))
        elif candidates:
            target = candidates[choice % len(candidates)]
            assert target not in self.silent, "a silent target is not asked again"
            if self.call.attempts:
                assert target not in self.lost or target in asked, "a backup goes where nothing was lost"
            attempt = self.call.started(target, self.now, backup_after=self.backup_after)
            assert attempt.number == self.call.made

    @precondition(lambda self: self._alive() and self.call.attempts)
    @rule(choice=st.integers(0, 9))
    def content(self, choice: int) -> None:
        """A piece of content of an attempt that runs."""
        attempt = self.call.attempts[choice % len(self.call.attempts)]
        if self.call.winner is None:
            others = [other for other in self.call.attempts if other is not attempt]
            assert self.call.content(attempt, self.now) == others
            self.committed = self.committed or self.stream
        else:
            assert self.call.attempts == [self.call.winner]
            self._illegal(lambda: self.call.content(attempt, self.now))
            attempt.last_content_at = self.now

    @precondition(lambda self: self._alive() and self.call.attempts)
    @rule(choice=st.integers(0, 9))
    def ending(self, choice: int) -> None:
        """The content of an attempt is over."""
        attempt = self.call.attempts[choice % len(self.call.attempts)]
        if self.now < self.call.deadline:
            self.call.ending(attempt, self.now, 0.05)
            assert self.now < attempt.conclude_at < self.call.deadline

    @precondition(lambda self: self._alive() and self.call.attempts)
    @rule(choice=st.integers(0, 9))
    def finish(self, choice: int) -> None:
        """An attempt ends as it should."""
        attempt = self.call.attempts[choice % len(self.call.attempts)]
        others = [other for other in self.call.attempts if other is not attempt]
        assert self.call.finished(attempt) == others
        assert self.call.winner is attempt
        self.ends += 1

    @precondition(lambda self: self._alive() and self.call.attempts)
    @rule(
        choice=st.integers(0, 9),
        outcome=st.sampled_from(
            [LOST, GOODBYE, REJECTED, NEXT, BROKEN, IDLE_TIMEOUT, FIRST_DELTA_TIMEOUT, throttled(1.0)]
        ),
    )
    def lose(self, choice: int, outcome: Outcome) -> None:
        """An attempt is lost."""
        attempt = self.call.attempts[choice % len(self.call.attempts)]
        was_winner = attempt is self.call.winner
        phase = self.call.phase()
        verdict = self.call.lost(attempt, outcome, self.now, committed=self.committed)
        self.lost.add(attempt.target)
        if outcome.kind is not Kind.IGNORED:
            self.asked.add(self.services[attempt.target])
        if self.first in (None, GOODBYE):
            self.first = outcome
        if was_winner and self.committed and not self.restart:
            assert verdict == End(outcome), "committed: nobody continues the text"
        if isinstance(verdict, End):
            assert verdict.outcome in (outcome, self.first)
            if not (was_winner and self.committed):
                assert verdict.outcome == self.first, "the first failure is not masked"
            assert self.call.phase() == phase
            self.call.end()
            self.ends += 1
        elif isinstance(verdict, Seek):
            assert self.call.seeking
            assert not self.call.attempts
            assert self.call.made < MAX_ATTEMPTS
        else:
            assert self.call.attempts

    @precondition(lambda self: self._alive() and self.call.seeking)
    @rule(wait=st.sampled_from([0.0, 0.01, 5.0, math.inf]))
    def park(self, wait: float) -> None:
        """Nothing is to be had now."""
        self.call.park(self.now + wait, self.now)
        assert self.call.next_wakeup_at() > self.now or self.now >= self.call.deadline or self.call.attempts

    @precondition(lambda self: self._alive())
    @rule(step=st.sampled_from([0.0, 0.001, 0.06, 0.5, 1.0, 3.0]))
    def sleep(self, step: float) -> None:
        """Time passes, at most to the next clock; what is due is acted on, as the dispatcher does."""
        self.now = min(self.now + step, max(self.now, self.call.next_wakeup_at()))
        for _ in range(20):
            due = self.call.due(self.now)
            if due is None:
                assert self.call.next_wakeup_at() > self.now
                return
            assert (due.clock == "deadline") == (self.now >= self.call.deadline)
            if due.clock == "deadline":
                self.call.end()
                self.ends += 1
                return
            if due.clock == "first_delta":
                assert due.attempt is not None
                assert due.attempt.overtaken
                self.silent.add(due.attempt.target)
                self.asked.add(self.services[due.attempt.target])
                wanted = self.call.want_backup()
                if not self.call.seeking:
                    assert not self.call.candidates(self.now) or self.call.made >= MAX_ATTEMPTS
                assert not wanted or self.call.candidates(self.now)
            elif due.clock == "backup":
                assert due.attempt in self.call.attempts
                assert due.attempt is not self.call.winner
                if self.call.want_backup(twice=True):
                    assert self.call.candidates(self.now)
            elif due.clock == "idle":
                assert due.attempt is self.call.winner is not None
                self.lose(self.call.attempts.index(due.attempt), IDLE_TIMEOUT)
                if not self._alive():
                    return
            elif due.clock == "conclude":
                assert due.attempt is not None
                self.finish(self.call.attempts.index(due.attempt))
                return
        raise AssertionError("clocks that never come to rest")

    @rule()
    def cancel(self) -> None:
        """The bot ends it: legal once."""
        if self._alive():
            self.call.end()
            self.ends += 1
        else:
            self._illegal(self.call.end)

    def _illegal(self, step: Any) -> None:
        before = (repr(self.call), self.call.seeking, list(self.call.attempts), self.call.next_wakeup_at())
        with pytest.raises(IllegalTransition):
            step()
        assert before == (repr(self.call), self.call.seeking, list(self.call.attempts), self.call.next_wakeup_at())

    @invariant()
    def promises(self) -> None:
        """Looked at after every step."""
        if not hasattr(self, "call"):
            return
        now = self.call
        assert self.ends == (0 if self._alive() else 1), "exactly one end"
        assert now.made <= MAX_ATTEMPTS
        targets = [attempt.target for attempt in now.attempts]
        assert all(targets.count(target) <= 2 for target in targets), "a backup on another connection, no third"
        assert now.winner is None or not self._alive() or now.winner in now.attempts
        assert not (now.seeking and now.winner)
        assert now.next_wakeup_at() <= now.deadline
        if now.state in (State.RUNNING, State.STREAMING):
            assert now.attempts
        if now.state in (State.QUEUED, State.SEEKING, State.ENDED):
            assert not now.attempts


TestCallLife = CallLife.TestCase
TestCallLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_what_they_say_of_themselves() -> None:
    """One line each, and no text of anybody's."""
    said = call()
    attempt = said.started(0, 0.0)
    said.content(attempt, 0.1)
    assert repr(attempt) == "<attempt 1 target=0 content=True>"
    assert repr(said) == "<Call streaming attempts=1/1 winner=1>"
    assert isinstance(attempt, AttemptState)


def test_a_retry_where_it_is_overloaded_costs_more() -> None:
    """By the last loss there: 503 says so, a cut says no such thing; another target costs what it always does."""
    tried = call(2)
    assert [tried.price(0), tried.price(1)] == [1.0, 1.0]
    tried.lost(tried.started(0, 0.0), classify(UpstreamError("busy", status=503)), 0.1, committed=False)
    assert [tried.price(0), tried.price(1)] == [OVERLOADED_PRICE, 1.0]
    tried.lost(tried.started(1, 0.2), LOST, 0.3, committed=False)
    assert [tried.price(0), tried.price(1)] == [OVERLOADED_PRICE, 1.0]


def test_who_answers_needs_no_backup() -> None:
    """The backup's clock is late: content came, or nothing is in hand, or all attempts are made. None is wanted."""
    answered = call(3)
    assert not answered.want_backup(), "nothing is in hand yet"
    attempt = answered.started(0, 0.0)
    answered.content(attempt, 0.1)
    assert not answered.want_backup(twice=True)
    spent = call(2, max_attempts=1)
    spent.started(0, 0.0)
    assert not spent.want_backup(twice=True)
    assert not spent.seeking


def test_a_backup_falls_due_once() -> None:
    """Its instant is told once; the first-delta clock of the same attempt goes on."""
    silent = call(2)
    attempt = silent.started(0, 0.0)
    attempt.backup_at = 0.3
    assert silent.next_wakeup_at() == 0.3
    assert silent.due(0.2) is None
    assert silent.due(0.3) == Due("backup", attempt)
    assert silent.due(0.3) is None
    assert silent.next_wakeup_at() == 1.0
    assert not attempt.overtaken, "a backup beside it is no verdict on it"


def test_a_credential_that_need_wait_no_longer_ends_the_wait_of_its_calls() -> None:
    """A new key has limits of its own: a call told to wait may go at once, one that lost nothing is as before."""
    waiting = call(1)
    waiting.lift(0, 0.0)
    assert list(waiting.candidates(0.0)) == [0]
    waiting.lost(waiting.started(0, 0.0), throttled(2.0), 0.0, committed=False)
    assert list(waiting.candidates(0.5)) == []
    waiting.lift(0, 0.5)
    assert list(waiting.candidates(0.5)) == [0]
