"""Connections in the whole data path, in virtual time: rotation, several calls on one, and how they are given up."""

from __future__ import annotations

import trio

from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import Asked, answers, silent, slowly


@virtual
async def test_rotation_under_load_loses_no_call() -> None:
    """max_age: connections are replaced first and retired idle; calls all along are answered by one attempt each."""
    async with clockwork({"a": {"max_age_s": 10, "warm_connections": 2, "max_connections": 4}}) as house:
        house["a"].default = slowly(0.4)
        bot = house.bot()
        least = 9
        for _ in range(150):
            name = bot.call()
            await trio.sleep(0.2)
            least = min(least, len(house["a"].standing))
        assert (await bot.terminal(name))["type"] == "done"
        ends = [m for _, m in bot.log if m["type"] in ("done", "failed")]
        assert {(end["type"], end["attempts"]) for end in ends} == {("done", 1)}
        assert least >= 2
        lives = [
            served.gone_at - served.opened_at for served in house["a"].served if served.gone_at and served.opened_at
        ]
        assert lives
        assert max(lives) <= 10.6


@virtual
async def test_a_connection_that_says_it_expires_is_replaced_first() -> None:
    """`connection_expiring` ends nothing: the call on it finishes, a replacement opens, then it is closed."""

    async def expiring(asked: Asked) -> None:
        await asked.send(asked.text('{"type":"error","error":{"code":"connection_expiring","message":"soon"}}'))
        await answers(asked)

    async with clockwork({"a": {"warm_connections": 1, "max_connections": 2}}) as house:
        house["a"].scripts.append(expiring)
        bot = house.bot()
        assert (await bot.ask())["attempts"] == 1
        await trio.sleep(0.1)
        old = house["a"].asked[0].connection
        assert old.gone_at is not None
        assert old.close_code == 1000
        assert (await bot.ask())["attempts"] == 1


@virtual
async def test_slots_share_a_connection() -> None:
    """Three calls on one connection: one is cancelled, its frames are discarded, the others go on."""

    async def steadily(asked: Asked) -> None:
        for number in range(10):
            await trio.sleep(0.01)
            await asked.send(asked.delta(f"{asked.prompt}{number} "))
        await asked.send(asked.finish())

    upstream = {"calls_per_connection": 4, "warm_connections": 1, "max_connections": 1}
    async with clockwork({"a": upstream}) as house:
        house["a"].default = steadily
        bot = house.bot()
        names = [bot.call(prompt) for prompt in "xyz"]
        await trio.sleep(0.055)
        bot.send(type="cancel", id=names[1])
        ends = [await bot.terminal(name) for name in names]
        assert [end["type"] for end in ends] == ["done", "failed", "done"]
        assert bot.text(names[0]) == "".join(f"x{n} " for n in range(10))
        assert bot.text(names[1]) == "".join(f"y{n} " for n in range(5))
        assert bot.text(names[2]) == "".join(f"z{n} " for n in range(10))
        ends = [await bot.terminal(name) for name in [bot.call(prompt) for prompt in "pqrs"]]
        assert {end["type"] for end in ends} == {"done"}
        assert len(house["a"].served) <= 2, "a new one only if the cancelled call was the last to run on the first"
        bot.send(type="cancel", id=bot.call("last"))
        await trio.sleep(0.05)
        assert all(served.gone_at is not None for served in house["a"].served[:-1]), "alone it takes it along"


@virtual
async def test_a_lost_connection_loses_every_slot() -> None:
    """Four calls on one connection that is cut: each is judged by itself."""
    upstream = {"calls_per_connection": 4, "warm_connections": 1, "max_connections": 2}
    async with clockwork({"a": upstream}) as house:
        house["a"].default = slowly(0.1)
        bot = house.bot()
        names = [bot.call() for _ in range(4)]
        await house["a"].until(lambda: len(house["a"].asked) == 4)
        await house["a"].cut_all()
        ends = [await bot.terminal(name) for name in names]
        assert {end["type"] for end in ends} == {"done"}, [end for end in ends if end["type"] != "done"]
        assert {end["attempts"] for end in ends} == {2}


