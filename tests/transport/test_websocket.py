"""The upstream's WebSocket: messages in order, one writer, any frame proves life, an end that is told once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from websockets.asyncio.server import ServerConnection

from sidecar.config import Tls
from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.dial import dial, make_tls_context, parse_url
from sidecar.transport.frames import BINARY, CLOSE, PING, PONG, TEXT
from tests.fakes.raw_upstream import (
    Owner,
    connected,
    drain,
    over_memory,
    request,
    serve,
    switching,
    unmask,
)
from tests.fakes.server_frames import encode_server_frame
from tests.fakes.websockets_server import Authority, websockets_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA for the module."""
    return Authority(tmp_path_factory.mktemp("ca"))


# --- against the websockets package


@pytest.mark.parametrize("secure", [False, True])
async def test_conversation(authority: Authority, secure: bool) -> None:
    """Over ws and wss: messages both ways, long ones too, a ping's round trip, a closing handshake."""
    tls = make_tls_context(Tls(ca_file=authority.ca_file))
    with websockets_server(tls=authority.server_context() if secure else None, max_size=None) as server:
        address, owner = parse_url(server.url), Owner()
        options = {"host": address.host_header, "resource": address.resource, "max_message_bytes": 4 << 20}
        async with trio.open_nursery() as nursery:
            websocket = await nursery.start(owner.run, lambda: dial(address, tls=tls), options)
            assert "websockets" in owner.upgrade_headers["server"]
            sent = [b"short", b"", b"x" * 200, b"y" * 70_000, b"z" * (3 << 20)]
            for payload in sent:
                websocket.send(0, payload)
            assert await owner.until(len(sent)) == [(TEXT, payload) for payload in sent]
            assert websocket.pending_bytes == 0
            assert 0 < await websocket.ping(5) < 5
            assert websocket.last_inbound_at > websocket.opened_at
            await websocket.close(1000, "done", timeout=60)
            assert isinstance(owner.result, ConnectionLost) or owner.result is None
            ended = await owner.end()
        assert (ended.how, ended.close_code) == ("local", 1000)  # type: ignore[union-attr]
        assert owner.told == []
        peer = server.connections[0]
        await trio.to_thread.run_sync(lambda: _wait_closed(peer, server.loop))
        assert (peer.close_code, peer.close_reason) == (1000, "done")
        assert peer.request is not None
        assert (peer.request.path, peer.request.headers["Authorization"]) == ("/v1/responses?a=b", "Bearer k")


async def test_abort_and_cut_over_tls(authority: Authority) -> None:
    """Over TLS too: abort() ends both ends at once; a connection cut without close_notify is an EOF, 1006."""
    tls = make_tls_context(Tls(ca_file=authority.ca_file))

    async def handler(connection: ServerConnection) -> None:
        if await connection.recv() == "cut":
            connection.transport.abort()
        await connection.wait_closed()

    with websockets_server(handler, tls=authority.server_context()) as server:
        address = parse_url(server.url)
        async with trio.open_nursery() as nursery:
            owner = Owner()
            websocket = await nursery.start(owner.run, lambda: dial(address, tls=tls), {})
            websocket.send(0, b"stay")
            started = trio.current_time()
            websocket.abort()
            await owner.end(1)
            await trio.to_thread.run_sync(lambda: _wait_closed(server.connections[0], server.loop))
            assert trio.current_time() - started < 0.5
            assert server.connections[0].close_code == 1000

            owner = Owner()
            websocket = await nursery.start(owner.run, lambda: dial(address, tls=tls), {})
            websocket.send(0, b"cut")
            ended = await owner.end(1)
            assert isinstance(ended, ConnectionLost)
            assert ended.how in ("eof", "reset")
            assert owner.told == [ended]


async def test_their_ping_is_answered() -> None:
    """A server's keepalive ping gets its pong, whatever else goes on."""

    async def handler(connection: ServerConnection) -> None:
        await asyncio.wait_for(await connection.ping(b"are you there"), 5)
        await connection.send("answered")
        await connection.wait_closed()

    with websockets_server(handler) as server:
        owner, address = Owner(), parse_url(server.url)
        async with trio.open_nursery() as nursery:
            websocket = await nursery.start(owner.run, lambda: dial(address, tls=None), {})
            assert await owner.until(1) == [(TEXT, b"answered")]
            websocket.abort()


