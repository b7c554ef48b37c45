"""One HTTP/1.1 connection, kept alive: one exchange at a time. h11 reads the heads, `http_body` what follows them."""

from __future__ import annotations

import re
from typing import Final, Literal

import h11
import trio

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.exchange import END_GRACE, IDLE_ENOUGH, NOBODY, REFUSAL_GRACE, Answer, Exchanges
from sidecar.transport.http1 import MAX_HEAD, MAX_LINES, fold
from sidecar.transport.http_body import Body, LengthBody, body_of
from sidecar.transport.link import Ended, Link
from sidecar.transport.wires import Wire

_END: Final = re.compile(rb"\n\r?\n")
#: h11 reads a head as an answer to something; the request itself did not go through it.
_ASKED: Final = h11.Request(method="GET", target="/", headers=[("Host", "upstream")])
_ALL_ASKED: Final = h11.EndOfMessage()
_BEGINNING: Final = b"HTTP/1."
_KEPT: Final = re.compile(r"(?:^|[,\s])timeout=(\d{1,6})")
_WITHOUT_BODY: Final = (204, 304)
#: Informational responses before an answer: each is a head to read, and the next may be in the same read.
MAX_INFORMATIONAL: Final = 16
#: What some servers say before they close a connection that was idle for too long (RFC 9110, 15.5.9).
_IDLE_TOO_LONG: Final = b"HTTP/1.1 408 "
#: Seconds after a request within which a 408 that closes the connection has crossed it on its way: it was said of the
#: time before. One that took longer is an answer: there are gateways that say 408 of a model that took too long.
CROSSED: Final = 1.0


