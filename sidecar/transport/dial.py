"""From a URL to a byte stream that is ready for HTTP: name, TCP, perhaps a proxy, TLS. Each step has its own cap."""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import ssl
import urllib.parse
from collections.abc import Sequence
from typing import Final

import h11
import trio
from msgspec import Struct

from sidecar import config
from sidecar.errors import ConfigurationError, ConnectFailed
from sidecar.transport.http1 import read_head
from sidecar.transport.tls import TlsStream

_HOST: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
_RESOURCE: Final = re.compile(r"/[!-~]*")


class Address(Struct, frozen=True, kw_only=True):
    """Where an upstream is. `resource` is path and query, as the request line has it."""

    secure: bool
    host: str
    port: int
    resource: str

    @property
    def authority(self) -> str:
        """host:port, an IPv6 address in brackets: what CONNECT asks for."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def host_header(self) -> str:
        """What the Host header says: without the port where it is the usual one."""
        return self.authority.rpartition(":")[0] if self.port == (443 if self.secure else 80) else self.authority


class Proxy(Struct, frozen=True, kw_only=True):
    """An HTTP proxy. `authorization` is the header's value and a secret, so it is kept out of `repr`."""

    host: str
    port: int
    authorization: bytes | None = None

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


def _is_loopback(host: str) -> bool:
    if host.rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str, what: str) -> tuple[urllib.parse.SplitResult, str, int | None]:
    """The parts of a URL, its host checked; errors never repeat the URL, which may hold a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
        elif not _HOST.fullmatch(host) or len(host) > 253:
            raise ValueError("host")
        if port == 0 or any(character <= " " or character > "~" for character in url):
            raise ValueError("port or characters")
    except ValueError:
        raise ConfigurationError(f"not a usable {what} URL", mend="Write scheme://host[:port]/path in ASCII") from None
    return parts, host, port


def parse_url(url: str) -> Address:
    """An upstream's URL -> its address. `wss://` and `https://` anywhere, `ws://` and `http://` on this machine only.

    Raises:
        ConfigurationError: another scheme, ws:// or http:// elsewhere, user and password, a fragment, no host. The
            message never repeats the URL.
    """
    parts, host, port = _split(url, "upstream")
    if parts.scheme not in ("ws", "wss", "http", "https"):
        raise ConfigurationError(f"scheme {parts.scheme!r} is no upstream's", mend="Use wss:// or https://")
    if "@" in parts.netloc:
        raise ConfigurationError("a URL must not hold a user or password", mend="Use `credential`")
    if "#" in url:
        raise ConfigurationError("an upstream's URL has no fragment", mend="Leave out the # and what follows")
    secure = parts.scheme in ("wss", "https")
    if not secure and not _is_loopback(host):
        problem = f"{parts.scheme}:// to {host} would send the credential in the clear"
        raise ConfigurationError(problem, mend=f"Use {parts.scheme}s://")
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _RESOURCE.fullmatch(resource):
        raise ConfigurationError("the URL's path holds characters that HTTP does not allow", mend="Percent-encode them")
    return Address(secure=secure, host=host, port=port or (443 if secure else 80), resource=resource)


def parse_proxy(url: str) -> Proxy:
    """An upstream's `proxy` -> its parts; `http://[user:password@]host[:port]`.

    Raises:
        ConfigurationError: another scheme, a path, no host. The message never repeats the URL.
    """
    parts, host, port = _split(url, "proxy")
    if parts.scheme != "http":
        raise ConfigurationError(f"proxy scheme {parts.scheme!r} is not supported", mend="Use http://")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError("a proxy URL has no path", mend="Write http://host:port")
    authorization = None
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        authorization = b"Basic " + base64.b64encode(pair.encode())
    return Proxy(host=host, port=port or 80, authorization=authorization)


def tls_context_of(upstream: config.Upstream) -> ssl.SSLContext | None:
    """What `dial` needs for this upstream: the context of a ``wss`` or ``https`` URL, None for one without TLS.

    Raises:
        ConfigurationError: as `make_tls_context`; the message names the upstream, too.
    """
    if not parse_url(upstream.url).secure:
        return None
    try:
        return make_tls_context(upstream.tls, protocols=_protocols(upstream))
    except ConfigurationError as error:
        where = f"upstream {upstream.name}: {error.where}"
        raise ConfigurationError(error.problem, where=where, mend=error.mend) from None


def _protocols(upstream: config.Upstream) -> list[str]:
    """What is offered above TLS: HTTP/2 where calls are to share a connection, or where it is asked for.

    With one call for each connection HTTP/1.1 does the same for less: a token costs half as much to read, and no call
    waits behind another's lost packet.
    """
    if upstream.transport == "websocket" or upstream.http_version == "1.1":
        return ["http/1.1"]
    if upstream.http_version == "2":
        return ["h2"]
    return ["h2", "http/1.1"] if upstream.calls_per_connection > 1 else ["http/1.1"]


def make_tls_context(tls: config.Tls, *, protocols: Sequence[str] = ("http/1.1",)) -> ssl.SSLContext:
    """A verifying context, TLS 1.2 or later. With `ca_file`, that authority is trusted and no other.

    Args:
        tls: of the configuration.
        protocols: offered above TLS, the preferred one first (ALPN).

    Raises:
        ConfigurationError: a file is missing, unreadable, not PEM, locked by a passphrase, or the key is not the
            certificate's; the message names the file.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"cannot use {tls.ca_file} as a certificate authority: {_plain(error)}",
            where="tls.ca_file",
            mend="Give a PEM file",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    if tls.key_file is not None and tls.certificate_file is None:
        raise ConfigurationError(
            "a key without its certificate", where="tls.key_file", mend="Give certificate_file too"
        )
    if tls.certificate_file is not None:
        try:
            # Without a password of ours OpenSSL would ask for one on the terminal and wait.
            context.load_cert_chain(tls.certificate_file, tls.key_file, password=b"")
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(name for name in (tls.certificate_file, tls.key_file) if name)
            raise ConfigurationError(
                f"cannot use {files} as a client certificate: {_plain(error)}",
                where="tls.certificate_file",
                mend="Give PEM files, the key without a passphrase",
            ) from error
    return context


