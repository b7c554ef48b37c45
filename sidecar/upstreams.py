"""The upstreams' part of the composition root: from the configuration to pools, breakers, budgets and routes.

What an upstream has once, whatever ways lead there: its credential's patience and its concurrency limit (`Gate`), its
retry budget, what bots have done there, what it cannot serve. What each way has for itself: connections, breakers,
times to first delta.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import trio

from sidecar.config import Config, Route, Upstream
from sidecar.config.ways import Way, slots_of, ways_of
from sidecar.core.breaker import Breaker
from sidecar.core.jury import Jury
from sidecar.core.latency import FirstDeltaTimes
from sidecar.core.pool_policy import PoolPolicy
from sidecar.core.retry import RetryBudget
from sidecar.core.throttle import Throttle
from sidecar.credentials import CredentialReader
from sidecar.dialects import DIALECTS
from sidecar.service.connector import Connector
from sidecar.service.current_credential import CurrentCredential
from sidecar.service.dispatcher import Dispatcher
from sidecar.service.gate import Gate
from sidecar.service.pool import Pool
from sidecar.service.routes import RouteRuntime, TargetRuntime
from sidecar.service.turn import Turn
from sidecar.transport.dial import dial, parse_url, tls_context_of
from sidecar.transport.pump import Pump

Dial = Callable[[Upstream], Callable[[], Awaitable[trio.abc.Stream]]]


class Switch:
    """An upstream as an operator takes it out or in: with all the ways to it."""

    def __init__(self, pools: list[Pool]) -> None:
        self._pools = pools

    @property
    def enabled(self) -> bool:
        """It takes calls."""
        return self._pools[0].enabled

    def set_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - it is the whole message
        """Take it out or in, from the next call on."""
        for pool in self._pools:
            pool.set_enabled(enabled)


class Upstreams:
    """Everything that is made for them. Arguments as `daemon.Daemon`'s, and what it has made before.

    Attributes:
        pools: by their names, one for each way.
        breakers: (pool, model) -> its breaker.
        budgets: upstream -> its retry budget.
        health: (pool, model) -> times to first delta, bots' records, refusals.
    """

    def __init__(
        self,
        config: Config,
        *,
        environ: dict[str, str],
        dial: Dial,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        turn: Turn,
        pump: Pump,
        dispatcher: Dispatcher,
        log: Any,
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self.breakers: dict[tuple[str, str], Breaker] = {}
        self.health: dict[tuple[str, str], tuple[FirstDeltaTimes, Jury, Throttle]] = {}
        self.budgets = {upstream.name: _budget(upstream) for upstream in config.upstream}
        self._jitter = jitter
        self._ways: dict[str, list[Pool]] = {}
        self._shared: dict[tuple[str, str], tuple[Jury, Throttle]] = {}

        def pool_of(way: Way, gate: Gate) -> Pool:
            upstream = way.upstream
            dialect = DIALECTS[upstream.dialect]
            address = parse_url(upstream.url)
            resource = address.resource
            if upstream.compression == "zstd-stream":
                resource += ("&" if "?" in resource else "?") + "compress=zstd-stream"
            policy = PoolPolicy(
                warm=upstream.warm_connections,
                maximum=upstream.max_connections,
                slots=slots_of(upstream),
                max_age=upstream.max_age_s,
                jitter=jitter,
            )
            source = upstream.credential
            reader = None if source is None else CredentialReader(source, environ=environ)
            return Pool(
                way.name,
                upstream,
                policy=policy,
                connector=Connector(
                    upstream,
                    dialect,
                    CurrentCredential(reader, header=dialect.credential_header),
                    dial=dial(upstream),
                    host=address.host_header,
                    resource=resource,
                    pump=pump,
                    outbound=turn,
                    on_version=_Carried(way, policy, gate, log),
                ),
                gate=gate,
                clock=clock,
                jitter=jitter,
                outbound=turn,
                waiting=partial(dispatcher.parking.waiting, way.name),
                on_capacity=dispatcher.parking.on_capacity,
                on_connect=dispatcher.on_connect,
                on_turn=dispatcher.on_turn,
                log=log,
            )

        for upstream in config.upstream:
            gate = Gate(
                upstream.max_connections * slots_of(upstream),
                adaptive=upstream.adaptive_concurrency,
                jitter=jitter,
            )
            pools = self._ways[upstream.name] = [pool_of(way, gate) for way in ways_of(upstream)]
            for preferred, substitute in pairwise(pools):
                preferred.ways.substitute = substitute
            for pool in pools:
                pool.ways.every = list(pools)
            self.pools.update((pool.name, pool) for pool in pools)

    def switches(self) -> Mapping[str, Switch]:
        """By the upstreams' names, for operators."""
        return {name: Switch(pools) for name, pools in self._ways.items()}

    def routes(self, routes: Iterable[Route]) -> dict[str, RouteRuntime]:
        """The routes, each target by each of its upstream's ways."""
        return {
            route.name: RouteRuntime(
                route,
                [
                    self._target(pool, target.model, target.options, route)
                    for target in route.targets
                    for pool in self._ways[target.upstream]
                ],
                jitter=self._jitter,
            )
            for route in routes
        }

    def _target(self, pool: Pool, model: str, options: dict[str, Any], route: Route) -> TargetRuntime:
        key, jitter = (pool.name, model), self._jitter
        if key not in self.breakers:
            breaker = self.breakers[key] = _breaker("/".join(key), pool.upstream, jitter)
            pool.breakers.append(breaker)
            service = (pool.upstream.name, model)
            if service not in self._shared:
                self._shared[service] = (Jury(jitter=jitter), Throttle(jitter=jitter))
            self.health[key] = (FirstDeltaTimes(), *self._shared[service])
        budget = self.budgets[pool.upstream.name]
        cap = route.max_output_tokens
        return TargetRuntime(pool, model, self.breakers[key], budget, *self.health[key], options, cap)


