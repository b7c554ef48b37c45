"""One WebSocket to an upstream: upgraded by trio-websocket, read and written by us. The only `import trio_websocket`.

    run_websocket (one task)        dials, upgrades, then WebSocket.read: up to 64 KiB, split, the sink once a read
        |  control frames
    Handover -> trio-websocket      checks the handshake, answers pings and Close
        |  its writes
    Outbox                          one order for all bytes going out: at once if the kernel takes them,
                                    else by one writer task outside every call's scope

Nothing here runs per token: no task, scope, timer, lock or checkpoint.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import trio
import trio_websocket
import wsproto.utilities

from sidecar.errors import ConnectFailed, MalformedFrame, UpstreamFault
from sidecar.transport.conversation import CLOSE_GRACE, Fault, Lost, Sink, WebSocket
from sidecar.transport.frames import FrameSplitter
from sidecar.transport.http1 import fold, read_head, refusal

__all__ = ["CLOSE_GRACE", "Fault", "Lost", "Sink", "WebSocket", "run_websocket"]

_READ: Final = 65_536
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")


def _random_mask() -> bytes:
    return os.urandom(4)


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

    def __init__(self, websocket: WebSocket, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        self._websocket, self._stream, self._nursery = websocket, stream, nursery
        self._handover = websocket.handover
        self._library: trio_websocket.WebSocketConnection | None = None
        self._scope = trio.CancelScope()
        self._complaint: str | None = None  # why the library gave up

    async def run(self, host: str, resource: str, headers: list[tuple[bytes, bytes]], timeout: float) -> bytes:
        """Ask for the WebSocket. Returns the bytes that came behind the 101 response."""
        opened = trio.Event()
        with trio.move_on_after(timeout) as self._scope:
            self._nursery.start_soon(self._run_library, host, resource, headers, opened)
            try:
                receive = self._stream.receive_some
                status, head, rest = await read_head(lambda: receive(_READ), "upgrade")
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if isinstance(error.__cause__, ssl.SSLError):
                    # TLS 1.3 tells a client that its certificate is not wanted only now.
                    raise ConnectFailed("tls", str(error)) from error
                raise ConnectFailed("upgrade", "connection reset before the answer") from error
            if status != 101:
                raise await refusal(lambda: receive(_READ), head, rest)
            self._handover.feed(0, head)
            await opened.wait()
            assert self._library is not None
            self._websocket.opened(fold(self._library.handshake_headers), self._library.aclose)
            return rest
        if self._complaint is not None:
            raise ConnectFailed("upgrade", f"this is no WebSocket handshake: {self._complaint}")
        raise ConnectFailed("upgrade", f"no complete answer in {timeout:g} s", timed_out=True)

    def _give_up(self, complaint: str = "not understood") -> None:
        self._complaint = complaint
        self._scope.cancel()

    async def _run_library(
        self, host: str, resource: str, headers: list[tuple[bytes, bytes]], opened: trio.Event
    ) -> None:
        """trio-websocket and its reader task, in a nursery of their own: only its errors are taken for its errors."""
        try:
            async with trio.open_nursery() as nursery:
                self._handover.on_close = self._give_up
                self._library = await trio_websocket.wrap_client_stream(
                    nursery,
                    self._handover,  # type: ignore[arg-type]  # its documentation says "arbitrary stream"
                    host,
                    resource,
                    extra_headers=headers,
                    receive_buffer_size=None,
                )
                self._handover.on_close = None
                opened.set()
        except* _LIBRARY_ERRORS as group:
            if self._websocket.is_open:
                self._websocket.retire(MalformedFrame("a control frame that cannot be answered"), 1002)
            else:
                self._give_up(_complaint(group))


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


def _check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse before dialling what h11 would refuse with the value, perhaps a credential, in its error."""
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ConnectFailed("upgrade", f"header {name[:64]!r} has characters that HTTP does not allow")


async def run_websocket(
    dialer: Callable[[], Awaitable[trio.abc.Stream]],
    host: str,
    resource: str,
    sink: Sink,
    *,
    headers: list[tuple[bytes, bytes]],
    upgrade_timeout: float = 5.0,
    max_message_bytes: int = 1 << 20,
    make_mask: Callable[[], bytes] = _random_mask,
    lost: Lost | None = None,
    task_status: trio.TaskStatus[WebSocket] = trio.TASK_STATUS_IGNORED,
) -> Fault:
    """Dial, upgrade, then read until the end. Start it with `nursery.start`, which gives the `WebSocket`.

    Args:
        dialer: gives the connected stream, owned from there on; what it raises passes through.
        host: the Host header, `Address.host_header`.
        resource: path and query.
        sink: called once for each read that completed data messages, with those, in order: (TEXT or BINARY, payload).
            It must not block, and raise nothing but `MalformedFrame`, which retires the connection. What came in one
            segment with the 101 response reaches it right after `started`, perhaps before `nursery.start` has returned.
            Whether a text is UTF-8 is for the sink to find.
        headers: extra ones of the upgrade request, credential included.
        upgrade_timeout: seconds from the request to the whole answer.
        max_message_bytes: a longer message retires the connection (1009).
        make_mask: four unpredictable bytes; tests give their own.
        lost: called once, synchronously, as soon as the end is known, unless the owner asked for it: a peer's Close is
            told here up to `CLOSE_GRACE` seconds before this function returns.
        task_status: nursery.start's.

    Returns:
        how it ended: `ConnectionLost` (close, eof, reset, silence, local) or `MalformedFrame`.

    Raises:
        ConnectFailed: no connection, no WebSocket; before `started` only.
        UpgradeRefused: another status than 101; before `started` only. Redirects are not followed.

    Error handling: no exception of a library comes out. One of the sink's, other than `MalformedFrame`, is a bug and
        does, in an exception group.

    Resource handling: the stream is closed when this returns, raises or is cancelled.

    Cancellation: says Close if that needs no waiting, and closes.
    """
    _check_headers(headers)
    stream = await dialer()
    websocket: WebSocket | None = None
    failure: UpstreamFault | None = None
    try:
        async with trio.open_nursery() as nursery:
            websocket = WebSocket(stream, nursery, make_mask, lost)
            try:
                rest = await _Upgrade(websocket, stream, nursery).run(host, resource, headers, upgrade_timeout)
            except UpstreamFault as fault:
                failure = fault
            else:
                task_status.started(websocket)
                await websocket.read(rest, sink, FrameSplitter(max_message_bytes=max_message_bytes))
            nursery.cancel_scope.cancel()
    finally:
        if websocket is not None:
            websocket.over()
        await trio.aclose_forcefully(stream)
    if failure is None and not websocket.is_open:
        failure = ConnectFailed("upgrade", "connection reset before the answer")
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame
    return websocket.how_it_ended()
