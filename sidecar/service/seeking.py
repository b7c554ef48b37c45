"""How a call finds the connection for its next attempt: target by target, in the order that its policy gives.

For each: a free slot, the breaker's permit, and, from the second attempt on, the retry budget. Where nothing can be
had now, the call waits for what may come before its deadline; where nothing will come, it is told at once.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from sidecar.core.breaker import Permit, Refusal
from sidecar.core.call import Call as CallPolicy
from sidecar.core.outcome import Outcome
from sidecar.service.connection import Connection
from sidecar.service.routes import RouteRuntime, TargetRuntime

_NONE: Final[frozenset[int]] = frozenset()


class Seeker(Protocol):
    """The call that seeks, as seen from here: `running_call.RunningCall`."""

    policy: CallPolicy
    route: RouteRuntime
    on_receipt: bool
    replays: bool
    #: (pool, connection) on which an attempt of it was lost
    lost_connections: frozenset[tuple[str, int]]

    def start(self, index: int, target: TargetRuntime, connection: Connection, permit: Permit, now: float) -> bool:
        """Hand an attempt to `connection`; False: it is gone, nothing was written."""
        ...

    def wait(self, targets: list[TargetRuntime], until: float, now: float) -> None:
        """Wait for a connection of one of `targets`, at most `until` before looking again anyway."""
        ...

    def fail(self, code: str, message: str, *, retry_after: float) -> None:
        """End without an answer; `retry_after` in seconds."""
        ...

    def fail_as(self, outcome: Outcome) -> None:
        """End with an upstream's failure or refusal."""
        ...


class _Prospects:
    """What a call that found no connection may hope for: targets worth waiting for, instants, a refused credential."""

    __slots__ = ("connects_at", "may_come", "refused", "reopens_at")

    def __init__(self) -> None:
        self.may_come: list[TargetRuntime] = []
        self.reopens_at = self.connects_at = math.inf
        self.refused: Outcome | None = None


def seek(call: Seeker, now: float) -> None:
    """Start the attempt that the call's policy wants, on the first candidate that can take it; else wait, else end."""
    policy = call.policy
    prospects = _Prospects()
    for index in policy.candidates(now):
        if _try(call, index, prospects, now):
            return
    if policy.attempts:
        # A backup was wanted beside the attempt in hand; wait for a connection, not for a breaker.
        if prospects.may_come:
            call.wait(prospects.may_come, math.inf, now)
        else:
            policy.give_up_backup()
    elif prospects.may_come:
        call.wait(prospects.may_come, prospects.reopens_at, now)
    elif policy.retry_is_due_later(now):
        call.wait([], math.inf, now)
    else:
        _nobody(call, prospects, now)


def _try(call: Seeker, index: int, prospects: _Prospects, now: float) -> bool:
    """Start an attempt on target `index`; False, and what may come of it later, when that cannot be had now."""
    target, policy = call.route.targets[index], call.policy
    pool, breaker = target.pool, target.breaker
    lost = call.lost_connections
    avoid = frozenset(key for name, key in lost if name == pool.name) if lost else _NONE
    while connection := pool.lease(avoid=avoid):
        permit = breaker.admit(now)
        if isinstance(permit, Refusal):
            pool.leased(connection)
            prospects.reopens_at = min(prospects.reopens_at, now + permit.retry_after)
            if not call.on_receipt and not policy.attempts and breaker.state(now) == "half_open":
                prospects.may_come.append(target)  # one trial at a time: who waits already may wait for its end
            return False
        paid = policy.made > 0 and not call.replays
        if paid and not target.budget.withdraw(now):
            breaker.give_back(permit)
            pool.leased(connection)
            return False
        if call.start(index, target, connection, permit, now):
            return True
        # The connection turned out to be gone: nothing was sent. The next one, if there is one.
        breaker.give_back(permit)
        if paid:
            target.budget.give_back()
    if pool.refusal is not None:
        prospects.refused = prospects.refused or pool.refusal
        return False
    at = pool.may_connect_at()
    prospects.connects_at = min(prospects.connects_at, at)
    if at < policy.deadline:
        if breaker.state(now) != "open":
            prospects.may_come.append(target)
        else:
            prospects.reopens_at = min(prospects.reopens_at, breaker.next_wakeup_at())
    return False


def _nobody(call: Seeker, prospects: _Prospects, now: float) -> None:
    """No target can take this call before its deadline: say so now, not then."""
    if now >= call.policy.deadline:
        return  # the deadline's clock is due, and beats every other
    first, refused = call.policy.first_outcome, prospects.refused
    reopens_at, connects_at = prospects.reopens_at, prospects.connects_at
    if first is not None:
        call.fail_as(first)
    elif refused is not None:
        call.fail_as(refused)
    elif reopens_at < math.inf:
        call.fail("breaker_open", "every target's breaker is open", retry_after=max(0.0, reopens_at - now))
    else:
        call.fail(
            "no_connection",
            "no connection to any target is due before the deadline",
            retry_after=max(0.0, connects_at - now) if connects_at < math.inf else 1.0,
        )
