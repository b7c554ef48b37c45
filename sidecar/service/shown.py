"""What `sidecar show` is told: snapshots of upstreams, calls, clients and stats, plain data. No prompt and no key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from sidecar.core.admission import LANES
from sidecar.core.breaker import Breaker
from sidecar.core.jury import Jury
from sidecar.core.latency import FirstDeltaTimes
from sidecar.core.retry import RetryBudget
from sidecar.core.throttle import Throttle
from sidecar.metrics import Metrics
from sidecar.service.brakes import Brakes
from sidecar.service.clients import Clients
from sidecar.service.dispatcher import Dispatcher
from sidecar.service.frontend import Frontend
from sidecar.service.pool import Pool
from sidecar.service.ports import Peer
from sidecar.service.pulse import Pulse


class Parts(Protocol):
    """What there is to show: the daemon, seen from here."""

    dispatcher: Dispatcher
    frontend: Frontend
    metrics: Metrics
    pulse: Pulse
    pools: dict[str, Pool]
    breakers: dict[tuple[str, str], Breaker]
    health: dict[tuple[str, str], tuple[FirstDeltaTimes, Jury, Throttle]]
    budgets: dict[str, RetryBudget]
    brakes: Brakes


def sections(
    daemon: Parts, clock: Callable[[], float], clients: Clients | None = None
) -> dict[str, Callable[[], list[Any]]]:
    """What may be shown -> its data now, for `control.show`. `clock`: the loop's time; `clients`: where there are."""
    shown: dict[str, Callable[[], list[Any]]] = {
        "upstreams": lambda: _upstreams(daemon, clock()),
        "calls": lambda: _calls(daemon, clock()),
        "stats": lambda: _stats(daemon, clock()),
    }
    if clients is not None:
        shown["clients"] = lambda: clients_now(
            clients, daemon.dispatcher.calls.values(), clock(), _barred(daemon, clock())
        )
    return shown


class CallOfSomebody(Protocol):
    """What a call says for `clients_now`."""

    @property
    def admitted(self) -> bool | None:
        """In flight, or waiting; None: neither any more."""
        ...

    @property
    def peer(self) -> Peer:
        """Whose it is."""
        ...


def clients_now(
    clients: Clients,
    calls: Iterable[CallOfSomebody],
    now: float,
    barred: Mapping[int, list[dict[str, Any]]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One row per user: what it may do and what it does. `uid` "*" is the rule for everybody without a row.

    `barred`: uid -> which of its bots are kept from which target, see `_barred`.
    """
    in_flight: Counter[int | None] = Counter()
    queued: Counter[int | None] = Counter()
    for call in calls:
        if call.admitted is not None:
            (in_flight if call.admitted else queued)[call.peer.uid] += 1
    return [
        {
            "uid": "*" if row.uid is None else row.uid,
            "lanes": list(row.lanes),
            "in_flight": in_flight[row.uid],
            "queued": queued[row.uid],
            "max_calls_in_flight": row.max_calls_in_flight,
            "calls_last_minute": row.calls_last_minute,
            "max_calls_per_minute": row.max_calls_per_minute,
            "refused": row.refused,
            "barred": [] if row.uid is None else barred.get(row.uid, []),
        }
        for row in clients.statistics(now)
    ]


def _barred(daemon: Parts, now: float) -> dict[int, list[dict[str, Any]]]:
    """By uid: its bots that fail where others are answered: pid (None: all of the user's), where, for how long yet."""
    found: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()  # the ways to an upstream share a judge
    for (name, model), (_, blame, _) in daemon.health.items():
        if id(blame) in seen:
            continue
        seen.add(id(blame))
        for uid, pid, seconds in blame.barred(now):
            where = {"upstream": daemon.pools[name].upstream.name, "model": model}
            found.setdefault(uid, []).append({"pid": pid, **where, "for_ms": round(1000 * seconds)})
    return found


def _upstreams(daemon: Parts, now: float) -> list[dict[str, Any]]:
    rows = []
    for pool in daemon.pools.values():
        row = msgspec.to_builtins(pool.statistics())
        rtt = row.pop("rtt")
        row["rtt_us"] = None if rtt is None else int(1e6 * rtt)
        row["waiting"] = pool.waiting()
        row["retry_budget"] = round(daemon.budgets[pool.upstream.name].balance(now), 1)
        row["breakers"] = [
            _in_milliseconds(msgspec.to_builtins(breaker.statistics(now)), now)
            | _health(daemon.health[name, model], now)
            for (name, model), breaker in daemon.breakers.items()
            if name == pool.name
        ]
        rows.append(row)
    return rows


def _in_milliseconds(row: dict[str, Any], now: float) -> dict[str, Any]:
    """The loop's instants mean nothing outside: say how long from now."""
    at = row.pop("next_wakeup_at")
    row["next_wakeup_ms"] = None if at == float("inf") else max(0, round(1000 * (at - now)))
    return row


def _health(health: tuple[FirstDeltaTimes, Jury, Throttle], now: float) -> dict[str, Any]:
    """What is usual of a target, and how many bots are kept from it for failing where others are answered."""
    times, blame, refusals = health
    return {
        "first_delta_p50_ms": _ms(times.usual(now)),
        "first_delta_p95_ms": _ms(times.quantile(0.95, now)),
        "refuses_for_ms": max(0, round(1000 * (refusals.ready_at - now))) if refusals.ready_at > now else 0,
        "barred_bots": blame.statistics(now).barred,
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)


def _calls(daemon: Parts, now: float) -> list[dict[str, Any]]:
    return [
        {
            "call_id": call.call_id,
            "route": call.route.name,
            "lane": call.lane,
            "phase": call.policy.phase(),
            "attempts": call.policy.made,
            "upstreams": [attempt.target.pool.name for attempt in call.attempts],
            "age_ms": round(1000 * (now - call.received_at)),
            "remaining_ms": round(1000 * (call.policy.deadline - now)),
            "characters": call.length,
            "uid": call.peer.uid,
            "pid": call.peer.pid,
            "label": call.peer.label,
        }
        for call in daemon.dispatcher.calls.values()
    ]


def _stats(daemon: Parts, now: float) -> list[Any]:
    metrics = daemon.metrics
    statistics = daemon.dispatcher.statistics()
    metrics.in_flight.set(value=statistics.in_flight)
    metrics.queued.set(value=statistics.queued + statistics.parked)
    frontend = daemon.frontend.statistics()
    metrics.bots.set(value=frontend.peers)
    for lane in LANES:
        metrics.halted.set(lane, value=lane in daemon.brakes.halted)
    metrics.loop_lag.set(value=daemon.pulse.lag)
    metrics.connections.clear()
    for pool in daemon.pools.values():
        for state, count in pool.counts().items():
            metrics.connections.set(pool.name, state, value=count)
        metrics.attempts_at_once.set(pool.name, value=pool.gate.limit.limit)
        metrics.throttled.set(pool.name, value=pool.gate.throttled_for(now))
        metrics.retry_budget.set(pool.name, value=daemon.budgets[pool.upstream.name].balance(now))
    metrics.breakers.clear()
    for (name, model), breaker in daemon.breakers.items():
        metrics.breakers.set(name, model, value={"closed": 0, "half_open": 0.5, "open": 1}[breaker.state(now)])
    return list(metrics.collect())
