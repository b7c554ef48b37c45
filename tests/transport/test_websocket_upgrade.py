"""The upgrade: refusals come out whole, and what is no handshake fails at once or at its cap, never later."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sidecar.config import Tls
from sidecar.errors import ConnectFailed, UpgradeRefused
from sidecar.transport.dial import dial, make_tls_context, parse_url
from sidecar.transport.frames import TEXT
from sidecar.transport.websocket import open_websocket
from tests.fakes.raw_upstream import (
    IDLE,
    Handler,
    Owner,
    drain,
    request,
    serve,
    switching,
)
from tests.fakes.websockets_server import Authority, websockets_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA for the module."""
    return Authority(tmp_path_factory.mktemp("ca"))


REFUSALS: dict[str, tuple[bytes, int, bytes]] = {
    "301": (b"HTTP/1.1 301 Moved Permanently\r\nLocation: wss://evil.example/\r\nContent-Length: 0\r\n\r\n", 301, b""),
    "401": (
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\nX-A: 1\r\nX-A: 2\r\n\r\n" + b"{'e': 42}",
        401,
        b"{'e': 42}",
    ),
    "429": (
        b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        429,
        b"abc",
    ),
    "until EOF": (b"HTTP/1.0 503 Busy\r\n\r\nplease wait", 503, b"please wait"),
    "cut": (b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf", 500, b"half"),
    "long": (b"HTTP/1.1 403 No\r\nContent-Length: 9000\r\n\r\n" + b"n" * 9000, 403, b"n" * 4096),
    "200": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi"),
    "hints first": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        404,
        b"",
    ),
}


async def attempt(handler: Handler, **options: Any) -> Exception:
    """What `open_websocket` raises against `handler`, which gets the connection before the request is read."""
    owner = Owner()
    async with trio.open_nursery() as nursery:
        dialer = await serve(nursery, handler)
        with pytest.raises((ConnectFailed, UpgradeRefused)) as caught, trio.fail_after(3):
            await owner.run(dialer, {"upgrade_timeout": 60, **options})
        nursery.cancel_scope.cancel()
    assert owner.told == []
    return caught.value


@pytest.mark.parametrize("name", REFUSALS)
async def test_refused(name: str) -> None:
    """Another status than 101 comes out with headers and at most 4 KiB of body, at once; redirects are not followed."""
    answer, status, body = REFUSALS[name]

    async def handler(stream: trio.abc.Stream) -> None:
        await request(stream)
        await stream.send_all(answer)

    error = await attempt(handler)
    assert isinstance(error, UpgradeRefused)
    assert (error.status, error.body) == (status, body)
    if name == "401":
        assert error.headers["x-a"] == "1, 2"


