"""What the handles of both clients have in common: reading a call and taking its pieces. No waiting here."""

from __future__ import annotations

from sidecar.client.answers import Answer, outcome_of
from sidecar.client.calls import OpenCall
from sidecar.wire import Accepted, Terminal


class Reading:
    """The reading half of a handle. Iteration yields the pieces as they come and raises `CallFailed` after the last one
    when the call failed. With ``on_lost="restart"`` an empty piece means: forget the text so far, it starts again
    (`text` is always right).
    """

    def __init__(self, call: OpenCall) -> None:
        self._call = call
        self._read = self._restarts = 0

    def __repr__(self) -> str:
        return repr(self._call).replace("OpenCall", type(self).__name__)

    @property
    def id(self) -> str:
        """Its name on the wire."""
        return self._call.id

    @property
    def call_id(self) -> str | None:
        """The daemon's name for it, as in its log; None before it was accepted."""
        return None if self._call.accepted is None else self._call.accepted.call_id

    @property
    def accepted(self) -> Accepted | None:
        """The daemon's `accepted`, None before it."""
        return self._call.accepted

    @property
    def text(self) -> str:
        """The text so far."""
        return self._call.text

    @property
    def restarts(self) -> int:
        """How often the text began anew."""
        return self._call.restarts

    @property
    def ended(self) -> bool:
        """The terminal is there, as far as is known here."""
        return self._call.ended is not None

    @property
    def terminal(self) -> Terminal | None:
        """`done` or `failed` as it came (or as this client made it), None before."""
        return self._call.ended

    @property
    def answer(self) -> Answer:
        """The answer of an ended call.

        Raises:
            CallFailed: it failed; `text` keeps what came.
            ValueError: it has not ended.
        """
        if self._call.ended is None:
            raise ValueError("the call has not ended: wait for result() first")
        return outcome_of(self._call.ended, self._call.text, local=self._call.local)

    def _next_piece(self) -> str | None:
        """The next unread piece, "" for a new beginning, None when there is nothing to read."""
        call = self._call
        if self._restarts != call.restarts:
            self._restarts, self._read = call.restarts, 0
            return ""
        if self._read < len(call.pieces):
            self._read += 1
            return call.pieces[self._read - 1]
        return None
