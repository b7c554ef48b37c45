"""The log: one canonical line per call, state changes as events, and only fields from a list.

A field that is not in `FIELDS` is dropped, so that no prompt, delta or credential gets into a log by a careless
keyword. Lines go to stderr: text for a terminal, JSON otherwise; under systemd with a priority and no time, which the
journal adds itself. A reader that does not read (a stuck journal, a full pipe) costs lines, never the event loop.

One call, one line, which has a way of its own (`log_call`), as there are thousands a second::

    log_call(CallLine(outcome="success", code="done", upstream="openai", model="gpt-5-mini", route="default",
                      lane="exit", attempts=1, queued_us=41, first_delta_us=38211, total_us=52310, ...), wall_us)
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import select
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final, Literal

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from sidecar.config import Log
from sidecar.config.source import scrub

#: What may be logged. Kernel facts of a bot (uid, pid) yes; what a bot or an upstream wrote, no.
_NAMES: Final = """
    event level timestamp exception
    outcome upstream model route lane attempts queued_us attempt_us first_delta_us total_us overhead_us code phase
    call_id uid gid pid deltas input_tokens output_tokens backup_used partial finish overshoot_us
    attempt state previous stage status close_code how reason error generation connections warm delay_s age_s rtt_us
    retry_after_s permits failures session version wire endpoint group who credential signal in_flight queued dropped
    count calls_at_once routes upstreams dialect preset path key lag_us logger limit lanes timeout_s halt_file transport
    calls_per_connection configured
"""
FIELDS: Final = frozenset(_NAMES.split())
#: Words of other people's making: scrubbed of everything of the shape of a secret.
_FREE_TEXT: Final = ("reason", "error")
MAX_TEXT: Final = 512
#: A write of at most PIPE_BUF bytes to a pipe that polls writable never blocks and is never torn.
MAX_LINE: Final = 4096

#: An event is a name; a sentence could quote a prompt, and becomes "unnamed".
_EVENT: Final = re.compile(r"[a-z0-9_.]{1,64}")
_OURS: Final = frozenset({"event", "level", "timestamp", "exception"})
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "exception": 40}
_PRIORITIES: Final = {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>", "critical": b"<2>"}


class Sink:
    """A file descriptor that is written to only while it takes at least a line; the rest is counted and said later.

    Polling first, instead of O_NONBLOCK, leaves the descriptor as it is for the shell or manager that shares it.
    """

    def __init__(self, descriptor: int) -> None:
        self.dropped = self._untold = 0
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write one whole line, or count it as dropped; never blocks, never raises."""
        if self._untold and self._try(_render({"event": "log.dropped", "level": "warning", "count": self._untold})):
            self._untold = 0
        if not self._try(line):
            self.dropped += 1
            self._untold += 1

    def _try(self, line: bytes) -> bool:
        try:
            ready = self._poll.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                return False
            os.write(self._descriptor, line)
        except OSError:
            return False
        return True

    msg = debug = info = warning = error = critical = write


class _State:
    """What `configure` sets; loggers made before it follow."""

    sink: Sink = Sink(2)
    threshold: int = _LEVELS["warning"]
    calls: bool = True
    text: bool = False
    journal: bool = False
    captured: list[dict[str, Any]] | None = None


class _Output:
    """structlog's logger: hands the rendered line to the sink of the moment."""

    def msg(self, line: bytes) -> None:
        _State.sink.write(line)

    debug = info = warning = error = critical = exception = msg


def configure(log: Log, *, environ: Mapping[str, str], descriptor: int = 2) -> Sink:
    """Set level, format and destination, and quieten third-party loggers. Once, by the composition root.

    Args:
        log: the `[log]` table.
        environ: `JOURNAL_STREAM` tells whether `descriptor` is the journal.
        descriptor: where lines go; stays the caller's.

    Returns:
        the sink, whose `dropped` counts lines lost.
    """
    _State.sink = Sink(descriptor)
    _State.threshold = _LEVELS[log.level]
    _State.calls = log.calls
    _State.journal = is_journal(descriptor, environ)
    _State.text = log.format == "text" or (log.format == "auto" and os.isatty(descriptor))
    root = logging.getLogger()
    root.handlers[:] = [_Foreign()]
    root.setLevel(logging.WARNING)
    return _State.sink


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """`descriptor` is connected to the journal: `JOURNAL_STREAM` names its device and inode."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def get_logger() -> FilteringBoundLogger:
    """A logger; cheap enough to keep one per module. Before `configure`: warnings and worse, to stderr."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Output(),
        processors=[_keep_allowed, _finish],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
    ).bind()
    return logger


class CallLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call's canonical line: only names of the configuration, codes of the wire, numbers. The order is the line's."""

    event: Literal["call"] = "call"
    level: Literal["info"] = "info"
    outcome: Literal["success", "failure"]
    code: str
    finish: str | None
    call_id: str | None  # None: refused on receipt
    route: str
    lane: str
    upstream: str | None
    model: str | None
    transport: str | None
    attempts: int
    backup_used: bool
    queued_us: int
    attempt_us: int | None
    first_delta_us: int | None
    total_us: int
    overhead_us: int | None
    uid: int
    pid: int


def logs_calls() -> bool:
    """Whether `log_call` would write anything: a line need not be made otherwise."""
    return _State.captured is not None or (_State.calls and _State.threshold <= _LEVELS["info"])


def log_call(line: CallLine, wall_us: int) -> None:
    """Write a call's line: the one that `get_logger().info("call", ...)` would, at a quarter of its cost.

    Nothing of a `CallLine` needs the allow-list, scrubbing or shortening. Ask `logs_calls` first.

    Args:
        line: what is said.
        wall_us: when the call ended, wall clock.
    """
    if _State.captured is not None or _State.text:
        fields = {name: getattr(line, name) for name in line.__struct_fields__ if name not in _OURS}
        _CALLS.info("call", **fields)
    elif _State.journal:
        _State.sink.write(b"<6>%b\n" % _ENCODER.encode(line))
    else:
        encoded = _ENCODER.encode(line)
        _State.sink.write(b'%b,"timestamp":"%b"}\n' % (encoded[:-1], _iso(wall_us)))


def _iso(wall_us: int) -> bytes:
    """`datetime.isoformat` of an instant in UTC; what a second's instants share is kept."""
    second, us = divmod(wall_us, 1_000_000)
    if second != _Second.number:
        _Second.number = second
        _Second.text = datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    return b"%b.%06d+00:00" % (_Second.text, us)


