"""Who may ask what: lanes, limits per minute, and what is remembered of users, on a clock of plain numbers."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import Client, Config, Frontend, Route, Target, Upstream
from sidecar.service.clients import MEMORY, MOST, Clients
from sidecar.service.ports import Peer
from sidecar.wire import Call, Failed, Lane

LANES: tuple[Lane, ...] = ("exit", "entry", "research")


def clients(*rules: Client, per_minute: int | None = None, jitter: float = 0.0) -> Clients:
    """Rules as loaded."""
    config = Config(
        frontend=Frontend(max_calls_per_minute=per_minute),
        upstream=[Upstream(name="a", url="wss://a.example", dialect="chat")],
        route=[Route(name="default", targets=[Target(upstream="a", model="m")])],
        client=list(rules),
    )
    return Clients(config, jitter=lambda: jitter)


def call(lane: Lane | None = None) -> Call:
    """A call in that lane, or without one."""
    return Call(id="c", input="x", lane=msgspec.UNSET if lane is None else lane)


def peer(uid: int, pid: int = 1) -> Peer:
    """A bot of that user."""
    return Peer(uid=uid, gid=0, pid=pid)


def test_without_rules_everybody_may_do_everything() -> None:
    """No lane is an entry, and nobody has a limit of its own."""
    of = clients()
    assert of.examine(call(), peer(1), 0.0) == ("entry", None)
    for lane in LANES:
        assert of.examine(call(lane), peer(2), 0.0) == (lane, None)


@pytest.mark.parametrize(
    ("lanes", "given"),
    [
        (("research",), "research"),
        (("exit",), "exit"),
        (("research", "exit"), "exit"),
        (("research", "entry"), "entry"),
        (LANES, "entry"),
    ],
)
def test_a_call_without_a_lane_gets_entry_or_the_best_its_user_may_use(lanes: tuple[Lane, ...], given: Lane) -> None:
    """Before anything of that user was seen as well as after."""
    of = clients(Client(user=7, lanes=lanes))
    assert of.lane_of(call(), peer(7)) == "entry"  # nothing has been examined
    assert of.examine(call(), peer(7), 0.0) == (given, None)
    assert of.lane_of(call(), peer(7)) == given
    assert of.lane_of(call("exit"), peer(7)) == "exit"
    assert of.examine(call(), peer(8), 0.0) == ("entry", None)


def test_a_lane_that_is_not_ones_own_is_refused_and_the_others_are_named() -> None:
    """The bot is told what it may do; the refusal takes nothing of its calls per minute."""
    of = clients(Client(user=7, lanes=("entry", "research"), max_calls_per_minute=1))
    refused = of.examine(call("exit"), peer(7), 0.0)
    assert isinstance(refused, Failed)
    assert (refused.id, refused.code, refused.retryable) == ("c", "invalid_request", False)
    assert "exit is not for the bots of uid 7; they may use entry, research" in refused.message
    assert of.examine(call("research"), peer(7), 0.0) == ("research", None)


def test_the_rule_of_everybody_else_is_for_whom_has_none() -> None:
    """Each such user is counted apart; a user's own rule replaces it whole."""
    of = clients(
        Client(user="*", lanes=("research",), max_calls_in_flight=2, max_calls_per_minute=1),
        Client(user=7, lanes=("exit",)),
    )
    assert of.examine(call("exit"), peer(7), 0.0) == ("exit", None)
    assert of.examine(call("exit"), peer(7), 0.0) == ("exit", None)
    for uid in (8, 9):
        assert of.examine(call(), peer(uid), 0.0) == ("research", 2)
        assert isinstance(of.examine(call(), peer(uid), 0.0), Failed)


def test_calls_per_minute_are_of_a_user_with_all_its_processes() -> None:
    """The kernel tells the uid: another process does not help; another user is not concerned."""
    of = clients(per_minute=2, jitter=0.5)
    assert of.examine(call(), peer(7, pid=1), 10.0) == ("entry", None)
    assert of.examine(call(), peer(7, pid=2), 10.0) == ("entry", None)
    refused = of.examine(call(), peer(7, pid=3), 10.0)
    assert isinstance(refused, Failed)
    assert (refused.code, refused.retryable) == ("overloaded", True)
    assert "may start 2 calls in 60 s" in refused.message
    assert refused.retry_after_ms is not None
    assert 60_000 < refused.retry_after_ms <= 61_000 * 1.1
    assert of.examine(call(), peer(8), 10.0) == ("entry", None)
    assert of.examine(call(), peer(7), 10.0 + refused.retry_after_ms / 1000) == ("entry", None)


