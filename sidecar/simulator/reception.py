"""What becomes of a connection that was accepted: TLS, then WebSocket, HTTP, a command, or what befalls it instead."""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final, Literal, Protocol

import h11
import trio

from sidecar.simulator import control, door
from sidecar.simulator.behaviour import known, steer
from sidecar.simulator.calls import Speaking
from sidecar.simulator.counters import Note, Way
from sidecar.simulator.link import Link
from sidecar.simulator.session import Session
from sidecar.simulator.toxics import Line, Toxic, line_of
from sidecar.simulator.web.http1 import Http1
from sidecar.simulator.web.http2 import Http2
from sidecar.simulator.web.talk import Host, Talk

_DOOR_TIMEOUT: Final = 15.0
_EXPIRY: Final = 10.0
_OPEN: Final = ("ok", "deaf", "expiry", "expiring")  # what comes after a handshake that went well


class Reception(Host, Protocol):
    """What is asked of the relay here. `relay.Relay` implements it."""

    tls: ssl.SSLContext | None
    compression: bool
    http_versions: Collection[str]
    links: dict[Link, trio.CancelScope]

    def remember(self, one: Speaking) -> None:
        """It is past the door: to be killed and closed."""
        ...


async def welcome(relay: Reception, link: Link) -> None:
    """Serve one connection to its end; never raises but `Cancelled`."""
    counters = relay.counters
    counters.accepted += 1
    counters.standing += 1
    link.number = counters.accepted
    refuse = relay.scenario == "refuse"
    scope = trio.CancelScope()
    relay.links[link] = scope
    try:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                if refuse:
                    relay.refused("refuse")
                    _note(relay, "connect", link, "", "refuse")
                else:
                    try:
                        await _let_in(relay, link)
                    except (OSError, trio.ClosedResourceError):
                        pass
                with trio.move_on_after(1.0):
                    await link.drained(below=1)
                nursery.cancel_scope.cancel()
    finally:
        relay.links.pop(link, None)
        counters.standing -= 1
        link.close()


async def _let_in(relay: Reception, link: Link) -> None:
    """From the first byte to the last; OSError is the client's going."""
    if relay.tls is not None and not await _secured(relay, link, relay.tls):
        return
    if link.alpn == "h2":  # as servers do: its settings need no request, nor even a preface
        await _talk(relay, link, Http2(relay, link, b""))
        return
    said = b""
    with trio.move_on_after(_or_ever(relay.keepalive_timeout_s)):  # warmed ahead of its first request
        said = await door.first_bytes(link)
    if not said:
        return
    preface = said.startswith(door.PREFACE)
    if preface and "2" not in relay.http_versions:
        link.send(door.answer(505, {"error": {"message": "HTTP/1.1 only"}}))
        return
    if preface:
        await _talk(relay, link, Http2(relay, link, said))
        return
    peer, knock = h11.Connection(h11.SERVER, max_incomplete_event_size=32768), None
    peer.receive_data(said)
    with trio.move_on_after(_DOOR_TIMEOUT):
        knock = await door.listen_at_door(link, peer)
    if knock is None:
        return
    if knock.path.startswith("/_"):
        relay.links.pop(link, None)  # `_kill` is to be answered
        link.send(control.answer_to(relay, knock.path, knock.query))
    elif knock.method == "POST" and "1.1" not in relay.http_versions:
        link.send(door.answer(505, {"error": {"message": "HTTP/2 only"}}))
    elif knock.method == "POST":
        await _talk(relay, link, Http1(relay, link, peer, knock))
    else:
        await _upgrade(relay, link, knock, peer.trailing_data[0])


async def _secured(relay: Reception, link: Link, context: ssl.SSLContext) -> bool:
    began = relay.mono_us()
    try:
        with trio.move_on_after(_DOOR_TIMEOUT) as limit:
            await link.secure(context)
    except OSError:
        _note(relay, "connect", link, "", "tls_failed", at_us=began)
        _note(relay, "gone", link, "", "tls_failed")
        return False
    return not limit.cancelled_caught


