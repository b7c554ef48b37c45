"""A run of one schedule: the whole daemon in the middle, and around it what `schedule` says.

`Daemon` is the product's own: frontend, dispatcher, pools, codecs, WebSockets and HTTP/1.1, and their wires. Exchanged
are the bots' port, the dial, the clock and the dice.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio
from msgspec import Struct

from sidecar import logs
from sidecar.config import Client, Config, CredentialSource, Frontend, Route, Upstream
from sidecar.daemon import Daemon
from sidecar.service import orders, pulse
from sidecar.transport.exchange import IDLE_ENOUGH
from tests.simulation.bots import Bot, CallRecord, SimPort
from tests.simulation.engine import Engine, run_virtual
from tests.simulation.invariants import Broken, Watch
from tests.simulation.request import Request
from tests.simulation.schedule import Blow, BotPlan, Deed, Phase, Schedule, draw
from tests.simulation.service import Service

#: CLOCK_MONOTONIC and the wall clock when a run begins.
MONO_US = 1_000_000_000
WALL_US = 1_800_000_000_000_000
#: Seconds within which, once everything is well, a call is answered by each upstream again. A breaker stays open for
#: at most 30 s, a connect waits for at most 10 s and is tried for 10; a refused credential is tried every 5 minutes.
RECOVERY = 75.0
RECOVERY_REFUSED = 330.0

#: States of a call that is not over.
OPEN = ("sent", "accepted")


class Result(Struct, kw_only=True):
    """What came of a run."""

    seed: int
    broken: list[Broken]
    counts: Counter[str]
    digest: str = ""
    trace: list[str] = []
    events: int = 0
    virtual_s: float = 0.0


class _Log(list[dict[str, Any]]):
    """What the daemon logs, with its instant, told on as it is said."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def append(self, entry: dict[str, Any]) -> None:
        """See `logs.capture`."""
        self._world.logged(entry)


