"""The server's end of an HTTP/1.1 connection: exchanges one after another, each answer with a shape of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import structs

from tests.simulation.exchanges import Exchange, ExchangeSession, exchange_of
from tests.simulation.network import Toxics
from tests.simulation.request import Request

if TYPE_CHECKING:
    from tests.simulation.service import Service

_TOO_LONG_IDLE: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_GARBAGE: Final = (b"zz\r\n", b"-5\r\nabc", b"\r\n\r\n", b"5\r\nabcdefgh\r\n", b"HTTP/1.1 200 OK\r\n\r\n")


class HttpSession(ExchangeSession):
    """See `ExchangeSession`.

    Attributes:
        current: the request whose exchange is under way.
    """

    spoken = "http1"

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        super().__init__(service, number, pool, toxics, meets, dice)
        self.current: Request | None = None
        self._closes = False
        #: it said 408 without having been asked
        self._said_408 = False
        self._buffer = bytearray()
        self._seen = bytearray()  # what the client wrote, ahead of the network
        if meets == "garbage":
            self.send(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.shut()
        elif meets in ("eof", "reset"):
            self.shut(meets)
        self._rest()

    def runs(self, request: Request) -> bool:
        """See `ExchangeSession`."""
        return request is self.current

    def alone(self, request: Request | None) -> bool:
        """See `ExchangeSession`."""
        return self.current is request or self.current is None

    # ------------------------------------------------------------------ what the client writes

    def _written(self, data: bytes) -> None:
        """See `Session`."""
        self._seen += data
        for _, body in _posts(self._seen):
            request = self.service.noted(self, body)
            request.exchange = Exchange()
            self.requests.append(request)

    def _data(self, data: bytes) -> None:
        """See `Session`."""
        if self.gone or self.closing:
            return
        self._buffer += data
        for head, _ in _posts(self._buffer):
            request = self._arrived()
            lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
            self._learns_key({name.lower(): value for name, _, value in lines})
            self.current = request
            self._answer(request)

    # ------------------------------------------------------------------ what is said

    def _head(
        self, request: Request, status: int, headers: dict[str, str], mark: Callable[[], None] | None = None
    ) -> None:
        exchange = exchange_of(request)
        exchange.headed = True
        self.service.was_late = False
        if exchange.shape.last or self._closes:
            headers = {**headers, "Connection": "close"}
        elif self.service.plan.says_keeps and self.service.plan.keeps is not None:
            headers = {**headers, "Keep-Alive": f"timeout={max(1, round(self.service.plan.keeps))}"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

        def came() -> None:
            exchange.begun = True
            if mark is not None:
                mark()

        self.send(f"HTTP/1.1 {status} Simulated\r\n{lines}\r\n".encode(), came)

    def begin(self, request: Request, headers: dict[str, str] | None = None) -> None:
        """See `ExchangeSession`."""
        exchange = exchange_of(request)
        if not exchange.headed:
            exchange.streams = True
            length = {"Transfer-Encoding": "chunked"} if exchange.shape.chunks else {}
            self._head(request, 200, {"Content-Type": "text/event-stream", **length, **(headers or {})})

    def _body(self, request: Request, data: bytes, mark: Callable[[], None] | None) -> None:
        """See `ExchangeSession`."""
        chunks = exchange_of(request).shape.chunks
        if chunks:
            cut = len(data) // chunks or len(data)
            data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (data[:cut], data[cut:]) if piece)
        self.send(data, mark)

    def _says(
        self, request: Request, status: int, body: bytes, headers: dict[str, str], *, head: Callable[[], None] | None,
        mark: Callable[[], None], cut: int,
    ) -> None:  # fmt: skip
        """See `ExchangeSession`."""
        exchange = exchange_of(request)
        exchange.shape = structs.replace(exchange.shape, chunks=1)
        self._head(request, status, {**headers, "Content-Length": f"{len(body)}"}, head)
        self.send(body[: len(body) - cut], mark)

    def garble(self, dice: random.Random) -> None:
        """See `ExchangeSession`: chunks that are none."""
        self.send(dice.choice(_GARBAGE))

    def add(self, request: Request, dice: random.Random) -> None:
        """See `ExchangeSession`."""
        self.send(dice.choice([b"\r\n", b"0\r\n\r\n", b"data: {}\n\n"]))

    # ------------------------------------------------------------------ exchanges

    def script_over(self, request: Request) -> None:
        """See `Session`."""
        if request is self.current and request.over:
            exchange = exchange_of(request)
            if exchange.streams and exchange.shape.chunks:
                self.send(b"0\r\n\r\n", partial(request.came, "failed"))  # unless it has ended properly before that
            self.current = None
            self._comes_to_rest()
            if exchange.shape.last or self._closes or not exchange.shape.chunks:
                self.shut()
            else:
                self._rest()

    def _closes_idle(self) -> None:
        """See `ExchangeSession`."""
        if self.service.plan.says_408:
            self._said_408 = True
            self.send(_TOO_LONG_IDLE)
        self.shut()

    def closes_as_asked(self, request: Request) -> None:
        """See `ExchangeSession`."""
        self.shut()

    def fate(self, request: Request) -> str:
        """See `Session`. Behind the end of an idle connection it was never looked at, as far as anybody knows."""
        if not request.told and not exchange_of(request).begun and (self._said_408 or self.was_idle(request)):
            return "ignored"
        if self.link.closed_at is None:
            self.service.blame("cut")
        return request.told or "cut"

    def close(self, code: int, how: str) -> None:
        """See `Session`: at once, or after the answer under way."""
        if self.current is None:
            self.shut()
        elif exchange_of(self.current).headed:
            self.service.blame("closes behind an answer that has not said so")
        self._closes = True


def _posts(buffer: bytearray) -> list[tuple[bytes, bytes]]:
    """Take whole requests (head, body) off `buffer`."""
    found = []
    while (stop := buffer.find(b"\r\n\r\n")) >= 0:
        head = bytes(buffer[:stop])
        length = int(head.rpartition(b"Content-Length: ")[2])
        if len(buffer) < stop + 4 + length:
            break
        found.append((head, bytes(buffer[stop + 4 : stop + 4 + length])))
        del buffer[: stop + 4 + length]
    return found
