"""What an upstream does with a request that came over HTTP/2, and cannot do over HTTP/1.1."""

from __future__ import annotations

import random
from typing import Final

from h2.errors import ErrorCodes

from tests.simulation.engine import Process
from tests.simulation.exchanges import exchange_of
from tests.simulation.http2_leaving import ANY_STREAM
from tests.simulation.http2_session import Http2Session
from tests.simulation.request import Request
from tests.simulation.scripts import Script, answers, begins, stream


def _session(request: Request) -> Http2Session:
    assert isinstance(request.session, Http2Session)
    return request.session


def _once(request: Request) -> bool:
    """Whether it may say that it has not looked at this: not where its head was sent, and not twice without an answer
    between, which is a fault.
    """
    service = request.session.service
    if service.was_late or _session(request).headed(request):
        return False
    service.was_late = True
    return True


def resets(request: Request, dice: random.Random) -> Process:
    """RST_STREAM: before the head, behind it, or mid answer."""
    kind = dice.random()
    if kind < 0.3:
        yield dice.choice([0.0, 0.01])
    elif kind < 0.5:
        _session(request).begin(request)
        yield dice.choice([0.0, 0.01])
    else:
        yield from begins(request, dice)
    headed = _session(request).headed(request)
    code = dice.choice(
        [ErrorCodes.INTERNAL_ERROR, ErrorCodes.CANCEL, ErrorCodes.NO_ERROR, ErrorCodes.ENHANCE_YOUR_CALM,
         ErrorCodes.REFUSED_STREAM]
    )  # fmt: skip
    unseen = code == ErrorCodes.REFUSED_STREAM and not headed
    _session(request).reset(request, code, "ignored" if unseen else "cut")


def ponders(request: Request, dice: random.Random) -> Process:
    """A proper answer, in time, whose head takes a while: others are asked beside it."""
    yield dice.uniform(0.05, 0.12)
    yield from stream(request, dice, 2)


def refuses_stream(request: Request, dice: random.Random) -> Process:
    """REFUSED_STREAM before any head, as a server does that has enough to do: not looked at."""
    if _once(request):
        yield dice.choice([0.0, 0.0, 0.02])
        _session(request).reset(request, ErrorCodes.REFUSED_STREAM, "ignored")
        return
    yield from answers(request, dice)


def reset_behind(request: Request, dice: random.Random) -> Process:
    """A whole answer, and then RST_STREAM NO_ERROR in place of the stream's end, or behind it."""
    yield 0.01
    request.content(request.created(), request.delta())
    yield dice.choice([0.0, 0.01])
    request.done(request.delta())
    session = _session(request)
    if dice.random() < 0.5:
        session.script_over(request)
        session.send(b"\0\0\4\3\0" + exchange_of(request).sid.to_bytes(4, "big") + bytes(4))
    else:
        session.reset(request, ErrorCodes.NO_ERROR, "cut")


def half_said(request: Request, dice: random.Random) -> Process:
    """The text, and the reason why it stopped, and then the stream is reset: only the usage is missing."""
    yield 0.01
    request.content(request.created(), request.delta())
    request.done(request.delta(), whole=False)
    yield dice.choice([0.0, 0.01])
    _session(request).reset(request, dice.choice([ErrorCodes.NO_ERROR, ErrorCodes.INTERNAL_ERROR]), "cut")


def leaves(request: Request, dice: random.Random) -> Process:
    """GOAWAY, once or twice, and all that it has looked at is answered."""
    session = _session(request)
    if dice.random() < 0.5:
        session.go_away(ANY_STREAM)
        yield dice.choice([0.0, 0.02, 0.1])  # as long as a proper answer ponders at most
        if dice.random() < 0.2:
            session.go_away(ANY_STREAM)
    session.close(1001, "ignored")
    yield from stream(request, dice, 3)


def leaves_unlooked(request: Request, dice: random.Random) -> Process:
    """GOAWAY of a server that has not looked at this request, nor at some before it, whatever they were told."""
    if not _once(request):
        yield from answers(request, dice)
        return
    yield dice.choice([0.0, 0.02, 0.05])
    session = _session(request)
    back = dice.choice([1, 3, ANY_STREAM, ANY_STREAM, ANY_STREAM])
    leaving = [session]
    if dice.random() < 0.7:  # the whole server does
        leaving = [other for other in session.service.standing if isinstance(other, Http2Session) and other.requests]
    for each in leaving:
        each.leaves_off(back)
    yield 0.0
    if session.runs(request):  # one behind it has its head already, so this one was looked at, too
        yield from stream(request, dice, 2)


def bursts(request: Request, dice: random.Random) -> Process:
    """GOAWAY with an error: some are not looked at, the others are cut a moment later."""
    session = _session(request)
    yield dice.choice([0.0, 0.01])
    last = max(0, exchange_of(request).sid - dice.choice([-100, 1, 3]))
    session.go_away(last, dice.choice([ErrorCodes.INTERNAL_ERROR, ErrorCodes.ENHANCE_YOUR_CALM]))
    yield dice.choice([0.0, 0.01, 0.1])
    session.shut(dice.choice(["eof", "reset"]))


SCRIPTS: Final[dict[str, Script]] = {
    script.__name__: script
    for script in (resets, ponders, refuses_stream, reset_behind, half_said, leaves, leaves_unlooked, bursts)
}
