"""The operator's brakes and the rules for clients in the whole daemon, in virtual time."""

from __future__ import annotations

import pytest
import trio

from sidecar.config import Client
from sidecar.core.halt import EVERY_LANE
from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import silent, slowly, stalling

LONG = {"timeout_ms": 60_000, "first_delta_timeout_ms": 50_000, "idle_timeout_ms": 50_000}
ONE = {"a": {"warm_connections": 1, "max_connections": 1}}


@virtual
async def test_what_runs_waits_and_is_parked_ends_in_the_same_instant_and_exits_take_the_places() -> None:
    """In flight, without a connection, in the queue: each `halted`; the exit that waited behind them is answered."""
    async with clockwork(ONE, max_calls_in_flight=2, exit_reserved_calls=0, route=LONG) as house:
        house["a"].default = silent
        bot = house.bot()
        running, parked = bot.call("1"), bot.call("2", lane="research")
        queued = [bot.call("3"), bot.call("4", lane="research")]
        await trio.sleep(0.1)
        house["a"].default = slowly(0.01)
        waiting = bot.call("5", lane="exit")
        await trio.sleep(0.1)
        at = trio.current_time()
        standing = house.daemon.brakes.halt(frozenset({"entry", "research"}), "bad prices")
        assert standing.ended == 4
        for name in (running, parked, *queued):
            ended = await bot.terminal(name)
            assert (ended["code"], ended["retryable"]) == ("halted", False)
            assert ended["message"] == "halted by the operator: bad prices"
            assert bot.ended_at(name) == pytest.approx(at, abs=0.001)
        assert (await bot.terminal(waiting))["type"] == "done"


@virtual
async def test_a_halted_lane_is_refused_on_receipt_and_nothing_of_it_is_sent() -> None:
    """No `accepted`, no attempt; the other lanes go on, and all of them after the resume."""
    async with clockwork() as house:
        bot = house.bot()
        house.daemon.brakes.halt(frozenset({"entry"}))
        for _ in range(50):
            refused = await bot.ask()
            assert (refused["code"], refused["call_id"], refused["retryable"]) == ("halted", None, False)
        assert len(house["a"].asked) == 0
        assert (await bot.ask(lane="exit"))["type"] == "done"
        assert (await bot.ask(lane="research"))["type"] == "done"
        house.daemon.brakes.resume(frozenset({"entry"}))
        assert (await bot.ask())["type"] == "done"


@virtual
async def test_everything_is_halted_with_streams_in_the_middle() -> None:
    """A part of an answer was told: `partial`, and never `done`; the daemon is as before after the resume."""
    async with clockwork({"a": {}, "b": {}}, route=LONG) as house:
        house["a"].default = house["b"].default = stalling(2)
        bots = [house.bot() for _ in range(3)]
        names = [bot.call(lane=lane) for bot, lane in zip(bots, ("exit", "entry", "research"), strict=True)]
        await trio.sleep(0.2)
        standing = house.daemon.brakes.halt(EVERY_LANE)
        assert standing.ended == 3
        for bot, name in zip(bots, names, strict=True):
            ended = await bot.terminal(name)
            assert (ended["code"], ended["partial"], ended["phase"]) == ("halted", True, "stream")
        house["a"].default = house["b"].default = slowly(0.01)
        report = house.daemon.report()
        assert (report.ready, report.degraded, set(report.halted)) == (True, True, set(EVERY_LANE))
        house.daemon.brakes.resume()
        assert [(await bot.ask(lane="exit"))["type"] for bot in bots] == ["done"] * 3


@virtual
async def test_rules_are_for_the_uid_that_the_kernel_tells() -> None:
    """A research bot stays in its lane, whatever it claims and in however many processes; its limits are its own."""
    rules = [Client(user=7, lanes=("research",), max_calls_in_flight=2, max_calls_per_minute=3)]
    async with clockwork(client=rules, route=LONG) as house:
        house["a"].default = slowly(0.5)
        first, second = house.bot(uid=7, pid=1), house.bot(uid=7, pid=2)
        other = house.bot(uid=8, pid=3)
        refused = await first.ask(lane="exit")
        assert refused["code"] == "invalid_request"
        assert "they may use research" in refused["message"]
        running = [first.call(), second.call(lane="research")]
        await trio.sleep(0.01)
        assert {call.lane for call in house.daemon.dispatcher.calls.values()} == {"research"}
        full = await second.ask()
        assert (full["code"], full["retryable"]) == ("overloaded", True)
        assert full["retry_after_ms"] > 0
        assert "2 calls of uid 7" in full["message"]
        assert (await other.ask(lane="exit"))["type"] == "done"
        assert [(await bot.terminal(name))["type"] for bot, name in zip((first, second), running, strict=True)] == [
            "done"
        ] * 2
        refused = await second.ask()
        assert (refused["code"], refused["retryable"]) == ("overloaded", True)
        assert "may start 3 calls in 60 s" in refused["message"]
        await trio.sleep(refused["retry_after_ms"] / 1000)
        assert (await second.ask())["type"] == "done"


@virtual
async def test_limits_are_given_back_however_a_call_ends() -> None:
    """Answered, cancelled, left by its bot, out of time, halted: the next one is taken."""
    rules = [Client(user=7, max_calls_in_flight=1)]
    async with clockwork(client=rules, route=LONG) as house:
        bot = house.bot(uid=7)
        assert (await bot.ask())["type"] == "done"
        house["a"].default = silent
        name = bot.call()
        await trio.sleep(0.01)
        bot.send(type="cancel", id=name)
        assert (await bot.terminal(name))["code"] == "cancelled"
        assert (await bot.ask(timeout_ms=50))["code"] == "deadline_exceeded"
        left = house.bot(uid=7)
        left.call()
        await trio.sleep(0.01)
        left.leave()
        await trio.sleep(0.01)
        name = bot.call()
        await trio.sleep(0.01)
        house.daemon.brakes.halt(EVERY_LANE)
        assert (await bot.terminal(name))["code"] == "halted"
        house.daemon.brakes.resume()
        house["a"].default = slowly(0.01)
        assert (await bot.ask())["type"] == "done"
