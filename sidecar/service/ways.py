"""The ways to one upstream, as the pool of one of them sees the others."""

from __future__ import annotations

from typing import Any, Protocol

from sidecar.config import Upstream
from sidecar.service.probing import Prober


class Way(Protocol):
    """The pool of a way, as seen from here."""

    name: str
    upstream: Upstream
    prober: Prober

    def keep_warm(self, connections: int) -> None:
        """So many idle spares from now on."""
        ...

    def look_again(self) -> None:
        """Calls that wait for it look again with its next step."""
        ...

    def waiting(self) -> int:
        """How many calls wait for one of its connections."""
        ...


class Ways:
    """See the module. An upstream with one way has no others here.

    Args:
        own: the pool of this one.
        log: a bound logger.

    Attributes:
        every: all of them, this one included: room under the upstream's limit is every way's.
        substitute: the way that calls go when this one cannot be had.
        down: no connection of this one has stood since the last was lost.
        unreachable: nor could one be made since: whoever has another target asks that first, and comes back gradually.
    """

    def __init__(self, own: Way, log: Any) -> None:
        self._own, self._log = own, log
        self.every: list[Way] = [own]
        self.substitute: Way | None = None
        self.down = self.unreachable = self._replaced = False

    def stands(self) -> bool:
        """A connection of this one stands; whether it had been down."""
        was_down, self.down, self.unreachable = self.down, False, False
        return was_down

    def connect_failed(self) -> None:
        """One could not be made, and none stands. Where none is kept ready, only a call that wants one has it made."""
        self.unreachable = self._own.upstream.warm_connections > 0

    def look_at_substitute(self, now: float) -> None:
        """What is to take this one's calls keeps as many spares as this one does, for as long as it is to."""
        substitute = self.substitute
        if substitute is None:
            return
        needed = self.down or self._own.prober.wants_trials(now)
        substitute.keep_warm((self._own if needed else substitute).upstream.warm_connections)
        if needed != self._replaced:
            self._replaced = needed
            event = "upstream.fell_back" if needed else "upstream.returned"
            to = (substitute if needed else self._own).upstream.transport
            (self._log.warning if needed else self._log.info)(event, upstream=self._own.name, transport=to)

    def have_served(self) -> bool:
        """Another one has connections: whoever waited for this one was served there."""
        return any(way is not self._own and way.prober.newest() for way in self.every)
