"""What the server's ends of HTTP connections have in common: an exchange for each request, its answer with a shape."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from msgspec import Struct

from sidecar.transport.exchange import IDLE_ENOUGH
from tests.simulation.network import Toxics
from tests.simulation.request import Request
from tests.simulation.session import Session

if TYPE_CHECKING:
    from tests.simulation.service import Service

#: What a gateway in front of it answers to each request -> how the attempt is judged (`core.classifier`).
GATE: Final = {"301": "failed", "401": "auth", "403": "auth", "429": "throttled", "500": "failed", "503": "failed"}


class Shape(Struct, frozen=True):
    """How an answer's bytes look, whatever it says.

    Args:
        chunks: 1: a chunk, or a frame, for whatever is sent at once; 2: two each; 0: one, and where the version has it
            no length, ended by the connection.
        line: how lines end.
        named: events have a name, and comments stand between them.
        early: the head goes out before there is anything to say.
        last: nothing more is taken on this connection, and it says so.
        interim: so many heads of 103 come before it. padding: bytes behind each frame's data. trailers: it has some.
            All of that is HTTP/2's.
    """

    chunks: int = 1
    line: bytes = b"\n"
    named: bool = False
    early: bool = False
    last: bool = False
    interim: int = 0
    padding: int | None = None
    trailers: bool = False


def shape(dice: random.Random) -> Shape:
    """Of one answer."""
    return Shape(
        chunks=dice.choice([1, 1, 1, 2, 2, 0]),
        line=dice.choice([b"\n", b"\n", b"\r\n", b"\r"]),
        named=dice.random() < 0.3,
        early=dice.random() < 0.15,
        last=dice.random() < 0.1,
        interim=dice.choice([0, 0, 0, 1, 3]),
        padding=dice.choice([None, None, None, 0, 9]),
        trailers=dice.random() < 0.2,
    )


class Exchange:
    """One.

    Attributes:
        sid: its stream, where there are such.
        shape: of its answer.
        headed: the answer's head was sent. streams: it is an event stream's.
        begun: a byte of the answer has arrived at the client.
    """

    __slots__ = ("begun", "headed", "shape", "sid", "streams")

    def __init__(self, sid: int = 0) -> None:
        self.sid = sid
        self.shape = Shape()
        self.headed = self.streams = self.begun = False


def exchange_of(request: Request) -> Exchange:
    """Each request over HTTP has one."""
    assert request.exchange is not None
    return request.exchange


class ExchangeSession(Session):
    """See the module, and `Session`.

    Attributes:
        idle_since: when the last exchange's end arrived at the client.
    """

    by_exchange = True

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        super().__init__(service, number, pool, toxics, meets, dice)
        self.opened_at = self.idle_since = trio.current_time()
        self._rests = 0
        service.opened(self)

    # ------------------------------------------------------------------ what each version adds

    @abstractmethod
    def runs(self, request: Request) -> bool:
        """Its exchange is under way."""

    @abstractmethod
    def alone(self, request: Request | None) -> bool:
        """No other exchange is under way."""

    @abstractmethod
    def begin(self, request: Request, headers: dict[str, str] | None = None) -> None:
        """The head of an event stream, unless it was sent before."""

    @abstractmethod
    def _body(self, request: Request, data: bytes, mark: Callable[[], None] | None) -> None:
        """More of an event stream."""

    @abstractmethod
    def _says(
        self, request: Request, status: int, body: bytes, headers: dict[str, str], *, head: Callable[[], None] | None,
        mark: Callable[[], None], cut: int,
    ) -> None:  # fmt: skip
        """Head and body at once, perhaps without its last bytes."""

    @abstractmethod
    def garble(self, dice: random.Random) -> None:
        """Bytes that cannot be what should come now."""

    @abstractmethod
    def add(self, request: Request, dice: random.Random) -> None:
        """Bytes behind the end of an answer."""

    @abstractmethod
    def closes_as_asked(self, request: Request) -> None:
        """It has just closed, and nobody has read this."""

    @abstractmethod
    def _closes_idle(self) -> None:
        """It has been without a request for too long."""

    # ------------------------------------------------------------------ requests

    def _answer(self, request: Request) -> None:
        """It is here."""
        exchange = exchange_of(request)
        exchange.shape = shape(self.service.dice_of(request, "shape"))
        meets = self.meets if self.key in self.service.keys or self.meets == "mute" else "401"
        if meets in GATE:
            request.over = True
            self._refuses(request, GATE[meets], int(meets), b"{}", {"Retry-After": "1"} if meets == "429" else {})
            self.script_over(request)
        elif meets != "mute":
            if exchange.shape.early:
                self.begin(request)
            self.service.arrived(request)

    def _learns_key(self, headers: dict[str, str]) -> None:
        self.key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")

    # ------------------------------------------------------------------ what is said

    def framed(self, request: Request, message: bytes) -> bytes:
        """See `Session`."""
        return self.event(request, message)

    def event(self, request: Request, data: bytes) -> bytes:
        """One event of an answer."""
        told = exchange_of(request).shape
        before = b": x" + told.line + b"event: some" + told.line if told.named else b""
        return before + b"data: " + data + told.line + told.line

    def keep_alive(self, request: Request) -> bytes:
        """See `Session`."""
        return b": keep-alive" + exchange_of(request).shape.line * 2

    def headed(self, request: Request) -> bool:
        """The answer's head was sent."""
        return exchange_of(request).headed

    def put(self, request: Request, frames: bytes, mark: Callable[[], None] | None = None) -> None:
        """See `Session`; what a request says after its exchange is lost."""
        if self.runs(request) and frames:
            self.begin(request)
            self._body(request, frames, mark)

    def refuses(self, request: Request, how: str, status: int | None, code: str | None, after: float | None) -> bool:
        """See `Session`."""
        if self.headed(request) or status is None or not self.runs(request):
            return False
        headers = {"Content-Type": "application/json"}
        if after is not None:
            headers["Retry-After"] = f"{after}"
        said = f'"code":"{code}",' if code else ""
        body = f'{{"error":{{{said}"message":"simulated {status} {code}"}}}}'
        self._refuses(request, how, status, body.encode(), headers)
        return True

    def _refuses(
        self, request: Request, how: str, status: int, body: bytes, headers: dict[str, str], *, cut: int = 0
    ) -> None:
        def came() -> None:
            request.told = how

        mark = partial(request.came, how) if not cut else lambda: None
        self._says(request, status, body, headers, head=came, mark=mark, cut=cut)

    def refuses_without_end(self, request: Request, how: str, status: int) -> None:
        """Answer by a status, and keep the last byte of what is said with it."""
        if self.runs(request) and not self.headed(request):
            self._refuses(request, how, status, b'{"error":{}}', {"Content-Type": "application/json"}, cut=1)

    def whole(self, request: Request, body: bytes, kind: str, mark: Callable[[], None], *, cut: int = 0) -> None:
        """An answer that is not streamed, perhaps without its last bytes; nothing where a stream has begun."""
        if self.runs(request) and not self.headed(request):
            self._says(request, 200, body, {"Content-Type": kind}, head=None, mark=mark, cut=cut)

    def told_all(self, request: Request, how: str) -> None:
        """See `Session`: here it is true of this request alone."""

    # ------------------------------------------------------------------ rest

    def _rest(self) -> None:
        """Without a request, for as long as the server is patient."""
        self._rests += 1
        keeps = self.service.plan.keeps
        if keeps is not None:
            self.service.world.engine.after(keeps, partial(self._idle, self._rests))

    def _idle(self, rest: int) -> None:
        if rest == self._rests and self.alone(None) and not self.gone and not self.closing:
            self.service.world.counts["closed while idle"] += 1
            self._closes_idle()

    def _comes_to_rest(self) -> None:
        """An exchange has ended: when that arrives, it may be idle."""

        def came() -> None:
            self.idle_since = trio.current_time()

        self.service.world.engine.at(self.link.to_client.arrives_at(), came)

    def was_idle(self, request: Request) -> bool:
        """It had been without a request for so long that nobody wonders when it is closed."""
        return self.alone(request) and request.written_at - self.idle_since >= IDLE_ENOUGH - 1e-6
