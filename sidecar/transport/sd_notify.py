"""What the service manager is told: sd_notify(3) in a few lines, since the libraries are stale or need C.

Every message is one datagram to `$NOTIFY_SOCKET`. Not started by systemd: every method does nothing. Nothing here
blocks or raises: a daemon does not stop because its supervisor does not listen.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

_MAX_STATUS: Final = 1024


class Notifier:
    """The service manager's ear.

    Args:
        environ: for `NOTIFY_SOCKET`: a path, or `@name` in the abstract namespace.

    Resource handling: one unconnected datagram socket, made at once and closed by `close()` or with the process.
    Error handling: a message that cannot be sent is lost; the last result is in `delivered`.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self.delivered = False
        self._socket: socket.socket | None = None
        if not address.startswith(("/", "@")):  # unset, or vsock, which is for virtual machines
            return
        self._address = "\0" + address[1:] if address.startswith("@") else address
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        except OSError:
            self.close()

    @property
    def active(self) -> bool:
        """Somebody may be listening."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """The endpoint is bound: units ordered after this one may start."""
        self._send("READY=1", *_status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`; no secrets, no prompts."""
        self._send(*_status(status))

    def reloading(self, monotonic_usec: int) -> None:
        """A reload begins; `ready()` ends it. `monotonic_usec` is CLOCK_MONOTONIC now (Type=notify-reload wants it)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_usec:d}")

    def stopping(self, status: str = "") -> None:
        """The drain begins."""
        self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> None:
        """Alive: send it only after a real round trip through loop and socket."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, usec: int) -> None:
        """Start or stop may take `usec` more microseconds from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={usec:d}")

    def close(self) -> None:
        """Say nothing more. Twice is once."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _send(self, *lines: str) -> None:
        self.delivered = False
        if self._socket is None or not lines:
            return
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):  # full, gone, a path too long, a NUL in it
            return
        self.delivered = True


def _status(text: str) -> list[str]:
    """A status is one line: a second one would be read as a command."""
    line = " ".join(text.split())[:_MAX_STATUS]
    return [f"STATUS={line}"] if line else []


def watchdog_interval(environ: Mapping[str, str], *, pid: int | None = None) -> float | None:
    """Seconds between two `watchdog()` calls: half of what the manager allows; None when it does not watch us.

    Args:
        environ: `WATCHDOG_USEC`, and `WATCHDOG_PID` when the watch is for one process.
        pid: of this process; None asks the system.
    """
    try:
        usec = int(environ.get("WATCHDOG_USEC", ""))
        watched = int(environ.get("WATCHDOG_PID", "") or (os.getpid() if pid is None else pid))
    except ValueError:
        return None
    if usec <= 0 or watched != (os.getpid() if pid is None else pid):
        return None
    return usec / 2_000_000