class World:
    """See the module. `play` is what to call."""

    def __init__(self, schedule: Schedule, *, tracing: bool) -> None:
        self.schedule, self.seed, self.tracing = schedule, schedule.seed, tracing
        self.engine = Engine()
        self.counts: Counter[str] = Counter()
        self.watch = Watch(self)
        self.requests: list[Request] = []
        self.records: dict[str, CallRecord] = {}
        self.port: SimPort | None = None
        self.daemon: Daemon | None = None
        self.services: dict[str, Service] = {}
        self.environ: dict[str, str] = {}
        self.trace: list[str] = []
        self.config = _configuration(schedule)
        self.started_at = trio.current_time()
        self.calm_at = self.started_at + schedule.calm_at
        self.refused_credential = False
        self._shutdown = trio.Event()
        self._scope = trio.CancelScope()
        self._dead = trio.Event()
        self._generation = 0
        #: set, and replaced, whenever a call of a bot is over
        self.settled = trio.Event()

    # ------------------------------------------------------------------ time, trace

    def mono_us(self) -> int:
        """CLOCK_MONOTONIC."""
        return MONO_US + int((trio.current_time() - self.started_at) * 1e6)

    def wall_us(self) -> int:
        """The wall clock."""
        return WALL_US + int((trio.current_time() - self.started_at) * 1e6)

    def note(self, line: str) -> None:
        """One line of the trace."""
        self.trace.append(f"{trio.current_time() - self.started_at:10.6f} {line}")

    def logged(self, entry: dict[str, Any]) -> None:
        """The daemon said something."""
        event = entry["event"]
        if self.tracing and event != "call":
            self.note("LOG " + " ".join(f"{key}={value}" for key, value in entry.items()))
        self.counts["log " + event] += 1
        if event == "credential.refused":
            self.refused_credential = True
        self.watch.logged(entry)

    # ------------------------------------------------------------------ a run

    async def run(self) -> None:
        """From the first start of the daemon to its last end."""
        schedule, engine = self.schedule, self.engine
        for plan in schedule.upstreams:
            service = self.services[plan.name] = Service(self, plan.name, plan)
            self.environ[_variable(plan.name)] = plan.key
            for phase in plan.phases[1:]:
                engine.at(self.started_at + phase.at, functools.partial(self._phase, service, phase))
            for blow in plan.blows:
                engine.at(self.started_at + blow.at, functools.partial(self._blow, service, blow))
        engine.at(self.calm_at, self._calm)
        bots = [Bot(self, plan) for plan in schedule.bots]
        async with trio.open_nursery() as outside:
            outside.start_soon(engine.run)
            await self._up(outside)
            for bot in bots:
                engine.start(bot.life())
            for deed in schedule.deeds:
                await trio.sleep_until(self.started_at + deed.at)
                await self._deed(deed, bots, outside)
            await trio.sleep_until(self.calm_at)
            await self._order("resume", ["exit", "entry", "research"])
            await self._order("enable", list(self.services))
            await self._quiet(bots)
            self.watch.at_rest()
            if any(service.plan.late for service in self.services.values()):
                await trio.sleep(IDLE_ENOUGH)  # what stands now is closed under the next request
            await self._recovers()
            self.watch.at_rest()
            await self._down(bots, kill=False)
            engine.stopped = True
            outside.cancel_scope.cancel()
        self.watch.at_the_end()

    async def _up(self, outside: trio.Nursery) -> None:
        """Start a daemon."""
        self._generation += 1
        self.port = port = SimPort(self)
        self._shutdown, self._dead, self._scope = trio.Event(), trio.Event(), trio.CancelScope()
        self.daemon = daemon = Daemon(
            self.config,
            port,
            environ=self.environ,
            dial=lambda upstream: self.services[upstream.name].dialler(upstream.transport),
            clock=trio.current_time,
            mono_us=self.mono_us,
            wall_us=self.wall_us,
            dice=random.Random(f"daemon {self.seed} {self._generation}"),
            session=f"s{self._generation}",
        )

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with self._scope:
                await daemon.run(self._shutdown, task_status=task_status)
            self._dead.set()

        self.watch.daemon_starts()
        await outside.start(run)

    async def _down(self, bots: list[Bot], *, kill: bool) -> None:
        """End the daemon: by a drain, or at once."""
        if self.tracing:
            self.note("daemon is " + ("killed" if kill else "drained"))
        if kill:
            for bot in bots:
                bot.disconnect()
            self.port = None
            self._scope.cancel()
        else:
            self._shutdown.set()
        await self._dead.wait()
        self.watch.daemon_ended(killed=kill)
        self.port = self.daemon = None
        for bot in bots:
            bot.disconnect()

    async def _deed(self, deed: Deed, bots: list[Bot], outside: trio.Nursery) -> None:
        self.counts["operator " + deed.what] += 1
        if deed.what in ("drain", "kill"):
            await self._down(bots, kill=deed.what == "kill")
            await trio.sleep(deed.wait)
            await self._up(outside)
        else:
            await self._order(deed.what, list(deed.names))

    async def _order(self, what: str, names: list[str]) -> None:
        """What an operator says at the control endpoint."""
        daemon = self.daemon
        assert daemon is not None
        if self.tracing:
            self.note(f"operator: {what} {names}")
        if what in ("halt", "resume"):
            orders.halting(daemon.brakes)[what]({"type": what, "lanes": names, "reason": "simulated"})
        else:
            switch = orders.switching(daemon.upstreams.switches(), self.config.route, daemon.log)["upstream"]
            for name in names:
                switch({"type": "upstream", "name": name, "enabled": what == "enable"})
        self.watch.ordered(what, names)
        if what == "halt":
            await trio.sleep(0.005)
            self.watch.halt_is_over(names)

    def _phase(self, service: Service, phase: Phase) -> None:
        if self.tracing:
            self.note(f"{service.name} is now {phase}")
        service.mood, service.toxics = phase.mood, phase.toxics
        service.connects, service.fallback_connects = phase.connects, phase.fallback_connects

    def _blow(self, service: Service, blow: Blow) -> None:
        if self.tracing:
            self.note(f"{service.name} {blow}")
        self.counts["blow " + blow.what] += 1
        service.blame(blow.what)
        if blow.what in ("cut", "reset"):
            service.cut_all("eof" if blow.what == "cut" else "reset")
        elif blow.what == "go_away":
            service.go_away(1001, "ignored")
        elif blow.what == "silence":
            service.go_silent()
        elif blow.what == "rotate":
            key = f"key-{service.name}-{len(service.keys)}"
            old = service.keys.copy()
            service.keys.add(key)
            self.environ[_variable(service.name)] = key
            self.engine.after(blow.wait, functools.partial(self._expire, service, old))

    def _expire(self, service: Service, old: set[str]) -> None:
        service.keys = {key for key in service.keys if key not in old} | {f"retired-{len(old)}"}
        for session in service.standing.copy():
            if session.key in old and random.Random(f"{self.seed} {session.number}").random() < 0.5:
                session.close(1008, "auth")

    def _calm(self) -> None:
        """Everything is well from here on."""
        if self.tracing:
            self.note("calm")
        for service in self.services.values():
            service.calm()

    # ------------------------------------------------------------------ how it ends

    async def _quiet(self, bots: list[Bot]) -> None:
        """Wait until the bots have played and every call has its terminal; deadlines bound that."""
        with trio.move_on_at(self.calm_at + 20.0) as patience:
            while not all(bot.done for bot in bots) or any(r.state in OPEN for r in self.records.values()):
                self.settled = trio.Event()
                with trio.move_on_after(0.5):  # a bot may be done without a call of its own
                    await self.settled.wait()
        if patience.cancelled_caught:
            self.watch.break_("liveness", "calls go on long after their deadlines, or a bot cannot connect")
        await trio.sleep(0.15)  # closes of stopped work, last flushes

    async def _recovers(self) -> None:
        """Each upstream is used again, by fresh calls of a fresh bot, and by the way that is preferred."""
        calm_for = trio.current_time()
        until = calm_for + (RECOVERY_REFUSED if self.refused_credential else RECOVERY)
        prober = Bot(
            self,
            BotPlan(number=99, uid=4242, pid=99, encoding="json", batch=False, request=False, capacity=None,
                    reads_every=0.0, starts_at=0.0, steps=[]),
        )  # fmt: skip
        prober.connect()
        patient = {"timeout_ms": 3000, "idle_timeout_ms": 1000, "first_delta_timeout_ms": 2000}
        left = [f"only-{name}" for name in self.services]
        pause = 0.0
        while left and trio.current_time() < until:
            await trio.sleep(pause)
            pause = min(2.0, 0.1 + 1.5 * pause)
            asked = {
                route: prober.call(f"p{len(prober.records)}", {"route": route, "lane": "research", **patient})
                for route in left
            }
            await self._until_settled(list(asked.values()))
            left = [route for route, record in asked.items() if not self._serves(route, record)]
        if left:
            last = [record.terminal for record in prober.records[-len(left) :]]
            self.watch.break_("liveness", f"no answer on {left} though all is well since {calm_for}: {last}")
        elif trio.current_time() - calm_for > 1.0:
            self.counts["recovered late"] += 1
        # A connection of the bad times may still stand, and be found out by this call.
        fresh = [prober.call("fresh-0", patient)]
        while not left:
            await self._until_settled(fresh[-1:])
            last_one = fresh[-1].terminal
            if last_one is not None and last_one["type"] == "done":
                break
            if trio.current_time() >= until:
                self.watch.break_("liveness", f"a fresh call is not answered though all is well: {last_one}")
                break
            await trio.sleep(0.5)
            fresh.append(prober.call(f"fresh-{len(fresh)}", patient))
        assert prober.connection is not None
        prober.connection.fake.leave()
        prober.disconnect()

    def _serves(self, route: str, record: CallRecord) -> bool:
        """The call of this route was answered, and by the way that is preferred."""
        if record.terminal is None or record.terminal["type"] != "done":
            return False
        name = route.removeprefix("only-")
        if not self.services[name].plan.config["warm_connections"]:
            return True  # who keeps none ready has but the connections of the other way free
        return self.watch.by_tag[record.tag][-1].session.pool == name

    async def _until_settled(self, records: list[CallRecord]) -> None:
        with trio.move_on_after(20.0):
            while any(record.state in OPEN for record in records):
                self.settled = trio.Event()
                await self.settled.wait()


