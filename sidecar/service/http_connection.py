"""A warm HTTP connection: each call on it is an exchange of its own, with a codec of its own.

`on_events` is the path of a token, as `websocket_connection.receive` is. What a slot's answer brings after its end is
nobody's; the slot is free once the exchange is over, which may come a little later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import structs

from sidecar.core.idle import Habits
from sidecar.core.pool_policy import ConnectionView
from sidecar.dialects.base import Codec, Content, Expiring, Faulted, Finished, Prompt
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.facts import http_error
from sidecar.dialects.rate_headers import rate_limits
from sidecar.errors import ConnectionLost, MalformedFrame, UpstreamFault
from sidecar.service.connection import DISCARDED, Connection, SlotHolder
from sidecar.transport.http1_link import Http1Link
from sidecar.transport.http2_link import Http2Link
from sidecar.transport.link import Link

#: Events that are decoded before anybody looks at what they brought. Of those that bring no content so many are borne
#: in one answer, where they come in reads that hold more than this: a read may hold 10,000, at up to 20 us each.
AT_ONCE: Final = 256
MAX_BARREN: Final = 4096


class HttpConnection(Connection):
    """See the module, and `Connection`. It is the `transport.exchange.Exchanges` of its link.

    Args:
        dialect: makes a codec for each answer.
        slots: calls at once, if the link takes as many.
        habits: what is known of how this server treats idle connections; its pool's.
        on_freed: told when an attempt was stopped alone: its slot is free, and who waits is to look again later.
        on_spent: told that nothing is left of the upstream's rate limit, and for how many seconds.
    """

    __slots__ = (
        "_barren", "_codecs", "_dialect", "_exchanges", "_habits", "_heard", "_idle_since", "_on_freed", "_on_spent",
        "_spoken", "_texts",
    )  # fmt: skip

    def __init__(
        self,
        key: int,
        dialect: Dialect,
        slots: int,
        *,
        habits: Habits,
        on_change: Callable[[Connection], None],
        on_freed: Callable[[Connection], None],
        on_spent: Callable[[float], None],
        born_at: float,
    ) -> None:
        super().__init__(key, slots, on_change=on_change, born_at=born_at)
        self._dialect, self._habits, self._on_freed, self._on_spent = dialect, habits, on_freed, on_spent
        self._codecs: list[Codec | None] = [None] * slots
        self._texts: list[list[list[str]]] = [[[]] for _ in range(slots)]
        #: whether something in the dialect was said in each slot's answer; None before anything was said at all
        self._spoken: list[bool | None] = [None] * slots
        self._exchanges: Http1Link | Http2Link | None = None
        self._idle_since = born_at
        self._heard = 0  # pieces of content, ever
        self._barren = 0  # events without any, of floods since the last head

    # ------------------------------------------------------------------ life

    def opened(self, link: Link, now: float) -> None:
        """See `Connection`."""
        assert isinstance(link, Http1Link | Http2Link)
        self._exchanges = link
        self._idle_since = now
        super().opened(link, now)

    def closed(self, fault: UpstreamFault, now: float) -> None:
        """See `Connection`."""
        if isinstance(fault, ConnectionLost) and fault.how == "idle" and self.state == "READY":
            self._habits.closed_idle(self.key, now - self._idle_since, now)
        else:
            self._habits.not_idle(self.key)
        super().closed(self._believed(fault, now), now)
        self._exchanges = None

    def view(self, now: float) -> ConnectionView:
        """See `Connection`: replaced before the server closes it for being idle."""
        view = super().view(now)
        if self.state != "READY":
            return view
        link = self._exchanges
        said = link.keepalive_timeout if isinstance(link, Http1Link) else None
        at = self._habits.keep_until(self.key, self._idle_since, now, said=said)
        return view if view.retire_at is not None and view.retire_at <= at else structs.replace(view, retire_at=at)

    # ------------------------------------------------------------------ slots

    @property
    def free(self) -> bool:
        """See `Connection`; the server says how many it takes at once."""
        link = self._exchanges
        return super().free and link is not None and (link.slots is None or self.taken < link.slots)

    def stop(self, attempt: SlotHolder) -> None:
        """See `Connection`."""
        link = self._exchanges
        if link is None or attempt not in self._attempts:
            return
        slot = self._attempts.index(attempt)
        if not link.stop(slot):
            super().stop(attempt)
            return
        self.active -= 1
        self._free(slot)
        if link.hopeless:
            self.drain()
        self._on_freed(self)

    def _encode(self, slot: int, prompt: Prompt) -> bytes:
        self._habits.not_idle(self.key)
        codec = self._codecs[slot] = self._dialect.stream_codec()
        self._spoken[slot] = None
        return codec.encode(0, prompt)

    def _concluded(self, slot: int) -> Finished:
        codec = self._codecs[slot]
        assert codec is not None
        return codec.conclude(0)

    def _discard(self, slot: int) -> None:
        """Never asked for: where calls share a connection, each is stopped alone."""

    def _release(self, slot: int) -> None:
        """The answer is over; its exchange may not be, and holds the slot until it is."""
        if self._attempts[slot] is not DISCARDED:
            self.active -= 1
        self._attempts[slot] = DISCARDED
        self._ending.discard(slot)
        self._codecs[slot] = None
        if self._exchanges is not None:
            self._exchanges.finish(slot)

    def _free(self, slot: int) -> None:
        self._attempts[slot] = None
        self._ending.discard(slot)
        self._codecs[slot] = None
        self.taken -= 1
        if not self.taken:
            self._idle_since = 0.0 if self.link is None else self.link.last_inbound_at
        self._step("idle" if self.taken == 0 and self.state == "BUSY" else "released")

    # ------------------------------------------------------------------ transport.exchange.Exchanges

    def on_head(self, slot: int, headers: dict[str, str]) -> None:  # noqa: ARG002
        """The upstream took the request."""
        self._barren = 0
        limits = rate_limits(headers)
        if limits is not None and (seconds := limits.spent_for()):
            self._on_spent(seconds)
        link = self._exchanges
        self._habits.answered(link.keepalive_timeout if isinstance(link, Http1Link) else None)

    def on_events(self, slot: int, payloads: list[bytes], now: float) -> None:
        """THE PATH OF A TOKEN: one read's events of one answer: decode, hand on.

        Raises:
            MalformedFrame: this answer cannot be trusted.
        """
        codec = self._codecs[slot]
        if codec is None:
            return
        if len(payloads) > AT_ONCE:
            self._by_parts(slot, payloads, now)
            return
        rest = iter(payloads)
        texts = self._texts[slot]
        pieces = texts[0]
        while True:
            try:
                events = codec.decode_pass(rest, texts)
            finally:
                if pieces:
                    self._heard += len(pieces)
                    self._spoken[slot] = True
                    text = pieces[0] if len(pieces) == 1 else "".join(pieces)
                    pieces.clear()
                    self._content(slot, text, now)
            if not events:
                self._spoken[slot] = self._spoken[slot] or False
                return
            self._spoken[slot] = True
            for event in events:
                if self._codecs[slot] is not codec:
                    return  # its end has come, or nobody wants it any more
                if type(event) is Content:
                    self._content(slot, event.text, now)
                elif not isinstance(event, Expiring):  # a WebSocket's matter
                    self._handle(slot, event, now)

    def _by_parts(self, slot: int, payloads: list[bytes], now: float) -> None:
        for at in range(0, len(payloads), AT_ONCE):
            part, heard = payloads[at : at + AT_ONCE], self._heard
            self.on_events(slot, part, now)
            self._barren += max(0, len(part) - (self._heard - heard))
            if self._barren > MAX_BARREN:
                raise MalformedFrame("a flood of events that say nothing")

    def on_refused(self, slot: int, status: int, headers: dict[str, str], body: bytes, now: float) -> None:
        """Another status than 200."""
        self._habits.answered(None)
        self._handle(slot, Faulted(slot=slot, error=http_error(status, headers, body)), now)

    def on_over(self, slot: int, fault: ConnectionLost | MalformedFrame | None, now: float) -> None:
        """The exchange is over: the slot comes free."""
        attempt = self._attempts[slot]
        if attempt is None:
            return
        if attempt is not DISCARDED:
            if slot in self._ending and not isinstance(fault, MalformedFrame):
                # Its content was over, only the usage is missing: see `closed`.
                self._handle(slot, self._concluded(slot), now)
            else:
                lost = self._believed(fault or self._without_end(slot), now)
                self._release(slot)
                attempt.on_lost(lost, now)
            if self.state == "CLOSED":
                return  # given up for that
        self._free(slot)
        self._on_change(self)

    def on_room(self) -> None:
        """It has free slots, or more of them: calls may wait for one."""
        self._on_change(self)

    def on_going_away(self) -> None:
        """No further request is taken here."""
        link = self._exchanges
        if link is not None and self.state == "READY":
            # Over HTTP/1.1 it has said that unasked, in a 408; a GOAWAY may mean anything.
            idle, in_words = link.last_inbound_at - self._idle_since, isinstance(link, Http1Link)
            self._habits.closed_idle(self.key, idle, link.last_inbound_at, in_words=in_words)
        self.drain()
        self._on_change(self)

    def _without_end(self, slot: int) -> UpstreamFault:
        """What a 200 was that is over, and that had no end: cut somewhere behind us, or never in this dialect."""
        if self._spoken[slot] is False:
            return MalformedFrame(f"nothing in the dialect {self._dialect.name} was said: is it the URL's?")
        return ConnectionLost(1006, "the answer ended without its end", how="eof")

    def _believed(self, fault: UpstreamFault, now: float) -> UpstreamFault:
        """What is said of a request that was not looked at, once too often, is not believed."""
        if not isinstance(fault, ConnectionLost) or fault.how != "unprocessed":
            return fault
        if self._habits.untouched(self.born_at if self.opened_at is None else self.opened_at, now):
            return fault
        return ConnectionLost(fault.close_code, fault.reason, how="reset")
