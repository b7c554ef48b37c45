"""Bots of pyzmq, and what tests of a real bots' socket wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
import zmq

from sidecar.transport.bot_port import BotPort, Incoming


class Bots:
    """A context and every socket made of it, closed together."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.context = zmq.Context()
        self.sockets: list[zmq.Socket[Any]] = []

    def make(self, kind: int = zmq.DEALER, **options: Any) -> zmq.Socket[Any]:
        """A connected bot."""
        bot = self.context.socket(kind)
        self.sockets.append(bot)
        bot.linger = 0
        for name, value in options.items():
            bot.setsockopt(getattr(zmq, name.upper()), value)
        bot.connect(self.address)
        return bot

    def watch(self, bot: zmq.Socket[Any]) -> zmq.Socket[Any]:
        """Has one message for each connection that this bot has lost, when its libzmq knows.

        What a bot sends before that goes into the connection that is dead, and nobody sends it again.
        """
        self.sockets.insert(0, bot.get_monitor_socket(zmq.EVENT_DISCONNECTED))
        return self.sockets[0]

    def close(self) -> None:
        """Sockets before the context."""
        for made in self.sockets:
            made.close(0)
        self.context.term()


async def until(check: Callable[[], Any], within: float = 5.0) -> Any:
    """Poll until `check` gives something true. For what happens outside this process's loop."""
    with trio.fail_after(within):
        while not (result := check()):
            await trio.sleep(0.001)
        return result


async def receive(port: BotPort, count: int = 1) -> list[Incoming]:
    """The next `count` messages."""
    got: list[Incoming] = []
    with trio.fail_after(5):
        while len(got) < count:
            got += await port.receive_batch(64)
    return got


async def departed(port: BotPort) -> list[bytes]:
    """The next departures."""
    with trio.fail_after(5):
        while not (gone := port.departures()):
            await port.receive_batch(64)
    return gone
