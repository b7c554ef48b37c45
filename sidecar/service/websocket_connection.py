"""A warm, authenticated WebSocket: one codec for all of its slots.

`receive` is the path of a token: one call per read, one decode per frame; the pump flushes at the end of its pass.
Nothing in it awaits, locks, logs or sets a timer.
"""

from __future__ import annotations

from collections.abc import Callable

from sidecar.compression import ZstdStream
from sidecar.dialects.base import Codec, Content, Event, Expiring, Faulted, Finished, Prompt
from sidecar.errors import MalformedFrame, UpstreamFault
from sidecar.service.connection import DISCARDED, Connection


class WebSocketConnection(Connection):
    """See the module, and `Connection`.

    Args:
        codec: the dialect's state for this connection.
        inflate: the connection's zstd stream, if compression was asked for.
    """

    __slots__ = ("_codec", "_inflate", "_texts")

    def __init__(
        self,
        key: int,
        codec: Codec,
        *,
        on_change: Callable[[Connection], None],
        inflate: ZstdStream | None,
        born_at: float,
    ) -> None:
        super().__init__(key, codec.slots, on_change=on_change, born_at=born_at)
        self._codec = codec
        self._texts: list[list[str]] = [[] for _ in range(codec.slots)]
        self._inflate = inflate

    def closed(self, fault: UpstreamFault, now: float) -> None:
        """See `Connection`."""
        self._inflate = None  # megabytes, while the keepalive's heap may hold this object for an interval
        super().closed(fault, now)

    # ------------------------------------------------------------------ the path of a token

    def receive(self, payloads: list[bytes], binary: list[int], now: float) -> None:
        """One read's messages: decode, hand on.

        Raises:
            MalformedFrame: the connection cannot be trusted any more; the transport retires it.
        """
        broken = self._inflate_all(payloads, binary) if binary else None
        rest = iter(payloads)
        decode_pass, texts = self._codec.decode_pass, self._texts
        while True:
            try:
                events = decode_pass(rest, texts)
            finally:
                for slot, pieces in enumerate(texts):
                    if pieces:
                        text = pieces[0] if len(pieces) == 1 else "".join(pieces)
                        pieces.clear()
                        self._content(slot, text, now)
            if not events:
                break
            for event in events:
                if type(event) is Content:
                    self._content(event.slot, event.text, now)
                elif isinstance(event, Expiring) or event.slot is None:
                    self._concerns_all(event, now)
                else:
                    self._handle(event.slot, event, now)
        if broken is not None:
            try:
                raise broken
            finally:
                del broken  # its traceback holds this frame
        link = self.link
        if self._settling and (link is None or not link.parting):
            self._settle()  # else no call is to be started on what is about to be lost

    def _concerns_all(self, event: Event, now: float) -> None:
        """A few frames per connection are about no answer."""
        if isinstance(event, Expiring):
            self.retire_at = now
            self.expiring = self._settling = True
        elif isinstance(event, Faulted):
            # An error of the whole connection: all of it is lost, and nothing more may come of it.
            self._ending.clear()
            self.kill(event.error)
            self._on_change(self)

    def _inflate_all(self, payloads: list[bytes], binary: list[int]) -> MalformedFrame | None:
        """Put the messages in the place of their slices; from one on that is none nothing counts any more."""
        inflate = self._inflate
        for index in binary:
            if inflate is None:
                del payloads[index:]
                return MalformedFrame("a binary frame, and no compression was agreed on", close_code=1003)
            try:
                payloads[index] = inflate.feed(payloads[index])
            except MalformedFrame as fault:
                del payloads[index:]
                return fault.with_traceback(None)
        return None

    # ------------------------------------------------------------------ slots

    def _encode(self, slot: int, prompt: Prompt) -> bytes:
        return self._codec.encode(slot, prompt)

    def _concluded(self, slot: int) -> Finished:
        return self._codec.conclude(slot)

    def _discard(self, slot: int) -> None:
        self._codec.discard(slot)

    def _release(self, slot: int) -> None:
        if self._attempts[slot] is not DISCARDED:
            self.active -= 1
        self._attempts[slot] = None
        self._ending.discard(slot)
        self._settling = True
        self.taken -= 1
        self._step("idle" if self.taken == 0 and self.state == "BUSY" else "released")
        if self.taken and not self.active:
            self._stop_working()  # what runs here still, nobody waits for
