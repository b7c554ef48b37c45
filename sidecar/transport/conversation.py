"""One WebSocket after its upgrade: what its owner calls, how its bytes are read, and how it ends. No library in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.frames import CLOSE, PING, PONG, TEXT, FrameSplitter, close_facts, encode_client_frame
from sidecar.transport.handover import Handover
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


class WebSocket:
    """A connection that stands. Made by `run_websocket`; of use until that returns.

    Its owner calls the first five and reads the attributes; the rest is for `run_websocket`.

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
        self.handover = Handover(self._outbox.write_and_wait)
        self._say_close: Callable[[int, str | None], Awaitable[None]] | None = None  # the library's closing handshake
        self._pings: dict[bytes, trio.Event] = {}
        self._ping_number = 0
        self._refuse: Fault | None = None  # why nothing more can be sent
        self._lost: Fault | None = None  # how it ended; set once
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
                    self.retire(silence)
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
                if self._refuse is None and self._say_close is not None:
                    self._refuse = ConnectionLost(code, reason, how="local")
                    self.handover.drop()
                    # In the connection's nursery: it may wait for an event that the end of the connection takes away.
                    self._nursery.start_soon(self._say_close, code, reason or None)
                await self._gone.wait()
        finally:
            self.abort(code)

    def abort(self, code: int = 1000) -> None:
        """Close now: a Close frame if that needs no waiting, then the TCP connection. `run_websocket` ends."""
        self.retire(self._closed_error("aborted"), code, ours=True)

    # --- what run_websocket calls

    @property
    def is_open(self) -> bool:
        """The upgrade is done."""
        return self._say_close is not None

    def opened(self, headers: dict[str, str], say_close: Callable[[int, str | None], Awaitable[None]]) -> None:
        """The upgrade is done; `say_close` starts the closing handshake."""
        self.upgrade_headers, self._say_close = headers, say_close
        self.opened_at = self.last_inbound_at = trio.current_time()

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
        if self._tell is not None and not ours and not closing and self.is_open:
            self._tell(fault)

    def retire(self, fault: Fault, code: int = 1000, *, ours: bool = False) -> None:
        """End without ceremony: best-effort Close frame, TCP closed, every task of this connection cancelled."""
        if self._gone.is_set():
            return
        saying = self._refuse is None and self.is_open
        self._end(fault, ours=ours)
        if saying:
            self._outbox.last_words(encode_client_frame(CLOSE, code.to_bytes(2, "big"), self._make_mask()))
        self._outbox.close()
        if self._socket is not None:
            self._socket.socket.close()
        elif self._tls is not None:
            self._tls.abort()
        self._nursery.cancel_scope.cancel()

    def over(self) -> None:
        """The task of this connection is through: cancelled from outside, or after its end."""
        # Without a fault known it was cancelled from outside; after a failed write nobody has been told yet.
        self.retire(self._closed_error("cancelled"), 1001, ours=self._refuse is None)
        self._gone.set()
        # Part the circles of references, so that a dead connection is freed at once: at hundreds of reconnects a second
        # the collector would stop the loop for a tenth of a second every other one.
        self._tell = None
        if self._say_close is not None:
            self._say_close = _over_already
        self._outbox.over()

    def how_it_ended(self) -> Fault:
        """For people and the pool, when all is over."""
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

    async def read(self, data: bytes, sink: Sink, splitter: FrameSplitter) -> None:
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
                    self.retire(fault, fault.close_code)
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
                    self.handover.feed(opcode, payload)
            elif opcode == PONG:
                self._pong(payload[2:])
            elif opcode == CLOSE:
                code, reason = close_facts(payload)
                self.handover.feed(opcode, payload)
                self._end(ConnectionLost(code, reason, how="close"))

    def _pong(self, payload: bytes) -> None:
        """A pong answers its ping and all before it (RFC 6455, 5.5.3); an unasked one is only a sign of life."""
        if payload in self._pings:
            for sent in list(self._pings):
                self._pings.pop(sent).set()
                if sent == payload:
                    break


async def _over_already(_code: int, _reason: str | None) -> None:
    """The closing handshake of a connection that is gone."""