class _Second:
    """The last second that `_iso` was asked for."""

    number = -1
    text = b""


@contextlib.contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """For tests: what is logged inside, of every level, after the allow-list, instead of being written."""
    before, _State.captured = _State.captured, []
    try:
        yield _State.captured
    finally:
        _State.captured = before


def _keep_allowed(_: Any, level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _State.captured is None and (
        _LEVELS[level] < _State.threshold or (not _State.calls and fields["event"] == "call")
    ):
        raise structlog.DropEvent
    event = fields["event"]
    kept: dict[str, Any] = {"event": event if isinstance(event, str) and _EVENT.fullmatch(event) else "unnamed"}
    failure = fields.get("exc_info")
    if failure:
        kept["exception"] = _frames(failure)
        level = "error" if level == "exception" else level
    kept["level"] = level
    for name, value in fields.items():
        if name in FIELDS and name not in _OURS:
            kind = type(value)
            if kind is str:
                kept[name] = value if len(value) <= MAX_TEXT else value[:MAX_TEXT]
            elif kind is int or kind is bool or value is None or kind is float:
                kept[name] = value
            else:
                kept[name] = _plain(value)
    for name in _FREE_TEXT:
        if name in kept and type(kept[name]) is str:
            kept[name] = scrub(kept[name])
    return kept


def _plain(value: Any) -> Any:
    """Lists of scalars as they are; of anything else the type only: a repr may show what it holds."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int)) for item in value):
        return [item[:MAX_TEXT] if isinstance(item, str) else item for item in value[:64]]
    if isinstance(value, str):  # an enumeration's member
        return str.__str__(value)[:MAX_TEXT]
    return f"<{type(value).__name__}>"


def _frames(failure: Any) -> list[str]:
    """Types and places of an exception and its causes; no message and no local: both may quote what was read."""
    if failure is True:
        import sys  # noqa: PLC0415

        failure = sys.exc_info()[1]
    elif isinstance(failure, tuple):
        failure = failure[1]
    lines: list[str] = []
    while isinstance(failure, BaseException) and len(lines) < 24:
        lines.append(type(failure).__qualname__)
        if isinstance(failure, BaseExceptionGroup):
            lines.extend(f"  of {type(inner).__qualname__}" for inner in failure.exceptions[:4])
        lines.extend(
            f"  {frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(failure.__traceback__, limit=-8)
        )
        failure = failure.__cause__ or (None if failure.__suppress_context__ else failure.__context__)
    return lines


def _finish(_: Any, __: str, fields: MutableMapping[str, Any]) -> bytes:
    if _State.captured is not None:
        _State.captured.append(dict(fields))
        raise structlog.DropEvent
    return _render(fields)


def _render(fields: MutableMapping[str, Any]) -> bytes:
    level = fields["level"]
    if not _State.journal:
        now = datetime.datetime.now(datetime.UTC)
        fields["timestamp"] = now.strftime("%H:%M:%S") if _State.text else now.isoformat(timespec="microseconds")
    try:
        line = _as_text(fields) if _State.text else _ENCODER.encode(fields)
    except (UnicodeEncodeError, OverflowError):  # half a surrogate pair, an integer of 65 bits
        line = _ENCODER.encode({name: _encodable(value) for name, value in fields.items()})
    if len(line) > MAX_LINE - 8:
        line = _ENCODER.encode({"event": fields["event"], "level": level, "reason": "a line too long"})
    return (_PRIORITIES[level] if _State.journal else b"") + line + b"\n"


def _encodable(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


_ENCODER: Final = msgspec.json.Encoder()


def _as_text(fields: MutableMapping[str, Any]) -> bytes:
    """``12:00:01 warning breaker.opened upstream=openai``, control characters made visible."""
    words = [str(fields.pop("timestamp", "")), f"{fields['level']:<7}", str(fields["event"])]
    for name, value in fields.items():
        if name not in _OURS:
            text = value if isinstance(value, str) else _ENCODER.encode(value).decode()
            words.append(f"{name}={text if text.isprintable() and ' ' not in text else ascii(text)}")
    lines = [" ".join(words).strip(), *(f"    {line}" for line in fields.get("exception", ()))]
    return "\n".join(lines).encode()


class _Foreign(logging.Handler):
    """Third-party loggers: the name, the template and the exception's places; the arguments may be anything."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        failure = {"exc_info": record.exc_info} if record.exc_info else {}
        method = getattr(_FOREIGN, level if level in _PRIORITIES else "warning")
        method("library", logger=record.name, reason=str(record.msg)[:200], **failure)


_FOREIGN: Final = get_logger()
_CALLS: Final = get_logger()
