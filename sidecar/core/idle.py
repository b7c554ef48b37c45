"""How a server treats connections that nobody uses: what it says, what it does, and what is believed of it."""

from __future__ import annotations

import math
from typing import Final

#: Share of a server's patience after which an idle connection is replaced: before the server closes it, and before a
#: request meets its closing half way.
_SHARE: Final = 0.75
#: Seconds of idleness below which a close says nothing of a server's patience, and a connection is not replaced for it.
_SHORTEST: Final = 2.0
#: Occasions in a row at which a server may fail to look at requests before that is a failure of its own.
_BELIEVED: Final = 2
#: Seconds that one of them takes: whoever goes away says so on each connection, and of all that is on it.
_OCCASION: Final = 1.0


class Habits:
    """Of one upstream's server.

    Attributes:
        idle_life: seconds for which a connection is kept without a call; None while nothing is known.
    """

    __slots__ = ("_occasion_until", "_untouched", "idle_life")

    def __init__(self) -> None:
        self.idle_life: float | None = None
        self._untouched = 0
        self._occasion_until = -math.inf

    def __repr__(self) -> str:
        return f"<Habits idle_life={self.idle_life} untouched={self._untouched}>"

    def closed_idle(self, after: float) -> None:
        """It closed a connection that had been idle for `after` seconds."""
        if after >= _SHORTEST:
            self._keep(after)

    def answered(self, keepalive_timeout: float | None) -> None:
        """It answered; perhaps it said for how many seconds it keeps an idle connection."""
        self._untouched, self._occasion_until = 0, -math.inf
        if keepalive_timeout is not None:
            self._keep(max(_SHORTEST, keepalive_timeout))

    def _keep(self, patience: float) -> None:
        life = _SHARE * patience
        if self.idle_life is None or life < self.idle_life:
            self.idle_life = life

    def untouched(self, now: float) -> bool:
        """A request was not looked at, by its word or by its silence; whether that is believed."""
        if now >= self._occasion_until:
            self._untouched += 1
            self._occasion_until = now + _OCCASION
        return self._untouched <= _BELIEVED
