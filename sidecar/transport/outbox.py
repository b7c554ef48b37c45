"""The one way out of a connection: every byte in order, at once where the kernel takes it, else by one writer task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from sidecar.transport.tls import TlsStream, write_nowait


class Outbox:
    """Bytes for one stream. Whole frames in; none is ever torn, whoever is cancelled meanwhile.

    A write cancelled half way would corrupt the connection silently: hence no caller waits inside a write. The
    writer task lives in the connection's own nursery, only while something is left to write; what cancels it is the
    end of the connection.

    Args:
        stream: written by nobody else. Over a `trio.SocketStream` or a `TlsStream` on one, most writes end here and
            now, without a task switch.
        nursery: the connection's.
        failed: called when a write fails; nothing can be sent from then on.
    """

    def __init__(self, stream: trio.abc.Stream, nursery: trio.Nursery, failed: Callable[[], None]) -> None:
        self._stream, self._nursery, self._failed = stream, nursery, failed
        self._socket = stream if isinstance(stream, trio.SocketStream) else None
        self._tls = stream if isinstance(stream, TlsStream) else None
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes in `_queue` and in the writer's hands
        self._writing = False
        self._closed = False
        self._drained: trio.Event | None = None

    @property
    def pending_bytes(self) -> int:
        """Accepted and not yet written."""
        return self._queued + (self._tls.unsent_bytes if self._tls else 0)

    def write(self, data: bytes) -> None:
        """Write what can be written now and leave the rest to the writer.

        Raises:
            BrokenResourceError: the stream is gone; `failed` was called.
        """
        if self._writing:
            self._enqueue(data)
            return
        try:
            rest = self._hand_over(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._fail()
            raise trio.BrokenResourceError("a write failed") from None
        if rest:
            self._enqueue(rest)
        if rest or (self._tls is not None and self._tls.unsent_bytes):
            self._writing = True
            self._nursery.start_soon(self._writer)

    async def write_and_wait(self, data: bytes) -> None:
        """As `write`, and return when nothing is pending: who writes in answer to the peer cannot pile answers up."""
        self.write(data)
        while self.pending_bytes and not self._closed:
            self._drained = trio.Event()
            await self._drained.wait()
        await trio.lowlevel.checkpoint()

    def last_words(self, data: bytes) -> None:
        """Write `data` if nothing is pending and the kernel takes it now; else do not mind."""
        if not self.pending_bytes and not self._writing and not self._closed:
            try:
                self._hand_over(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    def close(self) -> None:
        """The connection is over: forget what is pending and wake who waits for it."""
        self._closed = True
        self._queue.clear()
        self._queued = 0
        if self._drained is not None:
            self._drained.set()

    def over(self) -> None:
        """As `close`, and for good: nobody is told of anything any more."""
        self.close()
        self._failed = _nobody

    def _enqueue(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued += len(data)

    def _hand_over(self, data: bytes) -> bytes:
        """Give `data` to the kernel without waiting. Returns what is left over."""
        if self._socket is not None:
            taken = write_nowait(self._socket, data)
            return data[taken:] if taken < len(data) else b""
        if self._tls is not None:
            self._tls.write_nowait(data)
            return b""
        return data

    async def _writer(self) -> None:
        try:
            while self._queue or (self._tls is not None and self._tls.unsent_bytes):
                data = self._queue.popleft() if self._queue else b""
                await self._stream.send_all(data)
                self._queued = max(0, self._queued - len(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._fail()
        finally:
            self._writing = False
            if self._drained is not None:
                self._drained.set()

    def _fail(self) -> None:
        if not self._closed:
            self.close()
            self._failed()


def _nobody() -> None:
    """Whom a failure concerns after the end."""
