"""The whole daemon in virtual time: `Daemon` with its three seams taken by fakes, and bots that keep a log.

    async with clockwork(upstreams={"a": {}, "b": {}}) as house:
        bot = house.bot()
        name = bot.call("hello", timeout_ms=500)
        terminal = await bot.terminal(name)

`house.check()` looks at the invariants of wire.md over all that every bot was told, and at what is left behind.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
import trio.testing

from sidecar.config import Client, Config, Frontend, Route, Target, Upstream
from sidecar.daemon import Daemon
from sidecar.logs import capture
from sidecar.service.pool import Pool
from tests.fakes.bot_port import FakeBot, FakeBotPort
from tests.fakes.upstream import FakeUpstream

#: CLOCK_MONOTONIC and the wall clock when the virtual clock stands at 0.
MONO_US = 1_000_000_000
WALL_US = 1_800_000_000_000_000


def simulate(main: Callable[[], Awaitable[None]], *, seed: int = 0) -> None:
    """Run in virtual time; the same seed gives the same order of tasks."""
    run: Any = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Makes an async test one that runs in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        simulate(functools.partial(test, *args, **fixtures))

    return run


class LoggingPort(FakeBotPort):
    """Keeps what every bot was sent, with the time, and wakes who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.bots: dict[bytes, SimBot] = {}
        self.change = trio.Event()

    def send(self, routing_id: bytes, payload: bytes, envelope: tuple[bytes, ...] = ()) -> Any:
        """See `BotPort`."""
        result = super().send(routing_id, payload, envelope)
        if result.value == "sent" and (bot := self.bots.get(routing_id)) is not None:
            decoded = json.loads(payload)
            for message in decoded if isinstance(decoded, list) else [decoded]:
                bot.log.append((trio.current_time(), message))
            self.change.set()
            self.change = trio.Event()
        return result


