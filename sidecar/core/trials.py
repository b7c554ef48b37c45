"""Who gets a half-open breaker's next trial: who has the least to lose, and not the bot that spoiled the last one.

Lanes: research at once, an entry when no research came for a moment, an exit last (`PATIENCE`). A bot whose prompts
break the upstream would else take each trial, as it asks most, and keep the breaker open for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

from sidecar.wire import Lane

#: Seconds for which a free trial is kept from a lane, in the hope of a call that has less to lose.
PATIENCE: Final[dict[Lane, float]] = {"research": 0.0, "entry": 0.1, "exit": 0.25}
#: Seconds for which somebody else who asked is thought to ask again: meanwhile who spoiled the last trial stands back.
OTHERS: Final = 10.0
#: Seconds after which it may look again.
STANDS_BACK: Final = 0.5


class Trials:
    """The trials of one breaker, as far as it matters whose they are. A holder of None is nobody in particular."""

    __slots__ = ("_asked_at", "_asks", "_holder", "_other_at", "_spoiled_by")

    def __init__(self) -> None:
        self._holder: Hashable = None
        self._spoiled_by: Hashable = None
        # Who asked last and when, and when somebody else did last.
        self._asks: Hashable = None
        self._asked_at = self._other_at = -math.inf

    def asks(self, holder: Hashable, now: float) -> None:
        """A call of this holder asks while the breaker is not closed."""
        if holder != self._asks:
            self._other_at, self._asks = self._asked_at, holder
        self._asked_at = now

    def kept_until(self, lane: Lane, holder: Hashable, *, free_at: float, now: float) -> float:
        """Until when the trial that has been free since `free_at` is kept from a call."""
        kept_until = free_at + PATIENCE[lane]
        if holder is None or holder != self._spoiled_by:
            return kept_until
        others_at = self._other_at if holder == self._asks else self._asked_at
        return max(kept_until, now + STANDS_BACK) if now - others_at < OTHERS else kept_until

    def given(self, holder: Hashable) -> None:
        """A call of this holder is the trial."""
        self._holder = holder

    def ended(self, *, failed: bool) -> None:
        """The trial told something."""
        self._spoiled_by = self._holder if failed else None
