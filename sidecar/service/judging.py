"""What an attempt's end, or a connect's, means to those who remember: breaker, blame, limits, times, metrics.

All of them read the one classification of `core.classifier`; what only the clock and the route can know (was it waited
for long enough?) is added here, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import structs

from sidecar.core.outcome import (
    CANCELLED,
    DEADLINE_COUNTED,
    FIRST_DELTA_TIMEOUT,
    IDLE_TIMEOUT,
    Kind,
    Outcome,
    by_impatience,
)
from sidecar.service.accounting import Accounting
from sidecar.service.attempt import Attempt
from sidecar.service.pool import Pool
from sidecar.service.routes import TargetRuntime


class Judge:
    """See the module.

    Args:
        accounting: what is counted and said.
    """

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._said: dict[int, str] = {}  # breaker -> the state it was last said to be in

    def record(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """An attempt is over, however."""
        target, state = attempt.target, attempt.state
        if outcome.kind is Kind.SUCCESS and not state.overtaken:
            target.blame.succeeded(attempt.call.peer.holder, now)
            if target.refusals.ready_at > -math.inf:
                target.refusals.succeeded(now)
            self._tell(attempt, outcome, now, slow=False)
            return
        until = now if state.first_content_at is None else state.first_content_at
        waited = until - state.sent_at
        long_enough = waited >= attempt.call.route.config.first_delta_timeout_ms / 1000
        outcome = self._by_its_route(attempt, outcome, now, waited=waited, long_enough=long_enough)
        slow = state.overtaken and long_enough
        holder = attempt.call.peer.holder
        if (outcome.counts_against_breaker or outcome.throttles) and not target.blame.failed(holder, now):
            # This bot fails again and again where others are answered: no fault of the upstream's, nor a slow one.
            outcome = structs.replace(
                outcome, kind=Kind.IGNORED, counts_against_breaker=False, throttles=False, overload=False
            )
            slow = False
        elif slow:
            # ... and so it is with one whose prompts take long.
            slow = outcome.counts_against_breaker or target.blame.late(holder, now)
            if slow:
                target.times.failed(now)  # whatever came of it in the end
        elif state.first_content_at is None:
            if outcome.kind is Kind.IGNORED or outcome is DEADLINE_COUNTED or outcome is FIRST_DELTA_TIMEOUT:
                target.times.observe_at_least(waited, now)  # it was stopped while silent
            elif outcome.counts_against_breaker or outcome.kind is Kind.THROTTLED:
                target.times.failed(now)
        if outcome.serves_nobody:
            target.refusals.throttled(outcome, now)
        elif outcome.kind is Kind.SUCCESS and not state.overtaken:
            target.blame.succeeded(holder, now)
        self._tell(attempt, outcome, now, slow=slow)

    def _by_its_route(
        self, attempt: Attempt, outcome: Outcome, now: float, *, waited: float, long_enough: bool
    ) -> Outcome:
        """An impatient bot's own clocks say nothing about the upstream: the route's are the measure."""
        hurried = not long_enough
        if outcome is FIRST_DELTA_TIMEOUT:
            self._accounting.lost_race(attempt)
        elif outcome is DEADLINE_COUNTED:
            # ... or what this target usually needs.
            late = attempt.target.times.quantile(0.95, now)
            hurried = hurried and (late is None or waited < 2 * late)
        elif outcome is IDLE_TIMEOUT:
            hurried = now - attempt.state.last_content_at < attempt.call.route.config.idle_timeout_ms / 1000
        return by_impatience(outcome) if hurried else outcome

    def forget(self, attempt: Attempt, now: float) -> None:
        """An attempt whose call went wrong by our own doing: as if it had never been."""
        attempt.target.breaker.give_back(attempt.permit)
        attempt.target.pool.released(attempt.connection, CANCELLED, now, slow=False)

    def _tell(self, attempt: Attempt, outcome: Outcome, now: float, *, slow: bool) -> None:
        target = attempt.target
        breaker = target.breaker
        breaker.record(attempt.permit, outcome, now, slow=slow)
        target.pool.released(attempt.connection, outcome, now, slow=slow)
        self._accounting.attempt_ended(attempt, outcome)
        if attempt.permit.trial or outcome.counts_against_breaker or slow:
            self.look(target, now)

    def on_connect(self, pool: Pool, targets: Iterable[TargetRuntime], outcome: Outcome | None, now: float) -> None:
        """A connect of `pool` worked (None) or failed: every breaker of the upstream is told.

        Not of a failure while connections stand: a service that takes no further one may answer well on those it has
        taken, and what becomes of their calls is known better.
        """
        if outcome is not None and pool.prober.newest() is not None:
            return
        seen: set[int] = set()
        for target in targets:
            if target.pool is pool and id(target.breaker) not in seen:
                seen.add(id(target.breaker))
                if outcome is None:
                    target.breaker.connected(now)
                else:
                    target.breaker.connect_failed(outcome, now)
                self.look(target, now)

    def look_at(self, pool: Pool, targets: Iterable[TargetRuntime], now: float) -> None:
        """`look` at those of one pool."""
        for target in targets:
            if target.pool is pool:
                self.look(target, now)

    def look(self, target: TargetRuntime, now: float) -> None:
        """If its breaker has moved since the last look, say so, and let those look again who wait for it."""
        after = target.breaker.state(now)
        before = self._said.get(id(target.breaker), "closed")
        target.pool.prober.wake()
        if after != before:
            self._said[id(target.breaker)] = after
            self._accounting.breaker_moved(before, after, upstream=target.pool.name, model=target.model)
            if after == "closed":
                target.pool.slow_start()
            target.pool.turned()
