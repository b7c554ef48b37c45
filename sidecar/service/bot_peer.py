"""One connection of one bot: its calls, its outbox, and whether it reads. Bounded in every direction."""

from __future__ import annotations

from collections import deque
from typing import Final

from sidecar.service.ports import Peer
from sidecar.service.reply import BotReply, encode
from sidecar.transport.bot_port import BotPort, Envelope, Sent
from sidecar.wire import JSON, MAX_BATCH, Encoding, FromDaemon

#: Messages that belong to no call (refusals, pongs, reports) kept for a bot that does not read; more are dropped.
#: Many, because a bot that does read may send a dozen arrays of 256 at once, and is owed an answer to each map.
MAX_NOTES: Final = 4096
#: Bytes of them.
MAX_NOTE_BYTES: Final = 2 << 20


class BotPeer:
    """The frontend's view of one routing id.

    Args:
        routing_id: never shown to anybody.
        identity: who it is, as the kernel tells.
        outbound: the frontend's list of peers to flush; this one appends itself.
        max_message_bytes: bounds an array of messages.
        barred: (code, message) with which every call is refused; None for a bot like any other.
    """

    __slots__ = (
        "_note_bytes", "_outbound", "barred", "batch", "calls", "congested", "dropped_notes", "gone", "held",
        "identity", "max_message_bytes", "merged", "notes", "open", "parked", "queue", "routing_id", "sent",
        "stalled_since", "suspicion", "touched", "unread",
    )  # fmt: skip

    def __init__(
        self,
        routing_id: bytes,
        identity: Peer,
        outbound: list[BotPeer],
        *,
        max_message_bytes: int,
        barred: tuple[str, str] | None = None,
    ) -> None:
        self.routing_id = routing_id
        self.identity = identity
        self.max_message_bytes = max_message_bytes
        self.barred = barred
        self.batch = False
        self.gone = False
        #: id -> reply of the calls in flight.
        self.calls: dict[str, BotReply] = {}
        #: Replies not yet sent to their end: calls in flight, and terminals that wait.
        self.open = 0
        #: Replies with something to send, in the order in which it came up.
        self.queue: deque[BotReply] = deque()
        self.notes: deque[tuple[bytes, Envelope]] = deque()
        #: Encoded, committed, and refused by a full pipe: goes out first. Two at most.
        self.parked: deque[tuple[bytes, Envelope]] = deque()
        self.touched = False
        #: Takes nothing now: the pipe is full, or (`held`) it reads nothing and is being watched.
        self.congested = False
        self.held = False
        self.stalled_since = 0.0
        self.unread = 0
        self.suspicion = 0
        self.sent = 0
        self.merged = 0
        self.dropped_notes = 0
        self._note_bytes = 0
        self._outbound = outbound

    def __repr__(self) -> str:
        state = "gone" if self.gone else "held" if self.held else "full" if self.congested else "reading"
        return f"<BotPeer uid={self.identity.uid} pid={self.identity.pid} {state} calls={len(self.calls)}>"

    @property
    def waiting(self) -> bool:
        """Something is to be sent."""
        return bool(self.parked or self.notes or self.queue)

    @property
    def unsent(self) -> int:
        """Characters of answers that wait."""
        return sum(reply.unsent for reply in self.queue)

    def enqueue(self, reply: BotReply) -> None:
        """`reply` has something to send."""
        if self.gone:
            return
        self.queue.append(reply)
        self._touch()

    def note(self, encoding: Encoding, message: FromDaemon, envelope: Envelope = ()) -> None:
        """Queue a message that belongs to no call. Dropped when the bot leaves too many of them unread."""
        if self.gone:
            return
        if len(self.notes) >= MAX_NOTES or self._note_bytes > MAX_NOTE_BYTES:  # not encoded in vain: this is a flood
            self.dropped_notes += 1
            return
        payload = encode(encoding, message)
        self._note_bytes += len(payload)
        self.notes.append((payload, envelope))
        self._touch()

    def released(self, reply: BotReply) -> None:
        """The call of `reply` has its terminal: its id is free."""
        if self.calls.get(reply.name) is reply:
            del self.calls[reply.name]

    def forget(self) -> list[BotReply]:
        """The bot is gone: nothing is kept. Returns the replies of its calls in flight."""
        self.gone = True
        calls = list(self.calls.values())
        for reply in (*calls, *self.queue):
            reply.drop()
        self.calls.clear()
        self.queue.clear()
        self.notes.clear()
        self.parked.clear()
        self.open = 0
        return calls

    def flush(self, port: BotPort) -> Sent:
        """Send what waits, until everything is sent or the bot takes no more."""
        while self.parked:
            payload, envelope = self.parked[0]
            if (result := port.send(self.routing_id, payload, envelope)) is not Sent.SENT:
                return result
            self.sent += 1
            self.parked.popleft()
        while self.notes:
            payload, envelope = self.notes[0]
            if (result := port.send(self.routing_id, payload, envelope)) is not Sent.SENT:
                return result
            self.sent += 1
            self._note_bytes -= len(payload)
            self.notes.popleft()
        return self._flush_arrays(port) if self.batch else self._flush_single(port)

    def _flush_single(self, port: BotPort) -> Sent:
        queue, send, routing_id = self.queue, port.send, self.routing_id
        while queue:
            reply = queue[0]
            while (payload := reply.take()) is not None:
                if (result := send(routing_id, payload, reply.envelope)) is not Sent.SENT:
                    self.parked.append((payload, reply.envelope))
                    return result
                self.sent += 1
            self._done_with(queue.popleft())
        return Sent.SENT

    def _flush_arrays(self, port: BotPort) -> Sent:
        """One array for as much as fits: messages of one encoding; those of a REQ go alone."""
        parts: list[bytes] = []
        size = 0
        kind: tuple[Encoding, Envelope] | None = None
        queue = self.queue
        while queue:
            reply = queue[0]
            payload = reply.take()
            if payload is None:
                self._done_with(queue.popleft())
                continue
            this = (reply.encoding, reply.envelope)
            full = len(parts) == MAX_BATCH or size + len(payload) > self.max_message_bytes - 8
            if parts and (full or this != kind or reply.envelope):
                assert kind is not None
                if (result := self._send_array(port, kind, parts)) is not Sent.SENT:
                    self.parked.append((payload, reply.envelope))
                    return result
                parts, size = [], 0
            kind = this
            parts.append(payload)
            size += len(payload) + 1
        return self._send_array(port, kind, parts) if kind is not None and parts else Sent.SENT

    def _send_array(self, port: BotPort, kind: tuple[Encoding, Envelope], parts: list[bytes]) -> Sent:
        encoding, envelope = kind
        payload = parts[0] if len(parts) == 1 else array_of(encoding, parts)
        result = port.send(self.routing_id, payload, envelope)
        if result is Sent.SENT:
            self.sent += 1
        else:
            self.parked.append((payload, envelope))
        return result

    def _done_with(self, reply: BotReply) -> None:
        reply.queued = False
        if reply.finished:
            self.open -= 1

    def _touch(self) -> None:
        if not self.touched:
            self.touched = True
            self._outbound.append(self)


def array_of(encoding: Encoding, parts: list[bytes]) -> bytes:
    """Encoded maps as one encoded array, without encoding them anew.

    >>> array_of(JSON, [b"{}", b"{}"])
    b'[{},{}]'
    """
    if encoding is JSON:
        return b"[" + b",".join(parts) + b"]"
    count = len(parts)
    head = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return head + b"".join(parts)
