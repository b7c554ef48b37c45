"""Whom a test has told of exchanges, and a link over memory streams beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from sidecar.errors import UpstreamFault
from sidecar.transport.http import open_http
from tests.fakes.raw_upstream import running_pump


class Owner:
    """Keeps all that it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.ends: list[tuple[UpstreamFault, bool]] = []
        self.over_at: list[float] = []  # the instants that `on_over` was told
        self.link: Any = None
        self.then: list[tuple[int, bytes]] = []  # sent from within `on_over`
        self._change = trio.Event()

    def _note(self, *what: Any) -> None:
        self.told.append(what)
        self._change.set()
        self._change = trio.Event()

    def on_head(self, slot: int, headers: dict[str, str]) -> None:
        """See `Exchanges`."""
        self._note("head", slot, headers)

    def on_events(self, slot: int, payloads: list[bytes], now: float) -> None:
        """See `Exchanges`."""
        self._note("events", slot, payloads)

    def on_refused(self, slot: int, status: int, headers: dict[str, str], body: bytes, now: float) -> None:
        """See `Exchanges`."""
        self._note("refused", slot, status, body)

    def on_over(self, slot: int, fault: Any, now: float) -> None:
        """See `Exchanges`."""
        self.over_at.append(now)
        self._note("over", slot, None if fault is None else getattr(fault, "how", "malformed"))
        if self.then:
            self.link.send(*self.then.pop(0))

    def on_room(self) -> None:
        """See `Exchanges`."""
        self._note("room", self.link.slots)

    def on_going_away(self) -> None:
        """See `Exchanges`."""
        self._note("going away")

    def ended(self, fault: UpstreamFault, ours: bool) -> None:
        """The link's end."""
        self.ends.append((fault, ours))
        self._note("ended", getattr(fault, "how", "malformed"))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """What was told of one kind, without its name."""
        return [one[1:] for one in self.told if one[0] == kind]

    def payloads(self, slot: int = 0) -> list[bytes]:
        """All events of a slot."""
        return [payload for one in self.of("events") if one[0] == slot for payload in one[1]]

    async def until(self, kind: str, count: int = 1) -> list[tuple[Any, ...]]:
        """Wait for so many."""
        with trio.fail_after(30):
            while len(self.of(kind)) < count:
                await self._change.wait()
        return self.of(kind)


@asynccontextmanager
async def linked(**options: Any) -> AsyncIterator[tuple[Owner, trio.abc.Stream]]:
    """A link that has begun, and the server's end of its stream."""
    ours, theirs = trio.testing.memory_stream_pair()
    owner = Owner()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    settings: dict[str, Any] = {"headers": [(b"X-A", b"1")], "secrets": [(b"Authorization", b"Bearer k")]}
    async with running_pump() as pump:
        owner.link = await open_http(
            dialer, "host:1", "/v1/x?q=1", owner, pump=pump, ended=owner.ended, **{**settings, **options}
        )
        owner.link.start()
        yield owner, theirs
        owner.link.abort()
