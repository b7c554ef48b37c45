"""The ways to one upstream: its own URL, and the same service over HTTPS where that is configured, too."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

from sidecar.config.model import Upstream

#: What follows an upstream's name where its HTTPS way is meant; no upstream can be named so.
FALLBACK_SUFFIX: Final = "/sse"


class Way(Struct, frozen=True):
    """One way: what its pool is called, and the upstream as if this were its only one."""

    name: str
    upstream: Upstream


def only_http1(upstream: Upstream) -> bool:
    """Requests can go by HTTP/1.1 alone: it is asked for, or nothing agrees on another version without TLS."""
    plain = upstream.http_version == "auto" and upstream.url.startswith("http:")
    return upstream.transport == "sse" and (upstream.http_version == "1.1" or plain)


def slots_of(upstream: Upstream) -> int:
    """Calls that one of its connections can carry, as far as the configuration tells."""
    return 1 if only_http1(upstream) else upstream.calls_per_connection


def ways_of(upstream: Upstream) -> tuple[Way, ...]:
    """The ways to it, the preferred one first.

    Over HTTPS a call has a stream of its own: where HTTP/2 is spoken as many share a connection as on a WebSocket;
    where it is not, as many connections may be needed as there are calls.
    """
    own = Way(upstream.name, upstream)
    if upstream.fallback_url is None:
        return (own,)
    fallback = structs.replace(
        upstream,
        url=upstream.fallback_url,
        fallback_url=None,
        fallback_warm_connections=1,
        transport="sse",
        compression="none",
        warm_connections=upstream.fallback_warm_connections,
        max_connections=min(10_000, upstream.max_connections * upstream.calls_per_connection),
    )
    return own, Way(upstream.name + FALLBACK_SUFFIX, fallback)
