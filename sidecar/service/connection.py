"""One warm, authenticated WebSocket and the attempts on it: slots in, frames out to whoever holds the slot.

Its states and steps are `core.pool_policy.CONNECTION`.

`Connection.receive` is the path of a token: one call per read, one decode per frame; the pump flushes at the end of its
pass. Nothing in it awaits, locks, logs or sets a timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sidecar.compression import ZstdStream
from sidecar.core.pool_policy import CONNECTION, ConnectionState, ConnectionView
from sidecar.dialects.base import Codec, Content, Ending, Expiring, Faulted, Finished, Prompt, Started
from sidecar.errors import ConnectionLost, MalformedFrame, UpstreamFault
from sidecar.transport.websocket import WebSocket


class SlotHolder(Protocol):
    """What a connection tells the holder of a slot (an `Attempt`); no method may block or raise."""

    def on_content(self, text: str, now: float) -> None:
        """A piece of the answer."""
        ...

    def on_started(self, event: Started) -> None:
        """The upstream took the request."""
        ...

    def on_ending(self, now: float) -> None:
        """The content is over; the usage may still come."""
        ...

    def on_finished(self, event: Finished, now: float) -> None:
        """The answer ended as it should. The slot is free again."""
        ...

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        """The attempt failed; the slot, or the whole connection, is gone."""
        ...


class _Discarded:
    """Holds the slot of a stopped attempt until its end: what still comes is nobody's."""

    def on_content(self, text: str, now: float) -> None:
        pass

    def on_started(self, event: Started) -> None:
        pass

    def on_ending(self, now: float) -> None:
        pass

    def on_finished(self, event: Finished, now: float) -> None:
        pass

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        pass


_DISCARDED: Final = _Discarded()


