"""The configuration's shape: frozen structs, strict, with a unit in every name and a default that is right for most."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from sidecar.wire import Lane, Transport

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
PositiveSeconds = Annotated[float, Meta(gt=0, le=86_400)]
PositiveMs = Annotated[float, Meta(gt=0, le=86_400_000)]
PresetName: TypeAlias = Literal[
    "openai", "azure", "xai", "vercel", "litellm", "anthropic", "deepseek", "groq", "vllm", "llamacpp"
]
Share = Annotated[float, Meta(gt=0, le=1)]
CallsPerMinute = Annotated[int, Meta(ge=1, le=10_000_000)]


class Frontend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[frontend]`: the local socket and what one host of bots may ask of it."""

    endpoint: str | None = None
    control_endpoint: str | None = None
    group: str | None = None
    max_message_bytes: Annotated[int, Meta(ge=1024, le=256 << 20)] = 1_048_576
    max_calls_in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 256
    exit_reserved_calls: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    queue_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 512
    max_calls_per_minute: CallsPerMinute | None = None
    halt_file: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    zmtp: Literal["native", "libzmq"] = "native"
    stall_timeout_s: PositiveSeconds = 5
    drain_timeout_s: Annotated[float, Meta(ge=0, le=86_400)] = 30

    @property
    def reserved_for_exit(self) -> int:
        """Places in flight that only exit calls may take: as configured, else an eighth of all."""
        return self.max_calls_in_flight // 8 if self.exit_reserved_calls is None else self.exit_reserved_calls


class Client(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[client]]`: what the bots of one user may ask; `user` as loaded is a uid, or "*" for users without a rule."""

    user: Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)] | Annotated[str, Meta(min_length=1, max_length=256)]
    lanes: Annotated[tuple[Lane, ...], Meta(min_length=1)] = ("exit", "entry", "research")
    max_calls_in_flight: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    max_calls_per_minute: CallsPerMinute | None = None


class CredentialSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a secret lies; never the secret. Exactly one of the fields."""

    file: str | None = None
    env: str | None = None
    command: list[str] | None = None


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[upstream.tls]`: a private CA, a client certificate."""

    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


class BreakerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`breaker` of an upstream: when it is no longer asked, for how long, and what lets it back in."""

    consecutive_failures: Annotated[int, Meta(ge=1, le=1000)] = 5
    failure_rate: Share = 0.5
    slow_rate: Share = 0.8
    minimum_calls: Annotated[int, Meta(ge=1, le=100_000)] = 10
    window_s: Annotated[float, Meta(ge=1, le=3600)] = 30
    open_min_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1
    open_max_s: Annotated[float, Meta(ge=0.01, le=3600)] = 30
    trials: Annotated[int, Meta(ge=1, le=100)] = 2


class BudgetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`retry_budget` of an upstream: attempts after a call's first that it may be sent."""

    attempts: Annotated[float, Meta(ge=2, le=100_000)] = 10
    per_second: Annotated[float, Meta(ge=0, le=100_000)] = 0.1
    per_call: Annotated[float, Meta(ge=0, le=10)] = 0.1


class Upstream(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[upstream]]`: one service, after its preset has been laid under it."""

    name: Name
    url: str
    dialect: Literal["responses", "chat", "messages"]
    #: as loaded: what `url`'s scheme says, unless the file says it
    transport: Transport = "websocket"
    #: the same service over HTTPS, for when its WebSockets cannot be had
    fallback_url: str | None = None
    fallback_warm_connections: Annotated[int, Meta(ge=0, le=10_000)] = 1
    http_version: Literal["auto", "1.1", "2"] = "auto"
    preset: PresetName | None = None
    credential: str | CredentialSource | None = None
    headers: dict[str, str] = {}
    warm_connections: Annotated[int, Meta(ge=0, le=10_000)] = 8
    max_connections: Annotated[int, Meta(ge=1, le=10_000)] = 64
    calls_per_connection: Annotated[int, Meta(ge=1, le=32)] = 1
    max_age_s: Annotated[float, Meta(ge=1, le=86_400)] = 3300
    compression: Literal["none", "zstd-stream"] = "none"
    tls: Tls = Tls()
    proxy: str | None = None
    connect_timeout_s: PositiveSeconds = 2
    tls_timeout_s: PositiveSeconds = 3
    upgrade_timeout_s: PositiveSeconds = 5
    ping_interval_s: PositiveSeconds = 10
    pong_timeout_s: PositiveSeconds = 5
    breaker: BreakerSettings = BreakerSettings()
    retry_budget: BudgetSettings = BudgetSettings()
    adaptive_concurrency: bool = True


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of a route's `targets`: an upstream, a model, and options laid under the call's."""

    upstream: Name
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    options: dict[str, Any] = {}


class Route(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[route]]`: what a bot names; targets in order of preference."""

    name: Name
    targets: Annotated[list[Target], Meta(min_length=1, max_length=16)]
    timeout_ms: PositiveMs = 2000
    first_delta_timeout_ms: PositiveMs = 1200
    idle_timeout_ms: PositiveMs = 800
    max_attempts: Annotated[int, Meta(ge=1, le=16)] = 3
    backup_lanes: tuple[Lane, ...] = ("exit",)
    backup_quantile: Annotated[float, Meta(ge=0.5, le=0.999)] = 0.95
    backup_min_ms: PositiveMs = 50
    backup_max_ms: PositiveMs = 2000
    return_ramp_s: Annotated[float, Meta(ge=0, le=3600)] = 10
    max_output_tokens: Annotated[int, Meta(ge=1)] = 256
    store: bool = False
    unsupported_options: Literal["fail", "drop"] = "fail"


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[log]`: to stderr; never a prompt, a delta or a credential, at any level."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"
    calls: bool = True


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    frontend: Frontend = Frontend()
    upstream: Annotated[list[Upstream], Meta(min_length=1)]
    route: Annotated[list[Route], Meta(min_length=1)]
    client: Annotated[list[Client], Meta(max_length=1000)] = []
    log: Log = Log()
