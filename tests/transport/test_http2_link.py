"""An HTTP/2 connection, with the h2 package as its server: many answers at once, each stopped, refused or cut alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from sidecar.errors import ConnectFailed, ConnectionLost
from sidecar.transport.http import open_http
from sidecar.transport.pump import Pump
from tests.fakes.http_owner import Owner, linked
from tests.fakes.raw_upstream import running_pump

HEAD = [(":status", "200"), ("content-type", "text/event-stream")]


class Server:
    """The other end."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []

    async def flush(self) -> None:
        """Send what there is."""
        data = self.engine.data_to_send()
        if data:
            await self.stream.send_all(data)

    async def run(self) -> None:
        """Read for ever."""
        self.engine.initiate_connection()
        await self.flush()
        while data := bytes(await self.stream.receive_some(65_536)):
            self.events += self.engine.receive_data(data)
            for event in self.events:
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    event.flow_controlled_length = 0
            await self.flush()

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind: type[Any], count: int = 1) -> list[Any]:
        """Wait for so many."""
        with trio.fail_after(30):
            while len(self.of(kind)) < count:
                await trio.sleep(0.001)
        return self.of(kind)

    async def answer(self, sid: int, *pieces: bytes, end: bool = True) -> None:
        """Head and body."""
        self.engine.send_headers(sid, HEAD)
        for piece in pieces:
            self.engine.send_data(sid, piece)
        if end:
            self.engine.end_stream(sid)
        await self.flush()


@asynccontextmanager
async def both() -> AsyncIterator[tuple[Owner, Server]]:
    """A link and its server, settings exchanged."""
    ours, theirs = trio.testing.memory_stream_pair()
    owner, server = Owner(), Server(theirs)

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async with trio.open_nursery() as nursery, running_pump() as pump:
        nursery.start_soon(server.run)
        owner.link = await open_http(
            dialer, "host", "/v1/x", owner, pump=pump, headers=[(b"X-A", b"1")],
            secrets=[(b"Authorization", b"Bearer k")], ended=owner.ended, prior_knowledge=True,
        )  # fmt: skip
        owner.link.start()
        yield owner, server
        owner.link.abort()
        nursery.cancel_scope.cancel()


async def test_answers_side_by_side(autojump_clock: trio.testing.MockClock) -> None:
    """Each slot gets its own events, in order, whichever way a frame took; the slots are free again."""
    async with both() as (owner, server):
        for slot in (0, 1, 2):
            owner.link.send(slot, b"{%d}" % slot)
        asked = await server.until(h2.events.RequestReceived, 3)
        headers = dict(asked[0].headers)
        assert (headers[":method"], headers[":path"], headers["authorization"]) == ("POST", "/v1/x", "Bearer k")
        assert headers["content-length"] == "3"
        indexable = {str(header[0]): header.indexable for header in asked[0].headers}
        assert (indexable["authorization"], indexable["x-a"]) == (False, True)  # no proxy is to remember the first
        for sid in (5, 1, 3):
            await server.answer(sid, b"data: %d\n\n" % sid, b"data: end\n\n", end=sid != 3)
        server.engine.send_data(3, b"data: padded\n\n", end_stream=True, pad_length=7)
        await server.flush()
        await owner.until("over", 3)
    assert {slot: owner.payloads(slot) for slot in (0, 1, 2)} == {
        0: [b"1", b"end"], 1: [b"3", b"end", b"padded"], 2: [b"5", b"end"],
    }  # fmt: skip
    assert sorted(owner.of("over")) == [(0, None), (1, None), (2, None)]


