"""An upstream's addresses and headers: what may be dialled, in which scheme, and what may be said there."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from sidecar.config.model import Upstream
from sidecar.dialects import DIALECTS
from sidecar.errors import ConfigurationError

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{0,4096}")
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


def check_addresses(upstream: Upstream, where: str) -> str:
    """`url`, `fallback_url`, and what only one of the transports knows. Returns the scheme of `url`.

    Raises:
        ConfigurationError: the first of them that cannot be.
    """
    scheme = _check_url(upstream.url, f"{where}.url")
    if scheme not in _SCHEMES[upstream.transport]:
        own = next(transport for transport, schemes in _SCHEMES.items() if scheme in schemes)
        raise ConfigurationError(
            f"{upstream.transport!r} contradicts the {scheme}:// of `url`",
            where=f"{where}.transport",
            mend=f'Leave it out ({scheme}:// is "{own}"), or give {_example(upstream.transport)}',
        )
    if upstream.fallback_url is not None:
        _check_fallback(upstream, upstream.fallback_url, where)
    _check_transport(upstream, where)
    return scheme


def _example(transport: str) -> str:
    secure, _, example = _SCHEMES[transport]
    return f'{"an" if transport == "sse" else "a"} {secure}:// URL, for example "{example}"'


def _check_url(url: str, where: str) -> str:
    parts = _split(url, where)
    secure = next((secure for secure, clear, _ in _SCHEMES.values() if parts.scheme in (secure, clear)), None)
    if secure is None:
        raise ConfigurationError(
            f"{parts.scheme}:// is not spoken" if parts.scheme else "not a URL: no scheme",
            where=where,
            mend=f"Give {_example('websocket')}, or an https:// one",
        )
    if parts.scheme != secure and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"{parts.scheme}:// carries prompt and key in clear",
            where=where,
            mend=f"Use {secure}://; {parts.scheme}:// is for loopback",
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name.lower() in _SECRET_PARAMETERS:
            raise ConfigurationError(
                f"the parameter `{name}` carries a secret", where=where, mend="Leave it out and use `credential`"
            )
    return parts.scheme


def _check_fallback(upstream: Upstream, url: str, where: str) -> None:
    scheme = _check_url(url, f"{where}.fallback_url")
    if upstream.transport == "sse":
        raise ConfigurationError(
            "`url` is HTTPS already", where=f"{where}.fallback_url", mend="Leave it out, or give a wss:// `url`"
        )
    if scheme not in _SCHEMES["sse"]:
        raise ConfigurationError(
            f"{scheme}:// is what this is the way out of", where=f"{where}.fallback_url", mend=f"Give {_example('sse')}"
        )
    if upstream.fallback_warm_connections > upstream.max_connections:
        raise ConfigurationError(
            f"{upstream.fallback_warm_connections} is more than max_connections ({upstream.max_connections})",
            where=f"{where}.fallback_warm_connections",
            mend="Lower it, or raise max_connections",
        )


def _check_transport(upstream: Upstream, where: str) -> None:
    """What only one of the transports knows."""
    over_http = upstream.transport == "sse"
    if upstream.transport not in DIALECTS[upstream.dialect].transports:
        raise ConfigurationError(
            f"the dialect {upstream.dialect!r} is spoken over HTTPS only",
            where=f"{where}.dialect",
            mend="Give an https:// `url`",
        )
    if over_http and upstream.compression != "none":
        raise ConfigurationError(
            "is for WebSockets", where=f"{where}.compression", mend="Leave it out: events are not packed over HTTPS"
        )
    if upstream.fallback_url is None and upstream.fallback_warm_connections != 1:
        raise ConfigurationError(
            "there is no `fallback_url` to keep them at",
            where=f"{where}.fallback_warm_connections",
            mend="Leave it out, or give one",
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


def check_proxy(proxy: str, where: str) -> None:
    """A proxy is an address, and no more.

    Raises:
        ConfigurationError: shows nothing of it.
    """
    parts = _split(proxy, where)
    if parts.scheme != "http" or parts.path not in {"", "/"} or parts.query:
        raise ConfigurationError("not an http:// proxy", where=where, mend='For example "http://proxy.internal:3128"')


def check_headers(headers: dict[str, str], dialect: str, where: str) -> None:
    """Headers that are ours to send, and no secrets.

    Raises:
        ConfigurationError: names the first that is neither.
    """
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
                mend=f"Use `credential`: it is sent as {_as_sent(dialect)}",
            )
        if lowered in _HANDSHAKE_HEADERS or lowered.startswith("sec-websocket-"):
            raise ConfigurationError("belongs to the handshake itself", where=f"{where}.{name}", mend="Leave it out")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError("not printable ASCII, or over 4096 bytes", where=f"{where}.{name}")
    lowered_names = [name.lower() for name in headers]
    if len(set(lowered_names)) != len(lowered_names):
        raise ConfigurationError("a header is given twice (case does not count)", where=where)


def _as_sent(dialect: str) -> str:
    """How a credential goes out, for people."""
    header, prefix = DIALECTS[dialect].credential_header
    return f"{header}: {prefix}..."
