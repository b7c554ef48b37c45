"""A hostile HTTP upstream: what it says ends its own connection or answer, at once, and never the daemon."""

from __future__ import annotations

import socket

import h2.events
import pytest
import trio
import trio.testing
from hpack import Encoder

from sidecar.errors import ConnectFailed, ConnectionLost, MalformedFrame
from sidecar.transport.flood import CRUMB_BYTES, CRUMBS, FRAMES_AT_ONCE, Patience
from sidecar.transport.http import open_http
from sidecar.transport.http1 import MAX_LINES
from sidecar.transport.http1_link import MAX_INFORMATIONAL
from sidecar.transport.http2_link import MAX_PENDING
from sidecar.transport.stream_wire import StreamWire
from tests.fakes.http_owner import Owner, linked
from tests.fakes.raw_upstream import IDLE, running_pump
from tests.transport.test_http1_link import HEAD, LAST, chunk, event, requested
from tests.transport.test_http2_link import both
from tests.transport.test_pump import pair

CONTINUE = b"HTTP/1.1 100 \r\n\r\n"


def frame(kind: int, flags: int, sid: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + sid.to_bytes(4, "big") + payload


async def test_informational_responses_without_an_end(autojump_clock: trio.testing.MockClock) -> None:
    """Some are passed over, before each answer anew; thousands in one read are malformed, and nest nothing."""
    async with linked() as (owner, server):
        for number in range(2):
            owner.link.send(0, b"{}")
            await requested(server)
            await server.send_all(CONTINUE * MAX_INFORMATIONAL + HEAD + chunk(event(number)) + LAST)
            await owner.until("over", number + 1)
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(CONTINUE * 7000)
        await owner.until("ended")
    assert owner.payloads() == [b"0", b"1"]
    assert isinstance(owner.ends[0][0], MalformedFrame)


async def test_a_head_of_too_many_lines(autojump_clock: trio.testing.MockClock) -> None:
    """As many as fit into a head's bytes would take h11 a fifth of a second."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * MAX_LINES + b"\r\n")
        await owner.until("ended")
    assert owner.of("head") == []
    assert isinstance(owner.ends[0][0], MalformedFrame)


@pytest.mark.parametrize("status", [b"\xb200", b"2\xb20", b"000", b"20", b"2000"])
async def test_a_status_that_is_none(autojump_clock: trio.testing.MockClock, status: bytes) -> None:
    """Digits of another script, too few, too many: that answer is malformed, and the connection carries the next."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        await server.until(h2.events.StreamEnded)
        await server.stream.send_all(frame(1, 5, 1, Encoder().encode([(b":status", status)])))
        await owner.until("over")
        owner.link.send(0, b"{}")
        await server.until(h2.events.StreamEnded, 2)
        await server.answer(3, b"data: 1\n\n")
        await owner.until("over", 2)
    assert owner.of("over") == [(0, "malformed"), (0, None)]
    assert owner.payloads() == [b"1"]


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, 0, 0, bytes(8)),  # PING
        frame(4, 0, 0),  # SETTINGS
        frame(8, 0, 0, b"\0\0\0\1"),  # WINDOW_UPDATE
        frame(7, 0, 0, b"\0\0\0\1" + bytes(4)),  # GOAWAY
        frame(99, 0, 0),  # nobody's
        frame(0, 8, 1, b"\0"),  # empty, padded DATA
        frame(0, 0, 1),  # empty DATA
        frame(0, 0, 1, b":"),  # a byte at a time
        frame(1, 4, 1, Encoder().encode([(b":status", b"103")])),
    ],
    ids=["ping", "settings", "window", "goaway", "unknown", "padded", "empty", "crumbs", "informational"],
)
async def test_a_flood_of_frames_ends_the_connection(autojump_clock: trio.testing.MockClock, flood: bytes) -> None:
    """Each takes h2 its time: those of one read must not hold up everybody, nor may they come for ever."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        await server.until(h2.events.StreamEnded)
        if flood[3] == 0:
            await server.answer(1, end=False)
            await owner.until("head")
        await server.stream.send_all(flood * (FRAMES_AT_ONCE + 1))
        await owner.until("ended")
    assert isinstance(owner.ends[0][0], MalformedFrame)


async def test_who_does_not_read_is_asked_no_more(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent for calls that were given up since would lie there for ever, and more with each."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        await server.until(h2.events.StreamEnded)
        monkeypatch.setattr(StreamWire, "pending_bytes", MAX_PENDING + 1)
        with pytest.raises(ConnectionLost, match="does not read"):
            owner.link.send(1, b"{}")
        monkeypatch.setattr(StreamWire, "pending_bytes", MAX_PENDING)
        owner.link.send(1, b"{}")
        await server.until(h2.events.StreamEnded, 2)
        await server.answer(1, b"data: 0\n\n")
        await server.answer(3, b"data: 1\n\n")
        await owner.until("over", 2)
    assert (owner.payloads(0), owner.payloads(1)) == ([b"0"], [b"1"])


def test_patience_comes_back() -> None:
    """Many frames are borne over time; packed heads, byte for byte, count for more than others."""
    patience = Patience(0.0)
    for second in range(5):
        for _ in range(FRAMES_AT_ONCE // 4):
            patience.bear(6, 8, second)
    for _ in range(FRAMES_AT_ONCE):
        patience.bear(0, 100, 6.0)
        patience.bear_crumbs(CRUMBS, 0, 6.0)
        patience.bear_crumbs(1000, 1000 * CRUMB_BYTES, 6.0)
    with pytest.raises(MalformedFrame):
        patience.bear(0, 100, 6.0)
    patience.bear(1, 1900, 7.0)
    with pytest.raises(MalformedFrame):
        patience.bear(1, 16 * FRAMES_AT_ONCE, 7.0)


async def test_settings_are_among_the_first_that_is_said() -> None:
    """A server that pings in place of saying its settings is no HTTP/2."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    await theirs.send_all(frame(6, 0, 0, bytes(8)) * 1000)
    with pytest.raises(ConnectFailed, match="no settings in"):
        await open_http(dialer, "host", "/", Owner(), pump=IDLE, headers=[], prior_knowledge=True)


@pytest.mark.parametrize("unasked", [HEAD + chunk(event(9)) + LAST, b"HTTP/1.1 408 Request Timeout\r\n\r\n", b""])
async def test_what_came_before_a_request_is_no_answer_to_it(unasked: bytes) -> None:
    """A second answer, or the end, lies in the socket unread as the next request is due: that goes elsewhere."""
    owner = Owner()
    with pair() as (near, far):

        async def dialer() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return near

        async with running_pump() as pump:
            owner.link = await open_http(dialer, "host", "/", owner, pump=pump, headers=[], ended=owner.ended)
            owner.link.start()
            owner.link.send(0, b"{}")
            far.sendall(HEAD + chunk(event(1)) + LAST)
            await owner.until("over")
            far.sendall(unasked) if unasked else far.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionLost):
                owner.link.send(0, b"{}")
            # Of an end its owner is told later: it is in the middle of a step.
            assert [ours for _, ours in owner.ends] == ([] if b"408" in unasked else [True])
            assert far.recv(65_536).count(b"POST") == 1
            owner.link.abort()
    assert owner.payloads() == [b"1"]
