"""What both sockets for bots ask of the kernel: whose process has ended, what is unread, how far descriptors reach."""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import termios
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

#: Descriptors kept free below RLIMIT_NOFILE: for the upstreams, and since libzmq aborts the process when accept fails
#: for want of them.
FD_RESERVE: Final = 64

H = TypeVar("H", bound=Hashable)


class BotProcesses(Generic[H]):
    """A pidfd for each process that somebody holds a connection of: its end is told though a child has inherited that.

    Args:
        epoll: the pidfds are registered with it.
    """

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._pidfds: dict[int, int] = {}  # pid -> pidfd
        self._held: dict[int, tuple[int, set[H]]] = {}  # pidfd -> pid, who holds it

    def __len__(self) -> int:
        return len(self._held)

    def watch(self, pid: int, holder: H) -> bool:
        """Have the kernel tell when the process ends. False: it has ended."""
        pidfd = self._pidfds.get(pid)
        if pidfd is None:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return False
            except OSError:
                return True  # not permitted, or out of descriptors: the connection's end is told still
            self._pidfds[pid] = pidfd
            self._held[pidfd] = pid, set()
            self._epoll.register(pidfd, select.EPOLLIN)
        self._held[pidfd][1].add(holder)
        return True

    def ended(self, fd: int) -> tuple[H, ...]:
        """Who holds the process whose pidfd this is; nobody when it is none."""
        return tuple(self._held[fd][1]) if fd in self._held else ()

    def release(self, pid: int, holder: H) -> None:
        """`holder` is gone; the last one takes the pidfd with it."""
        pidfd = self._pidfds.get(pid)
        if pidfd is None:
            return
        holders = self._held[pidfd][1]
        holders.discard(holder)
        if not holders:
            del self._held[pidfd], self._pidfds[pid]
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Close what is left; the epoll may be closed already."""
        for pidfd in self._held:
            os.close(pidfd)
        self._held.clear()
        self._pidfds.clear()


def fd_watermark() -> int:
    """The first descriptor that is not for a bot."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FD_RESERVE


def unread_bytes(fd: int) -> int:
    """What the other end of a Unix socket has not read, as the kernel accounts it, overhead included.

    Raises:
        OSError: it is no socket any more.
    """
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.TIOCOUTQ, count, True)
    return count[0]