async def test_refusal_with_a_dripping_body(autojump_clock: trio.testing.MockClock) -> None:
    """An endless body does not hide the status: what came within a second is what there is."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def server() -> None:
        await request(theirs)
        await theirs.send_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await theirs.send_all(b".")
            await trio.sleep(0.3)

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        with pytest.raises(UpgradeRefused) as caught:
            await open_websocket(dialer, "h", "/", print, pump=IDLE, headers=[])
        nursery.cancel_scope.cancel()
    assert (caught.value.status, caught.value.body) == (401, b"....")


NOT_A_HANDSHAKE: dict[str, tuple[bytes, str]] = {
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", "not HTTP/1"),
    "binary": (b"\x00\x01\x02\xff", "not HTTP/1"),
    "no status": (b"HTTP/1.1 hello\r\n\r\n", "not an HTTP/1 response"),
    "broken header": (b"HTTP/1.1 401 No\r\nno colon here\r\n\r\n", "not an HTTP/1 response"),
    "broken 101": (b"HTTP/1.1 101 Yes\r\nno colon here\r\n\r\n", "Bad HTTP message"),
    "eof": (b"", "closed"),
    "half a header": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web", "closed"),
    "endless header": (b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"a" * (80 << 10), "over 65536"),
    "long header": (b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"a" * (65 << 10) + b"\r\n\r\n", "over 65536"),
    "hints for ever": (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "over 65536"),
}


@pytest.mark.parametrize("name", NOT_A_HANDSHAKE)
async def test_not_a_handshake(name: str) -> None:
    """Garbage, EOF and endless headers fail the upgrade at once, not at its cap."""
    answer, reason = NOT_A_HANDSHAKE[name]

    async def handler(stream: trio.abc.Stream) -> None:
        await request(stream)
        await stream.send_all(answer)
        if name in ("garbage", "HTTP/2", "binary", "broken 101"):
            await drain(stream)  # it stays open: silence after garbage must not hide it

    error = await attempt(handler)
    assert isinstance(error, ConnectFailed)
    assert (error.stage, error.timed_out) == ("upgrade", False)
    assert reason in error.reason


WRONG_101: dict[str, tuple[dict[str, str | None], str]] = {
    "accept": ({"Sec_WebSocket_Accept": "bm90IHRoZSBvbmU="}, "accept token"),
    "no accept": ({"Sec_WebSocket_Accept": None}, "accept token"),
    "no upgrade": ({"Upgrade": None}, "Upgrade"),
    "other upgrade": ({"Upgrade": "h2c"}, "Upgrade"),
    "no connection": ({"Connection": None}, "Connection"),
    "extension": ({"Sec_WebSocket_Extensions": "permessage-deflate"}, "extension"),
    "subprotocol": ({"Sec_WebSocket_Protocol": "chat"}, "subprotocol"),
}


@pytest.mark.parametrize("name", WRONG_101)
async def test_wrong_101(name: str) -> None:
    """A 101 response that does not answer our request, or grants what we did not ask for, is refused at once."""
    changes, reason = WRONG_101[name]

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(switching(await request(stream), **changes))
        await drain(stream)

    error = await attempt(handler)
    assert isinstance(error, ConnectFailed)
    assert (error.stage, error.timed_out) == ("upgrade", False)
    assert reason in error.reason


async def test_undecodable_101() -> None:
    """Bytes that are no text in a header that the library decodes are mapped too."""

    async def handler(stream: trio.abc.Stream) -> None:
        await stream.send_all(switching(await request(stream))[:-2] + b"Sec-WebSocket-Protocol: \xff\xfe\r\n\r\n")
        await drain(stream)

    assert isinstance(await attempt(handler), ConnectFailed)


async def test_reset_during_the_upgrade() -> None:
    """A RST instead of an answer fails at once."""

    async def handler(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        await request(stream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    error = await attempt(handler)
    assert isinstance(error, ConnectFailed)
    assert (error.stage, error.timed_out, "reset" in error.reason) == ("upgrade", False, True)


@pytest.mark.parametrize("drip", [False, True])
async def test_upgrade_cap(autojump_clock: trio.testing.MockClock, drip: bool) -> None:
    """Silence, or a header that drips a byte a second, ends at upgrade_timeout and the stream is closed."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def server() -> None:
        answer = switching(await request(theirs))
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - whichever finds the client gone
            for at in range(len(answer) if drip else 0):
                await theirs.send_all(answer[at : at + 1])
                await trio.sleep(1)
            await drain(theirs)
            raise trio.BrokenResourceError

    async def dialer() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        started = trio.current_time()
        with pytest.raises(ConnectFailed) as caught:
            await open_websocket(dialer, "h", "/", print, pump=IDLE, headers=[], upgrade_timeout=5)
        assert trio.current_time() - started == pytest.approx(5)
    assert (caught.value.stage, caught.value.timed_out) == ("upgrade", True)


async def test_tls_client_certificate(authority: Authority, tmp_path: Path) -> None:
    """A client certificate is shown to who asks for it.

    TLS 1.3 refuses a missing one only after the client's handshake; the failure is still TLS's.
    """
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(context)

    def refuse(listener: socket.socket) -> None:
        # asyncio and trio close without sending the alert; a blocking socket lets OpenSSL send it
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secured:
            with pytest.raises(ssl.SSLError):
                secured.do_handshake()
            os.read(secured.fileno(), 65_536)  # the request: closing with it unread would be a RST

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        address = parse_url(f"wss://localhost:{listener.getsockname()[1]}/")
        tls = make_tls_context(Tls(ca_file=authority.ca_file))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, refuse, listener)
            with trio.fail_after(3), pytest.raises(ConnectFailed) as caught:
                await open_websocket(lambda: dial(address, tls=tls), "localhost", "/", print, pump=IDLE, headers=[])
    assert caught.value.stage == "tls"
    assert "certificate" in caught.value.reason.lower()

    issued = authority.ca.issue_cert("bot")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    tls = make_tls_context(Tls(ca_file=authority.ca_file, certificate_file=str(tmp_path / "both.pem")))
    with websockets_server(tls=context) as server:
        owner = Owner()
        async with trio.open_nursery() as nursery:
            websocket = await nursery.start(owner.run, lambda: dial(parse_url(server.url), tls=tls), {})
            websocket.send(0, b"welcome")
            assert await owner.until(1) == [(TEXT, b"welcome")]
            websocket.abort()


@pytest.mark.parametrize(
    "header",
    [(b"Authorization", b"Bearer hunter2\r\nX: y"), (b"Authorization", b"hunter2 "), (b"Bad Name", b"x"), (b"", b"x")],
)
async def test_impossible_headers(header: tuple[bytes, bytes]) -> None:
    """A header HTTP cannot carry is refused before dialling, and its value is not repeated."""

    async def dialer() -> trio.abc.Stream:
        raise AssertionError("dialled")

    with pytest.raises(ConnectFailed) as caught:
        await open_websocket(dialer, "h", "/", print, pump=IDLE, headers=[header])
    assert "hunter2" not in str(caught.value)


async def test_dial_failure_passes_through() -> None:
    """What the dialer raises comes out as it is."""

    async def dialer() -> trio.abc.Stream:
        raise ConnectFailed("tcp", "no way", timed_out=True)

    with pytest.raises(ConnectFailed, match="no way"):
        await open_websocket(dialer, "h", "/", print, pump=IDLE, headers=[])
