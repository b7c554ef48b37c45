"""One HTTP/2 connection: many exchanges at once, each stopped alone by RST_STREAM.

h2 is kept behind this door, `http2_opening` (how it begins) and `http2_stream` (one exchange).

h2 takes 28 us for a DATA frame, and every token is one. So whole, unpadded DATA frames of answers that have begun are
cut out here (as `frames.FrameSplitter` does for WebSockets) and only their flow control is kept; everything else goes
through h2, in its order. GOAWAY does not: h2 takes no frame of a running answer after it, and RFC 9113 (6.8) lets those
go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import trio
from hpack import HeaderTuple

from sidecar.errors import ConnectionLost, MalformedFrame
from sidecar.transport.exchange import END_GRACE, IDLE_ENOUGH, NOBODY, REFUSAL_GRACE, Answer, Exchanges
from sidecar.transport.flood import Patience
from sidecar.transport.http2_opening import CONNECTION_WINDOW, EARLY_STREAMS, HEADER, MAX_FRAME, words
from sidecar.transport.http2_stream import STREAM_MASK, Doubts, Stream, last_of, unpack_head, window_update
from sidecar.transport.link import Ended, Link
from sidecar.transport.pings import Pings
from sidecar.transport.wires import Wire

#: Bytes that a peer may leave unread before it is asked, and answered, no more. A stopped call's request stays among
#: them, so one that never reads, but is heard of, would gather them for ever.
MAX_PENDING: Final = 1 << 20

_DATA: Final = 0
_HEADERS: Final = 1
_GOAWAY: Final = 7
_END_HEADERS: Final = 4
_PADDED: Final = 0x8


class Http2Link(Link):
    """See the module, and `Link`.

    Args:
        wire, ended: see `Link`.
        engine: after `shake_hands`.
        head: the request's headers, pseudo-headers first; a secret as `hpack.NeverIndexedHeaderTuple`.
        exchanges: told of what comes.
        max_event_bytes: see `Answer`.
        settings_timeout: seconds for the server's settings, from `start`, if they have not come yet; None: they have.
    """

    __slots__ = (
        "_credit", "_doubts", "_engine", "_exchanges", "_feeding", "_going_away", "_head", "_held",
        "_max_event_bytes", "_patience", "_pings", "_settings_timeout", "_slot_of", "_streams",
    )  # fmt: skip

    def __init__(
        self,
        wire: Wire,
        engine: h2.connection.H2Connection,
        head: Sequence[HeaderTuple],
        exchanges: Exchanges,
        ended: Ended | None,
        *,
        max_event_bytes: int = 1 << 20,
        settings_timeout: float | None = None,
    ) -> None:
        super().__init__(wire, ended)
        self._settings_timeout, self._max_event_bytes = settings_timeout, max_event_bytes
        self._engine, self._head, self._exchanges = engine, head, exchanges
        self._streams: dict[int, Stream] = {}
        self._slot_of: dict[int, Stream] = {}
        self._held, self._credit = b"", 0
        self._pings: Pings | None = None
        self._going_away = self._feeding = False
        self._doubts = Doubts()
        self._patience = Patience(self.opened_at)
        self._count_slots()

    def _count_slots(self) -> bool:  # -> whether there are more than before
        before, self.slots = self.slots, self._engine.remote_settings.max_concurrent_streams
        if self._settings_timeout is not None:
            self.slots = min(self.slots, EARLY_STREAMS)
        return before is not None and self.slots > before

    def start(self) -> None:
        """See `Link`."""
        super().start()
        if self._settings_timeout is not None and self._lost is None:
            self._wire.later(self._settings_timeout, self._look_for_settings)

    def _look_for_settings(self) -> None:
        if self._settings_timeout is not None and self._lost is None:
            self.retire(ConnectionLost(1006, f"no settings in {self._settings_timeout:g} s", how="silence"))

    # --- what its owner calls

    def send(self, slot: int, payload: bytes) -> None:
        """See `Link`; the body of a POST. What the peer's windows do not take now goes out as they open."""
        self._check_open()
        engine = self._engine
        if self._going_away:
            raise ConnectionLost(1000, "going away", how="local")
        if self._wire.pending_bytes > MAX_PENDING:
            raise ConnectionLost(1000, "it does not read what it was sent", how="local")
        try:
            sid = engine.get_next_available_stream_id()
            engine.send_headers(sid, [*self._head, HeaderTuple(b"content-length", b"%d" % len(payload))])
        except h2.exceptions.H2Error as error:  # too many streams, or no number left for one
            raise ConnectionLost(1000, f"no further stream: {words(error)}", how="local") from None
        answer = Answer(slot, self._exchanges, max_event_bytes=self._max_event_bytes)
        now = trio.current_time()
        early = self._settings_timeout is not None
        stream = self._streams[sid] = self._slot_of[slot] = Stream(sid, slot, answer, payload, now, early=early)
        stream.push(engine, now)
        self._put(engine.data_to_send())

    def stop(self, slot: int) -> bool:
        """See `Link`."""
        stream = self._slot_of.get(slot)
        if stream is not None:
            now = trio.current_time()
            self.hopeless = self._doubts.given_up(stream, now) or self.hopeless
            self._reset(stream)
            self._flush()
        return True

    async def ping(self, timeout: float) -> float:
        """See `Link`."""
        self._check_open()
        if self._pings is None:
            self._pings = Pings()
        round_trip = await self._pings.ask(self, self._send_ping, timeout, payload_bytes=8)
        if self._lost is not None:
            raise self._closed_error()
        return round_trip

    def finish(self, slot: int) -> None:
        """The answer is complete as its dialect sees it: the exchange's own end is waited for, but not for long."""
        stream = self._slot_of.get(slot)
        if stream is not None:
            stream.to_end = True
            if not self._feeding:
                self._within(stream, END_GRACE)

    def feed(self, data: bytes, now: float) -> None:
        """See `Link`."""
        if self._lost is not None:
            return
        self.last_inbound_at = now
        self._feeding = True
        try:
            self._take(self._held + data if self._held else data, now)
        except MalformedFrame as fault:
            self.retire(fault.with_traceback(None))
        except h2.exceptions.H2Error as error:
            self.retire(MalformedFrame(f"HTTP/2: {words(error)}"))
        self._feeding = False
        if self._lost is None:
            for stream in tuple(self._streams.values()):
                if stream.to_end:
                    stream.to_end = False
                    self._within(stream, END_GRACE)
            self._flush()

    def _take(self, data: bytes, now: float) -> None:
        """Whole frames: DATA of running answers here, the others in runs to h2."""
        streams = self._streams
        fresh: list[Stream] = []  # with pieces
        at, run, end = 0, 0, len(data)
        while end - at >= HEADER:
            length = int.from_bytes(data[at : at + 3], "big")
            if length > MAX_FRAME:
                raise MalformedFrame(f"HTTP/2: a frame of {length} bytes")
            stop = at + HEADER + length
            if stop > end:
                break
            kind = data[at + 3]
            if kind == _DATA and data[at + 4] == 0:
                stream = streams.get(int.from_bytes(data[at + 5 : at + 9], "big") & STREAM_MASK)
                if stream is not None:
                    if run < at and not stream.answer.headed:
                        self._engine_run(data[run:at], fresh, now)  # its head may be in there
                        run = at
                    if stream.ours:
                        if run < at:
                            self._engine_run(data[run:at], fresh, now)
                        run = at = stop
                        if not stream.pieces:
                            fresh.append(stream)
                        stream.pieces.append(data[stop - length : stop])
                        stream.credit += length
                        self._credit += length
                        continue
            padding = 1 + data[at + HEADER] if kind == _DATA and data[at + 4] & _PADDED and length else 0
            self._patience.bear(kind, length - padding, now)
            if kind == _GOAWAY:
                self._engine_run(data[run:at], fresh, now)
                self._goes_away(data[at + HEADER : stop], now)
                run = at = stop
                continue
            if kind == _HEADERS and data[at + 4] & _END_HEADERS and self._is_over(data, at):
                self._engine_run(data[run:at], fresh, now)
                unpack_head(self._engine, data[at + 4], data[at + HEADER : stop])
                run = at = stop
                continue
            at = stop
            if self._lost is not None:
                return
        self._engine_run(data[run:at], fresh, now)
        self._held = data[at:]
        self._allow(fresh)

    def _is_over(self, data: bytes, at: int) -> bool:
        """The frame there is of a stream that was ours."""
        sid = int.from_bytes(data[at + 5 : at + 9], "big") & STREAM_MASK
        return sid & 1 == 1 and sid not in self._streams and sid <= self._engine.highest_outbound_stream_id

    def _deliver(self, fresh: list[Stream], now: float) -> None:
        """Hand on what was cut out so far, each answer's in one piece."""
        for stream in fresh:
            pieces = stream.pieces
            if pieces and stream.sid in self._streams:
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                self._patience.bear_crumbs(len(pieces), len(data), now)
                stream.pieces = []
                self._body(stream, data, now)

    def _body(self, stream: Stream, data: bytes, now: float) -> None:
        """A fault in one answer is that answer's alone."""
        self._doubts.heard_at = now
        try:
            enough = stream.answer.body(data, now)
        except MalformedFrame as fault:
            self._lose(stream, fault.with_traceback(None), now)
            return
        if enough and stream.sid in self._streams:
            self._exchange_over(stream, now)

    def _engine_run(self, frames: bytes, fresh: list[Stream], now: float) -> None:
        """What is due before these frames, then they."""
        self._deliver(fresh, now)
        if not frames or self._lost is not None:
            return
        for event in self._engine.receive_data(frames):
            if not self._over:  # an event may have ended all of it
                self._event(event, now)

    def _event(self, event: h2.events.Event, now: float) -> None:
        if isinstance(event, h2.events.PingAckReceived):
            if self._pings is not None:
                self._pings.answered(bytes(event.ping_data))
            return
        if isinstance(event, h2.events.RemoteSettingsChanged | h2.events.WindowUpdated):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self._settings_timeout = None
            for waiting in tuple(self._streams.values()):
                waiting.push(self._engine, now)
            if self._count_slots():
                self._exchanges.on_room()
            return
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.DataReceived):
            self._engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            self._headed(stream, event, now)
        elif isinstance(event, h2.events.DataReceived):
            self._body(stream, event.data, now)
        elif isinstance(event, h2.events.StreamEnded):
            self._exchange_over(stream, now)
        elif isinstance(event, h2.events.StreamReset):
            self._forget(stream)
            self._exchanges.on_over(stream.slot, stream.reset_by(event.error_code), now)
            self._look_gone()

    def _headed(self, stream: Stream, event: h2.events.ResponseReceived, now: float) -> None:
        self._doubts.heard_at = now
        try:
            stream.take_head(event.headers)
        except MalformedFrame as fault:
            self._lose(stream, fault.with_traceback(None), now)
            return
        if stream.answer.refused:
            self._within(stream, REFUSAL_GRACE)

    def _goes_away(self, payload: bytes, now: float) -> None:
        """GOAWAY: what it has not looked at may be sent elsewhere, what it has goes on."""
        last = last_of(payload)
        self._going_away = True
        self._exchanges.on_going_away()
        for stream in [stream for sid, stream in self._streams.items() if sid > last]:
            self._forget(stream)
            fault = ConnectionLost(1006, "going away before it was looked at", how="unprocessed")
            self._exchanges.on_over(stream.slot, fault, now)
        self._look_gone()

    def end_of_input(self, how: Literal["eof", "reset"], reason: str) -> None:
        """See `Link`."""
        if not self._streams:
            self._refuse = self._refuse or ConnectionLost(1000, "closed while idle", how="idle")
        elif min(stream.began_at for stream in self._streams.values()) - self.last_inbound_at >= IDLE_ENOUGH:
            # Closed for being idle, most likely, before they came there: nobody has read them.
            self._refuse = self._refuse or ConnectionLost(1006, "closed as requests were sent", how="unprocessed")
        super().end_of_input(how, reason)

    def _allow(self, fresh: list[Stream]) -> None:
        """Let more come, now and then: half a window at a time."""
        updates = b"".join(stream.allowance() for stream in fresh if stream.sid in self._streams)
        if self._credit >= CONNECTION_WINDOW // 2:
            updates += window_update(0, self._credit)
            self._credit = 0
        if updates and self._lost is None:
            self._write(updates)

    def _exchange_over(self, stream: Stream, now: float) -> None:
        """The exchange is over, properly."""
        fault = stream.take_end(now)
        if stream.sid not in self._streams:
            return  # given up for what this brought
        self._reset(stream)
        self._exchanges.on_over(stream.slot, fault, now)
        self._look_gone()

    def _lose(self, stream: Stream, fault: MalformedFrame, now: float) -> None:
        """Nothing more is wanted of this answer."""
        if stream.sid in self._streams:
            self._reset(stream)
            self._exchanges.on_over(stream.slot, fault, now)
            self._look_gone()

    def _reset(self, stream: Stream) -> None:
        """Forget it, and say so where the peer does not know that it is over."""
        self._forget(stream)
        try:
            self._engine.reset_stream(stream.sid, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.H2Error:
            pass  # it is closed on both sides

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream.sid, None)
        self._slot_of.pop(stream.slot, None)
        stream.unsent = memoryview(b"")

    def _look_gone(self) -> None:
        if self._going_away and not self._streams and self._lost is None:
            self.retire(ConnectionLost(1000, "it went away in good order", how="idle"))

    def _within(self, stream: Stream, seconds: float) -> None:
        """The exchange ends within so many seconds, or is ended."""

        def look() -> None:
            if self._lost is None and self._streams.get(stream.sid) is stream:
                now = trio.current_time()
                self._exchange_over(stream, now)
                self._flush()

        self._wire.later(seconds, look)

    def _send_ping(self, payload: bytes) -> None:
        self._engine.ping(payload)
        self._put(self._engine.data_to_send())

    def _flush(self) -> None:
        """What h2 wants said."""
        if self._lost is None:
            self._write(self._engine.data_to_send())

    def _write(self, data: bytes) -> None:
        if data and self._refuse is None:
            if self._wire.pending_bytes > MAX_PENDING:
                # Said in the next step: in this one an owner may be stopping a call.
                self._refuse = ConnectionLost(1006, "it asks, and does not read the answers", how="reset")
                self._wire.later(0.0, self._give_up)
                return
            try:
                self._put(data)
            except ConnectionLost:
                pass  # its end is known already, or will be at the next read

    def _farewell(self, code: int) -> bytes:  # noqa: ARG002
        try:
            self._engine.close_connection()
        except h2.exceptions.H2Error:
            pass
        return self._engine.data_to_send()

    def _end(self, fault: ConnectionLost | MalformedFrame, *, ours: bool = False) -> None:
        if self._lost is None and self._pings is not None:
            self._pings.over()
        super()._end(fault, ours=ours)

    def _deafen(self) -> None:
        self._streams.clear()
        self._slot_of.clear()
        self._exchanges = NOBODY
