"""What systemd is told: right datagrams, and never a block or an exception."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.transport.sd_notify import Notifier, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and its NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@sidecar-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address.replace("@", "\0") if address.startswith("@") else address)
        server.settimeout(5)
        yield server, address


def test_each_message_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    """In the words of sd_notify(3)."""
    server, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert notifier.active
    for send, expected in (
        (lambda: notifier.ready("bound, 2 upstreams"), b"READY=1\nSTATUS=bound, 2 upstreams"),
        (lambda: notifier.ready(), b"READY=1"),
        (lambda: notifier.status("3 in flight"), b"STATUS=3 in flight"),
        (lambda: notifier.reloading(81_234_567), b"RELOADING=1\nMONOTONIC_USEC=81234567"),
        (lambda: notifier.watchdog(), b"WATCHDOG=1"),
        (lambda: notifier.extend_timeout(5_000_000), b"EXTEND_TIMEOUT_USEC=5000000"),
        (lambda: notifier.stopping("draining"), b"STOPPING=1\nSTATUS=draining"),
    ):
        send()
        assert notifier.delivered
        assert server.recv(4096) == expected
    notifier.close()


def test_a_status_is_one_line(manager: tuple[socket.socket, str]) -> None:
    """A line break in it would be a command to the manager; half a surrogate pair and a giant are no harm."""
    server, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.status("a\nSTOPPING=1\r\n\ud800" + "x" * 100_000)
    received = server.recv(1 << 20)
    assert received.startswith(b"STATUS=a STOPPING=1 ?xxx")
    assert b"\n" not in received
    assert len(received) < 2000
    notifier.close()


@pytest.mark.parametrize(
    "address", ["", "vsock:2:1234", "relative", "/nonexistent/notify", "/" + "x" * 200, "/a\0b", "@"]
)
def test_nobody_there_is_no_harm(address: str) -> None:
    """Unset, of a kind that is not ours, gone, too long, with a NUL: nothing is raised, nothing delivered."""
    notifier = Notifier({"NOTIFY_SOCKET": address} if address else {})
    notifier.ready("x")
    notifier.watchdog()
    assert not notifier.delivered
    notifier.close()
    notifier.close()
    notifier.watchdog()
    assert not notifier.active


def test_a_manager_that_does_not_read_blocks_nobody(manager: tuple[socket.socket, str]) -> None:
    """When its queue is full messages are lost; when it reads again they arrive again."""
    server, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(10_000):
        notifier.watchdog()
    assert not notifier.delivered
    server.setblocking(False)
    while True:
        try:
            server.recv(100)
        except BlockingIOError:
            break
    notifier.watchdog()
    assert notifier.delivered
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "42"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "me"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_bites(environ: dict[str, str], expected: float | None) -> None:
    """Half of WATCHDOG_USEC in seconds, for the process it is meant for."""
    assert watchdog_interval(environ, pid=42) == expected
