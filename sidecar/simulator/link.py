"""One accepted socket, TLS or not, with a synchronous `send` that never blocks and an end of every kind.

A plain non-blocking socket rather than a `trio.SocketStream`: a relay that misbehaves needs resets, half-closes
and writes that need no checkpoint.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Final, NoReturn

import trio

from sidecar.simulator.counters import Counters
from sidecar.simulator.toxics import Toxic

_WRITE: Final = 256 << 10
_TCP_ESTABLISHED: Final = 1


class Link:
    """Bytes to and from one client.

    Resource handling: `close` or `reset` ends it; both may be called twice. `run` must run beside it, or what the
    kernel does not take at once stays here.

    Args:
        sock: non-blocking, connected; owned from here on.
        counters: bytes are counted as the kernel takes and gives them (TLS records, not plaintext).
    """

    def __init__(self, sock: socket.socket, counters: Counters) -> None:
        self._sock = sock
        self._counters = counters
        self._pending = bytearray()
        self._pushed = trio.Event()
        self._waiting = trio.lowlevel.ParkingLot()
        self._large: list[bytes] | None = None  # what waits for the end of a large write
        self._one_large = trio.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._last = False
        self._finishing = trio.Event()
        self._toxic: Toxic | None = None
        self.closed = False
        #: of the connection, for the journal
        self.number = 0

    async def secure(self, context: ssl.SSLContext) -> None:
        """The server's side of a TLS handshake.

        Raises:
            OSError: it failed (`ssl.SSLError` is one), or the client went away.
        """
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._push(self._outgoing.read())
                data = await self._read_socket(16384)
                if not data:
                    raise ConnectionResetError("EOF in the TLS handshake") from None
                self._incoming.write(data)
                continue
            self._push(self._outgoing.read())
            return

    async def receive(self, size: int = 65536) -> bytes:
        """What came, at least one byte; ``b""`` at the end.

        Raises:
            OSError: reset, or a broken TLS record.
            trio.ClosedResourceError: we closed it.
        """
        if self._tls is None:
            return await self._read_socket(size)
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._push(self._outgoing.read())
                data = await self._read_socket(size)
                if not data:
                    return b""
                self._incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""

    async def _read_socket(self, size: int) -> bytes:
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                continue
            self._counters.bytes_in += len(data)
            return data

    def send(self, data: bytes | memoryview) -> None:
        """Hand over, in order, without waiting. After the end: dropped."""
        if self.closed:
            return
        if self._large is not None:
            self._large.append(bytes(data))  # not into the middle of a frame
            return
        self._send(data)

    def _send(self, data: bytes | memoryview) -> None:
        if self._tls is None:
            self._push(data)
        else:
            try:
                self._tls.write(data)
            except OSError:
                return  # after the client's own farewell
            self._push(self._outgoing.read())

    def _push(self, data: bytes | memoryview) -> None:
        if not data or self.closed or self._last:
            return
        if self._toxic is not None:
            self._toxic.put(data)
        else:
            self._pass(data)

    def _pass(self, data: bytes | memoryview) -> None:
        """To the kernel, or behind what it did not take."""
        sent = 0
        if not self._pending:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                return  # the reader learns of it
            self._counters.bytes_out += sent
            if sent == len(data):
                return
        self._pending += memoryview(data)[sent:]
        self._pushed.set()

    async def send_large(self, data: bytes) -> None:
        """Send in large writes, waiting while the client does not read. What `send` is given meanwhile comes after."""
        async with self._one_large:
            self._large = []
            try:
                view = memoryview(data)
                for start in range(0, len(view), _WRITE):
                    self._send(view[start : start + _WRITE])
                    await self.drained()
            finally:
                self._release()

    async def drip(self, data: bytes, pause: float) -> None:
        """Send a byte at a time, so many seconds apart. What `send` is given meanwhile comes after."""
        async with self._one_large:
            self._large = []
            try:
                for index in range(len(data)):
                    self._send(data[index : index + 1])
                    await trio.sleep(pause)
            finally:
                self._release()

    def _release(self) -> None:
        held, self._large = self._large or [], None
        for frame in held:
            self.send(frame)

    async def drained(self, below: int = _WRITE) -> None:
        """Wait until less than `below` bytes are waiting for the kernel. A checkpoint in any case."""
        await trio.lowlevel.checkpoint()
        while self.backlog >= below and not self.closed:
            await self._waiting.park()

    async def run(self) -> NoReturn:
        """Write what the kernel did not take at once, for ever."""
        while True:
            await self._pushed.wait()
            while self._pending and not self.closed:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                    with memoryview(self._pending) as whole, whole[:_WRITE] as slab:
                        sent = self._sock.send(slab)
                except BlockingIOError:
                    continue
                except (OSError, trio.ClosedResourceError):
                    sent = len(self._pending)  # nobody will read it
                else:
                    self._counters.bytes_out += sent
                del self._pending[:sent]
                self._waiting.unpark_all()
            self._pushed = trio.Event()
            if self._last:
                self._shut()

    @property
    def backlog(self) -> int:
        """Bytes waiting for a bad line, or for the kernel to take them."""
        return len(self._pending) + (self._toxic.size if self._toxic is not None else 0)

    def deliver(self, data: bytes) -> None:
        """What comes out of a bad line."""
        if not self.closed:
            self._pass(data)
            self._waiting.unpark_all()

    def poison(self, toxic: Toxic) -> None:
        """From here all that is sent goes over a bad line; `worsen` must run."""
        self._toxic = toxic

    async def worsen(self) -> None:
        """The bad line, its end too: returns after EOF, not before."""
        assert self._toxic is not None
        toxic = self._toxic
        async with trio.open_nursery() as nursery:
            nursery.start_soon(toxic.run)
            await self._finishing.wait()
            await toxic.emptied()
            if toxic.silent:
                await trio.sleep_forever()
            await trio.sleep(toxic.line.slow_close_s)
            self._toxic = None
            self._shut()
            nursery.cancel_scope.cancel()

    @property
    def abandoned(self) -> bool:
        """The client's kernel has closed its side (learnt without reading)."""
        try:
            state: int = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return True
        return state != _TCP_ESTABLISHED

    @property
    def alpn(self) -> str | None:
        """What TLS agreed on."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    def finish(self, *, farewell: bool = False) -> None:
        """EOF to the client; reading goes on, or the kernel would say RST. TLS's own farewell only if asked for."""
        if farewell and self._tls is not None and not self._last:
            try:
                self._tls.unwrap()
            except OSError:
                pass  # it waits for the client's, as we do not
            self._push(self._outgoing.read())
        self._last = True
        self._finishing.set()
        self._shut()

    def _shut(self) -> None:
        if not self.closed and not self._pending and self._toxic is None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def close(self) -> None:
        """End it; what is pending is lost."""
        if not self.closed:
            self.closed = True
            self._pending.clear()
            self._waiting.unpark_all()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def reset(self) -> None:
        """End it with a TCP RST."""
        if not self.closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()
