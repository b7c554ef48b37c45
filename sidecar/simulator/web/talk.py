"""One HTTP connection, whichever version: its calls, its ends, its place in the counters and the journal."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Final, Literal, Protocol

import trio

from sidecar.simulator import calls
from sidecar.simulator.behaviour import Behaviour
from sidecar.simulator.calls import Call
from sidecar.simulator.control import Steered
from sidecar.simulator.counters import Note, Way
from sidecar.simulator.link import Link
from sidecar.simulator.toxics import Line, Toxic, line_of

_LINGER: Final = 2.0
_EXPIRY: Final = 10.0


class Host(calls.Host, Steered, Protocol):
    """What an HTTP connection asks of the relay."""

    behaviour: Behaviour
    dialects: Collection[str]
    keys: Collection[str] | None
    keepalive_timeout_s: float | None
    max_age_s: float | None
    max_streams: int
    wall_s: Callable[[], float]

    def check(self, group: str) -> None:
        """ValueError: the path's scenario is wrong."""
        ...

    def next_door(self, group: str) -> str:
        """What befalls the next upgrade or HTTP request by that path."""
        ...

    def refused(self, name: str) -> None:
        """Count what a door scenario met."""
        ...

    def forget(self, one: calls.Speaking) -> None:
        """It is not to be killed or closed by a command that it carries itself."""
        ...


class Talk(ABC):
    """One connection, from its first request (HTTP/2: its preface) on.

    Cancellation: leaves the link open and the counters right; whoever cancels closes the link.
    """

    way: Way

    def __init__(self, host: Host, link: Link) -> None:
        self.host, self.link = host, link
        self.over = False
        self.calls: set[Call] = set()
        self._groups: list[str] = []
        self._scope, self._reading = trio.CancelScope(), trio.CancelScope()
        self._tasks: trio.Nursery | None = None
        self._line: Line | None = None

    async def run(self) -> None:
        """Until either side ends it."""
        left = False
        self.host.counters.opened(self.way)
        try:
            with self._scope:
                async with trio.open_nursery() as self._tasks:
                    if self.host.max_age_s is not None:
                        self._tasks.start_soon(self._age, self.host.max_age_s)
                    with self._reading:
                        await self._live(self._tasks)
                    while self._reading.cancelled_caught and not self.link.abandoned:
                        await trio.sleep(0.05)
                    if self._line is not None:
                        await trio.sleep(self._line.slow_close_s)
                    self._tasks.cancel_scope.cancel()
            left = True
        finally:
            if not left:
                self.eof()
            for call in self.calls:
                calls.end(self.host, call, "stopped")
            self.host.counters.open -= 1
            self._note("gone", self._groups[0] if self._groups else "", "")

    @abstractmethod
    async def _live(self, nursery: trio.Nursery) -> None:
        """Read until the client goes or speaks no HTTP any more."""

    async def deafen(self) -> None:
        """Read nothing any more; never returns."""
        self._reading.cancel()
        await trio.sleep_forever()

    async def _age(self, limit: float) -> None:
        await trio.sleep(limit)
        self.close(1000)

    # ---------------------------------------------------------------------------------------------- its requests

    def asked(self, group: str, name: str) -> None:
        """A request came by that path, and `name` befalls it at the door; of the first it befalls the connection."""
        if not self._groups:
            self._note("connect", group, name)
            self._begin(name)
        if group not in self._groups:
            self._groups.append(group)

    def _begin(self, name: str) -> None:
        assert self._tasks is not None
        if name in ("expiry", "expiring") and self.host.max_age_s is None:
            self._tasks.start_soon(self._age, _EXPIRY)
        self._line = line_of(name, self.host.behaviour)
        if self._line is not None:
            dice = random.Random(self.host.seed * 1_000_003 + self.link.number)
            deliver, clock = self.link.deliver, trio.current_time
            self.link.poison(Toxic(self._line, dice=dice, clock=clock, deliver=deliver, end=self._fail))
            self._tasks.start_soon(self.link.worsen)

    def _fail(self, how: str) -> None:
        self.reset() if how == "reset" else self.eof()

    def refused(self, group: str, name: str) -> None:
        """A door scenario answers it."""
        self.host.refused(name)
        self._note("refused", group, name)

    def serves(self, group: str) -> bool:
        """A request came by that path."""
        return group in self._groups

    def _note(self, event: Literal["connect", "refused", "gone"], group: str, name: str) -> None:
        note = Note(self.host.mono_us(), event, group, "", name, self.link.number, self.way)
        self.host.counters.journal.append(note)

    # -------------------------------------------------------------------------------------------------- its ends

    def cut(self, call: Call) -> None:
        """The relay ends a call that has not ended; whoever answers it is cancelled."""
        calls.end(self.host, call, "cut")
        call.scope.cancel()

    def _end(self) -> None:
        """The relay goes first: calls are cut; reading goes on for a while, so that what was said arrives."""
        if not self.over:
            self.over = True
            for call in self.calls:
                self.cut(call)
            self._scope.deadline = trio.current_time() + _LINGER

    def eof(self) -> None:
        """End the connection by FIN, wherever its answers are."""
        self._end()
        self.link.finish()

    def reset(self) -> None:
        """End the connection by RST."""
        self._end()
        self.link.reset()

    def leave(self) -> None:
        """End it as servers do that have nothing left to say: after the last byte, with TLS's farewell."""
        self._end()
        self.link.finish(farewell=True)

    @abstractmethod
    def close(self, code: int, reason: str = "") -> None:
        """End it as soon as the answers that are under way are whole; `code` is a WebSocket's and of no use here."""
