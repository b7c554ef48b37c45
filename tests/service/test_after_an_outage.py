"""After an outage: what has been waiting does not arrive as one, and is answered all the same."""

from __future__ import annotations

from typing import Any

import trio

from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import answers, erring, slowly


@virtual
async def test_calls_come_back_by_and_by_when_a_breaker_closes() -> None:
    """Thirty at once after two trials: four of them first, then twice as many each time, and all are answered soon."""
    async with clockwork({"a": {"warm_connections": 32, "max_connections": 32}}) as house:
        bot = house.bot()
        house["a"].default = erring(500)
        while house.breaker("a").state(trio.current_time()) != "open":
            await bot.ask(timeout_ms=300)
        house["a"].default = answers
        while house.breaker("a").state(trio.current_time()) != "closed":
            await trio.sleep(0.2)
            await bot.ask(timeout_ms=1000)
        house["a"].default = slowly(0.1)
        before = len(house["a"].asked)
        ended: list[dict[str, Any]] = []
        sent: list[int] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                ended.append(await bot.ask(timeout_ms=5000))

            for _ in range(30):
                nursery.start_soon(ask)
            for _ in range(3):
                await trio.sleep(0.09)
                sent.append(len(house["a"].asked) - before)
                await trio.sleep(0.02)
        assert sent[0] <= 6
        assert sent[0] < sent[1] < sent[2] <= 30
        assert {each["type"] for each in ended} == {"done"}
