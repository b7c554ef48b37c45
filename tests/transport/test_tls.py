"""TLS on memory buffers: all that a read brought in one piece, EOF is EOF, what reading must answer is answered."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from sidecar.config import Tls
from sidecar.transport.dial import dial, make_tls_context, parse_url
from sidecar.transport.tls import TlsStream
from tests.fakes.websockets_server import Authority

Memory = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA for the module."""
    return Authority(tmp_path_factory.mktemp("ca"))


async def _pair(authority: Authority) -> tuple[TlsStream, trio.SSLStream[Memory]]:
    """Our client and trio's server on a memory stream, handshake done."""
    ours, theirs = trio.testing.memory_stream_pair()
    client = TlsStream(ours, make_tls_context(Tls(ca_file=authority.ca_file)), "localhost")
    server = trio.SSLStream(theirs, authority.server_context(), server_side=True, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


async def test_both_ways(authority: Authority) -> None:
    """Long and short data go both ways unharmed."""
    client, server = await _pair(authority)
    data = bytes(range(256)) * 1000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        received = bytearray()
        while len(received) < len(data):
            received += await server.receive_some()
    assert received == data
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, data)
        received = bytearray()
        while len(received) < len(data):
            received += await client.receive_some()
    assert received == data


async def test_one_read_gives_every_record(authority: Authority) -> None:
    """Records that came in one read of the transport are returned together, in order."""
    client, server = await _pair(authority)
    for index in range(50):
        await server.send_all(b"record %02d " % index)
    assert await client.receive_some() == b"".join(b"record %02d " % index for index in range(50))


async def test_a_record_in_pieces(authority: Authority) -> None:
    """A record cut into single bytes is returned once it is whole, and nothing before."""
    client, server = await _pair(authority)
    outgoing = ssl.MemoryBIO()
    pieces: list[bytes] = []

    class Slow(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            if not outgoing.pending:
                outgoing.write(await client_transport.receive_some(max_bytes))
            pieces.append(outgoing.read(1))
            return pieces[-1]

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    client_transport = client.transport
    client.transport = trio.StapledStream(client_transport, Slow())
    await server.send_all(b"one record")
    assert await client.receive_some() == b"one record"
    assert len(pieces) > 10


@pytest.mark.parametrize("polite", [True, False])
async def test_the_end(authority: Authority, polite: bool) -> None:
    """With close_notify or without, what came before is delivered, then the end is b"", again and again."""
    client, server = await _pair(authority)
    await server.send_all(b"last words")
    if polite:
        await server.aclose()
    else:
        await server.transport_stream.aclose()
    assert await client.receive_some() == b"last words"
    assert [await client.receive_some() for _ in range(3)] == [b"", b"", b""]


async def test_garbage_record(authority: Authority) -> None:
    """A forged record is a broken stream, with the TLS error as its cause, and nothing is sent after it."""
    client, server = await _pair(authority)
    await server.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"more")


async def test_what_came_before_garbage_is_delivered(authority: Authority) -> None:
    """A good record and a forged one in the same read: first the data, then the fault, then the fault again."""
    client, server = await _pair(authority)
    await server.send_all(b"good")
    await server.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    assert await client.receive_some() == b"good"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.receive_some()
        assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_closed(authority: Authority) -> None:
    """Closing twice is fine, sending and receiving after it are not; the peer sees close_notify or EOF."""
    client, server = await _pair(authority)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        assert await server.receive_some() == b""
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"late")
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()


async def test_a_cancelled_send_breaks_the_stream(authority: Authority) -> None:
    """Over a transport that may tear a record, a cancelled send is the last one: never a corrupted stream."""
    client, _ = await _pair(authority)
    ours, _theirs = trio.testing.lockstep_stream_pair()
    client.transport = ours
    with trio.move_on_after(0.01):
        await client.send_all(b"never taken")
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"next")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_key_update_is_answered(authority: Authority, tmp_path: Path) -> None:
    """A TLS 1.3 key update that asks for ours is answered, and both directions go on under the new keys."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    issued = authority.ca.issue_cert("localhost")
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "openssl",
        "s_server",
        "-accept",
        f"127.0.0.1:{port}",
        "-cert",
        str(certificate),
        "-key",
        str(key),
        "-tls1_3",
        "-msg",
    ]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: trio.run_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
                task_status=task_status,
            )
        )
        said = bytearray()

        async def until(words: bytes) -> None:
            with trio.fail_after(5):
                while words not in said:
                    said.extend(await server.stdout.receive_some())

        await until(b"ACCEPT")
        context = make_tls_context(Tls(ca_file=authority.ca_file))
        async with await dial(parse_url(f"wss://localhost:{port}/"), tls=context) as client:
            await client.send_all(b"before\n")
            await until(b"before")
            await server.stdin.send_all(b"K\n")
            await until(b"KeyUpdate")  # asked for
            await server.stdin.send_all(b"hello\n")
            with trio.fail_after(5):
                assert await client.receive_some() == b"hello\n"
            del said[:]
            await client.send_all(b"after\n")
            await until(b"KeyUpdate")  # and answered: OpenSSL does so with the next write
            await until(b"after")
        nursery.cancel_scope.cancel()
