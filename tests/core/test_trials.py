"""Whose a half-open breaker's next trial is."""

from __future__ import annotations

import pytest

from sidecar.core.trials import OTHERS, PATIENCE, STANDS_BACK, Trials


@pytest.mark.parametrize("lane", ["research", "entry", "exit"])
def test_a_free_trial_is_kept_from_a_lane_for_a_moment(lane: str) -> None:
    """Research first, exits last; whose it is does not matter as long as nobody has spoiled one."""
    it = Trials()
    it.asks("bot", 1.0)
    assert it.kept_until(lane, "bot", free_at=1.0, now=1.0) == 1.0 + PATIENCE[lane]  # type: ignore[arg-type,index]


def test_who_spoiled_a_trial_stands_back_while_others_ask() -> None:
    """For as long as somebody else has asked of late; nobody else has to."""
    it = Trials()
    it.asks("good", 0.0)
    it.asks("bad", 1.0)
    it.given("bad")
    it.ended(failed=True)
    assert it.kept_until("research", "bad", free_at=1.0, now=2.0) == 2.0 + STANDS_BACK
    assert it.kept_until("research", "good", free_at=1.0, now=2.0) == 1.0
    assert it.kept_until("research", None, free_at=1.0, now=2.0) == 1.0
    it.asks("good", 5.0)
    assert it.kept_until("research", "bad", free_at=1.0, now=5.0 + OTHERS - 0.1) > 5.0 + OTHERS - 0.1
    assert it.kept_until("research", "bad", free_at=1.0, now=5.0 + OTHERS) == 1.0


def test_alone_it_may_try_again() -> None:
    """Nobody else asks: however often it has spoiled one, and asked since."""
    it = Trials()
    for at in range(5):
        it.asks("bad", float(at))
        it.given("bad")
        it.ended(failed=True)
    assert it.kept_until("entry", "bad", free_at=4.0, now=4.5) == 4.0 + PATIENCE["entry"]


def test_a_trial_that_was_answered_makes_up_for_it() -> None:
    """Its next one is like anybody's."""
    it = Trials()
    it.asks("good", 0.0)
    it.asks("bad", 0.0)
    it.given("bad")
    it.ended(failed=True)
    it.given("bad")
    it.ended(failed=False)
    assert it.kept_until("research", "bad", free_at=1.0, now=1.0) == 1.0