async def test_a_refusal_of_a_known_length(autojump_clock: trio.testing.MockClock) -> None:
    """Its status and its whole body, also where the head says how long that is; the connection goes on."""
    async with both() as (owner, server):
        for sid, extra in ((1, [("content-length", "8")]), (3, [])):
            owner.link.send(0, b"{}")
            await server.until(h2.events.RequestReceived, (sid + 1) // 2)
            server.engine.send_headers(sid, [(":status", "400"), ("content-type", "application/json"), *extra])
            server.engine.send_data(sid, b'{"a"')
            await server.flush()
            server.engine.send_data(sid, b":1} ")
            server.engine.end_stream(sid)
            await server.flush()
            await owner.until("over", (sid + 1) // 2)
        assert owner.of("refused") == [(0, 400, b'{"a":1} ')] * 2
        assert not owner.ends


async def test_a_refusal_that_is_waited_for_no_longer_is_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Its body does not end: a second later that is given up, in a pass of its own, with the flush that ends each."""
    owner, flushes = Owner(), list[float]()
    pump = Pump(flush=lambda: flushes.append(trio.current_time()), clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        theirs = await opened_on(b"\0\0\0\x04\0\0\0\0\0", owner, pump)
        owner.link.send(0, b"{}")
        block = h2.connection.H2Connection().encoder.encode([(":status", "503")])
        await theirs.send_all(len(block).to_bytes(3, "big") + b"\x01\x04\0\0\0\1" + block)
        await owner.until("over")
        await trio.sleep(0.1)
        assert owner.of("refused") == [(0, 503, b"")]
        assert flushes[-1] == owner.over_at[0]
        owner.link.abort()
        nursery.cancel_scope.cancel()


async def test_flow_control_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    """A prompt longer than the peer's window goes out as it opens; an answer of many windows comes whole."""
    async with both() as (owner, server):
        owner.link.send(0, b"x" * 300_000)
        await server.until(h2.events.StreamEnded)
        assert sum(len(event.data) for event in server.of(h2.events.DataReceived)) == 300_000
        server.engine.send_headers(1, HEAD)
        left, sent = 3000, 0
        with trio.fail_after(60):
            while left:
                while left and server.engine.local_flow_control_window(1) > 2000:
                    server.engine.send_data(1, b"data: " + b"%05d" % sent + b"x" * 1000 + b"\n\n")
                    left, sent = left - 1, sent + 1
                await server.flush()
                await trio.sleep(0.001)
        server.engine.end_stream(1)
        await server.flush()
        await owner.until("over")
        assert [int(payload[:5]) for payload in owner.payloads()] == list(range(3000))


async def test_prompts_do_not_pile_up_before_a_peer_that_does_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It has allowed whatever we like, shows life all the time, and reads nothing: given up after a megabyte.

    Of each call that is stopped meanwhile only what was given to the kernel is left, and the word that it is stopped.
    """
    ours, theirs = trio.testing.memory_stream_pair()
    owner, most = Owner(), 0
    reads = [True, True]  # our preface and the answer to its settings
    prompt = b"x" * 300_000

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async def send_all_hook() -> None:
        if not reads:
            await trio.sleep_forever()
        reads.pop()

    ours.send_stream.send_all_hook = send_all_hook

    async def greet() -> None:
        wide = (1 << 30).to_bytes(4, "big")
        await theirs.send_all(b"\0\0\6\4\0\0\0\0\0\0\4" + wide + b"\0\0\4\x08\0\0\0\0\0" + wide)

    async def live() -> None:
        while not owner.ends:
            await theirs.send_all(b"\0\0\x08\6\0\0\0\0\0" + bytes(8))
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery, running_pump() as pump:
        nursery.start_soon(greet)
        owner.link = await open_http(
            dialer, "h", "/", owner, pump=pump, headers=[], ended=owner.ended, prior_knowledge=True
        )
        owner.link.start()
        nursery.start_soon(live)
        for _ in range(20):
            await trio.sleep(0.3)
            if owner.ends:
                break
            owner.link.send(0, prompt)
            most = max(most, owner.link.pending_bytes)
            await trio.sleep(0.5)
            owner.link.stop(0)
        assert owner.of("ended") == [("reset",)]
        assert (1 << 20) < most < (1 << 20) + 2 * len(prompt)
        nursery.cancel_scope.cancel()


async def test_one_is_stopped_alone(autojump_clock: trio.testing.MockClock) -> None:
    """RST_STREAM CANCEL; its late frames are nobody's, and the other goes on."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        owner.link.send(1, b"{}")
        await server.until(h2.events.RequestReceived, 2)
        await server.answer(1, b"data: a\n\n", end=False)
        await owner.until("events")
        assert owner.link.stop(0) is True
        await server.stream.send_all(b"\0\0\x09\0\0\0\0\0\x01data: b\n\n")
        (reset,) = await server.until(h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (1, h2.errors.ErrorCodes.CANCEL)
        await server.answer(3, b"data: c\n\n")
        await owner.until("over")
    assert (owner.payloads(0), owner.payloads(1)) == ([b"a"], [b"c"])
    assert owner.of("over") == [(1, None)]


async def test_heads_of_a_stopped_stream_are_nobodys(autojump_clock: trio.testing.MockClock) -> None:
    """They were under way: an informational one, padded or not, and the real one. The others go on, and are read."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        owner.link.send(1, b"{}")
        await server.until(h2.events.RequestReceived, 2)
        assert owner.link.stop(0) is True
        fields = [("link", "</x>"), ("x-new", "first seen in a head of nobody's")]
        block = server.engine.encoder.encode([(":status", "103"), *fields])
        first = (len(block)).to_bytes(3, "big") + b"\x01\x04\0\0\0\x01" + block
        block = b"\3" + bytes(5) + server.engine.encoder.encode([(":status", "103"), *fields]) + bytes(3)
        second = (len(block)).to_bytes(3, "big") + b"\x01\x2c\0\0\0\x01" + block
        block = server.engine.encoder.encode([*HEAD, *fields])
        await server.stream.send_all(first + second + (len(block)).to_bytes(3, "big") + b"\x01\x04\0\0\0\x01" + block)
        server.engine.send_headers(3, [*HEAD, *fields])
        server.engine.send_data(3, b"data: c\n\n", end_stream=True)
        await server.flush()
        await owner.until("over")
        assert owner.of("head")[0][1]["x-new"].startswith("first")
    assert (owner.payloads(1), owner.of("over")) == ([b"c"], [(1, None)])


@pytest.mark.parametrize("head", [b"", b"\xff", b"\x09\0"])
async def test_a_head_of_nobodys_that_cannot_be_unpacked(autojump_clock: trio.testing.MockClock, head: bytes) -> None:
    """What later heads mean depends on it: the connection cannot be trusted any more."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        await server.until(h2.events.RequestReceived)
        owner.link.stop(0)
        flags = b"\x0c" if head.startswith(b"\x09") else b"\x04"
        if not head:
            flags = b"\x24"
        await server.stream.send_all(len(head).to_bytes(3, "big") + b"\x01" + flags + b"\0\0\0\x01" + head)
        assert await owner.until("ended") == [("malformed",)]


@pytest.mark.parametrize(
    ("code", "headed", "how"),
    [
        (h2.errors.ErrorCodes.REFUSED_STREAM, False, "unprocessed"),
        (h2.errors.ErrorCodes.REFUSED_STREAM, True, "reset"),
        (h2.errors.ErrorCodes.INTERNAL_ERROR, False, "reset"),
    ],
)
async def test_reset_by_the_server(
    autojump_clock: trio.testing.MockClock, code: h2.errors.ErrorCodes, headed: bool, how: str
) -> None:
    """A refused stream was not looked at; any other is cut. The connection stands."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        await server.until(h2.events.RequestReceived)
        if headed:
            server.engine.send_headers(1, HEAD)
        server.engine.reset_stream(1, code)
        await server.flush()
        assert await owner.until("over") == [(0, how)]
        owner.link.send(0, b"{}")
        await server.until(h2.events.RequestReceived, 2)
        assert not owner.ends


async def test_goaway(autojump_clock: trio.testing.MockClock) -> None:
    """What it has not looked at may go elsewhere, what it has goes on to its end; then the connection is over."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        owner.link.send(1, b"{}")
        await server.until(h2.events.RequestReceived, 2)
        await server.answer(1, b"data: a\n\n", end=False)
        await server.stream.send_all(b"\0\0\x08\x07\0\0\0\0\0" + (1).to_bytes(4, "big") + bytes(4))
        assert await owner.until("over") == [(1, "unprocessed")]
        assert owner.of("going away") == [()]
        with pytest.raises(ConnectionLost):
            owner.link.send(1, b"{}")
        server.engine.send_data(1, b"data: b\n\n", end_stream=True)
        await server.flush()
        assert await owner.until("ended") == [("idle",)]
    assert owner.payloads() == [b"a", b"b"]
    assert owner.of("over")[1] == (0, None)


@pytest.mark.parametrize(("idle", "how"), [(2.0, "unprocessed"), (0.2, "eof")])
async def test_requests_that_meet_the_idle_close(
    autojump_clock: trio.testing.MockClock, idle: float, how: str
) -> None:
    """A server that closes a connection as its first requests in a while come there has not read them."""
    async with both() as (owner, server):
        await trio.sleep(idle)
        owner.link.send(0, b"{}")
        owner.link.send(1, b"{}")
        await server.stream.send_eof()
        assert await owner.until("ended") == [(how,)]


async def test_room_is_told_of(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that takes none at first, then some, then fewer: only more is told, for those that wait."""
    owner = Owner()
    limit = b"\0\0\6\4\0\0\0\0\0\0\3"
    async with running_pump() as pump:
        theirs = await opened_on(limit + bytes(4), owner, pump)
        assert owner.link.slots == 0
        with pytest.raises(ConnectionLost):
            owner.link.send(0, b"{}")
        for count in (4, 1, 1, 2):
            await theirs.send_all(limit + count.to_bytes(4, "big"))
            with trio.fail_after(30):
                while owner.link.slots != count:
                    await trio.sleep(0.001)
        assert (owner.of("room"), owner.link.slots) == ([(4,), (2,)], 2)
        owner.link.abort()


async def test_pings_and_silence(autojump_clock: trio.testing.MockClock) -> None:
    """A ping has its round trip; a peer that stays silent is given up."""
    async with both() as (owner, _):
        assert await owner.link.ping(5) >= 0
    ours, theirs = trio.testing.memory_stream_pair()
    silent = Owner()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async with running_pump() as pump:
        await theirs.send_all(b"\0\0\0\x04\0\0\0\0\0")
        silent.link = await open_http(
            dialer, "h", "/", silent, pump=pump, headers=[], ended=silent.ended, prior_knowledge=True
        )
        silent.link.start()
        with pytest.raises(ConnectionLost) as caught:
            await silent.link.ping(5)
        assert caught.value.how == "silence"


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0\0\x01\x04\0\0\0\0\0x"])
async def test_what_is_not_http2_is_found_out(autojump_clock: trio.testing.MockClock, said: bytes) -> None:
    """Another protocol, an end, settings that are none, or nothing at all for too long."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    if said:
        await theirs.send_all(said)
    else:
        await theirs.send_eof()
    async with running_pump() as pump:
        with pytest.raises(ConnectFailed) as caught:
            await open_http(dialer, "h", "/", Owner(), pump=pump, headers=[], prior_knowledge=True)
        assert caught.value.stage == "upgrade"


async def opened_on(said: bytes, owner: Owner, pump: Pump) -> trio.testing.MemoryStream:
    """A link whose server has said all of that before we looked."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    await theirs.send_all(said)
    owner.link = await open_http(
        dialer, "h", "/", owner, pump=pump, headers=[], ended=owner.ended, prior_knowledge=True
    )
    owner.link.start()
    return theirs


@pytest.mark.parametrize("cut", range(1, 13))
async def test_what_comes_with_the_settings_may_be_torn(autojump_clock: trio.testing.MockClock, cut: int) -> None:
    """The server's settings and a part of its next frame in one read: the connection goes on with the rest of it."""
    window = b"\0\0\4\x08\0" + bytes(4) + (1 << 20).to_bytes(4, "big")
    owner = Owner()
    async with running_pump() as pump:
        theirs = await opened_on(b"\0\0\0\x04\0\0\0\0\0" + window[:cut], owner, pump)
        await theirs.send_all(window[cut:])
        owner.link.send(0, b"{}")
        await theirs.send_all(b"\0\0\x01\x01\x04\0\0\0\x01\x88" + b"\0\0\x09\0\x01\0\0\0\x01data: a\n\n")
        await owner.until("over")
        assert (owner.payloads(), owner.ends) == ([b"a"], [])
        owner.link.abort()


async def test_a_server_that_goes_away_as_it_comes(autojump_clock: trio.testing.MockClock) -> None:
    """Settings and GOAWAY in one read: it went away in good order, and nothing is asked there."""
    owner = Owner()
    async with running_pump() as pump:
        await opened_on(b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x08\x07\0" + bytes(12), owner, pump)
        assert await owner.until("ended") == [("idle",)]
        assert owner.of("going away") == [()]


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\0\0\0\0\0\x01", b"\0\0\x02\x07\0\0\0\0\0xx", b"\0\0\x04\x08\0\0\0\0\0" + bytes(4)]
)
async def test_garbage_ends_the_connection(autojump_clock: trio.testing.MockClock, garbage: bytes) -> None:
    """A giant frame, a GOAWAY and a WINDOW_UPDATE that are none: malformed, told once."""
    async with both() as (owner, server):
        owner.link.send(0, b"{}")
        await server.until(h2.events.RequestReceived)
        await server.stream.send_all(garbage)
        assert await owner.until("ended") == [("malformed",)]


async def test_without_prior_knowledge_it_is_http1() -> None:
    """Nothing was agreed on: the plain way."""
    async with linked() as (owner, _):
        assert owner.link.slots == 1