async def test_fragments_from_a_real_server() -> None:
    """A message sent in fragments, with a ping among them, arrives whole."""

    async def handler(connection: ServerConnection) -> None:
        async def pieces() -> AsyncIterator[str]:
            for piece in ("one ", "two ", "three"):
                yield piece
                await connection.ping()

        await connection.send(pieces())
        await connection.wait_closed()

    with websockets_server(handler) as server:
        owner, address = Owner(), parse_url(server.url)
        async with trio.open_nursery() as nursery:
            websocket = await nursery.start(owner.run, lambda: dial(address, tls=None), {})
            assert await owner.until(1) == [(TEXT, b"one two three")]
            websocket.abort()


@pytest.mark.parametrize("code", [1001, 1008, 1011, 1012, 1013, 4402])
async def test_peer_closes(code: int) -> None:
    """The server's close code and reason come out, after the messages that came before it."""

    async def handler(connection: ServerConnection) -> None:
        await connection.send("last")
        await connection.close(code, "going")

    with websockets_server(handler) as server:
        owner, address = Owner(), parse_url(server.url)
        await owner.run(lambda: dial(address, tls=None), {})
        assert owner.messages == [(TEXT, b"last")]
        assert isinstance(owner.result, ConnectionLost)
        assert (owner.result.how, owner.result.close_code, owner.result.reason) == ("close", code, "going")
        assert owner.told == [owner.result]
        await trio.to_thread.run_sync(lambda: _wait_closed(server.connections[0], server.loop))
        assert server.connections[0].close_code == code  # our answer echoed it


def _wait_closed(connection: ServerConnection, loop: asyncio.AbstractEventLoop | None) -> None:
    assert loop
    asyncio.run_coroutine_threadsafe(connection.wait_closed(), loop).result(5)


# --- bytes coming in


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
async def test_frames_behind_the_101(step: int) -> None:
    """Frames in one segment with the 101 response are delivered, however the segment is cut; a Close among them too."""
    frames = [(TEXT, b"hello"), (BINARY, b"x" * 300)]
    owner = Owner()

    async def handler(stream: trio.abc.Stream) -> None:
        data = switching(await request(stream)) + b"".join(encode_server_frame(*frame) for frame in frames)
        data += encode_server_frame(CLOSE, b"\x03\xe9")
        for at in range(0, len(data), step):
            await stream.send_all(data[at : at + step])
        await stream.receive_some()  # the answer to Close

    async with trio.open_nursery() as nursery:
        await owner.run(await serve(nursery, handler), {})
        nursery.cancel_scope.cancel()
    assert owner.messages == frames
    assert isinstance(owner.result, ConnectionLost)
    assert (owner.result.how, owner.result.close_code) == ("close", 1001)


async def test_one_sink_call_per_read() -> None:
    """Frames that arrive together are delivered together, in one call, and control frames never."""
    go = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await go.wait()
        frames = [encode_server_frame(TEXT, b"%d" % index) for index in range(100)]
        await stream.send_all(b"".join(frames[:50]) + encode_server_frame(PING, b"") + b"".join(frames[50:]))
        await drain(stream)

    async with connected(handler) as owner:
        go.set()
        await owner.until(100)
        assert owner.reads == [[(TEXT, b"%d" % index) for index in range(100)]]


