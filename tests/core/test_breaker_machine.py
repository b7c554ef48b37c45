"""The breaker under any history: calls, connects and probes that end in any order, twice, late, or never."""

# ruff: noqa: D102  (a state machine's rules are named for what they do)

import math
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from sidecar.core import outcome as o
from sidecar.core.breaker import Breaker
from sidecar.core.classifier import classify
from sidecar.core.permit import Permit, Refusal
from sidecar.core.trials import PATIENCE
from sidecar.errors import ConnectFailed, ConnectionLost, UpstreamError

FAILURE = classify(ConnectionLost())
LATER = classify(UpstreamError("later", status=503, retry_after=100.0))
THROTTLED = classify(UpstreamError("slow down", status=429))
REJECTED = classify(UpstreamError("too long", code="context_length_exceeded"))
NO_WAY_IN = classify(ConnectFailed("tcp", "refused"))

TRIAL_TIMEOUT = 20.0
#: the longest open time: the cap, plus a fifth where a Retry-After is believed
LONGEST = 30.0 * 1.2
#: ... and what a refusal adds to it
LONGEST_REFUSAL = LONGEST + 0.2

moments = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 40))
lanes = st.sampled_from(sorted(PATIENCE))
ends = st.sampled_from([o.SUCCESS, o.SUCCESS, FAILURE, FAILURE, LATER, THROTTLED, REJECTED, o.CANCELLED, o.DEADLINE])