def _plain(error: OSError) -> str:
    """An OS or TLS error in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error)


async def dial(
    address: Address,
    *,
    tls: ssl.SSLContext | None,
    proxy: str | None = None,
    keepalive: float | None = None,
    tcp_timeout: float = 2.0,
    tls_timeout: float = 3.0,
    proxy_timeout: float = 5.0,
) -> trio.abc.Stream:
    """Connect, resolving the name anew. Timeouts are seconds, each for its own step.

    Args:
        address: from `parse_url`.
        tls: needed when the address is secure, ignored otherwise.
        proxy: ``http://[user:password@]host:port``, asked to CONNECT.
        keepalive: seconds after which the kernel asks an idle peer whether it is still there; for what has no ping.
        tcp_timeout: name lookup and TCP together.
        tls_timeout: the TLS handshake.
        proxy_timeout: the proxy's answer; its own connect to the upstream is inside.

    Returns:
        a `trio.SocketStream` (or, when a proxy's answer had bytes behind it, something that gives those first), or a
        `TlsStream` after its handshake.

    Raises:
        ConnectFailed: stage resolve, tcp, proxy or tls.
        ConfigurationError: the proxy URL.
        ValueError: a secure address without a context.

    Resource handling: nothing stays open when this raises or is cancelled.
    """
    if address.secure and tls is None:
        raise ValueError("a wss address needs a TLS context")
    via = parse_proxy(proxy) if proxy else None
    connected = await _connect(via.host if via else address.host, via.port if via else address.port, tcp_timeout)
    stream: trio.abc.Stream = connected
    if keepalive is not None:
        _keep_alive(connected, keepalive)
    try:
        received = await _tunnel(stream, address, via, proxy_timeout) if via else b""
        if address.secure and tls is not None:
            secured = TlsStream(stream, tls, address.host, received=received)
            stream = secured
            await _handshake(secured, tls_timeout)
        elif received:
            stream = _Prefixed(stream, received)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _connect(host: str, port: int, timeout: float) -> trio.SocketStream:
    with trio.move_on_after(timeout):
        try:
            return await trio.open_tcp_stream(host, port)
        except socket.gaierror as error:
            raise ConnectFailed("resolve", f"{host}: {error.strerror or error}") from error
        except OSError as error:
            raise ConnectFailed("tcp", f"{host} port {port}: {_causes(error)}") from error
    raise ConnectFailed("tcp", f"{host} port {port}: no connection in {timeout:g} s", timed_out=True)


def _keep_alive(stream: trio.SocketStream, interval: float) -> None:
    """Have the kernel find out a dead peer: after `interval`, then three times a third of it (tcp(7))."""
    seconds = max(1, round(interval))
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 3))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _causes(error: OSError) -> str:
    """What went wrong at each address tried, told once."""
    cause: BaseException | None = error.__cause__
    each = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause or error]
    return ", ".join(dict.fromkeys(_plain(one) if isinstance(one, OSError) else str(one) for one in each))


async def _tunnel(stream: trio.abc.Stream, address: Address, proxy: Proxy, timeout: float) -> bytes:
    """Ask the proxy for a tunnel. Returns the bytes that came behind its answer."""
    headers = [(b"Host", address.authority.encode())]
    if proxy.authorization:
        headers.append((b"Proxy-Authorization", proxy.authorization))
    request = h11.Connection(h11.CLIENT).send(h11.Request(method=b"CONNECT", target=address.authority, headers=headers))
    with trio.move_on_after(timeout):
        try:
            await stream.send_all(request or b"")
            status, _, rest = await read_head(lambda: stream.receive_some(65_536), "proxy")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectFailed("proxy", "connection reset by the proxy") from error
        if status != 200:
            raise ConnectFailed("proxy", f"the proxy answered {status}")
        return rest
    raise ConnectFailed("proxy", f"no answer from the proxy in {timeout:g} s", timed_out=True)


async def _handshake(stream: TlsStream, timeout: float) -> None:
    with trio.move_on_after(timeout):
        try:
            await stream.handshake()
        except ssl.SSLError as error:
            raise ConnectFailed("tls", _plain(error)) from error
        except trio.BrokenResourceError as error:
            raise ConnectFailed("tls", str(error)) from error
        return
    raise ConnectFailed("tls", f"no handshake in {timeout:g} s", timed_out=True)


class _Prefixed(trio.abc.Stream):
    """A stream whose first bytes were read by somebody else already."""

    def __init__(self, transport: trio.abc.Stream, received: bytes) -> None:
        self._transport, self._received = transport, received

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._received:
            return bytes(await self._transport.receive_some(max_bytes))
        await trio.lowlevel.checkpoint()
        received, self._received = self._received[:max_bytes], self._received[max_bytes:] if max_bytes else b""
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._transport.aclose()
