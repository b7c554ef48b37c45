"""What a breaker answers to whoever asks for an attempt, and to whoever asks how it stands."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

State: TypeAlias = Literal["closed", "open", "half_open"]


class Permit(Struct, frozen=True):
    """Leave to make one attempt; hand it back with its outcome to `Breaker.record`. `trial`: it decides much."""

    generation: int
    trial: bool = False


class Refusal(Struct, frozen=True):
    """No.

    Attributes:
        retry_after: seconds, more than 0, jittered.
        soon: half-open, and a trial is out or kept for a lower lane for a moment: whoever may wait will get in, or know
            more, soon; `retry_after` is when to look again. Not while a probe is out: that may take all of a connect's
            caps.
    """

    retry_after: float
    soon: bool = False


class BreakerStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot. `total`, `failures`, `slow` are of the window; the rest since the start."""

    name: str
    state: State
    consecutive_failures: int
    total: int
    failures: int
    slow: int
    trips: int
    refused: int
    trials: int
    probes: int
    stale: int
    next_wakeup_at: float
