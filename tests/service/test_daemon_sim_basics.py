"""The whole data path in virtual time: a call's way, its clocks, phases, refusals, and the two ways to stop it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from sidecar.service.running_call import RunningCall
from tests.fakes.clockwork import MONO_US, House, SimBot, brief, clockwork, virtual
from tests.fakes.upstream import Asked, Delay, Refuse, answers, closing, erring, silent, slowly, stalling

# ------------------------------------------------------------------ an answer


@pytest.mark.parametrize("dialect", ["responses", "chat"])
@virtual
async def test_an_answer(dialect: str) -> None:
    """accepted, deltas in order, done with usage of the upstream that answered."""
    async with clockwork({"a": {"dialect": dialect}}) as house:
        bot = house.bot()
        done = await bot.ask("hi")
        assert [m["type"] for _, m in bot.log] == ["accepted", "delta", "delta", "done"]
        assert bot.text("c1") == "HOLD"
        assert (done["finish"], done["upstream"], done["model"], done["attempts"]) == ("stop", "a", "m", 1)
        assert (done["usage"]["input_tokens"], done["usage"]["output_tokens"]) == (3, 2)
        assert done["timing"]["total_us"] == pytest.approx(20_000, abs=10)
        assert done["timing"]["first_delta_us"] == pytest.approx(10_000, abs=10)
        assert (done["model_reported"], done["backup_used"]) == ("m-1", False)


@virtual
async def test_an_answer_in_one_piece() -> None:
    """`stream: false`: no deltas, the whole text in the terminal."""
    async with clockwork() as house:
        bot = house.bot()
        done = await bot.ask(stream=False)
        assert [m["type"] for _, m in bot.log] == ["accepted", "done"]
        assert (done["text"], done["deltas"]) == ("HOLD", 0)


@virtual
async def test_an_empty_answer() -> None:
    """Zero text is `done` with deltas 0, and no backup is started for it."""

    async def empty(asked: Asked) -> None:
        await asked.send(asked.created(), asked.finish())

    async with clockwork({"a": {"dialect": "chat"}, "b": {}}, route={"first_delta_timeout_ms": 20}) as house:
        house["a"].default = empty
        bot = house.bot()
        done = await bot.ask()
        assert (done["type"], done["deltas"], done["upstream"], done["attempts"]) == ("done", 0, "a", 1)
        assert not house["b"].asked


@virtual
async def test_messages_after_the_terminal_never_come() -> None:
    """Content after the end, a second end, an unknown event: nothing for that id, and the bot's next call is clean."""

    async def twice(asked: Asked) -> None:
        await asked.send(asked.delta("one"), asked.finish(), asked.finish())
        await asked.send(asked.frame({"type": "response.unheard_of"}))
        await asked.send(asked.delta("ghost"))

    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
        house["a"].scripts.append(twice)
        bot = house.bot()
        first, second = bot.call("1"), bot.call("2")
        assert (await bot.terminal(first))["type"] == "done"
        assert (await bot.terminal(second))["type"] == "done"
        assert (bot.text(first), bot.text(second)) == ("one", "HOLD")


@virtual
async def test_what_came_with_the_end_is_not_the_next_calls() -> None:
    """Frames read together with an answer's end cannot be the answer to a request written after it."""

    async def leaky(asked: Asked) -> None:
        await trio.sleep(0.01)
        await asked.send(
            asked.delta("mine"), asked.finish(), asked.text('{"type":"response.output_text.delta","delta":"x"}')
        )

    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
        house["a"].scripts.append(leaky)
        bot = house.bot()
        first, second = bot.call("1"), bot.call("2")
        assert (await bot.terminal(first))["type"] == "done"
        done = await bot.terminal(second)
        assert (done["type"], bot.text(second), done["attempts"]) == ("done", "HOLD", 1)
        assert house["a"].asked[0].connection is not house["a"].asked[1].connection


@virtual
async def test_the_call_that_has_no_other_connection_keeps_the_one_it_was_refused_on() -> None:
    """A rate limit says nothing against the connection: the retry may use the only one there is."""

    async def limited(asked: Asked) -> None:
        await asked.send(asked.error(429, "rate_limit_exceeded", headers={"retry-after-ms": "50"}))

    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}) as house:
        house["a"].scripts.append(limited)
        done = await house.bot().ask()
        assert (done["type"], done["attempts"]) == ("done", 2)
        assert len(house["a"].served) == 1


