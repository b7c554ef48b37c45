"""What the relay saw. Exact: a test may assert on every one."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct, field, structs

_KEPT: Final = 100_000
_NOTED: Final = 20_000
#: How a request came.
Way: TypeAlias = Literal["websocket", "http/1.1", "h2"]


def _deque() -> deque[Stop]:
    return deque(maxlen=_KEPT)


def _journal() -> deque[Note]:
    return deque(maxlen=_NOTED)


class Note(NamedTuple):
    """One line of the journal.

    Args:
        at_us: CLOCK_MONOTONIC microseconds.
        event: a connection's ``connect`` (its upgrade or its first HTTP request was read, whatever comes of it; with
            the scenario ``tls_failed``: it was accepted) and ``gone``; ``refused``, an HTTP request that a door
            scenario answered; a call's ``call``, and its end: ``finished``, ``stopped`` or ``cut``, see `Counters`.
        group: what stands before the dialect in its path, ``""`` for nothing.
        name: of the call, see `Behaviour.id`; ``""`` for a connection.
        scenario: what befalls it.
        number: of the connection or the call, from 1 and from 0.
        way: how it came; ``""`` when that was never learnt.
    """

    at_us: int
    event: Literal["connect", "gone", "refused", "call", "finished", "stopped", "cut"]
    group: str
    name: str
    scenario: str
    number: int
    way: Way | Literal[""] = ""


class Stop(Struct, frozen=True, kw_only=True):
    """A call that the client ended: it closed its connection or (`by_reset`) sent RST_STREAM.

    Instants are CLOCK_MONOTONIC microseconds.
    """

    id: str
    started_us: int
    at_us: int
    tokens: int
    way: Way = "websocket"
    by_reset: bool = False


class Counters(Struct, kw_only=True):
    """Since the relay was made. ``calls_started == calls_finished + calls_stopped + calls_cut + in_flight``.

    A call is *started* when its request was read and understood (queued counts), *finished* when its terminal or
    its error was sent, *stopped* when the client closed the connection (or reset the stream) first, *cut* when the
    relay did. `accepted` counts TCP connections, `standing` those that have not ended; `open` those that speak
    WebSockets or have sent an HTTP request; `connections` the same since the beginning, by way. `requests` are those
    read, by way, whatever came of them: a WebSocket's messages, HTTP's POSTs to the path of a dialect. `refused`
    are upgrades and HTTP requests that a door scenario (or a wrong key) met; `stream_resets` those of `calls_stopped`
    that ended by RST_STREAM. `journal` has the last 20,000 events in their order.
    """

    accepted: int = 0
    standing: int = 0
    connections: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    handshakes: int = 0
    refused: int = 0
    open: int = 0
    max_open: int = 0
    calls_started: int = 0
    calls_finished: int = 0
    calls_stopped: int = 0
    calls_cut: int = 0
    stream_resets: int = 0
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

    def opened(self, way: Way) -> None:
        """A connection became one that speaks."""
        self.connections[way] = self.connections.get(way, 0) + 1
        self.open += 1
        self.max_open = max(self.max_open, self.open)

    def requested(self, way: Way) -> None:
        """A request was read."""
        self.requests[way] = self.requests.get(way, 0) + 1

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
