"""A pool as health, metrics and `show upstreams` see it."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from sidecar.config import Upstream
from sidecar.core.outcome import Outcome
from sidecar.core.pool_policy import PoolPolicy
from sidecar.service.connection import Connection
from sidecar.service.connector import Connector
from sidecar.service.gate import Gate
from sidecar.wire import Transport


class Counted(Protocol):
    """The pool, as seen from here."""

    name: str
    upstream: Upstream
    connections: dict[int, Connection]
    gate: Gate
    last_error: str | None

    @property
    def refusal(self) -> Outcome | None:
        """Why its credential is not used now."""
        ...

    def counts(self) -> dict[str, int]:
        """Connections by state."""
        ...


class PoolStatistics(Struct, frozen=True, kw_only=True):
    """One upstream's pool now. `connections` counts by state; times in seconds; `policy` is for people."""

    name: str
    transport: Transport
    url: str
    #: the version that the last connection speaks, over HTTP(S)
    http: str | None
    connections: dict[str, int]
    slots_free: int
    opened: int
    failed: int
    lost: int
    last_error: str | None
    rtt: float | None
    credential_refused: bool
    compression: bool
    policy: str
    #: after so many seconds without a call a connection is replaced, before its server closes it; None: not for that
    idle_life_s: float | None
    enabled: bool
    #: the concurrency limit, and what runs under it
    attempts_at_once: int
    attempts_in_flight: int
    #: until its credential may be used again
    throttled_ms: int


def statistics_of(pool: Counted, policy: PoolPolicy, connector: Connector, now: float) -> PoolStatistics:
    """A snapshot."""
    connections, gate, life = pool.connections.values(), pool.gate, connector.habits.idle_life
    return PoolStatistics(
        name=pool.name,
        transport=pool.upstream.transport,
        url=pool.upstream.url,
        http=connector.http,
        connections=pool.counts(),
        slots_free=sum(c.free for c in connections),
        opened=connector.opened,
        failed=connector.failed,
        lost=policy.statistics().lost,
        last_error=pool.last_error,
        rtt=min((c.rtt for c in connections if c.rtt is not None), default=None),
        credential_refused=pool.refusal is not None,
        compression=connector.compression,
        policy=repr(policy),
        idle_life_s=None if life is None else round(life, 3),
        enabled=gate.enabled,
        attempts_at_once=gate.limit.limit,
        attempts_in_flight=gate.limit.in_flight,
        throttled_ms=round(1000 * gate.throttled_for(now)),
    )
