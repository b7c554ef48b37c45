"""The whole data path in virtual time, when upstreams fail: failover, backup, restart, retry, malformed frames."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.fakes.clockwork import brief, clockwork, counted, simulate, virtual
from tests.fakes.upstream import (
    Asked,
    Refuse,
    Script,
    closing,
    erring,
    silent,
    slowly,
    stalling,
)

TWO: dict[str, dict[str, Any]] = {"a": {}, "b": {}}


# ------------------------------------------------------------------ failover


@pytest.mark.parametrize(
    "fault",
    [
        erring(500), erring(503), erring(529), erring(429), erring(402, "insufficient_quota"), erring(401),
        erring(None, "model_not_found"), closing(1001), closing(1006 + 5), closing(1012), closing(1013), closing(1008),
        closing(4402), closing(None), closing(None, reset=True),
    ],
)  # fmt: skip
@virtual
async def test_failover_before_the_first_delta(fault: Script) -> None:
    """While nothing is committed the next target answers at once; what is reported is what answered."""
    async with clockwork(TWO) as house:
        house["a"].scripts.append(fault)
        bot = house.bot()
        done = await bot.ask()
        assert (done["type"], done["upstream"], done["attempts"]) == ("done", "b", 2)
        assert done["backup_used"] is False
        assert bot.text("c1") == "HOLD"
        assert done["timing"]["total_us"] < 40_000


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (erring(400, "context_length_exceeded"), "context_length_exceeded"),
        (erring(400, "content_filter"), "content_filter"),
        (erring(400), "upstream_refused"),
        (erring(422), "upstream_refused"),
        (closing(1009), "upstream_refused"),
    ],
)
@virtual
async def test_what_is_the_calls_own_fault_is_tried_once(fault: Script, code: str) -> None:
    """One attempt, the reason passed on, nothing counted against the upstream."""
    async with clockwork(TWO) as house:
        house["a"].default = fault
        failed = await house.bot().ask()
        assert brief(failed) == (code, "first_delta", 1)
        assert (failed["retryable"], failed["upstream"]) == (False, "a")
        assert not house["b"].asked
        assert counted(house, "a") == 0


@virtual
async def test_an_error_frame_after_created_is_retriable() -> None:
    """`response.created` is no content: an error behind it is failed over."""

    async def begins(asked: Asked) -> None:
        await asked.send(asked.created())
        await trio.sleep(0.01)
        await asked.send(asked.error(500))

    async with clockwork(TWO) as house:
        house["a"].default = begins
        assert (await house.bot().ask())["upstream"] == "b"


@virtual
async def test_the_first_failure_is_told() -> None:
    """When the secondary fails too, differently, code, status, message and upstream are the primary's."""
    async with clockwork(TWO) as house:
        house["a"].default = erring(503, "engine_overloaded")
        house["b"].default = erring(400, "context_length_exceeded")
        failed = await house.bot().ask()
        assert brief(failed) == ("upstream_error", "first_delta", 2)
        assert (failed["upstream"], failed["upstream_status"], failed["upstream_code"]) == (
            "a",
            503,
            "engine_overloaded",
        )
        assert failed["retryable"] is False, "something inside has tried"


@virtual
async def test_the_first_failure_is_told_when_nobody_is_left() -> None:
    """A secondary that cannot be had does not mask the primary's reason, nor lose its story."""
    async with clockwork(TWO) as house:
        house["b"].down = Refuse(429, ((b"retry-after", b"60"),))
        await house["b"].cut_all()
        await trio.sleep(6)
        house["a"].default = erring(402, "insufficient_quota")
        failed = await house.bot().ask()
        assert (failed["code"], failed["upstream"], failed["attempts"]) == ("insufficient_quota", "a", 1)
        assert failed["usage"]["estimated"] is True


@virtual
async def test_one_target_for_ever_broken() -> None:
    """503 for ever: at most three attempts, with backoff between them, the original error."""
    async with clockwork() as house:
        house["a"].default = erring(503)
        failed = await house.bot().ask()
        assert failed["code"] == "upstream_error"
        assert failed["attempts"] == 3
        assert len(house["a"].asked) == 3
        gaps = [b.at - a.at for a, b in zip(house["a"].asked, house["a"].asked[1:], strict=False)]
        assert all(gap > 0.005 for gap in gaps)


