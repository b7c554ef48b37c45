"""Where one call has lost attempts, and whom it may ask next.

Two ways to one service (`fallback_url`) are two targets of a route. What the service itself did, an error, too much to
do, silence, it did whatever the way: the other way is no fresh start then. It is asked as the same target would be,
after a wait, and behind every service that this call has not asked. Only where nothing was taken up (an end in good
order, a request that was not looked at) the other way keeps its place; where a connection broke it may be asked at
once, behind the other services.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct

from sidecar.core.backoff import call_backoff
from sidecar.core.outcome import Kind, Outcome

#: Attempts that a retry at an upstream counts for which has just refused this call for having too much to do.
OVERLOADED_PRICE: Final = 3.0


class Loss(Struct):
    """What became of a target in this call: how often it was lost, and when it may be asked again.

    Never (inf): it refused, or stayed silent beyond the first-delta clock.
    """

    count: int = 0
    not_before: float = 0.0
    #: the last time because it had too much to do; because the credential is to wait
    overload: bool = False
    paced: bool = False
    #: its first-delta clock fell due, or it refused: it is not asked again by this call, whatever becomes of others
    out: bool = False
    #: the service was asked there, in vain or for too long
    asked: bool = False


class Losses:
    """Of one call; made with the first.

    Args:
        order: the targets of its route (indices), those to be asked first first.
        services: by target: two with the same number are two ways to one service and model.
        deadline: of the call.
        jitter: 0 <= x < 1, for backoff.
    """

    __slots__ = ("_deadline", "_jitter", "_losses", "_order", "_services")

    def __init__(
        self, order: Sequence[int], services: Sequence[int], deadline: float, jitter: Callable[[], float]
    ) -> None:
        self._order, self._services = order, services
        self._deadline, self._jitter = deadline, jitter
        self._losses: dict[int, Loss] = {}

    def __contains__(self, target: int) -> bool:
        """Whether an attempt of this call on `target` was lost, or is not waited for alone any more."""
        return target in self._losses

    # ------------------------------------------------------------------ what happened

    def lost(self, target: int, outcome: Outcome, now: float, usual: float) -> None:
        """An attempt on `target` ended so. Arguments as `Call.lost`'s."""
        loss = self._losses.setdefault(target, Loss())
        loss.count += 1
        loss.overload, loss.paced = outcome.overload, outcome.throttles
        loss.asked = loss.asked or outcome.kind is not Kind.IGNORED
        if not loss.out:
            loss.not_before = self._again_at(loss.count, outcome, now, usual)
        if outcome.kind is Kind.IGNORED or outcome.credential_refused or outcome.by_way:
            return
        for other in self._ways_beside(target):
            # What it refuses here, it refuses there; what it failed in, it is not asked again at once.
            beside = self._losses.setdefault(other, Loss())
            beside.count = max(beside.count, loss.count)
            beside.overload, beside.paced, beside.asked = loss.overload, loss.paced, True
            if outcome.kind is Kind.REJECTED:
                beside.not_before, beside.out = math.inf, True
            elif not beside.out:
                beside.not_before = max(beside.not_before, loss.not_before)

    def silent(self, target: int) -> None:
        """The first-delta clock of an attempt on `target` fell due."""
        loss = self._losses.setdefault(target, Loss())
        loss.not_before, loss.out, loss.asked = math.inf, True, True

    def lift(self, target: int, now: float) -> None:
        """The credential of `target` need wait no longer: nor does this call, if that was why it waited."""
        loss = self._losses.get(target)
        if loss is not None and loss.paced and not loss.out:
            loss.not_before = min(loss.not_before, now)

    # ------------------------------------------------------------------ what may be done

    def candidates(self, running: Sequence[int], now: float, *, twice: bool) -> Sequence[int]:
        """See `Call.candidates`; `running`: the targets of attempts that run."""
        untried = self.untried(running)
        if running:
            return untried + [t for t in dict.fromkeys(running) if t not in self._losses] if twice else untried
        return untried + [t for t in self._order if t in self._losses and self._losses[t].not_before <= now]

    def untried(self, running: Iterable[int]) -> list[int]:
        """Targets that were not asked, services that were not asked first."""
        asked = {self._services[t] for t in running} | self._asked()
        left = [t for t in self._order if t not in self._losses and t not in running]
        return [t for t in left if self._services[t] not in asked] + [t for t in left if self._services[t] in asked]

    def may_be_asked_again(self) -> bool:
        """Some lost target's time comes before the deadline."""
        return any(loss.not_before < self._deadline for loss in self._losses.values())

    def is_due_later(self, now: float) -> bool:
        """A backoff ends before the deadline: worth waiting for."""
        return any(now < loss.not_before < self._deadline for loss in self._losses.values())

    def instants(self) -> list[float]:
        """When lost targets may be asked again."""
        return [loss.not_before for loss in self._losses.values()]

    def price(self, target: int) -> float:
        """What a further attempt on `target` costs of its budget: more where it has said that it is overloaded."""
        loss = self._losses.get(target)
        return OVERLOADED_PRICE if loss is not None and loss.overload else 1.0

    # ------------------------------------------------------------------ inside

    def _asked(self) -> set[int]:
        return {self._services[t] for t, loss in self._losses.items() if loss.asked}

    def _ways_beside(self, target: int) -> list[int]:
        service = self._services[target]
        return [t for t in self._order if t != target and self._services[t] == service]

    def _again_at(self, count: int, outcome: Outcome, now: float, usual: float) -> float:
        """When a lost target may be asked again by this call; inf when never."""
        at = now + call_backoff(count, outcome, self._deadline - now, self._jitter)
        return at if at + usual < self._deadline else math.inf
