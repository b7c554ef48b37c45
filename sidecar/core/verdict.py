"""What a call's policy says to the events of its life: values, acted on by the dispatcher."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from sidecar.core.attempt_state import AttemptState
from sidecar.core.outcome import Outcome


class Wait(Struct, frozen=True):
    """Other attempts are still running: nothing to do."""


class Seek(Struct, frozen=True):
    """Start another attempt on one of `Call.candidates(now)`, now or when one can be had."""


class End(Struct, frozen=True):
    """The call ends with this outcome (the first one, when several attempts failed)."""

    outcome: Outcome


Verdict: TypeAlias = Wait | Seek | End


class Due(Struct, frozen=True):
    """A clock that fell due."""

    clock: Literal["deadline", "idle", "first_delta", "backup", "conclude", "seek"]
    attempt: AttemptState | None = None
