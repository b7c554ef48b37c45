"""What steers calls when upstreams are in trouble, in the whole data path, in virtual time."""

from __future__ import annotations

import functools
from typing import Any

import trio

from tests.fakes.clockwork import House, brief, clockwork, virtual
from tests.fakes.upstream import DOWN, Asked, Delay, Refuse, Script, answers, erring, silent, slowly

TWO: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
BACKUPS = {"backup_lanes": ["exit", "entry"], "first_delta_timeout_ms": 1500}


async def _answered(house: House, count: int, *, after: float = 0.02, **call: Any) -> None:
    """So many calls, one after the other, answered by the first target after so many seconds."""
    house["a"].default = slowly(after)
    bot = house.bot()
    for _ in range(count):
        assert (await bot.ask(**call))["type"] == "done"


# ------------------------------------------------------------------ a throttled credential


@virtual
async def test_a_429_paces_the_credential_and_opens_no_breaker() -> None:
    """Further calls go to the next target without asking the first; when its time is over it is asked again."""
    async with clockwork(TWO, route={"return_ramp_s": 0}) as house:
        house["a"].scripts.append(erring(429, headers={"retry-after": "2"}))
        bot = house.bot()
        done = await bot.ask(timeout_ms=1500)
        assert (done["upstream"], done["attempts"]) == ("b", 2)
        asked = len(house["a"].asked)
        for _ in range(10):
            done = await bot.ask(timeout_ms=1000)
            assert (done["upstream"], done["attempts"]) == ("b", 1)
        assert len(house["a"].asked) == asked
        assert house.breaker("a").state(trio.current_time()) == "closed"
        await trio.sleep(2.5)
        assert (await bot.ask())["upstream"] == "a"


@virtual
async def test_calls_wait_out_a_throttle_where_it_fits_and_are_told_where_not() -> None:
    """One target: who has time is answered after it; who has not is told at once, and when to come again."""
    async with clockwork({"a": {}}) as house:
        house["a"].scripts.append(erring(429, headers={"retry-after": "2"}))
        bot = house.bot()
        began = trio.current_time()
        done = await bot.ask(timeout_ms=5000)
        assert (done["type"], done["attempts"]) == ("done", 2)
        assert 2.0 <= trio.current_time() - began <= 2.6
        house["a"].scripts.append(erring(429, headers={"retry-after": "3"}))
        first = bot.call(timeout_ms=6000)
        await trio.sleep(0.1)
        refused = await bot.ask(timeout_ms=1000)
        assert refused["code"] == "upstream_rate_limited"
        assert refused["retryable"]
        assert refused["retry_after_ms"] > 1000
        assert refused["call_id"] is None
        patient = await bot.ask(timeout_ms=6000)
        assert (patient["type"], patient["attempts"]) == ("done", 1)
        assert (await bot.terminal(first))["type"] == "done"
        assert len(house["a"].asked) == 5


@virtual
async def test_a_429_without_retry_after_is_no_reason_to_hammer() -> None:
    """For ever: few attempts at the first target, every call answered by the second."""
    async with clockwork(TWO) as house:
        house["a"].default = erring(429)
        bot = house.bot()
        for _ in range(30):
            assert (await bot.ask(timeout_ms=1500))["upstream"] == "b"
            await trio.sleep(0.1)
        assert len(house["a"].asked) <= 5


# ------------------------------------------------------------------ backup requests


def _late_once(seconds: float) -> Script:
    return functools.partial(slowly(seconds, "late"))


@virtual
async def test_a_backup_goes_to_another_connection_of_the_only_target() -> None:
    """Slower than usual: a second attempt beside it, first content wins, the loser's connection is closed."""
    async with clockwork({"a": {"warm_connections": 3}}, route=BACKUPS) as house:
        await _answered(house, 24)
        house["a"].scripts.append(_late_once(1.0))
        bot = house.bot()
        began = trio.current_time()
        done = await bot.ask(timeout_ms=2000)
        assert trio.current_time() - began < 0.2
        assert (done["attempts"], done["backup_used"]) == (2, True)
        unused = next(f for f in house.daemon.metrics.collect() if f["name"] == "sidecar_tokens_total")["samples"]
        assert [each["value"] for each in unused if each["labels"]["kind"] == "unused"] == [2], "paid for, and said"
        first, second = house["a"].asked[-2:]
        assert first.connection is not second.connection
        lines = [line["backup_used"] for line in house.log if line["event"] == "call"]
        assert lines == [False] * 24 + [True], "the log tells who was saved by one"
        await trio.sleep(0.1)
        assert not first.connection.standing
        assert second.connection.standing


