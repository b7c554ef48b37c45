"""THE composition root: builds every object, holds the one nursery tree, and knows the order in which it all ends.

    sockets
    ├── frontend, pulse          last to stop, so that every terminal still leaves
    └── upstreams
        ├── pump                 the bytes of all connections
        ├── clocks
        └── pools                one per upstream; in each a task per connect, none per connection

Drain: new calls are answered `draining`; calls in flight have until `drain_timeout_s`; what is left then ends
`halted`, or `draining` if nothing of it was sent upstream; connections are closed gracefully; what bots have not read
yet gets a moment to leave. Sockets, signals, systemd and the operators' endpoint are `process`'s.

The three seams of a simulation are the arguments of `Daemon`: the bots' port, the dial, and clock and dice.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from sidecar.config import Config
from sidecar.core.halt import in_order
from sidecar.core.health import RouteHealth, UpstreamHealth, report
from sidecar.logs import get_logger
from sidecar.metrics import Metrics
from sidecar.service import orders, shown
from sidecar.service.accounting import Accounting
from sidecar.service.brakes import Brakes
from sidecar.service.clients import Clients
from sidecar.service.control import Handler, show
from sidecar.service.dispatcher import Dispatcher
from sidecar.service.frontend import Frontend
from sidecar.service.pool import Pool
from sidecar.service.pulse import Pulse
from sidecar.service.routes import RouteRuntime
from sidecar.service.turn import Turn
from sidecar.transport.bot_port import BotPort
from sidecar.transport.pump import Pump
from sidecar.upstreams import Dial, Upstreams
from sidecar.version import __version__
from sidecar.wire import Limits, Report

#: Seconds that a bot has to read its last messages when the daemon goes.
FAREWELL: Final = 1.0


class Daemon:
    """Everything, wired.

    Args:
        config: checked.
        port: the bots' socket, bound, or a fake.
        environ: of the process: where credentials lie.
        dial: upstream -> how to get a connected byte stream to it.
        clock: the loop's time, seconds.
        mono_us, wall_us: CLOCK_MONOTONIC and wall clock, microseconds.
        dice: for every jitter and every id.
        session: changes with every start.
        halt_file: which lanes an operator has halted, kept over restarts; None: in memory only.
    """

    def __init__(
        self,
        config: Config,
        port: BotPort,
        *,
        environ: dict[str, str],
        dial: Dial,
        clock: Callable[[], float],
        mono_us: Callable[[], int],
        wall_us: Callable[[], int],
        dice: random.Random,
        session: str,
        halt_file: Path | None = None,
    ) -> None:
        self.config = config
        self.session = session
        self.metrics = Metrics()
        self.log = get_logger()
        self.pulse = Pulse(clock)
        self.drain = trio.Event()
        self._clock = clock
        self._mono_us = mono_us
        self._started_at = clock()
        jitter = dice.random
        turn = Turn(clock)
        self.clients = Clients(config, jitter=jitter)
        self.pump = Pump(flush=turn.flush, clock=clock)
        routes: dict[str, RouteRuntime] = {}
        self.dispatcher = Dispatcher(
            routes,
            config.frontend,
            clock=clock,
            mono_us=mono_us,
            wall_us=wall_us,
            jitter=jitter,
            new_call_id=_call_ids(wall_us, dice),
            session=session,
            outbound=turn,
            accounting=Accounting(self.metrics, self.log, frozenset(route.name for route in config.route), wall_us),
            clients=self.clients,
        )
        self.brakes = Brakes(halt_file, end=self.dispatcher.end_lanes, log=self.log)
        self.dispatcher.attach(self.brakes)
        upstreams = Upstreams(
            config,
            environ=environ,
            dial=dial,
            clock=clock,
            jitter=jitter,
            turn=turn,
            pump=self.pump,
            dispatcher=self.dispatcher,
            log=self.log,
        )
        self.upstreams = upstreams
        self.pools, self.breakers = upstreams.pools, upstreams.breakers
        self.budgets, self.health = upstreams.budgets, upstreams.health
        routes.update(upstreams.routes(config.route))
        frontend = config.frontend
        self.frontend = Frontend(
            port,
            self.dispatcher,
            session=session,
            version=__version__,
            limits=Limits(
                max_message_bytes=frontend.max_message_bytes,
                max_calls_in_flight=frontend.max_calls_in_flight,
                queue_max=frontend.queue_max,
            ),
            routes=[route.name for route in config.route],
            clock=clock,
            mono_us=mono_us,
            wall_us=wall_us,
            report=self.report,
            max_message_bytes=frontend.max_message_bytes,
            exit_reserved=frontend.reserved_for_exit,
            stall_timeout=frontend.stall_timeout_s,
            jitter=jitter,
        )
        turn.attach(self.frontend, self.dispatcher.clocks)

    # ------------------------------------------------------------------ life

    async def run(self, shutdown: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `shutdown` is set, then drain. Reports started once the frontend reads its port, warm or not."""
        async with trio.open_nursery() as sockets:
            await sockets.start(self.frontend.run)
            sockets.start_soon(self.pulse.run)
            await sockets.start(self.brakes.run)
            async with trio.open_nursery() as upstreams:
                await upstreams.start(self.pump.run)
                await upstreams.start(self.dispatcher.clocks.run)
                for pool in self.pools.values():
                    await upstreams.start(pool.run)
                upstreams.start_soon(self._until, shutdown)
                task_status.started()
                await self.drain.wait()
                await self._drain()
                upstreams.cancel_scope.cancel()
            with trio.move_on_after(FAREWELL):
                await self.frontend.farewell()
            sockets.cancel_scope.cancel()

    async def _until(self, shutdown: trio.Event) -> None:
        await shutdown.wait()
        self.drain.set()

    def request_drain(self) -> None:
        """An operator's word, with the effect of SIGTERM."""
        self.drain.set()

    async def _drain(self) -> None:
        dispatcher = self.dispatcher
        dispatcher.draining = True
        self.log.info("drain.started", in_flight=len(dispatcher.calls), timeout_s=self.config.frontend.drain_timeout_s)
        with trio.move_on_after(self.config.frontend.drain_timeout_s):
            await dispatcher.drained()
        if dispatcher.calls:
            self.log.warning("drain.timed_out", in_flight=len(dispatcher.calls))
            dispatcher.fail_all()
        async with trio.open_nursery() as closing:
            for pool in self.pools.values():
                closing.start_soon(pool.close)

    # ------------------------------------------------------------------ what it says of itself

    def report(self) -> Report:
        """Health, from snapshots."""
        statistics = self.dispatcher.statistics()
        now = self._clock()
        return report(
            version=__version__,
            session=self.session,
            pid=os.getpid(),
            uptime=now - self._started_at,
            draining=self.dispatcher.draining,
            halted=in_order(self.brakes.halted),
            in_flight=statistics.in_flight,
            queued=statistics.queued,
            queue_max=self.config.frontend.queue_max,
            loop_lag=self.pulse.lag,
            routes=[
                RouteHealth(name=route.name, targets=[(target.pool.name, target.model) for target in route.targets])
                for route in self.dispatcher.routes.values()
            ],
            upstreams=[self._health_of(pool, now) for pool in self.pools.values()],
        )

    def _health_of(self, pool: Pool, now: float) -> UpstreamHealth:
        snapshot = pool.statistics()
        return UpstreamHealth(
            name=pool.name,
            upstream=pool.upstream.name,
            transport=pool.upstream.transport,
            connections=snapshot.connections,
            warm=pool.upstream.warm_connections,
            breakers={
                model: breaker.state(now) for (name, model), breaker in self.breakers.items() if name == pool.name
            },
            refused=snapshot.credential_refused,
            disabled=not snapshot.enabled,
            last_error=snapshot.last_error,
            rtt=snapshot.rtt,
        )

    def handlers(self) -> dict[str, Handler]:
        """What operators may ask at the control endpoint: message type -> its handler."""
        return {
            "show": show(shown.sections(self, self._clock, self.clients)),
            **orders.halting(self.brakes),
            **orders.switching(self.upstreams.switches(), self.config.route, self.log),
            **orders.draining(
                self.request_drain, lambda: len(self.dispatcher.calls), self.config.frontend.drain_timeout_s
            ),
        }


