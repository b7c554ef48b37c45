"""Where one answer goes: a response on an HTTP/1.1 connection, or a stream of an HTTP/2 one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from sidecar.simulator.calls import Call
from sidecar.simulator.counters import Way

Headers: TypeAlias = Sequence[tuple[str, str]]


class Pipe(ABC):
    """One answer's way out: `head` once, then pieces of the body, then `end`; what comes after the end is dropped."""

    way: Way
    #: what is answered, once it was understood
    call: Call | None = None
    #: the pieces of a stream's body are to be chunks
    chunked: bool
    #: of HTTP/2's stream
    number: int = 0

    @abstractmethod
    def head_bytes(self, status: int, headers: Headers, *, length: int | None = None) -> bytes:
        """The head as it goes over the line; the caller sends it. `length` None: a stream."""

    @abstractmethod
    def raw(self, data: bytes) -> None:
        """Bytes of the connection, below its framing."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """A piece of the body, as a chunk already if this is `chunked`."""

    @abstractmethod
    async def write_large(self, data: bytes) -> None:
        """As `write`, waiting while the client does not read."""

    @abstractmethod
    def end(self) -> None:
        """The end of the body."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """Bytes that the client has not let through yet."""

    @abstractmethod
    async def drained(self) -> None:
        """Wait while the client does not read. A checkpoint in any case."""

    @abstractmethod
    def last(self) -> None:
        """This is the last answer of the connection, and its client is told so (before `head`)."""

    @abstractmethod
    def unprocessed(self, *, stream: bool) -> None:
        """Never looked at, and said so, as well as the version can: of this request alone, or the whole connection."""

    @abstractmethod
    def abort(self) -> None:
        """End the answer where it stands, as a service does that failed."""

    def head(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Say the head."""
        self.raw(self.head_bytes(status, headers, length=length))

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer, its length known."""
        self.head(status, headers, length=len(body))
        self.write(body)
        self.end()
