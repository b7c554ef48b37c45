"""The pump and its wires: one pass for all that is ready, one flush, others' turns, and every way a socket may end."""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from sidecar.config import Tls
from sidecar.transport.dial import make_tls_context
from sidecar.transport.pump import GATHER, Pump
from sidecar.transport.stream_wire import StreamWire
from sidecar.transport.tls import TlsStream
from sidecar.transport.wires import FEWEST_BYTES, READ_BYTES, SocketWire, Wire
from tests.fakes.websockets_server import Authority


class Sink:
    """A `Receiver` that keeps what it is told."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.ended: list[tuple[str, str]] = []
        self.unwritable = 0
        self.aborted: list[int] = []
        self.wire: Wire | None = None

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self.reads)

    def feed(self, data: bytes, now: float) -> None:
        """See `wires.Receiver`."""
        self.reads.append(data)

    def end_of_input(self, how: str, reason: str) -> None:
        """See `wires.Receiver`; as the WebSocket does, it closes."""
        self.ended.append((how, reason))
        assert self.wire is not None
        self.wire.close()

    def cannot_write(self) -> None:
        """See `wires.Receiver`."""
        self.unwritable += 1

    def abort(self, code: int) -> None:
        """See `wires.Receiver`."""
        self.aborted.append(code)
        assert self.wire is not None
        self.wire.close()


class Passes:
    """Counts flushes, and lets a test wait for them."""

    def __init__(self) -> None:
        self.count = 0
        self.happened = trio.Event()

    def flush(self) -> None:
        """The end of a pass."""
        self.count += 1
        self.happened.set()

    async def until(self, condition: object) -> None:
        """Wait for a callable to be true, looking after each pass."""
        assert callable(condition)
        with trio.fail_after(10):
            while not condition():
                self.happened = trio.Event()
                await self.happened.wait()


@asynccontextmanager
async def pumping() -> AsyncIterator[tuple[Pump, Passes]]:
    """A running pump."""
    passes = Passes()
    pump = Pump(flush=passes.flush, clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        yield pump, passes
        nursery.cancel_scope.cancel()


@contextmanager
def pair() -> Iterator[tuple[trio.SocketStream, socket.socket]]:
    """A connected TCP pair: ours as a stream of Trio's, theirs as a plain blocking socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    far.settimeout(10)
    with far:
        yield trio.SocketStream(trio.socket.from_stdlib_socket(near)), far


def started(pump: Pump, stream: trio.abc.Stream, early: bytes = b"") -> Sink:
    """`stream` on the pump, feeding a sink."""
    sink = Sink()
    wire = sink.wire = pump.wire(stream, early)
    wire.start(sink)
    return sink


async def test_what_is_ready_together_is_one_pass() -> None:
    """Bytes that lie in several sockets are read in one pass with one flush, and early ones come first."""
    with pair() as (one, far_one), pair() as (two, far_two):
        far_one.sendall(b"1")
        far_two.sendall(b"2")
        async with pumping() as (pump, passes):
            sinks = [started(pump, one, b"early "), started(pump, two)]
            assert sinks[0].reads == [b"early "]
            await passes.until(lambda: sinks[0].data == b"early 1" and sinks[1].data == b"2")
            assert passes.count == 1
            for sink in sinks:
                assert sink.wire is not None
                sink.wire.close()


async def test_more_than_a_pass_takes_is_not_forgotten() -> None:
    """More sockets than one pass reads are all read, each once, before any is read again."""
    count = GATHER + 5
    async with pumping() as (pump, passes):
        near, far = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        sinks = []
        for ours, theirs in zip(near, far, strict=True):
            theirs.send(b"x")
            sinks.append(started(pump, trio.SocketStream(trio.socket.from_stdlib_socket(ours))))
        await passes.until(lambda: all(sink.reads for sink in sinks))
        assert [sink.reads for sink in sinks] == [[b"x"]] * count
        assert passes.count == 2
        for theirs in far:
            theirs.close()
        await passes.until(lambda: all(sink.ended for sink in sinks))


async def test_a_flood_leaves_others_their_turn() -> None:
    """While more comes than can be read, every other task runs on."""
    with pair() as (near, far):
        far.setblocking(False)
        turns = 0

        async def flood() -> None:
            while True:
                try:
                    far.send(b"x" * READ_BYTES)
                except BlockingIOError:
                    pass
                await trio.lowlevel.checkpoint()

        async with pumping() as (pump, passes):
            sink = started(pump, near)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                while passes.count < 50:
                    turns += 1
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert turns > 10
            assert sink.wire is not None
            sink.wire.close()


