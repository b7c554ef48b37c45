"""One connection, from the server's side, whatever is spoken on it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tests.simulation.network import Link, Toxics
from tests.simulation.request import Request

if TYPE_CHECKING:
    from tests.simulation.service import Service


class Session(ABC):
    """See the module.

    Args:
        service: whose it is.
        number: of all its connects.
        pool: what the daemon calls the way that leads here.
        meets: what this connect meets.
    """

    #: Each answer has an exchange of its own: HTTP.
    by_exchange = False
    #: Each can be stopped alone: HTTP/2.
    by_stream = False
    #: What its upstream's moods draw from: see `moods.REPERTOIRES`.
    spoken = "websocket"

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        self.service, self.number, self.pool, self.meets = service, number, pool, meets
        self.link = Link(
            service.world.engine, toxics, dice, on_written=self._written, on_data=self._data, on_end=self._ended
        )
        self.requests: list[Request] = []
        self.gone = self.closing = False
        self.told = ""  # what one request of it was told of the whole connection
        self.opened_at: float | None = None
        #: when the server sent its Close: it reads nothing more of what comes
        self.said_close_at: float | None = None
        self.deaf = False
        self.key = ""

    def __repr__(self) -> str:
        return f"{self.pool}#{self.number}"

    # ------------------------------------------------------------------ what each kind adds

    @abstractmethod
    def _written(self, data: bytes) -> None:
        """The client wrote it. Noted at once: an attempt counts even if the network swallows it."""

    @abstractmethod
    def _data(self, data: bytes) -> None:
        """Bytes arrived."""

    @abstractmethod
    def framed(self, request: Request, message: bytes) -> bytes:
        """One message of a request's answer, as it travels."""

    @abstractmethod
    def keep_alive(self, request: Request) -> bytes:
        """What says that somebody is there, and nothing else."""

    @abstractmethod
    def put(self, request: Request, frames: bytes, mark: Callable[[], None] | None = None) -> None:
        """Frames of a request's answer, on their way."""

    @abstractmethod
    def close(self, code: int, how: str) -> None:
        """The server closes in good order."""

    def refuses(self, request: Request, how: str, status: int | None, code: str | None, after: float | None) -> bool:
        """Answer by a status; False where that cannot be (any more)."""
        return False

    def told_all(self, request: Request, how: str) -> None:
        """One request is told what is true of the whole connection."""
        self.told = how

    def script_over(self, request: Request) -> None:  # noqa: B027 - a WebSocket has nothing to end
        """Its script has nothing more to say."""

    def fate(self, request: Request) -> str:
        """How a request ends that runs when the connection does."""
        # What one of them was told of the whole connection ends the others as well.
        return self.told or "cut"

    # ------------------------------------------------------------------ what the server does

    def send(self, data: bytes, mark: Callable[[], None] | None = None) -> None:
        """Bytes on their way."""
        if not self.gone and not self.closing:
            self.link.to_client.send(data, mark)

    def shut(self, how: str = "eof") -> None:
        """End of TCP."""
        if not self.closing and not self.gone:
            self.closing = True
            self.link.server_closes(how)

    def cut(self, request: Request, how: str = "eof") -> None:
        """An answer is over before its end: where calls have no streams of their own, with all others here."""
        self.shut(how)

    def calm(self) -> None:
        """Everything is well from here on."""
        self.meets = "fine"  # what stands before an HTTP server lets everybody in, on old connections, too

    def _arrived(self) -> Request:
        """The next request is here."""
        request = next(request for request in self.requests if request.arrived_at is None)
        request.arrived_at = trio.current_time()
        return request

    def _ended(self, how: str) -> None:
        self.gone = True
        now = trio.current_time()
        for request in self.requests:
            if request.ended_at is None:
                request.ended_at, request.how = now, request.how or self.fate(request)
        self.service.lost(self)
