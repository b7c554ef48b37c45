"""The gate of an upstream: what the operator, its credential and its load have to say."""

from __future__ import annotations

from sidecar.core.classifier import classify
from sidecar.core.outcome import SUCCESS
from sidecar.errors import UpstreamError
from sidecar.service.gate import EXITS_REMEMBERED, Gate

BUSY = classify(UpstreamError("busy", status=503))
THROTTLED = classify(UpstreamError("slow down", status=429, retry_after=2.0))


def gate(maximum: int = 16, *, adaptive: bool = True) -> Gate:
    """One with dice that show the lowest."""
    return Gate(maximum, adaptive=adaptive, jitter=lambda: 0.0)


def test_room_is_kept_for_exits_while_there_are_any() -> None:
    """From an exit call on, for an hour; before and after it everybody may have all."""
    it = gate()
    for _ in range(15):
        it.limit.taken()
    assert it.has_room("entry", 0.0)
    assert it.has_room("exit", 1.0)
    assert not it.has_room("entry", 1.0)
    assert not it.has_room("research", EXITS_REMEMBERED)
    assert it.has_room("entry", 1.0 + EXITS_REMEMBERED)


def test_overload_lowers_the_limit_and_where_it_may_not_it_stays() -> None:
    """adaptive_concurrency = false: the same outcomes, the same limit as before."""
    for adaptive in (True, False):
        it = gate(adaptive=adaptive)
        for _ in range(16):
            it.limit.taken()
        for _ in range(16):
            it.released(BUSY, 0.0, slow=False)
        assert (it.limit.limit < 16) is adaptive


def test_a_429_closes_it_for_its_time_and_an_answer_opens_it_for_good() -> None:
    """And says for how long."""
    it = gate()
    assert it.throttled_for(0.0) == 0.0
    it.limit.taken()
    it.released(THROTTLED, 0.0, slow=False)
    assert not it.is_open(1.0)
    assert not it.has_room("exit", 1.0)
    assert it.throttled_for(0.5) == 1.5
    assert it.has_room("entry", 2.0)
    it.limit.taken()
    it.released(SUCCESS, 2.1, slow=False)
    assert it.throttled_by is None


def test_what_an_operator_took_out_takes_nothing() -> None:
    """Until it is put in again."""
    it = gate()
    it.enabled = False
    assert not it.is_open(0.0)
    assert not it.has_room("exit", 0.0)
    it.enabled = True
    assert it.has_room("research", 0.0)
