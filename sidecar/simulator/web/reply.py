"""One request being answered over HTTP: an `act.Line` whose messages are events of a stream, or one JSON answer."""

from __future__ import annotations

from typing import Final

from sidecar.simulator import calls
from sidecar.simulator.behaviour import Behaviour
from sidecar.simulator.calls import Call
from sidecar.simulator.voices import Fault
from sidecar.simulator.web import heads, whole
from sidecar.simulator.web.pipe import Pipe
from sidecar.simulator.web.sse import FRAMED, Framed
from sidecar.simulator.web.talk import Talk

#: How each dialect words an error within a stream, in the terms of `Behaviour.shape`.
_SHAPES: Final = {"responses": "flat", "chat": "no_status", "messages": "nested"}


class Reply:
    """What a call may do to its answer; see `act.Line`.

    Args:
        stream: events as they come; else all that is said is kept until `finish` makes one JSON object of it.
    """

    def __init__(
        self, talk: Talk, pipe: Pipe, *, dialect: str, behaviour: Behaviour, request_id: str, stream: bool
    ) -> None:
        self.talk, self.pipe, self.dialect, self.behaviour = talk, pipe, dialect, behaviour
        self.counters, self.metronome = talk.host.counters, talk.host.metronome
        self.request_id, self.stream = request_id, stream
        self.shape = _SHAPES[dialect]
        self._frame: Framed = FRAMED[dialect, pipe.chunked]
        self._said: list[bytes] = []
        self._begun = self._ended = False
        self.call: Call | None = None

    # --------------------------------------------------------------------------------------------- HTTP's own part

    def head(self, *first: tuple[str, str]) -> heads.Fields:
        """The head's fields, `first` before those that every answer has."""
        common = heads.head(self.dialect, self.request_id, self.behaviour, self.talk.host.wall_s())
        return [*first, *common]

    def begin(self) -> None:
        """Say the head of a stream, if it was not said."""
        if not self._begun:
            self._begun = True
            self.pipe.head(200, self.head(heads.STREAM, ("cache-control", "no-cache")))

    async def begin_slowly(self, seconds: float) -> None:
        """Say the head a byte at a time, in so many seconds in all."""
        self._begun = True
        head = self.pipe.head_bytes(200, self.head(heads.STREAM))
        await self.talk.link.drip(head, seconds / max(1, len(head)))

    def data(self, data: bytes) -> None:
        """A piece of the body that is no message: a comment, or part of an event."""
        if self.stream:
            self.begin()
            self.pipe.write(self._piece(data))

    async def data_large(self, data: bytes) -> None:
        """As `data`, waiting while the client does not read."""
        if self.stream:
            self.begin()
            await self.pipe.write_large(self._piece(data))

    def _piece(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.pipe.chunked else data

    def unended(self, payload: bytes) -> bytes:
        """An event without its end."""
        return FRAMED[self.dialect, False](payload)[:-2]

    def refuse(self, fault: Fault, *, patient: bool = False, status: int | None = None) -> None:
        """An error's status (or another) and body in place of the answer; nothing may have been said."""
        own, fields, body = heads.refusal(
            self.dialect, fault, self.request_id, self.behaviour, self.talk.host.wall_s(), patient=patient
        )
        self._ended = True
        self.pipe.whole(own if status is None else status, fields, body)

    def packed(self, body: bytes) -> None:
        """A 200 whose body is said to be packed by gzip; nothing may have been said."""
        self._ended = True
        self.pipe.whole(200, self.head(heads.STREAM, ("content-encoding", "gzip")), body)

    async def endless_json(self, slab: bytes, size: int) -> None:
        """A 200 with so many bytes of JSON that does not end; nothing may have been said."""
        self._begun = True
        self.pipe.head(200, self.head(heads.JSON))
        for start in range(0, size, len(slab)):
            await self.pipe.write_large(self._piece(slab[: size - start]))

    def end_early(self) -> None:
        """The proper end of a body that is not the end of an answer: the call counts as cut."""
        self._ended = True
        self.begin()
        self.pipe.end()
        if self.call is not None:
            calls.end(self.talk.host, self.call, "cut")

    def finish(self) -> None:
        """The end of the answer, after all was said."""
        if self._ended:
            return
        self._ended = True
        if self.stream:
            self.begin()
            self.pipe.end()
        else:
            self.pipe.whole(200, self.head(heads.JSON), whole.fold(self.dialect, self._said))

    # ------------------------------------------------------------------------------------------- what any call does

    def say(self, payload: bytes) -> None:
        """One event."""
        if not self.stream:
            self._said.append(payload)
            return
        if not self._begun:
            self.begin()
        self.pipe.write(self._frame(payload))

    @property
    def framed(self) -> Framed | None:
        """See `act.Line`."""
        return self._frame if self.stream else None

    async def send_large(self, data: bytes) -> None:
        """Whole events, waiting while the client does not read."""
        self.begin()
        await self.pipe.write_large(data)

    @property
    def backlog(self) -> int:
        """Bytes that the client has not let through yet."""
        return self.pipe.backlog

    async def drained(self) -> None:
        """Wait while the client does not read."""
        await self.pipe.drained()

    def raw(self, data: bytes) -> None:
        """Bytes below HTTP's framing."""
        if self.stream:
            self.begin()
            self.pipe.raw(data)

    def deflate(self, data: bytes) -> bytes:
        """There is no zstd stream over HTTP."""
        return data

    def eof(self) -> None:
        """End the connection without the last chunk."""
        self.talk.eof()

    def reset(self) -> None:
        """End the connection by RST."""
        self.talk.reset()

    def close(self, code: int, reason: str = "") -> None:
        """There is no close frame over HTTP: as `eof`."""
        del code, reason
        self.talk.eof()
