"""What is counted and said of calls and attempts: the metrics, and one canonical line per call.

Everything here reads the classification made elsewhere; nothing is judged twice.
"""

from __future__ import annotations

from typing import Any

from sidecar.core.outcome import Outcome
from sidecar.dialects.facts import estimate_usage
from sidecar.logs import CallLine, log_call, logs_calls
from sidecar.metrics import Metrics
from sidecar.service.attempt import Attempt
from sidecar.service.calls import CallView
from sidecar.wire import Done, Terminal


class Accounting:
    """Metrics and log of the dispatcher.

    Args:
        metrics: the registry.
        log: a bound logger.
        routes: names that may become labels: a bot's invention must not.
    """

    def __init__(self, metrics: Metrics, log: Any, routes: frozenset[str]) -> None:
        self.metrics = metrics
        self.log = log
        self.accepted = self.refused = self.done = self.failed = 0
        self._routes = routes

    def call_refused(self, route: str, lane: str, code: str) -> None:
        """A call was refused on receipt."""
        self.refused += 1
        self.metrics.calls.add(route if route in self._routes else "", lane, code)

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
        metrics, upstream, state = self.metrics, attempt.target.pool.name, attempt.state
        metrics.attempts.add(upstream, outcome.kind.label)
        if attempt.backup:
            metrics.backups.add(upstream)
        if state.first_content_at is not None:
            metrics.first_delta.record(
                int(1e6 * (state.first_content_at - state.sent_at)), upstream, attempt.target.model
            )

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
