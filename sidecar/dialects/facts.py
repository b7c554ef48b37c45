"""What both dialects share: error frames read into `UpstreamError`, ids remembered, usage estimated."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from sidecar.dialects.base import Prompt
from sidecar.errors import UpstreamError
from sidecar.wire import MAX_SAFE_INTEGER, Usage

#: A token count as an upstream may give it.
Tokens = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)] | None

#: About how many characters of English prose make one token.
CHARACTERS_PER_TOKEN: Final = 4


class CachedTokens(Struct, frozen=True):
    """Details of the tokens that went in."""

    cached_tokens: Tokens = None


class ReasoningTokens(Struct, frozen=True):
    """Details of the tokens that came out."""

    reasoning_tokens: Tokens = None


class ErrorBody(Struct, frozen=True, kw_only=True):
    """The inner `error` map. `code` is a number with some relays (an HTTP status, then)."""

    code: str | int | None = None
    type: str | None = None
    message: str | None = None
    headers: dict[str, Any] | None = None
    retry_after: float | None = None


class ErrorFrame(Struct, frozen=True, kw_only=True):
    """All shapes of an error frame in one: nested, nested without `type`, flat, headers inside or beside."""

    error: ErrorBody | str | None = None
    status: int | str | None = None
    status_code: int | str | None = None
    headers: dict[str, Any] | None = None
    code: str | int | None = None
    message: str | None = None
    retry_after: float | None = None


def upstream_error(frame: ErrorFrame) -> UpstreamError:
    """The facts of an error frame, whichever shape it came in."""
    body = frame.error if isinstance(frame.error, ErrorBody) else ErrorBody(message=frame.error)
    code = body.code if body.code is not None else frame.code
    status = _status(frame.status) or _status(frame.status_code) or _status(code)
    given = {**(frame.headers or {}), **(body.headers or {})}
    headers = {name.lower(): value for name, value in given.items()}
    return UpstreamError(
        body.message or frame.message or "the upstream gave no reason",
        code=None if code is None else str(code),
        type=body.type,
        status=status,
        retry_after=_retry_after(headers, body.retry_after if body.retry_after is not None else frame.retry_after),
    )


def filtered(reason: str) -> UpstreamError:
    """A filter or a refusal: never an answer, and no fault of the connection."""
    return UpstreamError(reason, code="content_filter")


def _status(given: int | str | None) -> int | None:
    if isinstance(given, str):
        given = int(given) if given.isascii() and given.isdigit() and len(given) == 3 else None
    return given if given is not None and 100 <= given <= 599 else None


def _retry_after(headers: dict[str, Any], given: float | None) -> float | None:
    """Seconds, from the finest source there is. An HTTP date is not read: an error frame is answered at once."""
    candidates = ((headers.get("retry-after-ms"), 0.001), (headers.get("retry-after"), 1.0), (given, 1.0))
    for value, unit in candidates:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                seconds = float(value) * unit
            except (ValueError, OverflowError):
                continue
            if math.isfinite(seconds) and seconds >= 0:
                return seconds
    return None


class Owners:
    """Which call an id of the upstream belongs to: how a late frame of an ended call is told from one of the next.

    Args:
        limit: ids kept; the oldest are forgotten first.
    """

    __slots__ = ("_limit", "_owners")

    def __init__(self, limit: int = 256) -> None:
        self._owners: dict[str, int] = {}
        self._limit = limit

    def of(self, name: str | None) -> int | None:
        """The serial of the call that owns `name`, None when nobody does."""
        return None if name is None else self._owners.get(name)

    def declare(self, name: str | None, serial: int) -> None:
        """From here `name` belongs to `serial`, whoever had it: the upstream said so."""
        if not name:
            return
        self._owners.pop(name, None)
        self._owners[name] = serial
        if len(self._owners) > self._limit:
            del self._owners[next(iter(self._owners))]


def estimate_usage(prompt: Prompt, text_length: int) -> Usage:
    """The usage of an attempt whose upstream never said: a call that was cut, or a relay that does not count.

    About four characters a token, rounded up, which is right to some 30 % for English prose and too low for other
    scripts and for code; so it is marked, and good for accounting, not for billing.

    Args:
        prompt: what was sent.
        text_length: characters received.
    """
    sent = sum(len(message.content) for message in prompt.messages) + len(prompt.instructions or "")
    return Usage(
        input_tokens=-(-sent // CHARACTERS_PER_TOKEN),
        output_tokens=-(-text_length // CHARACTERS_PER_TOKEN),
        estimated=True,
    )
