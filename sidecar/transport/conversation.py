"""One WebSocket after its upgrade: what its owner calls, what its wire feeds, and how it ends. No task, no library.

Everything but `ping` and `close` is one synchronous step. An open connection that nobody uses is a few small objects:
at a thousand warm ones nothing here runs until bytes come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import trio

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.frames import CLOSE, PING, PONG, TEXT, FrameSplitter, close_facts, encode_client_frame
from sidecar.transport.wires import Wire

Sink = Callable[[list[bytes], list[int], float], None]
Fault = ConnectionLost | MalformedFrame
Ended = Callable[[Fault, bool], None]

#: Seconds that the peer has to close TCP after the closing handshake, and that bytes already received have to be read
#: after a failed write.
CLOSE_GRACE: Final = 2.0
BROKEN_GRACE: Final = 0.5
#: Pongs queued for a peer that does not read. One answers all pings before it (RFC 6455, 5.5.3).
MAX_PONGS: Final = 8
#: What a Close frame without a code is called (RFC 6455, 7.4.1); never sent.
NO_CODE: Final = 1005


class WebSocket:
    """A connection that stands. Made by `open_websocket`; `start` sets it going.

    Args:
        wire: its bytes' way in and out.
        splitter: fresh.
        sink: called once for each read that completed data messages: (their payloads in order, the indexes of binary
            ones among them, the instant of the read). It must not block, and raise nothing but `MalformedFrame`, which
            retires the connection. Whether a text is UTF-8 is for the sink to find.
        ended: called once, synchronously, as soon as the end is known: (how, whether the owner asked for it). A peer's
            Close is told here although TCP may stand for `CLOSE_GRACE` seconds more.
        make_mask: four unpredictable bytes.

    Attributes:
        opened_at: `trio.current_time()` of the upgrade.
        last_inbound_at: of the last read that brought anything: any byte proves life.
        parting: what the sink is given is the last: a Close, or what is no WebSocket, came in the same read.
    """

    __slots__ = (
        "_gone", "_lost", "_make_mask", "_over", "_ping_number", "_pings", "_pongs", "_refuse", "_sink", "_splitter",
        "_tell", "_wire", "last_inbound_at", "opened_at", "parting",
    )  # fmt: skip

    def __init__(
        self, wire: Wire, splitter: FrameSplitter, sink: Sink, ended: Ended | None, make_mask: Callable[[], bytes]
    ) -> None:
        self.opened_at = self.last_inbound_at = trio.current_time()
        self._wire, self._splitter, self._sink, self._tell, self._make_mask = wire, splitter, sink, ended, make_mask
        self._pings: dict[bytes, trio.Event] | None = None
        self._ping_number = 0
        self._pongs = 0  # written since nothing was pending
        self._refuse: Fault | None = None  # why nothing more can be sent
        self._lost: Fault | None = None  # how it ended; set once
        self._over = False  # TCP is closed, too
        self.parting = False
        self._gone: trio.Event | None = None  # for who waits for that

    def start(self) -> None:
        """Take frames from here on; those that came in one segment with the 101 response are delivered now."""
        self._wire.start(self)

    # --- what its owner calls

    def send_text(self, payload: bytes) -> None:
        """Send one text message; returns at once. What the kernel does not take now goes out later, in order.

        Raises:
            ConnectionLost: it is closed, closing, or a write failed; nothing of the message was queued.
        """
        self._check_open()
        self._write(TEXT, payload)

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted and not yet written: above zero, the peer reads more slowly than we send."""
        return self._wire.pending_bytes

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
        pings = self._pings = {} if self._pings is None else self._pings
        answered = pings[payload] = trio.Event()
        try:
            self._write(PING, payload)
            while not answered.is_set():
                quiet_at = max(started, self.last_inbound_at) + timeout
                if trio.current_time() >= quiet_at:
                    silence = ConnectionLost(1006, f"nothing came for {timeout:g} s", how="silence")
                    self.retire(silence)
                    raise silence
                with trio.CancelScope(deadline=quiet_at):
                    await answered.wait()
        finally:
            pings.pop(payload, None)
            if not pings:
                self._pings = None
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
                if self._refuse is None:
                    self._say_close(code, reason)
                    self._refuse = self._refuse or ConnectionLost(code, reason, how="local")
                await self.wait_closed()
        finally:
            self.abort(code)

    async def wait_closed(self) -> None:
        """Wait until TCP is closed, however it came about."""
        if not self._over:
            self._gone = trio.Event() if self._gone is None else self._gone
            await self._gone.wait()

    def abort(self, code: int = 1000) -> None:
        """Close now: a Close frame if that needs no waiting, then the TCP connection."""
        self.retire(self._closed_error("aborted"), code, ours=True)

    def retire(self, fault: Fault, code: int = 1000, *, ours: bool = False) -> None:
        """End without ceremony: best-effort Close frame, then TCP closed."""
        if self._over:
            return
        if self._refuse is None:
            self._wire.last_words(encode_client_frame(CLOSE, code.to_bytes(2, "big"), self._make_mask()))
        self._finish()
        self._end(fault, ours=ours)

    # --- what its wire calls

    def feed(self, data: bytes, now: float) -> None:
        """Split, deliver, answer control frames. After the peer's Close: read and drop, until TCP ends."""
        if self._lost is not None:
            return
        self.last_inbound_at = now
        splitter = self._splitter
        try:
            payloads = splitter.feed(data)
            # Its data first, so that an answer beats the Close that follows it.
            controls = splitter.controls
            if controls and controls[-1][0] == CLOSE:
                self.parting = True
            if payloads:
                self._sink(payloads, splitter.binary, now)
            if controls:
                self._control(controls)
        except MalformedFrame as fault:
            if splitter.salvaged:
                self._salvage(splitter, now)
            # Without its traceback, which holds this frame: who is told keeps the fault.
            self.retire(fault.with_traceback(None), fault.close_code)

    def end_of_input(self, how: Literal["eof", "reset"], reason: str) -> None:
        """TCP is over."""
        fault = self._closed_error() if self._refuse is not None else ConnectionLost(1006, reason, how=how)
        self._finish()
        self._end(fault)

    def cannot_write(self) -> None:
        """Nothing can be sent any more; but the peer's last words may lie in our receive buffer: let them be read."""
        if self._refuse is None:
            self._refuse = ConnectionLost(1006, "a write failed", how="reset")
            self._wire.later(BROKEN_GRACE, self._give_up)

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
        if isinstance(refuse, ConnectionLost) and refuse.how == "local":
            fault, ours = refuse, True  # we were closing: that is how it ended, whatever came first
        self._lost = self._refuse = fault
        for event in (self._pings or {}).values():
            event.set()
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(fault, ours)
        if self._over:
            self._sink = _nobody  # parts the circle of references: a dead connection is freed at once

    def _finish(self) -> None:
        """Close TCP."""
        if not self._over:
            self._over = True
            self._wire.close()
            if self._gone is not None:
                self._gone.set()
            if self._lost is not None:
                self._sink = _nobody

    def _give_up(self) -> None:
        """What was waited for did not come."""
        self.retire(self._closed_error())

    def _say_close(self, code: int, reason: str) -> None:
        try:
            # A reason may have 123 bytes; half a character would be a fault of ours.
            words = reason.encode()[:123].decode("utf-8", "ignore").encode()
            self._write(CLOSE, b"" if code == NO_CODE else code.to_bytes(2, "big") + words)
        except ConnectionLost:
            pass  # its end is known already, or will be at the next read

    def _write(self, opcode: int, payload: bytes) -> None:
        try:
            self._wire.write(encode_client_frame(opcode, payload, self._make_mask()))
        except trio.BrokenResourceError:
            self.cannot_write()
            raise self._closed_error() from None

    # --- control frames

    def _salvage(self, splitter: FrameSplitter, now: float) -> None:
        """Deliver what was whole before the fault."""
        self.parting = True
        try:
            self._sink(splitter.salvaged, splitter.binary, now)
        except MalformedFrame:
            pass  # the connection is being retired already

    def _control(self, frames: list[tuple[int, bytes]]) -> None:
        """The control frames of one read."""
        ping: bytes | None = None
        for opcode, frame in frames:
            if opcode == PING:
                ping = frame[2:]
            elif opcode == PONG:
                self._pong(frame[2:])
            elif opcode == CLOSE:
                code, reason = close_facts(frame)
                if self._refuse is None:
                    self._say_close(code, "")
                    self._wire.later(CLOSE_GRACE, self._finish)
                self._end(ConnectionLost(code, reason, how="close"))
        if ping is not None and self._refuse is None:
            self._answer(ping)

    def _answer(self, ping: bytes) -> None:
        """One pong for all the pings of a read."""
        self._pongs = self._pongs + 1 if self._wire.pending_bytes else 0
        if self._pongs <= MAX_PONGS:
            try:
                self._write(PONG, ping)
            except ConnectionLost:
                pass  # as in _say_close

    def _pong(self, payload: bytes) -> None:
        """A pong answers its ping and all before it (RFC 6455, 5.5.3); an unasked one is only a sign of life."""
        pings = self._pings
        if pings and payload in pings:
            for sent in list(pings):
                pings.pop(sent).set()
                if sent == payload:
                    break


def _nobody(_payloads: list[bytes], _binary: list[int], _now: float) -> None:
    """Who takes messages of a connection that is gone."""
