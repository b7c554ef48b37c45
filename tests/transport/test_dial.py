"""Dialling: the URL's rules, each step's failure named at once or at its cap, a verified name, a proxy."""

from __future__ import annotations

import base64
import datetime
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from sidecar.config import Tls
from sidecar.errors import ConfigurationError, ConnectFailed
from sidecar.transport.dial import Address, dial, make_tls_context, parse_proxy, parse_url
from sidecar.transport.tls import TlsStream
from tests.fakes.raw_upstream import listen
from tests.fakes.websockets_server import Authority, websockets_server

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA for the module."""
    return Authority(tmp_path_factory.mktemp("ca"))


def reset(stream: trio.SocketStream) -> None:
    """Close with a RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    stream.socket.close()


@pytest.mark.parametrize(
    ("url", "address", "host_header"),
    [
        ("wss://api.openai.com/v1/responses", (True, "api.openai.com", 443, "/v1/responses"), "api.openai.com"),
        ("wss://Example.COM:8443/a?b=c%20d", (True, "example.com", 8443, "/a?b=c%20d"), "example.com:8443"),
        ("ws://127.0.0.1:80", (False, "127.0.0.1", 80, "/"), "127.0.0.1"),
        ("ws://localhost:9/x", (False, "localhost", 9, "/x"), "localhost:9"),
        ("ws://[::1]:81/", (False, "::1", 81, "/"), "[::1]:81"),
        ("wss://[2001:db8::1]/", (True, "2001:db8::1", 443, "/"), "[2001:db8::1]"),
        ("https://api.example/v1/messages", (True, "api.example", 443, "/v1/messages"), "api.example"),
        ("http://127.0.0.1:8787/v1/chat", (False, "127.0.0.1", 8787, "/v1/chat"), "127.0.0.1:8787"),
        ("wss://h?compress=zstd-stream", (True, "h", 443, "/?compress=zstd-stream"), "h"),
    ],
)
def test_urls(url: str, address: tuple[Any, ...], host_header: str) -> None:
    """A URL gives host, port, resource and the Host header that belongs to them."""
    parsed = parse_url(url)
    assert (parsed.secure, parsed.host, parsed.port, parsed.resource) == address
    assert parsed.host_header == host_header


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://api.openai.com/", "http://api.openai.com/"),
        *("", "api.openai.com", "ws://api.openai.com/", "ws://10.0.0.1/", "ws://0.0.0.0/"),
        *(
            "wss://",
            "wss:///path",
            "wss://user:hunter2@host/",
            "wss://hunter2@host/",
            "wss://host/#hunter2",
            "wss://host/#",
        ),
        *(
            "wss://host:99999/",
            "wss://host:x/",
            "wss://host:0/",
            "wss://ho st/",
            "wss://host/a b",
            "wss://host/\r\nX: hunter2",
        ),
        *(
            "wss://hóst/",
            "wss://host/é",
            "wss://a..b/",
            "wss://-a/",
            "wss://[::1/",
            "wss://[zz]/",
            f"wss://{'a' * 64}/",
        ),
        *("ws://127.0.0.1.evil.example/", "ws://localhost.evil.example/", f"wss://{'a.' * 130}com/", "wss://host\x00/"),
    ],
)
def test_urls_refused(url: str) -> None:
    """No clear text over the network, no secrets in URLs, nothing HTTP could misread; the error repeats none of it."""
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://p:1", "socks5://p:1", "p:1", "http://", "http://p/path", "http://u:hunter2@p/x"]
)
def test_proxies_refused(url: str) -> None:
    """Only plain HTTP proxies without a path."""
    with pytest.raises(ConfigurationError) as caught:
        parse_proxy(url)
    assert "hunter2" not in str(caught.value)


def test_proxy_password_is_not_shown() -> None:
    """A proxy's password is decoded for the header and kept out of repr."""
    proxy = parse_proxy("http://me:p%40ss@proxy:3128")
    assert proxy.authorization == b"Basic " + base64.b64encode(b"me:p@ss")
    assert repr(proxy) == "Proxy(proxy:3128)"


def _address(port: int, *, secure: bool = False, host: str = "localhost") -> Address:
    return Address(secure=secure, host=host, port=port, resource="/")


async def test_plain() -> None:
    """A plain connection is a socket stream."""
    with websockets_server() as server:
        async with await dial(_address(server.port), tls=None) as stream:
            assert isinstance(stream, trio.SocketStream)


