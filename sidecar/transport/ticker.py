"""A timerfd that counts ticks: time for who waits in an epoll and has no other clock. Python has it from 3.13 on."""

from __future__ import annotations

import ctypes
import math
import os
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


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
        self.fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

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
        whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
        setting = (ctypes.c_long * 4)(whole, part, whole, part)
        if _libc.timerfd_settime(self.fd, 0, setting, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._running = seconds > 0