# ------------------------------------------------------------------ clocks


@virtual
async def test_deadline_while_silent() -> None:
    """A silent upstream: `deadline_exceeded` at the deadline to the microsecond, connection closed."""
    async with clockwork() as house:
        house["a"].default = silent
        bot = house.bot()
        failed = await bot.ask(timeout_ms=400)
        assert brief(failed) == ("deadline_exceeded", "first_delta", 1)
        assert (failed["retryable"], failed["upstream"]) == (False, "a")
        accepted = bot.of("c1", "accepted")[0]
        assert accepted["deadline_mono_us"] - accepted["recv_mono_us"] == 400_000
        assert failed["timing"]["total_us"] in (400_000, 400_001)
        await trio.sleep(0.1)
        assert house["a"].asked[0].connection.gone_at == pytest.approx(house["a"].asked[0].at + 0.4, abs=0.1)


@virtual
async def test_deadline_in_the_stream() -> None:
    """Content flows and never ends: the deadline ends it, partial, with what was there."""

    async def endless(asked: Asked) -> None:
        while True:
            await trio.sleep(0.01)
            await asked.send(asked.delta("x"))

    async with clockwork() as house:
        house["a"].default = endless
        bot = house.bot()
        failed = await bot.ask(timeout_ms=205)
        assert brief(failed) == ("deadline_exceeded", "stream", 1)
        assert failed["partial"] is True
        assert bot.text("c1") == "x" * 20
        assert failed["usage"]["estimated"] is True


@virtual
async def test_deadline_counts_from_the_bots_own_send() -> None:
    """`sent_mono_us` moves the deadline back; past it, nothing is sent upstream and the call is refused."""
    async with clockwork() as house:
        house["a"].default = silent
        bot = house.bot()
        await trio.sleep(1)
        now_us = MONO_US + int(trio.current_time() * 1e6)
        failed = await bot.ask(timeout_ms=500, sent_mono_us=now_us - 200_000)
        assert failed["timing"]["total_us"] == pytest.approx(300_000, abs=2)
        refused = await bot.ask(timeout_ms=500, sent_mono_us=now_us - 600_000)
        assert (refused["code"], refused.get("call_id"), refused["retryable"]) == ("deadline_exceeded", None, False)
        assert len(house["a"].asked) == 1


@virtual
async def test_idle_timeout_in_spite_of_keepalives() -> None:
    """Pings and metadata do not feed the idle clock: the attempt is lost, its connection closed, the next call fine."""
    async with clockwork() as house:
        house["a"].scripts.append(stalling(2))
        bot = house.bot()
        failed = await bot.ask(timeout_ms=2000)
        assert brief(failed) == ("idle_timeout", "stream", 1)
        assert (failed["partial"], failed["retryable"], failed["upstream"]) == (True, False, "a")
        assert failed["timing"]["total_us"] == pytest.approx(310_000, abs=10)
        assert (await bot.ask())["type"] == "done"
        assert house["a"].asked[0].connection.gone_at is not None


@virtual
async def test_the_idle_clock_runs_from_content_only() -> None:
    """Before the first content no idle clock runs: a first delta after idle_timeout is an answer."""
    async with clockwork() as house:
        house["a"].default = slowly(0.45)
        assert (await house.bot().ask(idle_timeout_ms=50))["type"] == "done"


@virtual
async def test_an_answer_without_usage_is_concluded() -> None:
    """chat: 50 ms after finish_reason the call is done, its usage estimated; the connection is used again."""

    async def terse(asked: Asked) -> None:
        await asked.send(asked.delta("HOLD"), asked.finish())

    async with clockwork({"a": {"dialect": "chat", "warm_connections": 1, "max_connections": 1}}) as house:
        house["a"].default = terse
        bot = house.bot()
        done = await bot.ask()
        assert (done["type"], done["usage"]["estimated"]) == ("done", True)
        assert done["timing"]["total_us"] == pytest.approx(50_000, abs=10)
        assert (await bot.ask(idle_timeout_ms=10))["type"] == "done", "the end has come: no pause to time out"
        late = await bot.ask(timeout_ms=20)
        assert late["type"] == "done", "complete in time must not be late for want of its usage"
        assert len(house["a"].served) == 1