class Http1Link(Link):
    """See the module, and `Link`.

    Args:
        wire, ended: see `Link`.
        head: the request's beginning, up to and with ``Content-Length: ``.
        exchanges: told of what comes.
        max_event_bytes: see `Answer`.

    Attributes:
        idle_since: when it was last without a request.
        keepalive_timeout: seconds for which the server keeps it without a request, if it said so.
    """

    __slots__ = (
        "_answer", "_body", "_buffer", "_exchanges", "_feeding", "_head", "_idle_for", "_keep", "_max_event_bytes",
        "_searched", "_sending", "_sent_at", "_size", "_skipped", "_to_end", "idle_since", "keepalive_timeout",
    )  # fmt: skip

    def __init__(
        self, wire: Wire, head: bytes, exchanges: Exchanges, ended: Ended | None, *, max_event_bytes: int = 1 << 20
    ) -> None:
        super().__init__(wire, ended)
        self.slots = 1
        self.idle_since = self.opened_at
        self.keepalive_timeout: float | None = None
        self._head, self._exchanges = head, exchanges
        self._max_event_bytes = max_event_bytes
        self._answer: Answer | None = None  # of the exchange under way
        self._body: Body | None = None  # once its head has come
        self._buffer = b""
        self._searched = 0
        self._skipped = 0  # informational responses before the answer under way
        self._keep = True  # the connection may carry another exchange after this one
        self._idle_for = 0.0  # before the request under way
        self._sent_at, self._size = self.opened_at, 0  # of the request under way
        self._feeding = self._sending = self._to_end = False

    # --- what its owner calls

    def send(self, slot: int, payload: bytes) -> None:
        """See `Link`; the body of a POST."""
        self._check_open()
        if self._answer is not None:
            raise ValueError("an exchange is under way")
        # What lies there unread came before this request: taken for the answer to it, it would be another's. And a
        # server that has closed need not be asked.
        self._sending = True
        self._wire.look()
        self._sending = False
        self._check_open()
        request = b"%b%d\r\n\r\n%b" % (self._head, len(payload), payload)
        self._put(request)
        self._size = len(request)
        self._answer = Answer(slot, self._exchanges, max_event_bytes=self._max_event_bytes)
        self._sent_at = trio.current_time()
        self._idle_for = self._sent_at - self.idle_since

    async def ping(self, timeout: float) -> float | None:  # noqa: ARG002 - HTTP/1.1 has no ping: the kernel asks (`dial`)
        """See `Link`: the kernel's own round trip time."""
        self._check_open()
        return self._wire.round_trip()

    def finish(self, slot: int) -> None:  # noqa: ARG002
        """The answer is complete as its dialect sees it: the exchange's own end is waited for, but not for long."""
        if self._feeding:
            self._to_end = True  # most often it comes in the same read
        else:
            self._within(END_GRACE)

    # --- what its wire calls

    def feed(self, data: bytes, now: float) -> None:
        """See `Link`."""
        if self._lost is not None:
            return
        self.last_inbound_at = now
        answer, self._feeding = self._answer, True
        try:
            self._take(data, now)
        except MalformedFrame as fault:
            self.retire(fault.with_traceback(None))
        self._feeding = False
        if self._to_end:
            self._to_end = False
            if self._answer is answer:
                self._within(END_GRACE)

    def _take(self, data: bytes, now: float) -> None:
        answer, body = self._answer, self._body
        if answer is None:
            self._unasked(data)
            return
        if body is None:
            answer.begun = True
            while body is None:  # 100, 103: the real one follows
                head, data = self._cut_head(data)
                if head is None:
                    return
                body = self._read_head(answer, head, now)
                if self._lost is not None:
                    return
            self._body = body
            if answer.refused and not body.done:
                self._within(REFUSAL_GRACE)
        if data or body.done:
            data = body.feed(data) if not body.done else self._spill(data)
            enough = answer.body(data, now) if data else False
            if self._lost is not None:
                return  # the owner gave it up for what this brought
            if enough and not body.done:
                self._keep = False  # its end is not waited for
            if body.done or enough:
                if body.rest:
                    self._keep = False  # an answer to what nobody asked
                self._exchange_over(answer, now)

    def _spill(self, data: bytes) -> bytes:
        """Bytes behind an answer that has no body."""
        self._keep = self._keep and not data
        return b""

    def _cut_head(self, data: bytes) -> tuple[bytes | None, bytes]:
        """(the head with its blank line, what follows), or (None, b"") while it is not complete."""
        buffer = self._buffer + data
        if not buffer.startswith(_BEGINNING[: len(buffer)]):
            raise MalformedFrame("the answer is not HTTP/1")
        found = _END.search(buffer, self._searched)
        if found is None or found.end() > MAX_HEAD:
            if len(buffer) > MAX_HEAD:
                raise MalformedFrame(f"a header of more than {MAX_HEAD} bytes")
            self._buffer, self._searched = buffer, max(0, len(buffer) - 2)
            return None, b""
        self._buffer, self._searched = b"", 0
        if buffer.count(b"\n", 0, found.end()) > MAX_LINES:
            raise MalformedFrame(f"a header of more than {MAX_LINES} lines")
        return buffer[: found.end()], buffer[found.end() :]

    def _read_head(self, answer: Answer, head: bytes, now: float) -> Body | None:
        """What body follows; None after an informational response, and where this is the connection's end."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        try:
            parser.send(_ASKED)
            parser.send(_ALL_ASKED)
            parser.receive_data(head)
            event = parser.next_event()
        except h11.ProtocolError:
            event = None
        if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            self._skipped += 1
            if self._skipped > MAX_INFORMATIONAL:
                raise MalformedFrame("informational responses without an end")
            return None
        self._skipped = 0
        if not isinstance(event, h11.Response):
            raise MalformedFrame("the answer's header is not HTTP's")
        headers = fold(event.headers)
        body = LengthBody(0) if event.status_code in _WITHOUT_BODY else body_of(headers)
        said = headers.get("connection", "").lower()
        self._keep = body.cut_by_eof and "close" not in said and (event.http_version != b"1.0" or "keep-alive" in said)
        kept = _KEPT.search(headers.get("keep-alive", ""))
        if kept is not None and int(kept[1]):
            self.keepalive_timeout = float(kept[1])
        if event.status_code == 408 and not self._keep and now - self._sent_at < CROSSED:
            self.retire(ConnectionLost(1000, "closed while idle, as the request was sent", how="unprocessed"))
            return None
        if not self._keep:
            self._exchanges.on_going_away()
        answer.head(event.status_code, headers)
        return body

    def _exchange_over(self, answer: Answer, now: float) -> None:
        """The exchange is over, properly: the next one may begin within this very step."""
        self._body = None
        keep, self._keep = self._keep, True
        try:
            answer.end(now)
        finally:
            if self._lost is None:
                self._answer = None
                self.idle_since = now
        if self._lost is not None:
            return
        if keep:
            self._exchanges.on_over(answer.slot, None, now)
            return
        self._refuse = ConnectionLost(1000, "the server keeps it no longer", how="idle")
        self._exchanges.on_going_away()
        self._exchanges.on_over(answer.slot, None, now)
        self.retire(ConnectionLost(1000, "the server keeps it no longer", how="idle"))

    def _unasked(self, data: bytes) -> None:
        """Bytes while no request is under way: the server says that its patience is over, or nobody knows what."""
        self._buffer += data[:MAX_HEAD]
        if self._buffer.startswith(_IDLE_TOO_LONG[: len(self._buffer)]):
            self._refuse = self._refuse or ConnectionLost(1000, "closed while idle", how="idle")
            self._exchanges.on_going_away()
            return
        raise MalformedFrame("bytes that nobody asked for")

    def end_of_input(self, how: Literal["eof", "reset"], reason: str) -> None:
        """See `Link`: what this means depends on whether, and how far, an answer has come."""
        answer, body = self._answer, self._body
        now = trio.current_time()  # the end is what comes now, however long ago its last bytes came
        if answer is None:
            self._refuse = self._refuse or ConnectionLost(1000, "closed while idle", how="idle")
        elif body is not None and not body.cut_by_eof and how == "eof" and self._refuse is None:
            self.parting = True
            try:
                self._exchange_over(answer, now)
            except MalformedFrame as fault:
                self.retire(fault.with_traceback(None))
            return
        elif not answer.begun and self._wire.pending_bytes >= self._size and self._refuse is None:
            self._refuse = ConnectionLost(1006, "closed before the request was sent", how="unprocessed")
        elif not answer.begun and self._idle_for >= IDLE_ENOUGH and self._refuse is None:
            # It had been closed for being idle, most likely, before our request came there: nobody has read that.
            self._refuse = ConnectionLost(1006, "closed as the request was sent", how="unprocessed")
        elif answer.refused and self._refuse is None:
            try:
                answer.end(now)  # cut, but its status says what there is to say
            except MalformedFrame:  # pragma: no cover - a refusal is no event stream
                pass
        super().end_of_input(how, reason)

    # --- inside

    def _within(self, seconds: float) -> None:
        """The exchange under way ends within so many seconds, or the connection does."""
        answer = self._answer

        def look() -> None:
            if self._answer is answer and answer is not None and self._lost is None:
                if answer.refused:
                    self._keep = False
                    self._exchange_over(answer, trio.current_time())
                else:
                    self.retire(ConnectionLost(1000, "an answer without an end", how="local"), ours=True)

        if answer is not None:
            self._wire.later(seconds, look)

    def _end(self, fault: ConnectionLost | MalformedFrame, *, ours: bool = False) -> None:
        super()._end(fault, ours=ours or self._sending)  # then its owner is in the middle of a step

    def _farewell(self, code: int) -> bytes:  # noqa: ARG002
        return b""

    def _deafen(self) -> None:
        self._answer = self._body = None
        self._exchanges = NOBODY
