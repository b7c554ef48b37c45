"""One try of a call on one connection: what the connection tells it, told on to the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sidecar.core.attempt_state import AttemptState
from sidecar.core.permit import Permit
from sidecar.dialects.base import Faulted, Finished, Prompt, Started
from sidecar.errors import MalformedFrame, UpstreamFault
from sidecar.service.connection import Connection
from sidecar.service.ports import Peer
from sidecar.service.routes import RouteRuntime, TargetRuntime

#: Characters of one answer beyond which the upstream is taken to have lost its mind.
MAX_ANSWER_CHARACTERS: Final = 1 << 20


class Owner(Protocol):
    """The call that an attempt belongs to, as the attempt sees it."""

    winner: Attempt | None
    attempts: list[Attempt]
    route: RouteRuntime
    peer: Peer
    length: int
    emit: Callable[[str], None]

    def prompt(self, index: int) -> Prompt:
        """What target `index` of its route is asked."""
        ...

    def first_content(self, attempt: Attempt, now: float) -> bool:
        """Whether this attempt's content is the answer from here on."""
        ...

    def ending(self, attempt: Attempt, now: float) -> None:
        """Its content is over."""
        ...

    def finished(self, attempt: Attempt, event: Finished, now: float) -> None:
        """It ended as it should."""
        ...

    def lost(self, attempt: Attempt, fault: UpstreamFault, now: float) -> None:
        """It failed."""
        ...

    def guarded(self, step: Callable[[float], None], now: float) -> None:
        """Take a step; a bug in it ends the call and nothing else."""
        ...


class Attempt:
    """See the module. `connection.SlotHolder` for the connection's side of it.

    Attributes:
        backup: started beside one that was still running.
        state: the policy's view of it; set as soon as the request is written.
        started, faulted: what the upstream said of itself: request id, model, usage.
    """

    __slots__ = ("backup", "call", "connection", "faulted", "permit", "started", "state", "target")

    state: AttemptState

    def __init__(self, call: Owner, target: TargetRuntime, connection: Connection, permit: Permit) -> None:
        self.backup = bool(call.attempts)
        self.call = call
        self.target = target
        self.connection = connection
        self.permit = permit
        self.started: Started | None = None
        self.faulted: Faulted | None = None

    def on_content(self, text: str, now: float) -> None:
        """THE HOT PATH: two tests, two stores, one append."""
        call = self.call
        if call.winner is not self and not call.first_content(self, now):
            return
        self.state.last_content_at = now
        call.length += len(text)
        call.emit(text)
        if call.length > MAX_ANSWER_CHARACTERS:
            self.connection.stop(self)
            self.on_lost(MalformedFrame(f"an answer of more than {MAX_ANSWER_CHARACTERS} characters"), now)

    def on_started(self, event: Started) -> None:
        """The upstream took the request."""
        self.started = event

    def on_ending(self, now: float) -> None:
        """The content is over; the usage may still come."""
        self.call.guarded(lambda now: self.call.ending(self, now), now)

    def on_finished(self, event: Finished, now: float) -> None:
        """The answer ended as it should."""
        self.call.guarded(lambda now: self.call.finished(self, event, now), now)

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        """The upstream or the connection failed."""
        self.faulted = event
        self.call.guarded(lambda now: self.call.lost(self, fault, now), now)
