"""Every error of the project, and the open set of `code`s a bot may see.

SidecarError
├── ConfigurationError        the file, a flag or the environment is wrong (exit 78)
├── CredentialError           a secret cannot be read, or must not be used as it lies there
├── EndpointError             the socket path is unusable
│   └── EndpointHeld          another daemon holds it (exit 75)
├── UpstreamFault             what an upstream, or the way to it, did wrong: facts, not judgement
│   ├── ConnectFailed         no connection was made: `stage` says how far it came
│   ├── UpgradeRefused        the upgrade was answered with an HTTP status
│   ├── ConnectionLost        a connection that stood is gone: close code, EOF, reset, silence
│   ├── MalformedFrame        bytes that are not of the protocol or the dialect
│   └── UpstreamError         the upstream said "error" in its own words
└── CallFailed                what a bot's own program sees, one class per group of codes (client)
├── RequestRefused        your request: mend it
├── NeverSent             nothing reached an upstream: safe to send again after retry_after_ms
├── Stopped               the operator stopped it
├── TimedOut              the deadline, or the idle clock
├── Ended                 cancelled, superseded, slow_reader
├── UpstreamFailed        the upstream's fault or refusal
├── DaemonGone            daemon_unavailable, daemon_lost
└── InternalFailure       ours, and any code this client does not know
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Group: TypeAlias = Literal["request", "never_sent", "operator", "time", "bot", "upstream", "ours", "client"]

#: code -> its group: the table of `proto/wire.md`, the one place a code is spelled.
CODES: Final[dict[str, Group]] = {
    "invalid_request": "request",
    "unsupported_version": "request",
    "unknown_route": "request",
    "unsupported_option": "request",
    "duplicate_id": "request",
    "too_large": "request",
    "overloaded": "never_sent",
    "breaker_open": "never_sent",
    "no_connection": "never_sent",
    "deadline_unreachable": "never_sent",
    "draining": "never_sent",
    "halted": "operator",
    "budget_exceeded": "operator",
    "deadline_exceeded": "time",
    "idle_timeout": "time",
    "cancelled": "bot",
    "superseded": "bot",
    "slow_reader": "bot",
    "upstream_auth": "upstream",
    "upstream_rate_limited": "upstream",
    "insufficient_quota": "upstream",
    "context_length_exceeded": "upstream",
    "content_filter": "upstream",
    "model_not_found": "upstream",
    "upstream_refused": "upstream",
    "upstream_error": "upstream",
    "upstream_lost": "upstream",
    "internal": "ours",
    "daemon_unavailable": "client",
    "daemon_lost": "client",
}


class SidecarError(Exception):
    """The root: catch it and you have caught everything this project raises on purpose."""


class ConfigurationError(SidecarError):
    """Something an operator wrote is wrong.

    Args:
        problem: what is wrong, and with which value (never a secret).
        where: file and key path, for example ``/etc/sidecar/sidecar.toml: route[0].targets``.
        mend: what to write instead.
    """

    def __init__(self, problem: str, *, where: str = "", mend: str = "") -> None:
        self.problem, self.where, self.mend = problem, where, mend
        super().__init__(": ".join(part for part in (where, problem) if part) + (f". {mend}" if mend else ""))


class CredentialError(SidecarError):
    """A credential cannot be read or must not be used; the message never holds a part of it."""


class EndpointError(SidecarError):
    """The socket path cannot be used: too long, a folder of somebody else, not a socket."""


class EndpointHeld(EndpointError):
    """Another daemon holds the endpoint."""


Stage: TypeAlias = Literal["resolve", "tcp", "proxy", "tls", "upgrade", "credential"]


class UpstreamFault(SidecarError):
    """What an upstream, or the way to it, did wrong. `core.classifier` judges; these only carry facts."""

    @property
    def loggable(self) -> str:
        """What the log and every bot's report say of it."""
        return str(self)


class ConnectFailed(UpstreamFault):
    """No connection was made.

    Args:
        stage: how far it came.
        reason: for people.
        timed_out: the cap of that stage passed (else it failed by itself).
    """

    def __init__(self, stage: Stage, reason: str, *, timed_out: bool = False) -> None:
        self.stage, self.reason, self.timed_out = stage, reason, timed_out
        super().__init__(f"{stage}: {reason}")


def http_words(status: int) -> str:
    """An HTTP status that refuses something, for people."""
    redirected = 300 <= status < 400
    return f"HTTP {status}" + (": redirects are not followed, give the URL that it leads to" if redirected else "")


