"""timerfd, which Python has from 3.13 on, and ticks counted by one: time for who waits in an epoll and has no clock."""

from __future__ import annotations

import ctypes
import math
import os
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


def timerfd() -> int:
    """A descriptor that becomes readable as `set_timer` says; on CLOCK_MONOTONIC, non-blocking.

    Raises:
        OSError: the kernel gives none.
    """
    fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return fd


def set_timer(fd: int, first_ns: int, *, interval_ns: int = 0, absolute: bool = False) -> None:
    """Ring in `first_ns`, or at that instant, and then every `interval_ns`, 0 for once. A first of 0 stops it.

    Raises:
        OSError: it is no timerfd.
    """
    setting = (ctypes.c_long * 4)(*divmod(interval_ns, 1_000_000_000), *divmod(first_ns, 1_000_000_000))
    if _libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME if absolute else 0, setting, None):
        raise OSError(ctypes.get_errno(), "timerfd_settime")


class Ticker:
    """Counts ticks while it runs; `fd` is readable when one has passed.

    Args:
        interval: seconds of a tick.

    Attributes:
        now: ticks counted by `take`.

    Resource handling: one descriptor; `close` it, or use it as a context manager.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._running = False
        self.now = 0
        self.fd = timerfd()

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Run, if it does not yet."""
        if not self._running:
            self._set(self._interval)

    def stop(self) -> None:
        """Stand still."""
        if self._running:
            self._set(0.0)

    def after(self, seconds: float) -> int:
        """The tick by which so many seconds have passed for certain. Starts it."""
        self.start()
        return self.now + math.ceil(seconds / self._interval) + 1

    def take(self) -> int:
        """Count what has passed, and return `now`.

        After a pause of the whole process two ticks are counted at most: what others did meanwhile is looked at first.
        """
        try:
            self.now += min(2, int.from_bytes(os.read(self.fd, 8), "little"))
        except BlockingIOError:
            pass  # stopped meanwhile
        return self.now

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def _set(self, seconds: float) -> None:
        interval_ns = int(seconds * 1e9)
        set_timer(self.fd, interval_ns, interval_ns=interval_ns)
        self._running = seconds > 0
