"""The server's end of an HTTP/2 connection: h2 as the server, several answers at once, each ended alone.

h2 also judges the client: what it does not take for HTTP/2, or for more streams than it allowed, is a broken invariant.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.errors import ErrorCodes

from tests.simulation.exchanges import exchange_of
from tests.simulation.http2_leaving import LeavingSession
from tests.simulation.http2_written import frames
from tests.simulation.network import Toxics
from tests.simulation.request import Request

if TYPE_CHECKING:
    from tests.simulation.service import Service

_PING: Final = 6
#: As it is where nobody says anything (RFC 9113, 6.9.2).
WINDOW: Final = 65_535
_GARBAGE: Final = (
    b"\xff\xff\xff\0\0\0\0\0\x01", b"\0\0\x02\x07\0\0\0\0\0xx",
    b"\0\0\4\x08\0\0\0\0\0\0\0\0\0", b"HTTP/1.1 200 OK\r\n\r\n",
    b"\0\0\1\1\4\0\0\0\x09\xff",
)  # fmt: skip


class Http2Session(LeavingSession):
    """See `LeavingSession`."""

    by_stream = True
    spoken = "http2"

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        super().__init__(service, number, pool, toxics, meets, dice)
        self.plan = plan = service.http2
        self._engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._mute = meets == "mute"
        self._settled = False  # the client has taken its settings
        self._outbox: list[tuple[bytes, Callable[[], None] | None]] = []
        self.deaf = plan.deaf and meets == "fine"
        if self.deaf:
            service.blame("does not answer pings")
        settings: dict[int, int] = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: plan.window}
        if plan.max_streams is not None:
            settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = plan.max_streams
        self._engine.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self._engine.initiate_connection()
        if meets == "garbage":
            self.send(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.shut()
        elif meets in ("eof", "reset"):
            self.shut(meets)
        elif meets != "mute":
            service.world.engine.after(0.0 if number % 3 else plan.settings_after, self._settle)

    def _settle(self) -> None:
        """Its settings, and what follows from them."""
        if self.plan.settings_after and not self.number % 3:
            self.service.blame("its settings are late")
        self._flush()
        if self.meets == "goaway":
            self.service.blame("goes away as it comes")
            self.go_away(0)
            self.shut()
        self._rest()

    def _change(self, streams: int) -> None:
        if not self.gone and not self.closing:
            self.service.world.counts["max streams changed"] += 1
            self._engine.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: streams})
            self._flush()

    def calm(self) -> None:
        """See `Session`. Windows here that were never opened stay so: the client has to find out."""
        super().calm()
        self.deaf = False
        if self._engine.local_settings.max_concurrent_streams == 0 and not self._mute:
            self._change(1)

    # ------------------------------------------------------------------ what arrives

    def _data(self, data: bytes) -> None:
        """See `Session`."""
        if self.gone or self.closing or self._mute:
            return
        try:
            events = self._engine.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.service.world.watch.break_("proper HTTP/2", f"{self}: {type(error).__name__}: {error}")
            self.shut()
            return
        dead = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
        for event in events:
            if isinstance(event, h2.events.StreamReset) or getattr(event, "stream_id", None) not in dead:
                self._event(event)
            elif isinstance(event, h2.events.DataReceived):  # the connection's window is everybody's
                self._takes(event.flow_controlled_length, event.stream_id)
        self._flush()

    def _event(self, event: Any) -> None:
        sid = getattr(event, "stream_id", None) or 0
        if self.last is not None and sid > self.last:
            return  # it has said that it does not look at those
        if isinstance(event, h2.events.RequestReceived):
            self._learns_key(dict(event.headers))
            self._highest = sid
            self._incoming.add(sid)
            if self.plan.window < WINDOW:
                self._is_narrow(sid)
            if int(dict(event.headers)["content-length"]) > self.plan.longest:
                self._is_too_long(sid)
        elif isinstance(event, h2.events.DataReceived):
            self._takes(event.flow_controlled_length, sid)
        elif isinstance(event, h2.events.StreamEnded) and sid in self._written_as:
            if self._is_dumb():
                self.service.blame("answers pings and nothing else")
                return
            self._incoming.discard(sid)
            request = self._running[sid] = self._written_as[sid]
            request.arrived_at = trio.current_time()
            self._answer(request)
        elif isinstance(event, h2.events.SettingsAcknowledged):
            if not self._settled:  # before that h2 would take the first answer for one to the first change
                self._settled = True
                for after, streams in self.plan.changes:
                    self.service.world.engine.after(after, partial(self._change, streams))
        elif isinstance(event, h2.events.StreamReset):
            self._incoming.discard(sid)
            self._running.pop(sid, None)
            self._looks_gone()

    def _is_dumb(self) -> bool:
        after = self.plan.dumb_after
        return after is not None and self.number % 3 == 0 and trio.current_time() >= self.link.opened_at + after

    def _is_too_long(self, sid: int) -> None:
        """Answered before it is complete, and the rest is not wanted (RFC 9113, 8.1)."""
        self.service.world.counts["refused before its end"] += 1
        self.service.blame("refuses what is long")
        self._engine.send_headers(sid, [(":status", "413"), ("content-length", "2")])
        self._engine.send_data(sid, b"{}", end_stream=True)
        self._engine.reset_stream(sid, ErrorCodes.NO_ERROR)
        self._flush(partial(self._writings.began.pop, sid, None))
        self._incoming.discard(sid)

    def _takes(self, size: int, sid: int) -> None:
        """So many bytes of a request: as many may follow, now, later or never."""
        after = self.plan.opens_after
        if after is None:
            self.service.blame("its windows stay shut")
        elif after:
            if size > 1000:
                self.service.blame("its windows open late")
            self.service.world.engine.after(after, partial(self._allows, size, sid))
        else:
            self._allows(size, sid)

    def _is_narrow(self, sid: int) -> None:
        """Its window was small at first: it opens now, later or never."""
        after = self.plan.opens_after
        if after is None:
            self.service.blame("its windows stay shut")
            return
        if after:
            self.service.blame("its windows open late")
        self.service.world.engine.after(after, partial(self._widens, sid))

    def _widens(self, sid: int) -> None:
        """The window that was small at first."""
        if sid in self._incoming and not self.gone and not self.closing:
            self._engine.increment_flow_control_window(WINDOW, sid)
            self._flush()

    def _allows(self, size: int, sid: int) -> None:
        if size and not self.gone and not self.closing:
            try:
                self._engine.acknowledge_received_data(size, sid)
            except h2.exceptions.ProtocolError:
                pass  # it is over
            self._flush()

    # ------------------------------------------------------------------ what is said

    def _flush(self, mark: Callable[[], None] | None = None) -> None:
        """What h2 wants said."""
        data = self._engine.data_to_send()
        if self.deaf:
            kept = bytearray(data)
            data = b"".join(
                len(payload).to_bytes(3, "big") + bytes((kind, flags)) + sid.to_bytes(4, "big") + payload
                for kind, flags, sid, payload in frames(kept)
                if kind != _PING
            )
        if data:
            self.send(data, mark)

    def send(self, data: bytes, mark: Callable[[], None] | None = None) -> None:
        """See `Session`; what is said in a short while may go out together."""
        if self.plan.gathers and not self.closing:
            if not self._outbox:
                self.service.world.engine.after(self.plan.gathers, self._send_all)
            self._outbox.append((data, mark))
        else:
            super().send(data, mark)

    def _send_all(self) -> None:
        outbox, self._outbox = self._outbox, []
        for data, mark in outbox:
            super().send(data, mark)

    def shut(self, how: str = "eof") -> None:
        """See `Session`."""
        self._send_all()
        super().shut(how)

    def _ended(self, how: str) -> None:
        self._running.clear()
        self._incoming.clear()
        super()._ended(how)

    def _head(self, request: Request, status: int, headers: dict[str, str], mark: Callable[[], None] | None) -> None:
        exchange = exchange_of(request)
        exchange.headed = True
        self.service.was_late = False
        for _ in range(exchange.shape.interim):
            self._engine.send_headers(exchange.sid, [(":status", "103"), ("link", "</x>")])
        lines = [(name.lower(), value) for name, value in headers.items()]
        self._engine.send_headers(exchange.sid, [(":status", f"{status}"), *lines])

        def came() -> None:
            exchange.begun = True
            if mark is not None:
                mark()

        self._flush(came)

    def begin(self, request: Request, headers: dict[str, str] | None = None) -> None:
        """See `ExchangeSession`."""
        exchange = exchange_of(request)
        if not exchange.headed and self.runs(request):
            exchange.streams = True
            self._head(request, 200, {"Content-Type": "text/event-stream", **(headers or {})}, None)

    def _body(self, request: Request, data: bytes, mark: Callable[[], None] | None) -> None:
        """See `ExchangeSession`."""
        exchange = exchange_of(request)
        cut = len(data) // max(1, exchange.shape.chunks) or len(data)
        for piece in (data[:cut], data[cut:]):
            while piece:
                size = min(len(piece), 16_000)
                self._engine.send_data(exchange.sid, piece[:size], pad_length=exchange.shape.padding)
                piece = piece[size:]
        self._flush(mark)

    def _says(
        self, request: Request, status: int, body: bytes, headers: dict[str, str], *, head: Callable[[], None] | None,
        mark: Callable[[], None], cut: int,
    ) -> None:  # fmt: skip
        """See `ExchangeSession`."""
        exchange = exchange_of(request)
        if exchange.shape.chunks or cut:
            headers = {**headers, "Content-Length": f"{len(body)}"}
        self._head(request, status, headers, head)
        self._engine.send_data(exchange.sid, body[: len(body) - cut], end_stream=not cut)
        self._flush(mark)
        if not cut:
            self._over(request)

    def garble(self, dice: random.Random) -> None:
        """See `ExchangeSession`: every answer here has that."""
        self.send(dice.choice(_GARBAGE))
        for request in self.requests:
            request.junk = True

    def add(self, request: Request, dice: random.Random) -> None:
        """See `ExchangeSession`: a frame of a stream that has ended, or of one that was never asked for."""
        sid = dice.choice([exchange_of(request).sid, 2, 99_999])
        self.send(b"\0\0\x09\0\0" + sid.to_bytes(4, "big") + b"data: {}\n")

    # ------------------------------------------------------------------ how streams end

    def script_over(self, request: Request) -> None:
        """See `Session`."""
        if self.runs(request) and request.over:
            exchange = exchange_of(request)
            if not exchange.headed:
                self.begin(request)
            if exchange.shape.trailers:
                self._engine.send_headers(exchange.sid, [("x-spent", "1")], end_stream=True)
            else:
                self._engine.end_stream(exchange.sid)
            self._flush(partial(request.came, "failed"))  # unless it has ended properly before that
            self._over(request)

    def _over(self, request: Request) -> None:
        """Nothing more comes on its stream."""
        exchange = exchange_of(request)
        self._running.pop(exchange.sid, None)
        self._comes_to_rest()
        if exchange.shape.last:
            self.go_away(self._highest)
        self._looks_gone()
        if not self._running:
            self._rest()

    def reset(self, request: Request, code: ErrorCodes, how: str) -> None:
        """End a stream alone; `how`: what that means."""
        if self.runs(request):
            sid = exchange_of(request).sid
            self._engine.reset_stream(sid, code)
            self._flush(partial(request.came, how))
            self._running.pop(sid, None)
            self._comes_to_rest()
            self._looks_gone()
            if not self._running:
                self._rest()

    def cut(self, request: Request, how: str = "eof") -> None:
        """See `Session`: most often the stream alone."""
        dice = self.service.dice_of(request, "cut")
        if dice.random() < 0.7:
            code = dice.choice([ErrorCodes.INTERNAL_ERROR, ErrorCodes.CANCEL, ErrorCodes.NO_ERROR])
            self.reset(request, code, "cut")
        else:
            self.shut(how)

    def fate(self, request: Request) -> str:
        """See `Session`."""
        if self.link.closed_at is None:
            self.service.blame("cut")
        return request.told or "cut"
