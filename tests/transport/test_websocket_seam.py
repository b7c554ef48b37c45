"""The byte-stream seam: the same code over memory streams and virtual time, keepalive above all."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sidecar.errors import ConnectFailed, ConnectionLost, MalformedFrame
from sidecar.transport.frames import CLOSE, CONTINUATION, PING, PONG, TEXT
from sidecar.transport.websocket import open_websocket
from tests.fakes.raw_upstream import IDLE, Owner, drain, over_memory, request, switching, unmask
from tests.fakes.server_frames import encode_server_frame


async def test_the_byte_stream_seam(autojump_clock: trio.testing.MockClock) -> None:
    """The same code over memory streams and virtual time: an hour of keepalive and tokens passes in no time."""
    async with over_memory(make_mask=lambda: b"\0\0\0\0") as (owner, peer):

        async def server() -> None:
            frames = b""
            while data := await peer.receive_some():
                frames += data
                for opcode, payload in unmask(frames):
                    await trio.sleep(0.25)
                    await peer.send_all(encode_server_frame(PONG if opcode == PING else TEXT, payload))
                frames = b""

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            for index in range(360):
                assert await owner.websocket.ping(5) == pytest.approx(0.25)
                owner.websocket.send(0, b"%d" % index)
                await owner.until(index + 1)
                await trio.sleep(10 - 0.5)
            assert trio.current_time() - owner.websocket.opened_at == pytest.approx(3600)
            owner.websocket.abort()
            await owner.end()
            nursery.cancel_scope.cancel()
    assert owner.messages == [(TEXT, b"%d" % index) for index in range(360)]


async def test_silence(autojump_clock: trio.testing.MockClock) -> None:
    """No pong and nothing else for the timeout: the connection is retired as silent, never early."""
    async with over_memory() as (owner, _):
        started = trio.current_time()
        with pytest.raises(ConnectionLost) as caught:
            await owner.websocket.ping(5)
        assert caught.value.how == "silence"
        assert trio.current_time() - started == pytest.approx(5)
        ended = await owner.end()
        assert isinstance(ended, ConnectionLost)
        assert ended.how == "silence"
        assert owner.told == [ended]


async def test_any_frame_proves_life(autojump_clock: trio.testing.MockClock) -> None:
    """While tokens come, a pong held back beyond the timeout is waited for; its true round trip is returned."""
    async with over_memory() as (owner, peer):

        async def server() -> None:
            [(_, payload)] = unmask(await peer.receive_some())
            for _ in range(4):
                await trio.sleep(3)
                await peer.send_all(encode_server_frame(CONTINUATION if _ else TEXT, b"piece", False))
            await trio.sleep(0.5)
            await peer.send_all(encode_server_frame(PONG, payload))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            assert await owner.websocket.ping(5) == pytest.approx(12.5)


async def test_life_then_silence(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that speaks once more and then falls silent is retired `timeout` after its last word."""
    async with over_memory() as (owner, peer):

        async def server() -> None:
            await trio.sleep(3)
            await peer.send_all(encode_server_frame(TEXT, b"still here"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            started = trio.current_time()
            with pytest.raises(ConnectionLost):
                await owner.websocket.ping(5)
        assert trio.current_time() - started == pytest.approx(8)


async def test_one_pong_answers_earlier_pings(autojump_clock: trio.testing.MockClock) -> None:
    """A peer may answer only the latest of several pings; unasked pongs are ignored."""
    async with over_memory() as (owner, peer):

        async def server() -> None:
            frames: list[tuple[int, bytes]] = []
            while len(frames) < 3:
                frames += unmask(await peer.receive_some())
            await peer.send_all(encode_server_frame(PONG, b"unasked") + encode_server_frame(PONG, b""))
            await trio.sleep(1)
            await peer.send_all(encode_server_frame(PONG, frames[-1][1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            for _ in range(3):
                nursery.start_soon(owner.websocket.ping, 5)
        assert owner.told == []


async def test_ping_ends_with_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    """A ping in flight when the peer closes raises with the peer's reason, at once."""
    async with over_memory() as (owner, peer):

        async def server() -> None:
            await trio.sleep(1)
            await peer.send_all(encode_server_frame(CLOSE, b"\x03\xf5soon"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            started = trio.current_time()
            with pytest.raises(ConnectionLost) as caught:
                await owner.websocket.ping(60)
        assert (caught.value.how, caught.value.close_code, caught.value.reason) == ("close", 1013, "soon")
        assert trio.current_time() - started == pytest.approx(1)


async def test_peer_that_stops_reading_for_good(autojump_clock: trio.testing.MockClock) -> None:
    """A write that fails while nothing can be read retires the connection, and the owner is told."""
    async with over_memory() as (owner, peer):
        peer.receive_stream.close()
        started = trio.current_time()
        owner.websocket.send(0, b"into the void")
        ended = await owner.end(10)
        assert trio.current_time() - started <= 0.5
        assert isinstance(ended, ConnectionLost)
        assert ended.how == "reset"
        assert owner.told == [ended]
        with pytest.raises(ConnectionLost):
            owner.websocket.send(0, b"late")


async def test_a_send_that_nobody_takes_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes the peer does not read are pending; silence retires the connection all the same."""
    async with over_memory(trio.testing.lockstep_stream_pair) as (owner, _):
        for _ in range(3):
            owner.websocket.send(0, b"x" * 1000)
        assert owner.websocket.pending_bytes > 3000
        with pytest.raises(ConnectionLost) as caught:
            await owner.websocket.ping(5)
        assert caught.value.how == "silence"
        assert (await owner.end()).close_code == 1006
        assert owner.websocket.pending_bytes == 0


async def test_write_fails_during_the_upgrade(autojump_clock: trio.testing.MockClock) -> None:
    """A stream that takes no request fails the upgrade in half a second, as a failure to connect."""
    ours, theirs = trio.testing.memory_stream_pair()
    theirs.receive_stream.close()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    with pytest.raises(ConnectFailed) as caught, trio.fail_after(1):
        await open_websocket(dialer, "h", "/", print, pump=IDLE, headers=[])
    assert caught.value.stage == "upgrade"


@pytest.mark.parametrize(("host", "resource"), [("h", "/\u00e9"), ("h", "/a b"), ("a..b", "/"), ("h\r\nX: y", "/")])
async def test_a_request_that_cannot_be_written(
    autojump_clock: trio.testing.MockClock, host: str, resource: str
) -> None:
    """A host or path that HTTP cannot carry fails at once, whoever let it through."""
    ours, _theirs = trio.testing.memory_stream_pair()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    started = trio.current_time()
    with pytest.raises(ConnectFailed) as caught:
        await open_websocket(dialer, host, resource, print, pump=IDLE, headers=[])
    assert (caught.value.stage, caught.value.timed_out) == ("upgrade", False)
    assert trio.current_time() == started


async def test_a_bug_in_the_sink_is_not_hidden(autojump_clock: trio.testing.MockClock) -> None:
    """An exception of the sink other than MalformedFrame comes out of the pump, and the stream is closed."""
    ours, theirs = trio.testing.memory_stream_pair()
    owner = Owner()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    def sink(_: object) -> None:
        raise ValueError("a bug")

    owner.sink_now = sink
    async with trio.open_nursery() as nursery:

        async def peer() -> None:
            await theirs.send_all(switching(await request(theirs)) + encode_server_frame(TEXT, b"x"))
            await drain(theirs)

        nursery.start_soon(peer)
        with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="a bug"), flatten_subgroups=True):
            await owner.run(dialer, {})


@pytest.mark.parametrize("how", ["abort", "refuse"])
async def test_the_sink_may_end_it(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """A sink may abort its own connection in the middle of a read; nothing more is delivered."""
    async with over_memory() as (owner, peer):

        def sink(messages: list[tuple[int, bytes]]) -> None:
            owner.reads.append(messages)
            if how == "refuse":
                raise MalformedFrame("no")
            owner.websocket.abort()

        owner.sink_now = sink
        await peer.send_all(encode_server_frame(TEXT, b"one"))
        with trio.fail_after(1):
            await owner.ended.wait()
        assert owner.messages == [(TEXT, b"one")]
        assert len(owner.told) == (how == "refuse")
