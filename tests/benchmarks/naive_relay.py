"""The obvious relay, for comparison: what one writes first with the same libraries. Fair, but naive.

A Trio task per warm connection, trio-websocket's `get_message()` per token, a typed decode by msgspec, one ZeroMQ
message per token. It has no deadlines, retries, accounting or flow control, so it is ahead of the product by all of
these.
"""

from __future__ import annotations

import argparse
import sys

import msgspec
import trio
import zmq
from trio_websocket import WebSocketConnection, open_websocket_url


class Call(msgspec.Struct, tag_field="type", tag="call"):
    """What a bot sends; unknown fields are ignored."""

    id: str
    input: str


class Hello(msgspec.Struct, tag_field="type", tag="hello"):
    """Answered, so that the same bot can be used."""


class Welcome(msgspec.Struct, tag_field="type", tag="welcome"):
    """The answer."""


class Delta(msgspec.Struct, tag_field="type", tag="delta"):
    """A token."""

    id: str
    seq: int
    text: str


class Done(msgspec.Struct, tag_field="type", tag="done"):
    """The end."""

    id: str
    deltas: int


class Event(msgspec.Struct):
    """A frame of the upstream: all that is needed of it."""

    type: str
    delta: str = ""


class Relay:
    """One ROUTER, some connections."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self.router = router
        self.calls_in, self.calls_out = trio.open_memory_channel[tuple[bytes, Call]](1024)
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode_call = msgspec.msgpack.Decoder(Call | Hello).decode
        self.decode_event = msgspec.json.Decoder(Event).decode

    def send(self, peer: bytes, message: msgspec.Struct) -> None:
        """One message to a bot."""
        self.router.send_multipart([peer, self.encode(message)])

    async def receive(self) -> None:
        """Calls in: drain the socket, then wait for its descriptor."""
        while True:
            while int(self.router.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                peer, payload = self.router.recv_multipart()
                message = self.decode_call(payload)
                if isinstance(message, Hello):
                    self.send(peer, Welcome())
                else:
                    await self.calls_in.send((peer, message))
            with trio.move_on_after(0.01):  # sends eat the edge of the descriptor: look again soon
                await trio.lowlevel.wait_readable(self.router.FD)

    async def connection(self, url: str) -> None:
        """One connection: a call at a time, a `get_message()` per token."""
        async with open_websocket_url(url) as websocket:
            async for peer, call in self.calls_out:
                await self.answer(websocket, peer, call)

    async def answer(self, websocket: WebSocketConnection, peer: bytes, call: Call) -> None:
        """One call."""
        request = {"type": "response.create", "model": "gpt-5-mini", "input": call.input}
        await websocket.send_message(msgspec.json.encode(request).decode())
        seq = 0
        while True:
            event = self.decode_event(await websocket.get_message())
            if event.type == "response.output_text.delta":
                self.send(peer, Delta(id=call.id, seq=seq, text=event.delta))
                seq += 1
            elif event.type == "response.completed":
                self.send(peer, Done(id=call.id, deltas=seq))
                return

    async def run(self, url: str, connections: int) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(self.connection, url)
            nursery.start_soon(self.receive)


def main() -> int:
    """Until it is killed, or `--for-s` is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--for-s", type=float, default=600)
    options = parser.parse_args()
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.SNDHWM, 0)
    router.bind(options.endpoint)

    async def limited() -> None:
        with trio.move_on_after(options.for_s):
            await Relay(router).run(options.url, options.connections)

    trio.run(limited)
    return 0


if __name__ == "__main__":
    sys.exit(main())
