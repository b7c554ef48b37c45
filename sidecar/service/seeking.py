"""How a call finds the connection for its next attempt: target by target, in the order that its policy gives.

For each: may it be asked at all (an operator's word, a credential that was told to wait, room under its concurrency
limit, this bot's own record), a free slot, the breaker's permit, and, from the second attempt on, the retry budget.
Where nothing can be had now, the call waits for what may come before its deadline; where nothing will come, it is told
at once.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from sidecar.core.call import Call as CallPolicy
from sidecar.core.outcome import Kind, Outcome
from sidecar.core.permit import Permit, Refusal
from sidecar.core.trials import PATIENCE
from sidecar.service.connection import Connection
from sidecar.service.ports import Peer
from sidecar.service.routes import RouteRuntime, TargetRuntime
from sidecar.wire import Lane

_NONE: Final[frozenset[int]] = frozenset()
#: Characters of what is said of connects that failed, in one call's message.
_LONGEST_REASON: Final = 400
#: Seconds that a call may wait, on receipt too, for a trial that is kept for a lower lane for a moment.
_A_MOMENT: Final = 2 * max(PATIENCE.values())


class Seeker(Protocol):
    """The call that seeks, as seen from here: `running_call.RunningCall`."""

    policy: CallPolicy
    route: RouteRuntime
    lane: Lane
    peer: Peer
    on_receipt: bool
    replays: bool
    sparing: bool
    #: (pool, connection) on which an attempt of it was lost
    lost_connections: frozenset[tuple[str, int]]

    def start(self, index: int, target: TargetRuntime, connection: Connection, permit: Permit, now: float) -> bool:
        """Hand an attempt to `connection`; False: it is gone, nothing was written."""
        ...

    def asked_on(self, pool: str) -> frozenset[int]:
        """The connections of `pool` on which an attempt of it runs."""
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
    """What a call that found no connection may hope for: targets worth waiting for, instants, what refused it."""

    __slots__ = (
        "barred", "connects_at", "disabled", "look_at", "may_come", "paced_at", "perhaps", "refused", "reopens_at",
    )  # fmt: skip

    def __init__(self) -> None:
        #: a connection of these, or room there, may come in time
        self.may_come: list[TargetRuntime] = []
        #: not to be hoped for; who waits for another hears of it all the same, should it come
        self.perhaps: list[TargetRuntime] = []
        #: worth another look then
        self.look_at = math.inf
        #: breakers, throttled credentials, connects: when the earliest lets somebody in
        self.reopens_at = self.paced_at = self.connects_at = math.inf
        self.refused: Outcome | None = None
        #: upstreams that an operator took out
        self.disabled: list[str] = []
        #: this bot's own calls have failed there, and only they
        self.barred = False


def seek(call: Seeker, now: float) -> None:
    """Start the attempt that the call's policy wants, on the first candidate that can take it; else wait, else end."""
    policy = call.policy
    if now >= policy.deadline:
        return  # its clock is due, and beats every other
    if not policy.made and call.route.is_unreachable(policy.deadline, now):
        best_ms = round(1000 * call.route.at_best(now))
        left_ms = round(1000 * (policy.deadline - now))
        problem = f"the first token takes {best_ms} ms at best, of late, and {left_ms} ms are left"
        call.fail("deadline_unreachable", problem, retry_after=call.route.measured_again_after())
        return
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
        call.wait(prospects.may_come + prospects.perhaps, min(prospects.reopens_at, prospects.look_at), now)
    elif prospects.look_at < math.inf or policy.retry_is_due_later(now):
        call.wait(prospects.perhaps, prospects.look_at, now)
    else:
        _nobody(call, prospects, now)


