"""What an upstream does with a request, whatever way it came: scripts.

A script is a process of the engine: it sends frames of its request and yields how long it pauses.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeAlias

from sidecar.transport.frames import BINARY, TEXT
from tests.fakes.server_frames import encode_server_frame
from tests.simulation.engine import Process
from tests.simulation.request import Request

Script: TypeAlias = Callable[[Request, random.Random], Process]

#: Close codes, and how an attempt that one ends is judged (`core.classifier`).
CLOSES: Final = {
    1000: "failed", 1001: "ignored", 1008: "auth", 1009: "rejected", 1011: "failed", 1012: "ignored", 1013: "throttled",
    4402: "rejected", 4429: "throttled", 4500: "failed",
}  # fmt: skip


def answers(request: Request, dice: random.Random) -> Process:
    """A proper answer, in time."""
    yield dice.uniform(0.002, 0.03)
    yield from stream(request, dice, dice.randrange(1, 6))


def slow(request: Request, dice: random.Random) -> Process:
    """A proper answer after a while."""
    yield dice.choice([0.05, 0.2, 0.5, 1.2, 3.0]) * dice.uniform(0.5, 1.5)
    yield from stream(request, dice, dice.randrange(1, 4))


def drips(request: Request, dice: random.Random) -> Process:
    """A proper answer, its pieces far apart."""
    yield 0.01
    request.send(request.created())
    for _ in range(dice.randrange(2, 8)):
        request.content(request.delta())
        yield dice.choice([0.01, 0.05, 0.1, 0.15])
    request.done()


def floods(request: Request, dice: random.Random) -> Process:
    """A long answer, fast."""
    yield 0.005
    request.send(request.created())
    for _ in range(dice.randrange(3, 10)):
        request.content(*[request.delta() for _ in range(dice.randrange(5, 40))])
        yield 0.001
    request.done()


def empty(request: Request, dice: random.Random) -> Process:
    """A proper end, and no text."""
    yield dice.uniform(0.002, 0.05)
    request.send(request.created())
    request.done()


def stream(request: Request, dice: random.Random, pieces: int) -> Process:
    """So many pieces, and the end."""
    if request.session.service.words.begins or dice.random() < 0.7:  # the role chunk of a chat may be missing
        request.send(request.created())
    for left in range(pieces, 0, -1):
        if left == 1:
            whole = dice.random() < 0.85
            request.done(request.delta(), whole=whole)
            if not whole and request.session.service.words.afterwards:
                yield 0.1  # the usage of a chat answer comes late, or (half of the time) never
                if dice.random() < 0.5:
                    request.send(request.after())
        else:
            request.content(request.delta())
            yield dice.choice([0.0, 0.001, 0.004, 0.02])


def silent(request: Request, dice: random.Random) -> Process:
    """Takes the request and never says a word."""
    yield 0.0


def stalls(request: Request, dice: random.Random) -> Process:
    """Stops in the middle; keep-alives and metadata may go on."""
    request.send(request.created())
    for _ in range(dice.randrange(4)):
        yield 0.005
        request.content(request.delta())
    for _ in range(40 if dice.random() < 0.5 else 0):
        yield 0.05
        request.send(request.session.keep_alive(request))
        progress = request.session.service.words.progress()
        if progress:
            request.send(request.frame(progress))


def begins(request: Request, dice: random.Random) -> Process:
    """Nothing, or an opening, or some content."""
    yield dice.choice([0.0, 0.001, 0.01, 0.1])
    kind = dice.random()
    if kind < 0.3:
        request.send(request.created())
    elif kind < 0.65:
        if kind < 0.6:
            request.send(request.created())
        else:
            request.junk = True  # content before its beginning
        for _ in range(dice.randrange(1, 4)):
            request.content(request.delta())
            yield 0.002


def errs(request: Request, dice: random.Random) -> Process:
    """The upstream's own failure."""
    yield from begins(request, dice)
    request.fails("failed", dice.choice([500, 502, 503, 504, 529, None]))