@pytest.mark.parametrize("code", [None, 1000])
@virtual
async def test_an_answer_that_ends_with_the_connection(code: int | None) -> None:
    """chat: finish_reason, then the connection closes: done promptly, not cut."""

    async def last(asked: Asked) -> None:
        await asked.send(asked.delta("HOLD"), asked.finish())
        if code is None:
            await asked.connection.cut()
        else:
            await asked.connection.close(code)

    async with clockwork({"a": {"dialect": "chat"}}) as house:
        house["a"].default = last
        done = await house.bot().ask()
        assert (done["type"], done["attempts"], done["deltas"]) == ("done", 1, 1)
        assert done["timing"]["total_us"] < 5_000


@pytest.mark.parametrize("dialect", ["responses", "chat"])
@virtual
async def test_a_close_before_the_end_is_a_cut(dialect: str) -> None:
    """Without its end a stream is never `done`, however orderly the close."""
    async with clockwork({"a": {"dialect": dialect}}) as house:
        house["a"].default = closing(1000, pieces=3)
        failed = await house.bot().ask()
        assert brief(failed) == ("upstream_lost", "stream", 1)
        assert failed["partial"] is True


# ------------------------------------------------------------------ phases and parking


@virtual
async def test_a_call_waits_for_its_connection() -> None:
    """No connection yet: the call is accepted at once, parked, and goes out when one stands; queued_us tells."""

    def slow(house: House) -> None:
        house["a"].connects.extend([Delay(0.2)] * 4)

    async with clockwork(prepare=slow, warm=False) as house:
        bot = house.bot()
        done = await bot.ask()
        assert done["type"] == "done"
        assert done["timing"]["queued_us"] == pytest.approx(200_000, abs=1_000)
        assert bot.log[0][0] < 0.01
        assert done["timing"]["overhead_us"] < 1_000


@virtual
async def test_parked_to_the_deadline() -> None:
    """Parked until the deadline: phase queue, no attempt, nothing upstream."""

    def never(house: House) -> None:
        house["a"].connects.extend([Delay(100)] * 9)

    async with clockwork(prepare=never, warm=False) as house:
        failed = await house.bot().ask(timeout_ms=300)
        assert brief(failed) == ("deadline_exceeded", "queue", 0)
        assert failed.get("upstream") is None


@virtual
async def test_no_connection_is_said_at_once() -> None:
    """No target can connect before the deadline: refused on receipt, retryable, with a time."""

    def refused(house: House) -> None:
        house["a"].down = Refuse(429, ((b"retry-after", b"30"),))

    async with clockwork(prepare=refused, warm=False) as house:
        await trio.sleep(0.5)
        failed = await house.bot().ask()
        assert (failed["code"], failed.get("call_id"), failed["retryable"]) == ("no_connection", None, True)
        assert 25_000 < failed["retry_after_ms"] < 45_000


@virtual
async def test_parked_calls_that_cannot_make_it_are_told() -> None:
    """When the wait grows past a parked call's deadline, it is told then and not at its deadline; longer ones stay."""

    def later(house: House) -> None:
        house["a"].connects.extend([Delay(0.1), Delay(0.1)])
        house["a"].down = Refuse(503, ((b"retry-after", b"3"),))

    async with clockwork(prepare=later, warm=False) as house:
        bot = house.bot()
        patient = bot.call(timeout_ms=9000, lane="exit")
        hasty = bot.call(timeout_ms=1000)
        failed = await bot.terminal(hasty)
        assert brief(failed) == ("no_connection", "queue", 0)
        assert trio.current_time() < 0.2
        house["a"].down = None
        assert (await bot.terminal(patient))["type"] == "done"


@virtual
async def test_release_in_order_of_lane_and_deadline() -> None:
    """Parked calls go out by lane, then deadline, as connections come."""

    def slow(house: House) -> None:
        house["a"].connects.append(Delay(0.1))

    async with clockwork({"a": {"warm_connections": 1, "max_connections": 1}}, prepare=slow, warm=False) as house:
        bot = house.bot()
        for prompt, lane, timeout in (
            ("r", "research", 900), ("n2", "entry", 1500), ("n1", "entry", 1000),
            ("x2", "exit", 1900), ("x1", "exit", 1800),
        ):  # fmt: skip
            bot.call(prompt, lane=lane, timeout_ms=timeout)
        await bot.until(lambda: sum(m["type"] == "done" for _, m in bot.log) == 5)
        assert [asked.prompt for asked in house["a"].asked] == ["x1", "x2", "n1", "n2", "r"]


