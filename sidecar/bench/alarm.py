"""A timer that is exact to some ten microseconds: asyncio and ZeroMQ wait in whole milliseconds, timerfd does not."""

from __future__ import annotations

import os
import time

from sidecar.transport.ticker import set_timer, timerfd


def mono_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same in every process of a host."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class Alarm:
    """A descriptor that becomes readable at an instant.

    Raises:
        OSError: the kernel gives no descriptor.
    """

    def __init__(self) -> None:
        self.descriptor = timerfd()

    def set(self, at_us: int) -> None:
        """Ring at this instant; at once when it is past."""
        set_timer(self.descriptor, max(1, at_us) * 1000, absolute=True)

    def heard(self) -> None:
        """Make it quiet until it rings again."""
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)
