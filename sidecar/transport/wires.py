"""The bytes of one WebSocket after its upgrade: how they come in and how they go out. One door, two kinds of wire.

`SocketWire` is real life: a descriptor in the pump's epoll, TLS (if any) beside it, and no task at all. `StreamWire`
is any other `trio.abc.Stream`, a simulation's above all: the same bytes, read by a task of its own. Both push what
comes into one `Receiver` and never tear a frame going out: nobody waits inside a write.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Final, Literal, Protocol

import trio

from sidecar.transport.tls import TlsState

#: Bytes read at once: some 500 tokens of a flood, half a millisecond of work. More gives longer deltas, thus fewer
#: messages (256 KiB: 10 % more tokens per CPU-second), and holds up everybody else for longer.
READ_BYTES: Final = 131_072
#: Where `tcpi_rtt`, 32 bits of microseconds, stands in the kernel's struct tcp_info (linux/tcp.h).
_RTT_AT: Final = 68
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


class Receiver(Protocol):
    """Whom a wire feeds: `conversation.WebSocket`. Nothing here may block; `MalformedFrame` does not come out."""

    def feed(self, data: bytes, now: float) -> None:
        """The next bytes."""
        ...

    def end_of_input(self, how: Literal["eof", "reset"], reason: str) -> None:
        """No more will come: `eof`, or `reset` with the system's word for it."""
        ...

    def cannot_write(self) -> None:
        """Nothing can be sent any more; what the peer said before may still be read."""
        ...

    def abort(self, code: int) -> None:
        """Close now, with a Close frame if that needs no waiting."""
        ...


class Wire(Protocol):
    """What a WebSocket asks of its bytes' way."""

    @property
    def pending_bytes(self) -> int:
        """Accepted and not yet taken by the kernel (or the stream)."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Begin to feed `receiver`, with what came behind the upgrade first."""
        ...

    def write(self, data: bytes) -> None:
        """Send `data` after all before it; returns at once.

        Raises:
            BrokenResourceError: the peer is gone; nothing more can be sent.
        """
        ...

    def last_words(self, data: bytes) -> None:
        """Send `data` if that needs no waiting; else do not mind. `close` follows."""
        ...

    def close(self) -> None:
        """Close, forget what is pending, feed nothing more."""
        ...

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Call `step` after so many seconds, unless everything ends before."""
        ...

    def round_trip(self) -> float | None:
        """Seconds that the kernel sees a round trip take; None where there is no kernel to ask."""
        ...


class Poller(Protocol):
    """What a wire needs of the pump."""

    nursery: trio.Nursery
    clock: Callable[[], float]
    flush: Callable[[], None]

    def enlist(self, fd: int, wire: SocketWire) -> None:
        """Have `wire.ready` called when `fd` is readable."""
        ...

    def want(self, fd: int, events: int) -> None:
        """Change what `fd` is watched for."""
        ...

    def discharge(self, fd: int) -> None:
        """`fd` is about to be closed."""
        ...


async def call_later(seconds: float, step: Callable[[], None], flush: Callable[[], None]) -> None:
    """A timer for what happens once in a connection's, or an exchange's, life: a pass of its own."""
    await trio.sleep(seconds)
    step()
    flush()


class SocketWire:
    """A connected, non-blocking TCP socket, owned as a bare descriptor.

    Args:
        fd: owned from here on.
        tls: the conversation on it after its handshake; None for a plain one.
        early: plaintext that was read already.
        pump: has the epoll.
    """

    __slots__ = ("_early", "_fd", "_pump", "_receiver", "_tls", "_unsent")

    def __init__(self, fd: int, tls: TlsState | None, early: bytes, pump: Poller) -> None:
        self._fd, self._tls, self._early, self._pump = fd, tls, early, pump
        self._receiver: Receiver | None = None
        self._unsent: bytearray | None = None

    @property
    def pending_bytes(self) -> int:
        """See `Wire`."""
        return len(self._unsent) if self._unsent else 0

    def start(self, receiver: Receiver) -> None:
        """See `Wire`."""
        if self._fd < 0:
            return  # closed before it began: no circle of references
        self._receiver = receiver
        if self._early:
            early, self._early = self._early, b""
            receiver.feed(early, self._pump.clock())
        if self._fd >= 0:
            self._pump.enlist(self._fd, self)
            if self._unsent:  # of a call that waited for this connection
                self._pump.want(self._fd, _IN | _OUT)

    def ready(self, events: int, now: float) -> int:
        """The pump found the socket ready: one read, one feed. -> bytes read."""
        receiver = self._receiver
        if receiver is None or self._fd < 0:
            return 0
        if events & _OUT:
            self._push()
        if not events & ~_OUT:
            return 0
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError as error:
            receiver.end_of_input("reset", error.strerror or "reset")
            return 0
        size = len(data)
        if self._tls is None:
            if data:
                receiver.feed(data, now)
            else:
                receiver.end_of_input("eof", "end of stream")
        else:
            self._feed_tls(data, self._tls, receiver, now)
        return size

    def _feed_tls(self, data: bytes, tls: TlsState, receiver: Receiver, now: float) -> None:
        plain = b""
        if data:
            tls.give(data)
            plain = tls.read()
            answer = tls.take()
            if answer:  # an alert, or the answer to a key update
                try:
                    self._send(answer)
                except trio.BrokenResourceError:
                    if tls.fault is None:  # else the end is told below, with a better reason
                        receiver.cannot_write()
        if plain:
            receiver.feed(plain, now)
        if tls.fault is not None:
            receiver.end_of_input("reset", f"TLS: {tls.fault.reason or tls.fault}")
        elif tls.ended or not data:
            receiver.end_of_input("eof", "end of stream")

    def abandon(self) -> None:
        """The pump ends, and nobody has closed this one."""
        if self._receiver is not None:
            self._receiver.abort(1001)

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        if self._fd < 0:
            raise trio.BrokenResourceError("closed")
        if self._tls is not None:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(f"TLS: {error.reason or error}") from None
            data = self._tls.take()
        self._send(data)

    def _send(self, data: bytes) -> None:
        """Give the kernel what it takes, and keep the rest."""
        if self._unsent:
            self._unsent += data
            return
        try:
            taken = os.write(self._fd, data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            raise trio.BrokenResourceError(error.strerror) from None
        if taken < len(data):
            self._unsent = bytearray(memoryview(data)[taken:])
            self._pump.want(self._fd, _IN | _OUT)

    def _push(self) -> None:
        """The kernel takes bytes again."""
        unsent = self._unsent
        if unsent:
            try:
                del unsent[: os.write(self._fd, unsent)]
            except BlockingIOError:
                return
            except OSError:
                unsent.clear()
                assert self._receiver is not None
                self._receiver.cannot_write()
        if not unsent and self._fd >= 0:
            self._unsent = None
            self._pump.want(self._fd, _IN)

    def last_words(self, data: bytes) -> None:
        """See `Wire`."""
        if self._unsent or self._fd < 0:
            return
        try:
            self.write(data)
            if self._tls is not None and not self._unsent:
                self._tls.say_end()
                self._send(self._tls.take())
        except trio.BrokenResourceError:
            pass

    def close(self) -> None:
        """See `Wire`."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._pump.discharge(fd)
            os.close(fd)
        self._receiver = self._unsent = self._tls = None

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """See `Wire`."""
        self._pump.nursery.start_soon(call_later, seconds, step, self._pump.flush)

    def round_trip(self) -> float | None:
        """See `Wire`: the kernel's smoothed estimate."""
        if self._fd < 0:
            return None
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=self._fd)
        try:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
        except OSError:
            return None
        finally:
            borrowed.detach()
        return int.from_bytes(info[_RTT_AT:], sys.byteorder) / 1e6 if len(info) == _RTT_AT + 4 else None


