"""How a server treats idle connections: what is believed of it."""

from __future__ import annotations

from sidecar.core.idle import Habits


def test_nothing_is_known_at_first() -> None:
    """Connections are kept for as long as they may be."""
    habits = Habits()
    assert habits.idle_life is None
    habits.answered(None)
    assert habits.idle_life is None


def test_the_shortest_patience_seen_counts() -> None:
    """Three quarters of what it said or did; what it does soon after the connect says nothing."""
    habits = Habits()
    habits.closed_idle(0.5)
    assert habits.idle_life is None
    habits.closed_idle(60.0)
    assert habits.idle_life == 45.0
    habits.answered(20.0)
    assert habits.idle_life == 15.0
    habits.closed_idle(40.0)
    assert habits.idle_life == 15.0
    habits.answered(0.001)
    assert habits.idle_life == 1.5
    assert "idle_life=1.5" in repr(habits)


def test_a_server_that_never_looks_is_believed_twice() -> None:
    """Then a request that was not looked at is a failure, until it answers one."""
    habits = Habits()
    assert [habits.untouched(now) for now in (10.0, 20.0, 30.0, 40.0)] == [True, True, False, False]
    habits.answered(None)
    assert habits.untouched(40.1)


def test_one_word_for_many_requests_counts_once() -> None:
    """A server that goes away leaves all that is on its connections: so much is one occasion, but not for ever."""
    habits = Habits()
    assert all(habits.untouched(10.0) for _ in range(8))
    assert all(habits.untouched(10.9 + 0.01 * n) for n in range(10))  # on another connection
    assert habits.untouched(11.95)
    assert not habits.untouched(13.0)
    habits.answered(None)
    assert all(habits.untouched(13.0 + 0.5 * n) for n in range(4))
    assert not habits.untouched(15.1)
