"""What is left of a credential's rate, in the headers of a response. What cannot be read says nothing.

Two families: `x-ratelimit-{remaining,reset}-{requests,tokens}` (OpenAI, and who does as they do; the reset as "1s",
"6m0s", "17ms" or plain seconds) and `anthropic-ratelimit-{requests,tokens}-{remaining,reset}` (the reset as an RFC 3339
instant). Both say when a limit will be whole again, not when the next request will be let in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from msgspec import Struct

_UNITS: Final = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_PART: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(ms|us|µs|ns|d|h|m|s)")
_LONGEST: Final = 64
#: The longest reset believed, in seconds: limits by the day are told of, too.
MAX_RESET: Final = 86_400.0


class RateLimits(Struct, frozen=True, kw_only=True):
    """What is left, and in how many seconds it is whole again; None where nothing was said.

    A remainder that an upstream does not know (Azure: -1) is not said, and its reset neither.
    """

    requests_remaining: float | None = None
    requests_reset_after: float | None = None
    tokens_remaining: float | None = None
    tokens_reset_after: float | None = None

    def spent_for(self) -> float:
        """Seconds for which nothing is left of one of them, by what was said; 0 while something is."""
        requests = self.requests_reset_after if self.requests_remaining == 0 else None
        tokens = self.tokens_reset_after if self.tokens_remaining == 0 else None
        return max(requests or 0.0, tokens or 0.0)


def rate_limits(headers: dict[str, str], *, wall_s: float | None = None) -> RateLimits | None:
    """The rate limits in the headers of a response; None when there are none. Total.

    Args:
        headers: lower-case names.
        wall_s: seconds since the epoch, for instants. The response's own `date` is taken before it, for two clocks
            rarely agree; with neither, an instant says nothing.
    """
    requests = _plain(headers, "requests") or _anthropic(headers, "requests", wall_s)
    # Anthropic's `tokens` is the tightest of its limits; where it is not said, the tighter one of the two others is it.
    tokens = _plain(headers, "tokens") or _anthropic(headers, "tokens", wall_s)
    if tokens is None:
        ways = (_anthropic(headers, "input-tokens", wall_s), _anthropic(headers, "output-tokens", wall_s))
        tokens = min((way for way in ways if way is not None), key=lambda way: way[0], default=None)
    if requests is None and tokens is None:
        return None
    requests_remaining, requests_reset_after = requests or (None, None)
    tokens_remaining, tokens_reset_after = tokens or (None, None)
    return RateLimits(
        requests_remaining=requests_remaining,
        requests_reset_after=requests_reset_after,
        tokens_remaining=tokens_remaining,
        tokens_reset_after=tokens_reset_after,
    )


def _plain(headers: dict[str, str], what: str) -> tuple[float, float | None] | None:
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}", ""))
    return None if remaining is None else (remaining, _duration(headers.get(f"x-ratelimit-reset-{what}", "")))


def _anthropic(headers: dict[str, str], what: str, wall_s: float | None) -> tuple[float, float | None] | None:
    remaining = _number(headers.get(f"anthropic-ratelimit-{what}-remaining", ""))
    if remaining is None:
        return None
    now_s = _epoch_s(parsedate_to_datetime, headers.get("date", ""))
    now_s = wall_s if now_s is None else now_s
    whole_s = _epoch_s(datetime.fromisoformat, headers.get(f"anthropic-ratelimit-{what}-reset", ""))
    return remaining, None if now_s is None or whole_s is None else _bounded(whole_s - now_s)


def _number(value: str) -> float | None:
    value = value.strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def _duration(value: str) -> float | None:
    """Seconds, of "1h2m3.5s" or of a plain number; None for anything else."""
    value = value.strip()[:_LONGEST]
    plain = _number(value)
    if plain is not None:
        return _bounded(plain)
    parts = _PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return _bounded(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _epoch_s(read: Callable[[str], datetime], value: str) -> float | None:
    """An instant, which has to name its time zone."""
    try:
        instant = read(value.strip()[:_LONGEST])
        return instant.timestamp() if instant.tzinfo is not None else None
    except (ValueError, TypeError, OverflowError):
        return None


def _bounded(wait: float) -> float:
    return min(max(0.0, wait), MAX_RESET)