class Connection:
    """One connection's life, from before it is made until after it is gone.

    Args:
        key: its number in the pool.
        codec: the dialect's state for this connection.
        on_change: told when a slot came free, or the state changed.
        inflate: the connection's zstd stream, if compression was asked for.
        born_at: when it was decided on.
    """

    __slots__ = (
        "_attempts",
        "_codec",
        "_ending",
        "_inflate",
        "_on_change",
        "_settling",
        "_texts",
        "active",
        "born_at",
        "credential",
        "expiring",
        "fault",
        "in_rotation",
        "key",
        "opened_at",
        "retire_at",
        "rtt",
        "state",
        "stopped_by_us",
        "taken",
        "used",
        "websocket",
    )

    def __init__(
        self,
        key: int,
        codec: Codec,
        *,
        on_change: Callable[[Connection], None],
        inflate: ZstdStream | None,
        born_at: float,
    ) -> None:
        self.key = key
        self.state: ConnectionState = "CONNECTING"
        self.born_at = born_at
        self.opened_at: float | None = None
        self.retire_at: float | None = None
        #: which version of the credential it was authenticated with
        self.credential: object = None
        self.websocket: WebSocket | None = None
        #: last keepalive's round trip, seconds
        self.rtt: float | None = None
        #: the upstream said that it will close this connection soon
        self.expiring = False
        #: why it ended, where we know better than the transport (silence, a bad frame)
        self.fault: UpstreamFault | None = None
        #: closed because its only call was stopped: no fault of the upstream's
        self.stopped_by_us = False
        #: stands in its pool's queue of connections with a free slot
        self.in_rotation = False
        #: slots in use, and those of them that somebody still reads
        self.taken = 0
        self.active = 0
        #: a call was started on it, ever
        self.used = False
        self._codec = codec
        self._texts: list[list[str]] = [[] for _ in range(codec.slots)]
        self._on_change = on_change
        self._inflate = inflate
        #: slots whose answer is complete but for its usage
        self._ending: set[int] = set()
        #: a slot came free in the pass under way: what else came in the same read is not for its next holder
        self._settling = False
        self._attempts: list[SlotHolder | None] = [None] * codec.slots

    def __repr__(self) -> str:
        return f"<Connection {self.key} {self.state} {self.taken}/{len(self._attempts)}>"

    # ------------------------------------------------------------------ life

    def opened(self, websocket: WebSocket, now: float) -> None:
        """The upgrade is done: calls may come."""
        self._step("ready")
        self.websocket = websocket
        self.opened_at = now
        self._on_change(self)

    def drain(self) -> bool:
        """Take no new attempt; True when nothing is on it, so that it can be closed now."""
        if self.state == "READY" or self.state == "BUSY":
            self._step("retire")
        return self.active == 0

    def closed(self, fault: UpstreamFault, now: float) -> None:
        """It is gone: every attempt on it is lost."""
        if self.state == "CLOSED":
            return
        self._step("closed")
        attempts = self._attempts.copy()
        self._attempts[:] = [None] * len(attempts)  # in place: a pass under way must find nobody here
        self.taken = self.active = 0
        self._inflate = None  # megabytes, while the keepalive's heap may hold this object for an interval
        fault = self.fault or fault
        for slot, attempt in enumerate(attempts):
            if attempt is None:
                continue
            if slot in self._ending and isinstance(fault, ConnectionLost):
                # Its content was over, only the usage is missing: a close takes nothing away from the answer.
                attempt.on_finished(self._codec.conclude(slot), now)
            else:
                attempt.on_lost(fault, now)
        self._ending.clear()

    def kill(self, fault: UpstreamFault) -> None:
        """Give it up at once, for `fault`; the pool is told, and looks at it with its next step."""
        if self.fault is None:
            self.fault = fault
        self.drain()
        if self.websocket is not None:
            self.websocket.abort()

    def view(self) -> ConnectionView:
        """As the pool's policy sees it."""
        opened_at = self.born_at if self.opened_at is None else self.opened_at
        return ConnectionView(self.key, self.state, opened_at, self.taken, self.retire_at)

    # ------------------------------------------------------------------ slots

    @property
    def free(self) -> bool:
        """A call may be started here now."""
        return (
            self.taken < len(self._attempts) and (self.state == "READY" or self.state == "BUSY") and not self._settling
        )

    def start(self, attempt: SlotHolder, prompt: Prompt) -> None:
        """Hand an attempt to the upstream.

        Raises:
            ConnectionLost: the connection is going away; nothing was written and no slot is taken.
        """
        websocket = self.websocket
        if websocket is None or not self.free:
            raise ConnectionLost(reason="not ready", how="local")
        slot = self._attempts.index(None)
        frame = self._codec.encode(slot, prompt)
        try:
            websocket.send_text(frame)
        except ConnectionLost as error:
            # Nothing can be sent any more, and the codec takes the slot for taken.
            self.fault = self.fault or error
            self.drain()
            raise
        self._attempts[slot] = attempt
        self.taken += 1
        self.active += 1
        self.used = True
        self._step("taken")

    def stop(self, attempt: SlotHolder) -> None:
        """Nobody wants this attempt any more: alone, it takes the connection with it; else its frames are dropped.

        There is no cancel in either dialect: closing is the only way to stop the upstream's work (and the bill).
        """
        if attempt not in self._attempts:
            return
        slot = self._attempts.index(attempt)
        self._attempts[slot] = _DISCARDED
        self.active -= 1
        if self.active == 0:
            self._stop_working()
        else:
            self._codec.discard(slot)

    def _stop_working(self) -> None:
        self.stopped_by_us = True
        self.kill(ConnectionLost(1000, "its only call was stopped", how="local"))

    def conclude(self, attempt: SlotHolder, now: float) -> None:
        """The usage of an ended answer did not come in time: end it without."""
        if attempt in self._attempts:
            self._handle(self._codec.conclude(self._attempts.index(attempt)), now)
            self._settle()

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
                else:
                    self._handle(event, now)
        if broken is not None:
            try:
                raise broken
            finally:
                del broken  # its traceback holds this frame
        websocket = self.websocket
        if self._settling and (websocket is None or not websocket.parting):
            self._settle()  # else no call is to be started on what is about to be lost

    def _content(self, slot: int, text: str, now: float) -> None:
        attempt = self._attempts[slot]
        if attempt is not None:
            attempt.on_content(text, now)

    def _settle(self) -> None:
        """The pass is over: slots that came free in it may be given out."""
        self._settling = False
        self._on_change(self)

    def _handle(self, event: Started | Ending | Finished | Faulted | Expiring | Content, now: float) -> None:
        """Everything that is not content: a few frames per answer."""
        if isinstance(event, Expiring):
            self.retire_at = now
            self.expiring = self._settling = True
            return
        if isinstance(event, Faulted) and event.slot is None:
            # An error of the whole connection: all of it is lost, and nothing more may come of it.
            self._ending.clear()
            self.kill(event.error)
            self._on_change(self)
            return
        assert event.slot is not None
        attempt = self._attempts[event.slot]
        if attempt is None:
            return
        if isinstance(event, Started):
            attempt.on_started(event)
        elif isinstance(event, Ending):
            self._ending.add(event.slot)
            attempt.on_ending(now)
        elif isinstance(event, Finished):
            self._release(event.slot)
            attempt.on_finished(event, now)
        elif isinstance(event, Faulted):
            self._release(event.slot)
            attempt.on_lost(event.error, now, event=event)

    def _release(self, slot: int) -> None:
        if self._attempts[slot] is not _DISCARDED:
            self.active -= 1
        self._attempts[slot] = None
        self._ending.discard(slot)
        self._settling = True
        self.taken -= 1
        self._step("idle" if self.taken == 0 and self.state == "BUSY" else "released")
        if self.taken and not self.active:
            self._stop_working()  # what runs here still, nobody waits for

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

    def _step(self, event: str) -> None:
        self.state = CONNECTION.after(self.state, event)
