"""The pool's policy: spares ready, replacements first, no herd, and never more than it may have."""

# ruff: noqa: D102  (a state machine's rules are named for what they do)

import itertools
import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.classifier import classify
from sidecar.core.connect_rate import ConnectRate
from sidecar.core.pool_policy import AFTERMATH, CONNECTION, LEISURE, ConnectionView, Open, PoolPolicy, Retire
from sidecar.core.transitions import IllegalTransition
from sidecar.errors import ConnectFailed, ConnectionLost, UpgradeRefused

FAILED = classify(ConnectFailed("tcp", "refused"))
REFUSED = classify(UpgradeRefused(401, {}))
CUT = ConnectionLost(1006)
GOING = ConnectionLost(1001, how="close")


def policy(**fields):
    """Two spares, four at most, dice that show the middle, unless said."""
    return PoolPolicy(**({"warm": 2, "maximum": 4, "jitter": lambda: 0.5} | fields))


def views(*states, retire_at=None, first=1):
    """Connections by letter: Ready and idle, Busy, Connecting, Draining, X closed; lower case: due for rotation."""
    names = {"R": "READY", "B": "BUSY", "C": "CONNECTING", "D": "DRAINING", "X": "CLOSED"}
    return [
        ConnectionView(
            key=key,
            state=names[letter.upper()],
            opened_at=float(key),
            taken=int(letter.upper() == "B"),
            retire_at=0.0 if letter.islower() else retire_at,
        )
        for key, letter in enumerate("".join(states), first)
    ]


def counts(actions):
    """(how many to open, keys to retire)."""
    return sum(isinstance(a, Open) for a in actions), [a.key for a in actions if isinstance(a, Retire)]


def test_a_cold_start_opens_all_spares_at_once():
    """Nothing there, nothing known to be wrong: warm connects go out together."""
    it = policy()
    assert it.needs_decision(0, 0, 0, 0, 0)
    assert it.decide(0, [], 0) == [Open(), Open()]
    assert it.decide(0, views("CC"), 0) == []
    assert repr(it).startswith("<PoolPolicy warm=2 maximum=4 at_once=8 <ConnectBackoff steady")


def test_a_big_cold_start_is_bounded():
    """At most `burst` connects at a time."""
    it = policy(warm=64, maximum=64, burst=16)
    assert counts(it.decide(0, [], 0)) == (16, [])
    assert counts(it.decide(0, views("C" * 16), 0)) == (0, [])
    it.connected(0.1)
    assert counts(it.decide(0.1, views("R" + "C" * 15), 0)) == (1, [])


@pytest.mark.parametrize(
    ("states", "waiting", "opens"),
    [
        ("RR", 0, 0),
        ("RB", 0, 1),
        ("BB", 0, 2),
        ("RRBB", 0, 0),
        ("RBBB", 0, 0),  # at the maximum
        ("BB", 3, 2),
        ("RC", 1, 1),
        ("XXXRR", 0, 0),
        ("RD", 0, 1),
        ("BBBD", 0, 1),  # one that drains may be replaced above the maximum
        ("BBBDD", 0, 0),
    ],
)
def test_spares_are_kept_while_there_is_room(states, waiting, opens):
    """`warm` idle ones plus enough for the waiting, never above the maximum."""
    assert counts(policy().decide(0, views(states), waiting)) == (opens, [])


def test_slots_are_counted_for_those_that_wait():
    """Sixteen calls fit on one connection of sixteen slots."""
    it = policy(slots=16, warm=1, maximum=9)
    assert counts(it.decide(0, views("B"), 16)) == (2, [])
    assert counts(it.decide(0, views("B"), 17)) == (3, [])


def test_what_was_agreed_on_decides_how_many_are_enough():
    """A service that turns out to speak HTTP/1.1 carries one call a connection: more of them for those that wait."""
    it = policy(slots=16, warm=1, maximum=9)
    it.carry(1)
    assert counts(it.decide(0, views("B"), 3)) == (4, [])
    it.carry(16)
    assert counts(it.decide(0, views("B"), 3)) == (2, [])


