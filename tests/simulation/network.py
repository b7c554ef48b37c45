"""A TCP connection in memory, and what may go wrong with its bytes: toxics, in any mix.

The toxics are Toxiproxy's (latency, jitter, bandwidth, slicer, timeout, reset_peer, limit_data, slow_close), and
half-open TCP, where both ends think that it stands. The client's end is a `trio.abc.Stream`, as the daemon's dial is to
give; the server's end is functions, called by the engine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import trio
from msgspec import Struct

from tests.simulation.engine import Engine

#: What a sender's kernel takes before the sender has to wait.
SEND_BUFFER = 65_536
#: A slicer cuts so many pieces off either end: where heads, lengths and masks stand, and ends. One piece is between.
SLICED = 4
#: Seconds from one of its pieces to the next: each is read alone.
SLICE_PAUSE = 0.0002


class Toxics(Struct, frozen=True, kw_only=True):
    """What is wrong with one connection; the default is a good network.

    Args:
        latency, jitter: seconds that each piece takes, and by how much that varies. Order is kept.
        bandwidth: bytes per second from the server; 0 for any.
        slices: longest piece that arrives at once, at the beginning and at the end of what was sent; 0 for any.
        silent_after: seconds after which nothing arrives any more, either way, and nobody is told (half-open).
        reset_after: seconds after which both ends are reset.
        limit: bytes from the server after which the connection ends.
        slow_close: seconds by which the end of the connection comes late.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float = 0.0
    slices: int = 0
    silent_after: float | None = None
    reset_after: float | None = None
    limit: int | None = None
    slow_close: float = 0.0


GOOD = Toxics()


def _cuts(size: int, longest: int) -> list[int]:
    """Where a slicer cuts so many bytes, both ends included."""
    if not longest or size <= longest:
        return [0, size] if size else []
    head = range(0, min(size, longest * SLICED) + 1, longest)
    tail = [size - at for at in head if size - at > head[-1]]
    return [*head, *reversed(tail)] if head[-1] < size else list(head)


class _Way:
    """One direction: pieces arrive in order, each when the toxics let it."""

    def __init__(self, link: Link, deliver: Callable[[bytes], None], *, limited: bool) -> None:
        self.link, self.deliver = link, deliver
        self.arrived_at = -math.inf  # of the last piece under way
        self.free_at = -math.inf
        self.backlog = 0
        toxics = link.toxics
        self.bandwidth = toxics.bandwidth if limited else 0.0
        self.left = toxics.limit if limited else None

    def send(self, data: bytes, mark: Callable[[], None] | None = None) -> None:
        """Bytes enter; `mark` is called when the last of them has arrived."""
        link, toxics = self.link, self.link.toxics
        cut = False
        if self.left is not None:
            if len(data) > self.left:
                data, mark, cut = data[: self.left], None, True
            self.left -= len(data)
        self.backlog += len(data)
        now = trio.current_time()
        cuts = _cuts(len(data), toxics.slices)
        for start, stop in pairwise(cuts):
            leaves = now
            if self.bandwidth:
                leaves = self.free_at = max(now, self.free_at) + (stop - start) / self.bandwidth
            arrives = leaves + toxics.latency
            if toxics.jitter:
                arrives += toxics.jitter * link.dice.random()
            if start:
                arrives = max(arrives, self.arrived_at + SLICE_PAUSE)
            arrives = self.arrived_at = max(self.arrived_at, arrives)
            piece = data[start:stop] if len(cuts) > 2 else data
            link.engine.at(arrives, partial(self._arrive, piece, mark if stop == len(data) else None))
        if cut:
            link.engine.at(max(now, self.arrived_at), partial(link.end, "eof"))

    def _arrive(self, piece: bytes, mark: Callable[[], None] | None) -> None:
        if self.link.is_silent() or self.link.over:
            return  # what is lost in half-open TCP stays in the sender's buffer for ever
        self.backlog -= len(piece)
        self.deliver(piece)
        self.link.client.drain()
        if mark is not None:
            mark()

    def arrives_at(self) -> float:
        """When all that is under way will have arrived, and what is sent now at the earliest."""
        return max(self.arrived_at, trio.current_time() + self.link.toxics.latency)

    def ends_at(self) -> float:
        """When an end sent now would arrive, after all that is under way."""
        return self.arrives_at() + self.link.toxics.slow_close


