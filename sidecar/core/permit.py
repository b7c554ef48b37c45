"""What a breaker answers to whoever asks for an attempt."""

from __future__ import annotations

from msgspec import Struct


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
