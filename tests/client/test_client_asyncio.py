"""`AsyncClient` against a scripted daemon over real ipc. Each test runs a loop of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.client import AsyncClient
from sidecar.errors import CallFailed, DaemonGone, SidecarError
from tests.fakes.fake_daemon import FakeDaemon

SIDES = ["BUY", "SELL", "HOLD"]
#: Against "never". How exact it is, benchmarks say, which compare: a test only asks whether the caller was let go, on a
#: machine where a process may be held for a second.
LATE_S = 10.0


def script(*steps: Any) -> str:
    """The prompt that makes the fake daemon do these steps."""
    return json.dumps(steps)


def with_client(daemon: FakeDaemon, body: Callable[[AsyncClient], Awaitable[None]]) -> None:
    """Run a body with a client, in a loop that ends by itself."""

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client, asyncio.timeout(30):
            await body(client)

    asyncio.run(main())


def test_many_streams_at_once(daemon: FakeDaemon) -> None:
    """Each call its own text, in order, with the terminal after."""

    async def one(client: AsyncClient, number: int) -> str:
        steps = script("accept", *({"delta": f"{number}.{piece} "} for piece in range(20)), {"done": {}})
        async with client.stream(steps, timeout_ms=20_000) as stream:
            text = "".join([piece async for piece in stream])
        assert stream.answer.text == text
        return text

    async def body(client: AsyncClient) -> None:
        texts = await asyncio.gather(*(one(client, number) for number in range(100)))
        assert texts == ["".join(f"{number}.{piece} " for piece in range(20)) for number in range(100)]

    with_client(daemon, body)


def test_a_batch_wakes_a_task_once(daemon: FakeDaemon) -> None:
    """A hundred deltas in one payload: one wake-up for whoever waits."""

    async def body(client: AsyncClient) -> None:
        await client.ping()
        waits = 0
        changed = client._pump.changed

        async def counted(item: Any) -> None:
            nonlocal waits
            waits += 1
            await changed(item)

        client._pump.changed = counted  # type: ignore[method-assign]
        steps = script({"batch": ["accept", *({"delta": "x"} for _ in range(100)), {"done": {}}]})
        async with client.stream(steps, timeout_ms=20_000) as stream:
            assert len([piece async for piece in stream]) == 100
        assert waits == 1

    with_client(daemon, body)


def test_choose_and_its_reasons(daemon: FakeDaemon) -> None:
    """Answered, no choice, silent, dead, wrong arguments, closed: always a choice."""

    async def body(client: AsyncClient) -> None:
        async def reason(prompt: Any, timeout_ms: Any = 5000) -> str:
            return (await client.choose(prompt, SIDES, default="HOLD", timeout_ms=timeout_ms)).reason

        assert await client.choose("sell", SIDES, default="HOLD", timeout_ms=5000) == "SELL"
        assert await reason("I would BUY") == "not_a_choice"
        assert await reason(script("accept", {"done": {"text": "BUY", "finish": "length"}})) == "incomplete"
        assert await reason("p", -3) == "invalid_arguments"
        assert await reason("p", None) == "invalid_arguments"
        assert await reason(object()) == "invalid_arguments"
        started = time.monotonic()
        assert await reason(script("accept", "silence"), 100) == "deadline_exceeded"
        assert time.monotonic() - started < 0.1 + LATE_S
        assert await reason(script("accept", "die"), 20_000) == "daemon_lost"
        client.close()
        assert await reason("p") == "unusable_client"

    with_client(daemon, body)


def test_a_lost_daemon_is_told_at_once_and_the_next_one_found(daemon: FakeDaemon) -> None:
    """`daemon_lost` with the text so far for every open call; then it works again, and nothing travels twice."""

    async def body(client: AsyncClient) -> None:
        prompt = script("accept", {"delta": "BU"}, "silence")
        handles = [client.submit(prompt, timeout_ms=60_000) for _ in range(10)]
        for handle in handles:
            assert await anext(handle) == "BU"
        daemon.kill()
        for result in await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True):
            assert isinstance(result, DaemonGone)
            assert (result.code, result.text) == ("daemon_lost", "BU")
        daemon.start()
        assert (await client.ask("again", timeout_ms=20_000)).text == "again"

    with_client(daemon, body)
    ids = [call["id"] for call in daemon.received()]
    assert len(ids) == len(set(ids)) == 11


def test_a_stopped_daemon_does_not_move_the_deadline(daemon: FakeDaemon) -> None:
    """SIGSTOP: everybody gets the default in time."""

    async def body(client: AsyncClient) -> None:
        await client.ping()
        daemon.signal(signal.SIGSTOP)
        started = time.monotonic()
        choices = await asyncio.gather(
            *(client.choose("BUY", SIDES, default="HOLD", timeout_ms=100) for _ in range(200))
        )
        assert time.monotonic() - started < 0.1 + LATE_S
        assert {choice.reason for choice in choices} == {"deadline_exceeded"}
        daemon.signal(signal.SIGCONT)
        assert await client.choose("BUY", SIDES, default="HOLD", timeout_ms=20_000) == "BUY"

    with_client(daemon, body)


def test_a_cancelled_task_cancels_its_call(daemon: FakeDaemon) -> None:
    """In ask, choose and a stream; CancelledError passes."""

    async def body(client: AsyncClient) -> None:
        silent = script("accept", "silence")

        async def streaming() -> None:
            async with client.stream(silent, timeout_ms=20_000) as stream:
                async for _ in stream:
                    pass

        tasks = [
            asyncio.create_task(client.ask(silent, timeout_ms=20_000)),
            asyncio.create_task(client.choose(silent, SIDES, default="HOLD", timeout_ms=20_000)),
            asyncio.create_task(streaming()),
        ]
        await client.ping()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 3
        await client.ping()
        assert len(daemon.received("cancel")) == 3

    with_client(daemon, body)


def test_submit_poll_and_cancel(daemon: FakeDaemon) -> None:
    """`poll` looks, several tasks may wait for one call, `cancel` reaches the daemon."""

    async def body(client: AsyncClient) -> None:
        await client.ping()
        handle = client.submit(script("accept", "silence"), timeout_ms=300)
        assert handle.poll() is None
        handle.cancel()
        results = await asyncio.gather(handle.result(), handle.result(), return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["TimedOut", "TimedOut"]
        with pytest.raises(CallFailed):
            handle.poll()
        assert (await client.probe()).ready

    with_client(daemon, body)


def test_bursts_beyond_the_high_water_mark(daemon: FakeDaemon) -> None:
    """More than ZeroMQ takes at once: the rest follows as there is room, and no wake-up is lost."""

    async def body(client: AsyncClient) -> None:
        answers = await asyncio.gather(*(client.ask("x" * 3000, timeout_ms=25_000) for _ in range(2000)))
        assert len(answers) == 2000

    with_client(daemon, body)


def test_a_missing_daemon_is_named(no_daemon: FakeDaemon) -> None:
    """At once, with ENOENT; found when it comes."""

    async def body(client: AsyncClient) -> None:
        with pytest.raises(DaemonGone, match="ENOENT"):
            await client.ask("p", timeout_ms=60_000)
        with pytest.raises(DaemonGone, match="ENOENT"):
            await client.ping(timeout_ms=60_000)
        no_daemon.start()
        assert (await client.ask("there", timeout_ms=20_000)).text == "there"

    with_client(no_daemon, body)


def test_one_loop_at_a_time(daemon: FakeDaemon) -> None:
    """A client made outside a loop joins the first one it is used in, and may move on when that one has ended."""
    client = AsyncClient(daemon.endpoint)
    assert asyncio.run(client.ask("one", timeout_ms=20_000)).text == "one"
    assert asyncio.run(client.ask("two", timeout_ms=20_000)).text == "two"

    async def elsewhere() -> None:
        def in_thread() -> str:
            try:
                asyncio.run(client.ask("three", timeout_ms=1000))
            except SidecarError as problem:
                return str(problem)
            return ""

        await client.ping()
        assert "another event loop" in await asyncio.to_thread(in_thread)

    asyncio.run(elsewhere())
    client.close()
    client.close()
    with pytest.raises(SidecarError, match="closed"):
        asyncio.run(client.ask("p"))


def test_a_fork_must_make_its_own(daemon: FakeDaemon) -> None:
    """The child is told; the parent goes on."""
    client = AsyncClient(daemon.endpoint)
    asyncio.run(client.ask("one", timeout_ms=20_000))
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(client.ask("p"))
        except SidecarError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert asyncio.run(client.ask("two", timeout_ms=20_000)).text == "two"
    client.close()
