"""The stream that trio-websocket is given: the upgrade's bytes and nothing after them.

trio-websocket reads 4 KiB at a time, decodes each frame in Python (7 us) and passes it through a channel to another
task (6.7 us); its objects and its task cost 15 KiB a connection. Its handshake is what we want of it. So it is wrapped
around this stream, which hands over exactly the bytes through the end of the 101 response and parks; then the library
is let go. Public interface only: any `trio.abc.Stream` will do for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class Handover(trio.abc.Stream):
    """One end for trio-websocket; `feed` is for who reads the response.

    Args:
        write: sends bytes.
        on_close: called when the library closes this stream: it could make nothing of the response.
    """

    def __init__(self, write: Callable[[bytes], Awaitable[None]], on_close: Callable[[], None]) -> None:
        self._write, self._on_close = write, on_close
        self._waiting = b""
        self._wake = trio.Event()

    def feed(self, data: bytes) -> None:
        """Hand over the response's bytes."""
        self._waiting += data
        self._wake.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - handed over whole
        """What was fed, when there is something; then nothing, for ever."""
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        data, self._waiting = self._waiting, b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """The request."""
        await self._write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Never asked for by the library."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """The library gives up."""
        self._on_close()
        await trio.lowlevel.checkpoint()
