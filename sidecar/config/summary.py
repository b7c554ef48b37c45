"""What a configuration adds up to, for people and `check --json`: how many at once, who may connect, what is odd."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from sidecar.config.model import Client, Config, CredentialSource, Frontend, Route, Upstream
from sidecar.config.presets import PRESETS
from sidecar.config.ways import only_http1, slots_of

#: How the paths end to which requests in a dialect are posted.
_PATHS: Final = {"responses": "/responses", "chat": "/chat/completions", "messages": "/messages"}


def describe(config: Config) -> dict[str, Any]:
    """The sum of the configuration as plain values, ready for JSON; holds names of secrets' places, never a secret.

    Units are in the names. `warnings` is for people: each is legal and probably not meant.
    """
    frontend = config.frontend
    upstreams = {upstream.name: upstream for upstream in config.upstream}
    return {
        "frontend": {
            "endpoint": frontend.endpoint,
            "who_may_connect": f"group {frontend.group}" if frontend.group else "the daemon's own user only",
            "max_calls_in_flight": frontend.max_calls_in_flight,
            "exit_reserved_calls": frontend.reserved_for_exit,
            "queue_max": frontend.queue_max,
            "max_calls_per_minute": frontend.max_calls_per_minute,
            "halt_file": frontend.halt_file,
        },
        "upstreams": [_upstream(upstream) for upstream in config.upstream],
        "clients": [_client(client, frontend) for client in _clients(config)],
        "routes": [_route(route, upstreams, frontend.max_calls_in_flight) for route in config.route],
        "warnings": _warnings(config),
    }


def calls_at_once(upstream: Upstream) -> int:
    """Calls that all connections of the upstream carry together."""
    return upstream.max_connections * slots_of(upstream)


def _clients(config: Config) -> list[Client]:
    """Every rule, and what holds for everybody without one at the end; nothing where nobody is limited."""
    others = [client for client in config.client if client.user == "*"] or [Client(user="*")]
    if not config.client and config.frontend.max_calls_per_minute is None:
        return []
    return [*(client for client in config.client if client.user != "*"), *others]


def _client(client: Client, frontend: Frontend) -> dict[str, Any]:
    per_minute = client.max_calls_per_minute
    return {
        "uid": client.user,
        "lanes": list(client.lanes),
        "max_calls_in_flight": client.max_calls_in_flight,
        "max_calls_per_minute": frontend.max_calls_per_minute if per_minute is None else per_minute,
    }


def _upstream(upstream: Upstream) -> dict[str, Any]:
    source = upstream.credential
    if isinstance(source, CredentialSource):
        # Only the program's name: arguments may hold what nobody should read.
        command = f"the command {source.command[0]}" if source.command else ""
        place = (source.file and f"the file {source.file}") or (source.env and f"${source.env}") or command
    else:
        place = f"$CREDENTIALS_DIRECTORY/{source}" if source else "none"
    return {
        "name": upstream.name,
        "url": upstream.url.partition("?")[0],
        "transport": upstream.transport,
        "fallback_url": upstream.fallback_url and upstream.fallback_url.partition("?")[0],
        "dialect": upstream.dialect,
        "preset": upstream.preset,
        "credential": place,
        "calls_at_once": calls_at_once(upstream),
        "warm_connections": upstream.warm_connections,
        "max_connections": upstream.max_connections,
        "calls_per_connection": slots_of(upstream),
        "max_age_s": upstream.max_age_s,
        "compression": upstream.compression,
    }


def _route(route: Route, upstreams: dict[str, Upstream], most: int) -> dict[str, Any]:
    return {
        "name": route.name,
        "calls_at_once": min(most, calls_at_once(upstreams[route.targets[0].upstream])),
        "targets": [
            {
                "upstream": target.upstream,
                "model": target.model,
                "calls_at_once": min(most, calls_at_once(upstreams[target.upstream])),
            }
            for target in route.targets
        ],
        "timeout_ms": route.timeout_ms,
        "first_delta_timeout_ms": route.first_delta_timeout_ms,
        "idle_timeout_ms": route.idle_timeout_ms,
        "max_attempts": route.max_attempts,
        "backup_lanes": list(route.backup_lanes) if route.max_attempts > 1 else [],
        "backup_min_ms": route.backup_min_ms,
        "backup_max_ms": route.backup_max_ms,
        "max_output_tokens": route.max_output_tokens,
        "store": route.store,
    }


def _warnings(config: Config) -> list[str]:
    found = []
    used = {target.upstream for route in config.route for target in route.targets}
    if not any(route.name == "default" for route in config.route):
        found.append('no route is named "default": a call that names none is refused (unknown_route)')
    for upstream in config.upstream:
        if upstream.name not in used:
            found.append(f"upstream {upstream.name}: no route leads there, its connections are kept warm for nothing")
        if upstream.credential is None and upstream.url.startswith(("wss:", "https:")):
            found.append(f"upstream {upstream.name}: no credential, requests go out without one")
        if upstream.warm_connections == 0:
            found.append(f"upstream {upstream.name}: warm_connections = 0, the first calls pay the handshake")
        preset = PRESETS.get(upstream.preset or "")
        over_websocket = upstream.transport == "websocket"
        if preset is not None and over_websocket and upstream.max_age_s >= preset.age_limit_s:
            found.append(
                f"upstream {upstream.name}: max_age_s = {upstream.max_age_s:g}, but the service itself ends a "
                f"connection after {preset.age_limit_s:g} s"
            )
        if upstream.calls_per_connection > 1 and only_http1(upstream):
            why = "" if upstream.http_version == "1.1" else 'without TLS HTTP/2 needs http_version = "2"; '
            found.append(f"upstream {upstream.name}: {why}HTTP/1.1 carries one call per connection, not more")
        if preset is not None and over_websocket and upstream.calls_per_connection > preset.calls_limit:
            found.append(
                f"upstream {upstream.name}: calls_per_connection = {upstream.calls_per_connection}, but the service "
                f"runs {preset.calls_limit} at once and lets the others wait"
            )
        if upstream.calls_per_connection > 1 and upstream.dialect == "chat" and over_websocket:
            found.append(f"upstream {upstream.name}: several calls per connection need a relay that echoes `id`")
        found += [f"upstream {upstream.name}: {odd}" for odd in _odd_paths(upstream)]
    if (
        config.client
        and config.frontend.reserved_for_exit
        and not any("exit" in client.lanes for client in _clients(config))
    ):
        found.append(
            f"{config.frontend.reserved_for_exit} places are kept for exit calls, and no client may use that lane"
        )
    return found + [warning for route in config.route for warning in _route_warnings(route)]


def _odd_paths(upstream: Upstream) -> list[str]:
    """Where POSTs go to a path on which services do not speak this dialect; a gateway may have its own."""
    urls = {"url": upstream.url if upstream.transport == "sse" else None, "fallback_url": upstream.fallback_url}
    usual = _PATHS[upstream.dialect]
    return [
        f"{key} does not end in {usual}, where services speak {upstream.dialect}; right only where one has its own"
        for key, url in urls.items()
        if url is not None and not urlsplit(url).path.rstrip("/").endswith(usual)
    ]


def _route_warnings(route: Route) -> list[str]:
    found = []
    if route.backup_lanes and route.max_attempts == 1:
        found.append(f"route {route.name}: max_attempts = 1, so there are neither retries nor backup requests")
    elif route.backup_lanes and route.backup_min_ms >= route.timeout_ms:
        found.append(f"route {route.name}: backup_min_ms = {route.backup_min_ms:g}, but calls end before that")
    if route.store:
        found.append(f"route {route.name}: store = true, the vendor keeps the prompts")
    if len({target.upstream for target in route.targets}) == 1:
        found.append(f"route {route.name}: one upstream only, nothing to fail over to")
    return found


def summary(config: Config, *, endpoint: str | None = None) -> str:
    """`describe` as lines for a terminal; `endpoint` is the one it comes to when the configuration names none."""
    sums = describe(config)
    frontend = sums["frontend"]
    lines = [f"{endpoint or frontend['endpoint'] or 'the default endpoint'}: {frontend['who_may_connect']} may connect"]
    for route in sums["routes"]:
        first, *rest = route["targets"]
        then = "".join(f", then {target['upstream']}/{target['model']} ({target['calls_at_once']})" for target in rest)
        lines.append(
            f"{route['name']}: {route['calls_at_once']} calls at once on {first['upstream']}/{first['model']}{then}; "
            f"{route['timeout_ms']:g} ms each, at most {route['max_attempts']} attempts and "
            f"{route['max_output_tokens']} tokens{_backups(route)}"
        )
    lines.extend(
        f"{upstream['name']}: {upstream['warm_connections']} warm, at most {upstream['max_connections']} connections "
        f"of {upstream['calls_per_connection']}, rotated within {upstream['max_age_s']:g} s, "
        + _way(upstream)
        + ("no credential" if upstream["credential"] == "none" else f"credential from {upstream['credential']}")
        for upstream in sums["upstreams"]
    )
    kept = frontend["exit_reserved_calls"]
    lines.append(
        f"in all: {frontend['max_calls_in_flight']} in flight{f', {kept} of them for exits only' if kept else ''}, "
        f"{frontend['queue_max']} more wait"
    )
    lines.extend(_clients_line(client) for client in sums["clients"])
    lines.extend(f"note: {warning}" for warning in sums["warnings"])
    return "\n".join(lines)


def _way(upstream: dict[str, Any]) -> str:
    if upstream["fallback_url"]:
        return "else over HTTPS, "
    return "over HTTPS, " if upstream["transport"] == "sse" else ""


def _backups(route: dict[str, Any]) -> str:
    if not route["backup_lanes"]:
        return "; no backup requests"
    when = f"after {route['backup_min_ms']:g} to {route['backup_max_ms']:g} ms"
    return f"; backup requests for {', '.join(route['backup_lanes'])} {when}"


def _clients_line(client: dict[str, Any]) -> str:
    who = "everybody else" if client["uid"] == "*" else f"uid {client['uid']}"
    limits = [
        f"{client[key]} calls {unit}"
        for key, unit in (("max_calls_in_flight", "at once"), ("max_calls_per_minute", "a minute"))
        if client[key] is not None
    ]
    return f"{who}: lanes {', '.join(client['lanes'])}; {' and '.join(limits) or 'no limit of its own'}"
