"""The way back to the bot for one call: what is to be said, kept until the bot takes it, merged while it does not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from sidecar.service.ports import Ticket
from sidecar.transport.bot_port import Envelope
from sidecar.wire import Accepted, Delta, Encoding, Failed, FromDaemon, Restarted, Terminal

#: Bytes of a delta message beside its text: an id of 64 characters at 6 bytes each, and the fields.
DELTA_OVERHEAD: Final = 512
#: Bytes that one character may take in JSON (a control character, escaped).
WORST_CHARACTER: Final = 6


class Addressee(Protocol):
    """The bot's side, as a reply sees it: `bot_peer.BotPeer`. `merged`: deltas that carried more than one piece."""

    merged: int

    def enqueue(self, reply: BotReply) -> None:
        """`reply` has something to send."""
        ...

    def released(self, reply: BotReply) -> None:
        """The call of `reply` has its terminal."""
        ...


class BotReply:
    """`ports.Reply` of one call.

    What must arrive in order is `accepted`, text, `restarted` (which drops the text before it), text, terminal.
    `take` gives it out message by message; `seq` is given there, so pieces that wait are merged into one delta.

    Args:
        peer: where it goes.
        name: the bot's id of the call.
        encoding: the one its call came in.
        envelope: mirrored frames; with any, the bot is a REQ and gets its terminal only.
        stream: False: the text comes in the terminal.
        cut: characters of a delta at most, so that it fits a message.
    """

    __slots__ = (
        "_chunks", "_cut", "_head", "_terminal", "encoding", "envelope", "finished", "name", "peer", "pieces", "queued",
        "seq", "stream", "ticket",
    )  # fmt: skip

    def __init__(
        self, peer: Addressee, name: str, encoding: Encoding, envelope: Envelope, *, stream: bool, cut: int
    ) -> None:
        self.peer = peer
        self.name = name
        self.encoding = encoding
        self.envelope = envelope
        self.stream = stream
        self.pieces: list[str] = []
        self.seq = 0
        self.queued = False
        self.finished = False
        self.ticket: Ticket | None = None
        self._cut = cut
        self._chunks: deque[str] = deque()
        self._head: list[Accepted | Restarted] = []
        self._terminal: Terminal | None = None

    def __repr__(self) -> str:
        state = "finished" if self.finished else "open"
        return f"<BotReply {state} seq={self.seq} unsent={self.unsent}>"

    @property
    def committed(self) -> bool:
        """See `ports.Reply.committed`."""
        return self.stream and (self.seq > 0 or bool(self.pieces))

    @property
    def unsent(self) -> int:
        """Characters that wait here."""
        return sum(map(len, self.pieces)) + sum(map(len, self._chunks))

    def accept(self, message: Accepted) -> None:
        """See `ports.Reply.accept`."""
        if not self.envelope and not self.finished:
            self._head.append(message)
            self._enqueue()

    def text(self, piece: str) -> None:
        """See `ports.Reply.text`."""
        if self.finished:
            return
        self.pieces.append(piece)
        if not self.queued and self.stream:
            self.queued = True
            self.peer.enqueue(self)

    def restart(self, message: Restarted) -> None:
        """See `ports.Reply.restart`."""
        if self.finished:
            return
        self.pieces.clear()
        self._chunks.clear()
        self.seq = 0
        if self.stream:  # nobody was told anything otherwise
            self._head = [waiting for waiting in self._head if isinstance(waiting, Accepted)]
            self._head.append(message)
            self._enqueue()

    def finish(self, terminal: Terminal) -> None:
        """See `ports.Reply.finish`."""
        if self.finished:
            return
        self.finished = True
        self.ticket = None
        self._terminal = terminal
        self.peer.released(self)
        self._enqueue()

    def drop(self) -> None:
        """The bot is gone: nothing is kept, nothing more is taken."""
        self.finished = True
        self._terminal = None
        self.pieces.clear()
        self._chunks.clear()
        self._head.clear()

    def take(self) -> bytes | None:
        """The next message, encoded; None when everything has been given out. What is given out is committed."""
        if self._head:
            return self._encode(self._head.pop(0))
        if self.stream and (self.pieces or self._chunks):
            text = self._next_text()
            seq = self.seq
            self.seq = seq + 1
            return self._encode(Delta(id=self.name, seq=seq, text=text))
        terminal = self._terminal
        if terminal is None:
            return None
        self._terminal = None
        whole = None if self.stream else "".join(self.pieces)
        self.pieces.clear()
        if isinstance(terminal, Failed):
            return self._encode(
                msgspec.structs.replace(terminal, deltas=self.seq, partial=self.seq > 0, text=whole, id=self.name)
            )
        return self._encode(msgspec.structs.replace(terminal, deltas=self.seq, text=whole, id=self.name))

    def _next_text(self) -> str:
        if self._chunks:
            return self._chunks.popleft()
        pieces = self.pieces
        if len(pieces) == 1:
            text = pieces[0]
        else:
            text = "".join(pieces)
            self.peer.merged += 1
        pieces.clear()
        cut = self._cut
        if len(text) > cut:
            self._chunks.extend(text[start : start + cut] for start in range(cut, len(text), cut))
            text = text[:cut]
        return text

    def _enqueue(self) -> None:
        if not self.queued:
            self.queued = True
            self.peer.enqueue(self)

    def _encode(self, message: FromDaemon) -> bytes:
        return encode(self.encoding, message)


def in_ending_order(replies: Iterable[BotReply]) -> list[BotReply]:
    """All calls of a bot are to end: those that wait first, else a place that comes free would start one of them."""
    return sorted(replies, key=lambda reply: reply.ticket is not None and reply.ticket.admitted is True)


def encode(encoding: Encoding, message: FromDaemon) -> bytes:
    """Encode, whatever an upstream put in: half a surrogate pair becomes a question mark, not an exception."""
    try:
        encoded: bytes = encoding.encode(message)
    except UnicodeEncodeError:
        changes = {
            name: value.encode("utf-8", "replace").decode()
            for name in message.__struct_fields__
            if isinstance(value := getattr(message, name), str)
        }
        encoded = encoding.encode(msgspec.structs.replace(message, **changes))
    return encoded
