"""The stream that trio-websocket is given: the upgrade's bytes, then whole control frames, never the tokens.

trio-websocket reads 4 KiB at a time, decodes each frame in Python (7 us) and passes it through a channel to another
task (6.7 us). Its handshake and its conduct at closing are what we want of it. So it is wrapped around this stream,
which hands over exactly the bytes through the end of the 101 response and parks; after that the one reader of the
connection feeds it control frames. Public interface only: any `trio.abc.Stream` will do for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from sidecar.transport.frames import PING


class Handover(trio.abc.Stream):
    """One end for trio-websocket; `feed` and `end` are the reader's.

    Args:
        write: sends bytes in order with all other writes and returns once the stream has taken them.

    Attributes:
        on_close: called when the library closes this stream; during the upgrade: it could make nothing of the response.
    """

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self._write = write
        self.on_close: Callable[[], None] | None = None
        self._waiting: list[tuple[int, bytes]] = []
        self._wake = trio.Event()
        self._ended = False

    def feed(self, opcode: int, data: bytes) -> None:
        """Hand over the handshake's bytes (opcode 0) or one whole control frame.

        A ping that has not been taken yet gives way to a newer one: one pong answers both (RFC 6455, 5.5.3), and a
        peer that sends thousands in one segment costs one answer.
        """
        waiting = self._waiting
        if opcode == PING and waiting and waiting[-1][0] == PING:
            waiting[-1] = (opcode, data)
        else:
            waiting.append((opcode, data))
        self._wake.set()

    def drop(self) -> None:
        """Forget what was not taken: after our own Close the library must not try to answer a ping (it would raise)."""
        self._waiting.clear()

    def end(self) -> None:
        """The connection is over: the library's read returns b""."""
        self._ended = True
        self._wake.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - frames are handed over whole
        """What was fed, when there is something; b"" after `end`."""
        while not self._waiting and not self._ended:
            self._wake = trio.Event()
            await self._wake.wait()
        data = b"".join(frame for _, frame in self._waiting)
        self._waiting.clear()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Through the connection's one writer."""
        await self._write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Never asked for by the library."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """The library is done: after the closing handshake, or because it could make nothing of what it was fed."""
        self.end()
        if self.on_close is not None:
            self.on_close()
        await trio.lowlevel.checkpoint()
