"""Probes an upstream whose breaker has waited its time: a fresh connect and a ping, before a bot's call is risked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio

from sidecar.config import Upstream
from sidecar.core.breaker import Breaker
from sidecar.errors import ConnectionLost
from sidecar.service.connection import Connection


class Probed(Protocol):
    """The pool, as seen from here."""

    upstream: Upstream
    breakers: list[Breaker]
    connections: dict[int, Connection]

    async def open_one(self) -> Connection:
        """A connect now; what comes back has no `link` when it failed."""
        ...

    def may_open_at(self) -> float:
        """The earliest instant for a connect; inf while none is to be made."""
        ...

    def turned(self) -> None:
        """It may be asked again, or is known not to: whoever waits looks again."""
        ...


class Prober:
    """One task per upstream, asleep while no breaker waits for a probe. One probe serves all of its breakers.

    Args:
        pool: makes the connects, after its own backoff.
        clock: the loop's time.
        pong_timeout: seconds.
    """

    def __init__(self, pool: Probed, clock: Callable[[], float], *, pong_timeout: float) -> None:
        self._pool, self._clock, self._pong_timeout = pool, clock, pong_timeout
        self._woken = trio.Event()

    def wake(self) -> None:
        """A breaker has moved, or the pool may connect earlier than it said."""
        self._woken.set()

    def is_shut(self, now: float) -> bool:
        """None of the breakers would let anybody in."""
        breakers = self._pool.breakers
        return bool(breakers) and all(breaker.is_shut(now) for breaker in breakers)

    def wants_trials(self, now: float) -> bool:
        """None of the breakers is closed."""
        breakers = self._pool.breakers
        return bool(breakers) and all(breaker.state(now) != "closed" for breaker in breakers)

    async def run(self) -> NoReturn:
        """Probe for ever."""
        pool = self._pool
        while True:
            self._woken = trio.Event()
            now = self._clock()
            moved = [breaker for breaker in pool.breakers if breaker.settle(now)]
            if moved:
                pool.turned()
            settles_at = min((breaker.settles_at() for breaker in pool.breakers), default=math.inf)
            wanted_at = min((breaker.probe_due_at() for breaker in pool.breakers), default=math.inf)
            due_at = max(wanted_at, pool.may_open_at())
            if due_at <= now and any(c.state == "CONNECTING" for c in pool.connections.values()):
                due_at = math.inf  # its end says as much: whoever has none yet does not ask for two
            if due_at > now:
                with trio.move_on_at(min(due_at, settles_at)):
                    await self._woken.wait()
                continue
            wanted_at = min(wanted_at, now)
            waiting = [breaker for breaker in pool.breakers if breaker.probe_due_at() <= now]
            for breaker in waiting:
                breaker.probe_started(now)
            stands = await self._probe(wanted_at)
            now = self._clock()
            for breaker in waiting:
                breaker.probe_ended(now, stands)
            if stands:
                pool.turned()

    async def _probe(self, wanted_at: float) -> bool:
        """Whether a ping is answered, on the newest connection there is to be had.

        One that was made since is fresh enough: after an outage a whole fleet's connects are in demand. One more is not
        opened beyond the maximum; and a service that takes no further one may still answer on those it has taken.
        """
        pool = self._pool
        connection = self.newest()
        fresh = connection is not None and connection.opened_at is not None and connection.opened_at >= wanted_at
        if not fresh and (connection is None or len(pool.connections) < pool.upstream.max_connections):
            opened = await pool.open_one()
            connection = opened if opened.link is not None else self.newest()
        if connection is None or connection.link is None:
            return False
        try:
            connection.rtt = await connection.link.ping(self._pong_timeout)
        except ConnectionLost:
            return False
        return True

    def newest(self) -> Connection | None:
        """The newest connection that takes calls, or carries one; None when none stands."""
        standing = [c for c in self._pool.connections.values() if c.state == "READY" or c.state == "BUSY"]
        return max(standing, key=lambda c: c.opened_at or 0.0, default=None)
