"""What the relay saw. Exact: a test may assert on every one."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from msgspec import Struct, field, structs

_KEPT: Final = 100_000


def _deque() -> deque[Stop]:
    return deque(maxlen=_KEPT)


class Stop(Struct, frozen=True, kw_only=True):
    """A call that the client ended by closing its connection. Instants are CLOCK_MONOTONIC microseconds."""

    id: str
    started_us: int
    at_us: int
    tokens: int


class Counters(Struct, kw_only=True):
    """Since the relay was made. ``calls_started == calls_finished + calls_stopped + calls_cut + in_flight``.

    A call is *started* when its request was read and understood (queued counts), *finished* when its terminal or
    its error was sent, *stopped* when the client closed the connection first, *cut* when the relay did.
    """

    accepted: int = 0
    handshakes: int = 0
    refused: int = 0
    open: int = 0
    max_open: int = 0
    calls_started: int = 0
    calls_finished: int = 0
    calls_stopped: int = 0
    calls_cut: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    bad_requests: int = 0
    pings: int = 0
    pongs: int = 0
    tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    scenarios: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    stops: deque[Stop] = field(default_factory=_deque)

    def attempted(self, name: str) -> None:
        """One more call under this name; no new names beyond 100,000."""
        if name in self.attempts or len(self.attempts) < _KEPT:
            self.attempts[name] = self.attempts.get(name, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """For JSON: everything, of `stops` the last 1,000."""
        values = structs.asdict(self)
        values["stops"] = [structs.asdict(stop) for stop in list(self.stops)[-1000:]]
        return values