@virtual
async def test_admission_queues_and_sheds() -> None:
    """Beyond max_calls_in_flight calls queue; beyond queue_max the least urgent is shed, `overloaded`, with a time."""
    async with clockwork({"a": {"warm_connections": 2}}, max_calls_in_flight=1, queue_max=1) as house:
        house["a"].default = slowly(0.1)
        bot, urgent = house.bot(), house.bot()
        first, second = bot.call("1"), bot.call("2", lane="research")
        refused = await urgent.ask("3", lane="research")
        assert (refused["code"], refused.get("call_id"), refused["retryable"]) == ("overloaded", None, True)
        third = urgent.call("4", lane="exit")
        shed = await bot.terminal(second)
        assert brief(shed) == ("overloaded", "queue", 0)
        assert (shed["retryable"], shed["retry_after_ms"] > 0) == (True, True)
        done = await urgent.terminal(third)
        assert done["timing"]["queued_us"] == pytest.approx(100_000, abs=10)
        assert (await bot.terminal(first))["type"] == "done"


@virtual
async def test_a_queued_call_meets_its_deadline() -> None:
    """The deadline covers the local queue: phase queue."""
    async with clockwork(max_calls_in_flight=1) as house:
        house["a"].default = slowly(1)
        bot = house.bot()
        bot.call()
        assert brief(await bot.ask(timeout_ms=200)) == ("deadline_exceeded", "queue", 0)


@virtual
async def test_a_deep_queue_that_ends_all_at_once() -> None:
    """A thousand queued calls that can go nowhere end one after the other, not one inside the other."""
    async with clockwork(
        {"a": {"warm_connections": 1, "max_connections": 1}}, max_calls_in_flight=1, queue_max=1200
    ) as house:
        house["a"].default = slowly(0.2)
        bot = house.bot()
        names = [bot.call(timeout_ms=5000) for _ in range(1000)]
        await house["a"].until(lambda: bool(house["a"].asked))
        house["a"].down = Refuse(429, ((b"retry-after", b"60"),))
        await house["a"].cut_all()
        for name in names:
            await bot.terminal(name)
        codes = [bot.of(name, "failed")[0]["code"] for name in names]
        assert codes[1:] == ["no_connection"] * 999
        assert len({at for at, message in bot.log if message["type"] == "failed"}) <= 2


# ------------------------------------------------------------------ refusals on receipt


@virtual
async def test_refusals_tell_no_story() -> None:
    """Unknown route, unsupported option, bad option: `failed` alone, no call_id, nothing sent upstream."""
    async with clockwork() as house:
        bot = house.bot()
        for fields, code in (
            ({"route": "nowhere"}, "unknown_route"),
            ({"options": {"seed": 1}}, "unsupported_option"),
            ({"options": {"no_such": 1}}, "unsupported_option"),
            ({"options": {"temperature": "hot"}}, "invalid_request"),
        ):
            failed = await bot.ask(**fields)  # type: ignore[arg-type]
            assert (failed["code"], failed.get("call_id"), failed["retryable"]) == (code, None, False)
        assert not house["a"].asked
        statistics = house.daemon.dispatcher.statistics()
        assert (statistics.accepted, statistics.refused, statistics.failed) == (0, 4, 0)


@virtual
async def test_what_is_decided_on_receipt_is_refused_not_accepted() -> None:
    """Breaker open, no connection due: `failed` without `accepted` and without call_id, within the same instant."""
    async with clockwork({"a": {"warm_connections": 1}}) as house:
        house["a"].default = erring(500)
        bot = house.bot()
        for _ in range(12):
            await bot.ask(timeout_ms=300)
            if house.breaker("a").state(trio.current_time()) == "open":
                break
        before = trio.current_time()
        asked = len(house["a"].asked)
        refused = await bot.ask()
        assert (refused["code"], refused.get("call_id"), refused["retryable"]) == ("breaker_open", None, True)
        assert refused["retry_after_ms"] > 0
        assert trio.current_time() == before
        assert len(house["a"].asked) == asked


# ------------------------------------------------------------------ cancel, and bots that leave