def throttles(request: Request, dice: random.Random) -> Process:
    """429, with or without Retry-After."""
    yield dice.choice([0.0, 0.001, 0.02])
    after = dice.choice([None, None, 0.0, 0.05, 0.3, 1.0, 9.0])
    request.fails("throttled", 429, "rate_limit_exceeded", after)


def refuses(request: Request, dice: random.Random) -> Process:
    """Something wrong with the call."""
    yield from begins(request, dice)
    status, code = dice.choice(
        [(400, None), (404, None), (413, None), (400, "context_length_exceeded"), (None, "content_filter"),
         (422, "invalid_prompt")]
    )  # fmt: skip
    request.fails("rejected", status, code)


def moves_on(request: Request, dice: random.Random) -> Process:
    """Something wrong with this target: another may do."""
    yield dice.uniform(0, 0.02)
    request.fails("rejected", *dice.choice([(402, None), (404, "model_not_found"), (429, "insufficient_quota")]))


def unauthorized(request: Request, dice: random.Random) -> Process:
    """The credential is refused in the middle of things."""
    yield dice.uniform(0, 0.02)
    request.fails("auth", 401, "invalid_api_key")


def expires(request: Request, dice: random.Random) -> Process:
    """The connection's time is over, by an error frame."""
    yield from begins(request, dice)
    request.ends("ignored", request.error(None, "websocket_connection_limit_reached"))


def closes(request: Request, dice: random.Random) -> Process:
    """A Close frame in the middle."""
    yield from begins(request, dice)
    code = dice.choice(sorted(CLOSES))
    request.session.close(code, CLOSES[code])


def cuts(request: Request, dice: random.Random) -> Process:
    """The end of TCP in the middle."""
    yield from begins(request, dice)
    request.session.cut(request, dice.choice(["eof", "reset"]))


def vanishes(request: Request, dice: random.Random) -> Process:
    """Half-open TCP in the middle."""
    yield from begins(request, dice)
    request.session.link.go_silent()


def junk(request: Request, dice: random.Random) -> Process:
    """Frames in any order, several in one read: duplicates, late ones, unknown ones, broken ones, no end."""
    request.junk = True
    session = request.session
    for _ in range(dice.randrange(1, 10)):
        frames = []
        for _ in range(dice.randrange(1, 4)):
            kind = dice.randrange(16)
            if kind < 3:
                frames.append(request.created())
            elif kind < 8:
                frames.append(request.delta())
            elif kind < 10:
                frames.append(request.finish(dice.choice(["stop", "length"])))
            elif kind == 10:
                frames.append(request.after())
            elif kind == 11:
                frames.append(request.error(500))
            elif kind == 12:
                frames.append(session.framed(request, b'{"type":"unheard.of"}'))
            elif kind == 13:
                frames.append(session.framed(request, b'{"type":"error","error":{"message":"all"}}'))
            elif kind == 14 and dice.random() < 0.4:
                if session.by_exchange:
                    frames.append(session.framed(request, dice.choice(BROKEN_EVENTS)))
                else:
                    frames.append(dice.choice(BROKEN))
            else:
                frames.append(session.keep_alive(request))
        request.content(*frames)
        yield dice.choice([0.0, 0.001, 0.05, 0.2])
    kind = dice.random()
    if kind < 0.3:
        session.cut(request)
    elif kind < 0.7:
        request.over = True  # over HTTP: a proper end of the exchange


#: Bytes after which a connection cannot be trusted any more.
BROKEN: Final = [
    encode_server_frame(TEXT, b"{"),
    encode_server_frame(TEXT, b"\xff\xfe"),
    encode_server_frame(BINARY, b"\0"),
    b"\x81\x83abcdxyz",  # masked by a server
    b"\x83\x00",  # a reserved opcode
    b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",  # a giant frame
    b"\x09\x00",  # a fragmented ping
    b"\x80\x00",  # a continuation of nothing
]

#: Events that make an answer one that cannot be trusted, or say nothing.
BROKEN_EVENTS: Final = [b"{", b"[DONE]", b"\xff\xfe", b"null", b"[]", b'{"choices":1,"type":7}']
