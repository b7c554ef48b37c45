"""One WebSocket after its upgrade: its frames and its closing handshake. How it ends otherwise: `link.Link`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.frames import CLOSE, PING, PONG, TEXT, FrameSplitter, close_facts, encode_client_frame
from sidecar.transport.link import BROKEN_GRACE, CLOSE_GRACE, Ended, Fault, Link
from sidecar.transport.pings import Pings
from sidecar.transport.wires import Wire

__all__ = ["BROKEN_GRACE", "CLOSE_GRACE", "Ended", "Fault", "Sink", "WebSocket"]

Sink = Callable[[list[bytes], list[int], float], None]

#: Pongs queued for a peer that does not read. One answers all pings before it (RFC 6455, 5.5.3).
MAX_PONGS: Final = 8
#: What a Close frame without a code is called (RFC 6455, 7.4.1); never sent.
NO_CODE: Final = 1005


class WebSocket(Link):
    """A connection that stands. Made by `open_websocket`; `start` sets it going.

    Args:
        wire, ended: see `Link`.
        splitter: fresh.
        sink: called once for each read that completed data messages: (their payloads in order, the indexes of binary
            ones among them, the instant of the read). It must not block, and raise nothing but `MalformedFrame`, which
            retires the connection. Whether a text is UTF-8 is for the sink to find.
        make_mask: four unpredictable bytes.
    """

    __slots__ = ("_make_mask", "_pings", "_pongs", "_sink", "_splitter")

    def __init__(
        self, wire: Wire, splitter: FrameSplitter, sink: Sink, ended: Ended | None, make_mask: Callable[[], bytes]
    ) -> None:
        super().__init__(wire, ended)
        self._splitter, self._sink, self._make_mask = splitter, sink, make_mask
        self._pings: Pings | None = None
        self._pongs = 0  # written since nothing was pending

    # --- what its owner calls

    def send(self, slot: int, payload: bytes) -> None:  # noqa: ARG002
        """See `Link`; one text message, which says itself whose it is."""
        self._check_open()
        self._put(encode_client_frame(TEXT, payload, self._make_mask()))

    async def ping(self, timeout: float) -> float:
        """See `Link`; a pong held back while other frames come is waited for."""
        self._check_open()
        if self._pings is None:
            self._pings = Pings()
        round_trip = await self._pings.ask(self, self._send_ping, timeout)
        if self._lost is not None:
            raise self._closed_error()
        return round_trip

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

    # --- how it ends

    def _farewell(self, code: int) -> bytes:
        return encode_client_frame(CLOSE, code.to_bytes(2, "big"), self._make_mask())

    def _end(self, fault: Fault, *, ours: bool = False) -> None:
        if self._lost is None and self._pings is not None:
            self._pings.over()
        super()._end(fault, ours=ours)

    def _deafen(self) -> None:
        self._sink = _nobody

    def _say_close(self, code: int, reason: str) -> None:
        try:
            # A reason may have 123 bytes; half a character would be a fault of ours.
            words = reason.encode()[:123].decode("utf-8", "ignore").encode()
            self._write(CLOSE, b"" if code == NO_CODE else code.to_bytes(2, "big") + words)
        except ConnectionLost:
            pass  # its end is known already, or will be at the next read

    def _write(self, opcode: int, payload: bytes) -> None:
        self._put(encode_client_frame(opcode, payload, self._make_mask()))

    def _send_ping(self, payload: bytes) -> None:
        self._write(PING, payload)

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
                if self._pings is not None:
                    self._pings.answered(frame[2:])
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


def _nobody(_payloads: list[bytes], _binary: list[int], _now: float) -> None:
    """Who takes messages of a connection that is gone."""
