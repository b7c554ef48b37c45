"""The reference relay in C on libzmq, from the yardsticks: what the same wire costs at the least."""

from __future__ import annotations

from common import Bench

from tests.benchmarks.yardsticks.relay import CRelay
from tests.benchmarks.yardsticks.upstream import CUpstream


def start_relay(bench: Bench, upstream: CUpstream, connections: int) -> tuple[str, int]:
    """Start it; its endpoint and process id. Raises `build.Missing` where it cannot be compiled."""
    relay = CRelay(bench, bench.endpoint, upstream.url(stamp=1), connections=connections, for_s=7200)
    return bench.endpoint, relay.process.pid
