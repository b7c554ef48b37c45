"""What an independent review of the resilience asked, in virtual time."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.core.breaker import Breaker
from sidecar.core.outcome import CANCELLED, DEADLINE, FIRST_DELTA_TIMEOUT
from sidecar.core.permit import Permit
from sidecar.service import running_call
from tests.fakes.clockwork import House, clockwork, simulate, standing, virtual
from tests.fakes.upstream import Asked, FakeUpstream, Refuse, answers, erring, silent, slowly
from tests.service.test_daemon_sim_credentials import key_file


class AtMost(deque[Any]):
    """In the place of `FakeUpstream.connects`: the service takes so many connections of one key, and refuses others."""

    def __init__(self, upstream: FakeUpstream, connections: int, status: int = 503) -> None:
        super().__init__()
        self.upstream, self.connections, self.status = upstream, connections, status

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Any:
        """What the connect meets that is being made now."""
        there = sum(served.gone_at is None for served in self.upstream.served)
        return Refuse(self.status) if there >= self.connections else None


@virtual
async def test_connections_that_stand_answer_although_the_service_takes_no_more() -> None:
    """Two of four wanted spares stand; the service refuses further connects with 503. Who stands is asked."""

    def prepare(house: House) -> None:
        house["a"].connects = AtMost(house["a"], 2)

    upstream = {"warm_connections": 4, "max_connections": 8}
    async with clockwork({"a": upstream}, prepare=prepare, warm=False) as house:
        await house.warm("a", 2)
        await trio.sleep(120)
        assert standing(house.daemon.pools["a"]) == 2
        ends = [await house.bot().ask() for _ in range(5)]
        assert [end.get("code", end["type"]) for end in ends] == ["done"] * 5


@virtual
async def test_a_breaker_closes_although_the_service_takes_no_connection_beyond_the_maximum() -> None:
    """All connections that are allowed stand, five calls failed, then all is well: there must be a way back."""

    def prepare(house: House) -> None:
        house["a"].connects = AtMost(house["a"], 4)

    upstream = {"warm_connections": 4, "max_connections": 4}
    async with clockwork({"a": upstream}, prepare=prepare) as house:
        bot = house.bot()
        house["a"].default = erring(500)
        while house.breaker("a").state(trio.current_time()) == "closed":
            await bot.ask()
        house["a"].default = answers
        await trio.sleep(180)
        ends = []
        for _ in range(20):
            ends.append((await bot.ask())["type"])
            await trio.sleep(1)
        assert ends[-1] == "done", (ends, house.breaker("a"), standing(house.daemon.pools["a"]))


@virtual
async def test_a_new_credential_is_not_throttled_by_what_the_old_one_was_told(tmp_path: Path) -> None:
    """429 with Retry-After 60; the key is rotated; calls must not go out on connections of the old one."""
    secret = key_file(tmp_path, "old-key")

    async def per_key(asked: Asked) -> None:
        if asked.connection.authorization == "Bearer old-key":
            await asked.send(asked.error(429, "rate_limit_exceeded", headers={"retry-after": "60"}))
        else:
            await answers(asked)

    upstream = {"credential": {"file": str(secret)}}
    async with clockwork({"a": upstream}, route={"timeout_ms": 100_000}) as house:
        bot = house.bot()
        house["a"].default = per_key
        calls = [bot.call(timeout_ms=90_000) for _ in range(6)]
        await trio.sleep(1)
        assert house.daemon.pools["a"].gate.throttled_for(trio.current_time()) > 30
        key_file(tmp_path, "new-key", name="new").replace(secret)
        await trio.sleep(10)
        assert house.daemon.pools["a"].gate.throttled_for(trio.current_time()) == 0
        for name in calls:
            assert (await bot.terminal(name))["type"] == "done"
        assert trio.current_time() < 20


def _half_open() -> tuple[Breaker, float]:
    breaker = Breaker("a/m", jitter=random.Random(1).random)
    now = 0.0
    while breaker.state(now) == "closed":
        permit = breaker.admit(now)
        assert isinstance(permit, Permit)
        breaker.record(permit, FIRST_DELTA_TIMEOUT, now)
    return breaker, now + 60.0


@pytest.mark.parametrize("outcome", [CANCELLED, DEADLINE], ids=["cancelled", "deadline"])
def test_trials_that_were_answering_when_their_bot_had_enough_close_the_breaker(outcome: object) -> None:
    """Bots that cancel after the first word, or whose deadline cuts a long answer: the upstream is well."""
    breaker, now = _half_open()
    for _ in range(12):
        now += 0.5
        permit = breaker.admit(now)
        if isinstance(permit, Permit):
            now += 0.1
            breaker.answering(permit, now)
            now += 0.5
            breaker.record(permit, outcome, now)  # type: ignore[arg-type]
    assert breaker.state(now) == "closed", breaker


@virtual
async def test_a_bot_that_cancels_after_the_first_word_does_not_keep_an_upstream_half_open() -> None:
    """BUY, SELL or HOLD: the first word is all it wants. After an outage the upstream is used again."""
    async with clockwork({"a": {}}, route={"first_delta_timeout_ms": 500}) as house:
        bot = house.bot()
        house["a"].default = erring(500)
        while house.breaker("a").state(trio.current_time()) == "closed":
            await bot.ask()

        async def long(asked: Asked) -> None:
            for _ in range(100):
                await trio.sleep(0.02)
                await asked.send(asked.delta("word "))

        house["a"].default = long
        await trio.sleep(10)
        for _ in range(30):
            name = bot.call(timeout_ms=1500, lane="research")
            await bot.until(lambda name=name: bool(bot.of(name, "delta", "failed")))  # type: ignore[misc]
            bot.send(type="cancel", id=name)
            await trio.sleep(1)
        assert house.breaker("a").state(trio.current_time()) == "closed"


@virtual
async def test_quick_prompts_are_not_refused_because_others_are_slow() -> None:
    """One bot's long prompts take a second to their first word; another's short ones 50 ms, as they always have."""

    async def by_length(asked: Asked) -> None:
        await slowly(1.0 if asked.prompt == "long" else 0.05)(asked)

    route = {"first_delta_timeout_ms": 3000, "timeout_ms": 5000}
    async with clockwork({"a": {"max_connections": 16, "warm_connections": 8}}, route=route) as house:
        house["a"].default = by_length
        research, trader = house.bot(), house.bot()
        codes = []
        for _ in range(60):
            research.call("long", lane="research")
            research.call("long", lane="research")
            await trio.sleep(0.25)
            end = await trader.ask("short", lane="exit", timeout_ms=500)
            codes.append(end.get("code", "done"))
        assert codes.count("done") >= 55, codes
        await trio.sleep(3)


@virtual
async def test_no_attempt_is_started_past_the_deadline() -> None:
    """A call whose turn comes in the very step in which its deadline has passed is not sent."""
    async with clockwork({"a": {"max_connections": 1, "warm_connections": 1}}) as house:
        target = house.daemon.dispatcher.routes["default"]
        assert not target.is_unreachable(trio.current_time() + 1, trio.current_time())
        assert target.is_unreachable(trio.current_time() - 0.001, trio.current_time())


@virtual
async def test_a_backup_is_measured_by_the_target_that_is_asked() -> None:
    """The first target is throttled, the second is slower as a rule: each call there must not be asked twice."""
    route = {"backup_lanes": ["exit", "entry", "research"], "first_delta_timeout_ms": 3000, "timeout_ms": 5000}
    upstreams = {
        "a": {"warm_connections": 4, "max_connections": 8},
        "b": {"warm_connections": 8, "max_connections": 16},
    }
    async with clockwork(upstreams, route=route) as house:
        bot = house.bot()
        for _ in range(40):
            await bot.ask()
        house["a"].default = erring(429, "rate_limit_exceeded", headers={"retry-after": "30"})
        house["b"].default = slowly(0.3)
        await bot.ask()
        attempts = []
        for _ in range(30):
            attempts.append((await bot.ask())["attempts"])
        assert sum(attempts) <= 33, attempts


@virtual
async def test_a_connect_that_was_told_to_wait_for_a_day_is_tried_again_within_the_hour() -> None:
    """503 and Retry-After 86400 at the upgrade, once, by mistake: an upstream is not gone for a day."""

    def prepare(house: House) -> None:
        house["a"].connects.extend([Refuse(503, ((b"retry-after", b"86400"),))] * 2)

    async with clockwork({"a": {}}, prepare=prepare, warm=False) as house:
        await trio.sleep(4000)
        assert standing(house.daemon.pools["a"]), house.daemon.pools["a"]._policy


@virtual
async def test_slots_of_stopped_calls_come_back() -> None:
    """Three silent calls end by their deadlines beside one that is answered; then nobody is on that connection."""
    upstream = {"max_connections": 1, "warm_connections": 1, "calls_per_connection": 4}
    async with clockwork({"a": upstream}, route={"first_delta_timeout_ms": 1500}) as house:
        house["a"].scripts.extend([silent, silent, silent, slowly(0.4)])
        bot = house.bot()
        calls = [*(bot.call(timeout_ms=200) for _ in range(3)), bot.call(timeout_ms=1000)]
        assert [(await bot.terminal(name))["type"] for name in calls] == ["failed", "failed", "failed", "done"]
        await trio.sleep(10)
        house["a"].default = slowly(0.3)
        began = trio.current_time()
        for name in [bot.call() for _ in range(4)]:
            assert (await bot.terminal(name))["type"] == "done"
        assert trio.current_time() - began < 0.5, "all four at once"


@pytest.mark.parametrize("patience_ms", [1, 500])
def test_a_bot_in_a_hurry_does_not_spend_the_retries_of_others(patience_ms: int) -> None:
    """Every call of one bot has the next target started after a millisecond; another's few failures are replaced."""

    async def main() -> None:
        many = {"warm_connections": 16, "max_connections": 64}
        async with clockwork({"a": many, "b": many}) as house:
            rude, good = house.bot(uid=1001), house.bot(uid=1002)
            goods = 0

            async def fails_now_and_then(asked: Asked) -> None:
                nonlocal goods
                goods += asked.prompt == "good"
                await (erring(503) if asked.prompt == "good" and goods % 2 else slowly(0.1))(asked)

            house["a"].default, house["b"].default = fails_now_and_then, slowly(0.1)
            ends = []
            for number in range(200):
                rude.call("rude", first_delta_timeout_ms=patience_ms)
                if number % 10 == 0:
                    ends.append((await good.ask("good"))["type"])
                await trio.sleep(0.02)
            assert ends == ["done"] * 20, ends.count("failed")
            await trio.sleep(2)

    simulate(main)


