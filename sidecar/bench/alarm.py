"""A timer that is exact to some ten microseconds: asyncio and ZeroMQ wait in whole milliseconds, timerfd does not.

`os.timerfd_create` came with Python 3.13; until that is the oldest one here, libc is called by its name.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Final

_TFD_TIMER_ABSTIME: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


def mono_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same in every process of a host."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class Alarm:
    """A descriptor that becomes readable at an instant.

    Raises:
        OSError: the kernel gives no descriptor.
    """

    def __init__(self) -> None:
        self.descriptor: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at_us: int) -> None:
        """Ring at this instant; at once when it is past."""
        at_us = max(1, at_us)
        spec = _Spec(0, 0, at_us // 1_000_000, at_us % 1_000_000 * 1000)
        if _libc.timerfd_settime(self.descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def heard(self) -> None:
        """Make it quiet until it rings again."""
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)