@virtual
async def test_a_retry_waits_for_a_connection_without_spinning() -> None:
    """The only connection is lost: the retry whose backoff is over waits for the next one, asleep."""
    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
        house["a"].scripts.append(closing(1001))
        done = await house.bot().ask(timeout_ms=8000)
        assert (done["type"], done["attempts"]) == ("done", 2)
        assert house.daemon.dispatcher.clocks._sequence < 30


def test_a_retry_that_falls_due_while_the_call_looks_is_not_slept_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backoff is shorter than the step takes: it is tried at once, and does not wait for the deadline."""
    monkeypatch.setattr("sidecar.core.losses.call_backoff", lambda *_, **__: 0.0001)

    async def main() -> None:
        async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
            # Time goes on within a step, which it does not in virtual time.
            house.daemon.dispatcher.clock = lambda: trio.current_time() + 0.0005
            house["a"].scripts.append(erring(500))
            done = await house.bot().ask(timeout_ms=1500)
            assert (done["type"], done["attempts"]) == ("done", 2)

    simulate(main)


@virtual
async def test_retry_budget_bounds_an_outage() -> None:
    """Fifty calls that all fail: attempts are bounded by the budget, not by calls times three."""
    async with clockwork({"a": {"max_connections": 64, "warm_connections": 50}}) as house:
        house["a"].default = erring(503)
        bot = house.bot()
        names = [bot.call() for _ in range(50)]
        for name in names:
            await bot.terminal(name)
        # 50 first attempts (a permit is taken at the start), and what the budget held.
        assert len(house["a"].asked) <= 50 + 10 + 5 + 2


@virtual
async def test_retry_budget_where_no_breaker_helps() -> None:
    """429 counts for no breaker: what fifty calls at once make beyond their first is what the budget pays, at twice."""
    async with clockwork({"a": {"max_connections": 64, "warm_connections": 50}}) as house:
        house["a"].default = erring(429)
        bot = house.bot()
        ends = [await bot.terminal(name) for name in [bot.call(timeout_ms=900) for _ in range(50)]]
        assert {end["code"] for end in ends} == {"upstream_rate_limited"}
        assert 50 < len(house["a"].asked) <= 50 + (10 + 5 + 1) // 2
        assert house.breaker("a").state(trio.current_time()) == "closed"


@virtual
async def test_a_connection_found_dead_at_the_write_costs_no_attempt() -> None:
    """Writes fail, reads do not yet: the next call takes another connection at once, as its first attempt."""
    upstream = {"warm_connections": 3, "max_connections": 3, "calls_per_connection": 2}
    async with clockwork({"a": upstream}, route={"timeout_ms": 9000, "first_delta_timeout_ms": 5000}) as house:
        house["a"].default = slowly(0.2)
        dead = house["a"].standing[:2]
        for served in dead:
            served.link.is_reset = True
        bot = house.bot()
        first = [bot.call(f"first{n}") for n in range(3)]
        await trio.sleep(0.01)
        second = [bot.call(f"second{n}") for n in range(3)]
        ends = [await bot.terminal(name) for name in first + second]
        assert {end["type"] for end in ends} == {"done"}, [end for end in ends if end["type"] != "done"]
        assert sum(end["attempts"] == 2 for end in ends) == 2, "those whose request was written to nowhere"
        assert {asked.connection.link.is_reset for asked in house["a"].asked} == {False}


@virtual
async def test_options_that_a_target_cannot_take_may_be_dropped() -> None:
    """`unsupported_options = "drop"`: the call goes out, without them where they cannot go."""
    route = {"unsupported_options": "drop"}
    async with clockwork({"a": {"dialect": "chat"}, "b": {}}, route=route) as house:
        house["a"].default = erring(500)
        assert (await house.bot().ask(options={"seed": 7, "temperature": 0.5}))["upstream"] == "b"
        assert (house["a"].asked[0].body["seed"], house["a"].asked[0].body["temperature"]) == (7, 0.5)
        assert "seed" not in house["b"].asked[0].body
        assert house["b"].asked[0].body["temperature"] == 0.5


@virtual
async def test_graceful_goodbye_under_load_loses_no_call() -> None:
    """1001 on every connection with forty calls in flight: all of them move, whatever the retry budget holds."""
    async with clockwork({"a": {"max_connections": 64, "warm_connections": 45}}, route={"timeout_ms": 9000}) as house:
        house["a"].default = slowly(0.1)
        bot = house.bot()
        names = [bot.call() for _ in range(40)]
        await house["a"].until(lambda: len(house["a"].asked) == 40)
        for served in house["a"].standing:
            await served.close(1001)
        ends = [await bot.terminal(name) for name in names]
        assert [end["type"] for end in ends] == ["done"] * 40
        assert counted(house, "a") == 0


# ------------------------------------------------------------------ backup


@virtual
async def test_backup_at_the_first_delta_clock() -> None:
    """A silent primary: the next target is started at the clock, first content wins, the loser is closed."""
    async with clockwork(TWO, route={"first_delta_timeout_ms": 200}) as house:
        house["a"].default = silent
        done = await house.bot().ask()
        assert (done["upstream"], done["attempts"], done["backup_used"]) == ("b", 2, True)
        assert done["timing"]["attempt_us"] == pytest.approx(200_000, abs=10)
        assert house["a"].asked[0].connection.gone_at == pytest.approx(house["b"].asked[0].at + 0.01, abs=0.05)
        assert counted(house, "a") == 1
        assert counted(house, "b") == 0
        assert len(house["a"].asked) == 1


@virtual
async def test_the_primary_may_still_win() -> None:
    """The attempt in hand runs on: its content first makes it the answer; the healthy backup is not counted failed."""
    async with clockwork(TWO, route={"first_delta_timeout_ms": 200}) as house:
        house["a"].default, house["b"].default = slowly(0.25), slowly(0.2)
        done = await house.bot().ask()
        assert (done["upstream"], done["attempts"], done["backup_used"]) == ("a", 2, False)
        await trio.sleep(0.05)
        assert house["b"].asked[0].connection.gone_at is not None
        assert counted(house, "b") == 0
        assert house.breaker("a").statistics(trio.current_time()).slow == 1


@virtual
async def test_a_hurried_calls_backup_says_nothing_of_the_primary() -> None:
    """By 60 % of what remains the backup starts, too; that clock is the call's, so the primary is not judged."""
    async with clockwork(TWO, route={"first_delta_timeout_ms": 1000}) as house:
        house["a"].default = silent
        done = await house.bot().ask(timeout_ms=500)
        assert (done["upstream"], done["backup_used"]) == ("b", True)
        assert house["b"].asked[0].at - house["a"].asked[0].at == pytest.approx(0.3, abs=0.001)
        statistics = house.breaker("a").statistics(trio.current_time())
        assert (statistics.failures, statistics.slow) == (0, 0)


