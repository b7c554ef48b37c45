"""Health: from statistics to the `report` that a probe is answered with. One pure function, no opinion elsewhere.

ready = bound, not draining, every route has a target with a standing connection and a breaker that is not open.
degraded = ready, with reasons. A connection that carries a call stands as well as an idle one: a daemon whose every
connection is busy is ready, and says so among its reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from msgspec import UNSET, Struct

from sidecar.wire import Report, RouteReport, Transport, UpstreamReport

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

#: Seconds of loop lag from which on a daemon calls itself degraded.
LAG_IS_DEGRADED: Final = 0.1

_WORST: Final[tuple[BreakerState, ...]] = ("open", "half_open", "closed")


class UpstreamHealth(Struct, frozen=True, kw_only=True):
    """What one upstream's pool and breakers say, or those of one way to it.

    Attributes:
        name: of the pool.
        upstream: as configured; the same, unless there are two ways to it.
        transport: what it speaks.
        connections: state -> how many.
        warm: idle spares wanted.
        breakers: model -> state; a model never called may be missing.
        refused: its credential is refused.
        disabled: an operator took it out.
        last_error: for people; no credential, no prompt.
        rtt: seconds, of the last keepalive.
    """

    name: str
    connections: Mapping[str, int]
    upstream: str = ""
    transport: Transport = "websocket"
    warm: int = 0
    breakers: Mapping[str, BreakerState] = {}
    refused: bool = False
    disabled: bool = False
    last_error: str | None = None
    rtt: float | None = None

    @property
    def standing(self) -> int:
        """Connections that carry a call, or could."""
        return self.connections.get("READY", 0) + self.connections.get("BUSY", 0)


class RouteHealth(Struct, frozen=True, kw_only=True):
    """A route and its targets, (pool, model), in order of preference."""

    name: str
    targets: Sequence[tuple[str, str]]


def report(
    *,
    version: str,
    session: str,
    pid: int,
    uptime: float,
    bound: bool = True,
    draining: bool = False,
    halted: Sequence[str] = (),
    in_flight: int,
    queued: int,
    queue_max: int = 0,
    loop_lag: float = 0.0,
    routes: Sequence[RouteHealth],
    upstreams: Sequence[UpstreamHealth],
) -> Report:
    """The report, from snapshots only: it asks nobody and is as quick when every upstream is down.

    Args:
        version: of the daemon.
        session: of the daemon; changes when it restarts.
        pid: of the daemon.
        uptime: seconds.
        bound: the frontend's socket is bound.
        draining: no new calls are taken.
        halted: lanes the operator stopped.
        in_flight: calls admitted.
        queued: calls that wait for admission.
        queue_max: how many may; 0 says nothing about a full queue.
        loop_lag: seconds.
        routes: of the configuration; every upstream a target names is among `upstreams`.
        upstreams: as they stand now.
    """
    by_name = {upstream.name: upstream for upstream in upstreams}
    route_reports = [_route(route, by_name) for route in routes]
    ready = bound and not draining and all(route.ready for route in route_reports)
    reasons = [] if bound else ["the endpoint is not bound"]
    reasons += ["draining"] if draining else []
    reasons += [f"route {route.name}: no target can take a call" for route in route_reports if not route.ready]
    reasons += [f"lane {lane}: halted" for lane in halted]
    for upstream in upstreams:
        reasons += _reasons(upstream)
    for route, said in zip(routes, route_reports, strict=True):
        first = by_name[route.targets[0][0]]
        if said.target is not None and said.target != (first.upstream or first.name):
            reasons.append(f"route {route.name}: served by {said.target}")
        elif said.transport is not UNSET and said.transport != first.transport:
            reasons.append(f"route {route.name}: served over HTTPS")
    reasons += ["the queue is full"] if queue_max and queued >= queue_max else []
    reasons += [f"loop lag {loop_lag * 1000:.0f} ms"] if loop_lag >= LAG_IS_DEGRADED else []
    return Report(
        live=True,
        ready=ready,
        degraded=ready and bool(reasons),
        draining=draining,
        halted=list(halted),
        reasons=reasons,
        version=version,
        session=session,
        pid=pid,
        uptime_us=_us(uptime),
        in_flight=in_flight,
        queued=queued,
        loop_lag_us=_us(loop_lag),
        routes=route_reports,
        upstreams=[
            UpstreamReport(
                name=upstream.name,
                transport=upstream.transport,
                connections=dict(upstream.connections),
                breaker=worst(upstream.breakers.values()),
                last_error=upstream.last_error,
                rtt_us=None if upstream.rtt is None else _us(upstream.rtt),
            )
            for upstream in upstreams
        ],
    )


def worst(states: Iterable[BreakerState]) -> BreakerState:
    """The worst of some breakers' states; closed when there are none."""
    present = set(states)
    return next((state for state in _WORST if state in present), "closed")


def _route(route: RouteHealth, upstreams: Mapping[str, UpstreamHealth]) -> RouteReport:
    for name, model in route.targets:
        upstream = upstreams[name]
        if upstream.standing and not upstream.disabled and upstream.breakers.get(model) != "open":
            target = upstream.upstream or upstream.name
            return RouteReport(name=route.name, ready=True, target=target, transport=upstream.transport)
    return RouteReport(name=route.name, ready=False)


def _reasons(upstream: UpstreamHealth) -> list[str]:
    said = []
    if upstream.disabled:
        said.append("disabled")
    elif upstream.refused:
        said.append("credential refused")
    elif not upstream.standing:
        said.append("no connection")
    elif upstream.warm and not upstream.connections.get("READY", 0):
        said.append("every connection is busy")
    said += [f"breaker {state} for {model}" for model, state in upstream.breakers.items() if state != "closed"]
    return [f"upstream {upstream.name}: {reason}" for reason in said]


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000))
