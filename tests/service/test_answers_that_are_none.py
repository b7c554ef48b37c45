"""A warm HTTP connection, and what becomes of answers that are none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from sidecar.core.classifier import classify
from sidecar.core.idle import Habits
from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Prompt, Started
from sidecar.errors import UpstreamFault
from sidecar.service.http_connection import HttpConnection
from sidecar.transport.http import open_http
from sidecar.wire import ChatMessage
from tests.fakes.raw_upstream import running_pump

PROMPT = Prompt(model="m", messages=(ChatMessage(role="user", content="x"),))
SPOKEN = {
    "chat": b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}]}',
    "responses": b'{"type":"response.created","response":{"id":"r","status":"in_progress"}}',
    "messages": b'{"type":"message_start","message":{"id":"m","model":"m","role":"assistant","usage":{}}}',
}


class Holder:
    """A slot's: keeps how its attempt was lost."""

    def __init__(self) -> None:
        self.lost: UpstreamFault | None = None
        self.started = False
        self.over = trio.Event()

    def on_content(self, text: str, now: float) -> None:
        """See `SlotHolder`."""

    def on_started(self, event: Started) -> None:
        """See `SlotHolder`."""
        self.started = True

    def on_ending(self, now: float) -> None:
        """See `SlotHolder`."""

    def on_finished(self, event: Any, now: float) -> None:
        """See `SlotHolder`."""
        self.over.set()

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Any = None) -> None:
        """See `SlotHolder`."""
        self.lost = fault
        self.over.set()


@asynccontextmanager
async def connected(dialect: str) -> AsyncIterator[tuple[HttpConnection, trio.abc.Stream]]:
    """A connection that stands, and the server's end of it."""
    ours, theirs = trio.testing.memory_stream_pair()
    connection = HttpConnection(
        1, DIALECTS[dialect], 1, habits=Habits(), on_change=lambda _: None, on_freed=lambda _: None,
        on_spent=lambda _: None, born_at=0.0,
    )  # fmt: skip

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    def ended(fault: UpstreamFault, _: bool) -> None:
        connection.closed(fault, trio.current_time())

    async with running_pump() as pump:
        link = await open_http(
            dialer, "host:1", "/v1", connection, pump=pump, ended=ended, headers=[], secrets=[],
        )  # fmt: skip
        connection.opened(link, trio.current_time())
        link.start()
        yield connection, theirs
        link.abort()


async def lost(dialect: str, *events: bytes) -> Holder:
    """How an attempt ends whose answer is a proper 200 with these events, and over."""
    body = b"".join(b"data: %b\n\n" % event for event in events)
    holder = Holder()
    async with connected(dialect) as (connection, server):
        connection.start(holder, PROMPT)
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += await server.receive_some(65536)
        await server.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        with trio.fail_after(30):
            await holder.over.wait()
    return holder


@pytest.mark.parametrize("dialect", sorted(SPOKEN))
@pytest.mark.parametrize("spoken", sorted(SPOKEN))
async def test_an_answer_in_another_dialect_is_called_that(
    autojump_clock: trio.testing.MockClock, dialect: str, spoken: str
) -> None:
    """A 200 that is properly over, and in which nothing of the dialect was said, is malformed: no flaky network."""
    holder = await lost(dialect, SPOKEN[spoken], msgspec.json.encode({"type": "ping"}))
    outcome = classify(holder.lost or UpstreamFault())
    assert (outcome.code, outcome.counts_against_breaker) == ("upstream_lost", True)
    if dialect == spoken:
        assert holder.started
        assert "the answer ended without its end" in outcome.message
    elif spoken == "chat":
        assert outcome.message == "malformed: an event without a type"
    else:
        assert outcome.message.startswith(f"malformed: nothing in the dialect {dialect} was said")


async def test_an_answer_of_nothing_is_a_cut_one(autojump_clock: trio.testing.MockClock) -> None:
    """Where nothing was said, nothing was said in a wrong dialect."""
    holder = await lost("chat")
    assert "the answer ended without its end" in classify(holder.lost or UpstreamFault()).message
