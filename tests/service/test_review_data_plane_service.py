"""Connections and their pool attacked: the last words of a connection, a dead one's memory, a spare forgotten."""

from __future__ import annotations

import random

import pytest
import zstandard
from wsproto.events import CloseConnection

from sidecar.compression import ZstdStream
from sidecar.core.pool_policy import ConnectionView, PoolPolicy
from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Finished, Prompt
from sidecar.errors import MalformedFrame, UpstreamFault
from sidecar.service.websocket_connection import WebSocketConnection
from sidecar.wire import ChatMessage
from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import Asked


@pytest.mark.parametrize("how", ["close", "garbage"])
@virtual
async def test_no_call_is_started_on_a_connection_that_says_goodbye(how: str) -> None:
    """An answer's end and the connection's in one read: the call that waits for the slot is sent elsewhere, once."""

    async def last(asked: Asked) -> None:
        frames = [asked.created(), asked.delta("whole"), asked.finish()]
        close = asked.connection.websocket.send(CloseConnection(code=1000))
        await asked.send(*frames, close if how == "close" else b"\xff\xff")

    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
        house["a"].scripts.append(last)
        bot = house.bot()
        names = [bot.call("first"), bot.call("second", timeout_ms=9000)]
        ends = [await bot.terminal(name) for name in names]
        assert [end["type"] for end in ends] == ["done", "done"]
        assert bot.text(names[0]) == "whole"
        assert ends[1]["attempts"] == 1
        # Nor was it told that its connection was lost.
        assert house.breaker("a").statistics(0.0).failures == 0


class _Holder:
    """A `SlotHolder` that keeps how it ended."""

    def __init__(self) -> None:
        self.text = ""
        self.ends: list[object] = []

    def on_content(self, text: str, now: float) -> None:
        self.text += text

    def on_started(self, event: object) -> None:
        pass

    def on_ending(self, now: float) -> None:
        pass

    def on_finished(self, event: Finished, now: float) -> None:
        self.ends.append(event)

    def on_lost(self, fault: UpstreamFault, now: float, *, event: object = None) -> None:
        self.ends.append(fault)


def test_what_came_whole_before_a_broken_slice_counts() -> None:
    """An answer's end, and behind it in one read a binary frame that is no zstd: the answer is done."""
    codec = DIALECTS["responses"].codec(slots=1)
    connection = WebSocketConnection(1, codec, on_change=lambda _: None, inflate=ZstdStream(), born_at=0.0)
    connection.state = "BUSY"
    connection.taken = connection.active = 1
    holder = _Holder()
    connection._attempts[0] = holder
    compressor = zstandard.ZstdCompressor().compressobj()
    frames = [
        b'{"type":"response.output_text.delta","item_id":"i","delta":"whole"}',
        b'{"type":"response.completed","response":{"id":"r","status":"completed","model":"m","output":[]}}',
    ]
    codec.encode(0, Prompt(model="m", messages=(ChatMessage(role="user", content="hi"),)))
    slices = [compressor.compress(one) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for one in frames]
    with pytest.raises(MalformedFrame):
        connection.receive([*slices, b"no zstd at all"], [0, 1, 2], 1.0)
    assert holder.text == "whole"
    assert len(holder.ends) == 1
    assert isinstance(holder.ends[0], Finished)
    assert not connection.free


def test_a_dead_connection_keeps_no_window() -> None:
    """The keepalive's heap may hold a connection for an interval after its end: not its zstd window too."""
    codec = DIALECTS["responses"].codec(slots=1)
    connection = WebSocketConnection(1, codec, on_change=lambda _: None, inflate=ZstdStream(), born_at=0.0)
    connection.closed(MalformedFrame("x"), 1.0)
    assert connection._inflate is None


@pytest.mark.parametrize("why", ["leisure", "loss"])
def test_a_spare_that_may_not_be_opened_yet_is_not_forgotten(why: str) -> None:
    """One goes missing while the next connect must wait: the policy asks to be asked again, by itself."""
    policy = PoolPolicy(warm=4, maximum=8, jitter=random.Random(1).random)
    now = 100.0
    opened = 0
    while opened < 4:
        views = [ConnectionView(key, "READY", 0.0) for key in range(opened)]
        opened += len(policy.decide(now, views, 0))
        policy.connected(now)
        now += 0.001
    stand = [ConnectionView(key, "READY", 0.0) for key in range(5 if why == "loss" else 4)]
    if why == "loss":
        now += 100
        policy.lost(now, MalformedFrame("x"), lived=1000.0)
    policy.decide(now, stand, 0)  # all is well: nothing to do, and no instant to look again
    taken = 2 if why == "loss" else 1
    views = [ConnectionView(view.key, "BUSY" if view.key < taken else "READY", 0.0, view.key < taken) for view in stand]
    now += 0.001
    if policy.needs_decision(len(stand) - taken, 0, len(stand), 0, now):
        assert policy.decide(now, views, 0) == []
    assert policy.next_wakeup_at() < now + 10
    # And once is enough: the path of a short call is not to pay for it again.
    assert not policy.needs_decision(len(stand) - taken, 0, len(stand), 0, now)
    assert len(policy.decide(policy.next_wakeup_at(), views, 0)) == 1