class UpgradeRefused(UpstreamFault):
    """The WebSocket upgrade was answered with an HTTP status other than 101.

    Args:
        status: HTTP status.
        headers: lower-case names to values.
        body: at most the first 4 KiB, for the upstream's own code; never logged.
    """

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.status, self.headers, self.body = status, headers, body
        super().__init__(f"upgrade refused with {http_words(status)}")


class ConnectionLost(UpstreamFault):
    """A connection that stood is gone.

    Args:
        close_code: the WebSocket close code received; 1006 when none came.
        reason: for people.
        how: ``close`` (a close frame came), ``eof``, ``reset``, ``silence`` (no pong), ``local`` (we closed it);
            over HTTP also ``idle`` (the server closed it while nothing was asked, or as it had said, or refused a
            request that was more than its settings, not known by then, allow) and ``unprocessed`` (by its word, or by
            all that can be known, the request was not looked at).
    """

    def __init__(
        self,
        close_code: int = 1006,
        reason: str = "",
        *,
        how: Literal["close", "eof", "reset", "silence", "local", "idle", "unprocessed"] = "eof",
    ) -> None:
        self.close_code, self.reason, self.how = close_code, reason, how
        super().__init__(f"connection lost ({how}, {close_code}{': ' + reason if reason else ''})")

    @property
    def loggable(self) -> str:
        """Without a close frame's reason: those are the upstream's own words, too."""
        return f"connection lost ({self.how}, {self.close_code})" if self.how == "close" else str(self)


class MalformedFrame(UpstreamFault):
    """Bytes that are not of the WebSocket protocol or of the dialect. Carries no content of the frame."""

    def __init__(self, reason: str, *, close_code: int = 1002) -> None:
        self.reason, self.close_code = reason, close_code
        super().__init__(f"malformed: {reason}")


class UpstreamError(UpstreamFault):
    """The upstream said "error" in its own words.

    Args:
        code, type: the upstream's own, when given.
        message: for people; at most 512 characters.
        status: HTTP-like status, when given or implied.
        retry_after: seconds, when given by a header or in the frame.
        should_retry: what it said of asking again (`x-should-retry`); None when it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        type: str | None = None,  # noqa: A002 - the upstreams' word
        status: int | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        self.message, self.code, self.type = message[:512], code, type
        self.status, self.retry_after, self.should_retry = status, retry_after, should_retry
        super().__init__(self.message)

    @property
    def loggable(self) -> str:
        """Its code, not its message: that is the upstream's own, and may hold a piece of somebody's prompt."""
        return f"error frame: {self.code or self.type or self.status or 'no code'}"


class CallFailed(SidecarError):
    """A call ended without an answer. What came of it is kept.

    Args:
        code: one of `CODES`, or one that a newer daemon invented.
        message: for people.
        text: the partial text, "" when none came.
        retryable: may be sent again as it is.
        retry_after_ms: not before; already jittered.
        phase: what it waited for.
        terminal: the daemon's `failed` message as it came, None when the client itself gave up.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        text: str = "",
        retryable: bool = False,
        retry_after_ms: int | None = None,
        phase: str | None = None,
        terminal: object | None = None,
    ) -> None:
        self.code, self.message, self.text = code, message, text
        self.retryable, self.retry_after_ms, self.phase, self.terminal = retryable, retry_after_ms, phase, terminal
        super().__init__(f"{code}: {message}")

    @classmethod
    def of(cls, code: str, message: str, **fields: object) -> CallFailed:
        """The instance of the subclass that the code's group has."""
        return _CLASSES.get(CODES.get(code, "ours"), InternalFailure)(code, message, **fields)  # type: ignore[arg-type]


class RequestRefused(CallFailed):
    """Your request: mend it."""


class NeverSent(CallFailed):
    """Nothing reached an upstream: safe to send again after `retry_after_ms`."""


class Stopped(CallFailed):
    """The operator stopped it."""


class TimedOut(CallFailed):
    """The deadline passed, or the stream paused for longer than its idle timeout."""


class Ended(CallFailed):
    """Ended from the bot's side: cancelled, superseded, or it read too slowly."""


class UpstreamFailed(CallFailed):
    """The upstream failed or refused."""


class DaemonGone(CallFailed):
    """Nobody there (`daemon_unavailable`), or it went away with the call open (`daemon_lost`)."""


class InternalFailure(CallFailed):
    """Ours, or a code this client does not know: a failure that is not retryable."""


_CLASSES: Final[dict[str, type[CallFailed]]] = {
    "request": RequestRefused,
    "never_sent": NeverSent,
    "operator": Stopped,
    "time": TimedOut,
    "bot": Ended,
    "upstream": UpstreamFailed,
    "ours": InternalFailure,
    "client": DaemonGone,
}