async def _talk(relay: Reception, link: Link, talk: Talk) -> None:
    relay.remember(talk)
    relay.links.pop(link, None)  # from here the talk ends it
    try:
        await talk.run()
    finally:
        relay.forget(talk)


# ------------------------------------------------------------------------------------------------------- WebSockets


async def _upgrade(relay: Reception, link: Link, knock: door.Knock, early: bytes) -> None:
    name = None
    try:
        name = _judge(relay, link, knock)
        _note(relay, "connect", link, knock.group, name or "", way="websocket")
        if name is not None and (name in _OPEN or name.startswith("toxic_")):
            await _converse(relay, link, knock, name, early)
        elif name is not None:
            relay.refused(name)
            await door.misbehave(name, link, knock, relay.behaviour.retry_after_s)
    except (OSError, trio.ClosedResourceError):
        pass
    _note(relay, "gone", link, knock.group, name or "", way="websocket")


def _judge(relay: Reception, link: Link, knock: door.Knock) -> str | None:
    """What befalls an upgrade; None: it was answered already."""
    try:
        relay.check(knock.group)
    except ValueError as problem:
        link.send(door.answer(404, {"error": {"message": str(problem)}}))
        return None
    if knock.dialect not in relay.dialects:
        link.send(door.answer(404, {"error": {"message": "no such path"}}))
        return None
    if knock.websocket_key is None:
        link.send(door.answer(426, {"error": {"message": "upgrade to WebSocket"}}, {"Upgrade": "websocket"}))
        return None
    name = relay.next_door(knock.group)
    if name == "ok" and relay.keys is not None and knock.key not in relay.keys:
        return "http_401"
    return name


async def _converse(relay: Reception, link: Link, knock: door.Knock, name: str, early: bytes) -> None:
    try:
        behaviour = steer(relay.behaviour, known(knock.query))
    except ValueError as problem:
        link.send(door.answer(400, {"error": {"message": str(problem)}}))
        return
    assert knock.dialect is not None
    assert knock.websocket_key is not None
    counters = relay.counters
    compressed = relay.compression and knock.query.get("compress") == "zstd-stream"
    session = Session(relay, link, dialect=knock.dialect, group=knock.group, behaviour=behaviour, compressed=compressed)
    counters.handshakes += 1
    counters.opened("websocket")
    if name != "ok":
        counters.scenarios[name] = counters.scenarios.get(name, 0) + 1
    yes = door.switching(knock.websocket_key, f"req_{relay.digits(counters.handshakes)}")
    relay.remember(session)
    relay.links.pop(link, None)  # from here the session ends it
    max_age_s = relay.max_age_s
    if name in ("expiry", "expiring"):
        max_age_s = _EXPIRY if max_age_s is None else max_age_s
    run = partial(session.run, early, max_age_s=max_age_s, warn=name == "expiring", deaf=name == "deaf")
    line = line_of(name, behaviour)
    try:
        if line is None:
            link.send(yes)
            await run()
        else:
            await _converse_badly(relay, line, link, session, yes, run)
    finally:
        relay.forget(session)
        counters.open -= 1


async def _converse_badly(
    relay: Reception, line: Line, link: Link, session: Session, yes: bytes, run: Callable[[], Awaitable[None]]
) -> None:
    """As `run`, all that is said, from the answer to the upgrade on, going over a bad line."""

    def end(how: str) -> None:
        session.reset() if how == "reset" else session.eof()

    dice = random.Random(relay.seed * 1_000_003 + relay.counters.handshakes)
    link.poison(Toxic(line, dice=dice, clock=trio.current_time, deliver=link.deliver, end=end))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.worsen)
        link.send(yes)
        await run()
        await trio.sleep(line.slow_close_s)
        nursery.cancel_scope.cancel()


def _note(
    relay: Reception,
    event: Literal["connect", "gone"],
    link: Link,
    group: str,
    name: str,
    *,
    at_us: int | None = None,
    way: Way | Literal[""] = "",
) -> None:
    """A line of a connection's in the journal."""
    at_us = relay.mono_us() if at_us is None else at_us
    relay.counters.journal.append(Note(at_us, event, group, "", name, link.number, way))


def _or_ever(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
