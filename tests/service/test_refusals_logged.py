"""Calls refused on receipt have their line in the log; a flood of them has a bounded number, and says so."""

from __future__ import annotations

import trio

from sidecar.service.accounting import REFUSALS_PER_SECOND
from sidecar.service.ration import Ration
from tests.fakes.clockwork import clockwork, virtual


def test_a_ration_is_of_a_second() -> None:
    """So many, then none until the next second; what was left out is told once, when its second is over."""
    it = Ration(2)
    assert [it.take(at) for at in (0, 1, 2, 999_999)] == [True, True, False, False]
    assert it.untold(999_999) == 0
    assert it.untold(1_000_000) == 2
    assert it.untold(1_000_001) == 0
    assert it.take(1_000_001)
    assert it.take(500_000), "a wall clock that was set back is another second"
    assert repr(it) == "<Ration 1/2 left_out=0>"


@virtual
async def test_a_call_refused_on_receipt_has_its_line() -> None:
    """Code, lane, uid and pid; no id, as it has none, and no route but of the configuration: bots invent names."""
    async with clockwork() as house:
        bot = house.bot(pid=7)
        await bot.ask(route="my secret strategy", lane="exit")
        (line,) = [line for line in house.log if line["event"] == "call"]
        assert (line["outcome"], line["code"], line["lane"], line["pid"]) == ("failure", "unknown_route", "exit", 7)
        assert (line["call_id"], line["route"], line["attempts"], line["upstream"]) == (None, "", 0, None)


@virtual
async def test_a_flood_of_refusals_is_no_flood_of_the_log() -> None:
    """So many lines a second, and how many were left out with the first line after it."""
    async with clockwork() as house:
        bot = house.bot()
        began = trio.current_time()
        for _ in range(500):
            await bot.ask(route="nowhere")
        assert trio.current_time() - began < 1
        lines = [line for line in house.log if line["event"] == "call"]
        assert REFUSALS_PER_SECOND <= len(lines) <= 2 * REFUSALS_PER_SECOND
        await trio.sleep(1)
        await bot.ask(route="nowhere")
        told = [line["count"] for line in house.log if line["event"] == "log.left_out"]
        assert sum(told) + len(lines) == 500
