"""An HTTP/2 connection: many answers at once, each as fast as its client lets it flow.

h2 reads, and writes all but DATA frames; those are written here, in a thirtieth of the time, within h2's windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.errors import ErrorCodes

from sidecar.simulator import calls, control, door
from sidecar.simulator.door import Knock
from sidecar.simulator.link import Link
from sidecar.simulator.voices.base import dumps
from sidecar.simulator.web import heads
from sidecar.simulator.web.desk import respond
from sidecar.simulator.web.pipe import Headers, Pipe
from sidecar.simulator.web.talk import Host, Talk

_BODY: Final = 16 << 20
_FULL: Final = 256 << 10


class _Peer(h2.connection.H2Connection):
    """h2's, which would end the connection over a stream too many: here it is refused by itself, as RFC 9113 wants."""

    @property
    def open_inbound_streams(self) -> int:
        """None that count; asking makes h2 forget those that are closed."""
        counted = super().open_inbound_streams
        return min(counted, 0)


class Http2(Talk):
    """One connection that said, or is about to say, the preface.

    Args:
        early: what came already.
    """

    way = "h2"

    def __init__(self, host: Host, link: Link, early: bytes) -> None:
        super().__init__(host, link)
        self._early = early
        self.peer = _Peer(h2.config.H2Configuration(client_side=False, header_encoding=None))
        limit = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: host.max_streams}
        self.peer.local_settings = h2.settings.Settings(client=False, initial_values=limit)
        self.streams: dict[int, Stream] = {}
        #: of the streams that will be answered, once a GOAWAY was said
        self._last_id: int | None = None
        self._idle = trio.CancelScope()

    async def _live(self, nursery: trio.Nursery) -> None:
        self.peer.initiate_connection()
        if self.host.keepalive_timeout_s is not None:
            nursery.start_soon(self._leave_when_idle)
        data = self._early
        try:
            while True:
                for event in self.peer.receive_data(data):
                    if isinstance(event, h2.events.ConnectionTerminated):
                        self._fall_silent()
                        return
                    self._heed(nursery, event)
                self.flush()
                data = await self.link.receive()
                if not data:
                    return
        except h2.exceptions.ProtocolError:
            self.flush()  # a GOAWAY that says what was wrong
            self._fall_silent()
        except (OSError, trio.ClosedResourceError):
            pass

    def _fall_silent(self) -> None:
        """h2 will not say another word."""
        for stream in self.streams.values():
            stream.gone = True

    def flush(self) -> None:
        """Send what h2 wants sent."""
        if data := self.peer.data_to_send():
            self.link.send(data)

    # ---------------------------------------------------------------------------------------------- what it is told

    def _heed(self, nursery: trio.Nursery, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._open(event.stream_id, event.headers)
        elif isinstance(event, h2.events.DataReceived):
            stream = self.streams.get(event.stream_id)
            self.peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if stream is not None:
                stream.body += event.data
                if len(stream.body) > _BODY:
                    stream.reset(ErrorCodes.ENHANCE_YOUR_CALM)
        elif isinstance(event, h2.events.StreamEnded):
            stream = self.streams.get(event.stream_id)
            if stream is not None:
                nursery.start_soon(self._answer, stream)
        elif isinstance(event, h2.events.StreamReset):
            self._stopped(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._flow()
        elif isinstance(event, h2.events.PingReceived):
            self.host.counters.pings += 1

    def _open(self, number: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        if self._last_id is not None and number > self._last_id:
            return  # it was told that this will not be looked at
        if len(self.streams) >= self.host.max_streams:
            self.peer.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        said = dict(fields)
        knock = door.knock(said.get(b":method", b""), said.get(b":path", b"/"), said.items())
        self.streams[number] = Stream(self, number, knock)
        self._idle.deadline = math.inf

    async def _answer(self, stream: Stream) -> None:
        with stream.scope:
            if stream.knock.path.startswith("/_"):
                self.host.forget(self)
                status, said = control.done(self.host, stream.knock.path, stream.knock.query)
                stream.whole(status, [heads.JSON], dumps(said))
            elif stream.knock.method != "POST":
                stream.whole(405, [("allow", "POST"), heads.JSON], b'{"error":{"message":"POST"}}')
            else:
                await respond(self, stream, stream.knock, bytes(stream.body))

    def _stopped(self, number: int) -> None:
        """The client reset a stream."""
        stream = self.streams.get(number)
        if stream is None:
            return
        if stream.call is not None:
            calls.end(self.host, stream.call, "stopped", by_reset=True)
        self.drop(stream)

    def _flow(self) -> None:
        """A window has opened: a frame of each stream that waits, in turn, while there is room."""
        waiting = list(self.streams.values())
        while waiting:
            waiting = [stream for stream in waiting if stream.flow()]

    # ------------------------------------------------------------------------------------------------------ its ends

    def drop(self, stream: Stream) -> None:
        """Nothing more will be said on it; whoever answers it is cancelled."""
        stream.scope.cancel()
        self.ended(stream)

    def ended(self, stream: Stream) -> None:
        """All was said on it."""
        self.streams.pop(stream.number, None)
        if stream.call is not None:
            self.calls.discard(stream.call)
        stream.gone = True
        stream.room.unpark_all()
        if not self.streams:
            if self._last_id is not None and not self.over:
                self.leave()
            elif self.host.keepalive_timeout_s is not None:
                self._idle.deadline = trio.current_time() + self.host.keepalive_timeout_s

    async def _leave_when_idle(self) -> None:
        timeout = self.host.keepalive_timeout_s
        self._idle.deadline = math.inf if timeout is None or self.streams else trio.current_time() + timeout
        with self._idle:
            await trio.sleep_forever()
        self.goaway()

    def goaway(self, last_id: int | None = None) -> None:
        """GOAWAY: streams up to `last_id` (None: all that came) will be answered, then the connection ends.

        Written here, as h2 would not say a word after it.
        """
        if self.over:
            return
        self._last_id = self.peer.highest_inbound_stream_id if last_id is None else last_id
        self.flush()
        self.link.send(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + self._last_id.to_bytes(4, "big") + bytes(4))
        for stream in [one for one in self.streams.values() if one.number > self._last_id]:
            if stream.call is not None:
                self.cut(stream.call)
            self.drop(stream)
        if not self.streams and not self.over:
            self.leave()

    def close(self, code: int, reason: str = "") -> None:
        """See `Talk`: GOAWAY."""
        del code, reason
        self.goaway()


class Stream(Pipe):
    """One stream: its request, and the way of its answer. What the client has no window for waits here."""

    way = "h2"
    chunked = False

    def __init__(self, talk: Http2, number: int, knock: Knock) -> None:
        self._talk, self._peer, self.number, self.knock = talk, talk.peer, number, knock
        self.body = bytearray()
        self.scope = trio.CancelScope()
        self.room = trio.lowlevel.ParkingLot()
        self.gone = False
        self._windows = talk.peer.streams[number]
        self._head = number.to_bytes(4, "big")
        self._pending = bytearray()
        self._ending = False

    def head_bytes(self, status: int, headers: Headers, *, length: int | None = None) -> bytes:
        """See `Pipe`."""
        if self.gone:
            return b""
        self._talk.flush()
        fields = [(":status", str(status)), *headers]
        if length is not None:
            fields.append(("content-length", str(length)))
        self._peer.send_headers(self.number, fields)
        return self._peer.data_to_send()

    def raw(self, data: bytes) -> None:
        """See `Pipe`."""
        self._talk.link.send(data)

    def write(self, data: bytes) -> None:
        """See `Pipe`."""
        if self.gone:
            return
        size = len(data)
        if self._pending or size > self._allowed():
            self._pending += data
            while self.flow():
                pass
        elif size:
            self._frame(data)

    def _allowed(self) -> int:
        """The longest frame that may be sent now."""
        peer, stream = self._peer, self._windows
        return min(peer.outbound_flow_control_window, stream.outbound_flow_control_window, peer.max_outbound_frame_size)

    def _frame(self, data: bytes) -> None:
        size = len(data)
        self._peer.outbound_flow_control_window -= size
        self._windows.outbound_flow_control_window -= size
        self._talk.link.send(size.to_bytes(3, "big") + b"\x00\x00" + self._head + data)

    def flow(self) -> bool:
        """Send a frame of what waits, if there is any and it may be; whether more waits that may be sent."""
        size = min(len(self._pending), self._allowed())
        if self.gone or size <= 0:
            return False
        self._frame(bytes(self._pending[:size]))
        del self._pending[:size]
        if len(self._pending) < _FULL:
            self.room.unpark_all()
        if not self._pending and self._ending:
            self._finish()
        return bool(self._pending)

    async def write_large(self, data: bytes) -> None:
        """See `Pipe`."""
        for start in range(0, len(data), _FULL):
            self.write(data[start : start + _FULL])
            await self.drained()

    def end(self) -> None:
        """See `Pipe`."""
        self._ending = True
        if not self._pending and not self.gone:
            self._finish()

    def _finish(self) -> None:
        self._peer.end_stream(self.number)
        self._talk.flush()
        self._talk.ended(self)

    def reset(self, code: ErrorCodes) -> None:
        """RST_STREAM."""
        if not self.gone:
            self._peer.reset_stream(self.number, code)
            self._talk.flush()
            if self.call is not None:
                self._talk.cut(self.call)
            self._talk.drop(self)

    def last(self) -> None:
        """See `Pipe`: GOAWAY, of which this stream is the last."""
        self._talk.goaway()

    def unprocessed(self, *, stream: bool) -> None:
        """See `Pipe`: REFUSED_STREAM, or a GOAWAY that leaves this stream out."""
        if stream:
            self.reset(ErrorCodes.REFUSED_STREAM)
        else:
            self._talk.goaway(max(0, self.number - 2))

    def abort(self) -> None:
        """See `Pipe`: INTERNAL_ERROR."""
        self.reset(ErrorCodes.INTERNAL_ERROR)

    @property
    def backlog(self) -> int:
        """See `Pipe`."""
        return len(self._pending) + self._talk.link.backlog

    async def drained(self) -> None:
        """See `Pipe`."""
        await self._talk.link.drained()
        while len(self._pending) >= _FULL and not self.gone:
            await self.room.park()