def _breaker(name: str, upstream: Upstream, jitter: Callable[[], float]) -> Breaker:
    settings = upstream.breaker
    return Breaker(
        name,
        consecutive=settings.consecutive_failures,
        rate=settings.failure_rate,
        rate_minimum=settings.minimum_calls,
        slow_rate=settings.slow_rate,
        window=settings.window_s,
        open_base=settings.open_min_s,
        open_cap=settings.open_max_s,
        trials=settings.trials,
        probed=True,
        jitter=jitter,
    )


class _Carried:
    """Looks to it that no more is asked of a way's connections than they carry, once it is known what they speak."""

    def __init__(self, way: Way, policy: PoolPolicy, gate: Gate, log: Any) -> None:
        self._way, self._policy, self._gate, self._log = way, policy, gate, log
        self._said = False

    def __call__(self, slots: int) -> None:
        """A connection carries so many calls."""
        name, upstream = self._way.name, self._way.upstream
        self._policy.carry(slots)
        if name == upstream.name:  # of two ways, the other one carries more than this one
            self._gate.limit.bound(upstream.max_connections * slots)
        if slots < upstream.calls_per_connection and not self._said:
            self._said = True
            wanted = upstream.calls_per_connection
            self._log.warning("http2.not_spoken", upstream=name, calls_per_connection=slots, configured=wanted)


def _budget(upstream: Upstream) -> RetryBudget:
    settings = upstream.retry_budget
    return RetryBudget(capacity=settings.attempts, per_second=settings.per_second, per_first_attempt=settings.per_call)


def real_dial(upstream: Upstream) -> Callable[[], Awaitable[trio.abc.Stream]]:
    """TCP, proxy and TLS as configured; names are resolved anew at each connect.

    Raises:
        ConfigurationError: a file of `[upstream.tls]` cannot be used; the message names the upstream, too.
    """
    address, tls = parse_url(upstream.url), tls_context_of(upstream)

    async def connect() -> trio.abc.Stream:
        return await dial(
            address,
            tls=tls,
            proxy=upstream.proxy,
            keepalive=upstream.ping_interval_s if upstream.transport == "sse" else None,
            tcp_timeout=upstream.connect_timeout_s,
            tls_timeout=upstream.tls_timeout_s,
        )

    return connect
