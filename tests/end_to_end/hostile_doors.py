"""Attacks before the first answer: TLS that lies or ends badly, upgrades that are refused oddly."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end import hostile_http1, hostile_http2
from tests.end_to_end.hostile_server import (
    CHUNKED,
    DONE,
    EITHER,
    FAILED,
    LOST,
    Gone,
    Peer,
    begun,
    chunk,
    connected,
    events,
)

#: Filled by `secure`, in the server's process only: there the certificates are made.
_contexts: dict[str, ssl.SSLContext] = {}


def secure(folder: Path) -> Callable[[Peer], None]:
    """Make the certificates, the authority's in `folder`/ca.pem -> what a good server does."""
    import trustme

    ours, others = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)

    def context(authority: trustme.CA, name: str, *protocols: str, **options: Any) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name, **options).configure_cert(made)
        if protocols:
            made.set_alpn_protocols(protocols)
        return made

    _contexts.update(
        good=context(ours, "localhost", "http/1.1"),
        name=context(ours, "elsewhere.example"),
        expired=context(ours, "localhost", not_after=past),
        authority=context(others, "localhost"),
        h2=context(ours, "localhost", "h2"),
        silent=context(ours, "localhost"),
    )
    return lambda peer: hostile_http1.good(wrapped(peer, "good"))


def wrapped(peer: Peer, context: str) -> Peer:
    """The same connection, inside TLS."""
    try:
        peer.sock = _contexts[context].wrap_socket(peer.sock, server_side=True)
    except (OSError, ValueError) as error:
        raise Gone from error
    return peer


def handshake(context: str) -> Callable[[Peer], None]:
    """A good server, but for its handshake."""
    return lambda peer: hostile_http1.good(wrapped(peer, context))


connected("tls", "a certificate of another name", FAILED)(handshake("name"))
connected("tls", "an expired certificate", FAILED)(handshake("expired"))
connected("tls", "a certificate of another authority", FAILED)(handshake("authority"))
connected("tls", "HTTP/1.1 after no word on protocols", DONE)(handshake("silent"))


@connected("tls", "HTTP/2 where HTTP/1.1 was agreed on", FAILED)
def _(peer: Peer) -> None:
    secured = wrapped(peer, "good")
    secured.send(hostile_http2.settings(window=1))
    secured.wait()


@connected("tls", "HTTP/1.1 in the clear", FAILED)
def _(peer: Peer) -> None:
    peer.answer("chat")
    peer.wait()


@connected("tls", "a handshake byte by byte", FAILED)
def _(peer: Peer) -> None:
    peer.read()
    peer.drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", 0.3)
    peer.drip(b"\0" * 1000, 0.1)


def cuts(name: str, cut: Callable[[Peer], None], *, expected: str = LOST) -> None:
    """An answer begins well; then comes `cut`."""

    def play(peer: Peer) -> None:
        secured = wrapped(peer, "good")
        while True:
            dialect = secured.request()
            secured.send(CHUNKED + chunk(begun(dialect)))
            time.sleep(0.01)
            cut(secured)

    connected("tls", name, expected)(play)


def _raw(secured: Peer, data: bytes) -> None:
    """Bytes on the connection that TLS knows nothing of."""
    try:
        os.write(secured.sock.fileno(), data)
    except OSError as error:
        raise Gone from error


cuts("closed without close_notify in a body", lambda secured: secured.close())
cuts("plain bytes in a body", lambda secured: _raw(secured, b"HTTP/1.1 200 OK\r\n\r\n" * 10))
cuts("an alert in the clear in a body", lambda secured: _raw(secured, b"\x15\x03\x03\x00\x02\x02\x28"))
cuts("a handshake in the clear in a body", lambda secured: _raw(secured, b"\x16\x03\x03\x00\x04\0\0\0\0"))
cuts("a record of 64 KiB in a body", lambda secured: _raw(secured, b"\x17\x03\x03\xff\xff" + bytes(65535)))


@connected("tls", "a whole body without length, closed without close_notify", FAILED)
def _(peer: Peer) -> None:
    secured = wrapped(peer, "good")
    secured.request()
    secured.send(b"HTTP/1.1 500 X\r\n\r\n{}")
    secured.close()


@connected("tls", "records of one byte, for ever", LOST)
def _(peer: Peer) -> None:
    secured = wrapped(peer, "good")
    secured.send(CHUNKED + chunk(begun(secured.request())))
    while True:
        secured.send(b"5")
        secured.send(b"\r\n: x\n\n\r\n"[:2])
        secured.send(b": x\n\n\r\n")


# ---------------------------------------------------------------------------------------------- upgrades


def upgraded(peer: Peer) -> None:
    """Take the upgrade."""
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", peer.head())
    if key is None:
        raise Gone
    accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    peer.send(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")


def good(peer: Peer) -> None:
    """Takes upgrades, and answers in the dialect `responses`, whatever is asked."""
    upgraded(peer)
    while True:
        first, length = peer.exactly(2)
        length &= 127
        if length > 125:
            length = int.from_bytes(peer.exactly(2 if length == 126 else 8), "big")
        mask, payload = peer.exactly(4), peer.exactly(length)
        if first & 15 == 8:
            raise Gone
        if first & 15 == 9:
            peer.send(_server_frame(10, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))))
        elif first & 15 == 1:
            for event in events("responses"):
                peer.send(_server_frame(1, json.dumps(event).encode()))


def _server_frame(opcode: int, payload: bytes) -> bytes:
    length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return bytes([128 | opcode]) + length + payload


#: While upgrades fail, calls go over HTTPS: they are to be answered all the same.
for status in (100, 200, 204, 304, 400, 404, 407, 426, 500, 503, 599, 999):

    @connected("upgrade", f"refused with {status}", DONE, dialects=("responses",))
    def _(peer: Peer, status: int = status) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 %d X\r\nRetry-After: 99999999\r\nContent-Length: 3\r\n\r\nabc" % status)
        peer.close()


@connected("upgrade", "refused, with a body without an end", DONE, dialects=("responses",))
def _(peer: Peer) -> None:
    peer.head()
    peer.send(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.flood(chunk(b"x" * 60_000))


@connected("upgrade", "a head without an end", DONE, dialects=("responses",))
def _(peer: Peer) -> None:
    peer.head()
    peer.send(b"HTTP/1.1 101 X\r\n")
    peer.flood(b"X: y\r\n")


@connected("upgrade", "hints for ever", DONE, dialects=("responses",))
def _(peer: Peer) -> None:
    peer.head()
    peer.flood(b"HTTP/1.1 103 X\r\n\r\n")


@connected("upgrade", "taken, and closed", EITHER, dialects=("responses",))
def _(peer: Peer) -> None:
    upgraded(peer)
    peer.close(reset=True)


@connected("upgrade", "flapping: taken, refused, closed with 1011", EITHER, dialects=("responses",))
def _(peer: Peer) -> None:
    turn = int(time.monotonic() * 5) % 3
    if turn == 0:
        peer.head()
        peer.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
        return
    if turn == 1:
        good(peer)
    upgraded(peer)
    peer.read()
    peer.send(b"\x88\x02\x03\xf3")
