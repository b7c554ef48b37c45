"""Builds what a bot is told at a call's end: `done`, `failed`, and the refusal on receipt."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from sidecar.core.outcome import Outcome
from sidecar.dialects.base import Faulted, Finished, Started
from sidecar.dialects.facts import estimate_usage
from sidecar.errors import CODES
from sidecar.service.attempt import Attempt
from sidecar.service.calls import CallView
from sidecar.wire import Call, Done, Failed, Timing, Usage

#: Why the admission turned a call away -> words for the bot.
SHED: Final[dict[str, str]] = {
    "full": "too many calls in flight and queued",
    "share": "too many calls of this bot are in flight and queued while others call, too",
    "displaced": "shed from the queue for a more urgent call",
}


def refusal(call: Call, code: str, message: str, *, retry_after_ms: int | None = None) -> Failed:
    """A `failed` alone: no `accepted` came before it, and it ends no call in flight."""
    return Failed(
        id=call.id,
        code=code,
        message=message,
        retryable=CODES.get(code) == "never_sent",
        retry_after_ms=retry_after_ms,
        route=call.route,
    )


def as_refusal(terminal: Failed) -> Failed:
    """What was decided while the call was being received: a refusal has no `call_id` and tells no story."""
    return Failed(
        id=terminal.id,
        code=terminal.code,
        message=terminal.message,
        retryable=terminal.retryable,
        retry_after_ms=terminal.retry_after_ms,
        route=terminal.route,
    )


def done(call: CallView, attempt: Attempt, event: Finished, *, timing: Timing, wall_us: int) -> Done:
    """The terminal of an answered call; the frontend fills in `deltas` and `text`."""
    started = attempt.started
    return Done(
        id=call.id,
        call_id=call.call_id,
        finish=event.finish,
        deltas=0,
        usage=event.usage or estimated_usage(call, attempt),
        route=call.route.name,
        upstream=attempt.target.pool.upstream.name,
        transport=attempt.target.pool.upstream.transport,
        model=attempt.target.model,
        model_reported=event.model or (started.model if started else None),
        attempts=call.policy.made,
        backup_used=attempt.backup,
        upstream_request_id=event.upstream_request_id or (started.upstream_request_id if started else None),
        timing=timing,
        wall_us=wall_us,
    )


def failed(
    call: CallView,
    code: str,
    message: str,
    *,
    attempt: Attempt | None,
    retryable: bool,
    retry_after_ms: int | None,
    outcome: Outcome | None,
    timing: Timing,
    wall_us: int,
) -> Failed:
    """The terminal of a call without an answer; the frontend fills in `deltas`, `partial` and `text`.

    Args:
        attempt: the last one in hand, None when nothing was ever sent.
        outcome: the upstream's failure that became the call's, None when it was none.
    """
    faulted: Faulted | None = attempt.faulted if attempt else None
    started: Started | None = attempt.started if attempt else None
    return Failed(
        id=call.id,
        code=code,
        message=message,
        retryable=retryable,
        retry_after_ms=retry_after_ms,
        phase=call.policy.phase(),
        call_id=call.call_id,
        usage=((faulted.usage if faulted else None) or estimated_usage(call, attempt)) if attempt else None,
        route=call.route.name,
        upstream=attempt.target.pool.upstream.name if attempt else None,
        transport=attempt.target.pool.upstream.transport if attempt else UNSET,
        model=attempt.target.model if attempt else None,
        model_reported=started.model if started else None,
        attempts=call.policy.made,
        backup_used=bool(attempt and attempt.backup),
        upstream_request_id=next((said.upstream_request_id for said in (faulted, started) if said), None),
        upstream_status=outcome.upstream_status if outcome else None,
        upstream_code=outcome.upstream_code if outcome else None,
        timing=timing,
        wall_us=wall_us,
    )


def timing(call: CallView, attempt: Attempt | None, *, step_began_at: float, now: float) -> Timing:
    """Where the call's time went.

    Args:
        attempt: the answering one.
        step_began_at: when what ends the call came in: from there to `now` is our overhead.
        now: the instant.
    """
    received_at, queued_until, first_delta_at = call.received_at, call.queued_until, call.first_delta_at
    return Timing(
        queued_us=_us((now if queued_until is None else queued_until) - received_at),
        attempt_us=None if attempt is None else _us(attempt.state.sent_at - received_at),
        first_delta_us=None if first_delta_at is None else _us(first_delta_at - received_at),
        total_us=_us(now - received_at),
        overhead_us=_us(call.overhead + now - step_began_at),
    )


def _us(seconds: float) -> int:
    return int(1e6 * seconds) if seconds > 0 else 0


def estimated_usage(call: CallView, attempt: Attempt) -> Usage:
    """For an answer, or a part of one, whose upstream did not say."""
    return estimate_usage(call.prompt(call.route.targets.index(attempt.target)), call.length)