def _variable(name: str) -> str:
    return f"KEY_{name.upper()}"


def _configuration(schedule: Schedule) -> Config:
    """One route "default" over all upstreams, and one over each alone."""
    targets = [{"upstream": plan.name, "model": f"m-{plan.name}"} for plan in schedule.upstreams]
    routes = [msgspec.convert({"name": "default", "targets": targets, **schedule.route}, Route)]
    for target in targets:
        only = {"name": f"only-{target['upstream']}", "targets": [target], **schedule.route}
        routes.append(msgspec.convert(only, Route))
    upstreams = [msgspec.convert({"name": plan.name, **plan.config}, Upstream) for plan in schedule.upstreams]
    upstreams = [
        msgspec.structs.replace(upstream, credential=CredentialSource(env=_variable(upstream.name)))
        for upstream in upstreams
    ]
    return Config(
        frontend=msgspec.convert(schedule.frontend, Frontend),
        upstream=upstreams,
        route=routes,
        client=[msgspec.convert(client, Client) for client in schedule.clients],
    )


@contextmanager
def _logging(world: World) -> Iterator[None]:
    before, logs._State.captured = logs._State.captured, _Log(world)
    interval, pulse.INTERVAL = pulse.INTERVAL, 60.0  # type: ignore[misc]  # virtual time knows no lag to measure
    try:
        yield
    finally:
        logs._State.captured = before
        pulse.INTERVAL = interval  # type: ignore[misc]


def play(seed: int | Schedule, *, tracing: bool = False) -> Result:
    """Run the schedule of a seed (or one given). A crash of the daemon is a broken invariant like any other."""
    schedule = draw(seed) if isinstance(seed, int) else seed
    worlds: list[World] = []

    async def main() -> None:
        world = World(schedule, tracing=tracing)
        worlds.append(world)
        with _logging(world):
            await world.run()

    crash: BaseException | None = None
    try:
        run_virtual(main, seed=schedule.seed)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        crash = error
    if crash is not None and not worlds:
        raise crash  # the schedule itself is wrong
    world = worlds[0]
    if crash is not None:
        world.watch.crashed(crash)
    digest = hashlib.blake2b("\n".join(world.trace).encode(), digest_size=8).hexdigest() if tracing else ""
    return Result(
        seed=schedule.seed,
        broken=world.watch.broken,
        counts=world.counts,
        digest=digest,
        trace=world.trace,
        events=world.engine.events,
        virtual_s=world.watch.last_at - world.started_at,
    )
