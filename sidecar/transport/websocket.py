"""From a byte stream to an open WebSocket. The only `import trio_websocket`: it writes and checks the handshake.

- `open_websocket` dials, upgrades and lets the library go: one short task per connect, the caller's.
- `WebSocket` (`conversation`) is what stands afterwards: no task at all.
- `Pump` and `Wire` move its bytes: one task for all connections.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import h11
import trio
import trio_websocket
import wsproto.utilities

from sidecar.errors import ConnectFailed, UpstreamFault
from sidecar.transport.conversation import BROKEN_GRACE, CLOSE_GRACE, Ended, Fault, Sink, WebSocket
from sidecar.transport.frames import FrameSplitter
from sidecar.transport.handover import Handover
from sidecar.transport.headers import check_headers
from sidecar.transport.http1 import fold, read_head, refusal
from sidecar.transport.pump import Pump

__all__ = ["CLOSE_GRACE", "Ended", "Fault", "Sink", "WebSocket", "open_websocket"]

_READ: Final = 65_536


def _masks() -> Iterator[bytes]:
    """Four bytes of the system's randomness each (RFC 6455, 10.3), a thousand of them by one call of the system."""
    while True:
        block = os.urandom(4096)
        for start in range(0, len(block), 4):
            yield block[start : start + 4]


_random_mask: Final[Callable[[], bytes]] = _masks().__next__


#: What escapes trio-websocket when a handshake is not one, its dependencies' errors included.
_LIBRARY_ERRORS: Final = (
    h11.ProtocolError,
    wsproto.utilities.ProtocolError,
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    ValueError,
)


class _Upgrade:
    """The handshake of one connection: trio-websocket writes and checks it, we read it."""

    def __init__(self, stream: trio.abc.Stream, timeout: float) -> None:
        self._stream, self._timeout = stream, timeout
        self._handover = Handover(self._write, self._give_up)
        self._scope = trio.CancelScope(deadline=trio.current_time() + timeout)
        self._done = trio.Event()
        self._broken = False  # the request could not be written
        self._complaint: str | None = None  # why the library gave up

    async def run(
        self, host: str, resource: str, headers: list[tuple[bytes, bytes]]
    ) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
        """Ask for the WebSocket. -> the bytes that came behind the 101 response, and its headers."""
        opened: list[trio_websocket.WebSocketConnection] = []
        rest: bytes | None = None
        failure: UpstreamFault | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._run_library, nursery, host, resource, headers, opened)
                    try:
                        rest = await self._answer()
                        await self._done.wait()
                    except UpstreamFault as fault:
                        failure = fault
                    nursery.cancel_scope.cancel()
        except* _LIBRARY_ERRORS as group:
            self._complaint = _complaint(group)
        finally:
            del self._handover  # parts a circle of references that holds the TLS conversation, too
        if opened and rest is not None and failure is None:
            return rest, opened[0].handshake_headers
        if failure is None and self._complaint is not None:
            failure = ConnectFailed("upgrade", f"this is no WebSocket handshake: {self._complaint}")
        if failure is None and self._broken:
            failure = ConnectFailed("upgrade", "connection reset before the answer")
        if failure is None:
            failure = ConnectFailed("upgrade", f"no complete answer in {self._timeout:g} s", timed_out=True)
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame

    async def _run_library(
        self,
        nursery: trio.Nursery,
        host: str,
        resource: str,
        headers: list[tuple[bytes, bytes]],
        opened: list[trio_websocket.WebSocketConnection],
    ) -> None:
        library = await trio_websocket.wrap_client_stream(
            nursery,
            self._handover,  # type: ignore[arg-type]  # its documentation says "arbitrary stream"
            host,
            resource,
            extra_headers=headers,
            receive_buffer_size=None,
        )
        opened.append(library)
        self._done.set()

    async def _answer(self) -> bytes:
        receive = self._stream.receive_some
        try:
            status, head, rest = await read_head(lambda: receive(_READ), "upgrade")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if isinstance(error.__cause__, ssl.SSLError):
                # TLS 1.3 tells a client that its certificate is not wanted only now.
                raise ConnectFailed("tls", str(error)) from error
            raise ConnectFailed("upgrade", "connection reset before the answer") from error
        if status != 101:
            raise await refusal(lambda: receive(_READ), head, rest)
        self._handover.feed(head)
        return rest

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # Who closes at once may have said why before: that is still to be read.
            self._broken = True
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + BROKEN_GRACE)

    def _give_up(self) -> None:
        if not self._scope.cancel_called:
            self._complaint = "not understood"
            self._scope.cancel()


def _complaint(group: BaseExceptionGroup[Exception]) -> str:
    """What was wrong, in wsproto's words where it was wsproto that saw it; others may quote a header, thus a secret."""
    error: BaseException | None = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    while error is not None:
        if isinstance(error, wsproto.utilities.RemoteProtocolError):
            return str(error)
        error = error.__context__
    return "not understood"


async def open_websocket(
    dialer: Callable[[], Awaitable[trio.abc.Stream]],
    host: str,
    resource: str,
    sink: Sink,
    *,
    pump: Pump,
    headers: list[tuple[bytes, bytes]],
    ended: Ended | None = None,
    upgrade_timeout: float = 5.0,
    max_message_bytes: int = 1 << 20,
    make_mask: Callable[[], bytes] = _random_mask,
) -> tuple[WebSocket, dict[str, str]]:
    """Dial and upgrade. What is returned is open, and reads nothing before its `start`.

    Args:
        dialer: gives the connected stream, owned from there on; what it raises passes through.
        host: the Host header, `Address.host_header`.
        resource: path and query.
        sink, ended, make_mask: see `WebSocket`.
        pump: running; moves the bytes from here on.
        headers: extra ones of the upgrade request, credential included.
        upgrade_timeout: seconds from the request to the whole answer.
        max_message_bytes: a longer message retires the connection (1009).

    Returns:
        the connection, and the headers of the 101 response; lower-case names, repeated ones joined.

    Raises:
        ConnectFailed: no connection, no WebSocket.
        UpgradeRefused: another status than 101. Redirects are not followed.

    Error handling: no exception of a library comes out.

    Resource handling: the stream is closed when this raises or is cancelled; else whoever holds the WebSocket ends it.
    """
    check_headers(headers)
    stream = await dialer()
    try:
        rest, answered = await _Upgrade(stream, upgrade_timeout).run(host, resource, headers)
        # Cancelled in this very step, the pump may have ended: nobody would close what is handed to it now.
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    wire = pump.wire(stream, rest)
    splitter = FrameSplitter(max_message_bytes=max_message_bytes)
    return WebSocket(wire, splitter, sink, ended, make_mask), fold(answered)
