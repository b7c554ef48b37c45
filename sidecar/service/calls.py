"""A call as those see it who only look at it: parking, accounting, and who writes its terminal."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from sidecar.core.call import Call as CallPolicy
from sidecar.dialects.base import Prompt
from sidecar.service.ports import Peer
from sidecar.service.routes import RouteRuntime
from sidecar.wire import Lane


class CallView(Protocol):
    """What `running_call.RunningCall` shows. Instants are the loop's, seconds."""

    id: str
    call_id: str
    route: RouteRuntime
    lane: Lane
    peer: Peer
    policy: CallPolicy
    received_at: float
    queued_until: float | None
    first_delta_at: float | None
    #: seconds the daemon itself spent so far
    overhead: float
    #: characters of the answer so far
    length: int
    #: names of the pools it waits in for a connection, and the number of its entry there
    parked_in: tuple[str, ...]
    parked_as: int

    def prompt(self, index: int) -> Prompt:
        """What target `index` is asked."""
        ...


class DispatcherStatistics(Struct, frozen=True, kw_only=True):
    """Calls now and so far."""

    in_flight: int
    queued: int
    parked: int
    accepted: int
    refused: int
    done: int
    failed: int
