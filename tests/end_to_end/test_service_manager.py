"""The daemon under a service manager that is a datagram socket: what it is told, and when it is told nothing."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.end_to_end.processes import PATIENCE, Processes, route, upstream


@pytest.fixture
def manager() -> Iterator[tuple[Processes, socket.socket]]:
    """A folder with a NOTIFY_SOCKET in it."""
    with Processes() as processes, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(processes.folder / "notify"))
        yield processes, listener


def wait_for(listener: socket.socket, word: str, *, patience: float = PATIENCE) -> bool:
    """Whether a datagram with that line comes within `patience` seconds."""
    until = time.monotonic() + patience
    while (left := until - time.monotonic()) > 0:
        readable, _, _ = select.select([listener], [], [], left)
        if readable and word in listener.recv(4096).decode().splitlines():
            return True
    return False


def test_ready_watchdog_stopping(manager: tuple[Processes, socket.socket]) -> None:
    """READY once bound, with no upstream there; the watchdog is fed, not by a stopped daemon; STOPPING at SIGTERM."""
    processes, listener = manager
    daemon = processes.daemon(
        upstream("nobody", "ws://127.0.0.1:1/v1/responses") + route("nobody"),
        ready=False,
        NOTIFY_SOCKET=str(processes.folder / "notify"),
        WATCHDOG_USEC="400000",
    )
    assert wait_for(listener, "READY=1")
    assert wait_for(listener, "WATCHDOG=1")
    daemon.send_signal(signal.SIGSTOP)
    while wait_for(listener, "WATCHDOG=1", patience=0.5):
        pass  # what was on its way
    assert not wait_for(listener, "WATCHDOG=1", patience=1)
    daemon.send_signal(signal.SIGCONT)
    assert wait_for(listener, "WATCHDOG=1")
    daemon.send_signal(signal.SIGTERM)
    assert wait_for(listener, "STOPPING=1")
    assert daemon.wait(PATIENCE) == 0
