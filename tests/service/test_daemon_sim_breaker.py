"""The breaker in the whole data path, in virtual time: it opens, sends calls elsewhere, and finds out gently."""

from __future__ import annotations

from typing import Any

import trio

from tests.fakes.clockwork import House, clockwork, virtual
from tests.fakes.upstream import DOWN, answers, erring, silent, slowly

TWO: dict[str, dict[str, Any]] = {"a": {}, "b": {}}


async def _trip(house: House, name: str = "a") -> None:
    house[name].default = erring(500)
    bot = house.bot()
    while house.breaker(name).state(trio.current_time()) != "open":
        await bot.ask(timeout_ms=250)
        await trio.sleep(0.05)


@virtual
async def test_breaker_opens_serves_from_the_secondary_and_returns() -> None:
    """Five failures open it; the secondary serves without asking the primary; one trial at a time; then the primary."""
    async with clockwork(TWO, route={"return_ramp_s": 0}) as house:
        await _trip(house)
        bot = house.bot()
        asked = len(house["a"].asked)
        for _ in range(5):
            done = await bot.ask()
            assert (done["upstream"], done["attempts"]) == ("b", 1)
        assert len(house["a"].asked) == asked
        house["a"].default = slowly(0.1)
        await trio.sleep(31)
        names = [bot.call() for _ in range(4)]
        ends = [await bot.terminal(name) for name in names]
        assert sorted(end["upstream"] for end in ends) == ["a", "b", "b", "b"], "one trial at a time"
        await trio.sleep(0.2)  # for a moment the next trial is kept for research
        assert (await bot.ask())["upstream"] == "a"
        assert house.breaker("a").state(trio.current_time()) == "closed"
        names = [bot.call() for _ in range(3)]
        assert [(await bot.terminal(name))["upstream"] for name in names] == ["a"] * 3


@virtual
async def test_a_trial_that_ends_without_a_verdict_gives_its_permit_back() -> None:
    """Cancelled, left, or refused for the call's own fault: the next call is the trial, at once."""
    async with clockwork() as house:
        await _trip(house)
        await trio.sleep(31)
        bot = house.bot()
        house["a"].default = silent
        name = bot.call()
        await trio.sleep(0.05)
        refused = await bot.ask()
        assert refused["code"] == "breaker_open"
        bot.send(type="cancel", id=name)
        await bot.terminal(name)
        left = house.bot()
        left.call()
        await trio.sleep(0.05)
        left.leave()
        await trio.sleep(0.05)
        house["a"].scripts.append(erring(400))
        assert (await bot.ask())["code"] == "upstream_refused"
        house["a"].default = answers
        assert (await bot.ask())["type"] == "done"
        assert (await bot.ask())["type"] == "done"
        assert house.breaker("a").state(trio.current_time()) == "closed"


@virtual
async def test_a_failed_trial_opens_again() -> None:
    """The trial fails: open again, longer; nobody else is let through."""
    async with clockwork() as house:
        await _trip(house)
        await trio.sleep(31)
        trips = house.breaker("a").statistics(trio.current_time()).trips
        bot = house.bot()
        assert (await bot.ask())["code"] == "upstream_error"
        assert house.breaker("a").statistics(trio.current_time()).trips == trips + 1
        assert (await bot.ask())["code"] == "breaker_open"


@virtual
async def test_down_and_back() -> None:
    """Down for a minute, calls all along: refused at once meanwhile, no hot loop of connects; back within seconds."""
    async with clockwork({"a": {"warm_connections": 2}}) as house:
        bot = house.bot()
        house["a"].down = DOWN
        await house["a"].cut_all()
        codes: list[str] = []
        waits: list[float] = []
        for _ in range(120):
            asked_at = trio.current_time()
            failed = await bot.ask(timeout_ms=400)
            codes.append(failed["code"])
            waits.append(trio.current_time() - asked_at)
            await trio.sleep_until(asked_at + 0.5)
        assert set(codes) <= {"breaker_open", "no_connection", "deadline_exceeded"}, set(codes)
        assert sum(wait == 0 for wait in waits) > 100, "refused on receipt"
        assert len(house["a"].dialled_at) < 60
        house["a"].down = None
        recovered_at = None
        while recovered_at is None:
            done = await bot.ask(timeout_ms=400)
            if done["type"] == "done":
                recovered_at = trio.current_time()
            await trio.sleep(0.1)
        connected_at = min(served.opened_at or 1e9 for served in house["a"].standing)
        assert recovered_at - connected_at < 0.2, "a connect that works ends an outage of connects"


@virtual
async def test_calls_parked_at_recovery_wait_for_the_trials() -> None:
    """Calls parked through an outage go out behind the trials; none is refused because another one is the trial."""
    async with clockwork({"a": {"warm_connections": 2}}, route={"timeout_ms": 20_000}) as house:
        bot = house.bot()
        house["a"].down = DOWN
        await house["a"].cut_all()
        names = [bot.call() for _ in range(8)]
        await trio.sleep(3)
        house["a"].down = None
        ends = [await bot.terminal(name) for name in names]
        assert {end["type"] for end in ends} == {"done"}, [end.get("code") for end in ends]
