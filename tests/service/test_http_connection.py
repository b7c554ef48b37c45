"""An HTTP/2 connection as its pool sees it: what becomes of the calls on it, and whether it gets further ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h2.events
import h2.settings
import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from sidecar.core.idle import Habits
from sidecar.core.pool_policy import PoolPolicy
from sidecar.dialects.base import Faulted, Finished, Prompt, Started
from sidecar.dialects.chat import CHAT
from sidecar.errors import UpstreamFault
from sidecar.service import partings
from sidecar.service.connection import Connection
from sidecar.service.http_connection import HttpConnection
from sidecar.transport.http import open_http
from sidecar.wire import ChatMessage, Options
from tests.fakes.raw_upstream import running_pump
from tests.transport.test_http2_link import HEAD, Server

SAID = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'


class Holder:
    """Of a slot: keeps what it is told."""

    def __init__(self) -> None:
        self.text = ""
        self.finished: Finished | None = None
        self.fault: UpstreamFault | None = None

    def on_content(self, text: str, now: float) -> None:
        """See `SlotHolder`."""
        self.text += text

    def on_started(self, event: Started) -> None:
        """See `SlotHolder`."""

    def on_ending(self, now: float) -> None:
        """See `SlotHolder`."""

    def on_finished(self, event: Finished, now: float) -> None:
        """See `SlotHolder`."""
        self.finished = event

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        """See `SlotHolder`."""
        self.fault = fault

    @property
    def how(self) -> str | None:
        """How it was lost."""
        return None if self.fault is None else getattr(self.fault, "how", "malformed")


class Bench:
    """A connection that stands, its server, and what its pool was told."""

    def __init__(self, connection: HttpConnection, server: Server, told: list[str]) -> None:
        self.connection, self.server, self.told = connection, server, told

    def ask(self, text: str = "hi") -> Holder:
        """One call."""
        holder = Holder()
        messages = (ChatMessage(role="user", content=text),)
        prompt = Prompt(model="m", messages=messages, instructions=None, options=Options())
        self.connection.start(holder, prompt)
        return holder

    async def settle(self) -> None:
        """All that can happen now has happened."""
        await trio.sleep(0.01)


@asynccontextmanager
async def bench(habits: Habits | None = None, *, slots: int = 4, **settings: int) -> AsyncIterator[Bench]:
    """See `Bench`; `settings` of its server, by their names."""
    ours, theirs = trio.testing.memory_stream_pair()
    server, told = Server(theirs), list[str]()
    values = {getattr(h2.settings.SettingCodes, name.upper()): value for name, value in settings.items()}
    server.engine.local_settings = h2.settings.Settings(client=False, initial_values=values)

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    def note(what: str, connection: Connection) -> None:
        told.append(f"{what} {'free' if connection.free else connection.state}")

    connection = HttpConnection(
        1, CHAT, slots, habits=habits or Habits(), on_change=partial(note, "changed"), on_freed=partial(note, "freed"),
        on_spent=lambda _: None, born_at=trio.current_time(),
    )  # fmt: skip

    policy = PoolPolicy(warm=1, maximum=4, jitter=lambda: 0.5)

    def ended(fault: UpstreamFault, ours: bool) -> None:
        now = trio.current_time()
        told.append("lost" if partings.tell(policy, connection, fault, now) else "ended")
        connection.closed(fault, trio.current_time())

    async with trio.open_nursery() as nursery, running_pump() as pump:
        nursery.start_soon(server.run)
        link = await open_http(
            dialer, "host", "/v1/x", connection, pump=pump, headers=[], ended=ended, prior_knowledge=True
        )
        connection.opened(link, trio.current_time())
        link.start()
        made = Bench(connection, server, told)
        await made.settle()
        yield made
        link.abort()
        nursery.cancel_scope.cancel()


async def test_an_answer_that_lacks_only_its_usage_is_one(autojump_clock: trio.testing.MockClock) -> None:
    """Its stream is reset behind the reason why it stopped: nothing of the text is missing, as with a close."""
    async with bench() as made:
        whole, cut = made.ask(), made.ask()
        await made.settle()
        await made.server.answer(1, SAID % (b"a", b"null"), SAID % (b"", b'"stop"'), end=False)
        await made.server.answer(3, SAID % (b"b", b"null"), end=False)
        for sid in (1, 3):
            made.server.engine.reset_stream(sid, ErrorCodes.INTERNAL_ERROR)
        await made.server.flush()
        await made.settle()
        assert whole.finished is not None
        assert whole.finished.finish == "stop"
        assert (whole.fault, cut.finished, cut.how) == (None, None, "reset")
        assert made.connection.taken == 0


async def test_one_goaway_is_one_word(autojump_clock: trio.testing.MockClock) -> None:
    """However many requests it leaves, they were not looked at, on this connection and the next; but not for ever."""
    habits = Habits()
    for hows in ({"unprocessed"}, {"unprocessed"}, {"reset"}):
        async with bench(habits, slots=8) as made:
            left = [made.ask() for _ in range(8)]
            await made.settle()
            await made.server.stream.send_all(b"\0\0\x08\x07\0" + bytes(12))
            await made.settle()
            assert {holder.how for holder in left} == hows
        await trio.sleep(2.0)


@pytest.mark.parametrize(("used", "after", "told"), [(False, 0.0, "lost"), (True, 0.0, "ended"), (False, 2.0, "ended")])
async def test_who_goes_away_as_it_comes_is_not_asked_again_at_once(
    autojump_clock: trio.testing.MockClock, used: bool, after: float, told: str
) -> None:
    """GOAWAY on a connection that has just come, and served nothing, is a loss, with its backoff; else it is none."""
    async with bench() as made:
        if used:
            made.ask()
            await made.settle()
            await made.server.answer(1, SAID % (b"a", b'"stop"'))
        await trio.sleep(after)
        await made.server.stream.send_all(b"\0\0\x08\x07\0" + bytes(7) + b"\1" + bytes(4))
        await made.settle()
        assert made.told[-1] == told


async def test_room_that_comes_later_is_told_of(autojump_clock: trio.testing.MockClock) -> None:
    """A server that takes no call at first: its connection is not free, and as soon as it is, its pool is told."""
    async with bench(max_concurrent_streams=0) as made:
        assert not made.connection.free
        made.told.clear()
        made.server.engine.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        await made.server.flush()
        await made.settle()
        assert made.told == ["changed free"]
        assert made.connection.free
        made.ask()
        assert not made.connection.free


async def test_a_connection_whose_windows_stay_shut_gets_no_further_call(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A call was given up there whose prompt the peer does not take: it is drained, however well it answers pings."""
    async with bench(initial_window_size=0) as made:
        hasty = made.ask()
        await trio.sleep(0.1)
        made.connection.stop(hasty)
        assert made.told[-1] == "freed free"
        stuck, other = made.ask(), made.ask()
        await trio.sleep(0.3)
        made.connection.stop(stuck)
        assert (made.told[-1], made.connection.active) == ("freed DRAINING", 1)
        made.server.engine.increment_flow_control_window(1000, 5)
        await made.server.flush()
        await made.server.answer(5, SAID % (b"b", b'"stop"'))
        await made.settle()
        assert other.text == "b"


