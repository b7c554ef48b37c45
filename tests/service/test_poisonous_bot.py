"""One bot whose every prompt breaks the preferred target, beside others: what the others notice of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio

from sidecar.service.shown import sections
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


@virtual
async def test_the_operator_is_told_which_bot_it_is() -> None:
    """An event when it is barred, with uid and pid, one when it is let in again; `show clients` names it meanwhile."""
    async with clockwork({"a": {"max_connections": 32}}, route={"first_delta_timeout_ms": 400}) as house:
        house["a"].default = _erring
        good, bad = house.bot(pid=1), house.bot(uid=2000, pid=2)
        shown = sections(house.daemon, trio.current_time, house.daemon.clients)["clients"]
        for _ in range(12):
            await good.ask()
            await bad.ask("poison")
        (told, *_) = [line for line in house.log if line["event"] == "bot.barred" and line["pid"] is not None]
        assert (told["uid"], told["pid"], told["upstream"], told["model"]) == (2000, 2, "a", "m")
        assert told["retry_after_s"] > 0
        rows = {row["uid"]: row["barred"] for row in shown()}
        assert [each["pid"] for each in rows[2000]] == [None, 2], "the user, as it has no better bot, and the bot"
        assert rows[1000] == []
        await trio.sleep(max(each["for_ms"] for each in rows[2000]) / 1000 + 0.1)
        assert (await good.ask())["type"] == "done"
        assert (await bad.ask())["type"] == "done"
        assert {line["pid"] for line in house.log if line["event"] == "bot.let_in"} == {None, 2}
        assert not any(row["barred"] for row in shown())
