"""The server's end of an HTTP/1.1 connection: exchanges one after another, each answer with a shape of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from msgspec import Struct

from sidecar.transport.http1_link import IDLE_ENOUGH
from tests.simulation.network import Toxics
from tests.simulation.request import Request
from tests.simulation.session import Session

if TYPE_CHECKING:
    from tests.simulation.service import Service

#: What a gateway in front of it answers to each request -> how the attempt is judged (`core.classifier`).
GATE: Final = {"301": "failed", "401": "auth", "403": "auth", "429": "throttled", "500": "failed", "503": "failed"}
_TOO_LONG_IDLE: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Shape(Struct, frozen=True):
    """How an answer's bytes look, whatever it says.

    Args:
        chunks: 1: a chunk for whatever is sent at once; 2: in two chunks each; 0: no length, ended by the connection.
        line: how lines end.
        named: events have a name, and comments stand between them.
        early: the head goes out before there is anything to say.
        last: `Connection: close`.
    """

    chunks: int = 1
    line: bytes = b"\n"
    named: bool = False
    early: bool = False
    last: bool = False


def shape(dice: random.Random) -> Shape:
    """Of one answer."""
    return Shape(
        chunks=dice.choice([1, 1, 1, 2, 2, 0]),
        line=dice.choice([b"\n", b"\n", b"\r\n", b"\r"]),
        named=dice.random() < 0.3,
        early=dice.random() < 0.3,
        last=dice.random() < 0.1,
    )


class HttpSession(Session):
    """See `Session`.

    Attributes:
        current: the request whose exchange is under way.
        headed: its answer's head was sent.
        idle_since: when the last one's end arrived at the client.
    """

    by_exchange = True

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        super().__init__(service, number, pool, toxics, meets, dice)
        self.opened_at = self.idle_since = trio.current_time()
        self.current: Request | None = None
        self._shape = Shape()
        self.headed = self._streams = self._closes = False
        #: a byte of the answer under way has arrived at the client
        self._begun = False
        self._rests = 0
        self._buffer = bytearray()
        self._seen = bytearray()  # what the client wrote, ahead of the network
        service.opened(self)
        if meets == "garbage":
            self.send(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.shut()
        elif meets in ("eof", "reset"):
            self.shut(meets)
        self._rest()

    # ------------------------------------------------------------------ what the client writes

    def _written(self, data: bytes) -> None:
        """See `Session`."""
        self._seen += data
        for _, body in _posts(self._seen):
            self.requests.append(self.service.noted(self, body))
            self._begun = False

    def _data(self, data: bytes) -> None:
        """See `Session`."""
        if self.gone or self.closing:
            return
        self._buffer += data
        for head, _ in _posts(self._buffer):
            request = self._arrived()
            lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
            headers = {name.lower(): value for name, _, value in lines}
            self.key = headers.get("authorization", "").removeprefix("Bearer ")
            self._answer(request)

    def _answer(self, request: Request) -> None:
        self.current, self.headed, self._streams = request, False, False
        self._shape = shape(self.service.dice_of(request, "shape"))
        meets = self.meets if self.key in self.service.keys or self.meets == "mute" else "401"
        if meets in GATE:
            request.over = True
            self._says(request, GATE[meets], int(meets), b"{}", {"Retry-After": "1"} if meets == "429" else {})
            self._exchange_over()
        elif meets == "fine":
            if self._shape.early:
                self.begin()
            self.service.arrived(request)

    # ------------------------------------------------------------------ what is said

    def framed(self, request: Request, message: bytes) -> bytes:
        """See `Session`."""
        return self.event(message)

    def event(self, data: bytes) -> bytes:
        """One event of the answer under way."""
        line = self._shape.line
        before = b": x" + line + b"event: some" + line if self._shape.named else b""
        return before + b"data: " + data + line + line

    def keep_alive(self) -> bytes:
        """See `Session`."""
        return b": keep-alive" + self._shape.line * 2

    def put(self, request: Request, frames: bytes, mark: Callable[[], None] | None = None) -> None:
        """See `Session`; what a request says after its exchange is lost."""
        if request is self.current and frames:
            if not self.headed:
                self.begin()
            self.send(self._chunked(frames), mark)

    def _head(self, status: int, headers: dict[str, str], mark: Callable[[], None] | None = None) -> None:
        self.headed = True
        self.service.was_late = False
        if self._shape.last or self._closes:
            headers = {**headers, "Connection": "close"}
        elif self.service.plan.says_keeps and self.service.plan.keeps is not None:
            headers = {**headers, "Keep-Alive": f"timeout={max(1, round(self.service.plan.keeps))}"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

        def came() -> None:
            self._begun = True
            if mark is not None:
                mark()

        self.send(f"HTTP/1.1 {status} Simulated\r\n{lines}\r\n".encode(), came)

    def begin(self, headers: dict[str, str] | None = None) -> None:
        """The head of an event stream, unless it was sent before."""
        if not self.headed:
            self._streams = True
            length = {"Transfer-Encoding": "chunked"} if self._shape.chunks else {}
            self._head(200, {"Content-Type": "text/event-stream", **length, **(headers or {})})

    def _chunked(self, data: bytes) -> bytes:
        if not self._shape.chunks:
            return data
        cut = len(data) // self._shape.chunks or len(data)
        return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (data[:cut], data[cut:]) if piece)

    def refuses(self, request: Request, how: str, status: int | None, code: str | None, after: float | None) -> bool:
        """See `Session`."""
        if self.headed or status is None or request is not self.current:
            return False
        headers = {"Content-Type": "application/json"}
        if after is not None:
            headers["Retry-After"] = f"{after}"
        said = f'"code":"{code}",' if code else ""
        body = f'{{"error":{{{said}"message":"simulated {status} {code}"}}}}'
        self._says(request, how, status, body.encode(), headers)
        return True

    def _says(self, request: Request, how: str, status: int, body: bytes, headers: dict[str, str]) -> None:
        def came() -> None:
            request.told = how

        self._shape = Shape(last=self._shape.last)
        self._head(status, {**headers, "Content-Length": f"{len(body)}"}, came)
        self.send(body, partial(request.came, how))

    def whole(self, body: bytes, kind: str, mark: Callable[[], None], *, cut: int = 0) -> None:
        """An answer that is not streamed, perhaps without its last bytes; nothing where a stream has begun."""
        if self.headed:
            return
        self._shape = Shape(last=self._shape.last)
        self._head(200, {"Content-Type": kind, "Content-Length": f"{len(body)}"})
        self.send(body[: len(body) - cut], mark)

    def told_all(self, request: Request, how: str) -> None:
        """See `Session`: here it is true of this request alone."""

    # ------------------------------------------------------------------ exchanges

    def script_over(self, request: Request) -> None:
        """See `Session`."""
        if request is self.current and request.over:
            if self._streams and self._shape.chunks:
                self.send(b"0\r\n\r\n", partial(request.came, "failed"))  # unless it has ended properly before that
            self._exchange_over()

    def _exchange_over(self) -> None:
        self.current = None

        def came() -> None:
            self.idle_since = trio.current_time()

        self.service.world.engine.at(self.link.to_client.ends_at(), came)
        if self._shape.last or self._closes or not self._shape.chunks:
            self.shut()
        else:
            self._rest()

    def _rest(self) -> None:
        """Without a request, for as long as the server is patient."""
        self._rests += 1
        keeps = self.service.plan.keeps
        if keeps is not None:
            self.service.world.engine.after(keeps, partial(self._idle, self._rests))

    def _idle(self, rest: int) -> None:
        if rest == self._rests and self.current is None and not self.gone and not self.closing:
            self.service.world.counts["closed while idle"] += 1
            if self.service.plan.says_408:
                self.send(_TOO_LONG_IDLE)
            self.shut()

    def was_idle(self, request: Request) -> bool:
        """It had been without a request for so long that nobody wonders when it is closed."""
        return request.written_at - self.idle_since >= IDLE_ENOUGH - 1e-6

    def fate(self, request: Request) -> str:
        """See `Session`. Behind the end of an idle connection it was never looked at, as far as anybody knows."""
        if not request.told and not self._begun and self.was_idle(request):
            return "ignored"
        if self.link.closed_at is None:
            self.service.blame("cut")
        return request.told or "cut"

    def close(self, code: int, how: str) -> None:
        """See `Session`: at once, or after the answer under way."""
        if self.current is None:
            self.shut()
        elif self.headed:
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
