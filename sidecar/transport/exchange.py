"""One request's answer over HTTP, however its bytes come: an event stream for a codec, or a refusal to be judged.

The status and the content type of the head decide which: 200 with an event stream is read as it comes, 200 with
anything else is read whole (there are services that do not heed `stream`), every other status is a refusal, whose body
is kept up to `MAX_REFUSAL` bytes. Redirects are refusals: a credential is not carried to where nobody configured.
"""

from __future__ import annotations

from typing import Final, Protocol

from sidecar.dialects.event_stream import EventStream
from sidecar.errors import ConnectionLost, MalformedFrame

#: Of a refusal's body, bytes that are kept; and of a whole answer that is no event stream.
MAX_REFUSAL: Final = 64 << 10
MAX_WHOLE: Final = 1 << 20
#: Seconds that a refusal's body is waited for, and that a finished answer has to end its exchange.
REFUSAL_GRACE: Final = 1.0
END_GRACE: Final = 1.0
#: Seconds without a request after which a server that closes is taken to have closed an idle connection.
IDLE_ENOUGH: Final = 1.0

_EVENT_STREAM: Final = "text/event-stream"


class Exchanges(Protocol):
    """Whom a link tells of its exchanges. Nothing here may block; only `on_events` may raise, `MalformedFrame`.

    For each request: perhaps `on_head`, then events; or one `on_refused`; and last, once, `on_over`. Where the whole
    connection ends, there is no `on_over`: `Ended` says it.
    """

    def on_head(self, slot: int, headers: dict[str, str]) -> None:
        """The answer begins: 200. Lower-case names, repeated ones joined."""
        ...

    def on_events(self, slot: int, payloads: list[bytes], now: float) -> None:
        """The data of the events of one read."""
        ...

    def on_refused(self, slot: int, status: int, headers: dict[str, str], body: bytes, now: float) -> None:
        """Another status than 200, and what was said with it."""
        ...

    def on_over(self, slot: int, fault: ConnectionLost | MalformedFrame | None, now: float) -> None:
        """The exchange is over: properly (None), or cut. The slot may be used again at once, if the link stands."""
        ...

    def on_room(self) -> None:
        """The peer takes more requests at once than before: the link's `slots` are more."""
        ...

    def on_going_away(self) -> None:
        """The peer takes no further request on this connection; those that run go on."""
        ...


class Answer:
    """What one response has brought so far.

    Args:
        slot: of the request.
        to: whom to tell.
        max_event_bytes: a longer event cannot be trusted.

    Attributes:
        begun: a byte of it came.
        headed: its head has come.
    """

    __slots__ = ("_events", "_headers", "_kept", "_limit", "_status", "_to", "begun", "headed", "slot")

    def __init__(self, slot: int, to: Exchanges, *, max_event_bytes: int) -> None:
        self.slot = slot
        self.begun = self.headed = False
        self._to = to
        self._events: EventStream | None = EventStream(max_event_bytes=max_event_bytes)
        self._kept = bytearray()
        self._limit = 0
        self._status = 0
        self._headers: dict[str, str] = {}

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Status and headers.

        Raises:
            MalformedFrame: the body is packed, which we did not ask for.
        """
        self.headed = True
        self._status, self._headers = status, headers
        if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise MalformedFrame("a packed body, and no packing was asked for")
        if status != 200:
            self._events, self._limit = None, MAX_REFUSAL
            return
        kind = headers.get("content-type", _EVENT_STREAM).partition(";")[0].strip().lower()
        if kind != _EVENT_STREAM:
            self._events, self._limit = None, MAX_WHOLE
        self._to.on_head(self.slot, headers)

    @property
    def refused(self) -> bool:
        """It is a refusal, and what is said with it is not waited for very long."""
        return self._status not in (0, 200)

    def body(self, data: bytes, now: float) -> bool:
        """The next bytes of the body; True when no more are wanted.

        Raises:
            MalformedFrame: an event that cannot be one, or an answer without an end.
        """
        events = self._events
        if events is not None:
            payloads = events.feed(data)
            if payloads:
                self._to.on_events(self.slot, payloads, now)
            return False
        self._kept += data
        if len(self._kept) < self._limit:
            return False
        if self._status == 200:
            raise MalformedFrame(f"an answer of more than {MAX_WHOLE} bytes, and no event stream")
        return True

    def end(self, now: float) -> None:
        """The body is over, properly, or (a refusal's) as far as it is waited for; `on_over` is the link's to say.

        Raises:
            MalformedFrame: see `body`.
        """
        if self._events is not None:
            payloads = self._events.end()
        elif self._status == 200:
            payloads = [bytes(self._kept)] if self._kept.strip() else []
        else:
            self._to.on_refused(self.slot, self._status, self._headers, bytes(self._kept[:MAX_REFUSAL]), now)
            return
        if payloads:
            self._to.on_events(self.slot, payloads, now)


class _Nobody:
    """Told of what still comes where nobody listens any more."""

    def on_head(self, slot: int, headers: dict[str, str]) -> None:
        pass

    def on_events(self, slot: int, payloads: list[bytes], now: float) -> None:
        pass

    def on_refused(self, slot: int, status: int, headers: dict[str, str], body: bytes, now: float) -> None:
        pass

    def on_over(self, slot: int, fault: ConnectionLost | MalformedFrame | None, now: float) -> None:
        pass

    def on_room(self) -> None:
        pass

    def on_going_away(self) -> None:
        pass


NOBODY: Final[Exchanges] = _Nobody()
