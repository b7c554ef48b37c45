"""One bot whose every prompt breaks the preferred target, beside others: what the others notice of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import Asked, answers


async def _erring(asked: Asked) -> None:
    """A server error at once for the poisonous, an answer for everybody else."""
    if asked.prompt == "poison":
        await asked.send(asked.error(500))
    else:
        await answers(asked)


async def _silent(asked: Asked) -> None:
    """Nothing, until the first-delta clock, for the poisonous, an answer for everybody else."""
    if asked.prompt == "poison":
        await trio.sleep_forever()
    else:
        await answers(asked)


async def _too_large(asked: Asked) -> None:
    """OpenAI's words for a prompt that is larger than what may be asked in a minute; all others are answered."""
    if asked.prompt == "poison":
        said = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 50000."
        await asked.send(asked.error(429, error={"code": "rate_limit_exceeded", "type": "tokens", "message": said}))
    else:
        await answers(asked)


@pytest.mark.parametrize("way", [_erring, _silent, _too_large])
@virtual
async def test_others_keep_their_preferred_target(way: Callable[[Asked], Awaitable[None]]) -> None:
    """It is a third of the traffic. The others are answered by the preferred target all along, at the first attempt."""
    wide = {"max_connections": 32}
    async with clockwork({"a": wide, "b": wide}, route={"first_delta_timeout_ms": 400}) as house:
        house["a"].default = way
        good, bad = house.bot(pid=1), house.bot(pid=2)
        seen: Counter[str] = Counter()
        async with trio.open_nursery() as nursery:

            async def poison() -> None:
                for _ in range(100):
                    nursery.start_soon(lambda: bad.ask("poison", timeout_ms=5000))
                    await trio.sleep(0.1)

            nursery.start_soon(poison)
            for _ in range(200):
                done = await good.ask(timeout_ms=5000)
                assert done["type"] == "done"
                seen[done["upstream"]] += 1
                await trio.sleep(0.05)
        assert house.breaker("a").statistics(trio.current_time()).trips == 0
        assert seen["b"] == 0
