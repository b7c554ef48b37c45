"""Two judges, by process and by user: neither a poisonous bot nor a job of many processes speaks for the upstream."""

from __future__ import annotations

from sidecar.core.blame import Blame
from sidecar.core.jury import Jury


def jury() -> Jury:
    """With dice that show the lowest."""
    return Jury(jitter=lambda: 0.0)


def test_a_process_that_fails_beside_answered_ones_is_to_blame_itself() -> None:
    """The third failure in a row of one process, while another user's are answered, does not count."""
    it = jury()
    counted = []
    for number in range(5):
        it.succeeded((1, 10), 2.0 * number + 1)
        counted.append(it.failed((2, 20), 2.0 * number + 2))
    assert counted == [True, True, False, False, False]


def test_so_is_a_user_whose_every_failure_is_a_new_process() -> None:
    """Each has its two failures free, the user has not; in the end it is barred, whatever process asks."""
    it = jury()
    counted = []
    for number in range(7):
        it.succeeded((1, 10), 2.0 * number + 1)
        counted.append(it.failed((2, 100 + number), 2.0 * number + 2))
    assert counted[:2] == [True, True]
    assert not any(counted[2:])
    assert it.refused_for((2, 999), 14.5) > 0
    assert it.refused_for((1, 10), 14.5) == 0.0


def test_a_barred_process_does_not_take_its_users_trial() -> None:
    """The user's time is over, the process's is not: the user's trial goes back, to a better process."""
    it = jury()
    for number in range(7):
        it.succeeded((1, 10), 2.0 * number + 1)
        it.failed((2, 20), 2.0 * number + 2)
        it.succeeded((2, 21), 2.0 * number + 2.5)
    assert it.refused_for((2, 20), 14.6) > 0
    assert it.refused_for((2, 21), 14.6) == 0.0
    it.give_back((2, 21), 14.6)


def test_slow_prompts_are_their_bots_own_and_bar_nobody() -> None:
    """However many: beside others that are answered in time they say nothing of the upstream."""
    it = jury()
    counted = []
    for number in range(12):
        it.succeeded((1, 10), 2.0 * number + 1)
        counted.append(it.late((2, 20), 2.0 * number + 2))
    assert counted == [True, True] + [False] * 10
    assert it.refused_for((2, 20), 30.0) == 0.0


def test_alone_nobody_is_to_blame() -> None:
    """One user, one process: what it meets is the upstream's."""
    it = jury()
    assert all(it.late((1, 10), float(at)) for at in range(5))
    assert all(it.failed((1, 10), float(at)) for at in range(5, 20))
    assert it.statistics(20.0).barred == 0
    assert repr(it) == f"<Jury processes={it._processes!r} users={it._users!r}>"
    assert isinstance(it._users, Blame)


def test_who_is_barred_and_let_in_is_told_once() -> None:
    """By process and by user, with the seconds; what has been told is not told again."""
    it = jury()
    for number in range(7):
        it.succeeded((1, 10), 2.0 * number + 1)
        it.failed((2, 20), 2.0 * number + 2)
    assert it.news() == [(2, None, 1.0), (2, 20, 1.0)]
    assert it.barred(14.5) == [(2, None, 0.5), (2, 20, 0.5)]
    assert it.news() == []
    it.succeeded((2, 20), 15.0)
    assert it.news() == [(2, None, 0.0), (2, 20, 0.0)]
    assert it.barred(15.0) == []