def test_warm_never_exceeds_the_maximum():
    """A configuration that asks for more spares than connections gets what there may be."""
    assert counts(policy(warm=9, maximum=3).decide(0, [], 0)) == (3, [])


def test_rotation_is_replacement_first():
    """Due and idle: a new one first, retired once the spares are complete without it."""
    it = policy()
    assert counts(it.decide(10, views("rR"), 0)) == (1, [])
    assert counts(it.decide(10, views("rRC"), 0)) == (0, [])
    it.connected(10.1)
    assert it.decide(10.1, views("rRR"), 0) == [Retire(1, "max_age")]


def test_rotation_at_the_maximum_goes_one_above_it():
    """With warm = maximum: the replacement may stand beside the old one, the allowance at a time."""
    it = policy(warm=4)
    assert counts(it.decide(10, views("rrRR"), 0)) == (1, [])
    assert counts(it.decide(10, views("rrRRC"), 0)) == (0, [])
    assert counts(it.decide(10, views("rrRRR"), 0)) == (0, [1])
    assert PoolPolicy(warm=64, maximum=64, jitter=lambda: 0.5).allowance == 8


def test_a_busy_connection_is_rotated_too():
    """It drains: its calls go on, no new ones come; at the maximum once a replacement stands, even if that is taken."""
    assert counts(policy().decide(10, views("bRR"), 0)) == (0, [1])
    it = policy()
    assert counts(it.decide(10, views("bBBB"), 9)) == (1, [])
    assert counts(it.decide(10, views("bBBBC"), 9)) == (0, [])
    assert counts(it.decide(10, views("bBBBB"), 9)) == (0, [1])


def test_many_busy_ones_due_at_once_drain_a_few_at_a_time():
    """So that places for their replacements are left."""
    it = policy(warm=1, maximum=8)
    assert counts(it.decide(10, views("bbbbbbbR"), 0)) == (0, [1])
    assert counts(it.decide(10, views("DbbbbbbR"), 0)) == (0, [])
    roomy = policy(warm=1, maximum=64)
    assert counts(roomy.decide(10, views("bbbbbbbR"), 0)) == (0, [1, 2, 3, 4, 5, 6, 7])


def test_the_oldest_goes_first():
    """Of two that are due, the one opened first."""
    it = policy(warm=1)
    assert counts(it.decide(10, list(reversed(views("rr"))), 0)) == (1, [1])


def test_nothing_that_works_is_given_up_while_nothing_can_be_opened():
    """Upstream down for new connects: the old connection serves on, past its time."""
    it = policy(warm=1)
    it.connect_failed(10, FAILED)
    assert counts(it.decide(10, views("r"), 0)) == (0, [])
    assert it.needs_decision(0, 0, 1, 0, 10), "while one is due, every event may matter"


def test_one_too_many_is_let_go():
    """The connection that was to be replaced went by itself: the spare above the maximum is retired."""
    assert policy(warm=4).decide(0, views("RRRRR"), 0) == [Retire(1, "surplus")]
    assert policy(warm=4).decide(0, views("BBBBB"), 0) == []


def test_without_spares_wanted_a_due_connection_just_goes():
    """With warm 0: nothing is kept ready, nothing is replaced."""
    assert counts(policy(warm=0).decide(10, views("r"), 0)) == (0, [1])


def test_after_a_failure_one_connect_at_a_time_then_twice_as_many():
    """No herd, however many calls wait: 1 until one succeeds, then 2, 4, 8, 16."""
    it = policy(warm=64, maximum=64, burst=16)
    it.decide(0, [], 0)
    it.connect_failed(0, FAILED)
    assert it.decide(0, [], 0) == []
    assert it.next_wakeup_at() == it.may_connect_at == 0.5
    sizes, ready, now = [], 0, 0.5
    for _ in range(5):
        opens, _retire = counts(it.decide(now, views("R" * ready), 64))
        sizes.append(opens)
        assert counts(it.decide(now, views("R" * ready + "C" * opens), 64)) == (0, [])
        it.connected(now)
        ready += opens
    assert sizes == [1, 2, 4, 8, 16]
    assert it.statistics().opened == 16 + 31