class Poller:
    """A pump that only tells the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def enlist(self, fd: int, wire: SocketWire) -> None:
        """See `wires.Poller`."""

    def discharge(self, fd: int) -> None:
        """See `wires.Poller`."""


def test_of_what_takes_long_less_is_read_at_once() -> None:
    """A peer whose bytes take a hundred times as long as others' does not hold up everybody for as long."""
    near, far = socket.socketpair()
    poller = Poller()

    class Slow(Sink):
        per_byte = 1e-6

        def feed(self, data: bytes, now: float) -> None:
            """See `Receiver`."""
            super().feed(data, now)
            poller.now += len(data) * self.per_byte

    sink = Slow()
    near.setblocking(False)
    with far:
        wire = SocketWire(near.detach(), None, b"", cast("Any", poller))
        wire.start(sink)
        taken = []
        for _ in range(40):
            sink.per_byte = 1e-6 if len(taken) < 20 else 1e-9
            with suppress(BlockingIOError):
                far.send(bytes(200_000), socket.MSG_DONTWAIT)
            taken.append(wire.ready(select.EPOLLIN, 0.0))
        sizes = [len(data) for data in sink.reads]
        assert sizes[0] == READ_BYTES
        assert sizes[10:20] == [FEWEST_BYTES] * 10
        assert set(sizes[30:]) == {READ_BYTES}
        assert taken[0] == taken[19] == READ_BYTES  # after it the pass is over
        wire.close()


async def test_what_others_wait_for_ends_the_pumps_own_waiting() -> None:
    """While tokens come densely (here: time stands still) a heeded descriptor gets its task a turn."""
    reader, writer = os.pipe()
    passes = Passes()
    pump = Pump(flush=passes.flush, clock=lambda: 0.0)
    pump.heed(reader)
    with pair() as (near, far):
        async with trio.open_nursery() as nursery:
            await nursery.start(pump.run)
            sink = started(pump, near)
            os.write(writer, b"!")
            far.sendall(b"token")
            await passes.until(lambda: sink.data == b"token")
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(reader)
            os.read(reader, 1)
            nursery.cancel_scope.cancel()
        assert sink.aborted == [1001]
    os.close(reader)
    os.close(writer)


class Closing(Sink):
    """Closes another one as soon as it is fed."""

    other: Sink

    def feed(self, data: bytes, now: float) -> None:
        """See `wires.Receiver`."""
        super().feed(data, now)
        assert self.other.wire is not None
        self.other.wire.close()


async def test_one_that_is_closed_in_the_pass_is_not_read() -> None:
    """A sink may close another connection that is ready, too: nothing is read from it, nor from who got its number."""
    with pair() as (one, far_one), pair() as (two, far_two):
        far_one.sendall(b"first")
        far_two.sendall(b"second")
        async with pumping() as (pump, passes):
            sinks = [Closing(), Closing()]
            for sink, other, stream in zip(sinks, reversed(sinks), (one, two), strict=True):
                sink.other, sink.wire = other, pump.wire(stream, b"")
            for sink in sinks:
                assert sink.wire is not None
                sink.wire.start(sink)
            await passes.until(lambda: any(sink.reads for sink in sinks))
            await trio.testing.wait_all_tasks_blocked()
            assert sum(len(sink.reads) for sink in sinks) == 1
            for sink in sinks:
                assert sink.wire is not None
                sink.wire.close()
                sink.wire.close()


async def test_what_the_kernel_does_not_take_goes_out_later_in_order() -> None:
    """Writes never wait; what is left over is counted, goes out when the peer reads, and nothing is torn."""
    with pair() as (near, far):
        async with pumping() as (pump, _):
            sink = started(pump, near)
            wire = sink.wire
            assert isinstance(wire, SocketWire)
            sent = [bytes([65 + index % 26]) * 300_000 for index in range(40)]
            for piece in sent:
                wire.write(piece)
            assert wire.pending_bytes > 0
            wire.last_words(b"not while something is pending")

            def read() -> bytes:
                data = bytearray()
                while len(data) < sum(map(len, sent)):
                    data += far.recv(1 << 20)
                return bytes(data)

            assert await trio.to_thread.run_sync(read) == b"".join(sent)
            with trio.fail_after(5):
                while wire.pending_bytes:
                    await trio.sleep(0.001)
            wire.last_words(b"bye")
            wire.close()
            assert far.recv(10) == b"bye"
            assert far.recv(10) == b""
            with pytest.raises(trio.BrokenResourceError):
                wire.write(b"late")


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_the_end(how: str) -> None:
    """An end of stream and a reset are told apart, after what came before them."""
    with pair() as (near, far):
        async with pumping() as (pump, passes):
            sink = started(pump, near)
            far.sendall(b"last")
            await passes.until(lambda: sink.data == b"last")
            if how == "reset":
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            far.close()
            await passes.until(lambda: bool(sink.ended))
            assert sink.ended[0][0] == how