async def test_verified(authority: Authority) -> None:
    """With the right CA and name the handshake succeeds, TLS 1.2 or later."""
    with websockets_server(tls=authority.server_context()) as server:
        context = make_tls_context(Tls(ca_file=authority.ca_file))
        async with await dial(_address(server.port, secure=True), tls=context) as stream:
            assert isinstance(stream, TlsStream)
            assert stream.version in ("TLSv1.2", "TLSv1.3")
        async with await dial(_address(server.port, secure=True, host="127.0.0.1"), tls=context):
            pass


@pytest.mark.parametrize("what", ["wrong CA", "wrong name", "expired", "no CA"])
async def test_not_verified(authority: Authority, tmp_path: Path, what: str) -> None:
    """A certificate of another CA, for another name, or out of date fails the TLS stage at once, with the reason."""
    names = ("elsewhere.example",) if what == "wrong name" else ("localhost",)
    past = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    dates = {"not_before": past, "not_after": past + datetime.timedelta(days=9)} if what == "expired" else {}
    trusted = Authority(tmp_path).ca_file if what == "wrong CA" else None if what == "no CA" else authority.ca_file
    context = make_tls_context(Tls(ca_file=trusted))
    with (
        websockets_server(tls=authority.server_context(*names, **dates)) as server,
        trio.fail_after(2),
        pytest.raises(ConnectFailed) as caught,
    ):
        await dial(_address(server.port, secure=True), tls=context, tls_timeout=60)
    assert (caught.value.stage, caught.value.timed_out) == ("tls", False)
    assert {"wrong name": "mismatch", "expired": "expired"}.get(what, "issuer") in caught.value.reason


@pytest.mark.parametrize("how", ["eof", "reset", "plain http", "garbage"])
async def test_tls_handshake_dies(how: str) -> None:
    """A TLS handshake that ends or is none fails at once."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if how == "reset":
            reset(stream)
        elif how != "eof":
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" if how == "plain http" else b"\xff" * 100)
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        port = await listen(nursery, handler)
        with trio.fail_after(2), pytest.raises(ConnectFailed) as caught:
            await dial(_address(port, secure=True), tls=make_tls_context(Tls()), tls_timeout=60)
        nursery.cancel_scope.cancel()
    assert (caught.value.stage, caught.value.timed_out) == ("tls", False)


async def test_tls_handshake_is_silent() -> None:
    """A server that never answers ClientHello fails at the TLS cap, and its connection is closed."""
    closed = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        closed.set()

    async with trio.open_nursery() as nursery:
        port = await listen(nursery, handler)
        with pytest.raises(ConnectFailed) as caught:
            await dial(_address(port, secure=True), tls=make_tls_context(Tls()), tls_timeout=0.05)
        with trio.fail_after(2):
            await closed.wait()
        nursery.cancel_scope.cancel()
    assert (caught.value.stage, caught.value.timed_out) == ("tls", True)


async def test_nobody_listens() -> None:
    """A refused connection is a TCP failure, at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with trio.fail_after(2), pytest.raises(ConnectFailed) as caught:
            await dial(_address(taken.getsockname()[1], host="127.0.0.1"), tls=None, tcp_timeout=60)
    assert caught.value.stage == "tcp"
    assert "refused" in caught.value.reason.lower()


