"""How a server treats idle connections: what is believed of it."""

from __future__ import annotations

import math

from sidecar.core.idle import Habits


def closes(habits: Habits, *deeds: tuple[float, float], key: int = 0) -> None:
    """Connections closed at an instant, after having been idle for so long; then somebody looks, a moment later."""
    for now, after in deeds:
        habits.closed_idle(key, after, now)
    now = deeds[-1][0] + 1.0
    assert habits.next_wakeup_at(deeds[-1][0]) <= now
    habits.keep_until(99, now, now)


def learnt(life: float = 5.0) -> Habits:
    """Of a server that has closed three connections, an hour ago, after so many seconds."""
    habits = Habits()
    for now in (-3600.0, -3500.0, -3400.0):
        closes(habits, (now, life))
    return habits


def test_nothing_is_known_at_first() -> None:
    """Connections are kept for as long as they may be, and nobody looks."""
    habits = Habits()
    assert habits.idle_life is None
    habits.answered(None)
    assert habits.idle_life is None
    assert habits.keep_until(1, 0.0, 1e6) == math.inf
    assert habits.next_wakeup_at(5.0) == math.inf


def test_a_word_is_believed_at_once() -> None:
    """Three quarters of what it said last, up or down; of a connection, what was said on it."""
    habits = Habits()
    habits.answered(20.0)
    assert habits.idle_life == 15.0
    habits.answered(60.0)
    assert habits.idle_life == 45.0
    assert habits.keep_until(1, 100.0, 101.0) == 145.0
    assert habits.keep_until(1, 100.0, 101.0, said=8.0) == 106.0
    assert habits.keep_until(1, 100.0, 101.0, said=1000.0) == 145.0
    assert habits.next_wakeup_at(100.0) == 100.0 + 45.0 / 8
    habits.answered(0.001)
    assert habits.idle_life == 1.5
    assert "idle_life=1.5" in repr(habits)


def test_a_408_is_a_word() -> None:
    """Once is enough; and what is too short to be lived with is a floor."""
    habits = Habits()
    habits.closed_idle(1, 30.0, 100.0, in_words=True)
    assert habits.idle_life == 22.5
    habits.closed_idle(1, 0.3, 200.0, in_words=True)
    assert habits.idle_life == 1.5


def test_one_close_says_nothing() -> None:
    """Nor do two, nor any number soon after the connect."""
    habits = Habits()
    closes(habits, (10.0, 5.0))
    closes(habits, (100.0, 5.0))
    assert habits.idle_life is None
    habits = Habits()
    for now in range(10):
        habits.closed_idle(0, 0.5, 10.0 * now)
    assert habits.idle_life is None


def test_what_it_does_again_and_again_is_believed() -> None:
    """Three times at about the same age: the shortest counts. It is looked at as soon as the moment is over."""
    habits = Habits()
    closes(habits, (5.0, 5.0), (5.1, 5.1))
    closes(habits, (6.1, 5.2))
    assert habits.idle_life is None
    closes(habits, (70.0, 6.0))
    assert habits.idle_life == 3.75


def test_a_moment_is_over_though_no_connection_is_idle_then() -> None:
    """Who has none to ask about is not told to look again at an instant that has passed, for ever."""
    habits = Habits()
    for now in (10.0, 20.0, 30.0):
        habits.closed_idle(0, 5.0, now)
        assert habits.next_wakeup_at(now + 0.5) == now + 1.0
        assert habits.next_wakeup_at(now + 1.5) > now + 1.5
    assert habits.idle_life == 3.75


def test_the_next_close_ends_the_moment_before() -> None:
    """Nobody had to look in between."""
    habits = Habits()
    for now in (10.0, 20.0, 30.0, 40.0):
        habits.closed_idle(0, 5.0, now)
    assert habits.idle_life == 3.75


def test_many_of_different_ages_in_one_moment_are_a_restart() -> None:
    """However often: it says nothing of its patience, even where two deeds before would agree with the first."""
    habits = Habits()
    closes(habits, (100.0, 50.0))
    closes(habits, (200.0, 50.0))
    for now in (300.0, 400.0, 500.0, 600.0):
        closes(habits, (now, 50.0), (now + 0.1, 7.0), (now + 0.2, 900.0))
    assert habits.idle_life is None


def test_it_may_become_less_patient() -> None:
    """The last few deeds count, whatever was believed before."""
    habits = learnt(60.0)
    assert habits.idle_life == 45.0
    for now in (0.0, 10.0, 20.0):
        closes(habits, (now, 5.0))
    assert habits.idle_life == 3.75


def test_one_is_left_to_grow_older_and_what_it_outlives_is_outgrown() -> None:
    """Half as long again, then again; the others are replaced at what is believed meanwhile."""
    habits = learnt(5.0)
    assert habits.keep_until(1, 0.0, 3.7) == 3.75
    assert habits.keep_until(1, 0.0, 3.8) == math.inf
    assert habits.keep_until(2, 0.0, 3.8) == 3.75
    assert habits.scout == 1
    assert habits.keep_until(1, 0.0, 7.4) == math.inf
    assert habits.idle_life == 3.75
    for now in (7.6, 11.5, 18.0, 30.0, 45.0):
        assert habits.keep_until(1, 0.0, now) == math.inf
    assert habits.idle_life == 0.75 * 45.0
    habits.closed_idle(1, 60.0, 60.0)
    assert habits.scout is None
    assert habits.idle_life == 0.75 * 45.0, "which is less than it is patient"


def test_a_word_is_outgrown_too_and_said_again() -> None:
    """A server that says it no more would never be left alone otherwise."""
    habits = Habits()
    habits.answered(4.0)
    assert habits.keep_until(1, 0.0, 3.0) == math.inf
    assert habits.keep_until(1, 0.0, 6.0) == math.inf
    assert habits.idle_life == 4.5
    habits.answered(4.0)
    assert habits.idle_life == 3.0


def test_a_scout_that_was_closed_is_followed_by_another_after_a_minute() -> None:
    """One at a time; it was no loss."""
    habits = learnt(5.0)
    habits.keep_until(1, 0.0, 4.0)
    habits.closed_idle(1, 5.0, 5.0)
    assert habits.keep_until(2, 10.0, 64.0) == 13.75
    assert habits.scout is None
    assert habits.keep_until(2, 61.0, 66.0) == math.inf
    assert habits.idle_life == 3.75


def test_a_scout_that_is_used_or_ends_otherwise_is_none() -> None:
    """The next one is taken at once; another's end is not its own."""
    habits = learnt(5.0)
    habits.keep_until(1, 0.0, 4.0)
    habits.not_idle(2)
    assert habits.scout == 1
    habits.not_idle(1)
    assert habits.scout is None
    habits.keep_until(2, 0.0, 4.1)
    assert habits.scout == 2


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
