"""Rate limits in headers: read in the forms that services send, and total."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dialects.facts import RateLimits, rate_limits
from sidecar.dialects.rate_headers import MAX_RESET


def reset(value: str) -> float | None:
    """The reset of requests in the plain family."""
    limits = rate_limits({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": value})
    assert limits is not None
    assert limits.requests_remaining == 1
    return limits.requests_reset_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("17ms", 0.017),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("1d", 86_400.0),
        ("350us", 0.00035),
        ("350µs", 0.00035),
        ("9ns", 9e-9),
        ("0s", 0.0),
        ("0", 0.0),
        ("7", 7.0),
        (" 7.25 ", 7.25),
        ("9999999", MAX_RESET),
        ("99d", MAX_RESET),
        ("", None),
        ("-1", None),
        ("-1s", None),
        ("soon", None),
        ("s", None),
        ("1", 1.0),
        ("1x", None),
        ("1s later", None),
        ("1 s", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("١s", None),
        ("9" * 5000, None),
        ("1s" * 5000, 32.0),
    ],
)
def test_a_reset_is_a_duration_or_seconds(value: str, seconds: float | None) -> None:
    """Anything else is not said."""
    got = reset(value)
    assert got == (None if seconds is None else pytest.approx(seconds))


def test_the_plain_family() -> None:
    """Each of its four headers may be missing; a remainder of -1 is none, and its reset says nothing then."""
    both = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-remaining-tokens": "149999976",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert rate_limits(both) == RateLimits(
        requests_remaining=4999, requests_reset_after=0.012, tokens_remaining=149_999_976, tokens_reset_after=360
    )
    assert rate_limits({"x-ratelimit-remaining-tokens": "7"}) == RateLimits(tokens_remaining=7)
    assert rate_limits({"x-ratelimit-remaining-requests": "0"}) == RateLimits(requests_remaining=0)
    assert rate_limits({"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "0"}) is None
    assert rate_limits({"x-ratelimit-reset-tokens": "5"}) is None
    assert rate_limits({}) is None


NOW = 1_763_858_400.0  # 2025-11-23T00:40:00Z
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "1000",
    "anthropic-ratelimit-requests-remaining": "999",
    "anthropic-ratelimit-requests-reset": "2025-11-23T00:40:01Z",
    "anthropic-ratelimit-tokens-remaining": "24000",
    "anthropic-ratelimit-tokens-reset": "2025-11-23T00:40:30+00:00",
}


def test_anthropics_family_needs_a_clock() -> None:
    """The response's own `date` before ours; with neither, what is left is said without a reset."""
    whole = RateLimits(requests_remaining=999, requests_reset_after=1, tokens_remaining=24_000, tokens_reset_after=30)
    assert rate_limits(ANTHROPIC, wall_s=NOW) == whole
    assert rate_limits({**ANTHROPIC, "date": "Sun, 23 Nov 2025 00:40:00 GMT"}) == whole
    assert rate_limits({**ANTHROPIC, "date": "Sun, 23 Nov 2025 00:40:00 GMT"}, wall_s=NOW - 900) == whole
    assert rate_limits({**ANTHROPIC, "date": "garbage"}, wall_s=NOW) == whole
    assert rate_limits(ANTHROPIC) == RateLimits(requests_remaining=999, tokens_remaining=24_000)
    assert rate_limits({**ANTHROPIC, "date": "Sun, 23 Nov 2025 00:40:00"}) == rate_limits(ANTHROPIC)


@pytest.mark.parametrize(
    ("instant", "seconds"),
    [
        ("2025-11-23T00:39:00Z", 0.0),
        ("2026-11-23T00:40:00Z", MAX_RESET),
        ("2025-11-23T00:40:00.500Z", 0.5),
        ("2025-11-23T02:40:10+02:00", 10.0),
        ("2025-11-23T00:40:10", None),
        ("1763858410", None),
        ("0001-01-01T00:00:00+23:00", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_instants(instant: str, seconds: float | None) -> None:
    """With a time zone, within a day; the past is now."""
    limits = rate_limits({**ANTHROPIC, "anthropic-ratelimit-requests-reset": instant}, wall_s=NOW)
    assert limits is not None
    assert limits.requests_reset_after == seconds


def test_anthropics_tighter_limit_of_tokens_counts() -> None:
    """Where the tightest of all is not said, the one of input and output of which less is left."""
    ways = {
        "anthropic-ratelimit-input-tokens-remaining": "500",
        "anthropic-ratelimit-input-tokens-reset": "2025-11-23T00:40:05Z",
        "anthropic-ratelimit-output-tokens-remaining": "80",
        "anthropic-ratelimit-output-tokens-reset": "2025-11-23T00:40:09Z",
    }
    assert rate_limits(ways, wall_s=NOW) == RateLimits(tokens_remaining=80, tokens_reset_after=9)
    level = {
        **ways,
        "anthropic-ratelimit-output-tokens-remaining": "500",
        "anthropic-ratelimit-output-tokens-reset": "",
    }
    assert rate_limits(level, wall_s=NOW) == RateLimits(tokens_remaining=500, tokens_reset_after=5)
    del ways["anthropic-ratelimit-output-tokens-remaining"]
    assert rate_limits(ways, wall_s=NOW) == RateLimits(tokens_remaining=500, tokens_reset_after=5)
    told = {**ways, **ANTHROPIC}
    assert rate_limits(told, wall_s=NOW) == rate_limits(ANTHROPIC, wall_s=NOW)


NAMES = [
    *(f"x-ratelimit-{what}-{of}" for what in ("remaining", "reset") for of in ("requests", "tokens")),
    *(
        f"anthropic-ratelimit-{of}-{what}"
        for what in ("remaining", "reset")
        for of in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
    "date",
]
VALUES = st.text(max_size=12) | st.text("0123456789.dhmsuTZ:-+ ", max_size=30) | st.datetimes().map(str)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.none() | st.floats(0, 1e11))
def test_no_headers_break_it(headers: dict[str, str], wall_s: float | None) -> None:
    """Total: whatever is said, what is left is not negative, and a wait can be waited."""
    limits = rate_limits(headers, wall_s=wall_s)
    if limits is None:
        return
    assert any(value is not None for value in (limits.requests_remaining, limits.tokens_remaining))
    for left in (limits.requests_remaining, limits.tokens_remaining):
        assert left is None or left >= 0
    for wait in (limits.requests_reset_after, limits.tokens_reset_after):
        assert wait is None or 0 <= wait <= MAX_RESET