@virtual
async def test_a_lost_primary_leaves_the_backup_alone() -> None:
    """The primary fails after the backup has started: the backup goes on, alone, and answers."""
    async with clockwork(TWO, route={"first_delta_timeout_ms": 100}) as house:
        house["a"].default, house["b"].default = erring(500, after=0.15), slowly(0.2)
        done = await house.bot().ask()
        assert (done["upstream"], done["attempts"], done["backup_used"]) == ("b", 2, True)


@virtual
async def test_a_lost_backup_leaves_the_primary_alone() -> None:
    """The backup fails: the primary is waited for still."""
    async with clockwork(TWO, route={"first_delta_timeout_ms": 100}) as house:
        house["a"].default, house["b"].default = slowly(0.4), erring(400)
        done = await house.bot().ask()
        assert (done["upstream"], done["attempts"], done["backup_used"]) == ("a", 2, False)


@virtual
async def test_no_backup_without_another_target() -> None:
    """One target: waiting goes on past the first-delta clock, on the same attempt."""
    async with clockwork(route={"first_delta_timeout_ms": 50}) as house:
        house["a"].default = slowly(0.5)
        done = await house.bot().ask()
        assert (done["type"], done["attempts"], len(house["a"].asked)) == ("done", 1, 1)


@virtual
async def test_a_backup_waits_for_its_connection() -> None:
    """The other target has no connection at the clock: the backup starts when it has one."""
    async with clockwork({"a": {}, "b": {"warm_connections": 1, "max_connections": 1}},
                         route={"first_delta_timeout_ms": 100}) as house:  # fmt: skip
        house["a"].default, house["b"].default = silent, slowly(0.3)
        bot = house.bot()
        other = bot.call(first_delta_timeout_ms=10)  # takes b's only connection at 10 ms
        name = bot.call()
        done = await bot.terminal(name)
        assert (done["upstream"], done["backup_used"]) == ("b", True)
        assert (await bot.terminal(other))["upstream"] == "b"
        assert house["b"].asked[1].at - house["b"].asked[0].at >= 0.3


