"""Two ways to one service: what the service did is held against both, what a connection did is not."""

from __future__ import annotations

import math

import pytest

from sidecar.core.classifier import classify
from sidecar.core.losses import OVERLOADED_PRICE, Losses
from sidecar.core.outcome import IDLE_TIMEOUT, Outcome
from sidecar.errors import ConnectionLost, MalformedFrame, UpstreamError

#: The route of these tests: a WebSocket, its way over HTTPS, and another upstream.
WS, HTTPS, OTHER = 0, 1, 2
CUT = classify(ConnectionLost())
GARBLED = classify(MalformedFrame("no JSON"))
GOODBYE = classify(ConnectionLost(1001, how="close"))
ERROR = classify(UpstreamError("sorry", status=500))
OVERLOADED = classify(UpstreamError("later", status=529))
NO_MODEL = classify(UpstreamError("no", code="model_not_found"))
BAD_KEY = classify(UpstreamError("who?", status=401))


def losses(deadline: float = 10.0) -> Losses:
    """Nothing lost yet."""
    return Losses((WS, HTTPS, OTHER), (0, 0, 1), deadline, lambda: 0.5)


@pytest.mark.parametrize("outcome", [ERROR, OVERLOADED, IDLE_TIMEOUT])
def test_what_the_service_failed_in_its_other_way_is_asked_after_a_wait(outcome: Outcome) -> None:
    """The other upstream now; the same service, whatever the way, when a second try at it would be due."""
    it = losses()
    it.lost(WS, outcome, 0.0, 0.0)
    assert it.candidates([], 0.0, twice=False) == [OTHER]
    due = min(at for at in it.instants() if at > 0)
    assert 0 < due < 10
    assert it.candidates([], due, twice=False) == [OTHER, WS, HTTPS]


def test_a_second_failure_waits_longer_by_either_way() -> None:
    """Attempts at one service are counted together."""
    it = losses(deadline=1000.0)
    it.lost(WS, ERROR, 0.0, 0.0)
    first = max(it.instants())
    it.lost(HTTPS, ERROR, 0.0, 0.0)
    assert max(it.instants()) > first
    assert len(set(it.instants())) == 1


@pytest.mark.parametrize("outcome", [CUT, GARBLED])
def test_a_broken_connection_says_nothing_of_the_other_way(outcome: Outcome) -> None:
    """It may be asked at once, behind the services that were not asked."""
    it = losses()
    it.lost(WS, outcome, 0.0, 0.0)
    assert it.candidates([], 0.0, twice=False) == [OTHER, HTTPS]


def test_what_was_not_taken_up_leaves_the_order_as_it_is() -> None:
    """The connection's time was over: the service was not asked."""
    it = losses()
    it.lost(WS, GOODBYE, 0.0, 0.0)
    assert it.candidates([], 0.0, twice=False)[:2] == [HTTPS, OTHER]


def test_beside_a_silent_attempt_another_service_goes_first() -> None:
    """Its other way only then; and for a backup that may go to the same target, that one last."""
    it = losses()
    assert it.candidates([WS], 0.0, twice=True) == [OTHER, HTTPS, WS]
    it.silent(WS)
    assert it.candidates([WS], 0.0, twice=False) == [OTHER, HTTPS]
    assert it.candidates([WS], 0.0, twice=True) == [OTHER, HTTPS], "never again where it was silent"
    it.lost(HTTPS, ERROR, 1.0, 0.0)
    assert it.candidates([], 5.0, twice=False) == [OTHER, HTTPS], "an error on the other way brings it back neither"


def test_what_it_refuses_one_way_it_refuses_the_other() -> None:
    """No credit, no such model: never again in this call, also where the other way is lost by itself later."""
    it = losses()
    it.lost(HTTPS, NO_MODEL, 0.0, 0.0)
    assert it.candidates([], 9.9, twice=False) == [OTHER]
    it.lost(WS, ERROR, 1.0, 0.0)
    assert it.candidates([], 9.9, twice=False) == [OTHER]
    assert not it.is_due_later(1.0)
    assert set(it.instants()) == {math.inf}


def test_a_refused_key_is_looked_at_where_it_was_refused() -> None:
    """Each way reads its credential itself."""
    it = losses()
    it.lost(WS, BAD_KEY, 0.0, 0.0)
    assert it.candidates([], 0.0, twice=False) == [OTHER, HTTPS]


def test_an_overloaded_service_costs_more_by_either_way() -> None:
    """It has said so; which way it was asked is nothing to it."""
    it = losses()
    it.lost(WS, OVERLOADED, 0.0, 0.0)
    assert [it.price(WS), it.price(HTTPS), it.price(OTHER)] == [OVERLOADED_PRICE, OVERLOADED_PRICE, 1.0]


def test_a_pace_is_lifted_by_either_way() -> None:
    """The credential need wait no longer; a target that is out stays out."""
    it = losses(deadline=100.0)
    it.lost(WS, classify(UpstreamError("slow down", status=429, retry_after=20.0)), 0.0, 0.0)
    assert it.candidates([], 1.0, twice=False) == [OTHER]
    it.lift(HTTPS, 1.0)
    it.lift(OTHER, 1.0)
    assert it.candidates([], 1.0, twice=False) == [OTHER, HTTPS]
    it.silent(WS)
    it.lift(WS, 1.0)
    assert it.candidates([], 1.0, twice=False) == [OTHER, HTTPS]
    assert WS in it
    assert OTHER not in it
