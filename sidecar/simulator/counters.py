"""What the relay saw. Exact: a test may assert on every one."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct, field, structs

_KEPT: Final = 100_000
_NOTED: Final = 20_000


def _deque() -> deque[Stop]:
    return deque(maxlen=_KEPT)


def _journal() -> deque[Note]:
    return deque(maxlen=_NOTED)


class Note(NamedTuple):
    """One line of the journal.

    Args:
        at_us: CLOCK_MONOTONIC microseconds.
        event: a connection's ``connect`` (its upgrade was read, whatever comes of it; with the scenario ``tls_failed``:
            it was accepted) and ``gone``; a call's ``call``,
            and its end: ``finished``, ``stopped`` or ``cut``, see `Counters`.
        group: what stands before the dialect in its path, ``""`` for nothing.
        name: of the call, see `Behaviour.id`; ``""`` for a connection.
        scenario: what befalls it.
        number: of the connection or the call, from 1 and from 0.
    """

    at_us: int
    event: Literal["connect", "gone", "call", "finished", "stopped", "cut"]
    group: str
    name: str
    scenario: str
    number: int


class Stop(Struct, frozen=True, kw_only=True):
    """A call that the client ended by closing its connection. Instants are CLOCK_MONOTONIC microseconds."""

    id: str
    started_us: int
    at_us: int
    tokens: int


class Counters(Struct, kw_only=True):
    """Since the relay was made. ``calls_started == calls_finished + calls_stopped + calls_cut + in_flight``.

    A call is *started* when its request was read and understood (queued counts), *finished* when its terminal or
    its error was sent, *stopped* when the client closed the connection first, *cut* when the relay did. `journal` has
    the last 20,000 events in their order.
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
    journal: deque[Note] = field(default_factory=_journal)

    def attempted(self, name: str) -> None:
        """One more call under this name; no new names beyond 100,000."""
        if name in self.attempts or len(self.attempts) < _KEPT:
            self.attempts[name] = self.attempts.get(name, 0) + 1

    def snapshot(self) -> dict[str, Any]:
        """For JSON: everything but the journal, of `stops` the last 1,000."""
        values = structs.asdict(self)
        del values["journal"]
        values["stops"] = [structs.asdict(stop) for stop in list(self.stops)[-1000:]]
        return values
