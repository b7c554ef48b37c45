"""A bot port in memory: many bots, no sockets, for tests and simulations in virtual time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

import trio

from sidecar.transport.bot_port import Envelope, Incoming, Sent, split_envelope


class FakeBot:
    """One connection. `capacity` is how many messages it takes unread before it is full; None: any number."""

    def __init__(self, port: FakeBotPort, routing_id: bytes, address: str, capacity: int | None) -> None:
        self.port, self.routing_id, self.address, self.capacity = port, routing_id, address, capacity
        self.inbox: deque[tuple[Envelope, bytes]] = deque()
        self.unread = 0
        self.met = self.gone = False

    def send(self, *frames: bytes) -> None:
        """One message of these frames."""
        self.port.deliver(self, list(frames))

    def take(self) -> list[tuple[Envelope, bytes]]:
        """Everything received and not yet read, as (envelope, payload)."""
        taken = list(self.inbox)
        self.inbox.clear()
        if taken:
            self.port.wake()
        return taken

    def leave(self) -> None:
        """Close the connection."""
        self.gone = True
        self.port.lose(self)


class FakeBotPort:
    """`BotPort` in memory."""

    def __init__(self) -> None:
        self._bots: dict[bytes, FakeBot] = {}
        self._messages: deque[tuple[FakeBot, list[bytes]]] = deque()
        self._departed: list[bytes] = []
        self._woken = trio.Event()
        self._numbers: Iterator[int] = itertools.count(1)
        self.settled = 0
        self.hushed = False

    def connect(
        self, *, uid: int = 1000, pid: int = 4711, capacity: int | None = None, routing_id: bytes | None = None
    ) -> FakeBot:
        """A new bot; the port hears of it with its first message."""
        number = next(self._numbers)
        identity = routing_id if routing_id is not None else b"\0" + number.to_bytes(4, "big")
        return FakeBot(self, identity, f"localhost:{uid}:{uid}:{pid}", capacity)

    def deliver(self, bot: FakeBot, frames: list[bytes]) -> None:
        """A bot sent something; to a hushed port nothing can be sent any more."""
        if self.hushed:
            return
        self._messages.append((bot, frames))
        self.wake()

    def lose(self, bot: FakeBot) -> None:
        """A bot is gone."""
        if self._bots.pop(bot.routing_id, None) is not None:
            self._departed.append(bot.routing_id)
        self.wake()

    def wake(self) -> None:
        """Something happened."""
        self._woken.set()

    async def receive_batch(self, limit: int) -> list[Incoming]:
        """See `BotPort`."""
        await trio.lowlevel.checkpoint()
        if not self._messages and not self._departed:
            await self._woken.wait()
        self._woken = trio.Event()
        batch = self.receive_now(limit)
        if self._messages:
            self.wake()
        return batch

    def receive_now(self, limit: int) -> list[Incoming]:
        """See `BotPort`."""
        batch: list[Incoming] = []
        while self._messages and len(batch) < limit:
            bot, frames = self._messages.popleft()
            if bot.gone:
                continue
            address = None if bot.met else bot.address
            bot.met = True
            self._bots[bot.routing_id] = bot
            envelope, payload = split_envelope(frames)
            batch.append(Incoming(bot.routing_id, envelope, payload, address))
        return batch

    def departures(self) -> list[bytes]:
        """See `BotPort`."""
        departed, self._departed = self._departed, []
        return departed

    def send(self, routing_id: bytes, payload: bytes, envelope: Envelope = ()) -> Sent:
        """See `BotPort`."""
        bot = self._bots.get(routing_id)
        if bot is None:
            return Sent.GONE
        if bot.capacity is not None and len(bot.inbox) >= bot.capacity:
            return Sent.FULL
        bot.inbox.append((envelope, payload))
        return Sent.SENT

    def settle(self) -> None:
        """See `BotPort`."""
        self.settled += 1

    def hush(self) -> bool:
        """See `BotPort`."""
        self.hushed = True
        return not self._messages

    def unread_bytes(self, routing_id: bytes) -> int:
        """See `BotPort`; what the test says."""
        bot = self._bots.get(routing_id)
        return bot.unread if bot is not None else 0