@virtual
async def test_a_backup_goes_to_another_upstream_first() -> None:
    """Where the route has one: what is slow at one service may be so at all of its connections."""
    async with clockwork(TWO, route=BACKUPS) as house:
        await _answered(house, 24)
        house["a"].scripts.append(_late_once(1.0))
        done = await house.bot().ask(timeout_ms=2000)
        assert (done["upstream"], done["attempts"], done["backup_used"]) == ("b", 2, True)


@virtual
async def test_backups_are_for_the_configured_lanes_and_for_nobody_who_knows_too_little() -> None:
    """By default exits only; and none before it is known what is usual."""
    async with clockwork({"a": {"warm_connections": 3}}, route={"first_delta_timeout_ms": 1500}) as house:
        house["a"].default = slowly(0.3)
        for lane in ("exit", "entry"):
            assert (await house.bot().ask(lane=lane))["attempts"] == 1
        await _answered(house, 30)
        house["a"].scripts.append(_late_once(0.9))
        assert (await house.bot().ask(lane="entry"))["attempts"] == 1
        house["a"].scripts.append(_late_once(0.9))
        assert (await house.bot().ask(lane="exit"))["attempts"] == 2


@virtual
async def test_backups_end_with_their_budget() -> None:
    """A whole upstream that has become slow is not asked twice by everybody."""
    async with clockwork({"a": {"warm_connections": 8, "max_connections": 64}}, route=BACKUPS) as house:
        await _answered(house, 30)
        house["a"].default = slowly(1.0)
        asked = len(house["a"].asked)
        bot = house.bot()
        names = [bot.call(timeout_ms=2000) for _ in range(60)]
        for name in names:
            await bot.terminal(name)
        extra = len(house["a"].asked) - asked - 60
        assert 0 < extra <= 10 + 9 + 1


@virtual
async def test_a_failed_backup_leaves_the_first_attempt_running() -> None:
    """It answers, late as it is; a failure of the first is made good by the backup."""
    async with clockwork(TWO, route=BACKUPS) as house:
        await _answered(house, 24)
        house["a"].scripts.append(_late_once(0.5))
        house["b"].scripts.append(erring(500))
        done = await house.bot().ask(timeout_ms=2000)
        assert (done["type"], done["upstream"], done["attempts"]) == ("done", "a", 2)

        async def fails_late(asked: Asked) -> None:
            await trio.sleep(0.3)
            await asked.send(asked.error(500))

        house["a"].scripts.append(fails_late)
        house["b"].scripts.append(_late_once(0.5))
        done = await house.bot().ask(timeout_ms=2000)
        assert (done["type"], done["upstream"], done["attempts"]) == ("done", "b", 2)


# ------------------------------------------------------------------ order of preference, with health


@virtual
async def test_calls_return_to_the_preferred_target_gradually() -> None:
    """After an outage: a few at first, all in the end."""
    async with clockwork(TWO, route={"return_ramp_s": 10}) as house:
        house["a"].default = erring(500)
        bot = house.bot()
        while house.breaker("a").state(trio.current_time()) != "open":
            await bot.ask(timeout_ms=1000)
        house["a"].default = answers
        while house.breaker("a").state(trio.current_time()) != "closed":
            await bot.ask(timeout_ms=1000)
            await trio.sleep(0.1)
        served: list[str] = []
        for _ in range(150):
            served.append((await bot.ask())["upstream"])
            await trio.sleep(0.1)
        assert 1 <= served[:30].count("a") <= 15
        assert served[:30].count("a") < served[60:90].count("a")
        assert served[-30:].count("a") == 30


