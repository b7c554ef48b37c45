"""What a review of retries, trials, probes and budgets in the data path asked, in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import trio

from sidecar.core.classifier import classify
from sidecar.core.retry import RetryBudget
from sidecar.errors import UpstreamError
from sidecar.service.running_call import RunningCall
from tests.fakes.clockwork import House, clockwork, simulate, virtual
from tests.fakes.upstream import Asked, answers, closing, erring, silent, slowly, stalling

TWO: dict[str, dict[str, Any]] = {"a": {}, "b": {}}


def budget_of(house: House, name: str) -> Any:
    """An upstream's retry budget."""
    for target in house.daemon.dispatcher.routes["default"].targets:
        if target.pool.name == name:
            return target.budget
    raise KeyError(name)


def said_by(budget: Any) -> Any:
    """What the budget says now."""
    return budget.statistics(trio.current_time())


async def trip(house: House, name: str = "a") -> None:
    """Until the breaker of that upstream is open."""
    breaker, failure = house.breaker(name), classify(UpstreamError("m", status=500))
    while breaker.state(trio.current_time()) == "closed":
        breaker.record(breaker.admit(trio.current_time()), failure, trio.current_time())
    house.daemon.pools[name].prober.wake()
    assert breaker.state(trio.current_time()) == "open"


async def half_open(house: House, name: str = "a") -> None:
    """Until its trials are wanted."""
    await trip(house, name)
    while house.breaker(name).state(trio.current_time()) != "half_open":
        await trio.sleep(0.05)


@virtual
async def test_a_backup_of_a_replayed_attempt_is_paid_for() -> None:
    """The replay of what the upstream never took up is free; a backup beside it is extra load, and is not."""
    three: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {}}
    async with clockwork(three, route={"timeout_ms": 4000}) as house:
        bot = house.bot()
        house["a"].default = closing(1001)
        house["b"].default = house["c"].default = slowly(0.3)
        done = await bot.ask(first_delta_timeout_ms=200)
        assert (done["type"], done["attempts"]) == ("done", 3)
        paid = {name: said_by(budget_of(house, name)).withdrawn for name in three}
        assert paid == {"a": 0, "b": 0, "c": 1}, "a first attempt, its replay, and a backup beside that"


@virtual
async def test_answers_that_take_longer_than_a_trial_may_close_the_breaker_all_the_same() -> None:
    """Half a minute and more of deltas per answer, and a call always at hand: the upstream is well, so it is closed."""

    async def long_answer(asked: Asked) -> None:
        await asked.send(asked.created())
        for _ in range(45):
            await asked.send(asked.delta("x"))
            await trio.sleep(1)
        await asked.send(asked.finish())

    route = {"timeout_ms": 120_000, "idle_timeout_ms": 5_000}
    async with clockwork({"a": {"max_connections": 16}}, route=route) as house:
        house["a"].default = long_answer
        bot = house.bot()
        await half_open(house)
        began_at = trio.current_time()
        while house.breaker("a").state(trio.current_time()) != "closed" and trio.current_time() < began_at + 90:
            bot.call(lane="research")
            await trio.sleep(1)
        assert house.breaker("a").state(trio.current_time()) == "closed"
        assert trio.current_time() - began_at < 60
        for name in [m["id"] for _, m in bot.log if m["type"] == "accepted"]:
            await bot.terminal(name)


@virtual
async def test_no_exit_is_risked_on_a_half_open_secondary_beside_a_healthy_primary() -> None:
    """However long nobody else takes its trials: it stands in its own place, behind the primary that answers."""
    async with clockwork(TWO, route={"return_ramp_s": 0}) as house:
        bot = house.bot()
        await half_open(house, "b")
        for _ in range(5):
            assert (await bot.ask(lane="exit"))["upstream"] == "a"
            await trio.sleep(0.3)
        assert not house["b"].asked


@virtual
async def test_a_silent_upstream_costs_calls_in_a_hurry_a_bounded_number_of_deadlines() -> None:
    """Pings are answered, calls are not, and every bot has 150 ms: half-open does not spend them one after another."""
    async with clockwork({"a": {}}, route={"first_delta_timeout_ms": 10_000}) as house:
        house["a"].default = silent
        bot = house.bot()
        await half_open(house)
        ends = []
        for _ in range(100):
            ends.append((await bot.ask(timeout_ms=150, lane="research"))["code"])
            await trio.sleep(0.2)
        assert ends.count("deadline_exceeded") <= 12, ends.count("deadline_exceeded")


@virtual
async def test_probes_keep_within_what_the_pool_may_have() -> None:
    """Another model's calls fill the pool: a probe's connect does not go beyond maximum and allowance."""
    async with clockwork({"a": {"max_connections": 2, "warm_connections": 1}}, route={"timeout_ms": 60_000}) as house:
        pool = house.daemon.pools["a"]
        house["a"].default = slowly(0.45)
        bot = house.bot()
        most = 0
        await trip(house)
        for _ in range(40):
            bot.call(lane="research")
            most = max(most, len(house["a"].standing))
            await trio.sleep(0.2)
        assert most <= 2 + pool._policy.allowance, most
        for name in [m["id"] for _, m in bot.log if m["type"] == "accepted"]:
            await bot.terminal(name)