def test_a_users_rule_overrides_the_limit_of_all() -> None:
    """Upwards as well as downwards."""
    of = clients(Client(user=7, max_calls_per_minute=3), per_minute=1)
    assert [isinstance(of.examine(call(), peer(7), 0.0), Failed) for _ in range(4)] == [False, False, False, True]
    assert [isinstance(of.examine(call(), peer(8), 0.0), Failed) for _ in range(2)] == [False, True]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 30)), max_size=120), st.integers(1, 5))
def test_no_user_starts_more_than_its_limit_in_any_minute(steps: list[tuple[int, float]], limit: int) -> None:
    """Whenever it calls, silent users being forgotten in between or not."""
    of = clients(per_minute=limit)
    now, taken = 0.0, {uid: [] for uid in range(4)}  # type: dict[int, list[float]]
    for uid, passed in steps:
        now += passed
        if not isinstance(of.examine(call(), peer(uid), now), Failed):
            taken[uid].append(now)
            assert sum(1 for at in taken[uid] if at > now - 60) <= limit


def test_silent_users_are_forgotten_and_memory_is_bounded() -> None:
    """Ten times as many users as are remembered; the one that calls all the time keeps its limit."""
    of = clients(per_minute=1)
    assert of.examine(call(), peer(0), 0.0) == ("entry", None)
    for uid in range(1, 10 * MOST):
        of.examine(call(), peer(uid), uid / 1e6)
        if uid % 100 == 0:
            assert isinstance(of.examine(call(), peer(0), uid / 1e6), Failed)
        assert len(of._users) <= MOST  # what the test is about
    for uid in range(10 * MOST, 11 * MOST):
        of.examine(call(), peer(uid), MEMORY + 1.0)
    assert all(user >= 10 * MOST for user in of._users)


def test_a_halted_lane_uses_up_nothing() -> None:
    """A bot that asks in vain for entries can still place its exits."""
    of = clients(per_minute=1)
    for _ in range(100):
        assert of.examine(call(), peer(7), 0.0, {"entry", "research"}) == ("entry", None)
    assert of.examine(call("exit"), peer(7), 0.0, {"entry", "research"}) == ("exit", None)
    assert isinstance(of.examine(call("exit"), peer(7), 0.0, {"entry", "research"}), Failed)


def test_statistics_name_rules_and_callers() -> None:
    """Each user with a rule, called or not, each other one that called, and the rule for everybody else at the end."""
    of = clients(Client(user=7, lanes=("exit",), max_calls_in_flight=5), per_minute=100)
    of.examine(call(), peer(8), 0.0)
    of.examine(call("entry"), peer(7), 0.0)
    rows = of.statistics(1.0)
    assert [(row.uid, row.calls_last_minute, row.refused) for row in rows] == [(7, 0, 1), (8, 1, 0), (None, 0, 0)]
    assert (rows[0].lanes, rows[0].max_calls_in_flight, rows[0].max_calls_per_minute) == (("exit",), 5, 100)


def test_calls_of_the_last_minute_are_known_without_a_limit() -> None:
    """Exactly in the first minute, then as a mean of two; nothing is left after two minutes of silence."""
    of = clients()
    for second in range(60):
        of.examine(call(), peer(7), float(second))
    assert of.statistics(59.0)[0].calls_last_minute == 60
    for second in range(60, 90):
        of.examine(call(), peer(7), float(second))
    assert of.statistics(90.0)[0].calls_last_minute == 60
    assert of.statistics(130.0)[0].calls_last_minute == 30
    assert of.statistics(500.0)[0].calls_last_minute == 0


def test_repr_says_how_much_there_is() -> None:
    """For a log."""
    assert repr(clients(Client(user=7))) == "<Clients 1 rules, 0 users>"
