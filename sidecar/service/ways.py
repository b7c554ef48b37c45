"""The ways to one upstream, as the pool of one of them sees the others."""

from __future__ import annotations

from typing import Protocol

from sidecar.config import Upstream
from sidecar.service.probing import Prober


class Way(Protocol):
    """The pool of a way, as seen from here."""

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
    """See the module. An upstream with one way has nothing here.

    Attributes:
        substitute: the way that calls go when this one cannot be had.
        others: all but this one.
    """

    def __init__(self, own: Way) -> None:
        self._own = own
        self.substitute: Way | None = None
        self.others: list[Way] = []

    def look_at_substitute(self, now: float, *, down: bool) -> None:
        """What is to take this one's calls keeps as many spares as this one does, for as long as it is to.

        Args:
            now: the loop's time.
            down: no connection of this way stands.
        """
        if self.substitute is not None:
            needed = down or self._own.prober.wants_trials(now)
            self.substitute.keep_warm((self._own if needed else self.substitute).upstream.warm_connections)

    def have_served(self) -> bool:
        """Another one has connections: whoever waited for this one was served there."""
        return any(other.prober.newest() for other in self.others)

    def look_again(self) -> None:
        """Room under the upstream's limit is every way's: calls that wait for any of them look again."""
        for way in (self._own, *self.others):
            if way.waiting():
                way.look_again()
