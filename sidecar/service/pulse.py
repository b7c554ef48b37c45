"""How late the loop is, and whether the way from the socket through the loop and back still works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio

from sidecar.transport.sd_notify import Notifier

#: Seconds between two looks at the loop.
INTERVAL: Final = 0.1
#: A lag is remembered for about this many looks: a probe once a second must see it.
_MEMORY: Final = 20


class Pulse:
    """Measures the loop's lag: how much later than asked for a sleeping task is woken.

    Args:
        clock: the loop's time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recent: list[float] = []

    @property
    def lag(self) -> float:
        """The worst lag of the last two seconds, in seconds."""
        return max(self._recent, default=0.0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Measure for ever."""
        task_status.started()
        while True:
            due = self._clock() + INTERVAL
            await trio.sleep_until(due)
            self._recent.append(max(0.0, self._clock() - due))
            del self._recent[:-_MEMORY]


async def feed_watchdog(notifier: Notifier, interval: float, round_trip: Callable[[], Awaitable[bool]]) -> NoReturn:
    """Feed systemd's watchdog, but only after a ping has gone through the bots' socket and the loop and come back.

    Args:
        notifier: to systemd.
        interval: seconds between two feeds; half of what the unit allows.
        round_trip: True when the ping was answered.
    """
    while True:
        if await round_trip():
            notifier.watchdog()
        await trio.sleep(interval)
