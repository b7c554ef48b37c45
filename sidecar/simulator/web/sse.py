"""Server-sent events as a server writes them, each dialect in its own manner; and HTTP/1.1's chunks around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Framed: TypeAlias = Callable[[bytes], bytes]

#: A comment: every client skips it, and knows by it that the connection stands.
COMMENT: Final = b": keep-alive\n\n"
_TYPE: Final = b'{"type":"'
_START: Final = len(_TYPE)


def named(payload: bytes) -> bytes:
    """``event: TYPE`` and ``data:``; `payload` is an object whose first field is its type, or the event has no name."""
    if not payload.startswith(_TYPE):
        return b"data: %b\n\n" % payload
    return b"event: %b\ndata: %b\n\n" % (payload[_START : payload.index(b'"', _START)], payload)


def bare(payload: bytes) -> bytes:
    """``data:`` alone."""
    return b"data: %b\n\n" % payload


def chunk(data: bytes) -> bytes:
    """A chunk of an HTTP/1.1 body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _named_chunk(payload: bytes) -> bytes:
    return chunk(named(payload))


def _bare_chunk(payload: bytes) -> bytes:
    return chunk(bare(payload))


#: (dialect, chunked) -> what makes an event of a payload: one function each, as caches ask whether it is the same.
FRAMED: Final[dict[tuple[str, bool], Framed]] = {
    ("responses", False): named,
    ("responses", True): _named_chunk,
    ("messages", False): named,
    ("messages", True): _named_chunk,
    ("chat", False): bare,
    ("chat", True): _bare_chunk,
}