class BreakerMachine(RuleBasedStateMachine):
    """What must hold, kept beside the breaker: which trials are out, and what has allowed the next one."""

    probed = False

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.out: list[tuple[Permit, float]] = []
        self.handed_back: list[Permit] = []
        #: open: no permit before this
        self.opens_at = -math.inf
        #: a probe has succeeded since it opened
        self.proven = True
        self.probe_until = None
        #: the instant from which the next trial has been free
        self.free_at = -math.inf

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed):
        self.it = Breaker("x", jitter=random.Random(seed).random, trial_timeout=TRIAL_TIMEOUT, probed=self.probed)

    # ------------------------------------------------------------------ what is kept beside it

    def look(self, before):
        """After a step: has it opened, or opened anew?"""
        after = self.it.statistics(self.now)
        reopened = self.it._growth != before[1]
        if reopened:
            assert after.state == "open" or (self.now >= after.next_wakeup_at and not self.probed)
            assert 1 <= after.next_wakeup_at - self.now <= LONGEST + 1e-9
            self.opens_at, self.proven, self.probe_until = after.next_wakeup_at, not self.probed, None
            self.free_at = self.opens_at
        return after

    def before(self):
        return self.it.statistics(self.now), self.it._growth

    def trials_out(self):
        return [(trial, at) for trial, at in self.out if trial.trial and self.now < at + TRIAL_TIMEOUT]

    # ------------------------------------------------------------------ calls

    @rule(gap=moments)
    def wait(self, gap):
        self.now += gap

    @rule(off=st.sampled_from([-0.2, -1e-6, 0.0, 1e-6, 0.2]))
    def wait_for_what_is_due(self, off):
        """To the edges, where it matters: its time over, a probe or a trial lost, a trial free for a lane."""
        instants = [self.it.next_wakeup_at(), self.it.probe_due_at(), *(self.free_at + p for p in PATIENCE.values())]
        self.now = min((at + off for at in instants if self.now < at + off < math.inf), default=self.now)

    @rule(connects=st.booleans(), what=st.sampled_from([FAILURE, LATER]))
    def outage(self, connects, what):
        """Failure after failure, as fast as it is asked."""
        for _ in range(6):
            if connects:
                self.connect(good=False)
                continue
            said = self.it.admit(self.now)
            if isinstance(said, Permit) and not said.trial:
                self.hand_back(said, what, slow=False)

    @rule(lane=lanes)
    def ask(self, lane):
        state = self.it.state(self.now)
        was_out = self.trials_out()
        said = self.it.admit(self.now, lane)
        if isinstance(said, Refusal):
            assert state != "closed"
            assert 0 < said.retry_after <= LONGEST_REFUSAL
            assert self.now + said.retry_after > self.now
            assert said.soon == (state == "half_open")
            if state == "half_open":
                assert said.retry_after <= 1.0
            return
        assert said.trial == (state == "half_open")
        if said.trial:
            assert not was_out, "two trials at once"
            assert self.now >= self.opens_at, "before its time"
            assert self.proven, "before a probe succeeded"
            assert self.now >= self.free_at + PATIENCE[lane] - 1e-9, "kept for a lower lane"
        self.out.append((said, self.now))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0), slow=st.booleans(), what=ends)
    def end(self, which, slow, what):
        permit, _ = self.out.pop(which % len(self.out))
        self.hand_back(permit, what, slow=slow)
        self.handed_back.append(permit)

    @precondition(lambda self: self.handed_back)
    @rule(which=st.integers(0), slow=st.booleans(), what=ends)
    def end_again(self, which, slow, what):
        permit = self.handed_back[which % len(self.handed_back)]
        if permit.trial:
            self.hand_back(permit, what, slow=slow, stale=True)

    def hand_back(self, permit, what, *, slow, stale=False):
        before = self.before()
        current = permit.generation == self.it._permit.generation
        self.it.record(permit, what, self.now, slow=slow)
        after = self.look(before)
        if stale or not current:
            assert after == structs.replace(before[0], stale=before[0].stale + 1), "news of an earlier generation"
            return
        if permit.trial and after.stale == before[0].stale and after.state == "half_open":
            self.free_at = self.now
        if what is FAILURE and not permit.trial and after.state == "closed":
            self.a_run_is_by_chance(after)

    def a_run_is_by_chance(self, said):
        """Closed in spite of five failures in a row: only where enough outcomes before them say what is usual."""
        if said.state == "closed" and said.consecutive_failures >= 5:
            assert said.total - said.consecutive_failures >= 10

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0))
    def never_used(self, which):
        permit, _ = self.out.pop(which % len(self.out))
        self.it.give_back(permit)
        self.handed_back.append(permit)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0))
    def lost(self, which):
        """Never handed back: its trial is out until it expires, and free from then on."""
        permit, at = self.out[which % len(self.out)]
        if permit.trial and self.now < at + TRIAL_TIMEOUT:
            self.now = at + TRIAL_TIMEOUT
        if permit.trial and permit.generation == self.it._permit.generation:
            self.free_at = max(self.free_at, at + TRIAL_TIMEOUT)
        self.out.remove((permit, at))

    # ------------------------------------------------------------------ connects and probes

    @rule(good=st.booleans())
    def connect(self, good):
        before = self.before()
        if good:
            self.it.connected(self.now)
            if self.it.state(self.now) != "closed" and self.it._open_until < self.opens_at:
                assert self.it._open_until == self.now, "its reason is gone: its time is over"
                self.opens_at = self.free_at = self.now
        else:
            self.it.connect_failed(NO_WAY_IN, self.now)
        after = self.look(before)
        if good:
            assert after.trips == before[0].trips
        self.a_run_is_by_chance(after)

    @rule()
    def probe_begins(self):
        due = self.it.probe_due_at()
        assert self.probed or due == math.inf
        wanted = self.now >= due
        probes = self.it.statistics(self.now).probes
        self.it.probe_started(self.now)
        assert self.it.statistics(self.now).probes == probes + wanted
        if wanted:
            assert self.now >= self.opens_at
            self.probe_until = self.now + TRIAL_TIMEOUT

    @rule(ok=st.booleans())
    def probe_ends(self, ok):
        before = self.before()
        self.it.probe_ended(self.now, ok=ok)
        after = self.look(before)
        if self.probe_until is None or self.now >= self.probe_until:
            if self.it._growth == before[1]:
                assert after == before[0], "nobody waited for it"
            return
        assert ok, "a failed one opens it anew"
        assert after.state == "half_open"
        self.proven, self.probe_until, self.free_at = True, None, self.now

    # ------------------------------------------------------------------ always

    @invariant()
    def counts_are_sane(self):
        if not hasattr(self, "it"):
            return
        said = self.it.statistics(self.now)
        assert 0 <= said.failures <= said.total
        assert 0 <= said.slow <= said.total
        assert len(self.trials_out()) <= 1
        if said.state == "closed":
            assert said.next_wakeup_at == self.it.probe_due_at() == math.inf
        if said.state == "open":
            assert said.next_wakeup_at < math.inf
        assert 0 < self.it.retry_after(self.now) <= LONGEST_REFUSAL

    def teardown(self):
        """Whatever happened: an upstream that is healthy from now on is closed again soon, by few trials of exits."""
        if not hasattr(self, "it"):
            return
        until = self.now + LONGEST + TRIAL_TIMEOUT + 5
        trials = 0
        while self.it.state(self.now) != "closed":
            assert self.now < until
            if self.now >= self.it.probe_due_at():
                self.it.probe_started(self.now)
                self.it.connected(self.now)
                self.it.probe_ended(self.now, ok=True)
            said = self.it.admit(self.now, "exit")
            if isinstance(said, Refusal):
                self.now += said.retry_after
            else:
                trials += 1
                self.it.record(said, o.SUCCESS, self.now)
        assert trials <= 2


class ProbedMachine(BreakerMachine):
    """The same with probes."""

    probed = True


for machine in (BreakerMachine, ProbedMachine):
    machine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)

TestBreaker = BreakerMachine.TestCase
TestProbedBreaker = ProbedMachine.TestCase
