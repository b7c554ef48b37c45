"""The door: the head of a request in, and the upgrade to WebSocket: 101, a refusal, or all that may go wrong in it."""

from __future__ import annotations

import base64
import hashlib
import http
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import msgspec
import trio
from msgspec import Struct

from sidecar.simulator.link import Link

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UPGRADES: Final = {"/v1/responses": "responses", "/v1/chat": "chat", "/v1/ws/stream": "chat"}
_POSTS: Final = {
    "/v1/responses": "responses",
    "/v1/chat/completions": "chat",
    "/v1/chat": "chat",
    "/v1/messages": "messages",
}
#: What a proxy says whose upstream is gone.
HTML: Final = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
#: What a client that speaks HTTP/2 says first.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_TYPES: Final = {401: "invalid_api_key", 403: "forbidden", 429: "rate_limit_exceeded", 503: "service_unavailable"}


class Knock(Struct, frozen=True, kw_only=True):
    """The head of a request, by any version of HTTP.

    Args:
        group: what stands before the dialect's path: ``s/<expression>`` or ``u/<label>``, ``""`` for none.
        headers: names in lower case; of two the later counts.
        key: of ``Authorization: Bearer`` or ``x-api-key``.
        websocket_key: it asks for an upgrade to WebSocket.
    """

    method: str
    path: str
    group: str
    query: dict[str, str]
    headers: dict[str, str]
    key: str | None
    websocket_key: bytes | None = None

    @property
    def dialect(self) -> str | None:
        """What would be spoken at this path: over a WebSocket, or over HTTP."""
        return (_UPGRADES if self.websocket_key is not None or self.method != "POST" else _POSTS).get(self.path)


async def first_bytes(link: Link) -> bytes:
    """What the client says first: enough to tell HTTP/2's preface from a request of HTTP/1.1. ``b""``: it left.

    Raises:
        OSError: the connection broke.
    """
    said = b""
    while said == PREFACE[: len(said)] and len(said) < len(PREFACE):
        more = await link.receive()
        if not more:
            return b""
        said += more
    return said


async def listen_at_door(link: Link, peer: h11.Connection) -> Knock | None:
    """Read the head of one request; None when the client went away or does not speak HTTP (it was told).

    Raises:
        OSError: the connection broke.
    """
    while True:
        try:
            event = peer.next_event()
        except h11.RemoteProtocolError:
            link.send(answer(400, {"error": "not HTTP/1.1"}))
            return None
        if event is h11.NEED_DATA:
            data = await link.receive()
            peer.receive_data(data)
            if not data and peer.their_state is h11.IDLE:
                return None
            continue
        if isinstance(event, h11.Request) and event.method == b"POST" and event.http_version < b"1.1":
            link.send(answer(505, {"error": "HTTP/1.1 or HTTP/2"}))  # 1.0 has no chunks
            return None
        return knock_of(event) if isinstance(event, h11.Request) else None


def knock_of(request: h11.Request) -> Knock:
    """The head of an HTTP/1.1 request."""
    return knock(request.method, request.target, request.headers)


def knock(method: bytes, target: bytes, fields: Iterable[tuple[bytes, bytes]]) -> Knock:
    """A head in its parts."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in fields}
    parts = urlsplit(target.decode("latin-1"))
    path, group = parts.path, ""
    if path[:3] in ("/s/", "/u/"):
        label, slash, rest = path[3:].partition("/")
        group, path = f"{path[1]}/{unquote(label)}", slash + rest
    scheme, _, key = headers.get("authorization", "").partition(" ")
    upgrade = method == b"GET" and headers.get("upgrade", "").lower() == "websocket"
    return Knock(
        method=method.decode("latin-1"),
        path=path,
        group=group,
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        headers=headers,
        key=key if scheme.lower() == "bearer" else headers.get("x-api-key"),
        websocket_key=headers.get("sec-websocket-key", "").encode("latin-1") or None if upgrade else None,
    )


def answer(status: int, body: Any, headers: dict[str, str] | None = None) -> bytes:
    """A whole HTTP response that ends the connection; `body` becomes JSON, unless it is bytes: HTML."""
    html = isinstance(body, bytes)
    content = body if html else msgspec.json.encode(body) + b"\n"
    kind = "text/html" if html else "application/json"
    lines = [f"HTTP/1.1 {status} {_reason(status)}", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def _reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def refusal(status: int, retry_after_s: float | None = None) -> bytes:
    """The upgrade refused as the services word it; 429 and 503 say Retry-After."""
    headers = {"x-request-id": f"req_refused_{status}"}
    if status in (429, 503) and retry_after_s is not None:
        headers["Retry-After"] = f"{retry_after_s:g}"
    if status == 301:
        headers["Location"] = "http://127.0.0.1:9/v1/responses"
    code = _TYPES.get(status, "server_error" if status >= 500 else "refused")
    return answer(status, {"error": {"message": "refused by the simulated relay", "type": code, "code": code}}, headers)


def switching(websocket_key: bytes, request_id: str) -> bytes:
    """The 101."""
    accept = base64.b64encode(hashlib.sha1(websocket_key + _GUID, usedforsecurity=False).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nx-request-id: {request_id}\r\n"
        "x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
        "x-ratelimit-reset-requests: 6ms\r\n\r\n"
    ).encode("latin-1")


async def misbehave(name: str, link: Link, knock: Knock, retry_after_s: float | None) -> None:
    """The door scenario `name`, in place of a handshake; the caller closes the link.

    Raises:
        OSError: the client had enough.
    """
    yes = switching(knock.websocket_key or b"", "req_never")
    if name.startswith("http_"):
        link.send(refusal(int(name.removeprefix("http_")), retry_after_s))
    elif name == "html":
        link.send(answer(502, HTML))
    elif name == "handshake_301":
        link.send(refusal(301))
    elif name == "handshake_reset":
        link.reset()
    elif name == "handshake_eof":
        link.send(yes[: len(yes) // 2])
    elif name == "handshake_garbage":
        link.send(b"\x16\x03\x01SSH-2.0-OpenSSH_9.9 220 mail ready\r\n\r\n" + bytes(range(256)))
    elif name == "handshake_wrong_accept":
        link.send(switching(b"another key", "req_wrong"))
    elif name == "handshake_drip":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_leave_with, link, nursery.cancel_scope)
            for index in range(len(yes)):
                link.send(yes[index : index + 1])
                await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
    elif name == "handshake_silent":
        while await link.receive():
            pass


async def _leave_with(link: Link, scope: trio.CancelScope) -> None:
    """Cancel `scope` when the client goes."""
    try:
        while await link.receive():
            pass
    except OSError:
        pass
    scope.cancel()
