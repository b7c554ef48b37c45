"""The local wire, version 1: the messages between a bot and the daemon, and nothing else.

Every message is a ``msgspec`` struct tagged by ``type``. Reading is tolerant (unknown fields are ignored, see
`proto/wire.md`), limits stand in ``Meta``. Units are in the names: ``_us`` integer microseconds, ``_ms`` numbers
of milliseconds. The JSON Schema under ``proto/schema`` is generated from these types.

Both ends import this file: the daemon decodes `ToDaemon` and encodes `FromDaemon`, the Python clients the reverse.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

WIRE_VERSION: Final = 1
MAX_SAFE_INTEGER: Final = 2**53 - 1
MAX_BATCH: Final = 256

Lane: TypeAlias = Literal["exit", "entry", "research"]
Role: TypeAlias = Literal["system", "developer", "user", "assistant"]
Finish: TypeAlias = Literal["stop", "length", "tool_calls"]
Transport: TypeAlias = Literal["websocket", "sse"]
Phase: TypeAlias = Literal["queue", "connect", "first_delta", "stream"]

CallName = Annotated[
    str, Meta(min_length=1, max_length=64, description="names the call among this connection's calls in flight")
]
Label = Annotated[str, Meta(max_length=128)]
TimeoutMs = Annotated[float, Meta(gt=0, le=86_400_000, description="milliseconds")]
Microseconds = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER, description="microseconds")]
Count = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)]
SafeInteger = Annotated[int, Meta(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]


class ChatMessage(Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: str


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The portable options of a call; `dialects.options` maps them per dialect.

    Unknown names are refused (`unsupported_option`), never passed on silently; `extra_body` goes through verbatim.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)] | None = None
    reasoning_effort: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    response_format: dict[str, Any] | None = None
    service_tier: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    prompt_cache_key: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    stop: str | list[str] | None = None
    seed: SafeInteger | None = None
    extra_body: dict[str, Any] | None = None


# ---------------------------------------------------------------------------------------------- bot -> daemon


class Call(Struct, frozen=True, kw_only=True, tag="call"):
    """A prompt to be answered by its deadline. Exactly one of `input` and `messages` is given."""

    id: CallName
    v: int = WIRE_VERSION
    route: Annotated[str, Meta(min_length=1, max_length=64)] = "default"
    input: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    instructions: str | None = None
    options: dict[str, Any] = {}
    timeout_ms: TimeoutMs | None = None
    sent_mono_us: SafeInteger | None = None
    first_delta_timeout_ms: TimeoutMs | None = None
    idle_timeout_ms: TimeoutMs | None = None
    #: not given is told from "entry": a bot that may not use that lane gets the best that it may
    lane: Lane | UnsetType = UNSET
    stream: bool = True
    on_lost: Literal["fail", "restart"] = "fail"


class Cancel(Struct, frozen=True, kw_only=True, tag="cancel"):
    """Stop a call, upstream too. Unknown or ended: silently nothing. `call_id` guards a reused `id`."""

    id: CallName
    call_id: Annotated[str, Meta(max_length=64)] | None = None


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """Optional greeting: `name` is a label for people, `batch` allows arrays of messages as an answer."""

    name: Label = ""
    batch: bool = False


class Ping(Struct, frozen=True, kw_only=True, tag="ping"):
    """Answered by `Pong` with the same nonce."""

    nonce: Label | SafeInteger | None = None


class Probe(Struct, frozen=True, kw_only=True, tag="probe"):
    """Asks for a `Report`."""

    check: Literal["live", "ready", "full"] = "full"


ToDaemon: TypeAlias = Call | Cancel | Hello | Ping | Probe


# ---------------------------------------------------------------------------------------------- daemon -> bot


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one answer; `estimated` when the upstream did not say."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0
    estimated: bool = False


class Timing(Struct, frozen=True, kw_only=True):
    """Where the time of a call went, from its receipt; `None` for what did not happen.

    `attempt_us` is when the answering attempt was handed to its socket; `overhead_us` is what the daemon itself
    spent: receipt to that moment without the time it waited for a connection or a backoff, plus first content
    frame to its delta, plus last frame to the terminal.
    """

    queued_us: Microseconds = 0
    attempt_us: Microseconds | None = None
    first_delta_us: Microseconds | None = None
    total_us: Microseconds = 0
    overhead_us: Microseconds | None = None


class Accepted(Struct, frozen=True, kw_only=True, tag="accepted"):
    """The call is admitted (queued counts); from here exactly one terminal follows."""

    id: str
    call_id: str
    session: str
    recv_mono_us: Microseconds
    deadline_mono_us: Microseconds
    route: str
    ignored: list[str] = []


class Delta(Struct, frozen=True, kw_only=True, tag="delta"):
    """A piece of the answer. `seq` counts 0, 1, 2 ... without a hole; `text` is never empty."""

    id: str
    seq: Count
    text: str


class Restarted(Struct, frozen=True, kw_only=True, tag="restarted"):
    """Only with `on_lost: "restart"`: forget the text so far; `seq` starts at 0 again."""

    id: str
    attempt: Count
    upstream: str
    model: str


class Done(Struct, frozen=True, kw_only=True, tag="done"):
    """Terminal of an answered call. Only `finish: "stop"` is a complete answer."""

    id: str
    call_id: str
    finish: Finish
    deltas: Count
    usage: Usage
    route: str
    upstream: str
    model: str
    attempts: Count
    timing: Timing
    wall_us: Microseconds
    text: str | None = None
    cost_nano_usd: Count | None = None
    model_reported: str | None = None
    backup_used: bool = False
    #: the way that the answer came
    transport: Transport | UnsetType = UNSET
    upstream_request_id: str | None = None


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """Terminal of a call that was not answered, or, without `call_id`, a refusal on receipt."""

    id: str | None
    code: str
    message: str
    retryable: bool
    retry_after_ms: Count | None = None
    phase: Phase | None = None
    partial: bool = False
    call_id: str | None = None
    text: str | None = None
    deltas: Count = 0
    usage: Usage | None = None
    cost_nano_usd: Count | None = None
    route: str | None = None
    upstream: str | None = None
    model: str | None = None
    model_reported: str | None = None
    attempts: Count = 0
    backup_used: bool = False
    transport: Transport | UnsetType = UNSET
    upstream_request_id: str | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None
    timing: Timing | None = None
    wall_us: Microseconds | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """What the daemon will take from this bot."""

    max_message_bytes: Count
    max_batch: Count = MAX_BATCH
    max_calls_in_flight: Count
    queue_max: Count
    max_timeout_ms: Count = 86_400_000


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The answer to `Hello`. `session` changes when the daemon restarts."""

    version: str
    wire: int
    session: str
    mono_us: Microseconds
    wall_us: Microseconds
    limits: Limits
    routes: list[str]