# ------------------------------------------------------------------ after the first delta


@pytest.mark.parametrize("fault", [closing(None, pieces=3), closing(1011, pieces=3), closing(1001, pieces=3)])
@virtual
async def test_committed_and_cut(fault: Script) -> None:
    """After a delta was forwarded nobody continues the text: upstream_lost, partial, one attempt."""
    async with clockwork(TWO) as house:
        house["a"].default = fault
        bot = house.bot()
        failed = await bot.ask()
        assert failed["code"] in ("upstream_lost", "upstream_error")
        assert (failed["phase"], failed["attempts"], failed["partial"], failed["deltas"]) == ("stream", 1, True, 3)
        assert bot.text("c1") == "p0 p1 p2 "
        assert not house["b"].asked


@pytest.mark.parametrize("fault", [closing(None, pieces=3), stalling(3)])
@virtual
async def test_restart_on_loss(fault: Script) -> None:
    """on_lost restart: `restarted`, seq from 0, on a target not yet lost; the text is the new one's only."""
    async with clockwork(TWO) as house:
        house["a"].default = fault
        bot = house.bot()
        done = await bot.ask(on_lost="restart")
        assert [m["type"] for m in bot.of("c1")] == ["accepted", *["delta"] * 3, "restarted", "delta", "delta", "done"]
        restarted = bot.of("c1", "restarted")[0]
        assert (restarted["attempt"], restarted["upstream"], restarted["model"]) == (2, "b", "m")
        assert (bot.text("c1"), done["deltas"], done["attempts"]) == ("HOLD", 2, 2)
        assert done["timing"]["first_delta_us"] >= done["timing"]["attempt_us"]


@virtual
async def test_restart_on_another_connection_of_the_only_target() -> None:
    """One target: start over on another connection, within the same deadline."""
    async with clockwork() as house:
        house["a"].scripts.append(closing(None, pieces=2))
        bot = house.bot()
        done = await bot.ask(on_lost="restart")
        assert (done["type"], done["attempts"], bot.text("c1")) == ("done", 2, "HOLD")
        assert house["a"].asked[0].connection is not house["a"].asked[1].connection


@virtual
async def test_a_restart_that_cannot_be_had_is_partial() -> None:
    """Lost after deltas and nothing answers again: failed, partial, the count of deltas unchanged."""
    async with clockwork() as house:
        house["a"].scripts.append(closing(None, pieces=2))
        house["a"].default = silent
        bot = house.bot()
        name = bot.call(on_lost="restart", timeout_ms=700)
        failed = await bot.terminal(name)
        assert failed["code"] == "deadline_exceeded"
        assert failed["deltas"] == (0 if bot.of(name, "restarted") else 2)


@pytest.mark.parametrize("fault", [closing(None, pieces=3), stalling(3), closing(1011, pieces=2)])
@virtual
async def test_a_whole_answer_is_replaced(fault: Script) -> None:
    """`stream: false` commits nothing before the terminal: a lost attempt is replaced, its text forgotten."""
    async with clockwork(TWO) as house:
        house["a"].default = fault
        bot = house.bot()
        done = await bot.ask(stream=False)
        assert (done["type"], done["text"], done["upstream"], done["attempts"]) == ("done", "HOLD", "b", 2)
        assert not bot.of("c1", "restarted")


