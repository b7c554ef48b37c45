"""What is counted and said of calls and attempts: the metrics, and one canonical line per call.

Everything here reads the classification made elsewhere; nothing is judged twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sidecar.core.outcome import Outcome
from sidecar.dialects.facts import estimate_usage
from sidecar.logs import CallLine, log_call, logs_calls
from sidecar.metrics import Metrics
from sidecar.service.attempt import Attempt
from sidecar.service.calls import CallView
from sidecar.service.ports import Peer
from sidecar.service.ration import Ration
from sidecar.wire import Done, Terminal

#: Lines a second for calls that were refused on receipt, and for bots that are barred or let in.
REFUSALS_PER_SECOND: Final = 20
BARS_PER_SECOND: Final = 10


class Accounting:
    """Metrics and log of the dispatcher.

    Args:
        metrics: the registry.
        log: a bound logger.
        routes: names that may become labels: a bot's invention must not.
        wall_us: wall clock, microseconds.
    """

    def __init__(self, metrics: Metrics, log: Any, routes: frozenset[str], wall_us: Callable[[], int]) -> None:
        self.metrics = metrics
        self.log = log
        self.accepted = self.refused = self.done = self.failed = 0
        self._routes = routes
        self._wall_us = wall_us
        self._refusals, self._bars = Ration(REFUSALS_PER_SECOND), Ration(BARS_PER_SECOND)

    def call_refused(self, route: str, lane: str, code: str, peer: Peer) -> None:
        """A call was refused on receipt: a line as any call has, as long as they are few."""
        self.refused += 1
        route = route if route in self._routes else ""
        self.metrics.calls.add(route, lane, code)
        wall_us = self._wall_us()
        if not logs_calls() or not self._may_tell(self._refusals, "call", wall_us):
            return
        line = CallLine(
            outcome="failure",
            code=code,
            finish=None,
            call_id=None,
            route=route,
            lane=lane,
            upstream=None,
            model=None,
            transport=None,
            attempts=0,
            backup_used=False,
            queued_us=0,
            attempt_us=None,
            first_delta_us=None,
            total_us=0,
            overhead_us=None,
            uid=peer.uid,
            pid=peer.pid,
        )
        log_call(line, wall_us)

    def _may_tell(self, ration: Ration, what: str, wall_us: int) -> bool:
        """Whether one more line of this kind may be written now; how many could not be is said when that is over."""
        if count := ration.untold(wall_us):
            self.log.warning("log.left_out", stage=what, count=count)
        return ration.take(wall_us)

    def call_ended(self, call: CallView, terminal: Terminal, code: str, *, overshoot_us: int | None) -> None:
        """A call got its terminal."""
        metrics, timing = self.metrics, terminal.timing
        if isinstance(terminal, Done):
            self.done += 1
            usage, tokens, upstream, model = terminal.usage, metrics.tokens, terminal.upstream, terminal.model
            if usage.input_tokens:
                tokens.add(upstream, model, "input", by=usage.input_tokens)
            if usage.output_tokens:
                tokens.add(upstream, model, "output", by=usage.output_tokens)
            if usage.cached_tokens:
                tokens.add(upstream, model, "cached", by=usage.cached_tokens)
            if usage.reasoning_tokens:
                tokens.add(upstream, model, "reasoning", by=usage.reasoning_tokens)
            if usage.estimated:
                metrics.tokens_estimated.add(upstream)
        else:
            self.failed += 1
        metrics.calls.add(call.route.name, call.lane, code)
        assert timing is not None
        metrics.call_time.record(timing.total_us, call.route.name)
        metrics.queued_time.record(timing.queued_us, call.lane)
        if timing.overhead_us is not None:
            metrics.overhead.record(timing.overhead_us)
        if overshoot_us is not None:
            metrics.overshoot.record(overshoot_us)
        if not logs_calls():
            return
        line = CallLine(
            outcome="success" if code == "done" else "failure",
            code=code,
            finish=terminal.finish if isinstance(terminal, Done) else None,
            call_id=call.call_id,
            route=call.route.name,
            lane=call.lane,
            upstream=terminal.upstream,
            model=terminal.model,
            transport=terminal.transport or None,
            attempts=terminal.attempts,
            backup_used=terminal.backup_used,
            queued_us=timing.queued_us,
            attempt_us=timing.attempt_us,
            first_delta_us=timing.first_delta_us,
            total_us=timing.total_us,
            overhead_us=timing.overhead_us,
            uid=call.peer.uid,
            pid=call.peer.pid,
        )
        log_call(line, terminal.wall_us or 0)

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """An attempt is over, however."""
        for uid, pid, barred_for in attempt.target.blame.news():
            self._bot_barred(attempt, uid, pid, barred_for)
        metrics, upstream, state = self.metrics, attempt.target.pool.name, attempt.state
        metrics.attempts.add(upstream, outcome.kind.label)
        if attempt.backup:
            metrics.backups.add(upstream)
        if state.first_content_at is not None:
            metrics.first_delta.record(
                int(1e6 * (state.first_content_at - state.sent_at)), upstream, attempt.target.model
            )

    def _bot_barred(self, attempt: Attempt, uid: int, pid: int | None, barred_for: float) -> None:
        """A bot was barred from a target, or (0 seconds) is let in again; without a pid: all of its user's."""
        if not self._may_tell(self._bars, "bot", self._wall_us()):
            return
        where = {"upstream": attempt.target.pool.upstream.name, "model": attempt.target.model}
        if barred_for:
            self.log.warning("bot.barred", uid=uid, pid=pid, **where, retry_after_s=round(barred_for, 3))
        else:
            self.log.warning("bot.let_in", uid=uid, pid=pid, **where)

    def lost_race(self, attempt: Attempt) -> None:
        """An attempt was stopped because another one of its call answered: its prompt was paid for all the same."""
        call = attempt.call
        prompt = call.prompt(call.route.targets.index(attempt.target))
        tokens = estimate_usage(prompt, 0).input_tokens
        if tokens:
            self.metrics.tokens.add(attempt.target.pool.upstream.name, attempt.target.model, "unused", by=tokens)

    def breaker_moved(self, before: str, after: str, *, upstream: str, model: str) -> None:
        """A breaker changed its state."""
        if after == "open":
            self.metrics.breaker_trips.add(upstream, model)
        event = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}[after]
        self.log.warning(event, upstream=upstream, model=model, previous=before, state=after)