class Pong(Struct, frozen=True, kw_only=True, tag="pong"):
    """The answer to `Ping`."""

    nonce: str | int | None
    session: str
    mono_us: Microseconds
    wall_us: Microseconds


class RouteReport(Struct, frozen=True, kw_only=True):
    """`target`: the upstream that a call of this route would go to now, `None` when there is none; `transport`: how."""

    name: str
    ready: bool
    target: str | None = None
    transport: Transport | UnsetType = UNSET


class UpstreamReport(Struct, frozen=True, kw_only=True):
    """`connections` counts by state; `rtt_us` is the last keepalive's round trip.

    An upstream with a `fallback_url` has two: its own, and `NAME/sse`.
    """

    name: str
    transport: Transport | UnsetType = UNSET
    connections: dict[str, int]
    breaker: str
    last_error: str | None = None
    rtt_us: Microseconds | None = None


class Report(Struct, frozen=True, kw_only=True, tag="report"):
    """Health, answered from a snapshot even when every upstream is down.

    ready = bound, not draining, every route has a target with a standing connection (READY or BUSY) and a breaker that
    is not open; degraded = ready, with reasons.
    """

    live: bool
    ready: bool
    degraded: bool
    draining: bool
    halted: list[str] = []
    reasons: list[str] = []
    version: str
    wire: int = WIRE_VERSION
    session: str
    pid: int
    uptime_us: Microseconds
    in_flight: Count
    queued: Count
    loop_lag_us: Microseconds
    routes: list[RouteReport] = []
    upstreams: list[UpstreamReport] = []


FromDaemon: TypeAlias = Accepted | Delta | Restarted | Done | Failed | Welcome | Pong | Report
Terminal: TypeAlias = Done | Failed


# ---------------------------------------------------------------------------------------------- encodings


class Encoding:
    """One of the two encodings of the wire: `JSON` or `MSGPACK`. Encoders and decoders are made once."""

    __slots__ = ("decode_from_daemon", "decode_to_daemon", "encode", "name", "read_keys")

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.encode = module.Encoder().encode
        #: bytes -> one message of a bot
        self.decode_to_daemon = module.Decoder(ToDaemon).decode
        #: bytes -> one message of the daemon, or a list of them (a batch)
        self.decode_from_daemon = module.Decoder(FromDaemon | list[FromDaemon]).decode
        #: bytes -> the top-level map with values left encoded: for naming unknown fields and reading an id
        self.read_keys = module.Decoder(dict[str, msgspec.Raw]).decode

    def __repr__(self) -> str:
        return f"<Encoding {self.name}>"


JSON: Final = Encoding("json", msgspec.json)
MSGPACK: Final = Encoding("msgpack", msgspec.msgpack)


def encoding_of(payload: bytes | memoryview) -> Encoding:
    """Tell the encoding by the first byte: ``{`` or ``[`` is JSON, everything else MessagePack."""
    return JSON if payload[:1] in (b"{", b"[") else MSGPACK