class SimBot:
    """A bot: what it sent and what it was told."""

    def __init__(self, port: LoggingPort, fake: FakeBot) -> None:
        self.port, self.fake = port, fake
        self.log: list[tuple[float, dict[str, Any]]] = []
        self._numbers = itertools.count(1)
        port.bots[fake.routing_id] = self

    def send(self, **fields: Any) -> None:
        """One message."""
        self.fake.send(json.dumps(fields).encode())

    def call(self, prompt: str = "hello", **fields: Any) -> str:
        """Send a call; returns its id."""
        name = str(fields.pop("id", f"c{next(self._numbers)}"))
        self.send(type="call", id=name, input=prompt, **fields)
        return name

    def of(self, name: str, *types: str) -> list[dict[str, Any]]:
        """What was told of one id, of these types."""
        return [m for _, m in self.log if m.get("id") == name and (not types or m["type"] in types)]

    def text(self, name: str) -> str:
        """The text so far, since the last restart."""
        text = ""
        for message in self.of(name, "delta", "restarted"):
            text = "" if message["type"] == "restarted" else text + message["text"]
        return text

    async def terminal(self, name: str) -> dict[str, Any]:
        """Wait for the end of a call."""
        await self.until(lambda: bool(self.of(name, "done", "failed")))
        return self.of(name, "done", "failed")[0]

    async def ask(self, prompt: str = "hello", **fields: Any) -> dict[str, Any]:
        """A call and its end."""
        return await self.terminal(self.call(prompt, **fields))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on the log."""
        while not condition():
            await self.port.change.wait()

    def ended_at(self, name: str) -> float:
        """When its terminal was sent."""
        return next(at for at, m in self.log if m.get("id") == name and m["type"] in ("done", "failed"))

    def leave(self) -> None:
        """Close the connection."""
        self.fake.leave()


class House:
    """The daemon and all around it."""

    def __init__(self, daemon: Daemon, port: LoggingPort, upstreams: dict[str, FakeUpstream]) -> None:
        self.daemon, self.port, self.upstreams = daemon, port, upstreams
        self.bots: list[SimBot] = []
        self.log: list[dict[str, Any]] = []
        self.shutdown = trio.Event()
        self.stopped = trio.Event()

    def bot(self, **fields: Any) -> SimBot:
        """A new bot."""
        bot = SimBot(self.port, self.port.connect(**fields))
        self.bots.append(bot)
        return bot

    def __getitem__(self, name: str) -> FakeUpstream:
        return self.upstreams[name]

    def breaker(self, name: str, model: str = "m") -> Any:
        """A target's breaker."""
        return self.daemon.breakers[name, model]

    async def warm(self, name: str = "a", count: int = 1) -> None:
        """Wait until that many connections stand and are ready."""
        await self.upstreams[name].until(lambda: len(self.upstreams[name].standing) >= count)
        while standing(self.daemon.pools[name]) < count:
            await trio.sleep(0.001)

    def check(self) -> None:
        """The invariants over everything said, and nothing left of calls that ended."""
        for bot in self.bots:
            check_log(bot)
        dispatcher = self.daemon.dispatcher
        statistics = dispatcher.statistics()
        assert statistics.accepted == statistics.done + statistics.failed + len(dispatcher.calls), statistics
        if dispatcher.calls:
            return
        assert (statistics.in_flight, statistics.queued, statistics.parked) == (0, 0, 0), statistics
        for name, pool in self.daemon.pools.items():
            assert pool.waiting() == 0, name
            for connection in pool.connections.values():
                if connection.state in ("READY", "CONNECTING"):
                    assert (connection.taken, connection.active) == (0, 0), connection
                # Only a slot that runs on for nobody may be taken still.
                assert connection.active == 0, connection
            if not self.stopped.is_set():
                free = [connection for connection in pool.connections.values() if connection.free]
                assert all(connection.in_rotation for connection in free)
                assert all(connection in pool.connections.values() for connection in pool._free._queue), pool._free
        for breaker in self.daemon.breakers.values():
            assert breaker._trial is None, breaker
        for call in (entry[4] for heap in dispatcher.parking._heaps.values() for entry in heap):
            assert not call.parked_in, call
        for _, _, item in dispatcher.clocks._heap:
            assert item.ended
        for entry in self.log:
            assert entry["event"] != "call.internal_error", entry


def check_log(bot: SimBot) -> None:
    """Invariants 1, 2 and the shapes of wire.md, over all that one bot was told."""
    open_calls: dict[str, dict[str, Any]] = {}
    ended: set[str] = set()
    for at, message in bot.log:
        kind, name = message["type"], message.get("id")
        if kind in ("welcome", "pong", "report"):
            continue
        if kind == "accepted":
            assert name not in open_calls, message
            assert message["call_id"] not in ended
            open_calls[name] = {"accepted": message, "seq": 0, "restart": False}
        elif kind == "failed" and message.get("call_id") is None:
            assert message.get("phase") is None, message
            assert message.get("attempts", 0) == 0, message
            assert message.get("partial", False) is False
            assert isinstance(message["retryable"], bool)
        elif kind == "delta":
            state = open_calls[name]
            assert message["seq"] == state["seq"], message
            assert message["text"]
            state["seq"] += 1
        elif kind == "restarted":
            open_calls[name]["seq"] = 0
        else:
            state = open_calls.pop(name)
            accepted = state["accepted"]
            assert message["call_id"] == accepted["call_id"]
            ended.add(message["call_id"])
            now_us = MONO_US + at * 1e6
            deadline_us = accepted["deadline_mono_us"]
            assert now_us <= deadline_us + 5, (now_us - deadline_us, message)
            assert message.get("deltas", 0) == state["seq"], message
            timing = message["timing"]
            assert 0 <= timing["overhead_us"] < 2_000, message
            assert timing["queued_us"] <= timing["total_us"]
            if kind == "failed":
                if message["code"] == "deadline_exceeded":
                    assert now_us >= deadline_us - 0.01, message
                assert message.get("partial", False) == (state["seq"] > 0)
                assert message["phase"] in ("queue", "connect", "first_delta", "stream"), message
                assert message["code"] != "internal", message
                if message["retryable"]:
                    assert message["attempts"] <= 1 if "attempts" in message else True, message
            assert message.get("attempts", 0) <= 3


