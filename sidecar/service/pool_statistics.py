"""A pool as health, metrics and `show upstreams` see it."""

from __future__ import annotations

from msgspec import Struct


class PoolStatistics(Struct, frozen=True, kw_only=True):
    """What one upstream's pool looks like now. `connections` counts by state; times in seconds."""

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