@pytest.mark.parametrize("heard", [0, 1, 5])
async def test_a_connection_that_answers_pings_alone_gets_no_third_call(
    autojump_clock: trio.testing.MockClock, heard: int
) -> None:
    """Two calls in a row were given up there, each after a while, and no answer went on: it is drained.

    Not where the second call's own head came, or another answer went on beside it.
    """
    async with bench() as made:
        made.ask()
        await made.settle()
        await made.server.answer(1, end=False)
        await made.settle()
        for sid in (3, 5):
            holder = made.ask()
            await trio.sleep(2.0)
            if sid == 5 and heard == 5:
                made.server.engine.send_headers(sid, HEAD)
            elif sid == 5 and heard:
                made.server.engine.send_data(heard, SAID % (b"a", b"null"))
            if sid == 5 and heard:
                await made.server.flush()
                await made.settle()
            made.connection.stop(holder)
        assert made.connection.link is not None
        assert await made.connection.link.ping(1.0) is not None
        assert made.told[-1] == ("freed free" if heard else "freed DRAINING")


async def test_nobody_is_told_of_an_end_while_he_stops_a_call(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that lets what we send lie is given up when a call is stopped, in a step of its own."""
    async with bench(initial_window_size=1 << 24) as made:
        made.server.engine.increment_flow_control_window(1 << 24)
        await made.server.flush()
        await made.settle()
        lies: Any = made.connection.link
        holders = [made.ask() for _ in range(2)]
        lies._wire._unsent += bytes(2 << 20)  # as if the peer had read nothing for long
        made.connection.stop(holders[0])
        assert (made.told[-1], holders[1].how) == ("freed free", None)
        await made.settle()
        assert (made.told[-1], holders[1].how, made.connection.state) == ("lost", "reset", "CLOSED")