def _try(call: Seeker, index: int, prospects: _Prospects, now: float) -> bool:
    """Start an attempt on target `index`; False, and what may come of it later, when that cannot be had now."""
    target, policy = call.route.targets[index], call.policy
    pool, breaker = target.pool, target.breaker
    if not pool.gate.has_room(call.lane, now):
        _no_room(call, target, prospects, now)
        return False
    lost = call.lost_connections
    avoid = frozenset(key for name, key in lost if name == pool.name) if lost else _NONE
    not_on = call.asked_on(pool.name) if policy.attempts else _NONE
    while connection := pool.lease(avoid=avoid, not_on=not_on):
        permit = breaker.admit(now, call.lane, call.peer.holder)
        if isinstance(permit, Refusal):
            pool.leased(connection)
            _breaker_refused(call, target, permit, prospects, now)
            return False
        # A replay of what was never taken up is no retry of a failure; of those, too, there are only so many.
        budget = pool.replays if call.replays else target.budget
        price = policy.price(index) if policy.made > 0 else 0.0
        if price and not budget.withdraw(now, price, sparing=call.sparing and bool(policy.attempts)):
            breaker.give_back(permit)
            pool.leased(connection)
            return False
        barred_for = target.blame.refused_for(call.peer.holder, now)
        started = False
        try:
            if not barred_for and (started := call.start(index, target, connection, permit, now)):
                return True
        finally:
            if not started:
                # Barred, or the connection turned out to be gone: nothing was sent. What was taken goes back, also when
                # a bug is on its way to the guard of this call.
                breaker.give_back(permit)
                if price:
                    budget.give_back(price)
                pool.leased(connection)
        if barred_for:
            prospects.reopens_at = min(prospects.reopens_at, now + barred_for)
            prospects.barred = True
            return False
        target.blame.give_back(call.peer.holder, now)
    if pool.refusal is not None and pool.may_open_at() > now:
        prospects.refused = prospects.refused or pool.refusal
        prospects.perhaps.append(target)
        return False
    at = pool.may_connect_at()
    prospects.connects_at = min(prospects.connects_at, at)
    if at < policy.deadline:
        if breaker.state(now) != "open":
            prospects.may_come.append(target)
        else:
            prospects.reopens_at = min(prospects.reopens_at, now + breaker.retry_after(now))
    else:
        prospects.perhaps.append(target)
    return False


def _no_room(call: Seeker, target: TargetRuntime, prospects: _Prospects, now: float) -> None:
    """The upstream takes no further attempt of this lane now, whatever connections stand."""
    gate = target.pool.gate
    if not gate.enabled:
        prospects.disabled.append(target.pool.upstream.name)
    elif not gate.is_open(now):
        paced_at = gate.throttle.ready_at
        prospects.paced_at = min(prospects.paced_at, paced_at)
        prospects.refused = prospects.refused or gate.throttled_by
        if paced_at + target.times.at_best(now) < call.policy.deadline:
            prospects.look_at = min(prospects.look_at, paced_at)
    elif target.breaker.state(now) == "open":
        prospects.reopens_at = min(prospects.reopens_at, now + target.breaker.retry_after(now))
    else:
        prospects.may_come.append(target)  # an attempt that ends makes room


def _breaker_refused(call: Seeker, target: TargetRuntime, refusal: Refusal, prospects: _Prospects, now: float) -> None:
    again_at = now + refusal.retry_after
    prospects.reopens_at = min(prospects.reopens_at, again_at)
    if not refusal.soon or call.policy.attempts:
        return
    if not call.on_receipt:
        prospects.may_come.append(target)  # one trial at a time: who waits already may wait for its end
    elif refusal.retry_after < _A_MOMENT and again_at < call.policy.deadline:
        prospects.look_at = min(prospects.look_at, again_at)


def _nobody(call: Seeker, prospects: _Prospects, now: float) -> None:
    """No target can take this call before its deadline: say so now, not then."""
    if now >= call.policy.deadline:
        return  # the deadline's clock is due, and beats every other
    first, refused = call.policy.first_outcome, prospects.refused
    reopens_at, connects_at = prospects.reopens_at, prospects.connects_at
    if first is not None and (refused is None or first.kind is not Kind.IGNORED):
        call.fail_as(first)
    elif prospects.paced_at < math.inf:
        call.fail(
            "upstream_rate_limited",
            "every target that could answer was told to wait, until after the deadline",
            retry_after=max(0.0, prospects.paced_at - now),
        )
    elif refused is not None:
        call.fail_as(refused)
    elif prospects.barred:
        call.fail(
            "breaker_open",
            "calls of this bot have failed again and again where others' are answered",
            retry_after=max(0.0, reopens_at - now),
        )
    elif reopens_at < math.inf:
        call.fail("breaker_open", "every target's breaker is open", retry_after=max(0.0, reopens_at - now))
    elif connects_at == math.inf and prospects.disabled:
        names = ", ".join(dict.fromkeys(prospects.disabled))
        call.fail("no_connection", f"disabled by the operator: upstream {names}", retry_after=1.0)
    else:
        call.fail(
            "no_connection",
            f"no connection to any target is due before the deadline{_why_none(call)}",
            retry_after=max(0.0, connects_at - now) if connects_at < math.inf else 1.0,
        )


def _why_none(call: Seeker) -> str:
    """What was last said of each way, in the words of every bot's report."""
    errors = {target.pool.name: target.pool.last_error for target in call.route.targets}
    said = [f"{name}: {error}" for name, error in errors.items() if error]
    return f" ({'; '.join(said)[:_LONGEST_REASON]})" if said else ""