@virtual
async def test_a_slow_target_is_passed_over_until_it_is_quick_again() -> None:
    """Its first delta took longer than the route's patience three times in a row: the next one is asked first."""
    async with clockwork(TWO, route={"first_delta_timeout_ms": 400, "return_ramp_s": 2}) as house:
        await _answered(house, 10)
        house["a"].default = slowly(1.2)
        bot = house.bot()
        for _ in range(3):
            done = await bot.ask(timeout_ms=3000)
            assert (done["upstream"], done["attempts"]) == ("b", 2)
        asked = len(house["a"].asked)
        for _ in range(5):
            done = await bot.ask(timeout_ms=3000)
            assert (done["upstream"], done["attempts"]) == ("b", 1)
        assert len(house["a"].asked) == asked
        house["a"].default = answers
        await trio.sleep(30)
        assert (await bot.ask())["upstream"] in ("a", "b")
        await trio.sleep(5)
        assert (await bot.ask())["upstream"] == "a"


# ------------------------------------------------------------------ probes before trials


@virtual
async def test_no_call_is_risked_before_a_connect_and_a_ping_have_worked() -> None:
    """Down for a minute: the breaker's trials are connects; the first call afterwards is answered."""
    async with clockwork(TWO, route={"return_ramp_s": 0}) as house:
        house["a"].down = DOWN
        await house["a"].cut_all()
        bot = house.bot()
        asked = len(house["a"].asked)
        for _ in range(60):
            done = await bot.ask(timeout_ms=800)
            assert (done["type"], done["upstream"], done["attempts"]) == ("done", "b", 1)
            await trio.sleep(1)
        assert len(house["a"].asked) == asked
        assert len(house["a"].dialled_at) < 40
        house["a"].down = None
        await trio.sleep(40)
        assert (await bot.ask())["attempts"] == 1
        await trio.sleep(1)
        assert (await bot.ask())["upstream"] == "a"


@virtual
async def test_a_probe_that_fails_keeps_the_breaker_open_for_longer() -> None:
    """It takes connections, and answers no ping: nobody's call is tried on it."""
    async with clockwork({"a": {"pong_timeout_s": 0.5, "ping_interval_s": 600}}) as house:
        house["a"].default = erring(500)
        bot = house.bot()
        while house.breaker("a").state(trio.current_time()) != "open":
            await bot.ask(timeout_ms=300)
            await trio.sleep(0.05)
        house["a"].deaf = True
        asked = len(house["a"].asked)
        trips = house.breaker("a").statistics(trio.current_time()).probes
        await trio.sleep(120)
        assert house.breaker("a").statistics(trio.current_time()).probes >= trips + 2
        assert (await bot.ask())["code"] == "breaker_open"
        assert len(house["a"].asked) == asked
        house["a"].deaf = False
        house["a"].default = answers
        await trio.sleep(40)
        assert (await bot.ask())["type"] == "done"


# ------------------------------------------------------------------ one poisonous bot


@virtual
async def test_a_poisonous_bot_opens_nobodys_breaker_but_its_own() -> None:
    """Its every prompt breaks the upstream; others' are answered: they go on being answered, and it is refused."""

    async def judges(asked: Asked) -> None:
        if asked.prompt == "poison":
            await asked.send(asked.error(500))
        else:
            await answers(asked)

    async with clockwork({"a": {}}) as house:
        house["a"].default = judges
        good, bad = house.bot(pid=1), house.bot(pid=2)
        codes = []
        for _ in range(40):
            codes.append((await bad.ask("poison", timeout_ms=300))["code"])
            assert (await good.ask(timeout_ms=1000))["type"] == "done"
        assert house.breaker("a").state(trio.current_time()) == "closed"
        assert codes[0] == "upstream_error"
        assert codes[-1] == "breaker_open"
        assert codes.count("upstream_error") < 15


# ------------------------------------------------------------------ what cannot fit


@virtual
async def test_a_call_that_cannot_make_it_is_told_at_once_and_nothing_is_sent() -> None:
    """A first delta usually takes 0.4 s, and 100 ms are left; now and then one is made, to see what is usual now."""
    async with clockwork({"a": {}}) as house:
        await _answered(house, 12, after=0.4)
        bot = house.bot()
        await bot.ask(timeout_ms=100)  # the one that is made
        asked = len(house["a"].asked)
        began = trio.current_time()
        refused = [await bot.ask(timeout_ms=100) for _ in range(5)]
        assert trio.current_time() == began
        assert {brief(each) for each in refused} == {("deadline_unreachable", None, 0)}
        assert all(each["retryable"] for each in refused)
        assert len(house["a"].asked) == asked
        house["a"].default = answers
        for _ in range(60):
            await trio.sleep(0.3)
            ended = await bot.ask(timeout_ms=100)
        assert ended["type"] == "done", "it has become quicker, and that was found out"


