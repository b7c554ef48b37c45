"""What no type can say of a configuration: names that must meet, URLs, headers, options, where secrets may lie."""

from __future__ import annotations

import difflib
import ipaddress
import pwd
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from msgspec import structs

from sidecar.config.model import Client, Config, CredentialSource, Route, Target, Upstream
from sidecar.dialects import DIALECTS, options
from sidecar.errors import ConfigurationError
from sidecar.wire import Options

#: sun_path is 108 bytes with its end.
MAX_SOCKET_PATH: Final = 107

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{0,4096}")
_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BARE_KEY: Final = re.compile(r"[0-9a-fA-F]{32,}|[A-Za-z0-9_]{40,}")
_ENVIRONMENT_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET_HEADERS: Final = {"authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"}
_HANDSHAKE_HEADERS: Final = {
    "host",
    "connection",
    "upgrade",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "accept-encoding",
    "expect",
    "keep-alive",
    "proxy-connection",
}
_SECRET_PARAMETERS: Final = {"key", "api-key", "api_key", "apikey", "token", "access_token", "secret", "password"}


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
    scheme = _check_url(upstream.url, f"{where}.url", upstream.transport)
    _check_transport(upstream, where)
    if upstream.proxy is not None:
        _check_proxy(upstream.proxy, f"{where}.proxy")
    _check_headers(upstream.headers, f"{where}.headers")
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


def _split(url: str, where: str) -> SplitResult:
    if len(url) > 2048 or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ConfigurationError(
            "not a URL: blanks, other than ASCII, or too long", where=where, mend="Write a host in its xn-- form"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError("not a URL: host or port cannot be read", where=where) from None
    if not parts.hostname or port == 0:
        raise ConfigurationError("not a URL: no host, or port 0", where=where)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "holds a user or a password", where=where, mend="Leave them out; `credential` names where the secret lies"
        )
    if "#" in url:
        raise ConfigurationError("has a fragment (#...)", where=where, mend="Leave it out")
    return parts


_SCHEMES: Final[dict[str, tuple[str, str, str]]] = {
    "websocket": ("wss", "ws", "wss://api.openai.com/v1/responses"),
    "sse": ("https", "http", "https://api.openai.com/v1/responses"),
}


def _check_url(url: str, where: str, transport: str) -> str:
    parts = _split(url, where)
    secure, clear, example = _SCHEMES[transport]
    if parts.scheme not in {secure, clear}:
        raise ConfigurationError(
            f"not a {secure}:// URL" + (" (transport is given as sse)" if transport == "sse" else ""),
            where=where,
            mend=f'For example "{example}"',
        )
    if parts.scheme == clear and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"{clear}:// carries prompt and key in clear",
            where=where,
            mend=f"Use {secure}://; {clear}:// is for loopback",
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name.lower() in _SECRET_PARAMETERS:
            raise ConfigurationError(
                f"the parameter `{name}` carries a secret", where=where, mend="Leave it out and use `credential`"
            )
    return parts.scheme


def _check_transport(upstream: Upstream, where: str) -> None:
    """What only one of the transports knows."""
    over_http = upstream.transport == "sse"
    if upstream.transport not in DIALECTS[upstream.dialect].transports:
        raise ConfigurationError(
            f"the dialect {upstream.dialect!r} is spoken over HTTPS only",
            where=f"{where}.dialect",
            mend='Give an https:// URL (transport = "sse")',
        )
    if upstream.fallback_url is not None:
        if over_http:
            raise ConfigurationError(
                "`url` is HTTPS already", where=f"{where}.fallback_url", mend="Leave it out, or give a wss:// `url`"
            )
        _check_url(upstream.fallback_url, f"{where}.fallback_url", "sse")
    if over_http and upstream.compression != "none":
        raise ConfigurationError(
            "is for WebSockets", where=f"{where}.compression", mend="Leave it out: events are not packed over HTTPS"
        )
    if not over_http and upstream.fallback_url is None and upstream.http_version != "auto":
        raise ConfigurationError(
            "no HTTPS is spoken with this upstream", where=f"{where}.http_version", mend="Leave it out"
        )


def is_loopback(host: str) -> bool:
    """`host` is this machine by its very name or address; nothing is resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_proxy(proxy: str, where: str) -> None:
    parts = _split(proxy, where)
    if parts.scheme != "http" or parts.path not in {"", "/"} or parts.query:
        raise ConfigurationError("not an http:// proxy", where=where, mend='For example "http://proxy.internal:3128"')


def _check_headers(headers: dict[str, str], where: str) -> None:
    if len(headers) > 64:
        raise ConfigurationError("more than 64 headers", where=where)
    for name, value in headers.items():
        lowered = name.lower()
        if not _TOKEN.fullmatch(name):
            raise ConfigurationError("a header's name is not one HTTP knows", where=where)
        if lowered in _SECRET_HEADERS:
            raise ConfigurationError(
                "secrets never stand in this file",
                where=f"{where}.{name}",
                mend='Use `credential`: it is sent as "Bearer"',
            )
        if lowered in _HANDSHAKE_HEADERS or lowered.startswith("sec-websocket-"):
            raise ConfigurationError("belongs to the handshake itself", where=f"{where}.{name}", mend="Leave it out")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError("not printable ASCII, or over 4096 bytes", where=f"{where}.{name}")
    lowered_names = [name.lower() for name in headers]
    if len(set(lowered_names)) != len(lowered_names):
        raise ConfigurationError("a header is given twice (case does not count)", where=where)


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
