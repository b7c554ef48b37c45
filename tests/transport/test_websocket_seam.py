"""The byte-stream seam: the same code over memory streams and virtual time, keepalive above all."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sidecar.errors import ConnectionLost
from sidecar.transport.frames import CLOSE, CONTINUATION, PING, PONG, TEXT, encode_server_frame
from tests.fakes.raw_upstream import (
    over_memory,
    unmask,
)


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
                owner.websocket.send_text(b"%d" % index)
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