class StreamWire:
    """Any byte stream: a task reads it, another writes while something is left to write.

    Args:
        stream: owned from here on.
        early: bytes that were read already.
        pump: in its nursery the tasks run, and its flush ends each read.
    """

    def __init__(self, stream: trio.abc.Stream, early: bytes, pump: Poller) -> None:
        self._stream, self._early, self._pump = stream, early, pump
        self._receiver: Receiver | None = None
        self._reader, self._writer = trio.CancelScope(), trio.CancelScope()
        self._unsent = bytearray()
        self._in_hand = 0
        self._writing = self._reading = self._closed = False

    @property
    def pending_bytes(self) -> int:
        """See `Wire`."""
        return len(self._unsent) + self._in_hand

    def start(self, receiver: Receiver) -> None:
        """See `Wire`."""
        if self._closed:
            return
        self._receiver = receiver
        if self._early:
            early, self._early = self._early, b""
            receiver.feed(early, self._pump.clock())
        self._reading = True
        self._pump.nursery.start_soon(self._read)

    async def _read(self) -> None:
        pump, stream = self._pump, self._stream
        try:
            with self._reader:
                while True:
                    how: Literal["eof", "reset"] = "eof"
                    reason, data = "end of stream", b""
                    try:
                        data = bytes(await stream.receive_some(READ_BYTES))
                    except trio.BrokenResourceError as error:
                        how, reason = "reset", str(error.__cause__ or error)
                    except trio.ClosedResourceError:
                        reason = "closed"
                    receiver = self._receiver
                    if self._closed or receiver is None:
                        return
                    if data:
                        receiver.feed(data, pump.clock())
                        pump.flush()
                    else:
                        receiver.end_of_input(how, reason)
                        pump.flush()
                        return
        finally:
            await trio.aclose_forcefully(stream)

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        if self._closed:
            raise trio.BrokenResourceError("closed")
        self._unsent += data
        if not self._writing:
            self._writing = True
            self._pump.nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            with trio.CancelScope() as self._writer:
                while self._unsent:
                    data, self._unsent = self._unsent, bytearray()
                    self._in_hand = len(data)
                    await self._stream.send_all(data)
                    self._in_hand = 0
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._unsent.clear()
            if self._receiver is not None:
                self._receiver.cannot_write()
        finally:
            self._writing = False
            self._in_hand = 0

    def last_words(self, data: bytes) -> None:
        """See `Wire`; a stream cannot be written without waiting."""

    def close(self) -> None:
        """See `Wire`."""
        if self._closed:
            return
        self._closed = True
        self._unsent.clear()
        self._receiver = None
        self._reader.cancel()
        self._writer.cancel()
        if not self._reading:
            self._pump.nursery.start_soon(trio.aclose_forcefully, self._stream)

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """See `Wire`."""
        self._pump.nursery.start_soon(call_later, seconds, step, self._pump.flush)

    def round_trip(self) -> float | None:
        """See `Wire`."""
        return None
