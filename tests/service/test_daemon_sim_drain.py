"""The end of a daemon, in virtual time: what is in flight, parked and queued when it drains."""

from __future__ import annotations

import pytest
import trio

from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import Delay, silent, slowly, stalling


@virtual
async def test_drain_finishes_what_is_in_flight_and_refuses_new_calls() -> None:
    """Calls in flight end as ever; new ones are refused `draining`; ping and probe are answered; then it ends."""
    async with clockwork() as house:
        house["a"].default = slowly(0.5)
        bot = house.bot()
        name = bot.call()
        await trio.sleep(0.1)
        house.shutdown.set()
        await trio.sleep(0.1)
        refused = await bot.ask()
        assert (refused["code"], refused.get("call_id"), refused["retryable"]) == ("draining", None, True)
        assert refused["retry_after_ms"] > 0
        bot.send(type="ping", nonce=1)
        bot.send(type="probe")
        await bot.until(lambda: any(m["type"] == "report" for _, m in bot.log))
        report = next(m for _, m in bot.log if m["type"] == "report")
        assert (report["ready"], report["draining"]) == (False, True)
        assert (await bot.terminal(name))["type"] == "done"
        await house.stopped.wait()
        assert trio.current_time() < 1
        assert {served.close_code for served in house["a"].served} == {1001}


@virtual
async def test_an_idle_daemon_ends_at_once_and_opens_nothing_more() -> None:
    """No call in flight: closed gracefully, and no replacement is dialled for what is closed."""
    async with clockwork() as house:
        dialled = len(house["a"].dialled_at)
        house.shutdown.set()
        await house.stopped.wait()
        assert trio.current_time() < 0.1
        assert len(house["a"].dialled_at) == dialled


@virtual
async def test_at_the_end_of_the_drain() -> None:
    """What had work upstream ends `halted`, not retryable; what had none `draining`, retryable; nothing new is sent."""
    upstream = {"warm_connections": 1, "max_connections": 1}
    async with clockwork(
        {"a": upstream}, max_calls_in_flight=2, route={"timeout_ms": 60_000, "idle_timeout_ms": 60_000}
    ) as house:
        house["a"].default = stalling(2)
        bot = house.bot()
        running, parked, queued = bot.call("1", lane="exit"), bot.call("2"), bot.call("3")
        await trio.sleep(0.5)
        started = trio.current_time()
        house.shutdown.set()
        await house.stopped.wait()
        assert trio.current_time() - started == pytest.approx(2, abs=0.1)
        halted = bot.of(running, "failed")[0]
        assert (halted["code"], halted["retryable"], halted["phase"]) == ("halted", False, "stream")
        assert (halted["partial"], halted["upstream"], halted["attempts"]) == (True, "a", 1)
        for name in (parked, queued):
            failed = bot.of(name, "failed")[0]
            assert (failed["code"], failed["retryable"], failed["phase"]) == ("draining", True, "queue")
            assert failed["retry_after_ms"] > 0
            assert failed["attempts"] == 0
        assert len(house["a"].asked) == 1


@virtual
async def test_a_drain_while_connecting() -> None:
    """Connects in hand are dropped, parked calls told `draining`."""
    async with clockwork(prepare=lambda house: house["a"].connects.extend([Delay(60)] * 9), warm=False) as house:
        bot = house.bot()
        name = bot.call(timeout_ms=30_000)
        await trio.sleep(0.1)
        house.shutdown.set()
        assert (await bot.terminal(name))["code"] == "draining"
        await house.stopped.wait()
        assert trio.current_time() < 2.5


@virtual
async def test_deadlines_are_kept_while_draining() -> None:
    """A call whose deadline falls into the drain gets `deadline_exceeded` then."""
    async with clockwork() as house:
        house["a"].default = silent
        bot = house.bot()
        name = bot.call(timeout_ms=700)
        await trio.sleep(0.2)
        house.shutdown.set()
        assert (await bot.terminal(name))["code"] == "deadline_exceeded"
        await house.stopped.wait()
        assert trio.current_time() < 1


@virtual
async def test_a_bot_that_does_not_read_its_last_message() -> None:
    """A full pipe holds the end up for a second at most."""
    async with clockwork(drain_timeout_s=0.5) as house:
        house["a"].default = stalling(2)
        bot = house.bot(capacity=1)
        bot.call()
        await trio.sleep(0.1)
        house.shutdown.set()
        await house.stopped.wait()
        assert trio.current_time() < 1.8
