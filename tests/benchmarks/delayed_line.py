"""A line to a local port with a round trip of its own: `python delayed_line.py TARGET_PORT RTT_MS`, prints its port.

Every byte waits half of the round trip, either way. A connect on loopback takes no time, so a connection's first bytes
wait a whole one more: TCP's handshake. It ends with its parent.
"""

from __future__ import annotations

import sys
from functools import partial

import trio


async def carry(
    source: trio.SocketStream, sink: trio.SocketStream, delay: float, first: float, nursery: trio.Nursery
) -> None:
    """What comes from `source`, to `sink`, so much later."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](1000)

    async def deliver() -> None:
        async for at, data in receive:
            await trio.sleep_until(at)
            await sink.send_all(data)
        await sink.send_eof()

    nursery.start_soon(deliver)
    opened = trio.current_time()
    async with send:
        async for data in source:
            await send.send((max(trio.current_time(), opened + first) + delay, bytes(data)))


async def serve(port: int, round_trip: float, client: trio.SocketStream) -> None:
    """One connection."""
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(carry, client, server, round_trip / 2, round_trip, nursery)
            nursery.start_soon(carry, server, client, round_trip / 2, 0.0, nursery)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        pass


async def main(port: int, round_trip: float) -> None:
    """Listen until killed."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(partial(serve, port, round_trip), [listener])


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]) / 1000)
