"""The data plane attacked: writes before the start, an answer of TLS to who is gone, bots' fd that nobody drains."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sidecar.transport.websocket as upgrading
from sidecar.transport.handover import Handover
from sidecar.transport.pump import Pump
from sidecar.transport.wires import SocketWire
from tests.fakes.raw_upstream import drain, request, running_pump, serve, switching
from tests.transport.test_pump import Sink, pair, pumping, secured, started


async def test_what_was_written_before_the_start_goes_out() -> None:
    """A call may wait for a connection and be sent before its first read: what the kernel does not take follows."""
    with pair() as (near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        async with pumping() as (pump, _):
            sink = Sink()
            wire = sink.wire = pump.wire(near, b"")
            wire.write(b"x" * 2_000_000)
            assert wire.pending_bytes > 0
            wire.start(sink)

            def read() -> int:
                total = 0
                while total < 2_000_000:
                    total += len(far.recv(1 << 20))
                return total

            assert await trio.to_thread.run_sync(read) == 2_000_000
            wire.close()


async def test_an_alert_that_cannot_be_sent_ends_one_connection_only(tmp_path: Path) -> None:
    """Records that make no sense and a reset behind them: TLS wants to answer, nobody is there; the pump goes on."""
    async with secured(tmp_path) as (pump, passes, sink, server):
        server.sendall(b"last")
        await passes.until(lambda: sink.data == b"last")
        with socket.socket(fileno=server.detach()) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await passes.until(lambda: bool(sink.ended))
        assert sink.ended[0][0] == "reset"
        assert "TLS" in sink.ended[0][1]
        with pair() as (near, far):
            other = started(pump, near)
            far.sendall(b"still alive")
            await passes.until(lambda: other.data == b"still alive")


async def test_a_bots_socket_that_nobody_drains_is_no_busy_loop() -> None:
    """The heeded descriptor stays readable while tokens stop: the pump lets Trio wait all the same."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pair() as (near, far):
        async with pumping() as (pump, passes):
            pump.heed(ours.fileno())
            sink = started(pump, near)
            far.sendall(b"1")
            await passes.until(lambda: sink.data == b"1")
            pump._close_by = True  # as after two tokens within a millisecond
            theirs.send(b"x")
            far.sendall(b"2")
            await passes.until(lambda: sink.data == b"12")
            await trio.sleep(0.02)
            before = passes.count
            await trio.sleep(0.05)
            assert passes.count - before <= 1
            assert sink.wire is not None
            sink.wire.close()


async def test_cancelled_as_the_upgrade_ends_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the very step in which the answer was complete: no connection is handed to a pump that has ended."""
    ours, theirs = trio.testing.memory_stream_pair()
    scope = trio.CancelScope()

    async def run(*_: Any) -> tuple[bytes, tuple[()]]:
        scope.cancel()
        return b"", ()

    async def dial() -> trio.abc.Stream:
        return ours

    monkeypatch.setattr(upgrading._Upgrade, "run", run)
    pump = Pump(flush=lambda: None, clock=trio.current_time)
    opened = []
    with scope:
        opened.append(
            await upgrading.open_websocket(dial, "h", "/", lambda _payloads, _binary, _now: None, pump=pump, headers=[])
        )
    assert not opened
    assert await theirs.receive_some() == b""


async def test_what_comes_after_the_pumps_end_is_closed() -> None:
    """A connection handed to a pump that has ended is told so and closed: nobody would ever read it."""
    with pair() as (near, far):
        async with pumping() as (pump, _):
            pass
        sink = started(pump, near)
        assert sink.aborted == [1001]
        assert await trio.to_thread.run_sync(far.recv, 1) == b""


async def test_a_connection_needs_no_descriptor_beside_its_own() -> None:
    """The dial may have taken the last one: the first connection stands all the same."""
    with pair() as (near, far):
        async with pumping() as (pump, passes):
            before = len(os.listdir("/proc/self/fd"))
            sink = started(pump, near)
            far.sendall(b"here")
            await passes.until(lambda: sink.data == b"here")
            assert len(os.listdir("/proc/self/fd")) <= before
            assert sink.wire is not None
            sink.wire.close()


@pytest.mark.parametrize("kind", ["socket", "stream"])
async def test_one_closed_before_or_in_its_start_is_closed_once_and_says_nothing(kind: str) -> None:
    """Given up before its first byte, or by it: no reader begins, and nothing is fed afterwards."""

    class Closing(Sink):
        def feed(self, data: bytes, now: float) -> None:
            super().feed(data, now)
            assert self.wire is not None
            self.wire.close()

    for early in (True, False):
        ours, theirs = trio.testing.memory_stream_pair()
        with pair() as (near, far):
            async with pumping() as (pump, passes):
                sink = Closing()
                wire = sink.wire = pump.wire(near if kind == "socket" else ours, b"early")
                if early:
                    wire.close()
                wire.start(sink)
                if kind == "stream":
                    assert await theirs.receive_some() == b""
                else:
                    assert await trio.to_thread.run_sync(far.recv, 1) == b""
                assert sink.reads == ([] if early else [b"early"])
                assert sink.ended == []
                assert passes.count == 0
                near.socket.close()


@pytest.mark.parametrize("last", [b"", b"\xff\xff"])
async def test_a_connection_that_is_over_is_freed_at_once(last: bytes) -> None:
    """Cut or retired for garbage: nothing of it or of its upgrade waits for the collector, TLS least of all."""
    told = []

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(switching(await request(stream)) + last)
        if last:
            await drain(stream)

    gc.collect()
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            dial = await serve(nursery, handler)
            async with running_pump() as pump:
                websocket, _ = await upgrading.open_websocket(
                    dial,
                    "h",
                    "/",
                    lambda _payloads, _binary, _now: None,
                    pump=pump,
                    headers=[],
                    ended=lambda fault, _ours: told.append(fault),
                )
                websocket.start()
                await websocket.wait_closed()
                assert len(told) == 1
                del websocket
                await trio.testing.wait_all_tasks_blocked()
                kept = [one for one in gc.get_objects() if isinstance(one, (Handover, upgrading.WebSocket, SocketWire))]
                assert kept == []
            nursery.cancel_scope.cancel()
    finally:
        gc.enable()
