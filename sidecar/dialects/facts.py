"""What the dialects share: errors (frames, responses) read into `UpstreamError`, ids remembered, usage estimated."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from sidecar.dialects.base import JsonObject, Prompt
from sidecar.dialects.rate_headers import RateLimits as RateLimits  # noqa: PLC0414 - found here, too
from sidecar.dialects.rate_headers import rate_limits as rate_limits  # noqa: PLC0414
from sidecar.dialects.retry_after import retry_after_of, seconds, should_retry
from sidecar.dialects.text import UNREADABLE
from sidecar.errors import UpstreamError, http_words
from sidecar.wire import MAX_SAFE_INTEGER, Usage

#: A token count as an upstream may give it.
Tokens = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)] | None

#: Our code for a 404 or 405 in no dialect's words: there is no such path, rather than no such model.
NO_SUCH_PATH: Final = "no_such_path"

#: How much of the body of a response other than 200 is read.
MAX_ERROR_BYTES: Final = 64 << 10

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
    #: Azure's own word for it, a map with a `code`.
    innererror: Any = None


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
    message = body.message or frame.message
    return UpstreamError(
        message or "the upstream gave no reason",
        code=_code(None if code is None else str(code), body.type, message),
        type=body.type or _inner(body.innererror),
        status=status,
        retry_after=_retry_after(headers, body.retry_after if body.retry_after is not None else frame.retry_after),
    )


def http_error(status: int, headers: dict[str, str], body: bytes) -> UpstreamError:
    """What a response other than 200 says, in the words of any dialect. Total: a page or garbage says its status only.

    Args:
        status: HTTP status; the error's own `status` in any case.
        headers: lower-case names.
        body: as far as it came; no more than `MAX_ERROR_BYTES` of it are looked at.
    """
    said = _said(body)
    error = said.get("error", said)
    if not isinstance(error, dict):
        error = {"message": error}
    detail = said.get("detail")  # FastAPI's
    code, type_ = (_word(error.get(name)) or _word(said.get(name)) for name in ("code", "type"))
    type_ = None if type_ == "error" else type_
    message = _word(error.get("message")) or _word(said.get("message"))
    if message is None and code is None and type_ is None and status in (404, 405):
        code = NO_SUCH_PATH
    wait = retry_after_of(headers)
    return UpstreamError(
        message or _word(detail) or http_words(status),
        code=_code(code, type_, message),
        type=type_ or _inner(error.get("innererror")),
        status=status,
        retry_after=wait if wait is not None else seconds(_number(error.get("retry_after"))),
        should_retry=should_retry(headers),
    )


def filtered(reason: str) -> UpstreamError:
    """A filter or a refusal: never an answer, and no fault of the connection."""
    return UpstreamError(reason, code="content_filter")


def _said(body: bytes) -> JsonObject:
    """The map of a body in JSON; empty when it is none."""
    try:
        said: Any = msgspec.json.decode(body[:MAX_ERROR_BYTES])
    except UNREADABLE:
        return {}
    if isinstance(said, list) and said:  # Google's
        said = said[0]
    return said if isinstance(said, dict) else {}


def _word(value: Any) -> str | None:
    """A code or a message: text, or a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _inner(innererror: Any) -> str | None:
    return _word(innererror.get("code")) if isinstance(innererror, dict) else None


def _code(code: str | None, type_: str | None, message: str | None) -> str | None:
    """Anthropic has one word for whatever is not there, and says in its message that it is a model."""
    if code is None and type_ == "not_found_error" and message and message.startswith("model:"):
        return "model_not_found"
    return code


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