def test_an_outage_delays_the_connects():
    """All lost: nothing is opened before the first delay is over, whoever waits."""
    it = policy()
    it.decide(0, views("RR"), 0)
    it.lost(1, GOING)
    assert it.decide(1, [], 3) == []
    assert it.next_wakeup_at() == 3.5
    assert not it.needs_decision(0, 0, 0, 3, 1.04)
    assert counts(it.decide(3.5, [], 3)) == (1, [])


def test_spares_that_nobody_needs_yet_come_at_leisure():
    """Half of the spares are there and nobody waits: one connect every `LEISURE`; who waits ends it."""
    it = policy(warm=4, maximum=8)
    assert counts(it.decide(0, views("RRBB"), 0)) == (1, [])
    assert counts(it.decide(0.001, views("RRBBC"), 0)) == (0, [])
    it.connected(0.002)
    assert counts(it.decide(0.002, views("RRRBB"), 0)) == (0, [])
    assert it.next_wakeup_at() == LEISURE
    assert not it.needs_decision(3, 0, 5, 0, 0.003)
    assert it.needs_decision(0, 0, 5, 1, 0.003), "a call waits"
    assert it.needs_decision(1, 0, 5, 0, 0.003), "fewer than half are there"
    assert counts(it.decide(0.004, views("RBBBB"), 0)) == (3, [])
    assert counts(it.decide(0.004 + LEISURE, views("RRRBB"), 0)) == (1, [])


def test_losing_one_of_many_does_not_make_a_call_wait():
    """Others still stand a moment later: a waiting call's connect goes at once, a mere spare's waits its turn."""
    it = policy(maximum=9)
    it.lost(1, GOING, lived=3000)
    assert it.decide(1, views("BBB"), 1) == []
    assert it.next_wakeup_at() == pytest.approx(1.05)
    assert it.needs_decision(0, 0, 3, 1, 1.06)
    assert counts(it.decide(1.06, views("BBB"), 1)) == (1, [])
    assert counts(it.decide(1.06, views("BBB"), 0)) == (0, [])
    assert it.next_wakeup_at() == 3.5


def test_a_cut_spare_is_replaced_soon_and_one_of_a_service_going_away_is_not():
    """One cut among many that stand is no outage; a graceful close befalls many hosts at once and keeps its jitter."""
    for fault, opens in ((CUT, 1), (GOING, 0)):
        it = policy(maximum=9)
        it.lost(1, fault, lived=3000)
        assert counts(it.decide(1.06, views("BBB"), 0)) == (opens, [])


def test_our_own_stop_is_replaced_at_once_even_after_a_loss():
    """The delay after a loss is not for what we closed ourselves; the delay after a failed connect is."""
    it = policy(maximum=9)
    it.lost(1, GOING, lived=3000)
    it.stopped_by_us(1.01)
    it.stopped_by_us(1.01)
    assert it.may_connect_at < 1
    assert it.needs_decision(0, 0, 1, 0, 1.01)
    assert counts(it.decide(1.01, views("B"), 0)) == (2, [])
    assert counts(it.decide(1.01, views("BCC"), 0)) == (0, [])
    assert it.may_connect_at > 1.01
    it.connect_failed(1.1, REFUSED)
    it.stopped_by_us(1.2)
    assert counts(it.decide(1.2, views("B"), 0)) == (0, [])


def test_our_own_stop_costs_no_delay():
    """A connection closed to stop an abandoned call is replaced at once."""
    it = policy()
    it.decide(0, views("RR"), 0)
    it.stopped_by_us(1)
    assert it.needs_decision(1, 0, 1, 0, 1)
    assert counts(it.decide(1, views("R"), 0)) == (1, [])
    assert it.statistics().stopped == 1


def test_a_refused_credential_stops_the_connects_until_it_changes():
    """Said by `refused`; a new credential is tried at once."""
    it = policy()
    it.connect_failed(0, REFUSED)
    assert it.refused
    assert it.may_connect_at >= 30
    assert it.decide(1, [], 5) == []
    it.credential_changed(2)
    assert not it.statistics().refused
    assert counts(it.decide(2, [], 5)) == (1, []), "one, to see whether it is taken"


