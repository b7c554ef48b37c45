"""From a byte stream to an HTTP connection that is ready for requests: version 2 where it was agreed on, else 1.1.

Why not one of the HTTP clients: [0018](docs/decisions/0018-https-beside-websockets.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio
from hpack import HeaderTuple, NeverIndexedHeaderTuple

from sidecar.transport.exchange import Exchanges
from sidecar.transport.headers import check_headers
from sidecar.transport.http1_link import Http1Link
from sidecar.transport.http2_link import Http2Link
from sidecar.transport.http2_opening import shake_hands
from sidecar.transport.link import Ended
from sidecar.transport.pump import Pump
from sidecar.transport.tls import TlsStream
from sidecar.version import __version__

Headers = Sequence[tuple[bytes, bytes]]

_OURS: Final = (
    (b"Accept", b"text/event-stream, application/json"),
    (b"Accept-Encoding", b"identity"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"inference-sidecar/" + __version__.encode()),
)


async def open_http(
    dialer: Callable[[], Awaitable[trio.abc.Stream]],
    host: str,
    resource: str,
    exchanges: Exchanges,
    *,
    pump: Pump,
    headers: Headers,
    secrets: Headers = (),
    ended: Ended | None = None,
    prior_knowledge: bool = False,
    opening_timeout: float = 5.0,
    max_event_bytes: int = 1 << 20,
) -> Http1Link | Http2Link:
    """Dial, and be ready to ask. What is returned reads nothing before its `start`.

    Args:
        dialer: gives the connected stream, owned from there on; what it raises passes through.
        host: the Host header, `Address.host_header`.
        resource: path and query, of every request.
        exchanges: told of what comes.
        pump: running; moves the bytes from here on.
        headers: extra ones of every request.
        secrets: the same, and no proxy is to remember them.
        ended: see `Link`.
        prior_knowledge: it speaks HTTP/2 although TLS has not agreed on it.
        opening_timeout: seconds for HTTP/2's settings.
        max_event_bytes: see `exchange.Answer`.

    Raises:
        ConnectFailed: no connection, or not the HTTP that was agreed on.

    Resource handling: the stream is closed when this raises or is cancelled; else whoever holds the link ends it.
    """
    check_headers([*headers, *secrets])
    stream = await dialer()
    try:
        secure = isinstance(stream, TlsStream)
        agreed = isinstance(stream, TlsStream) and stream.alpn == "h2"
        if prior_knowledge or agreed:
            engine, early = await shake_hands(stream, opening_timeout, agreed=agreed)
            await trio.lowlevel.checkpoint_if_cancelled()
            head = _head2(host, resource, headers, secrets, secure=secure)
            return Http2Link(
                pump.wire(stream, early), engine, head, exchanges, ended, max_event_bytes=max_event_bytes,
                settings_timeout=opening_timeout if agreed else None,
            )  # fmt: skip
        await trio.lowlevel.checkpoint_if_cancelled()
        head1 = _head1(host, resource, [*headers, *secrets])
        return Http1Link(pump.wire(stream, b""), head1, exchanges, ended, max_event_bytes=max_event_bytes)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def _with_ours(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What the operator says himself is not said twice."""
    given = {name.lower() for name, _ in headers}
    return [*((name, value) for name, value in _OURS if name.lower() not in given), *headers]


def _head1(host: str, resource: str, headers: Headers) -> bytes:
    lines = [f"POST {resource} HTTP/1.1".encode(), b"Host: " + host.encode()]
    lines += [b"%b: %b" % pair for pair in _with_ours(headers)]
    return b"\r\n".join(lines) + b"\r\nContent-Length: "


def _head2(host: str, resource: str, headers: Headers, secrets: Headers, *, secure: bool) -> list[HeaderTuple]:
    given = {name.lower() for name, _ in secrets}
    plain = [(name.lower(), value) for name, value in _with_ours(headers) if name.lower() not in given]
    return [
        HeaderTuple(b":method", b"POST"),
        HeaderTuple(b":authority", host.encode()),
        HeaderTuple(b":scheme", b"https" if secure else b"http"),
        HeaderTuple(b":path", resource.encode()),
        *(HeaderTuple(name, value) for name, value in plain),
        *(NeverIndexedHeaderTuple(name.lower(), value) for name, value in secrets),
    ]
