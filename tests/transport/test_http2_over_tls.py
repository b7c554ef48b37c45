"""HTTP/2 that TLS has agreed on: the first request follows the preface; the server's settings count once they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from sidecar.config import Tls
from sidecar.transport.dial import make_tls_context
from sidecar.transport.http import open_http
from sidecar.transport.http2_link import EARLY_STREAMS
from sidecar.transport.tls import TlsStream
from tests.fakes.http_owner import Owner
from tests.fakes.raw_upstream import running_pump
from tests.fakes.websockets_server import Authority
from tests.transport.test_http2_link import Server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA for the module."""
    folder: Path = tmp_path_factory.mktemp("ca")
    return Authority(folder)


@asynccontextmanager
async def agreed(authority: Authority) -> AsyncIterator[tuple[Owner, Server]]:
    """A link on a connection whose TLS has agreed on "h2", and its server, which has said nothing yet."""
    ours, theirs = trio.testing.memory_stream_pair()
    client = TlsStream(ours, make_tls_context(Tls(ca_file=authority.ca_file), protocols=["h2"]), "localhost")
    context = authority.server_context()
    context.set_alpn_protocols(["h2"])
    secured = trio.SSLStream(theirs, context, server_side=True, https_compatible=True)
    owner, server = Owner(), Server(secured)

    async def dialer() -> trio.abc.Stream:
        await client.handshake()
        return client

    async with trio.open_nursery() as nursery, running_pump() as pump:
        nursery.start_soon(secured.do_handshake)
        owner.link = await open_http(
            dialer, "host", "/v1/x", owner, pump=pump, headers=[], ended=owner.ended, opening_timeout=3.0
        )
        owner.link.start()
        yield owner, server
        owner.link.abort()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("allowed", "room"), [(1, []), (EARLY_STREAMS, []), (100, [(100,)])])
async def test_the_first_request_waits_for_no_settings(
    autojump_clock: trio.testing.MockClock, authority: Authority, allowed: int, room: list[tuple[int]]
) -> None:
    """A server that says its settings only after a request: it gets one. They count from then on; room is told of."""
    async with agreed(authority) as (owner, server):
        assert owner.link.slots == EARLY_STREAMS
        owner.link.send(0, b"{}")
        with trio.fail_after(2):
            data = b""
            while b"{}" not in data:
                data += bytes(await server.stream.receive_some())
        server.engine.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: allowed}
        )
        server.engine.initiate_connection()
        server.events += server.engine.receive_data(data)
        assert len(server.of(h2.events.StreamEnded)) == 1
        await server.answer(1, b"data: a\n\n")
        await owner.until("over")
        assert (owner.payloads(), owner.link.slots) == ([b"a"], allowed)
        assert owner.of("room") == room
        await trio.sleep(10)
        assert not owner.ends  # nobody waits for them any more


async def test_more_than_the_settings_turn_out_to_allow(
    autojump_clock: trio.testing.MockClock, authority: Authority
) -> None:
    """Who was refused because nobody knew the limit yet tells nothing of the server; who is refused later does."""
    async with agreed(authority) as (owner, server):
        server.engine.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 4}
        )
        for slot in range(4):
            owner.link.send(slot, b"{}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            for sid in (3, 5, 7):
                await server.until(h2.events.RequestReceived, 4)
                server.engine.reset_stream(sid, h2.errors.ErrorCodes.REFUSED_STREAM)
            await server.flush()
            assert await owner.until("over", 3) == [(1, "idle"), (2, "idle"), (3, "idle")]
            await server.answer(1, b"data: a\n\n")
            owner.link.send(1, b"{}")
            await server.until(h2.events.RequestReceived, 5)
            server.engine.reset_stream(9, h2.errors.ErrorCodes.REFUSED_STREAM)
            await server.flush()
            assert (await owner.until("over", 5))[-1] == (1, "unprocessed")
            nursery.cancel_scope.cancel()
        assert not owner.ends


async def test_settings_that_never_come(autojump_clock: trio.testing.MockClock, authority: Authority) -> None:
    """A server that agrees and then says nothing is given up after the time for the opening, once."""
    async with agreed(authority) as (owner, _):
        began = trio.current_time()
        assert await owner.until("ended") == [("silence",)]
        assert trio.current_time() - began == pytest.approx(3.0)
        await trio.sleep(10)
        assert len(owner.ends) == 1
