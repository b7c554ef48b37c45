"""Places for exit calls, and calls that cannot make it, in the whole data path, in virtual time."""

from __future__ import annotations

import trio

from tests.fakes.clockwork import brief, clockwork, virtual
from tests.fakes.upstream import answers, silent, slowly

FOUR = {"a": {"warm_connections": 4, "max_connections": 8}}


@virtual
async def test_an_exit_call_finds_a_place_beside_any_amount_of_research() -> None:
    """Of four places one is kept: research of two bots fills three and the queue, an exit call goes at once."""
    async with clockwork(FOUR, max_calls_in_flight=4, queue_max=4, exit_reserved_calls=1) as house:
        house["a"].default = slowly(0.3)
        floods = [house.bot(), house.bot()]
        for number in range(20):
            floods[number % 2].call(str(number), lane="research")
        await trio.sleep(0.1)
        asked = len(house["a"].asked)
        assert asked == 3, "the fourth place is not theirs"
        done = await house.bot().ask(lane="exit")
        assert (done["type"], done["timing"]["queued_us"]) == ("done", 0)
        await trio.sleep(3)
        codes = [
            "done" if message["type"] == "done" else message["code"]
            for flood in floods
            for _, message in flood.log
            if message["type"] in ("done", "failed")
        ]
        assert (codes.count("done"), codes.count("overloaded")) == (7, 13)


@virtual
async def test_who_would_wait_longer_than_its_deadline_is_told_at_once() -> None:
    """Once the daemon knows how long calls take: `deadline_unreachable` on receipt, nothing displaced, others wait."""
    async with clockwork(FOUR, max_calls_in_flight=1, queue_max=2) as house:
        house["a"].default = slowly(0.3)
        bot, urgent = house.bot(), house.bot()
        for _ in range(40):
            assert (await bot.ask())["type"] == "done"
        first, second = bot.call(), bot.call(lane="research")
        third = bot.call(timeout_ms=5000, lane="research")
        began = trio.current_time()
        refused = await urgent.ask(timeout_ms=400, lane="exit")
        assert (refused["code"], refused["retryable"]) == ("deadline_unreachable", True)
        assert refused["retry_after_ms"] > 100
        assert trio.current_time() - began < 0.01
        assert (await urgent.ask(timeout_ms=5000, lane="exit"))["type"] == "done", "it takes the place of the last"
        assert brief(await bot.terminal(third)) == ("overloaded", "queue", 0)
        assert (await bot.terminal(first))["type"] == "done"
        assert (await bot.terminal(second))["type"] == "done"


@virtual
async def test_a_connection_that_is_full_of_research_has_its_exit_call_heard() -> None:
    """As many calls open as one connection may have: the exit call takes a place kept for it, or one of the queue."""
    async with clockwork({"a": {"max_connections": 8}}, max_calls_in_flight=8, queue_max=4) as house:
        house["a"].default = silent
        bot = house.bot()
        for _ in range(12):
            bot.call(lane="research", timeout_ms=1500)
        await trio.sleep(0.05)
        assert (await bot.ask(lane="research"))["code"] == "overloaded"
        house["a"].default = answers
        assert (await bot.ask(lane="exit", timeout_ms=500))["type"] == "done"
