"""A pool as health, metrics and `show upstreams` see it."""

from __future__ import annotations

from msgspec import Struct


class PoolStatistics(Struct, frozen=True, kw_only=True):
    """One upstream's pool now. `connections` counts by state; times in seconds; `policy` is for people."""

    name: str
    url: str
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
    enabled: bool
    #: the concurrency limit, and what runs under it
    attempts_at_once: int
    attempts_in_flight: int
    #: until its credential may be used again
    throttled_ms: int