async def _bring_to(house: House, bot: SimBot, phase: str, *, name: str = "c") -> None:
    """A call in the phase asked for."""
    if phase == "queued":
        house["a"].default = silent
        bot.call("first", id="first")
        bot.call("second", id=name)
        await house["a"].until(lambda: len(house["a"].asked) == 1)
    elif phase == "parked":
        bot.call(id=name)
        await bot.until(lambda: bool(bot.of(name, "accepted")))
    else:
        scripts = {"sent": silent, "streaming": stalling(2), "ending": _ends_without_usage}
        house["a"].default = scripts[phase]
        bot.call(id=name)
        if phase == "sent":
            await house["a"].until(lambda: bool(house["a"].asked))
        else:
            await bot.until(lambda: len(bot.of(name, "delta")) >= (2 if phase == "streaming" else 1))
    await trio.sleep(0.01)


async def _ends_without_usage(asked: Asked) -> None:
    await asked.send(asked.delta("all"), asked.finish())


def _frontend(phase: str) -> dict[str, Any]:
    if phase == "queued":
        return {"max_calls_in_flight": 1}
    if phase == "parked":
        return {"prepare": lambda house: house["a"].connects.extend([Delay(0.2)] * 4), "warm": False}
    return {}


@pytest.mark.parametrize("phase", ["queued", "parked", "sent", "streaming", "ending"])
@virtual
async def test_cancel_in_each_phase(phase: str) -> None:
    """One terminal, `cancelled` (once), and what ran upstream is closed within 100 ms; a second cancel says nothing."""
    async with clockwork({"a": {"dialect": "chat"}}, **_frontend(phase)) as house:
        bot = house.bot()
        await _bring_to(house, bot, phase)
        at = trio.current_time()
        bot.send(type="cancel", id="c")
        bot.send(type="cancel", id="c")
        failed = await bot.terminal("c")
        wire_phase = {"queued": "queue", "parked": "queue", "sent": "first_delta"}.get(phase, "stream")
        sent = phase not in ("queued", "parked")
        assert brief(failed) == ("cancelled", wire_phase, int(sent))
        assert failed.get("upstream") == ("a" if sent else None)
        assert failed["retryable"] is False
        assert trio.current_time() - at < 0.001
        await trio.sleep(0.1)
        if sent:
            gone_at = house["a"].asked[0].connection.gone_at
            assert gone_at is not None
            assert gone_at - at <= 0.1
        else:
            assert all(asked.prompt != "second" for asked in house["a"].asked)
        bot.send(type="cancel", id="first")
        await trio.sleep(1)
        assert len(bot.of("c", "done", "failed")) == 1
        breaker = house.breaker("a").statistics(trio.current_time())
        assert (breaker.failures, breaker.state) == (0, "closed")


@pytest.mark.parametrize("phase", ["queued", "parked", "sent", "streaming", "ending"])
@virtual
async def test_a_bot_that_leaves_in_each_phase(phase: str) -> None:
    """Its upstream work stops within 100 ms, the replacement opens, nothing is counted, nothing is left."""
    async with clockwork({"a": {"dialect": "chat"}}, **_frontend(phase)) as house:
        bot = house.bot()
        await _bring_to(house, bot, phase)
        at = trio.current_time()
        bot.leave()
        await trio.sleep(0.1)
        assert not house.daemon.dispatcher.calls
        for asked in house["a"].asked:
            assert asked.connection.gone_at is not None
            assert asked.connection.gone_at - at <= 0.1
        await trio.sleep(0.5)
        assert len(house["a"].standing) >= 2
        assert not bot.of("c", "done", "failed")
        other = house.bot()
        house["a"].default = answers
        assert (await other.ask())["type"] == "done"
        assert house.breaker("a").statistics(trio.current_time()).failures == 0


@pytest.mark.parametrize("how", ["leaves", "reads nothing"])
@virtual
async def test_a_bot_that_goes_starts_none_of_its_waiting_calls(how: str) -> None:
    """Its calls end together: a place that one of them leaves is not for the next of them, nor is a connection."""
    patient = {"timeout_ms": 9000, "first_delta_timeout_ms": 8000}
    many = {"a": {"warm_connections": 4, "max_connections": 8}}
    async with clockwork(many, max_calls_in_flight=2, stall_timeout_s=1, route=patient) as house:
        house["a"].default = silent
        bot = house.bot()
        bot.fake.capacity = 5
        for lane in ("research", "entry", "exit") * 2:
            bot.call(lane=lane)
        await trio.sleep(0.1)
        if how == "leaves":
            bot.leave()
        await trio.sleep(2)
        assert not house.daemon.dispatcher.calls
        assert house.daemon.pools["a"]._policy.statistics().stopped == 2