def test_the_precheck_is_quiet_when_nothing_is_to_be_done():
    """A lease and a release beside enough spares need no decision."""
    it = policy()
    it.decide(0, views("RRB", retire_at=100.0), 0)
    assert not it.needs_decision(2, 0, 3, 0, 1)
    assert it.needs_decision(1, 0, 3, 0, 1), "a spare is missing"
    assert it.needs_decision(2, 0, 3, 1, 1), "a call waits"
    assert not it.needs_decision(0, 0, 4, 9, 1), "nothing can be done at the maximum"
    assert it.needs_decision(2, 0, 3, 0, 100), "one falls due"
    assert it.next_wakeup_at() == 100
    it.decide(1, views("RR"), 0)
    assert it.next_wakeup_at() == math.inf


def test_rotations_are_spread():
    """Connections opened together fall due well apart, in the last fifth of their age, never past it."""
    it = policy(max_age=3300)
    due = sorted(it.retire_at_for(1000) for _ in range(64))
    assert due[0] > 1000 + 3300 * 0.8
    assert due[-1] <= 1000 + 3300
    assert min(b - a for a, b in itertools.pairwise(due)) > 660 / 64 / 4


@pytest.mark.parametrize("bad", [{"warm": -1}, {"maximum": 0}, {"slots": 0}, {"burst": 0}, {"max_age": 0}])
def test_impossible_pools_are_refused(bad):
    """A mistake is said at once."""
    with pytest.raises(ValueError, match="at least"):
        policy(**bad)


def test_a_connections_life():
    """CONNECTING, READY, BUSY, DRAINING, CLOSED; a closed one stays closed, a draining one takes no call."""
    state = "CONNECTING"
    for event in ("ready", "taken", "taken", "released", "idle", "taken", "retire", "released", "closed"):
        state = CONNECTION.after(state, event)
    assert state == "CLOSED"
    for wrong in (("CLOSED", "closed"), ("DRAINING", "taken"), ("CONNECTING", "taken"), ("DRAINING", "idle")):
        with pytest.raises(IllegalTransition):
            CONNECTION.after(*wrong)


