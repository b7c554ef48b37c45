"""What an upstream does with a request that came over HTTP, and cannot do over a WebSocket."""

from __future__ import annotations

import random
from typing import Final

from tests.simulation.engine import Process
from tests.simulation.exchanges import ExchangeSession
from tests.simulation.request import Request
from tests.simulation.scripts import BROKEN_EVENTS, Script, answers, stream
from tests.simulation.words import encoded


def _session(request: Request) -> ExchangeSession:
    assert isinstance(request.session, ExchangeSession)
    return request.session


def is_too_late(request: Request) -> bool:
    """Its connection has been idle for so long that a server may just have closed it; not twice in a row."""
    session = request.session
    if not isinstance(session, ExchangeSession) or session.headed(request):
        return False
    return session.was_idle(request) and not session.service.was_late


def too_late(request: Request, dice: random.Random) -> Process:
    """The server has closed an idle connection, and then comes a request: nobody reads it."""
    if is_too_late(request):
        service = request.session.service
        service.was_late = True
        service.world.counts["closed as it was asked"] += 1
        _session(request).closes_as_asked(request)
        return
    yield from answers(request, dice)


def slow_head(request: Request, dice: random.Random) -> Process:
    """The head comes late, and what it is the head of later still."""
    yield dice.choice([0.1, 0.4, 1.5])
    _session(request).begin(request)
    yield dice.choice([0.0, 0.05, 0.5])
    yield from stream(request, dice, 2)


def mumbles(request: Request, dice: random.Random) -> Process:
    """Stops in the middle, or before the beginning; comments go on as keep-alives."""
    if dice.random() < 0.5:
        request.send(request.created())
        request.content(request.delta())
    for _ in range(60):
        request.send(request.session.keep_alive(request))
        yield 0.05


def unended(request: Request, dice: random.Random) -> Process:
    """A proper end of the exchange, and none of the answer: `[DONE]` at most."""
    yield 0.01
    request.send(request.created())
    for _ in range(dice.randrange(4)):
        request.content(request.delta())
        yield dice.choice([0.0, 0.01])
    session = _session(request)
    request.ends("failed", session.event(request, b"[DONE]") if dice.random() < 0.5 else session.keep_alive(request))


def no_last_chunk(request: Request, dice: random.Random) -> Process:
    """All of an answer, and no proper end of the exchange."""
    yield 0.01
    request.content(request.created(), request.delta())
    yield 0.005
    request.done(whole=dice.random() < 0.5)
    yield dice.choice([0.0, 0.0, 0.05, 2.0])
    request.session.cut(request, dice.choice(["eof", "reset"]))


def headers_only(request: Request, dice: random.Random) -> Process:
    """A head, and nothing that it is the head of."""
    yield 0.005
    _session(request).begin(request)
    yield dice.choice([0.0, 0.02, 0.2])
    if dice.random() < 0.3:
        request.ends("failed", request.session.keep_alive(request))
    else:
        request.session.cut(request, dice.choice(["eof", "reset"]))


def garbled(request: Request, dice: random.Random) -> Process:
    """Events, or chunks, that cannot be such."""
    yield 0.005
    request.send(request.created())
    if dice.random() < 0.5:
        request.content(request.delta())
        yield 0.01
    session = _session(request)
    if dice.random() < 0.5:
        request.ends("failed", *(session.event(request, broken) for broken in dice.sample(BROKEN_EVENTS, 3)))
    else:
        request.junk = True  # what follows a chunk that is none may be anything
        session.garble(dice)
        yield 0.01
        session.shut()


def surplus(request: Request, dice: random.Random) -> Process:
    """An answer, and behind its end what nobody asked for."""
    yield from answers(request, dice)
    session = _session(request)
    session.script_over(request)
    yield dice.choice([0.0, 0.0, 0.01])
    session.add(request, dice)


def page(request: Request, dice: random.Random) -> Process:
    """Not an event stream, nor an answer in any other form."""
    yield 0.01
    kind, body = dice.choice(
        [("text/html", b"<html>Welcome</html>"), ("application/json", b"{}"), ("text/plain", b""),
         ("application/json", b'{"detail":"later"}')]
    )  # fmt: skip
    request.over = True
    _session(request).whole(request, body, kind, lambda: request.came("failed"))


def _unstreamed(request: Request, dice: random.Random) -> bytes:
    for _ in range(dice.randrange(1, 4)):
        request.delta()
    return encoded(request.session.service.words.whole(request, "".join(request.pieces)))


def whole(request: Request, dice: random.Random) -> Process:
    """A proper answer that is not streamed, unless its head has said that it is."""
    yield dice.choice([0.01, 0.1])
    if _session(request).headed(request):
        yield from stream(request, dice, 2)
        return
    body = _unstreamed(request, dice)
    request.over = request.finished = True
    _session(request).whole(request, body, "application/json", request.all_came)


def cut_whole(request: Request, dice: random.Random) -> Process:
    """The same, cut before its last bytes."""
    yield 0.01
    _session(request).whole(
        request, _unstreamed(request, dice), "application/json", lambda: None, cut=dice.choice([1, 2, 20])
    )
    request.session.cut(request, dice.choice(["eof", "reset"]))


def refuses_slowly(request: Request, dice: random.Random) -> Process:
    """A refusal whose body does not end: its status says enough."""
    yield dice.choice([0.0, 0.02])
    _session(request).refuses_without_end(
        request, *dice.choice([("failed", 503), ("throttled", 429), ("rejected", 400)])
    )
    yield dice.choice([0.5, 3.0])
    request.session.cut(request)


def spends(request: Request, dice: random.Random) -> Process:
    """A proper answer; its head says that nothing is left of the rate for a while."""
    yield 0.01
    what = dice.choice(["requests", "tokens"])
    _session(request).begin(
        request,
        {f"x-ratelimit-remaining-{what}": "0", f"x-ratelimit-reset-{what}": dice.choice(["50ms", "0.3", "1s", "0m1s"])},
    )
    yield from stream(request, dice, 2)


def parts(request: Request, dice: random.Random) -> Process:
    """A proper answer, and the last on this connection."""
    request.session.close(1001, "ignored")
    yield from answers(request, dice)


SCRIPTS: Final[dict[str, Script]] = {
    script.__name__: script
    for script in (
        too_late, slow_head, mumbles, unended, no_last_chunk, headers_only, garbled, surplus, page, refuses_slowly,
        whole, cut_whole, spends, parts,
    )
}  # fmt: skip
