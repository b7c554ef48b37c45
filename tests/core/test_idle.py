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
    assert [habits.untouched(at, at + 0.5) for at in (1, 2, 3, 4)] == [True, True, False, False]
    habits.answered(None)
    assert habits.untouched(5, 5.5)


def test_a_server_that_leaves_all_its_connections_goes_once() -> None:
    """However many requests were on their way on them; a fresh connection that it leaves is another time."""
    habits = Habits()
    assert all(habits.untouched(opened_at, 10.0) for opened_at in (1.0, 1.0, 2.0, 9.9, 9.9))
    assert habits.untouched(10.1, 11.0)
    assert all(habits.untouched(opened_at, 11.0) for opened_at in (1.0, 10.1))
    assert not habits.untouched(11.1, 12.0)
