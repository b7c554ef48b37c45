"""A connection that stands, whatever is spoken on it: how it ends, once, and who is told. No task, no library.

`conversation.WebSocket`, `http1_link.Http1Link` and `http2_link.Http2Link` are such; each adds what its bytes mean.
Everything but `ping` and `close` is one synchronous step. An open connection that nobody uses is a few small objects:
at a thousand warm ones nothing here runs until bytes come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Literal

import trio

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.wires import Wire

Fault = ConnectionLost | MalformedFrame
Ended = Callable[[Fault, bool], None]

#: Seconds that the peer has to close TCP after a farewell, and that bytes already received have to be read after a
#: failed write.
CLOSE_GRACE: Final = 2.0
BROKEN_GRACE: Final = 0.5


class Link(ABC):
    """See the module.

    Args:
        wire: its bytes' way in and out.
        ended: called once, synchronously, as soon as the end is known: (how, whether the owner asked for it). A peer's
            farewell is told here although TCP may stand for `CLOSE_GRACE` seconds more.

    Attributes:
        slots: calls that the peer takes at once on this connection; None: as many as were configured.
        opened_at: `trio.current_time()` when it was ready for calls.
        last_inbound_at: of the last read that brought anything: any byte proves life.
        hopeless: requests die here, whatever the pings say: it is to get no further one.
        parting: what is delivered now is the last: a farewell, or what cannot be understood, came in the same read.
    """

    __slots__ = (
        "_gone", "_lost", "_over", "_refuse", "_tell", "_wire", "hopeless", "last_inbound_at", "opened_at", "parting",
        "slots",
    )  # fmt: skip

    def __init__(self, wire: Wire, ended: Ended | None) -> None:
        self.opened_at = self.last_inbound_at = trio.current_time()
        self.slots: int | None = None
        self.parting = self.hopeless = False
        self._wire, self._tell = wire, ended
        self._refuse: Fault | None = None  # why nothing more can be sent
        self._lost: Fault | None = None  # how it ended; set once
        self._over = False  # TCP is closed, too
        self._gone: trio.Event | None = None  # for who waits for that

    def start(self) -> None:
        """Read from here on; what came in one segment with the end of the opening is delivered now."""
        self._wire.start(self)

    # --- what each kind adds

    @abstractmethod
    def send(self, slot: int, payload: bytes) -> None:
        """Send one call's request; returns at once. What the kernel does not take now goes out later, in order.

        Raises:
            ConnectionLost: it is closed, closing, or a write failed; nothing of the request was queued.
        """

    def stop(self, slot: int) -> bool:  # noqa: ARG002
        """End one call alone; False where only closing the connection does that, and nothing was done."""
        return False

    @abstractmethod
    async def ping(self, timeout: float) -> float | None:
        """Is the peer alive? The round trip in seconds, None where it cannot be told.

        Args:
            timeout: seconds of silence that mean the peer is dead; any byte proves life.

        Raises:
            ConnectionLost: `how` is "silence" when nothing came for `timeout` (the connection is then retired), else as
                the connection ended meanwhile.
        """

    @abstractmethod
    def feed(self, data: bytes, now: float) -> None:
        """The next bytes, from the wire."""

    @abstractmethod
    def _farewell(self, code: int) -> bytes:
        """What is said, if that needs no waiting, before TCP is closed without ceremony; b"" for nothing."""

    @abstractmethod
    def _deafen(self) -> None:
        """It is dead: part every circle of references, so that it is freed at once."""

    # --- what its owner calls

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted and not yet written: above zero, the peer reads more slowly than we send."""
        return self._wire.pending_bytes

    async def close(self, code: int = 1000, reason: str = "", *, timeout: float = CLOSE_GRACE) -> None:  # noqa: ARG002
        """Close in good order, in `timeout` seconds at most. Never raises; when it returns the connection is closed.

        Cancellation: closes at once.
        """
        self.abort(code)
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> None:
        """Wait until TCP is closed, however it came about."""
        if not self._over:
            self._gone = trio.Event() if self._gone is None else self._gone
            await self._gone.wait()

    def abort(self, code: int = 1000) -> None:
        """Close now: a farewell if that needs no waiting, then the TCP connection."""
        self.retire(self._closed_error("aborted"), code, ours=True)

    def retire(self, fault: Fault, code: int = 1000, *, ours: bool = False) -> None:
        """End without ceremony: best-effort farewell, then TCP closed."""
        if self._over:
            return
        if self._refuse is None:
            self._wire.last_words(self._farewell(code))
        self._finish()
        self._end(fault, ours=ours)

    # --- what its wire calls

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
        """The connection is lost: remember how, refuse writes, tell the owner. Only the first counts."""
        if self._lost is not None:
            return
        refuse = self._refuse
        if isinstance(refuse, ConnectionLost) and refuse.how == "local":
            fault, ours = refuse, True  # we were closing: that is how it ended, whatever came first
        self._lost = self._refuse = fault
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(fault, ours)
        if self._over:
            self._deafen()

    def _finish(self) -> None:
        """Close TCP."""
        if not self._over:
            self._over = True
            self._wire.close()
            if self._gone is not None:
                self._gone.set()
            if self._lost is not None:
                self._deafen()

    def _give_up(self) -> None:
        """What was waited for did not come."""
        self.retire(self._closed_error())

    def _put(self, data: bytes) -> None:
        """To the wire.

        Raises:
            ConnectionLost: nothing can be sent any more.
        """
        try:
            self._wire.write(data)
        except trio.BrokenResourceError:
            self.cannot_write()
            raise self._closed_error() from None