def _call_ids(wall_us: Callable[[], int], dice: random.Random) -> Callable[[], str]:
    """ULIDs: 48 bits of wall-clock milliseconds, 80 of dice, in Crockford's base 32 (github.com/ulid/spec)."""
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    pairs = [a + b for a in alphabet for b in alphabet]
    head_of, head = -1, ""  # the first ten characters are a millisecond's

    def new() -> str:
        nonlocal head_of, head
        millisecond = wall_us() // 1000
        if millisecond != head_of:
            head_of, head = millisecond, "".join([pairs[millisecond >> shift & 1023] for shift in range(40, -1, -10)])
        bits = dice.getrandbits(80)
        high, low = bits >> 40, bits & 0xFF_FFFF_FFFF
        return (
            f"{head}{pairs[high >> 30]}{pairs[high >> 20 & 1023]}{pairs[high >> 10 & 1023]}{pairs[high & 1023]}"
            f"{pairs[low >> 30]}{pairs[low >> 20 & 1023]}{pairs[low >> 10 & 1023]}{pairs[low & 1023]}"
        )

    return new


def real_clocks() -> dict[str, Any]:
    """Clock and dice of real life: the keyword arguments of `Daemon`.

    trio's clock has an offset of its own and never leaves the process; instants for bots are CLOCK_MONOTONIC.
    """
    return {
        "clock": trio.current_time,
        "mono_us": lambda: time.monotonic_ns() // 1000,
        "wall_us": lambda: time.time_ns() // 1000,
        "dice": random.Random(secrets.randbits(128)),
        "session": secrets.token_hex(8),
    }
