"""One WebSocket to an upstream: upgraded by trio-websocket, read and written by us. The only `import trio_websocket`.

    run_websocket (one task)        reads up to 64 KiB, splits frames, calls the sink once a read
        |  control frames
    Handover -> trio-websocket      answers pings and Close, checks the handshake
        |  its writes
    WebSocket._write                one order for all bytes going out: at once if the kernel takes them,
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

from sidecar.errors import ConnectFailed, ConnectionLost, MalformedFrame, UpstreamFault
from sidecar.transport.frames import CLOSE, PING, PONG, TEXT, FrameSplitter, close_facts, encode_client_frame
from sidecar.transport.handover import Handover
from sidecar.transport.http1 import fold, read_head, refusal
from sidecar.transport.outbox import Outbox
from sidecar.transport.tls import TlsStream

Sink = Callable[[list[tuple[int, bytes]]], None]
Fault = ConnectionLost | MalformedFrame
Lost = Callable[[Fault], None]

#: Seconds that the peer has to close TCP after the closing handshake, and that bytes already received have to be read
#: after a failed write.
CLOSE_GRACE: Final = 2.0
BROKEN_GRACE: Final = 0.5
_READ: Final = 65_536
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")


def _random_mask() -> bytes:
    return os.urandom(4)


class WebSocket:
    """A connection that stands. Made by `run_websocket`; of use until that returns.

    Attributes:
        upgrade_headers: of the 101 response; lower-case names, repeated ones joined.
        opened_at: `trio.current_time()` of the upgrade.
        last_inbound_at: of the last read that brought anything: any byte proves life.
    """

    def __init__(
        self, stream: trio.abc.Stream, nursery: trio.Nursery, make_mask: Callable[[], bytes], lost: Lost | None
    ) -> None:
        self.upgrade_headers: dict[str, str] = {}
        self.opened_at = self.last_inbound_at = trio.current_time()
        self._stream, self._nursery, self._make_mask, self._tell = stream, nursery, make_mask, lost
        self._socket = stream if isinstance(stream, trio.SocketStream) else None
        self._tls = stream if isinstance(stream, TlsStream) else None
        self._outbox = Outbox(stream, nursery, self._write_failed)
        self._handover = Handover(self._outbox.write_and_wait)
        self._library: trio_websocket.WebSocketConnection | None = None
        self._pings: dict[bytes, trio.Event] = {}
        self._ping_number = 0
        self._open = False  # the upgrade is done
        self._refuse: Fault | None = None  # why nothing more can be sent
        self._lost: Fault | None = None  # how it ended; set once
        self._upgrading = trio.CancelScope()
        self._complaint: str | None = None  # why the library gave up the upgrade
        self._gone = trio.Event()  # the reader is through

    # --- what the connection's owner calls

    def send_text(self, payload: bytes) -> None:
        """Send one text message; returns at once. What the kernel does not take now the writer sends, in order.

        Raises:
            ConnectionLost: it is closed, closing, or a write failed; nothing of the message was queued.
        """
        self._check_open()
        self._write(encode_client_frame(TEXT, payload, self._make_mask()))

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted and not yet written: above zero, the peer reads more slowly than we send."""
        return self._outbox.pending_bytes

    async def ping(self, timeout: float) -> float:
        """Send a ping and wait for its pong, for as long as anything arrives.

        Args:
            timeout: seconds of silence that mean the peer is dead. While other frames come, a late pong is waited for
                (there are services that hold pongs back while they stream).

        Returns:
            the round trip in seconds.

        Raises:
            ConnectionLost: `how` is "silence" when nothing came for `timeout` (the connection is then retired), else as
                the connection ended meanwhile.
        """
        self._check_open()
        started = trio.current_time()
        self._ping_number += 1
        payload = self._ping_number.to_bytes(4, "big")
        answered = self._pings[payload] = trio.Event()
        try:
            self._write(encode_client_frame(PING, payload, self._make_mask()))
            while not answered.is_set():
                quiet_at = max(started, self.last_inbound_at) + timeout
                if trio.current_time() >= quiet_at:
                    silence = ConnectionLost(1006, f"nothing came for {timeout:g} s", how="silence")
                    self._retire(silence)
                    raise silence
                with trio.CancelScope(deadline=quiet_at):
                    await answered.wait()
        finally:
            self._pings.pop(payload, None)
        if self._lost is not None:
            raise self._closed_error()
        return trio.current_time() - started

    async def close(self, code: int = 1000, reason: str = "", *, timeout: float = CLOSE_GRACE) -> None:
        """Say Close, wait for the peer's and for its end of TCP, then close; in `timeout` seconds at most.

        Frames that arrive meanwhile still reach the sink. Never raises; when it returns the connection is closed.

        Cancellation: closes at once.
        """
        try:
            with trio.move_on_after(timeout):
                if self._refuse is None and self._library is not None:
                    self._refuse = ConnectionLost(code, reason, how="local")
                    self._handover.drop()
                    # In the connection's nursery: it may wait for an event that the end of the connection takes away.
                    self._nursery.start_soon(self._library.aclose, code, reason or None)
                await self._gone.wait()
        finally:
            self.abort(code)

    def abort(self, code: int = 1000) -> None:
        """Close now: a Close frame if that needs no waiting, then the TCP connection. `run_websocket` ends."""
        self._retire(self._closed_error("aborted"), code, ours=True)

    # --- how it ends

    def _closed_error(self, reason: str = "") -> ConnectionLost:
        """A fresh error of the known kind: an exception raised twice gathers two tracebacks."""
        fault = self._lost or self._refuse
        if isinstance(fault, ConnectionLost):
            return ConnectionLost(fault.close_code, fault.reason, how=fault.how)
        if isinstance(fault, MalformedFrame):
            return ConnectionLost(fault.close_code, fault.reason, how="local")
        return ConnectionLost(1006, reason, how="local")

    def _check_open(self) -> None:
        if self._refuse is not None:
            raise self._closed_error()

    def _end(self, fault: Fault, *, ours: bool = False) -> None:
        """The connection is lost: remember how, refuse writes, wake pings, tell the owner. Only the first counts."""
        if self._lost is not None:
            return
        refuse = self._refuse
        closing = isinstance(refuse, ConnectionLost) and refuse.how == "local"
        self._lost = self._refuse = refuse if closing else fault
        for event in self._pings.values():
            event.set()
        if self._tell is not None and not ours and not closing and self._open:
            self._tell(fault)

    def _retire(self, fault: Fault, code: int = 1000, *, ours: bool = False) -> None:
        """End without ceremony: best-effort Close frame, TCP closed, every task of this connection cancelled."""
        if self._gone.is_set():
            return
        saying = self._refuse is None and self._open
        self._end(fault, ours=ours)
        if saying:
            self._outbox.last_words(encode_client_frame(CLOSE, code.to_bytes(2, "big"), self._make_mask()))
        self._outbox.close()
        if self._socket is not None:
            self._socket.socket.close()
        elif self._tls is not None:
            self._tls.abort()
        self._nursery.cancel_scope.cancel()

    def _over(self) -> None:
        """The task of this connection is through: cancelled from outside, or after its end."""
        # Without a fault known it was cancelled from outside; after a failed write nobody has been told yet.
        self._retire(self._closed_error("cancelled"), 1001, ours=self._refuse is None)
        self._gone.set()

    def _how_it_ended(self) -> Fault:
        return self._lost or self._refuse or ConnectionLost(how="local")

    def _write(self, data: bytes) -> None:
        try:
            self._outbox.write(data)
        except trio.BrokenResourceError:
            raise self._closed_error() from None

    def _write_failed(self) -> None:
        """Nothing can be sent any more; but the peer's last words may lie in our receive buffer: let them be read."""
        if self._refuse is None:
            self._refuse = ConnectionLost(1006, "a write failed", how="reset")
        scope = self._nursery.cancel_scope
        scope.deadline = min(scope.deadline, trio.current_time() + BROKEN_GRACE)

    # --- reading

    async def _receive(self) -> bytes:
        """The next bytes; b"" at the end, however it came about (then `_end` was told)."""
        try:
            if self._socket is not None:
                data = await self._socket.socket.recv(_READ)  # past a context manager that costs more than the call
            else:
                data = bytes(await self._stream.receive_some(_READ))
        except trio.BrokenResourceError as error:
            reason = str(error.__cause__ or error)
            self._end(ConnectionLost(1006, reason, how="reset"))
            return b""
        except OSError as error:
            self._end(ConnectionLost(1006, error.strerror or "reset", how="reset"))
            return b""
        except trio.ClosedResourceError:
            self._end(ConnectionLost(1006, "closed", how="local"), ours=True)
            return b""
        if not data:
            self._end(
                self._closed_error() if self._refuse is not None else ConnectionLost(1006, "end of stream", how="eof")
            )
        return data

    async def _read(self, data: bytes, sink: Sink, splitter: FrameSplitter) -> None:
        """Until the end: split, deliver, feed the library. Returns when TCP is over, or its time is."""
        while True:
            if data:
                try:
                    messages = splitter.feed(data)
                    if splitter.control_seen:
                        self._mixed(messages, sink)
                    elif messages:
                        sink(messages)
                except MalformedFrame as fault:
                    if splitter.salvaged:
                        self._salvage(splitter, sink)
                    self._retire(fault, fault.close_code)
                    return
                if self._lost is not None:
                    break  # the peer's Close
            data = await self._receive()
            if not data:
                return
            self.last_inbound_at = trio.current_time()
        with trio.move_on_after(CLOSE_GRACE):
            while await self._receive():
                pass

    def _salvage(self, splitter: FrameSplitter, sink: Sink) -> None:
        """Deliver what was whole before the fault."""
        messages = [message for message in splitter.salvaged if message[0] < CLOSE]
        try:
            if messages:
                sink(messages)
        except MalformedFrame:
            pass  # the connection is being retired already

    def _mixed(self, messages: list[tuple[int, bytes]], sink: Sink) -> None:
        """A read with control frames: its data first, so that an answer beats the Close that follows it."""
        data = [message for message in messages if message[0] < CLOSE]
        if data:
            sink(data)
        for opcode, payload in messages:
            if opcode == PING:
                if self._refuse is None:
                    self._handover.feed(opcode, payload)
            elif opcode == PONG:
                self._pong(payload[2:])
            elif opcode == CLOSE:
                code, reason = close_facts(payload)
                self._handover.feed(opcode, payload)
                self._end(ConnectionLost(code, reason, how="close"))

    def _pong(self, payload: bytes) -> None:
        """A pong answers its ping and all before it (RFC 6455, 5.5.3); an unasked one is only a sign of life."""
        if payload in self._pings:
            for sent in list(self._pings):
                self._pings.pop(sent).set()
                if sent == payload:
                    break

    # --- the upgrade

    async def _upgrade(self, host: str, resource: str, headers: list[tuple[bytes, bytes]], timeout: float) -> bytes:
        """Ask for the WebSocket. Returns the bytes that came behind the 101 response."""
        opened = trio.Event()
        with trio.move_on_after(timeout) as self._upgrading:
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
            self.upgrade_headers = fold(self._library.handshake_headers)
            self.opened_at = self.last_inbound_at = trio.current_time()
            self._open = True
            return rest
        if self._complaint is not None:
            raise ConnectFailed("upgrade", f"this is no WebSocket handshake: {self._complaint}")
        raise ConnectFailed("upgrade", f"no complete answer in {timeout:g} s", timed_out=True)

    def _give_up(self, complaint: str = "not understood") -> None:
        self._complaint = complaint
        self._upgrading.cancel()

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
            if self._open:
                self._retire(MalformedFrame("a control frame that cannot be answered"), 1002)
            else:
                self._give_up(_complaint(group))


#: What escapes trio-websocket when a handshake is not one, its dependencies' errors included.
_LIBRARY_ERRORS: Final = (
    h11.ProtocolError,
    wsproto.utilities.ProtocolError,
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    ValueError,
)


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
                rest = await websocket._upgrade(host, resource, headers, upgrade_timeout)  # noqa: SLF001
            except UpstreamFault as fault:
                failure = fault
            else:
                task_status.started(websocket)
                await websocket._read(rest, sink, FrameSplitter(max_message_bytes=max_message_bytes))  # noqa: SLF001
            nursery.cancel_scope.cancel()
    finally:
        if websocket is not None:
            websocket._over()  # noqa: SLF001
        await trio.aclose_forcefully(stream)
    if failure is None and not websocket._open:  # noqa: SLF001
        failure = ConnectFailed("upgrade", "connection reset before the answer")
    if failure is not None:
        raise failure
    return websocket._how_it_ended()  # noqa: SLF001