def configure(
    upstreams: dict[str, dict[str, Any]] | None = None,
    *,
    targets: list[str] | None = None,
    route: dict[str, Any] | None = None,
    client: Sequence[Client] = (),
    **frontend: Any,
) -> Config:
    """A configuration of upstreams a, b ...; one route "default" over all of them (or `targets`), model "m".

    `client` are rules as loaded: with uids.
    """
    upstreams = upstreams if upstreams is not None else {"a": {}}
    return Config(
        frontend=Frontend(**{"drain_timeout_s": 2, **frontend}),
        upstream=[
            msgspec.convert(
                {"name": name, "url": f"wss://{name}.test/v1", "dialect": "responses", "warm_connections": 2,
                 "max_connections": 4, **fields},
                Upstream,
            )
            for name, fields in upstreams.items()
        ],
        route=[
            Route(
                name="default",
                targets=[Target(upstream=name, model="m") for name in targets or upstreams],
                **{"timeout_ms": 2000, "first_delta_timeout_ms": 500, "idle_timeout_ms": 300, **(route or {})},
            )
        ],
        client=list(client),
    )  # fmt: skip


@asynccontextmanager
async def clockwork(
    upstreams: dict[str, dict[str, Any]] | None = None,
    *,
    seed: int = 1,
    environ: dict[str, str] | None = None,
    prepare: Callable[[House], Awaitable[None] | None] | None = None,
    warm: bool = True,
    check: bool = True,
    service: Callable[[str, trio.Nursery], Any] = FakeUpstream,
    **settings: Any,
) -> AsyncIterator[House]:
    """A daemon that runs; drained and checked when the block is left.

    Args:
        upstreams, settings: of `configure`.
        seed: of every dice.
        environ: where credentials lie.
        prepare: told before the daemon starts.
        warm: wait until every upstream has its spare connections.
        check: `House.check` at the end.
        service: makes each upstream's other end.
    """
    config = configure(upstreams, **settings)
    port = LoggingPort()
    with capture() as log:
        async with trio.open_nursery() as outside:
            fakes = {upstream.name: service(upstream.name, outside) for upstream in config.upstream}
            daemon = Daemon(
                config,
                port,
                environ=environ or {},
                dial=lambda upstream: fakes[upstream.name].dial,
                clock=trio.current_time,
                mono_us=lambda: MONO_US + int(trio.current_time() * 1e6),
                wall_us=lambda: WALL_US + int(trio.current_time() * 1e6),
                dice=random.Random(seed),
                session="sim",
            )
            house = House(daemon, port, fakes)
            house.log = log
            if prepare is not None and (waiting := prepare(house)) is not None:
                await waiting

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await daemon.run(house.shutdown, task_status=task_status)
                house.stopped.set()

            await outside.start(run)
            if warm:
                for upstream in config.upstream:
                    await house.warm(upstream.name, upstream.warm_connections)
            yield house
            if check and not house.stopped.is_set() and not daemon.dispatcher.calls:
                house.check()
            house.shutdown.set()
            await house.stopped.wait()
            if check:
                house.check()
            for name, fake in fakes.items():
                assert not fake.standing, f"{name}: connections left open"
            outside.cancel_scope.cancel()


def standing(pool: Pool) -> int:
    """Its connections that carry a call, or could."""
    counts = pool.counts()
    return counts.get("READY", 0) + counts.get("BUSY", 0)


def brief(failed: dict[str, Any]) -> tuple[Any, ...]:
    """code, phase, attempts."""
    return failed["code"], failed.get("phase"), failed.get("attempts", 0)


def counted(house: House, name: str) -> int:
    """Failures that the breaker of an upstream has counted in its window."""
    failures: int = house.breaker(name).statistics(trio.current_time()).failures
    return failures
