"""Events that bring no content: one by one they may come for ever, in floods they are no answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sidecar.core.idle import Habits
from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Faulted, Finished, Prompt, Started
from sidecar.errors import MalformedFrame, UpstreamFault
from sidecar.service.http_connection import AT_ONCE, MAX_BARREN, HttpConnection
from sidecar.transport.http import open_http
from sidecar.wire import ChatMessage
from tests.fakes.raw_upstream import running_pump

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),))


class Holder:
    """An attempt that keeps what it was told."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.text = ""

    def on_content(self, text: str, now: float) -> None:
        """See `SlotHolder`."""
        self.text += text

    def on_started(self, event: Started) -> None:
        """See `SlotHolder`."""

    def on_ending(self, now: float) -> None:
        """See `SlotHolder`."""

    def on_finished(self, event: Finished, now: float) -> None:
        """See `SlotHolder`."""

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        """See `SlotHolder`."""
        self.lost.append(str(fault))


def _ignore(_: object) -> None:
    pass


@asynccontextmanager
async def standing(dialect: str = "chat") -> AsyncIterator[HttpConnection]:
    """A connection that stands."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    connection = HttpConnection(
        1, DIALECTS[dialect], 4, habits=Habits(), on_change=_ignore, on_freed=_ignore, on_spent=_ignore, born_at=0
    )

    def over(fault: UpstreamFault, ours: bool) -> None:
        connection.closed(fault, trio.current_time())

    async with running_pump() as pump:
        await theirs.send_all(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        link = await open_http(dialer, "host", "/", connection, pump=pump, headers=[], ended=over, prior_knowledge=True)
        connection.opened(link, trio.current_time())
        link.start()
        yield connection
        link.abort()


@pytest.mark.parametrize("payload", [b"{}", b'{"id":1}', b'{"type":"ping"}'])
async def test_events_that_say_nothing_are_borne_only_so_long(
    autojump_clock: trio.testing.MockClock, payload: bytes
) -> None:
    """A read full of them holds up everybody: in floods they are counted, one by one they may come for ever."""
    async with standing() as connection:
        connection.start(Holder(), PROMPT)
        for _ in range(2 * MAX_BARREN // AT_ONCE):
            connection.on_events(0, [payload] * AT_ONCE, 0.0)
        connection.on_head(0, {})
        with pytest.raises(MalformedFrame, match="flood of events"):
            connection.on_events(0, [payload] * (MAX_BARREN + 2 * AT_ONCE), 0.0)


async def test_words_are_no_flood_however_many(autojump_clock: trio.testing.MockClock) -> None:
    """Content does not count, nor what little comes with it."""
    word = b'{"id":"c1","choices":[{"index":0,"delta":{"content":"x"}}]}'
    holder = Holder()
    async with standing() as connection:
        connection.start(holder, PROMPT)
        for _ in range(3):
            connection.on_events(0, [b"{}", *[word] * MAX_BARREN], 0.0)
    assert holder.text == "x" * (3 * MAX_BARREN)
