"""The heads of answers, and refusals as the services word them: statuses, rate limits, request ids, error bodies."""

from __future__ import annotations

import http
import math
from datetime import UTC, datetime
from typing import Final, TypeAlias

from msgspec import structs

from sidecar.simulator.behaviour import Behaviour
from sidecar.simulator.voices import FAULTS, Fault, error_object, worded
from sidecar.simulator.voices.base import dumps

Fields: TypeAlias = list[tuple[str, str]]

STREAM: Final = ("content-type", "text/event-stream; charset=utf-8")
JSON: Final = ("content-type", "application/json")
_WAITS: Final = (429, 503)  # which say when to come back
_BY_STATUS: Final = {fault.status: fault for fault in reversed(FAULTS.values()) if fault.status != 400}


def head(dialect: str, request_id: str, behaviour: Behaviour, now: float, *, exhausted: bool = False) -> Fields:
    """What every answer says of itself: its id, and how much may still be asked.

    Args:
        now: the wall clock, seconds; `messages` names an instant, not a duration.
        exhausted: nothing is left until `retry_after_s` is over.
    """
    requests, tokens = behaviour.rate_limit_requests, behaviour.rate_limit_tokens
    left, left_tokens = behaviour.rate_remaining_requests, behaviour.rate_remaining_tokens
    left = requests - 1 if left is None else left
    left_tokens = tokens - 50 if left_tokens is None else left_tokens
    reset_s = behaviour.rate_reset_s
    if exhausted:
        left, left_tokens, reset_s = 0, 0, behaviour.retry_after_s or reset_s
    if dialect == "messages":
        reset = datetime.fromtimestamp(math.ceil(now + reset_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        rows = [("requests", requests, left), ("tokens", tokens, left_tokens)]
        rows += [("input-tokens", tokens * 4 // 5, left_tokens * 4 // 5)]
        rows += [("output-tokens", tokens // 5, left_tokens // 5)]
        fields = [("request-id", request_id)]
        for what, limit, remaining in rows:
            fields += [(f"anthropic-ratelimit-{what}-limit", str(limit))]
            fields += [(f"anthropic-ratelimit-{what}-remaining", str(remaining))]
            fields += [(f"anthropic-ratelimit-{what}-reset", reset)]
        return fields
    fields = [("x-request-id", request_id)]
    for what, limit, remaining in (("requests", requests, left), ("tokens", tokens, left_tokens)):
        fields += [(f"x-ratelimit-limit-{what}", str(limit)), (f"x-ratelimit-remaining-{what}", str(remaining))]
        fields += [(f"x-ratelimit-reset-{what}", span(reset_s))]
    return fields


def span(seconds: float) -> str:
    """A duration as OpenAI writes it: 17ms, 1.5s, 6m0s, 1h0m2s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{rest}s"


def refusal(
    dialect: str, fault: Fault, request_id: str, behaviour: Behaviour, now: float, *, patient: bool
) -> tuple[int, Fields, bytes]:
    """An error in place of an answer: status, head and body; `patient`: it says when to come back."""
    if dialect == "messages":
        fault = structs.replace(worded(fault), code=fault.code)
    fields = [JSON, *head(dialect, request_id, behaviour, now, exhausted=fault.status == 429)]
    after = behaviour.retry_after_s
    if patient and after is not None:
        fields.append(("retry-after", f"{after:g}"))
        if dialect != "messages":
            fields.append(("retry-after-ms", f"{after * 1000:g}"))
    if dialect == "messages":
        fields.append(("x-should-retry", "true" if fault.status in (408, 409, 429) or fault.status >= 500 else "false"))
    shaped = structs.replace(fault, shape=behaviour.shape or "nested", headers=None)
    if dialect == "messages":
        body = error_object(shaped, request_id)
    else:
        body = shaped.shaped({}) if shaped.shape == "flat" else {"error": shaped.body}
    return fault.status, fields, dumps(body)


def by_status(status: int) -> tuple[Fault, bool]:
    """What a service says with that status, and whether it says when to come back."""
    fault = _BY_STATUS.get(status)
    if fault is None:
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        kind = "server_error" if status >= 500 else "invalid_request_error"
        fault = Fault(status=status, type=kind, code=None, message=f"{phrase}.")
    return fault, status in _WAITS
