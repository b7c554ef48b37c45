"""An HTTP/1.1 connection: requests one after another, also when they come before the answer to the last; keep-alive."""

from __future__ import annotations

from typing import Final

import h11
import trio

from sidecar.simulator import control, door
from sidecar.simulator.door import Knock
from sidecar.simulator.link import Link
from sidecar.simulator.web.desk import respond
from sidecar.simulator.web.pipe import Headers, Pipe
from sidecar.simulator.web.talk import Host, Talk

_BODY: Final = 16 << 20
_AHEAD: Final = 32 << 20


class Http1(Talk):
    """One connection whose first request's head was read.

    Args:
        peer: what read it.
        first: that head.
    """

    way = "http/1.1"

    def __init__(self, host: Host, link: Link, peer: h11.Connection, first: Knock) -> None:
        super().__init__(host, link)
        self.peer = peer
        self._first = first
        self._more = trio.Event()
        self._ahead = 0
        self._last = False

    async def _live(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._serve)
        try:
            while data := await self.link.receive():
                self._ahead += len(data)
                if not self.over and self._ahead < _AHEAD:
                    self.peer.receive_data(data)
                    self._more.set()
        except (OSError, trio.ClosedResourceError):
            pass

    async def _serve(self) -> None:
        knock: Knock | None = self._first
        while knock is not None and not self.over:
            body = await self._body()
            if body is None:
                break
            if knock.method != "POST" or knock.path.startswith("/_"):
                self._aside(knock)
                break
            await respond(self, self._response(), knock, body)
            if self._last or self.peer.our_state is not h11.DONE or self.peer.their_state is not h11.DONE:
                break
            self.peer.start_next_cycle()
            self._ahead = 0
            knock = await self._knock()
        if not self.over:
            self.leave()

    def _response(self) -> Response:
        response = Response(self)
        if self._last:
            response.last()
        return response

    def _aside(self, knock: Knock) -> None:
        """What is no call; the connection ends with it."""
        if knock.path.startswith("/_"):
            self.host.forget(self)
            self.link.send(control.answer_to(self.host, knock.path, knock.query))
        else:
            self.link.send(door.answer(405, {"error": {"message": "POST, or upgrade to WebSocket"}}, {"Allow": "POST"}))

    async def _event(self) -> h11.Event | None:
        """The next; None for one that only a client out of turn can cause."""
        while True:
            event = self.peer.next_event()
            if event is not h11.NEED_DATA:
                return event if isinstance(event, h11.Event) else None
            self._more = trio.Event()
            await self._more.wait()

    async def _knock(self) -> Knock | None:
        """The head of the next request; None when there will be none (a client that sent something else was told)."""
        try:
            with trio.move_on_after(_or_ever(self.host.keepalive_timeout_s)):
                event = await self._event()
                if isinstance(event, h11.Request):
                    return door.knock_of(event)
        except h11.RemoteProtocolError:
            self.link.send(door.answer(400, {"error": "not HTTP/1.1"}))
        return None

    async def _body(self) -> bytes | None:
        parts, size = [], 0
        try:
            if self.peer.they_are_waiting_for_100_continue:
                self.link.send(self.peer.send(h11.InformationalResponse(status_code=100, headers=[])))
            while isinstance(event := await self._event(), h11.Data):
                size += len(event.data)
                if size > _BODY:
                    self.link.send(door.answer(413, {"error": {"message": "request too large"}}))
                    return None
                parts.append(bytes(event.data))
        except h11.RemoteProtocolError:
            self.link.send(door.answer(400, {"error": "not HTTP/1.1"}))
            return None
        return b"".join(parts)

    def close(self, code: int, reason: str = "") -> None:
        """After the answer that is under way; an idle connection ends at once."""
        del code, reason
        self._last = True
        if not self.calls and not self.over:
            self.leave()


class Response(Pipe):
    """One response."""

    way = "http/1.1"
    chunked = True

    def __init__(self, talk: Http1) -> None:
        self._talk, self._link, self._peer = talk, talk.link, talk.peer
        self._streamed = self._last = False

    def head_bytes(self, status: int, headers: Headers, *, length: int | None = None) -> bytes:
        """See `Pipe`."""
        self._streamed = length is None
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        fields = [*headers, framing, *([("connection", "close")] if self._last else [])]
        patience = self._talk.host.keepalive_timeout_s
        if patience is not None and patience >= 1 and not self._last:
            fields.append(("keep-alive", f"timeout={int(patience)}"))
        return self._peer.send(h11.Response(status_code=status, headers=fields)) or b""

    def raw(self, data: bytes) -> None:
        """See `Pipe`."""
        if not self._talk.over:
            self._link.send(data)

    def write(self, data: bytes) -> None:
        """See `Pipe`; a stream's chunks are not shown to h11, which need not see them."""
        if self._talk.over or self._peer.our_state is not h11.SEND_BODY:
            return
        if not self._streamed:
            self._peer.send(h11.Data(data=data))
        self._link.send(data)

    async def write_large(self, data: bytes) -> None:
        """See `Pipe`."""
        await self._link.send_large(data)

    def end(self) -> None:
        """See `Pipe`."""
        if self._peer.our_state is h11.SEND_BODY:
            last = self._peer.send(h11.EndOfMessage())
            if last and not self._talk.over:
                self._link.send(last)

    def last(self) -> None:
        """See `Pipe`: Connection: close."""
        self._last = True

    def unprocessed(self, *, stream: bool) -> None:
        """See `Pipe`; EOF before any byte of the answer: the client cannot tell it from an idle connection's end."""
        del stream
        self._talk.leave()

    def abort(self) -> None:
        """See `Pipe`; EOF."""
        self._talk.eof()

    @property
    def backlog(self) -> int:
        """See `Pipe`."""
        return self._link.backlog

    async def drained(self) -> None:
        """See `Pipe`."""
        await self._link.drained()


def _or_ever(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