class Link:
    """One connection; `client` is the daemon's end of it.

    Args:
        engine: has the time.
        toxics: what is wrong.
        dice: for the jitter.
        on_written: told what the client wrote, at once, before any network.
        on_data: told what arrives at the server.
        on_end: told that the client's end arrives at the server (`eof`, `reset`).
    """

    def __init__(
        self,
        engine: Engine,
        toxics: Toxics,
        dice: random.Random,
        *,
        on_written: Callable[[bytes], None],
        on_data: Callable[[bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.engine, self.toxics, self.dice = engine, toxics, dice
        self.on_written = on_written
        self._on_end = on_end
        self.opened_at = trio.current_time()
        self.over = False  # for both ends
        #: when the client last waited for room in its kernel's buffer
        self.was_full_at = -math.inf
        #: when the client closed its end; None while it has not
        self.closed_at: float | None = None
        self.client = ClientEnd(self)
        self.to_client = _Way(self, self.client.take, limited=True)
        self.to_server = _Way(self, on_data, limited=False)
        self._silent_from = math.inf if toxics.silent_after is None else self.opened_at + toxics.silent_after
        if toxics.reset_after is not None:
            engine.after(toxics.reset_after, partial(self.end, "reset"))

    def is_silent(self) -> bool:
        """Nothing arrives any more."""
        return trio.current_time() >= self._silent_from

    def go_silent(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        self._silent_from = trio.current_time()

    def end(self, how: str) -> None:
        """The connection is over for both ends, now, however that came about."""
        if not self.over and not self.is_silent():
            self.over = True
            self.client.ends(how)
            self._on_end(how)

    def server_closes(self, how: str = "eof") -> None:
        """The server's end closes: the client hears of it after all that was sent before."""
        when = self.to_client.ends_at() if how == "eof" else trio.current_time() + self.toxics.latency
        self.engine.at(when, partial(self.end, how))

    def client_closes(self) -> None:
        """The client's end closed: the server hears of it."""
        if self.closed_at is None:
            self.closed_at = trio.current_time()
            self.engine.at(self.to_server.ends_at(), partial(self.end, "eof"))


class ClientEnd(trio.abc.Stream):
    """The daemon's end."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox = bytearray()
        self._ended: str | None = None
        self._closed = False
        self._wake, self._drained = trio.Event(), trio.Event()

    def take(self, data: bytes) -> None:
        """Bytes arrived."""
        self._inbox += data
        self._wake.set()

    def ends(self, how: str) -> None:
        """The other end is gone."""
        if self._ended is None:
            self._ended = how
            if how == "reset" and self._link.dice.random() < 0.5:
                self._inbox.clear()  # a reset may overtake what lies in the kernel
        self._wake.set()
        self._drained.set()

    def drain(self) -> None:
        """The server took some bytes."""
        self._drained.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.Stream`; waits while the kernel's buffer is full."""
        await trio.lowlevel.checkpoint()
        link = self._link
        link.on_written(bytes(data))
        self._check(writing=True)
        link.to_server.send(bytes(data))
        while link.to_server.backlog > SEND_BUFFER:
            self._drained = trio.Event()
            await self._drained.wait()
            self._check(writing=True)
            link.was_full_at = trio.current_time()

    def _check(self, *, writing: bool = False) -> None:
        if self._closed:
            raise trio.ClosedResourceError("closed")
        if self._ended == "reset" or (writing and self._ended is not None):
            raise trio.BrokenResourceError("reset")

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.Stream`."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.Stream`."""
        while not self._inbox and not self._ended and not self._closed:
            self._wake = trio.Event()
            await self._wake.wait()
        if self._inbox and not self._closed:
            data = bytes(self._inbox[:max_bytes])
            del self._inbox[:max_bytes]
            return data
        self._check()
        return b""

    async def aclose(self) -> None:
        """See `trio.abc.Stream`."""
        self._closed = True
        self._link.client_closes()
        self._wake.set()
        await trio.lowlevel.checkpoint()
