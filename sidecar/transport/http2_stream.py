"""One exchange on an HTTP/2 connection: what is still to be sent, what has come, how it may end, and what that says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final, Literal

import h2.connection
import h2.errors
import hpack

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.exchange import Answer
from sidecar.transport.http1 import fold
from sidecar.transport.http2_opening import STREAM_WINDOW

#: Seconds without progress after which a window that is shut is taken to stay so, and seconds without a word that say
#: something of a connection.
_STUCK: Final = 0.25
_IN_VAIN: Final = 1.0
#: Requests in a row that die so, before a connection is none for another.
MAX_IN_VAIN: Final = 2

STREAM_MASK: Final = 0x7FFF_FFFF
_STATUS: Final = re.compile("[2-9][0-9][0-9]")
_PADDED: Final = 0x08
_PRIORITY: Final = 0x20


class Stream:
    """See the module.

    Args:
        sid: its number.
        slot: the owner's name for it.
        answer: what has come of it.
        body: of the request.
        now: instant.
        early: it was begun before the server's settings had come.

    Attributes:
        pieces: of the answer, of the read under way.
        credit: bytes received and not yet allowed again.
        began_at, moved_at: when it was begun; when the peer last took a part of its body.
        to_end: its owner has all that it wants.
        ours: its DATA is read by the link: its head has come, and told no length that h2 would hold it to.
    """

    __slots__ = (
        "answer", "began_at", "credit", "early", "moved_at", "ours", "pieces", "sid", "slot", "to_end", "unsent",
    )  # fmt: skip

    def __init__(self, sid: int, slot: int, answer: Answer, body: bytes, now: float, *, early: bool = False) -> None:
        self.sid, self.slot, self.answer = sid, slot, answer
        self.unsent = memoryview(body)
        self.pieces: list[bytes] = []
        self.credit = 0
        self.began_at = self.moved_at = now
        self.early = early
        self.to_end = self.ours = False

    def push(self, engine: h2.connection.H2Connection, now: float) -> None:
        """As much of its body as the windows take."""
        while self.unsent:
            window = min(engine.local_flow_control_window(self.sid), engine.max_outbound_frame_size)
            if window <= 0:
                return
            self.moved_at = now
            piece, self.unsent = self.unsent[:window], self.unsent[window:]
            engine.send_data(self.sid, bytes(piece), end_stream=not self.unsent)

    def take_head(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """The head of its answer.

        Raises:
            MalformedFrame: it is none, or of a body that we cannot read.
        """
        headers = fold((bytes(name), bytes(value)) for name, value in fields)
        status = headers.pop(":status", "")
        self.answer.begun = True
        if not _STATUS.fullmatch(status):
            raise MalformedFrame("a response without a status")
        self.answer.head(int(status), headers)
        self.ours = "content-length" not in headers

    def take_end(self, now: float) -> MalformedFrame | None:
        """Its answer is over, properly; what is wrong with it all the same."""
        try:
            self.answer.end(now)
        except MalformedFrame as fault:
            return fault.with_traceback(None)
        return None

    def allowance(self) -> bytes:
        """The frame that lets more of its answer come, now and then: half a window at a time."""
        if self.credit < STREAM_WINDOW // 2:
            return b""
        update, self.credit = window_update(self.sid, self.credit), 0
        return update

    def is_stuck(self, now: float) -> bool:
        """The peer takes no more of its body, and has not for so long that it hardly will."""
        return bool(self.unsent) and now - self.moved_at >= _STUCK

    def reset_by(self, code: int | h2.errors.ErrorCodes | None) -> ConnectionLost:
        """What it means that the peer has reset it."""
        if code == h2.errors.ErrorCodes.REFUSED_STREAM and not self.answer.headed:
            # One too many of those that nobody had counted yet tells nothing of the server.
            how: Literal["idle", "unprocessed"] = "idle" if self.early else "unprocessed"
            return ConnectionLost(1006, "the stream was refused before it was looked at", how=how)
        return ConnectionLost(1006, f"stream reset: {_name(code)}", how="reset")


class Doubts:
    """Of one connection, whatever its pings say: there are peers, proxies above all, that answer those and no more.

    Attributes:
        heard_at: when an answer on it, any, last went on.
    """

    __slots__ = ("_in_vain", "heard_at")

    def __init__(self) -> None:
        self.heard_at = -math.inf
        self._in_vain = 0  # requests in a row that were given up, after a while, and no answer went on in their time

    def given_up(self, stream: Stream, now: float) -> bool:
        """A request is stopped; whether another one is as likely to die here."""
        if self.heard_at >= stream.began_at:
            self._in_vain = 0
        elif now - stream.began_at >= _IN_VAIN:
            self._in_vain += 1
        return self._in_vain >= MAX_IN_VAIN or stream.is_stuck(now)


def unpack_head(engine: h2.connection.H2Connection, flags: int, payload: bytes) -> None:
    """The head of an answer that nobody waits for: its fields are unpacked, since later heads refer to them.

    h2 bears it for a stream that was reset, but for an informational one (4.4.1): that would end the connection.

    Raises:
        MalformedFrame: it cannot be unpacked.
    """
    start, stop = 0, len(payload)
    if flags & _PADDED and payload:
        start, stop = 1, stop - payload[0]
    if flags & _PRIORITY:
        start += 5
    try:
        if start > stop:
            raise MalformedFrame("HTTP/2: a head of too few bytes")
        engine.decoder.decode(payload[start:stop], raw=True)
    except hpack.HPACKError as error:
        raise MalformedFrame(f"HTTP/2: {type(error).__name__}") from None


def last_of(payload: bytes) -> int:
    """The last stream that a GOAWAY's sender may have looked at.

    Raises:
        MalformedFrame: it is none.
    """
    if len(payload) < 8:
        raise MalformedFrame("HTTP/2: a GOAWAY of too few bytes")
    return int.from_bytes(payload[:4], "big") & STREAM_MASK


def window_update(sid: int, credit: int) -> bytes:
    """The frame that allows so many bytes more; of stream 0: to all of them together."""
    return b"\0\0\4\x08\0" + sid.to_bytes(4, "big") + credit.to_bytes(4, "big")


def _name(code: int | h2.errors.ErrorCodes | None) -> str:
    try:
        return h2.errors.ErrorCodes(code or 0).name
    except ValueError:
        return f"error {code}"
