"""Pings for every connection of a pool, by one task and one heap: a warm connection that nobody uses has no task."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, NoReturn

import trio

from sidecar.errors import ConnectionLost
from sidecar.service.connection import Connection

#: Pings are spread by so much of their interval, either way.
SPREAD: Final = 0.1
#: Those due within so much of the interval are pinged together: at a thousand connections waking for each, and for each
#: pong, costs more than the pings.
TOGETHER: Final = 0.01


class Keepalive:
    """Asks each connection for a sign of life every `interval`; the transport gives up a peer that stays silent.

    A ping in flight is a short task. The next one is due an interval after its pong.

    Args:
        clock: the loop's time.
        jitter: uniform in [0, 1).
        interval: seconds between two pings of one connection, spread by `SPREAD`.
        pong_timeout: seconds of silence after a ping that mean the peer is dead.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        *,
        interval: float,
        pong_timeout: float,
    ) -> None:
        self._clock, self._jitter = clock, jitter
        self._interval, self._pong_timeout = interval, pong_timeout
        self._due: list[tuple[float, int, Connection]] = []
        self._count = 0
        self._earlier = trio.Event()

    def add(self, connection: Connection) -> None:
        """It stands: ping it from now on, until it is gone."""
        spread = 1 - SPREAD + 2 * SPREAD * self._jitter()
        self._count += 1
        heapq.heappush(self._due, (self._clock() + self._interval * spread, self._count, connection))
        if self._due[0][1] == self._count:
            self._earlier.set()

    async def run(self) -> NoReturn:
        """Ping for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                self._earlier = trio.Event()
                now = self._clock()
                while self._due and self._due[0][0] <= now + TOGETHER * self._interval:
                    connection = heapq.heappop(self._due)[2]
                    if connection.link is not None:
                        nursery.start_soon(self._ping, connection)
                with trio.move_on_at(self._due[0][0] if self._due else trio.current_time() + 86_400):
                    await self._earlier.wait()

    async def _ping(self, connection: Connection) -> None:
        link = connection.link
        if link is None:
            return
        try:
            connection.rtt = await link.ping(self._pong_timeout)
        except ConnectionLost:
            return
        self.add(connection)
