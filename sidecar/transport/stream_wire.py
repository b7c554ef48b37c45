"""The bytes of one connection over any `trio.abc.Stream`, a simulation's above all: read by a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio

from sidecar.transport.wires import READ_BYTES, Poller, Receiver, call_later


class StreamWire:
    """Any byte stream: a task reads it, another writes while something is left to write.

    Args:
        stream: owned from here on.
        early: bytes that were read already.
        pump: in its nursery the tasks run, and its flush ends each read.
    """

    def __init__(self, stream: trio.abc.Stream, early: bytes, pump: Poller) -> None:
        self._stream, self._early, self._pump = stream, early, pump
        self._receiver: Receiver | None = None
        self._reader, self._writer = trio.CancelScope(), trio.CancelScope()
        self._unsent = bytearray()
        self._in_hand = 0
        self._writing = self._reading = self._closed = False

    @property
    def pending_bytes(self) -> int:
        """See `Wire`."""
        return len(self._unsent) + self._in_hand

    def start(self, receiver: Receiver) -> None:
        """See `Wire`."""
        if self._closed:
            return
        self._receiver = receiver
        if self._early:
            early, self._early = self._early, b""
            receiver.feed(early, self._pump.clock())
        self._reading = True
        self._pump.nursery.start_soon(self._read)

    async def _read(self) -> None:
        pump, stream = self._pump, self._stream
        try:
            with self._reader:
                while True:
                    how: Literal["eof", "reset"] = "eof"
                    reason, data = "end of stream", b""
                    try:
                        data = bytes(await stream.receive_some(READ_BYTES))
                    except trio.BrokenResourceError as error:
                        how, reason = "reset", str(error.__cause__ or error)
                    except trio.ClosedResourceError:
                        reason = "closed"
                    receiver = self._receiver
                    if self._closed or receiver is None:
                        return
                    if data:
                        receiver.feed(data, pump.clock())
                        pump.flush()
                    else:
                        receiver.end_of_input(how, reason)
                        pump.flush()
                        return
        finally:
            await trio.aclose_forcefully(stream)

    def look(self) -> None:
        """See `Wire`; a stream cannot be read without waiting."""

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        if self._closed:
            raise trio.BrokenResourceError("closed")
        self._unsent += data
        if not self._writing:
            self._writing = True
            self._pump.nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            with trio.CancelScope() as self._writer:
                while self._unsent:
                    data, self._unsent = self._unsent, bytearray()
                    self._in_hand = len(data)
                    await self._stream.send_all(data)
                    self._in_hand = 0
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._unsent.clear()
            if self._receiver is not None:
                self._receiver.cannot_write()
        finally:
            self._writing = False
            self._in_hand = 0

    def last_words(self, data: bytes) -> None:
        """See `Wire`; a stream cannot be written without waiting."""

    def close(self) -> None:
        """See `Wire`."""
        if self._closed:
            return
        self._closed = True
        self._unsent.clear()
        self._receiver = None
        self._reader.cancel()
        self._writer.cancel()
        if not self._reading:
            self._pump.nursery.start_soon(trio.aclose_forcefully, self._stream)

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """See `Wire`."""
        self._pump.nursery.start_soon(call_later, seconds, step, self._pump.flush)

    def round_trip(self) -> float | None:
        """See `Wire`."""
        return None
