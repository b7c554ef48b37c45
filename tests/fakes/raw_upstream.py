"""An upstream made of bytes: upgrades by hand, then says exactly what a test wants; and the owner of our end of it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from sidecar.errors import UpstreamFault
from sidecar.transport.frames import BINARY, TEXT
from sidecar.transport.pump import Pump
from sidecar.transport.websocket import Fault, WebSocket, open_websocket

Handler = Callable[[trio.abc.Stream], Awaitable[None]]
Messages = list[tuple[int, bytes]]


class Owner:
    """What the pool will be: starts a connection, takes its messages, learns of its end."""

    def __init__(self) -> None:
        self.reads: list[Messages] = []
        self.told: list[Fault] = []
        self.result: Fault | None = None
        self.ended = trio.Event()
        self.arrived = trio.Event()
        self.told_event = trio.Event()
        self.websocket: WebSocket
        self.upgrade_headers: dict[str, str] = {}
        self.sink_now: Callable[[Messages], None] | None = None  # a test's own

    @property
    def messages(self) -> Messages:
        """All messages, in order."""
        return [message for read in self.reads for message in read]

    def sink(self, payloads: list[bytes], binary: list[int], now: float) -> None:
        """One read's messages."""
        messages = [(BINARY if index in binary else TEXT, payload) for index, payload in enumerate(payloads)]
        if self.sink_now is not None:
            self.sink_now(messages)
            return
        self.reads.append(messages)
        self.arrived.set()

    def lost(self, fault: Fault, ours: bool) -> None:
        """The end, as it was told."""
        self.result = fault
        if not ours:
            self.told.append(fault)
            self.told_event.set()

    async def until(self, count: int) -> Messages:
        """Wait for `count` messages."""
        with trio.fail_after(5):
            while len(self.messages) < count:
                self.arrived = trio.Event()
                await self.arrived.wait()
        return self.messages

    async def end(self, limit: float = 2.0) -> Fault:
        """Wait for the end."""
        with trio.fail_after(limit):
            await self.ended.wait()
        assert self.result is not None
        return self.result

    async def run(
        self, dialer: Callable[[], Awaitable[trio.abc.Stream]], options: dict[str, Any],
        task_status: trio.TaskStatus[WebSocket] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """A pump of its own, the connection on it, and its whole life."""
        settings = {"headers": [(b"Authorization", b"Bearer k")], "host": "localhost", "resource": "/r?q=1"}
        refused: UpstreamFault | None = None
        try:
            async with running_pump() as pump:
                try:
                    self.websocket, self.upgrade_headers = await open_websocket(
                        dialer, sink=self.sink, pump=pump, ended=self.lost, **{**settings, **options}
                    )
                except UpstreamFault as fault:
                    refused = fault
                else:
                    task_status.started(self.websocket)
                    try:
                        self.websocket.start()
                        await self.websocket.wait_closed()
                    finally:
                        self.websocket.abort(1001)
            if refused is not None:
                raise refused
        finally:
            self.ended.set()


#: For connects that never come to a connection.
IDLE = Pump(flush=lambda: None, clock=trio.current_time)


@asynccontextmanager
async def running_pump() -> AsyncIterator[Pump]:
    """A pump that nobody flushes for."""
    pump = Pump(flush=lambda: None, clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        yield pump
        nursery.cancel_scope.cancel()


async def listen(nursery: trio.Nursery, handler: Handler) -> int:
    """A raw server on a free port, each connection handled by `handler` and closed after it."""

    async def guarded(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, guarded, listeners)
    return int(listeners[0].socket.getsockname()[1])


async def serve(nursery: trio.Nursery, handler: Handler) -> Callable[[], Awaitable[trio.abc.Stream]]:
    """As `listen`; returns what dials it."""
    port = await listen(nursery, handler)
    return lambda: trio.open_tcp_stream("127.0.0.1", port)


async def request(stream: trio.abc.Stream) -> bytes:
    """Read a whole upgrade request."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = await stream.receive_some()
        assert more
        data += more
    return data


def switching(asked: bytes, **changes: str | None) -> bytes:
    """The right 101 response to a request; `changes` replace headers (underscores for dashes), None removes one."""
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", asked)
    assert key
    accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    headers: dict[str, str | None] = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Accept": accept}
    lines = [
        f"{name.replace('_', '-')}: {value}" for name, value in {**headers, **changes}.items() if value is not None
    ]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()


@asynccontextmanager
async def connected(handler: Handler, **options: Any) -> AsyncIterator[Owner]:
    """A connection to a raw server that upgrades and then does what `handler` says."""
    owner = Owner()

    async def upgrade(stream: trio.abc.Stream) -> None:
        await stream.send_all(switching(await request(stream)))
        await handler(stream)

    async with trio.open_nursery() as nursery:
        owner.websocket = await nursery.start(owner.run, await serve(nursery, upgrade), options)
        yield owner
        nursery.cancel_scope.cancel()


async def drain(stream: trio.abc.Stream) -> bytes:
    """Read until the end."""
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


def unmask(data: bytes) -> list[tuple[int, bytes]]:
    """Short client frames."""
    frames = []
    while data:
        length, start = data[1] & 0x7F, 6
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 8
        mask, body = data[start - 4 : start], data[start : start + length]
        frames.append((data[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))))
        data = data[start + length :]
    return frames


@asynccontextmanager
async def over_memory(
    pair: Callable[[], tuple[Any, Any]] = trio.testing.memory_stream_pair, **options: Any
) -> AsyncIterator[tuple[Owner, Any]]:
    """A connection over a memory stream, and the peer's end of it after the upgrade; `pair` makes the two ends."""
    ours, theirs = pair()
    owner = Owner()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async def answer() -> None:
        await theirs.send_all(switching(await request(theirs)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        owner.websocket = await nursery.start(owner.run, dialer, options)
        yield owner, theirs
        nursery.cancel_scope.cancel()