@virtual
async def test_a_call_that_waited_too_long_for_a_connection_is_not_sent() -> None:
    """Its turn comes 50 ms before its deadline, and a first delta takes 0.3 s: no tokens are paid for nothing."""
    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
        await _answered(house, 12, after=0.3)
        bot = house.bot()
        await bot.ask(timeout_ms=50)  # the one that is made
        await trio.sleep(0.2)
        house["a"].default = slowly(0.5)
        asked = len(house["a"].asked)
        first = bot.call(timeout_ms=2000)
        await trio.sleep(0.01)
        second = bot.call(timeout_ms=540)
        ended = await bot.terminal(second)
        assert (ended["code"], ended["phase"], ended["attempts"]) == ("deadline_unreachable", "queue", 0)
        assert (await bot.terminal(first))["type"] == "done"
        assert len(house["a"].asked) == asked + 1


# ------------------------------------------------------------------ lanes


@virtual
async def test_exits_find_room_while_everything_else_is_taken() -> None:
    """Of eight connections one is kept for exits, once there was an exit call; so is a place in flight."""
    settings: dict[str, Any] = {"max_calls_in_flight": 16, "queue_max": 100}
    async with clockwork({"a": {"warm_connections": 2, "max_connections": 8}}, **settings) as house:
        await house.bot().ask(lane="exit")
        house["a"].default = silent
        research = house.bot(pid=2)
        for _ in range(60):
            research.call(lane="research", timeout_ms=5000, first_delta_timeout_ms=5000)
        await trio.sleep(0.5)
        assert len([asked for asked in house["a"].asked if asked.connection.standing]) <= 8
        house["a"].default = answers
        exits = house.bot(pid=3)
        began = trio.current_time()
        for _ in range(5):
            assert (await exits.ask(lane="exit", timeout_ms=500))["type"] == "done"
        assert trio.current_time() - began < 0.3


# ------------------------------------------------------------------ the operator's word


@virtual
async def test_a_disabled_upstream_gets_no_call_and_keeps_no_connection() -> None:
    """What runs there ends as it would; calls go elsewhere; enabled again, it is as before."""
    async with clockwork(TWO, route={"return_ramp_s": 0}) as house:
        house["a"].default = slowly(0.5)
        bot = house.bot()
        running = bot.call()
        await trio.sleep(0.1)
        house.daemon.pools["a"].set_enabled(False)
        assert (await bot.ask())["upstream"] == "b"
        assert (await bot.terminal(running))["upstream"] == "a"
        await trio.sleep(0.5)
        assert not house["a"].standing
        assert "upstream a: disabled" in house.daemon.report().reasons
        house.daemon.pools["a"].set_enabled(True)
        await house.warm("a", 2)
        assert (await bot.ask())["upstream"] == "a"


@virtual
async def test_with_every_upstream_disabled_calls_are_told_so() -> None:
    """At once, waiting ones too, in words that name the upstream."""
    async with clockwork({"a": {"warm_connections": 0, "max_connections": 1}}) as house:
        house["a"].default = silent
        bot = house.bot()
        bot.call(timeout_ms=1500)
        await trio.sleep(0.1)
        waiting = bot.call(timeout_ms=1500)
        await trio.sleep(0.1)
        house.daemon.pools["a"].set_enabled(False)
        refused = await bot.ask()
        assert brief(refused) == ("no_connection", None, 0)
        assert "disabled by the operator" in refused["message"]
        assert brief(await bot.terminal(waiting)) == ("no_connection", "queue", 0)


@virtual
async def test_halted_lanes_end_and_others_go_on() -> None:
    """In one step: running, parked and queued calls of the lane, and every new one; exits do not notice."""
    async with clockwork({"a": {"max_connections": 3}}, max_calls_in_flight=4) as house:
        house["a"].default = silent
        bot = house.bot()
        entries = [bot.call(lane="entry", timeout_ms=1900) for _ in range(6)]
        exits = bot.call(lane="exit", timeout_ms=1900)
        await trio.sleep(0.1)
        house.daemon.brakes.halt(frozenset({"entry"}), "drill")
        ends = [await bot.terminal(name) for name in entries]
        assert {end["code"] for end in ends} == {"halted"}
        assert not any(end["retryable"] for end in ends)
        refused = await bot.ask()
        assert brief(refused) == ("halted", None, 0)
        assert "drill" in refused["message"]
        assert not bot.of(exits, "failed")
        house["a"].default = answers
        assert (await bot.ask(lane="exit"))["type"] == "done"
        house.daemon.brakes.resume()
        assert (await bot.ask())["type"] == "done"
        await trio.sleep(0.2)
        assert len(house["a"].standing) <= 3


