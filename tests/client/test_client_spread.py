"""Which daemon gets the next call, with plain values."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.client.spread import Standing, pause, pick

STANDINGS = st.lists(
    st.builds(
        Standing,
        open_calls=st.integers(0, 5),
        connected=st.booleans(),
        silent=st.booleans(),
        aside_until=st.sampled_from([0.0, 5.0, 15.0]),
        leaving=st.booleans(),
    ),
    max_size=6,
)


def test_the_one_with_the_fewest_open_calls_is_taken() -> None:
    """Whoever's turn it is."""
    three = [Standing(4, True), Standing(1, True), Standing(2, True)]
    assert {pick(three, turn=turn, now=0) for turn in range(5)} == {1}


def test_equals_take_turns() -> None:
    """Each as often as the others, one after another."""
    three = [Standing(2, True), Standing(2, True), Standing(2, True)]
    assert [pick(three, turn=turn, now=0) for turn in range(6)] == [0, 1, 2, 0, 1, 2]


def test_nobody_connected_is_nobody() -> None:
    """None of none, and none of those that are away."""
    assert pick([], turn=0, now=0) is None
    assert pick([Standing(0, False)], turn=0, now=0) is None


def test_those_left_aside_are_taken_when_nobody_else_is_there() -> None:
    """First the good, however busy; then those whose pause runs; then the silent; then those that are leaving.

    With `strict` neither of the last two: where they are all there is, a call that one of them refused waits.
    """
    good, paused, silent = Standing(9, True), Standing(0, True, aside_until=10), Standing(0, True, silent=True)
    away, leaving = Standing(0, False), Standing(0, True, leaving=True)
    assert pick([leaving, silent, paused, good, away], turn=0, now=5) == 3
    assert pick([leaving, silent, paused, away], turn=0, now=5) == 2
    assert pick([leaving, silent, away], turn=0, now=5) == 1
    assert pick([leaving, away], turn=0, now=5) == 0
    assert pick([leaving, silent, paused, away], turn=0, now=5, strict=True) == 2
    assert pick([leaving, silent, away], turn=0, now=5, strict=True) is None
    assert pick([good, paused], turn=0, now=10) == 1  # the pause is over


def test_pauses_are_moments() -> None:
    """One that was draining longer than the others; an overloaded one as long as it says, within reason."""
    assert pause("draining", None) == 1.0
    assert pause("daemon_lost", None) == pause("overloaded", None) == 0.25
    assert pause("overloaded", 40) == 0.04
    assert pause("overloaded", 86_400_000) == 5.0


@settings(deadline=None)
@given(STANDINGS, st.integers(0, 1000), st.booleans())
def test_whoever_is_picked_is_connected_and_nobody_better_was_there(
    standings: list[Standing], turn: int, strict: bool
) -> None:
    """And somebody is picked whenever somebody is connected, but for `strict`."""
    index = pick(standings, turn=turn, now=10.0, strict=strict)
    there = [one for one in standings if one.connected]
    good = [one for one in there if not one.silent and not one.leaving and one.aside_until <= 10]
    if index is None:
        assert not [one for one in there if not strict or not (one.silent or one.leaving)]
        return
    taken = standings[index]
    assert not (strict and (taken.silent or taken.leaving))
    assert taken.connected
    if good:
        assert taken in good
        assert taken.open_calls == min(one.open_calls for one in good)
