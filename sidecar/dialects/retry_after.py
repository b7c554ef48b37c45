"""How long an upstream asks us to wait, and whether to ask again, in its headers. What cannot be read says nothing."""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime
from typing import Final

#: The longest wait believed, and told to bots, in seconds: nobody stays away for a day because a header says so.
MAX_RETRY_AFTER: Final = 3600.0


def retry_after_of(headers: dict[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms`, else `retry-after` (seconds, or an HTTP-date, read against `date`).

    Without a `date` header an HTTP-date says nothing here: pure code has no wall clock, and two clocks rarely agree.

    Args:
        headers: lower-case names.

    Returns:
        0 .. `MAX_RETRY_AFTER` seconds, or None when there is nothing usable.
    """
    in_ms = seconds(headers.get("retry-after-ms"))
    if in_ms is not None:
        return in_ms / 1000
    value = headers.get("retry-after", "")
    wait = seconds(value)
    if wait is not None or "date" not in headers:
        return wait
    try:
        gap = parsedate_to_datetime(value[:64]) - parsedate_to_datetime(headers["date"][:64])
    except (ValueError, TypeError, OverflowError):  # TypeError: one of them has no time zone
        return None
    return min(max(0.0, gap.total_seconds()), MAX_RETRY_AFTER)


def should_retry(headers: dict[str, str]) -> bool | None:
    """What `x-should-retry` says; None when it says neither."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def seconds(value: str | float | None) -> float | None:
    """A number of seconds from outside, at most `MAX_RETRY_AFTER`; None for anything that is none."""
    if value is None:
        return None
    try:
        number = float(value[:32] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return min(number, MAX_RETRY_AFTER) if math.isfinite(number) and number >= 0 else None
