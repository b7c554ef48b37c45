"""A message without an end: libzmq gathers its frames where nobody sees them, and bounds each frame but not their sum.

No counter tells how much of the daemon's memory a connection holds. What can be told is who sends all the time and
never finishes a message; it is asked only while the process is larger than it should be.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.transport.zmq_socket import RouterPort

#: Bytes by which the process may grow before anybody is suspected.
MARGIN: Final = 64 << 20
#: Seconds between two looks. Two in a row convict.
INTERVAL: Final = 0.05


def resident_bytes() -> int:
    """The process's resident memory."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")


class EndlessGuard:
    """Shuts connections down that swell the daemon with a message that does not end.

    Args:
        port: the bots' socket.
        resident: bytes of memory that the process holds.
        margin: see `MARGIN`; counted from the first look.
    """

    def __init__(self, port: RouterPort, *, resident: Callable[[], int] = resident_bytes, margin: int = MARGIN) -> None:
        self._port = port
        self._resident = resident
        self._limit = resident() + margin
        self._suspects: set[int] = set()

    def look(self) -> int:
        """Look once, every `INTERVAL`; returns how many connections were shut down."""
        spoke = self._port.spoke_since()
        if self._resident() < self._limit:
            self._suspects.clear()
            return 0
        if spoke is None:
            return 0  # whose bytes wait may wait for us
        silent = {fd for fd in self._port.connected() if fd not in spoke and _is_sending(fd)}
        guilty = silent & self._suspects
        self._suspects = silent - guilty
        for fd in guilty:
            self._port.drop(fd)
        return len(guilty)


def _is_sending(fd: int) -> bool:
    """Whether the kernel holds bytes of this peer that libzmq has not read yet."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count, True)
    except OSError:
        return False
    return count[0] > 0