@virtual
async def test_a_whole_answer_that_is_late_brings_what_came() -> None:
    """`stream: false` at the deadline: failed, with the text so far."""
    async with clockwork() as house:
        house["a"].default = stalling(2)
        failed = await house.bot().ask(stream=False, timeout_ms=200)
        assert (failed["code"], failed["text"], failed["partial"]) == ("deadline_exceeded", "p0 p1 ", False)


# ------------------------------------------------------------------ malformed


@pytest.mark.parametrize(
    "junk", ["{", "[1]", '{"type":"response.output_text.delta","delta":7}', '"text"', '{"type":7}', "\x00"]
)
@virtual
async def test_a_malformed_frame_loses_the_attempt(junk: str) -> None:
    """Never done with a hole: failed when committed, replaced when not; others are unharmed."""

    def breaks(pieces: int) -> Script:
        async def script(asked: Asked) -> None:
            for _ in range(pieces):
                await asked.send(asked.delta("x"))
            await trio.sleep(0.01)
            await asked.send(asked.text(junk), asked.delta("y"), asked.finish())

        return script

    async with clockwork() as house:
        bot = house.bot()
        house["a"].scripts.append(breaks(2))
        house["a"].default = slowly(0.05)
        broken = bot.call("1")
        await house["a"].until(lambda: len(house["a"].asked) == 1)
        other = bot.call("2")
        failed = await bot.terminal(broken)
        assert brief(failed) == ("upstream_lost", "stream", 1)
        assert bot.text(broken) == "xx"
        assert (await bot.terminal(other))["type"] == "done"
        house["a"].scripts.append(breaks(0))
        assert (await bot.ask())["attempts"] == 2
        assert counted(house, "a") == 2


@virtual
async def test_a_binary_frame_nobody_asked_for() -> None:
    """Binary frames without compression retire the connection; the call goes on elsewhere."""

    async def binary(asked: Asked) -> None:
        await asked.send(asked.binary(b"\x28\xb5\x2f\xfd"))

    async with clockwork(TWO) as house:
        house["a"].default = binary
        assert (await house.bot().ask())["upstream"] == "b"
        await house["a"].until(lambda: house["a"].asked[0].connection.gone_at is not None)


@virtual
async def test_an_endless_answer_is_cut_off() -> None:
    """More than a million characters: the upstream has lost its mind, memory stays bounded."""

    async def mad(asked: Asked) -> None:
        while True:
            await trio.sleep(0.001)
            await asked.send(asked.delta("x" * 50_000))

    async with clockwork() as house:
        house["a"].default = mad
        bot = house.bot()
        failed = await bot.ask()
        assert brief(failed) == ("upstream_lost", "stream", 1)
        assert (1 << 20) < len(bot.text("c1")) <= (1 << 20) + 50_000


# ------------------------------------------------------------------ Retry-After


@virtual
async def test_retry_after_that_fits_is_waited_for() -> None:
    """429 + Retry-After 0.5 with one target: about half a second, then one more attempt; phase and queue tell."""
    async with clockwork() as house:
        house["a"].scripts.append(erring(429, headers={"retry-after": "0.5"}))
        done = await house.bot().ask()
        assert (done["type"], done["attempts"]) == ("done", 2)
        assert 0.5 <= house["a"].asked[1].at - house["a"].asked[0].at <= 0.7


@virtual
async def test_retry_after_that_does_not_fit_is_told_now() -> None:
    """It cannot be waited out: failed at once, retryable, with the upstream's time."""
    async with clockwork() as house:
        house["a"].default = erring(429, headers={"retry-after": "5"})
        failed = await house.bot().ask()
        assert brief(failed) == ("upstream_rate_limited", "first_delta", 1)
        assert failed["retryable"] is True
        assert 5_000 <= failed["retry_after_ms"] <= 6_000
        assert failed["timing"]["total_us"] < 10_000


@virtual
async def test_retry_after_sends_to_the_next_target_first() -> None:
    """With another target nothing is waited for."""
    async with clockwork(TWO) as house:
        house["a"].default = erring(429, headers={"retry-after": "0.5"})
        done = await house.bot().ask()
        assert (done["upstream"], done["timing"]["total_us"] < 50_000) == ("b", True)
