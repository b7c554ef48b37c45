"""An HTTP/1.1 service in memory that answers every chat call at once, and has its way with idle connections."""

from __future__ import annotations

import math

import trio
import trio.testing

ANSWER = (
    b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
    b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)


class HttpUpstream:
    """One service; any number of connections.

    Attributes:
        patience: seconds for which it keeps an idle connection.
        answer: what it says to each request.
        standing: its ends of the connections.
        dialled_at: instants.
        closed_idle: how many it has closed.
    """

    def __init__(self, name: str, nursery: trio.Nursery) -> None:
        self.name, self.nursery = name, nursery
        self.patience = math.inf
        self.answer = HEAD + ANSWER
        self.standing: list[trio.abc.Stream] = []
        self.dialled_at: list[float] = []
        self.closed_idle = 0

    async def dial(self) -> trio.abc.Stream:
        """A connected stream."""
        await trio.lowlevel.checkpoint()
        self.dialled_at.append(trio.current_time())
        client, server = trio.testing.memory_stream_pair()
        self.standing.append(server)
        self.nursery.start_soon(self._serve, server)
        return client

    async def close(self, count: int) -> None:
        """Close so many of them, now."""
        for server in self.standing[:count]:
            await server.aclose()

    async def _serve(self, server: trio.abc.Stream) -> None:
        try:
            while True:
                with trio.move_on_after(self.patience) as patience:
                    if not await _request(server):
                        return
                if patience.cancelled_caught:
                    self.closed_idle += 1
                    return
                await server.send_all(self.answer)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return
        finally:
            self.standing.remove(server)
            await server.aclose()


async def _request(server: trio.abc.Stream) -> bool:
    """Read one; whether there was one."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = bytes(await server.receive_some())
        if not data:
            return False
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.rpartition(b"Content-Length: ")[2])
    while len(body) < length:
        body += bytes(await server.receive_some())
    return True