@virtual
async def test_the_replacement_of_a_stopped_call_opens_at_once() -> None:
    """A cancel costs a connection and no delay: the spare is back within a few milliseconds, every time."""
    async with clockwork({"a": {"warm_connections": 1, "max_connections": 2}}) as house:
        house["a"].default = silent
        bot = house.bot()
        for _ in range(5):
            name = bot.call()
            count = len(house["a"].asked)
            await house["a"].until(lambda count=count: len(house["a"].asked) > count)  # type: ignore[misc]
            bot.send(type="cancel", id=name)
            await bot.terminal(name)
        assert trio.current_time() < 0.1


@virtual
async def test_cancel_with_another_calls_id_changes_nothing() -> None:
    """`call_id` guards a reused id; unknown ids are silently nothing."""
    async with clockwork() as house:
        bot = house.bot()
        name = bot.call()
        bot.send(type="cancel", id=name, call_id="somebody")
        bot.send(type="cancel", id="unknown")
        assert (await bot.terminal(name))["type"] == "done"
        assert len(bot.log) == 4


@virtual
async def test_duplicate_id_leaves_the_old_call_alone() -> None:
    """Reuse while in flight is refused; after the terminal the id is free."""
    async with clockwork() as house:
        bot = house.bot()
        bot.call(id="x")
        bot.call(id="x")
        await bot.until(lambda: bool(bot.of("x", "done")))
        refused = bot.of("x", "failed")[0]
        assert (refused["code"], refused.get("call_id")) == ("duplicate_id", None)
        assert (await house.bot().ask(id="x"))["type"] == "done"


@virtual
async def test_a_slow_reader_slows_nobody() -> None:
    """A bot whose pipe is full gets its text merged later, its stall ends `slow_reader`; another streams on."""

    async def long(asked: Asked) -> None:
        for number in range(400):
            await trio.sleep(0.02)
            await asked.send(asked.delta(f"{number} "))
        await asked.send(asked.finish())

    async with clockwork({"a": {}}, stall_timeout_s=2, route={"timeout_ms": 20_000}) as house:
        house["a"].default = long
        slow, quick = house.bot(capacity=3, pid=1), house.bot(pid=2)
        slow_call, quick_call = slow.call("slow"), quick.call("quick")
        done = await quick.terminal(quick_call)
        assert (done["type"], done["deltas"]) == ("done", 400)
        slow.fake.take()
        failed = await slow.terminal(slow_call)
        assert brief(failed)[0] == "slow_reader"
        gone = next(asked.connection.gone_at for asked in house["a"].asked if asked.prompt == "slow")
        assert gone is not None
        assert gone < 4
        assert slow.log[-2][1]["type"] == "delta"
        assert len(slow.of(slow_call, "delta")) < 10


# ------------------------------------------------------------------ bugs of our own


@pytest.mark.parametrize("where", ["seek", "finished", "tick"])
@virtual
async def test_a_bug_in_one_calls_step_ends_that_call(where: str) -> None:
    """`internal` for that call, in each of its steps; its upstream work stops, the daemon and other calls go on."""
    async with clockwork(check=False) as house:
        bot = house.bot()
        house["a"].default = slowly(0.05)

        def broken(*_: Any) -> None:
            raise RuntimeError("a bug")

        monkey = pytest.MonkeyPatch()
        other = bot.call("other")
        name = bot.call("broken", timeout_ms=20 if where == "tick" else 2000)
        if where == "seek":
            monkey.setattr(RunningCall, "prompt", broken)
        await bot.until(lambda: bool(bot.of(name)))
        if where != "seek":
            call = next(c for c in house.daemon.dispatcher.calls.values() if c.id == name)
            target = {"finished": (type(house.daemon.dispatcher), "finish_done"), "tick": (RunningCall, "_deadline")}[
                where
            ]
            real = getattr(*target)

            def selective(*args: Any) -> None:
                if call in args:
                    broken()
                real(*args)

            monkey.setattr(*target, selective)
        failed = await bot.terminal(name)
        monkey.undo()
        assert (failed["code"], failed["retryable"]) == ("internal", False)
        if where != "seek":
            assert (await bot.terminal(other))["type"] == "done"
        assert (await bot.ask())["type"] == "done"
        assert not house.daemon.dispatcher.calls
        assert house.daemon.dispatcher.statistics().in_flight == 0
        assert any(entry["event"] == "call.internal_error" for entry in house.log)