@virtual
async def test_calls_that_wait_for_a_trial_are_not_all_looked_at_with_every_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 calls wait, a breaker is half-open, 32 connections open one by one: one trial is there to be had, not 32."""
    looked = 0
    seek = running_call.seek

    def counted(call: Any, now: float) -> None:
        nonlocal looked
        looked += 1
        seek(call, now)

    monkeypatch.setattr(running_call, "seek", counted)
    upstreams = {"a": {"max_connections": 64, "warm_connections": 32}, "b": {"max_connections": 4}}
    route = {"timeout_ms": 60_000, "first_delta_timeout_ms": 30_000, "idle_timeout_ms": 30_000}
    async with clockwork(upstreams, route=route, max_calls_in_flight=500, queue_max=500) as house:
        bot = house.bot()
        house["a"].default, house["b"].default = erring(500), slowly(20)
        while house.breaker("a").state(trio.current_time()) == "closed":
            bot.call()
            await trio.sleep(0.05)
        calls = [bot.call(timeout_ms=25_000) for _ in range(200)]
        house["a"].default, looked = slowly(0.5), 0
        while house.breaker("a").state(trio.current_time()) == "open":
            await trio.sleep(0.05)
        await trio.sleep(0.3)
        assert looked < 10 * len(calls), looked
        await trio.sleep(60)


@virtual
async def test_a_poisonous_bot_does_not_keep_an_upstream_shut_after_an_outage() -> None:
    """All of its prompts fail, it calls often and in the lowest lane: another bot is to take a trial now and then."""
    async with clockwork({"a": {"warm_connections": 8, "max_connections": 32}}) as house:
        poisonous, good = house.bot(uid=1001), house.bot(uid=1002)
        down = True

        async def script(asked: Asked) -> None:
            await (erring(500) if down or asked.prompt == "poison" else answers)(asked)

        house["a"].default = script
        over = trio.Event()

        async def poisons() -> None:
            while not over.is_set():
                poisonous.call("poison", lane="research")
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poisons)
            while house.breaker("a").state(trio.current_time()) == "closed":
                await good.ask("good", lane="entry")
            await trio.sleep(5)
            down = False
            ends = []
            for _ in range(240):
                ends.append((await good.ask("good", lane="entry"))["type"])
                await trio.sleep(0.25)
            over.set()
        assert ends[-40:].count("done") > 30, ends.count("done")


async def _long(asked: Asked) -> None:
    """Two deltas a second, for fifty."""
    for _ in range(100):
        await trio.sleep(0.5)
        await asked.send(asked.delta("word "))
    await asked.send(asked.finish())


@virtual
async def test_a_breaker_that_a_long_answer_closes_is_said_and_lets_calls_in_by_and_by() -> None:
    """As after any other trial: the log has it, and sixty calls that waited do not arrive as one."""
    upstreams = {"a": {"max_connections": 64, "warm_connections": 64}, "b": {"max_connections": 2}}
    route = {"timeout_ms": 90_000, "first_delta_timeout_ms": 50_000, "idle_timeout_ms": 50_000}
    async with clockwork(upstreams, route=route, max_calls_in_flight=500) as house:
        bot = house.bot()
        house["a"].default, house["b"].default = erring(500), slowly(80)
        while house.breaker("a").state(trio.current_time()) == "closed":
            bot.call()
            await trio.sleep(0.05)
        house["a"].default = _long
        before = len(house["a"].asked)
        for _ in range(60):
            bot.call(timeout_ms=80_000)
        while house.breaker("a").state(trio.current_time()) != "closed":
            await trio.sleep(0.05)
        await trio.sleep(0.4)
        assert "breaker.closed" in [entry["event"] for entry in house.log]
        assert len(house["a"].asked) - before < 20
        await trio.sleep(100)


@virtual
async def test_calls_that_cannot_make_it_are_not_told_to_come_back_at_once() -> None:
    """`deadline_unreachable`: retry_after_ms is jittered, and no invitation to a tight loop."""
    async with clockwork({"a": {}}, route={"first_delta_timeout_ms": 1500}) as house:
        house["a"].default = slowly(0.4)
        bot = house.bot()
        for _ in range(20):
            await bot.ask()
        ends = [await bot.ask(timeout_ms=100) for _ in range(12)]
        told = {end["retry_after_ms"] for end in ends if end["code"] == "deadline_unreachable"}
        assert len(told) > 3
        assert min(told) >= 10


@virtual
async def test_what_one_bot_is_not_permitted_does_not_shut_the_upstream_for_others(tmp_path: Path) -> None:
    """403 to what one bot asks for (a service tier, say) while others are answered with the very same key."""
    upstream = {"credential": {"file": str(key_file(tmp_path, "some-key"))}}
    async with clockwork({"a": upstream}) as house:

        async def script(asked: Asked) -> None:
            await (erring(403, "permission_denied") if asked.prompt == "tier" else answers)(asked)

        house["a"].default = script
        greedy, good = house.bot(uid=1001), house.bot(uid=1002)
        ends = []
        for number in range(40):
            if number % 10 == 5:
                assert (await greedy.ask("tier"))["type"] == "failed"
            ends.append((await good.ask())["type"])
            await trio.sleep(0.5)
        assert ends.count("done") >= 38, ends.count("done")


@virtual
async def test_a_bot_whose_every_prompt_meets_429_does_not_silence_others() -> None:
    """A request too large for a token limit is a 429, too. Who is answered whenever it is sent is to be sent."""
    async with clockwork({"a": {"warm_connections": 8, "max_connections": 16}}) as house:

        async def script(asked: Asked) -> None:
            await (erring(429, "rate_limit_exceeded") if asked.prompt == "large" else answers)(asked)

        house["a"].default = script
        greedy, good = house.bot(uid=1001), house.bot(uid=1002)
        over = trio.Event()

        async def asks_too_much() -> None:
            while not over.is_set():
                greedy.call("large", lane="research")
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks_too_much)
            ends = []
            for _ in range(100):
                ends.append((await good.ask(lane="exit", timeout_ms=1000))["type"])
                await trio.sleep(0.1)
            over.set()
        assert ends.count("done") >= 80, ends.count("done")
        await trio.sleep(3)


@pytest.mark.parametrize("gap", [0.1, 0.05], ids=["limit", "breaker"])
def test_one_bots_long_prompts_do_not_make_an_upstream_overloaded(gap: float) -> None:
    """0.8 s to their first word, where the route starts the next target after 0.5: others are answered in 50 ms."""

    async def script(asked: Asked) -> None:
        await slowly(0.8 if asked.prompt == "long" else 0.05)(asked)

    async def main() -> None:
        async with clockwork({"a": {"warm_connections": 16, "max_connections": 32}}) as house:
            house["a"].default = script
            research, good = house.bot(uid=1001), house.bot(uid=1002)
            over = trio.Event()

            async def longs() -> None:
                while not over.is_set():
                    research.call("long", lane="research", timeout_ms=4000)
                    await trio.sleep(gap)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(longs)
                ends = []
                for _ in range(100):
                    ends.append((await good.ask(timeout_ms=1000))["type"])
                    await trio.sleep(0.3)
                over.set()
            assert ends.count("done") >= 95, ends.count("done")
            await trio.sleep(8)

    simulate(main)


@pytest.mark.parametrize(
    ("status", "code"),
    [(429, "insufficient_quota"), (402, None), (404, "model_not_found")],
    ids=["quota", "402", "404"],
)
def test_a_first_target_that_is_out_of_money_or_model_leaves_the_calls_to_the_second(
    status: int, code: str | None
) -> None:
    """It says so at once, of every call, for hours; the second is well. Fifty calls a second, hardly one is lost."""

    async def main() -> None:
        many = {"warm_connections": 16, "max_connections": 32}
        async with clockwork({"a": many, "b": many}) as house:
            house["a"].default = erring(status, code)
            bot = house.bot()
            ends = []
            for _ in range(150):
                ends.append((await bot.ask())["type"])
                await trio.sleep(0.02)
            assert ends.count("done") >= 140, ends.count("done")

    simulate(main)


@virtual
async def test_a_poisonous_bot_that_is_a_new_process_for_every_call_opens_no_breaker() -> None:
    """A job started again and again by one user, every prompt of it fails; another user's bot is answered always."""
    async with clockwork({"a": {"warm_connections": 16, "max_connections": 64}}) as house:

        async def script(asked: Asked) -> None:
            await (erring(500) if asked.prompt == "poison" else answers)(asked)

        house["a"].default = script
        good = house.bot(uid=1002, pid=2)
        ends = []
        for number in range(200):
            house.bot(uid=1001, pid=1000 + number).call("poison", lane="research")
            if number % 2 == 0:
                ends.append((await good.ask())["type"])
            await trio.sleep(0.08)
        assert ends.count("done") >= 90, ends.count("done")
        await trio.sleep(3)


@virtual
async def test_the_second_trial_follows_the_first_whatever_the_open_time() -> None:
    """Twelve entries wait; each trial takes 50 ms: two of them do not take half of `open_min_s`."""
    upstreams = {
        "a": {"max_connections": 8, "warm_connections": 4, "breaker": {"open_min_s": 20, "open_max_s": 40}},
        "b": {"max_connections": 1, "warm_connections": 1},
    }
    route = {"timeout_ms": 90_000, "first_delta_timeout_ms": 80_000, "idle_timeout_ms": 80_000}
    async with clockwork(upstreams, route=route) as house:
        bot = house.bot()
        house["a"].default, house["b"].default = erring(500), slowly(85)
        while house.breaker("a").state(trio.current_time()) == "closed":
            bot.call()
            await trio.sleep(0.05)
        for _ in range(12):
            bot.call(timeout_ms=89_000)
        house["a"].default = slowly(0.05)
        while house.breaker("a").state(trio.current_time()) == "open":
            await trio.sleep(0.01)
        half_open_at = trio.current_time()
        while house.breaker("a").state(trio.current_time()) != "closed":
            await trio.sleep(0.01)
        assert trio.current_time() - half_open_at < 3
        await trio.sleep(90)