FAULTS = {
    "masked": (b"\x81\x81abcdX", 1002),
    "reserved bits": (b"\xc1\x01a", 1002),
    "giant": (b"\x81\x7f" + (1 << 40).to_bytes(8, "big"), 1009),
    "fragmented ping": (b"\x09\x00", 1002),
    "empty fragments": (b"\x01\x00" + b"\x00\x00" * 10_000, 1009),
    "close with half a code": (b"\x88\x01\x03", 1002),
    "close with 1006": (b"\x88\x02\x03\xee", 1002),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_malformed_retires(name: str) -> None:
    """What is not the protocol ends the connection with the matching close code; what was whole before it is kept."""
    data, code = FAULTS[name]
    farewell: list[bytes] = []

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(encode_server_frame(TEXT, b"good") + data)
        farewell.append(await drain(stream))

    async with connected(handler) as owner:
        ended = await owner.end()
        assert isinstance(ended, MalformedFrame)
        assert ended.close_code == code
        assert owner.messages == [(TEXT, b"good")]
        assert owner.told == [ended]
        with pytest.raises(ConnectionLost):
            owner.websocket.send(0, b"late")
        with trio.move_on_after(1):
            while not farewell:
                await trio.sleep(0)
    assert unmask(farewell[0]) == [(CLOSE, code.to_bytes(2, "big"))]


async def test_sink_may_refuse() -> None:
    """A sink that raises MalformedFrame (bad JSON, a zstd bomb) retires the connection with its code."""

    def sink(payloads: list[bytes], binary: list[int], now: float) -> None:
        raise MalformedFrame("not JSON", close_code=1007)

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(encode_server_frame(TEXT, b"\xff"))
        await drain(stream)

    async with connected(handler) as owner:
        owner.websocket.abort()
    owner = Owner()
    owner.sink = sink  # type: ignore[method-assign]

    async def upgrade(stream: trio.abc.Stream) -> None:
        await stream.send_all(switching(await request(stream)))
        await handler(stream)

    async with trio.open_nursery() as nursery:
        await owner.run(await serve(nursery, upgrade), {})
        nursery.cancel_scope.cancel()
    assert isinstance(owner.result, MalformedFrame)
    assert owner.result.close_code == 1007


async def test_a_ping_flood_costs_one_answer() -> None:
    """Thousands of pings in one segment are answered by the pong of the last, and data behind them is not held up."""
    answers: list[bytes] = []

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(
            b"".join(encode_server_frame(PING, b"%d" % index) for index in range(3000))
            + encode_server_frame(TEXT, b"data")
        )
        answers.append(await drain(stream))

    async with connected(handler) as owner:
        await owner.until(1)
        await trio.testing.wait_all_tasks_blocked()
        await owner.websocket.close(timeout=0.2)
        while not answers:
            await trio.sleep(0)
    frames = unmask(answers[0])
    assert len(frames) < 60
    assert frames[-2] == (PONG, b"2999")
    assert frames[-1][0] == CLOSE


# --- the end


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_cut(how: str) -> None:
    """EOF and RST without a Close frame are told apart, at once, with the messages before them delivered."""

    async def handler(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(encode_server_frame(TEXT, b"partial") + b"\x81\x7e\x01\x00 half a frame")
        await owner_got.wait()
        if how == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    owner_got = trio.Event()
    async with connected(handler) as owner:
        await owner.until(1)
        owner_got.set()
        ended = await owner.end()
        assert isinstance(ended, ConnectionLost)
        assert (ended.how, ended.close_code) == (how, 1006)
        assert owner.told == [ended]


async def test_close_is_told_before_tcp_ends() -> None:
    """The owner learns of a peer's Close when it arrives, not when the server gets round to closing TCP."""

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(encode_server_frame(TEXT, b"done") + encode_server_frame(CLOSE, b"\x03\xe9"))
        await drain(stream)
        await trio.sleep_forever()

    async with connected(handler) as owner:
        with trio.fail_after(1):
            await owner.told_event.wait()
        assert not owner.ended.is_set()
        assert owner.messages == [(TEXT, b"done")]
        assert [fault.close_code for fault in owner.told] == [1001]
        with pytest.raises(ConnectionLost) as caught:
            owner.websocket.send(0, b"late")
        assert (caught.value.how, caught.value.close_code) == ("close", 1001)
        owner.websocket.abort()
        ended = await owner.end(0.5)
        assert ended.close_code == 1001


async def test_peer_closes_and_lingers(autojump_clock: trio.testing.MockClock) -> None:
    """A server that says Close and keeps TCP open is closed by us after two seconds."""
    async with over_memory() as (owner, peer):
        await peer.send_all(encode_server_frame(CLOSE, b"\x03\xf4"))
        started = trio.current_time()
        ended = await owner.end(60)
        assert trio.current_time() - started == pytest.approx(2)
        assert ended.close_code == 1012
        assert unmask(await drain(peer)) == [(CLOSE, b"\x03\xf4")]


async def test_abort_is_immediate() -> None:
    """abort() closes TCP before it returns; the peer sees Close and EOF, the connection ends within milliseconds."""
    seen: list[bytes] = []
    gone = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        seen.append(await drain(stream))
        gone.set()

    async with connected(handler) as owner:
        owner.websocket.send(0, b"prompt")
        started = trio.current_time()
        owner.websocket.abort()
        ended = await owner.end(1)
        with trio.fail_after(1):
            await gone.wait()
        assert trio.current_time() - started < 0.1
        assert isinstance(ended, ConnectionLost)
        assert ended.how == "local"
        assert owner.told == []
        owner.websocket.abort()
        await owner.websocket.close()
        with pytest.raises(ConnectionLost):
            owner.websocket.send(0, b"late")
        with pytest.raises(ConnectionLost):
            await owner.websocket.ping(1)
    assert unmask(seen[0]) == [(TEXT, b"prompt"), (CLOSE, b"\x03\xe8")]


async def test_cancelled_in_the_middle() -> None:
    """Cancelling the connection's task says Close and closes TCP; nothing hangs."""
    seen: list[bytes] = []
    gone = trio.Event()

    async def upgrade(stream: trio.abc.Stream) -> None:
        await stream.send_all(switching(await request(stream)) + b"\x81\x7e\x01\x00 half a frame")
        seen.append(await drain(stream))
        gone.set()

    owner = Owner()
    async with trio.open_nursery() as server:
        dialer = await serve(server, upgrade)
        async with trio.open_nursery() as nursery:
            websocket = await nursery.start(owner.run, dialer, {})
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            await gone.wait()
        server.cancel_scope.cancel()
    assert unmask(seen[0]) == [(CLOSE, b"\x03\xe9")]
    with pytest.raises(ConnectionLost):
        websocket.send(0, b"late")


async def test_cancelled_during_the_upgrade() -> None:
    """A cancelled connect leaves no connection behind."""
    gone = trio.Event()
    asked = trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await request(stream)
        asked.set()
        await drain(stream)
        gone.set()

    async with trio.open_nursery() as server:
        dialer = await serve(server, handler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Owner().run, dialer, {})
            await asked.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            await gone.wait()
        server.cancel_scope.cancel()


async def test_close_against_a_deaf_peer() -> None:
    """close() is capped: a peer that answers nothing costs its timeout and no more."""

    async def handler(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with connected(handler) as owner:
        with trio.fail_after(1):
            await owner.websocket.close(timeout=0.05)
        ended = await owner.end(0.5)
        assert isinstance(ended, ConnectionLost)
        assert ended.how == "local"


async def test_pings_while_closing_do_no_harm() -> None:
    """A ping that crosses our Close (the library would raise for its pong) is ignored, late data still delivered."""

    async def handler(stream: trio.abc.Stream) -> None:
        data = b""
        while b"\x88" not in data[:1]:
            data = bytes(await stream.receive_some())
        await stream.send_all(encode_server_frame(PING, b"x") * 3 + encode_server_frame(TEXT, b"late"))
        await stream.send_all(encode_server_frame(CLOSE, b"\x03\xe8"))

    async with connected(handler) as owner:
        await owner.websocket.close(timeout=5)
        assert (await owner.end()).close_code == 1000
        assert owner.messages == [(TEXT, b"late")]


# --- bytes going out


async def test_large_sends_keep_their_order_while_pings_are_answered() -> None:
    """More than the kernel takes is queued; pongs go between whole frames, and nothing is torn or reordered."""
    go = trio.Event()

    async def handler(connection: ServerConnection) -> None:
        pong = await connection.ping(b"p")
        for index in range(20):
            message = await connection.recv()
            assert message == str(index) + "x" * 500_000
        await asyncio.wait_for(pong, 5)
        await connection.send("all")
        await connection.wait_closed()

    with websockets_server(handler) as server:
        owner, address = Owner(), parse_url(server.url)
        async with trio.open_nursery() as nursery:
            websocket = await nursery.start(owner.run, lambda: dial(address, tls=None), {})
            for index in range(20):
                websocket.send(0, b"%d" % index + b"x" * 500_000)
            assert websocket.pending_bytes > 0
            go.set()
            assert await owner.until(1) == [(TEXT, b"all")]
            assert websocket.pending_bytes == 0
            websocket.abort()


async def test_write_to_a_dead_peer_keeps_its_last_words() -> None:
    """When a write fails because the peer has gone, what it said before going is still read: here, why."""
    go, sent = trio.Event(), trio.Event()

    async def handler(stream: trio.abc.Stream) -> None:
        await go.wait()
        await stream.send_all(encode_server_frame(TEXT, b"error: overloaded") + encode_server_frame(CLOSE, b"\x03\xf3"))
        await stream.aclose()
        sent.set()

    async with connected(handler) as owner:
        go.set()
        with trio.fail_after(2):
            await sent.wait()
            while not owner.told:
                try:
                    owner.websocket.send(0, b"x" * 10_000)
                except ConnectionLost:
                    pass
                await trio.sleep(0)
        assert owner.messages == [(TEXT, b"error: overloaded")]
        assert [fault.close_code for fault in owner.told] == [1011]