async def storm(house: House, dice: random.Random, seconds: float) -> None:
    """Calls of all lanes, cancelled, left, hedged, replayed, cut, throttled and refused in any mix; then rest."""
    scripts: list[Any] = [
        *[answers] * 20, *[slowly(0.15)] * 5, silent, erring(500), erring(503), erring(429, retry_after=0.05),
        erring(400), *[closing(1001)] * 3, closing(1011), closing(1013), closing(None), closing(None, pieces=2),
        stalling(1), slowly(0.7),
    ]  # fmt: skip

    async def script(asked: Asked) -> None:
        await dice.choice(scripts)(asked)

    for upstream in house.upstreams.values():
        upstream.default = script
    bots = [house.bot() for _ in range(3)]
    ends = trio.current_time() + seconds
    while trio.current_time() < ends:
        bot = dice.choice(bots)
        name = bot.call(
            lane=dice.choice(["exit", "entry", "research"]),
            timeout_ms=dice.choice([50, 300, 2000]),
            on_lost=dice.choice(["fail", "restart"]),
            stream=dice.random() < 0.8,
        )
        await trio.sleep(dice.choice([0, 0.001, 0.01, 0.1]))
        if dice.random() < 0.2:
            bot.send(type="cancel", id=name)
        if dice.random() < 0.02:
            bot.leave()
            bots[bots.index(bot)] = house.bot()
    for upstream in house.upstreams.values():
        upstream.default = answers
    while house.daemon.dispatcher.calls:
        await trio.sleep(0.1)
    await trio.sleep(0.1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_any_storm_the_books_balance(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No place, no trial, no payment is left with an ended call; further attempts are paid for, or replays."""
    books: Counter[str] = Counter()
    give_back, withdraw, start = RetryBudget.give_back, RetryBudget.withdraw, RunningCall.start

    def given_back(budget: RetryBudget, *price: float) -> None:
        books["given back"] += 1
        give_back(budget, *price)

    def withdrawn(budget: RetryBudget, now: float, *price: float, **how: bool) -> bool:
        paid = withdraw(budget, now, *price, **how)
        books["withdrawn"] += paid
        return paid

    def started(call: RunningCall, *args: Any) -> bool:
        kind = "first" if not call.policy.made else "replay" if call.replays else "further"
        made = start(call, *args)
        books[kind] += made
        return made

    monkeypatch.setattr(RetryBudget, "give_back", given_back)
    monkeypatch.setattr(RetryBudget, "withdraw", withdrawn)
    monkeypatch.setattr(RunningCall, "start", started)
    route = {"backup_lanes": ["exit", "entry"], "backup_min_ms": 20, "backup_max_ms": 100}

    async def main() -> None:
        async with clockwork(TWO, seed=seed, route=route) as house:
            await storm(house, random.Random(seed), 15)
            for name, pool in house.daemon.pools.items():
                assert pool.gate.limit.in_flight == 0, name
                assert house.breaker(name)._trial is None, name

    simulate(main, seed=seed)
    assert books["withdrawn"] > 10
    assert books["first"] > 100
    paid = books["withdrawn"] - books["given back"]
    assert books["further"] <= paid <= books["further"] + books["replay"], books


@virtual
async def test_what_is_never_taken_up_is_not_replayed_without_end() -> None:
    """An upstream that says of every request that its connection is taken: attempts stay near the calls."""
    calls = 600
    async with clockwork({name: {"warm_connections": 8, "max_connections": 32} for name in TWO}) as house:
        for upstream in house.upstreams.values():
            upstream.default = erring(None, "response_already_in_flight")
        bot = house.bot()
        for _ in range(calls):
            bot.call()
            await trio.sleep(0.05)
        while house.daemon.dispatcher.calls:
            await trio.sleep(0.1)
        made = sum(message.get("attempts") or 0 for _, message in bot.log if message["type"] == "failed")
        assert made <= 1.2 * calls + 2 * (32 + 40), made


@virtual
async def test_calls_that_a_pace_has_left_no_time_are_told_at_once() -> None:
    """They wait for room, a 429 comes, and what it asks for is past their deadline: not told only then."""
    async with clockwork({"a": {"warm_connections": 8, "max_connections": 32}}) as house:
        house["a"].default = erring(429, retry_after=1.0)
        bot = house.bot()
        names = []
        for _ in range(60):
            names.append(bot.call())
            await trio.sleep(0.05)
        codes = Counter([(await bot.terminal(name))["code"] for name in names])
        assert codes == {"upstream_rate_limited": 60}


@virtual
async def test_calls_that_wait_for_room_are_not_forgotten_when_a_pace_is_over() -> None:
    """They waited for room when the 429 came; when its time is over and nobody else calls, they go out."""
    async with clockwork({"a": {"warm_connections": 8, "max_connections": 8}}, route={"timeout_ms": 10_000}) as house:
        house["a"].scripts.extend([erring(429, retry_after=0.2)] * 8)
        bot = house.bot()
        names = [bot.call() for _ in range(30)]
        ends = [(await bot.terminal(name)).get("code", "done") for name in names]
        assert "deadline_exceeded" not in ends, Counter(ends)
        assert ends.count("done") >= 22, "when its time is over they are sent, and answered"


@virtual
async def test_calls_that_waited_for_a_pace_do_not_arrive_as_one() -> None:
    """A 429 told the credential to wait: then a few ask, and more as they are answered."""
    async with clockwork({"a": {"warm_connections": 32, "max_connections": 32}}, route={"timeout_ms": 10_000}) as house:
        house["a"].scripts.append(erring(429, retry_after=1.0))
        house["a"].default = slowly(0.1)
        bot = house.bot()
        names = [bot.call()]
        await trio.sleep(0.1)
        names += [bot.call() for _ in range(40)]
        for name in names:
            assert (await bot.terminal(name))["type"] == "done"
        began_at = house["a"].asked[1].at
        assert sum(asked.at < began_at + 0.05 for asked in house["a"].asked[1:]) <= 8
