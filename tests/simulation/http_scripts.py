"""What an upstream does with a request that came over HTTP, and cannot do over a WebSocket."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from tests.simulation.engine import Process
from tests.simulation.http_session import HttpSession
from tests.simulation.request import Request
from tests.simulation.scripts import BROKEN_EVENTS, Script, answers, stream


def _session(request: Request) -> HttpSession:
    assert isinstance(request.session, HttpSession)
    return request.session


def is_too_late(request: Request) -> bool:
    """Its connection has been idle for so long that a server may just have closed it; not twice in a row."""
    session = request.session
    if not isinstance(session, HttpSession) or session.headed:
        return False
    return session.was_idle(request) and not session.service.was_late


def too_late(request: Request, dice: random.Random) -> Process:
    """The server has closed an idle connection, and then comes a request: nobody reads it."""
    if is_too_late(request):
        service = request.session.service
        service.was_late = True
        service.world.counts["closed as it was asked"] += 1
        request.session.shut()
        return
    yield from answers(request, dice)


def slow_head(request: Request, dice: random.Random) -> Process:
    """The head comes late, and what it is the head of later still."""
    yield dice.choice([0.1, 0.4, 1.5])
    _session(request).begin()
    yield dice.choice([0.0, 0.05, 0.5])
    yield from stream(request, dice, 2)


def mumbles(request: Request, dice: random.Random) -> Process:
    """Stops in the middle, or before the beginning; comments go on as keep-alives."""
    if dice.random() < 0.5:
        request.send(request.created())
        request.content(request.delta())
    for _ in range(60):
        request.send(request.session.keep_alive())
        yield 0.05


def unended(request: Request, dice: random.Random) -> Process:
    """A proper end of the exchange, and none of the answer: `[DONE]` at most."""
    yield 0.01
    request.send(request.created())
    for _ in range(dice.randrange(4)):
        request.content(request.delta())
        yield dice.choice([0.0, 0.01])
    session = _session(request)
    request.ends("failed", session.event(b"[DONE]") if dice.random() < 0.5 else session.keep_alive())


def no_last_chunk(request: Request, dice: random.Random) -> Process:
    """All of an answer, and no proper end of the exchange."""
    yield 0.01
    request.content(request.created(), request.delta())
    yield 0.005
    request.done(usage=dice.random() < 0.5)
    yield dice.choice([0.0, 0.0, 0.05, 2.0])
    request.session.shut(dice.choice(["eof", "reset"]))


def headers_only(request: Request, dice: random.Random) -> Process:
    """A head, and nothing that it is the head of."""
    yield 0.005
    _session(request).begin()
    yield dice.choice([0.0, 0.02, 0.2])
    if dice.random() < 0.3:
        request.ends("failed", request.session.keep_alive())
    else:
        request.session.shut(dice.choice(["eof", "reset"]))


def garbled(request: Request, dice: random.Random) -> Process:
    """Events, or chunks, that cannot be such."""
    yield 0.005
    request.send(request.created())
    if dice.random() < 0.5:
        request.content(request.delta())
        yield 0.01
    session = _session(request)
    if dice.random() < 0.5:
        request.ends("failed", *(session.event(broken) for broken in dice.sample(BROKEN_EVENTS, 3)))
    else:
        request.junk = True  # what follows a chunk that is none may be anything
        session.send(
            dice.choice([b"zz\r\n", b"-5\r\nabc", b"\r\n\r\n", b"5\r\nabcdefgh\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
        )
        yield 0.01
        session.shut()


def surplus(request: Request, dice: random.Random) -> Process:
    """An answer, and behind its end what nobody asked for."""
    yield from answers(request, dice)
    session = _session(request)
    session.script_over(request)
    yield dice.choice([0.0, 0.0, 0.01])
    session.send(dice.choice([b"\r\n", b"0\r\n\r\n", b"data: {}\n\n"]))


def page(request: Request, dice: random.Random) -> Process:
    """Not an event stream, nor an answer in any other form."""
    yield 0.01
    kind, body = dice.choice(
        [("text/html", b"<html>Welcome</html>"), ("application/json", b"{}"), ("text/plain", b""),
         ("application/json", b'{"detail":"later"}')]
    )  # fmt: skip
    request.over = True
    _session(request).whole(body, kind, lambda: request.came("failed"))


def _unstreamed(request: Request, dice: random.Random) -> bytes:
    for _ in range(dice.randrange(1, 4)):
        request.delta()
    text = "".join(request.pieces)
    if request.session.service.responses:
        part = {"type": "output_text", "text": text}
        return msgspec.json.encode(
            {
                "id": f"r{request.number}",
                "object": "response",
                "status": "completed",
                "model": "m-1",
                "output": [{"type": "message", "id": "i1", "role": "assistant", "content": [part]}],
                "usage": {"input_tokens": 3, "output_tokens": 2},
            }
        )
    message = {"role": "assistant", "content": text}
    return msgspec.json.encode(
        {
            "id": request.name,
            "object": "chat.completion",
            "model": "m-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }
    )


def whole(request: Request, dice: random.Random) -> Process:
    """A proper answer that is not streamed, unless its head has said that it is."""
    yield dice.choice([0.01, 0.1])
    if _session(request).headed:
        yield from stream(request, dice, 2)
        return
    body = _unstreamed(request, dice)
    request.over = request.finished = True
    _session(request).whole(body, "application/json", request.all_came)


def cut_whole(request: Request, dice: random.Random) -> Process:
    """The same, cut before its last bytes."""
    yield 0.01
    _session(request).whole(_unstreamed(request, dice), "application/json", lambda: None, cut=dice.choice([1, 2, 20]))
    request.session.shut(dice.choice(["eof", "reset"]))


def spends(request: Request, dice: random.Random) -> Process:
    """A proper answer; its head says that nothing is left of the rate for a while."""
    yield 0.01
    what = dice.choice(["requests", "tokens"])
    _session(request).begin(
        {f"x-ratelimit-remaining-{what}": "0", f"x-ratelimit-reset-{what}": dice.choice(["50ms", "0.3", "1s", "0m1s"])}
    )
    yield from stream(request, dice, 2)


def parts(request: Request, dice: random.Random) -> Process:
    """A proper answer, and the last on this connection."""
    request.session.close(1001, "ignored")
    yield from answers(request, dice)


SCRIPTS: Final[dict[str, Script]] = {
    script.__name__: script
    for script in (
        too_late, slow_head, mumbles, unended, no_last_chunk, headers_only, garbled, surplus, page, whole, cut_whole,
        spends, parts,
    )
}  # fmt: skip
