"""What a call at work asks of the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sidecar.core.outcome import Outcome
from sidecar.dialects.base import Finished
from sidecar.service.attempt import Attempt
from sidecar.service.clocks import Clocked, Clocks
from sidecar.service.parking import Parking
from sidecar.service.routes import TargetRuntime

if TYPE_CHECKING:  # the two know each other: one has the calls, the other is one
    from sidecar.service.running_call import RunningCall


class Desk(Protocol):
    """See the module. `dispatcher.Dispatcher` is one."""

    clock: Callable[[], float]
    clocks: Clocks
    parking: Parking[RunningCall]

    def park(self, call: RunningCall, targets: list[TargetRuntime], until: float, now: float) -> None:
        """Wait for a connection of one of `targets`, until `until` at most before looking again; it looked at `now`."""
        ...

    def record(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """An attempt is over, however."""
        ...

    def finish_done(self, call: RunningCall, attempt: Attempt, event: Finished, now: float) -> None:
        """The call is answered."""
        ...

    def finish_lost(self, call: RunningCall, outcome: Outcome, attempt: Attempt | None = None) -> None:
        """The upstream's failure becomes the call's."""
        ...

    def finish_failed(
        self,
        call: RunningCall,
        code: str,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        """The call ends without an answer; `retry_after` in seconds. `retryable`: None for what the code says."""
        ...

    def guarded(self, call: Clocked, step: Callable[[float], None], now: float) -> None:
        """Take a step of one call; a bug in it ends that call and no other."""
        ...