class PoolMachine(RuleBasedStateMachine):
    """A pool in a world of failures: it carries out every decision and asks whenever the precheck says so."""

    WARM, MAXIMUM = 3, 9

    def __init__(self):
        super().__init__()
        chance = random.Random(11).random
        self.it = PoolPolicy(warm=self.WARM, maximum=self.MAXIMUM, max_age=100, jitter=chance)
        self.now, self.key = 0.0, 0
        self.pool = {}  # key -> [state, opened_at, taken, retire_at]
        self.failed_since = False  # a connect failed, or a connection was lost, and none succeeded since
        self.settle()

    def of(self, *states):
        return sorted(key for key, view in self.pool.items() if view[0] in states)

    def pick(self, which, *states):
        keys = self.of(*states)
        return keys[which % len(keys)] if keys else None

    def settle(self, waiting=0, force=False):
        for _ in range(50):
            connecting = sum(v[0] == "CONNECTING" for v in self.pool.values())
            idle = sum(v[0] == "READY" and not v[2] for v in self.pool.values())
            if not force and not self.it.needs_decision(idle, connecting, len(self.pool), waiting, self.now):
                # The cheap precheck must never miss what a decision would do.
                assert self.decide(waiting) == []
                return
            force = False
            actions = self.decide(waiting)
            spares = sum(1 for v in self.pool.values() if v[0] == "READY" and not v[2])
            for action in actions:
                if isinstance(action, Open):
                    assert len(self.of("CONNECTING")) < (1 if self.failed_since else 16), "a herd"
                    self.key += 1
                    self.pool[self.key] = ["CONNECTING", self.now, 0, None]
                else:
                    view = self.pool[action.key]
                    if not view[2]:
                        del self.pool[action.key]  # idle: closed at once
                    else:
                        view[0] = "DRAINING"
            after = sum(1 for v in self.pool.values() if v[0] == "READY" and not v[2])
            assert after == spares or after >= self.WARM or len(self.of("READY", "BUSY")) >= self.MAXIMUM
            if not actions:
                return
        raise AssertionError("it never comes to rest")

    def decide(self, waiting):
        return self.it.decide(
            self.now,
            [
                ConnectionView(key=key, state=state, opened_at=opened, taken=taken, retire_at=retire)
                for key, (state, opened, taken, retire) in self.pool.items()
            ],
            waiting,
        )

    @rule(gap=st.floats(0, 30))
    def wait(self, gap):
        self.now += gap
        self.settle()

    @precondition(lambda self: self.of("CONNECTING"))
    @rule(which=st.integers(0), good=st.booleans(), waiting=st.integers(0, 20))
    def connect_ends(self, which, good, waiting):
        key = self.pick(which, "CONNECTING")
        if good:
            self.pool[key] = ["READY", self.now, 0, self.it.retire_at_for(self.now)]
            self.it.connected(self.now)
            self.failed_since = False
        else:
            del self.pool[key]
            self.it.connect_failed(self.now, FAILED)
            self.failed_since = True
        self.settle(waiting)

    @precondition(lambda self: self.of("READY"))
    @rule(which=st.integers(0))
    def take(self, which):
        view = self.pool[self.pick(which, "READY")]
        view[0], view[2] = "BUSY", 1
        self.settle()

    @precondition(lambda self: self.of("BUSY", "DRAINING"))
    @rule(which=st.integers(0))
    def release(self, which):
        key = self.pick(which, "BUSY", "DRAINING")
        if self.pool[key][0] == "DRAINING":
            del self.pool[key]
        else:
            self.pool[key][0], self.pool[key][2] = "READY", 0
        self.settle()

    @precondition(lambda self: self.of("READY", "BUSY"))
    @rule(which=st.integers(0), fault=st.sampled_from([CUT, GOING]))
    def lose(self, which, fault):
        key = self.pick(which, "READY", "BUSY")
        lived = self.now - self.pool.pop(key)[1]
        self.it.lost(self.now, fault, lived=lived)
        self.failed_since = True
        self.settle()

    @precondition(lambda self: self.of("BUSY"))
    @rule(which=st.integers(0))
    def stop(self, which):
        del self.pool[self.pick(which, "BUSY")]
        self.it.stopped_by_us(self.now)
        self.settle()

    @invariant()
    def never_too_many(self):
        assert len(self.pool) <= self.MAXIMUM + self.it.allowance
        assert len(self.of("CONNECTING")) <= 16

    def teardown(self):
        """When the world is kind again, the pool is warm, young and not too big, by its own wake-ups alone."""
        for key in self.of("BUSY", "DRAINING"):
            if self.pool[key][0] == "DRAINING":
                del self.pool[key]
            else:
                self.pool[key][0], self.pool[key][2] = "READY", 0
        self.settle(force=True)
        for _ in range(200):
            connecting = self.of("CONNECTING")
            if connecting:
                self.connect_ends(0, True, 0)
            elif len(self.of("READY")) >= self.WARM and all(v[3] > self.now for v in self.pool.values()):
                break
            else:
                wake = self.it.next_wakeup_at()
                assert wake < math.inf, "it sleeps while something is missing"
                self.now = max(self.now, wake)
                self.settle()
        assert self.WARM <= len(self.of("READY")) <= self.MAXIMUM


PoolMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestPoolMachine = PoolMachine.TestCase


def test_connects_are_never_more_than_their_rate_allows() -> None:
    """Whatever they are for: of a hundred connections that we closed ourselves, the bucket's are replaced at once."""
    rate = ConnectRate(burst=4, per_second=2.0, jitter=lambda: 0.0)
    policy = PoolPolicy(warm=8, maximum=200, burst=100, rate=rate, jitter=lambda: 0.5)
    opened_at: list[float] = []
    now = 0.0
    for _ in range(200):
        for _ in range(3):
            policy.stopped_by_us(now)
        opened_at += [now] * len(policy.decide(now, [], 3))
        policy.connected(now)
        now += 0.05
    for start in opened_at:
        assert sum(start <= at <= start + 5.0 for at in opened_at) <= 4 + 2 * 5
    assert len(opened_at) > 15, "and no fewer for long"


