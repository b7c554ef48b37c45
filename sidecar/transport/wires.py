"""The bytes of one WebSocket after its upgrade: how they come in and how they go out. One door, two kinds of wire.

`SocketWire` is real life: a descriptor in the pump's epoll, TLS (if any) beside it, and no task at all. The other kind
is `stream_wire.StreamWire`. Both push what comes into one `Receiver` and never tear a frame going out: nobody waits
inside a write.
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
#: Seconds that what one read brings may take. Some frames take a hundred times what a token does; of a peer that sends
#: many of those less is read at once, down to `FEWEST_BYTES`, until it goes quickly again.
SLOW: Final = 0.004
FEWEST_BYTES: Final = 4096
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

    def look(self) -> None:
        """Feed at once what lies there unread, if there is a way to tell."""
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

    __slots__ = ("_at_once", "_early", "_fd", "_pump", "_receiver", "_tls", "_unsent")

    def __init__(self, fd: int, tls: TlsState | None, early: bytes, pump: Poller) -> None:
        self._fd, self._tls, self._early, self._pump = fd, tls, early, pump
        self._receiver: Receiver | None = None
        self._unsent: bytearray | None = None
        self._at_once = READ_BYTES

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
        """The pump found the socket ready: one read, one feed. -> bytes read; of a slow one, all that a pass takes."""
        receiver = self._receiver
        if receiver is None or self._fd < 0:
            return 0
        if events & _OUT:
            self._push()
        if not events & ~_OUT:
            return 0
        try:
            data = os.read(self._fd, self._at_once)
        except BlockingIOError:
            return 0
        except OSError as error:
            receiver.end_of_input("reset", error.strerror or "reset")
            return 0
        size = len(data)
        began = self._pump.clock() if size >= FEWEST_BYTES else 0.0
        if self._tls is None:
            if data:
                receiver.feed(data, now)
            else:
                receiver.end_of_input("eof", "end of stream")
        else:
            self._feed_tls(data, self._tls, receiver, now)
        if size >= FEWEST_BYTES:
            took = self._pump.clock() - began
            if took > SLOW:
                self._at_once = max(FEWEST_BYTES, self._at_once // 2)
                return READ_BYTES
            if took < SLOW / 4 and self._at_once < READ_BYTES:
                self._at_once *= 2
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

    def look(self) -> None:
        """See `Wire`."""
        self.ready(_IN, self._pump.clock())

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