class _Resolver(trio.abc.HostnameResolver):
    """Answers with whatever the test wants, and counts."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, 0

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        self.asked += 1
        if self.answer == "never":
            await trio.sleep_forever()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", self.answer))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_unknown_name_and_dead_resolver() -> None:
    """An unknown name is its own stage; a resolver that never answers ends at the cap."""
    trio.socket.set_custom_hostname_resolver(_Resolver(socket.gaierror(-2, "Name or service not known")))
    with pytest.raises(ConnectFailed) as caught:
        await dial(_address(443, host="nowhere.invalid"), tls=None)
    assert caught.value.stage == "resolve"
    trio.socket.set_custom_hostname_resolver(_Resolver("never"))
    with pytest.raises(ConnectFailed) as caught:
        await dial(_address(443, host="nowhere.invalid"), tls=None, tcp_timeout=0.02)
    assert (caught.value.stage, caught.value.timed_out) == ("tcp", True)


async def test_names_are_resolved_anew() -> None:
    """Every dial asks the resolver again: a service may have moved."""
    with websockets_server() as server:
        resolver = _Resolver(server.port)
        trio.socket.set_custom_hostname_resolver(resolver)
        for _ in range(2):
            await (await dial(_address(server.port, host="some.example"), tls=None)).aclose()
    assert resolver.asked == 2


async def _proxy(nursery: trio.Nursery, target: int, seen: list[bytes]) -> int:
    """An HTTP proxy that tunnels every CONNECT to `target` on this host."""

    async def pump(source: trio.abc.Stream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some():
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def handler(stream: trio.SocketStream) -> None:
        seen.append(bytes(await stream.receive_some()))
        async with await trio.open_tcp_stream("127.0.0.1", target) as onward:
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: fake\r\n\r\n")
            async with trio.open_nursery() as pumps:
                pumps.start_soon(pump, stream, onward)
                pumps.start_soon(pump, onward, stream)

    return await listen(nursery, handler)


async def test_through_a_proxy(authority: Authority) -> None:
    """CONNECT with the proxy's own authorization, then TLS with the upstream, verified for the upstream's name."""
    seen: list[bytes] = []
    with websockets_server(tls=authority.server_context("upstream.example")) as server:
        async with trio.open_nursery() as nursery:
            port = await _proxy(nursery, server.port, seen)
            context = make_tls_context(Tls(ca_file=authority.ca_file))
            address = _address(443, secure=True, host="upstream.example")
            async with await dial(address, tls=context, proxy=f"http://me:secret@127.0.0.1:{port}") as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 426")
            nursery.cancel_scope.cancel()
    assert seen[0].startswith(b"CONNECT upstream.example:443 HTTP/1.1\r\n")
    assert b"roxy-" in seen[0]
    assert base64.b64encode(b"me:secret") in seen[0]


async def test_bytes_behind_the_proxys_answer_are_kept() -> None:
    """A server that speaks first loses nothing when its words come in one segment with the proxy's answer."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nfirst words")
        await stream.send_all(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        port = await listen(nursery, handler)
        async with await dial(_address(1), tls=None, proxy=f"http://127.0.0.1:{port}") as stream:
            assert await stream.receive_some(5) == b"first"
            assert await stream.receive_some() == b" words"
            await stream.send_all(b"answer")
            assert await stream.receive_some() == b"answer"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "answered 407"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answered 204"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n<html>", "answered 502"),
        (b"SSH-2.0-OpenSSH_9\r\n", "not HTTP/1"),
        (b"HTTP/1.1 OK\r\n\r\n", "not an HTTP/1 response"),
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "over 65536"),
    ],
)
async def test_proxy_refuses(answer: bytes, reason: str) -> None:
    """Anything but 200 from the proxy, garbage, silence or EOF is a failure of the proxy stage."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        if answer:
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        port = await listen(nursery, handler)
        with trio.fail_after(2), pytest.raises(ConnectFailed) as caught:
            await dial(_address(1), tls=None, proxy=f"http://u:hunter2@127.0.0.1:{port}", proxy_timeout=60)
        nursery.cancel_scope.cancel()
    assert caught.value.stage == "proxy"
    assert reason in caught.value.reason
    assert "hunter2" not in str(caught.value)


async def test_proxy_is_silent() -> None:
    """A proxy that never answers ends at its cap."""

    async def handler(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with trio.open_nursery() as nursery:
        port = await listen(nursery, handler)
        with pytest.raises(ConnectFailed) as caught:
            await dial(_address(1), tls=None, proxy=f"http://127.0.0.1:{port}", proxy_timeout=0.05)
        nursery.cancel_scope.cancel()
    assert (caught.value.stage, caught.value.timed_out) == ("proxy", True)


async def test_a_secure_address_needs_a_context() -> None:
    """Forgetting the TLS context is a programming error, never a plain connection."""
    with pytest.raises(ValueError, match="TLS context"):
        await dial(_address(443, secure=True), tls=None)


def test_tls_files(authority: Authority, tmp_path: Path) -> None:
    """Each file that cannot be used is named; an encrypted key does not ask on the terminal."""
    client, other = authority.ca.issue_cert("bot"), trustme.CA().issue_cert("other")
    certificate, key, wrong, locked, junk = (tmp_path / name for name in ("c.pem", "k.pem", "w.pem", "l.pem", "j.pem"))
    client.cert_chain_pems[0].write_to_path(certificate)
    client.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(wrong)
    junk.write_text("not PEM")
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    make_tls_context(Tls(ca_file=authority.ca_file, certificate_file=str(certificate), key_file=str(key)))
    for bad, named in [
        (Tls(ca_file=str(tmp_path / "none.pem")), "none.pem"),
        (Tls(ca_file=str(junk)), "j.pem"),
        (Tls(certificate_file=str(junk), key_file=str(key)), "j.pem"),
        (Tls(certificate_file=str(certificate), key_file=str(wrong)), "w.pem"),
        (Tls(certificate_file=str(certificate), key_file=str(locked)), "l.pem"),
        (Tls(key_file=str(key)), "tls.key_file"),
    ]:
        with pytest.raises(ConfigurationError, match=named):
            make_tls_context(bad)
