"""What no type can say of a configuration: names that must meet, numbers, options, where secrets may lie."""

from __future__ import annotations

import difflib
import pwd
import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import structs

from sidecar.config.addresses import check_addresses, check_headers, check_proxy
from sidecar.config.model import Client, Config, CredentialSource, Route, Target, Upstream
from sidecar.config.presets import check_models
from sidecar.dialects import options
from sidecar.errors import ConfigurationError
from sidecar.wire import Options

#: sun_path is 108 bytes with its end.
MAX_SOCKET_PATH: Final = 107

_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BARE_KEY: Final = re.compile(r"[0-9a-fA-F]{32,}|[A-Za-z0-9_]{40,}")
_ENVIRONMENT_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def check(config: Config, *, where: str) -> None:
    """Every rule that spans keys.

    Args:
        config: as converted.
        where: the file, for the messages.

    Raises:
        ConfigurationError: the first rule broken.
    """
    _check_frontend(config, where)
    _unique([upstream.name for upstream in config.upstream], f"{where}: upstream")
    _unique([route.name for route in config.route], f"{where}: route")
    for index, upstream in enumerate(config.upstream):
        _check_upstream(upstream, f"{where}: upstream[{index}]")
    by_name = {upstream.name: upstream for upstream in config.upstream}
    for index, route in enumerate(config.route):
        _check_route(route, by_name, f"{where}: route[{index}]")
    check_models(by_name, config.route, where=where)


def resolve_clients(config: Config, *, where: str) -> Config:
    """The configuration with each rule's user as the kernel will name it: a uid; "*" stays.

    Raises:
        ConfigurationError: no such user on this machine, two rules for one user, a lane named twice.
    """
    if not config.client:
        return config
    resolved: list[Client] = []
    rule_of: dict[int | str, int] = {}
    for index, client in enumerate(config.client):
        place = f"{where}: client[{index}]"
        _check_lanes(client.lanes, f"{place}.lanes")
        user = client.user if client.user == "*" else _uid(client.user, f"{place}.user")
        if user in rule_of:
            whom = "everybody else" if user == "*" else f"uid {user}"
            raise ConfigurationError(
                f"client[{rule_of[user]}] is a rule for {whom} already", where=f"{place}.user", mend="Join the two"
            )
        rule_of[user] = index
        most = config.frontend.max_calls_in_flight
        if client.max_calls_in_flight is not None and client.max_calls_in_flight > most + config.frontend.queue_max:
            raise ConfigurationError(
                f"{client.max_calls_in_flight} is more than all bots have together "
                f"(frontend.max_calls_in_flight {most} and queue_max {config.frontend.queue_max})",
                where=f"{place}.max_calls_in_flight",
                mend="Lower it, or leave it out",
            )
        resolved.append(structs.replace(client, user=user))
    return structs.replace(config, client=resolved)


def _uid(user: int | str, where: str) -> int:
    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigurationError(
            f"no user {user!r} on this machine",
            where=where,
            mend='Create the account, or write its uid as a number; "*" is everybody without a rule',
        ) from None


def _check_lanes(lanes: Sequence[str], where: str) -> None:
    if len(set(lanes)) != len(lanes):
        raise ConfigurationError("a lane is named twice", where=where, mend="Once is enough")


