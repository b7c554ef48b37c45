"""Attacks of an HTTP/2 server: floods of frames, windows, streams, heads. Frames by hand, for no library says these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpack import Decoder, Encoder

from tests.end_to_end.hostile_server import (
    EITHER,
    FAILED,
    FOREIGN,
    LOST,
    Gone,
    Peer,
    begun,
    body,
    connected,
)

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END, END_HEAD, PADDED = 1, 4, 8
TABLE, PUSHING, STREAMS, WINDOW_SIZE, FRAME_SIZE, HEAD_LIST = range(1, 7)
GOOD = [(":status", "200"), ("content-type", "text/event-stream")]


def frame(kind: int, flags: int, sid: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + sid.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    """SETTINGS of these; names as above, in small."""
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "heads": 6}
    said = b"".join(names[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(SETTINGS, 0, 0, said)


def number(value: int) -> bytes:
    """32 bits."""
    return value.to_bytes(4, "big")


class Session:
    """One connection, from the preface on; answers settings and pings, and hands over whole requests."""

    def __init__(self, peer: Peer, *, first: bytes = b"", open_windows: bool = True) -> None:
        self.peer, self.send, self._open = peer, peer.send, open_windows
        self._encoder, self._decoder = Encoder(), Decoder()
        self._dialects: dict[int, str] = {}
        self.count = 0
        if peer.exactly(24) != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
            raise Gone
        peer.send(first or settings(window=1 << 20))

    def next(self) -> tuple[int, int, int, bytes]:
        """A frame: type, flags, stream, payload; what must be answered is."""
        head = self.peer.exactly(9)
        payload = self.peer.exactly(int.from_bytes(head[:3], "big"))
        kind, flags, sid = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == SETTINGS and not flags:
            self.send(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags:
            self.send(frame(PING, 1, 0, payload))
        elif kind == DATA and payload and self._open:
            self.send(frame(WINDOW, 0, 0, number(len(payload))), frame(WINDOW, 0, sid, number(len(payload))))
        elif kind == HEADERS:
            path = dict(self._decoder.decode(payload))[":path"]
            self._dialects[sid] = path.strip("/").split("/")[0]
        return kind, flags, sid, payload

    def request(self) -> tuple[int, str]:
        """A whole request: stream, dialect."""
        while True:
            kind, flags, sid, _ = self.next()
            if kind in (DATA, HEADERS) and flags & END:
                self.count += 1
                return sid, self._dialects.pop(sid)

    def opened(self) -> tuple[int, str]:
        """A request that has begun."""
        while True:
            kind, _, sid, _ = self.next()
            if kind == HEADERS:
                return sid, self._dialects[sid]

    def head(self, sid: int, fields: list[tuple[str, str]] = GOOD, flags: int = END_HEAD) -> bytes:
        """A HEADERS frame."""
        return frame(HEADERS, flags, sid, self._encoder.encode(fields))

    def answer(self, sid: int, dialect: str) -> None:
        """As a good server does."""
        self.send(self.head(sid), frame(DATA, END, sid, body(dialect)))


def good(peer: Peer) -> None:
    """Answers each request."""
    session = Session(peer)
    while True:
        session.answer(*session.request())


def asked(
    name: str, expected: str, *, first: bytes = b"", open_windows: bool = True, **more: Any
) -> Callable[[Callable[[Session, int, str], None]], None]:
    """An attack on each request."""

    def note(answer: Callable[[Session, int, str], None]) -> None:
        def play(peer: Peer) -> None:
            session = Session(peer, first=first, open_windows=open_windows)
            while True:
                answer(session, *session.request())

        connected("http2", name, expected, **more)(play)

    return note


def floods(name: str, make: Callable[[int], bytes], *, expected: str = LOST) -> None:
    """An answer that begins well, and then these frames for ever; `make` is told the stream."""

    @asked(name, expected)
    def _(session: Session, sid: int, dialect: str) -> None:
        session.send(session.head(sid), frame(DATA, 0, sid, begun(dialect)))
        session.peer.flood(make(sid))


# ---------------------------------------------------------------------------------------------- floods

floods("SETTINGS for ever", lambda sid: frame(SETTINGS, 0, 0))
floods("SETTINGS that change the window for ever", lambda sid: settings(window=1) + settings(window=1 << 30))
floods("SETTINGS that change the table for ever", lambda sid: settings(table=0) + settings(table=1 << 20))
floods("PING for ever", lambda sid: frame(PING, 0, 0, b"12345678"))
floods("answers to no PING for ever", lambda sid: frame(PING, 1, 0, b"12345678"))
floods("empty DATA for ever", lambda sid: frame(DATA, 0, sid))
floods("padded empty DATA for ever", lambda sid: frame(DATA, PADDED, sid, b"\xff" + bytes(255)))
floods("padded comments for ever", lambda sid: frame(DATA, PADDED, sid, b"\xc8: ping\n\n" + bytes(200)))
floods("DATA of one byte for ever", lambda sid: frame(DATA, 0, sid, b":") + frame(DATA, 0, sid, b"\n"))
floods("WINDOW_UPDATE for ever", lambda sid: frame(WINDOW, 0, sid, number(1)))
floods("windows that overflow", lambda sid: frame(WINDOW, 0, 0, number(0x7FFFFFFF)))
floods("PRIORITY for ever", lambda sid: frame(PRIORITY, 0, sid, number(0) + b"\x10"))
floods("PRIORITY of streams to come for ever", lambda sid: b"".join(
    frame(PRIORITY, 0, 2 * n + 1001, number(2 * n + 999) + b"\x10") for n in range(2000)))  # fmt: skip
floods("frames of nobody's kind for ever", lambda sid: frame(0xB, 0, sid, b"x" * 100))
floods("heads of hints for ever", lambda sid: frame(HEADERS, END_HEAD, sid, Encoder().encode([(":status", "103")])))
floods("GOAWAY for ever", lambda sid: frame(GOAWAY, 0, 0, number(0x7FFFFFFF) + number(0)))
floods("DATA for a stream that is over, for ever", lambda sid: frame(RST, 0, sid, number(8)) + b"".join(
    frame(DATA, 0, sid, b"x" * 1000) for _ in range(100)), expected=FAILED)  # fmt: skip
floods("unknown lines for ever, in DATA", lambda sid: frame(DATA, 0, sid, b"x\n" * 8000))


@asked("CONTINUATION for ever", LOST)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(HEADERS, 0, sid, Encoder().encode(GOOD)))
    session.peer.flood(frame(CONTINUATION, 0, sid, b"\x00\x01a\x01b" * 100))


@asked("empty CONTINUATION for ever", LOST)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(HEADERS, 0, sid, Encoder().encode(GOOD)))
    session.peer.flood(frame(CONTINUATION, 0, sid))


@asked("an HPACK bomb: one field of 4 KB, 15,000 times", LOST)
def _(session: Session, sid: int, dialect: str) -> None:
    packed = Encoder().encode([*GOOD, ("x-bomb", "b" * 3900)])
    session.send(frame(HEADERS, 0, sid, packed), frame(CONTINUATION, END_HEAD, sid, b"\xbe" * 15_000))
    session.peer.wait()


@asked("HPACK bombs below the limit, one after the other", EITHER)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(session.head(sid, [*GOOD, *(("a", "") for _ in range(1900))]))
    session.send(frame(DATA, END, sid, body(dialect)))


@asked("a reference to nowhere in HPACK's table", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(HEADERS, END_HEAD, sid, b"\xff\xff\xff\xff\x7f"))
    session.peer.wait()


# ---------------------------------------------------------------------------------------------- streams


@asked("REFUSED_STREAM to each request", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(RST, 0, sid, number(7)))


@asked("resets of all kinds", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(RST, 0, sid, number((0, 1, 2, 8, 0xD, 0xFFFFFFFF)[session.count % 6])))


@asked("reset after two words", LOST)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(session.head(sid), frame(DATA, 0, sid, begun(dialect)), frame(RST, 0, sid, number(0)))


@asked("the end of the stream after two words", LOST)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(session.head(sid), frame(DATA, END, sid, begun(dialect)))


@asked("GOAWAY that has seen nothing", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(GOAWAY, 0, 0, number(0) + number(0)))


@asked("GOAWAY before each answer", EITHER)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(GOAWAY, 0, 0, number(sid) + number(0)))
    session.answer(sid, dialect)


@connected("http2", "GOAWAY at once", FAILED)
def _(peer: Peer) -> None:
    session = Session(peer)
    session.send(frame(GOAWAY, 0, 0, number(0) + number(11) + b"calm down" * 1000))
    session.request()


@asked("PUSH_PROMISE", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")]
    session.send(frame(PUSH, END_HEAD, sid, number(2) + Encoder().encode(fields)))
    session.answer(sid, dialect)


@asked("two answers on one stream", EITHER)
def _(session: Session, sid: int, dialect: str) -> None:
    session.answer(sid, dialect)
    session.send(session.head(sid), frame(DATA, END, sid, body(dialect, (FOREIGN,))))


@asked("answers to nobody", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(session.head(sid + 100), frame(DATA, END, sid + 100, body(dialect, (FOREIGN,))))
    session.answer(sid, dialect)


@asked("DATA before the head", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(frame(DATA, 0, sid, body(dialect)), session.head(sid), frame(DATA, END, sid))


for label, fields in {
    "no status": [("content-type", "text/event-stream")],
    "two statuses": [(":status", "200"), (":status", "200")],
    "a status after a field": [("a", "b"), (":status", "200")],
    "capitals in a name": [(":status", "200"), ("Content-Type", "text/event-stream")],
    "a line end in a value": [(":status", "200"), ("a", "b\r\nc: d")],
    "an upgrade": [(":status", "200"), ("connection", "upgrade"), ("transfer-encoding", "chunked")],
    "a length that lies": [*GOOD, ("content-length", "5")],
    "a body that is packed": [*GOOD, ("content-encoding", "gzip")],
    "status 101": [(":status", "101")],
}.items():

    @asked(f"a head with {label}", FAILED)
    def _(session: Session, sid: int, dialect: str, fields: list[tuple[str, str]] = fields) -> None:
        session.send(session.head(sid, fields), frame(DATA, END, sid, body(dialect)))
        if session.count > 100:
            raise Gone


@asked("trailers, and a body after them", EITHER)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(session.head(sid), frame(DATA, 0, sid, body(dialect)))
    session.send(session.head(sid, [("x", "y")], END | END_HEAD), frame(DATA, END, sid, b"data: late\n\n"))


@connected("http2", "an answer before the request is complete", EITHER, prompt=900_000)
def _(peer: Peer) -> None:
    session = Session(peer)
    while True:
        session.answer(*session.opened())
