"""Peers that speak ZMTP 1.0 or 2.0: libzmq takes them, and tells nothing of who they are."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator

import pytest
import trio
import zmq

from sidecar.transport.zmq_socket import RouterPort

SIGNATURE = b"\xff\0\0\0\0\0\0\0\x01\x7f"


@pytest.fixture
def address() -> Iterator[str]:
    """A short ipc address."""
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as name:
        yield f"ipc://{name}/s"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\x01\x00" + b"\x03\x00hi", id="1.0, six bytes"),
        pytest.param(b"\x01\x00" + b"\x01\x00" * 50, id="1.0, empty messages"),
        pytest.param(SIGNATURE + b"\x00\x05" + b"\x00\x00" + b"\x00\x02hi", id="1.0 by signature"),
        pytest.param(SIGNATURE + b"\x01\x05" + b"\x00\x00" + b"\x00\x02hi", id="2.0"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, id="HTTP"),
    ],
)
async def test_an_old_peer_is_not_heard_and_harms_nobody(address: str, said: bytes) -> None:
    """Its messages have no metadata, which once ended the daemon: they are dropped, and the next bot is heard."""
    with RouterPort(max_message_bytes=4096) as port, zmq.Context() as context:
        port.bind(address)
        with socket.socket(socket.AF_UNIX) as old, context.socket(zmq.DEALER) as bot:
            old.connect(address.removeprefix("ipc://"))
            old.sendall(said)
            bot.linger = 0
            heard: list[bytes | None] = []
            with trio.fail_after(10):
                for number in range(20):  # the old peer's message comes somewhere among these
                    if number == 2:
                        bot.connect(address)
                        bot.send(json.dumps({"type": "ping"}).encode())
                    with trio.move_on_after(0.02):
                        heard += [incoming.payload for incoming in await port.receive_batch(64)]
                while not heard:
                    heard += [incoming.payload for incoming in await port.receive_batch(64)]
            assert heard == [b'{"type": "ping"}']
            assert port.departures() == []
