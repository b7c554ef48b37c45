"""One exchange on an HTTP/2 connection: what is still to be sent, what has come, and how its peer may end it."""

from __future__ import annotations

import h2.connection
import h2.errors

from sidecar.errors import ConnectionLost
from sidecar.transport.exchange import Answer


class Stream:
    """See the module.

    Args:
        sid: its number.
        slot: the owner's name for it.
        answer: what has come of it.
        body: of the request.

    Attributes:
        pieces: of the answer, of the read under way.
        credit: bytes received and not yet allowed again.
        to_end: its owner has all that it wants.
        ours: its DATA is read by the link: its head has come, and told no length that h2 would hold it to.
    """

    __slots__ = ("answer", "credit", "ours", "pieces", "sid", "slot", "to_end", "unsent")

    def __init__(self, sid: int, slot: int, answer: Answer, body: bytes) -> None:
        self.sid, self.slot, self.answer = sid, slot, answer
        self.unsent = memoryview(body)
        self.pieces: list[bytes] = []
        self.credit = 0
        self.to_end = self.ours = False

    def push(self, engine: h2.connection.H2Connection) -> None:
        """As much of its body as the windows take."""
        while self.unsent:
            window = min(engine.local_flow_control_window(self.sid), engine.max_outbound_frame_size)
            if window <= 0:
                return
            piece, self.unsent = self.unsent[:window], self.unsent[window:]
            engine.send_data(self.sid, bytes(piece), end_stream=not self.unsent)

    def reset_by(self, code: int | h2.errors.ErrorCodes | None) -> ConnectionLost:
        """What it means that the peer has reset it."""
        if code == h2.errors.ErrorCodes.REFUSED_STREAM and not self.answer.headed:
            return ConnectionLost(1006, "the stream was refused before it was looked at", how="unprocessed")
        return ConnectionLost(1006, f"stream reset: {_name(code)}", how="reset")


def window_update(sid: int, credit: int) -> bytes:
    """The frame that allows so many bytes more; of stream 0: to all of them together."""
    return b"\0\0\4\x08\0" + sid.to_bytes(4, "big") + credit.to_bytes(4, "big")


def _name(code: int | h2.errors.ErrorCodes | None) -> str:
    try:
        return h2.errors.ErrorCodes(code or 0).name
    except ValueError:
        return f"error {code}"