def test_a_probe_counts_as_a_connect() -> None:
    """It is one, whoever asked for it."""
    rate = ConnectRate(burst=1, per_second=1.0, jitter=lambda: 0.0)
    policy = PoolPolicy(warm=1, maximum=4, rate=rate, jitter=lambda: 0.5)
    policy.opened_beside(0.0)
    assert policy.decide(0.0, [], 1) == []
    assert policy.may_connect_at > 0.0
    assert policy.decide(policy.next_wakeup_at(), [], 1) == [Open()]


def test_after_an_outage_one_connection_comes_first_and_spares_when_the_others_had_theirs() -> None:
    """Of a fleet each gets its first before anybody gets its fourth: spares follow one by one, over seconds."""
    dice = random.Random(3)
    firsts: list[float] = []
    alls: list[float] = []
    for _ in range(50):
        it = PoolPolicy(warm=4, maximum=16, jitter=dice.random)
        it.decide(0.0, [], 0)
        it.connect_failed(0.0, FAILED)
        now, ready, opened = 0.0, 0, []
        while ready < 4:
            now = max(now, it.next_wakeup_at())
            opens, _ = counts(it.decide(now, views("R" * ready), 0))
            assert opens <= 1
            opened += [now] * opens
            ready += opens
            if opens:
                it.connected(now)
        firsts.append(opened[0])
        alls.append(opened[-1] - opened[0])
    assert max(firsts) <= 1.0
    assert sum(alls) / len(alls) > AFTERMATH / 2
    assert max(alls) <= 3 * AFTERMATH


def test_a_call_does_not_wait_for_the_aftermath() -> None:
    """Somebody waits: opened now."""
    it = policy(warm=4, maximum=16)
    it.decide(0.0, [], 0)
    it.connect_failed(0.0, FAILED)
    now = it.next_wakeup_at()
    it.decide(now, [], 0)
    it.connected(now)
    assert counts(it.decide(now, views("R"), 0))[0] == 0
    assert counts(it.decide(now, views("B"), 2))[0] == 2


def test_a_connection_closed_in_good_order_is_replaced_without_delay() -> None:
    """`let_go`: no failure and no outage, yet the pool has something to decide."""
    it = policy()
    it.decide(0, [], 0)
    it.connected(0)
    it.connected(0)
    it.decide(0.1, views("RR"), 0)
    assert not it.needs_decision(2, 0, 2, 0, 0.2)
    it.let_go(0.2)
    assert it.needs_decision(2, 0, 2, 0, 0.2)
    assert it.decide(0.2, views("BX"), 1) == [Open(), Open(), Open()], "for who waits, and the spares"
    assert it.statistics().lost == 0


def test_spares_follow_what_is_wanted_of_them() -> None:
    """`keep_warm`: more are opened, fewer are not closed before their time, and never more than the maximum."""
    it = policy(warm=0)
    assert it.decide(0, [], 0) == []
    it.keep_warm(9, 1)
    assert it.needs_decision(0, 0, 0, 0, 1)
    assert it.decide(1, [], 0) == [Open()] * 4
    it.decide(1, views("CCCC"), 0)
    it.keep_warm(9, 2)
    assert not it.needs_decision(0, 4, 4, 0, 2), "nothing new was said"
    it.keep_warm(0, 3)
    assert it.decide(3, views("RRRR"), 0) == []
    assert it.decide(4, [], 0) == []


def test_an_operators_word_is_tried_at_once() -> None:
    """`told_to_try`: whatever wait a failure has left."""
    it = policy()
    it.decide(0, [], 0)
    it.connect_failed(0, REFUSED)
    assert it.decide(1, [], 0) == []
    it.told_to_try(1)
    assert it.needs_decision(0, 0, 0, 0, 1)
    assert it.decide(1, [], 0) == [Open()], "one at a time, as after any failure"