# ------------------------------------------------------------------ without spares


@virtual
async def test_without_spares_a_probe_keeps_its_connection_and_the_breaker_closes() -> None:
    """warm_connections = 0: the only free connection is the probe's own."""
    async with clockwork({"a": {"warm_connections": 0}}) as house:
        house["a"].default = erring(500)
        bot = house.bot()
        while house.breaker("a").state(trio.current_time()) != "open":
            await bot.ask(timeout_ms=300)
            await trio.sleep(0.05)
        house["a"].default = answers
        await trio.sleep(40)
        for _ in range(3):
            assert (await bot.ask())["type"] == "done"
            await trio.sleep(0.3)
        assert house.breaker("a").state(trio.current_time()) == "closed"


@virtual
async def test_without_spares_a_refused_credential_is_tried_again_when_its_time_is_over() -> None:
    """By the connect of a call; before that, calls are told at once."""
    async with clockwork({"a": {"warm_connections": 0}}) as house:
        house["a"].connects.append(Refuse(401))
        bot = house.bot()
        assert (await bot.ask())["code"] == "upstream_auth"
        began = trio.current_time()
        assert (await bot.ask())["code"] == "upstream_auth"
        assert trio.current_time() == began
        await trio.sleep(301)
        assert (await bot.ask())["type"] == "done"


# ------------------------------------------------------------------ who waits hears of it


@virtual
async def test_a_call_that_waits_for_one_target_is_served_by_another_that_is_back() -> None:
    """It waits for b, whose only connection is taken; an operator puts a in again: it goes there at once."""
    async with clockwork({"a": {}, "b": {"warm_connections": 1, "max_connections": 1}}) as house:
        house.daemon.pools["a"].set_enabled(False)
        house["b"].default = silent
        bot = house.bot()
        bot.call(timeout_ms=1900, first_delta_timeout_ms=1900)
        await trio.sleep(0.2)
        waiting = bot.call(timeout_ms=1900)
        await trio.sleep(0.2)
        assert not bot.of(waiting, "done", "failed")
        began = trio.current_time()
        house.daemon.pools["a"].set_enabled(True)
        assert (await bot.terminal(waiting))["upstream"] == "a"
        assert trio.current_time() - began < 0.5


@virtual
async def test_connections_that_expire_together_cost_no_call() -> None:
    """Opened together, they come to their age in one instant: one of them says so, and none of the others is tried."""

    async def aged(asked: Asked) -> None:
        await asked.send(asked.error(400, "websocket_connection_limit_reached"))
        await asked.connection.close(1000)

    async with clockwork({"a": {"warm_connections": 4, "max_connections": 8}}) as house:
        old = set(house["a"].standing)

        async def by_age(asked: Asked) -> None:
            await (aged if asked.connection in old else answers)(asked)

        house["a"].default = by_age
        bot = house.bot()
        done = await bot.ask(stream=False, timeout_ms=1000)
        assert (done["type"], done["attempts"]) == ("done", 2)
        names = [bot.call(timeout_ms=1000) for _ in range(8)]
        for name in names:
            assert (await bot.terminal(name))["type"] == "done"
        assert not old & set(house["a"].standing)


@virtual
async def test_a_probe_waits_for_a_connect_under_way() -> None:
    """A host without a connection asks a recovering service for one, not for two."""
    async with clockwork({"a": {"warm_connections": 1, "max_connections": 2}}) as house:
        house["a"].down = DOWN
        await house["a"].cut_all()
        bot = house.bot()
        for _ in range(40):
            await bot.ask(timeout_ms=200)
            await trio.sleep(1)
        house["a"].down = None
        house["a"].connects.extend([Delay(0.3)] * 4)
        dialled = len(house["a"].dialled_at)
        await house["a"].until(lambda: len(house["a"].dialled_at) > dialled)
        await trio.sleep(0.2)
        assert len(house["a"].dialled_at) == dialled + 1
