"""Attacks of an HTTP/2 server by its settings and windows, and by what it does not read."""

from __future__ import annotations

import itertools
import time

from tests.end_to_end.hostile_http2 import (
    DATA,
    END,
    HEADERS,
    PING,
    RST,
    SETTINGS,
    WINDOW,
    Session,
    asked,
    frame,
    number,
    settings,
)
from tests.end_to_end.hostile_server import DONE, EITHER, FAILED, LOST, Peer, begun, body, connected, events, sse


@connected("http2", "no stream at once, then some", DONE)
def _(peer: Peer) -> None:
    session = Session(peer, first=settings(streams=0, window=1 << 20))
    time.sleep(0.3)
    session.send(settings(streams=8))
    while True:
        session.answer(*session.request())


@connected("http2", "no stream, ever", FAILED)
def _(peer: Peer) -> None:
    session = Session(peer, first=settings(streams=0))
    session.request()


@asked("streams go to none and come back with each answer", EITHER)
def _(session: Session, sid: int, dialect: str) -> None:
    session.send(settings(streams=0))
    session.answer(sid, dialect)
    session.send(settings(streams=4))


for label, first in {
    "a window beyond all": settings(window=1 << 31),
    "frames of no size": settings(frame=0),
    "frames of 16 MiB": settings(frame=(1 << 24) - 1) + frame(0xB, 0, 0, bytes(1 << 20)),
    "pushing": settings(push=1),
    "half a setting": frame(SETTINGS, 0, 0, b"\0\1\0"),
    "10,000 settings": frame(SETTINGS, 0, 0, b"\0\x99\0\0\0\0" * 2700),
}.items():

    @asked(f"settings: {label}", EITHER, first=first)
    def _(session: Session, sid: int, dialect: str) -> None:
        session.answer(sid, dialect)


@connected("http2", "no settings, but HTTP/1.1", FAILED)
def _(peer: Peer) -> None:
    peer.answer("chat")
    peer.wait()


@connected("http2", "frames byte by byte", EITHER)
def _(peer: Peer) -> None:
    session = Session(peer)
    while True:
        sid, dialect = session.request()
        peer.drip(session.head(sid) + frame(DATA, END, sid, body(dialect)), 0.001, 3)


@connected("http2", "a window of one byte at a time", EITHER, prompt=3_000)
def _(peer: Peer) -> None:
    session = Session(peer, first=settings(window=0), open_windows=False)
    sids: dict[int, str] = {}
    while True:
        kind, flags, sid, _ = session.next()
        if kind == HEADERS:
            sids[sid] = session._dialects[sid]
        if kind in (HEADERS, DATA):
            if flags & END:
                session.answer(sid, sids.pop(sid))
            else:
                session.send(frame(WINDOW, 0, sid, number(1)), frame(WINDOW, 0, 0, number(1)))


@connected("http2", "no window, pings are answered", LOST, prompt=900_000)
def _(peer: Peer) -> None:
    session = Session(peer, first=settings(window=0), open_windows=False)
    while True:
        session.next()


@connected("http2", "never reads", FAILED, prompt=900_000)
def _(peer: Peer) -> None:
    Session(peer, first=settings(window=0x7FFFFFFF) + frame(WINDOW, 0, 0, number(0x7FFF0000)))
    time.sleep(60)


@connected("http2", "never reads, and asks to be answered", FAILED, prompt=900_000)
def _(peer: Peer) -> None:
    Session(peer, first=settings(window=0x7FFFFFFF) + frame(WINDOW, 0, 0, number(0x7FFF0000)))
    while True:
        peer.send(frame(PING, 0, 0, b"12345678") * 10)
        time.sleep(0.02)


@connected("http2", "never reads, and lives", FAILED, prompt=900_000)
def _(peer: Peer) -> None:
    Session(peer, first=settings(window=0x7FFFFFFF) + frame(WINDOW, 0, 0, number(0x7FFF0000)))
    while True:
        peer.send(frame(PING, 1, 0, b"12345678"))
        time.sleep(0.05)


@asked("words for ever, as fast as it goes", FAILED)
def _(session: Session, sid: int, dialect: str) -> None:
    word = sse(events(dialect)[{"responses": 2, "chat": 1, "messages": 3}[dialect]])
    session.send(session.head(sid), frame(DATA, 0, sid, begun(dialect)))
    session.peer.flood(frame(DATA, 0, sid, word * 100))


@asked("half a MiB after each stop", EITHER)
def _(session: Session, sid: int, dialect: str) -> None:
    if session.count % 4 == 0:
        session.answer(sid, dialect)
        return
    session.send(session.head(sid), frame(DATA, 0, sid, begun(dialect)))
    while True:
        kind, _, stopped, _ = session.next()
        if kind == RST and stopped == sid:
            break
        if kind == DATA:
            continue
        if kind == HEADERS:
            session.send(frame(RST, 0, stopped, number(7)))
    for _ in itertools.repeat(None, 32):
        session.send(frame(DATA, 0, sid, b": late\n\n" * 2000))
