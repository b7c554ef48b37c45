"""The end of a pass: what was gathered is sent, and whoever cannot wait for Trio's next round is looked after.

Trio runs every task that is ready before it looks at deadlines and sockets again. While 64 streams flow flat out such a
round takes tens of milliseconds, and a deadline, a new call or a probe would wait for its end. So each pass ends with
a look at the clocks, and every few milliseconds with one at the bots' socket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.service.clocks import Clocks
from sidecar.service.frontend import Frontend

#: Seconds between two looks at the bots' socket from within a round.
GLANCE_INTERVAL: Final = 0.002
#: How many times as long as a glance took the next one is put off: an array of 256 calls takes some 15 ms, and a flood
#: of them must not get a turn after each pass.
GLANCE_PAUSE: Final = 4


class Turn:
    """`ports.Outbound`. Made before frontend and clocks exist; `attach` completes it.

    Args:
        clock: the loop's time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._frontend: Frontend | None = None
        self._clocks: Clocks | None = None
        self._glance_at = 0.0
        self._inside = False

    def attach(self, frontend: Frontend, clocks: Clocks) -> None:
        """What a pass ends with."""
        self._frontend, self._clocks = frontend, clocks

    def flush(self) -> None:
        """See `ports.Outbound.flush`."""
        frontend, clocks = self._frontend, self._clocks
        if frontend is None or clocks is None:
            return
        frontend.flush()
        if self._inside:
            return  # a sweep or a glance ends with a flush of its own
        now = self._clock()
        if now >= clocks.due_at or now >= self._glance_at:
            self._inside = True
            try:
                if now >= clocks.due_at:
                    clocks.sweep(now)
                if now >= self._glance_at:
                    began = self._clock()
                    frontend.glance()
                    ended = self._clock()
                    self._glance_at = ended + max(GLANCE_INTERVAL, GLANCE_PAUSE * (ended - began))
            finally:
                self._inside = False