async def test_a_pushed_write_that_fails_is_told() -> None:
    """Bytes that wait when the peer resets: the receiver is told that it has ended, once."""
    with pair() as (near, far):
        async with pumping() as (pump, passes):
            sink = started(pump, near)
            assert sink.wire is not None
            for _ in range(40):
                sink.wire.write(b"x" * 300_000)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            far.close()
            await passes.until(lambda: bool(sink.ended))
            assert sink.unwritable <= 1
            assert len(sink.ended) == 1
            assert sink.wire.pending_bytes == 0


async def test_any_other_stream_is_read_by_a_task() -> None:
    """A stream that is no socket: the same bytes, a flush for each read, and its end."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with pumping() as (pump, passes):
        sink = started(pump, ours, b"early ")
        assert isinstance(sink.wire, StreamWire)
        sink.wire.write(b"one ")
        sink.wire.write(b"two")
        assert await theirs.receive_some() == b"one two"
        await theirs.send_all(b"token")
        await passes.until(lambda: sink.data == b"early token")
        await theirs.aclose()
        await passes.until(lambda: bool(sink.ended))
        assert sink.ended == [("eof", "end of stream")]


async def test_a_stream_that_was_never_started_is_closed() -> None:
    """A connection given up before its first byte leaves nothing open, whatever it is made of."""
    ours, theirs = trio.testing.memory_stream_pair()
    with pair() as (near, far):
        async with pumping() as (pump, _):
            pump.wire(ours, b"").close()
            pump.wire(near, b"").close()
            assert await theirs.receive_some() == b""
            assert await trio.to_thread.run_sync(far.recv, 1) == b""


# ------------------------------------------------------------------------------------------------ TLS


@asynccontextmanager
async def secured(tmp_path: Path) -> AsyncIterator[tuple[Pump, Passes, Sink, ssl.SSLSocket]]:
    """A wire with TLS on a socket, and the server's end."""
    authority = Authority(tmp_path)
    with pair() as (near, far):
        async with pumping() as (pump, passes):
            client = TlsStream(near, make_tls_context(Tls(ca_file=authority.ca_file)), "localhost")
            server: list[ssl.SSLSocket] = []

            def accept() -> None:
                server.append(authority.server_context().wrap_socket(far, server_side=True))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, accept)
                await client.handshake()
            sink = started(pump, client)
            assert isinstance(sink.wire, SocketWire)
            with server[0]:
                yield pump, passes, sink, server[0]


async def test_tls_both_ways(tmp_path: Path) -> None:
    """Records of one token each come out in order; what is written comes out whole, also when the kernel is full."""
    async with secured(tmp_path) as (_, passes, sink, server):
        for index in range(100):
            server.sendall(b"%02d " % index)
        await passes.until(lambda: len(sink.data) == 300)
        assert sink.data == b"".join(b"%02d " % index for index in range(100))
        assert sink.wire is not None
        sink.wire.write(b"short")
        assert server.recv(10) == b"short"
        for _ in range(40):
            sink.wire.write(b"y" * 300_000)
        assert sink.wire.pending_bytes > 0

        def read() -> int:
            total = 0
            while total < 40 * 300_000:
                data = server.recv(1 << 20)
                assert data == b"y" * len(data)
                total += len(data)
            return total

        assert await trio.to_thread.run_sync(read) == 40 * 300_000
        sink.wire.close()


@pytest.mark.parametrize("how", ["close_notify", "cut", "forged"])
async def test_tls_ends(tmp_path: Path, how: str) -> None:
    """close_notify and a bare end are an end of stream, a forged record is a reset; data before counts."""
    async with secured(tmp_path) as (_, passes, sink, server):
        server.sendall(b"last")
        if how == "close_notify":
            server.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                server.unwrap()
        elif how == "cut":
            os.close(server.detach())
        else:
            os.write(server.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
        await passes.until(lambda: bool(sink.ended))
        assert sink.data == b"last"
        assert sink.ended[0][0] == ("reset" if how == "forged" else "eof")
        assert ("TLS" in sink.ended[0][1]) == (how == "forged")


async def test_tls_says_goodbye(tmp_path: Path) -> None:
    """Last words go out encrypted, with a close_notify behind them."""
    async with secured(tmp_path) as (_, _passes, sink, server):
        assert sink.wire is not None
        sink.wire.last_words(b"bye")
        sink.wire.close()
        assert server.recv(10) == b"bye"
        assert server.recv(10) == b""
