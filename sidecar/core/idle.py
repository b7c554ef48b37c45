"""How a server treats connections that nobody uses: what it says, what it does, and what is believed of it."""

from __future__ import annotations

import math
from typing import Final

#: Share of a server's patience after which an idle connection is replaced: before the server closes it, and before a
#: request meets its closing half way.
_SHARE: Final = 0.75
#: Seconds of idleness below which a close says nothing of a server's patience, and a connection is not replaced for it.
_SHORTEST: Final = 2.0
#: Times in a row that a server may go away from requests, or let them fall, before that is a failure of its own.
_BELIEVED: Final = 2


class Habits:
    """Of one upstream's server.

    Attributes:
        idle_life: seconds for which a connection is kept without a call; None while nothing is known.
    """

    __slots__ = ("_left_at", "_untouched", "idle_life")

    def __init__(self) -> None:
        self.idle_life: float | None = None
        self._untouched = 0
        self._left_at = -math.inf

    def __repr__(self) -> str:
        return f"<Habits idle_life={self.idle_life} untouched={self._untouched}>"

    def closed_idle(self, after: float) -> None:
        """It closed a connection that had been idle for `after` seconds."""
        if after >= _SHORTEST:
            self._keep(after)

    def answered(self, keepalive_timeout: float | None) -> None:
        """It answered; perhaps it said for how many seconds it keeps an idle connection."""
        self._untouched = 0
        if keepalive_timeout is not None:
            self._keep(max(_SHORTEST, keepalive_timeout))

    def _keep(self, patience: float) -> None:
        life = _SHARE * patience
        if self.idle_life is None or life < self.idle_life:
            self.idle_life = life

    def untouched(self, opened_at: float, now: float) -> bool:
        """A request was not looked at, by its server's word or by its silence; whether that is believed.

        All requests of a connection, and all connections that stood when it was said, are of one and the same going:
        a server that is deployed anew leaves them all. One that does so with fresh connections, again and again, fails.

        Args:
            opened_at: when its connection was opened.
            now: instant.
        """
        if opened_at > self._left_at:
            self._untouched += 1
            self._left_at = now
        return self._untouched <= _BELIEVED
