"""The bot port: what the frontend asks of the local socket. One of the three seams that let it run in simulation.

The real ones are `transport.zmtp_port.ZmtpPort` and libzmq's ROUTER, `transport.zmq_socket.RouterPort`; tests and
simulations have one in memory. All pass the same contract tests. A peer is named by its routing id, which the port
gives out and which is never shown to anybody.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

#: Frames before the payload, mirrored back (REQ: an empty delimiter; REQ_CORRELATE: one more before it).
Envelope = tuple[bytes, ...]

MAX_ENVELOPE_FRAMES = 4
MAX_ENVELOPE_BYTES = 512


class Sent(enum.Enum):
    """What became of a message."""

    SENT = "sent"  # given to the kernel or queued for the peer; not a promise that it was read
    FULL = "full"  # the peer takes nothing now: keep it and try again when the port wakes
    GONE = "gone"  # the peer is not there any more


class Incoming(NamedTuple):
    """One message of a peer.

    `payload` is None when the message did not have exactly one payload frame. `peer_address` is the kernel's word
    (``localhost:uid:gid:pid``), given with the first message of a routing id and None after it.
    """

    routing_id: bytes
    envelope: Envelope
    payload: bytes | None
    peer_address: str | None


class BotPort(Protocol):
    """A socket with many peers. One task receives; `send` may be called from any task of the loop."""

    async def receive_batch(self, limit: int) -> list[Incoming]:
        """Wait for something to happen; at most `limit` messages, in order per peer.

        Always a checkpoint. The list may be empty: a peer departed, or one that was full takes messages again.
        """
        ...

    def receive_now(self, limit: int) -> list[Incoming]:
        """What is there now, without waiting; at most `limit` messages. From any task; `settle` after it."""
        ...

    def departures(self) -> list[bytes]:
        """The routing ids of the peers found gone since the last call; nothing comes from them any more."""
        ...

    def send(self, routing_id: bytes, payload: bytes, envelope: Envelope = ()) -> Sent:
        """Queue one message, whole or not at all. Never blocks, never raises for the peer's sake."""
        ...

    def settle(self) -> None:
        """To be called once after a run of sends, before the next await: libzmq's send may eat the owner's wake."""
        ...

    def hush(self) -> bool:
        """Take no new connection, and nothing that is sent from now on: the end of a drain. May be called again.

        What was sent before is received still, and `send` goes on. A bot that sends later is told so by its own
        system (EPIPE), and knows that nobody has the message. True when nothing more can come. Libzmq's ROUTER goes
        on taking what comes, and those who send in its last moment are not told.
        """
        ...

    def unread_bytes(self, routing_id: bytes) -> int:
        """Bytes the kernel holds for this peer, about: 0 when it has taken everything, or is not known."""
        ...


def split_envelope(frames: list[bytes]) -> tuple[Envelope, bytes | None]:
    """Frames after the routing id -> (all up to and including the first empty one, the payload).

    The payload is None when there is not exactly one. An envelope out of all proportion is not mirrored.

    >>> split_envelope([b"", b"{}"])
    ((b'',), b'{}')
    """
    if len(frames) == 1:
        return (), frames[0]
    try:
        cut = frames.index(b"", 0, MAX_ENVELOPE_FRAMES) + 1
    except ValueError:
        return (), None
    envelope = tuple(frames[:cut])
    if sum(map(len, envelope)) > MAX_ENVELOPE_BYTES:
        return (), None
    return envelope, frames[cut] if len(frames) == cut + 1 else None
