"""The pump: one task that drains every upstream socket, and ends each pass with one flush.

Trio wakes a task for one descriptor at a time: arming it, the switch, and a second try to read cost several times what
the token itself does. So all sockets stand in one epoll of our own, armed once for their lifetime, and Trio waits for
that one. A pass reads what is ready, feeds it on, and flushes once: deltas of a pass travel together, over streams.

While tokens flow densely the pump waits for the next pass inside its own epoll, at most `LINGER`, and gives Trio its
turn every `SLICE`: these two bound what the pump may hold up a timer, a connect or a signal. What comes from bots ends
the waiting at once (`heed`). Decision record 0011 has the figures.

In a simulation no socket is ever enlisted: `StreamWire` feeds the same `WebSocket` from memory.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

import trio

from sidecar.transport.stream_wire import StreamWire
from sidecar.transport.tls import TlsStream
from sidecar.transport.wires import SocketWire, Wire

#: Seconds after which other tasks get their turn, however much there is to read. Twice as long: 5 % more tokens of 64
#: floods, and timers late by p99 5 ms in place of 3.5.
SLICE: Final = 0.0005
#: Seconds that the pump waits in its own epoll while tokens come at least that often. epoll counts in milliseconds.
LINGER: Final = 0.001
#: Sockets, and bytes, read before what they brought is sent on.
GATHER: Final = 32
GATHER_BYTES: Final = 65_536


class Pump:
    """See the module. Made before anything is connected; `run` is its task.

    Args:
        flush: ends a pass.
        clock: the loop's time.

    Attributes:
        nursery: for the few tasks that wires need; while `run` runs.
    """

    nursery: trio.Nursery

    def __init__(self, *, flush: Callable[[], None], clock: Callable[[], float]) -> None:
        self.flush = flush
        self.clock = clock
        self._epoll: select.epoll | None = None
        self._needed = trio.Event()
        self._wires: dict[int, SocketWire] = {}
        self._heeded: list[int] = []
        self._ready: list[tuple[int, int]] = []  # found ready and not read yet
        self._last_at = 0.0  # when something was read last
        self._close_by = False  # what was read before that came within `LINGER` of it
        self._dense = False  # the pump waits for itself, and heeds others

    def __repr__(self) -> str:
        return f"<Pump sockets={len(self._wires)}>"

    def heed(self, fd: int) -> None:
        """End the pump's own waiting when `fd` is readable: somebody else's task waits for it in Trio."""
        self._heeded.append(fd)
        if self._epoll is not None:
            self._epoll.register(fd, select.EPOLLIN if self._dense else 0)

    def wire(self, stream: trio.abc.Stream, early: bytes) -> Wire:
        """Take a connected stream over; `early` are bytes that were read from it already.

        The socket of a `trio.SocketStream`, with or without our TLS on it, becomes a bare descriptor: the stream's
        objects are of no use afterwards.
        """
        tls = None
        inner: trio.abc.Stream = stream
        if isinstance(stream, TlsStream) and isinstance(stream.transport, trio.SocketStream):
            early += stream.release()
            tls, inner = stream.state, stream.transport
        if isinstance(inner, trio.SocketStream):
            return SocketWire(inner.socket.detach(), tls, early, self)
        return StreamWire(stream, early, self)

    # ------------------------------------------------------------------ for wires

    def enlist(self, fd: int, wire: SocketWire) -> None:
        """See `wires.Poller`."""
        if self._epoll is None:
            wire.abandon()  # the pump has ended
            return
        self._wires[fd] = wire
        self._epoll.register(fd, select.EPOLLIN)
        self._needed.set()

    def want(self, fd: int, events: int) -> None:
        """See `wires.Poller`."""
        if self._epoll is not None and fd in self._wires:
            self._epoll.modify(fd, events)

    def discharge(self, fd: int) -> None:
        """See `wires.Poller`."""
        if self._wires.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    # ------------------------------------------------------------------ the task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump until cancelled; connections that stand then are closed (1001)."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            # Now: when the first connection stands, descriptors may have run out.
            self._epoll = select.epoll()
            for heeded in self._heeded:
                self._epoll.register(heeded, 0)
            task_status.started()
            try:
                await self._needed.wait()
                await self._pump()
            finally:
                for wire in tuple(self._wires.values()):
                    wire.abandon()
                if self._epoll is not None:
                    self._epoll.close()
                    self._epoll = None

    async def _pump(self) -> None:
        assert self._epoll is not None
        fd = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(fd)
            while self._slice():
                await trio.lowlevel.checkpoint()

    def _slice(self) -> bool:
        """Passes until `SLICE` is over. False: nothing comes at the moment, so let Trio wait."""
        clock, flush = self.clock, self.flush
        now = began = clock()
        assert self._epoll is not None
        poll = self._epoll.poll
        while True:
            if not self._ready:
                # Only where the last two came that close: a lonely token is not worth holding up everybody else.
                if self._close_by is not self._dense:
                    self._become(self._close_by)
                self._ready = poll(LINGER if self._dense else 0)
                if not self._ready:
                    break
                self._ready.reverse()
                now = clock()
            woken = self._pass(now)
            flush()
            now = clock()
            if woken and now - self._last_at >= LINGER:
                self._close_by = False  # no tokens: who is slow to take what bots sent must not keep us turning
            if woken or now - began >= SLICE:
                return True
            if not self._close_by and not self._ready:
                break
        if self._dense:
            self._become(False)
        return False

    def _become(self, dense: bool) -> None:  # noqa: FBT001
        """While the pump waits for itself it heeds others' descriptors, too; else Trio wakes their tasks."""
        self._dense = dense
        assert self._epoll is not None
        for fd in self._heeded:
            self._epoll.modify(fd, select.EPOLLIN if dense else 0)

    def _pass(self, now: float) -> bool:
        """Read some of those that are ready. True: somebody else's descriptor is among them."""
        ready, wires = self._ready, self._wires
        woken = False
        room = GATHER_BYTES
        for _ in range(min(GATHER, len(ready))):
            fd, events = ready.pop()
            wire = wires.get(fd)
            if wire is not None:
                self._close_by = now - self._last_at < LINGER
                self._last_at = now
                room -= wire.ready(events, now)
                if room <= 0:
                    break
            elif fd in self._heeded:
                woken = True
        return woken