@virtual
async def test_an_error_of_the_whole_connection() -> None:
    """An error without a call's name: every call on it is lost and moved, the pool backs off, parked calls wake."""

    async def over(asked: Asked) -> None:
        if len(asked.connection.asked) == 2:
            await trio.sleep(0.01)
            await asked.send(asked.text('{"type":"error","error":{"code":"server_error","message":"all of it"}}'))

    upstream = {"calls_per_connection": 2, "warm_connections": 1, "max_connections": 1}
    async with clockwork({"a": upstream}) as house:
        house["a"].scripts.extend([over, over])
        bot = house.bot()
        names = [bot.call(timeout_ms=9000) for _ in range(3)]
        ends = [await bot.terminal(name) for name in names]
        assert {end["type"] for end in ends} == {"done"}, [end for end in ends if end["type"] != "done"]
        assert house.daemon.pools["a"].statistics().lost == 1


@virtual
async def test_an_upstream_that_ends_every_connection_is_no_hot_loop() -> None:
    """Takes everybody in, answers every call with an error of the connection: connects back off."""

    async def over(asked: Asked) -> None:
        await asked.send(asked.text('{"type":"error","stream_id":"?","error":{"code":"server_error","message":"."}}'))

    upstream = {"warm_connections": 1, "calls_per_connection": 2}
    async with clockwork({"a": upstream}, route={"timeout_ms": 1000}) as house:
        house["a"].default = over
        bot = house.bot()
        for _ in range(30):
            await bot.ask()
            await trio.sleep(0.1)
        assert len(house["a"].dialled_at) < 20


@virtual
async def test_what_a_fault_says_of_the_connection_counts_after_the_deadline_too() -> None:
    """An error frame that is read late: the call ends by its deadline, and its connection is retired all the same."""
    async with clockwork({"a": {"warm_connections": 1}}, check=False) as house:  # the late read is feigned
        house["a"].scripts.append(silent)
        bot = house.bot()
        name = bot.call(timeout_ms=100)
        await house["a"].until(lambda: bool(house["a"].asked))
        (call,) = house.daemon.dispatcher.calls.values()
        connection = call.attempts[0].connection
        frame = b'{"type":"error","error":{"code":"invalid_api_key","message":"."}}'
        connection.receive([frame], [], call.policy.deadline + 0.001)
        house.daemon.pump.flush()
        assert connection.state == "DRAINING"
        assert (await bot.terminal(name))["code"] == "deadline_exceeded"
        await trio.sleep(120)  # the key is tried again now and then
        assert (await bot.ask())["type"] == "done"


@virtual
async def test_another_calls_stream_id() -> None:
    """Content for a stream that no call holds: the connection is retired, no text crosses over."""

    async def crossed(asked: Asked) -> None:
        await asked.send(
            asked.text('{"type":"response.output_text.delta","stream_id":"s3","item_id":"i","delta":"ghost"}')
        )

    upstream = {"calls_per_connection": 4, "warm_connections": 1, "max_connections": 2}
    async with clockwork({"a": upstream}) as house:
        house["a"].scripts.append(crossed)
        bot = house.bot()
        done = await bot.ask()
        assert (done["type"], done["attempts"], bot.text("c1")) == ("done", 2, "HOLD")
        await house["a"].until(lambda: house["a"].asked[0].connection.gone_at is not None)


@virtual
async def test_a_silent_connection_is_found_by_its_keepalive() -> None:
    """No pong, no frame: the connection is given up and replaced, without a call having to find out."""
    async with clockwork({"a": {"warm_connections": 1}}) as house:
        house["a"].standing[0].deaf = True
        await trio.sleep(20)
        assert house["a"].served[0].gone_at is not None
        assert len(house["a"].standing) == 1


@virtual
async def test_a_closed_connection_takes_no_place() -> None:
    """An upstream says Close and leaves TCP open: calls that come meanwhile get new connections, not a wait of 2 s."""

    async def leave_open() -> None: ...

    async with clockwork({"a": {"warm_connections": 2, "max_connections": 4}}) as house:
        closed = list(house["a"].standing)
        for served in closed:
            served.cut = leave_open  # type: ignore[method-assign,assignment]
            await served.close(1011)
        await trio.sleep(8)
        assert house.daemon.pools["a"].counts() == {"READY": 2}
        house["a"].default = silent
        bot = house.bot()
        names = [bot.call() for _ in range(4)]
        await trio.sleep(0.05)
        assert len(house["a"].asked) == 4
        for name in names:
            bot.send(type="cancel", id=name)
            await bot.terminal(name)
        await trio.sleep(1)
        assert all(served.gone_at is not None for served in closed)