def _unique(names: Sequence[str], where: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigurationError(f"the name {name!r} is taken", where=f"{where}[{index}].name", mend="Rename one")


def _check_frontend(config: Config, where: str) -> None:
    frontend = config.frontend
    for key, endpoint, suffix in (
        ("endpoint", frontend.endpoint, len(".control") if frontend.control_endpoint is None else 0),
        ("control_endpoint", frontend.control_endpoint, 0),
    ):
        if endpoint is None:
            continue
        place = f"{where}: frontend.{key}"
        path = endpoint.removeprefix("ipc://")
        if path == endpoint or not path.startswith("/") or path.endswith("/"):
            raise ConfigurationError(
                "not ipc:// and an absolute path", where=place, mend='For example "ipc:///run/sidecar/sidecar.sock"'
            )
        if len(path.encode()) + suffix > MAX_SOCKET_PATH:
            beside = " (7 bytes are kept for the control socket beside it)" if suffix else ""
            raise ConfigurationError(f"a path over {MAX_SOCKET_PATH} bytes{beside}", where=place, mend="Shorten it")
    if frontend.endpoint is not None and frontend.endpoint == frontend.control_endpoint:
        raise ConfigurationError("the same as frontend.endpoint", where=f"{where}: frontend.control_endpoint")
    if frontend.reserved_for_exit >= frontend.max_calls_in_flight:
        raise ConfigurationError(
            f"{frontend.reserved_for_exit} is not less than max_calls_in_flight ({frontend.max_calls_in_flight})",
            where=f"{where}: frontend.exit_reserved_calls",
            mend="Lower it: entry and research need places too",
        )
    if frontend.halt_file is not None and (not frontend.halt_file.startswith("/") or frontend.halt_file.endswith("/")):
        raise ConfigurationError(
            "not an absolute path of a file",
            where=f"{where}: frontend.halt_file",
            mend='For example "/var/lib/sidecar/halt"',
        )
    if frontend.group is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", frontend.group):
        raise ConfigurationError("not a group's name", where=f"{where}: frontend.group")


def _check_upstream(upstream: Upstream, where: str) -> None:
    scheme = check_addresses(upstream, where)
    if upstream.proxy is not None:
        check_proxy(upstream.proxy, f"{where}.proxy")
    check_headers(upstream.headers, upstream.dialect, f"{where}.headers")
    if upstream.credential is not None:
        check_credential(upstream.credential, f"{where}.credential")
    if upstream.warm_connections > upstream.max_connections:
        raise ConfigurationError(
            f"{upstream.warm_connections} is more than max_connections ({upstream.max_connections})",
            where=f"{where}.warm_connections",
            mend="Lower it, or raise max_connections",
        )
    breaker, budget = upstream.breaker, upstream.retry_budget
    if breaker.open_min_s > breaker.open_max_s:
        raise ConfigurationError(
            f"{breaker.open_min_s:g} is more than open_max_s ({breaker.open_max_s:g})",
            where=f"{where}.breaker.open_min_s",
            mend="Lower it, or raise open_max_s",
        )
    if budget.attempts < 2 * breaker.consecutive_failures:
        # Else it is used up before the breaker trips, and failover starves beside a healthy second upstream.
        raise ConfigurationError(
            f"{budget.attempts:g} is less than twice breaker.consecutive_failures ({breaker.consecutive_failures})",
            where=f"{where}.retry_budget.attempts",
            mend=f"Raise it to {2 * breaker.consecutive_failures}, or lower breaker.consecutive_failures",
        )
    tls = upstream.tls
    if tls.key_file is not None and tls.certificate_file is None:
        raise ConfigurationError("a key without its certificate", where=f"{where}.tls", mend="Add certificate_file")
    for key in ("ca_file", "certificate_file", "key_file"):
        if getattr(tls, key) == "":
            raise ConfigurationError("is empty", where=f"{where}.tls.{key}", mend="Name a file, or leave it out")
        if getattr(tls, key) is not None and scheme in {"ws", "http"}:
            raise ConfigurationError(
                f"a {scheme}:// URL has no TLS", where=f"{where}.tls.{key}", mend=f"Use {scheme}s://"
            )


def check_credential(source: str | CredentialSource, where: str) -> None:
    """The source is a source, and not the secret itself.

    Raises:
        ConfigurationError: shows nothing of the value.
    """
    if isinstance(source, str):
        if len(source) > 64 or _BARE_KEY.fullmatch(source):
            raise ConfigurationError(
                "looks like a secret, and secrets never stand in this file",
                where=where,
                mend='Write the name of a file in $CREDENTIALS_DIRECTORY, or { file = "..." }, { env = "..." }',
            )
        if not _CREDENTIAL_NAME.fullmatch(source):
            raise ConfigurationError(
                "not a credential's name", where=where, mend='Letters, digits, _ . -; a path is { file = "..." }'
            )
        return
    given = [key for key in ("file", "env", "command") if getattr(source, key) is not None]
    if len(given) != 1:
        raise ConfigurationError("exactly one of file, env and command is needed", where=where)
    if source.file == "":
        raise ConfigurationError("is empty", where=f"{where}.file", mend="Name a file")
    if source.env is not None and not _ENVIRONMENT_VARIABLE.fullmatch(source.env):
        raise ConfigurationError(
            "not the name of an environment variable",
            where=f"{where}.env",
            mend='For example { env = "OPENAI_API_KEY" }',
        )
    if source.command is not None and (not source.command or not source.command[0] or len(source.command) > 64):
        raise ConfigurationError(
            "not a command", where=f"{where}.command", mend='A program and its arguments: ["/usr/bin/pass", "openai"]'
        )


def _check_route(route: Route, upstreams: dict[str, Upstream], where: str) -> None:
    _check_lanes(route.backup_lanes, f"{where}.backup_lanes")
    if route.backup_min_ms > route.backup_max_ms:
        raise ConfigurationError(
            f"{route.backup_min_ms:g} is more than backup_max_ms ({route.backup_max_ms:g})",
            where=f"{where}.backup_min_ms",
            mend="Lower it, or raise backup_max_ms",
        )
    seen: list[object] = []
    for index, target in enumerate(route.targets):
        place = f"{where}.targets[{index}]"
        if target.upstream not in upstreams:
            raise ConfigurationError(
                f"no upstream is named {target.upstream!r}",
                where=f"{place}.upstream",
                mend=_nearest(target.upstream, upstreams),
            )
        if target in seen:
            raise ConfigurationError("the same target twice", where=place, mend="A retry needs no second entry")
        seen.append(target)
        _check_options(target, route, upstreams[target.upstream].dialect, f"{place}.options")


def _check_options(target: Target, route: Route, dialect: str, where: str) -> None:
    for name in target.options:
        if name not in Options.__struct_fields__:
            mend = f"{_nearest(name, Options.__struct_fields__)} What is not portable goes into `extra_body`"
            raise ConfigurationError("unknown option", where=f"{where}.{name}", mend=mend)
    try:
        merged = options.merge(target.options, {}, route.max_output_tokens)
    except options.OptionError as error:
        raise ConfigurationError(error.reason, where=f"{where}.{error.name}") from None
    missing = options.unsupported(merged, dialect)
    if missing and route.unsupported_options == "fail":
        raise ConfigurationError(
            f"the dialect {dialect!r} has no {', '.join(missing)}",
            where=where,
            mend='Leave it out, or set unsupported_options = "drop" in the route',
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(names)}."
