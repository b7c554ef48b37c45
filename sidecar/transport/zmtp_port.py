"""The socket that bots connect to, on Trio, with nothing between it and the kernel: the daemon's own ZMTP.

What libzmq costs is its thread: a message waits in a mailbox, an eventfd wakes the thread, the thread writes. Here a
send is one `write` by who sends. Bots notice nothing: `zmtp` speaks what their libzmq speaks.

Trio waits for one level-triggered epoll as a whole. So a send eats nobody's wake, and what one pass leaves behind wakes
the next. Of each connection one read (64 KiB) is gone through before the next one: a bot whose messages are not taken
is not read, and its own buffers fill, as they should.
"""

from __future__ import annotations

import os
import select
from collections import deque
from typing import Final

import trio

from sidecar.transport.bot_port import Envelope, Incoming, Sent, split_envelope
from sidecar.transport.bot_processes import unread_bytes
from sidecar.transport.zmtp import LONG, LONG_HEADER, SHORT_HEADERS, Refused, frames_before
from sidecar.transport.zmtp_peers import SEND_BUFFER, Peer, Peers

#: Bytes after which a batch ends early: 64 prompts of 1 MiB in one batch would hold the loop for long.
BATCH_BYTES: Final = 256 * 1024
#: Bytes of one read.
READ_BYTES: Final = 65_536
#: Descriptors looked at in one pass; the kernel goes round among those that stay ready.
PASS: Final = 64
#: From here on header and payload are given to the kernel as two buffers: joining them would copy too much.
GATHER_BYTES: Final = 16_384


class ZmtpPort:
    """A ROUTER as a `BotPort`.

    Args:
        max_message_bytes: the limit that bots are told; a connection that sends more than twice of it is closed.
        send_buffer: see `zmtp_peers.SEND_BUFFER`.

    Resource handling: `close` (or the context manager) closes all connections, waits at most `linger` seconds for what
    the kernel has not taken, and removes the socket file. Error handling: a peer's faults are `Sent` values or
    departures, never exceptions. Cancellation: `receive_batch` loses nothing when cancelled.
    """

    def __init__(self, *, max_message_bytes: int, send_buffer: int = SEND_BUFFER) -> None:
        self._peers = Peers(max_frame_bytes=2 * max_message_bytes, send_buffer=send_buffer)
        self._named = self._peers.named
        self._epoll = self._peers.epoll
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._ready: deque[Peer] = deque()  # those that are `queued`
        self._woken = False  # the owner is being woken
        self._hushed = self._closed = False

    def __enter__(self) -> ZmtpPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ZmtpPort {self._peers!r}>"

    def bind(self, address: str) -> None:
        """Bind to an ``ipc://`` address and listen. Raises EndpointError with the system's reason."""
        self._peers.listen(address.removeprefix("ipc://"))

    def fileno(self) -> int:
        """Readable while there is anything to receive, or to be seen to."""
        return self._epoll.fileno()

    def close(self, *, linger: float = 0.0) -> None:
        """Close everything. What the kernel has not taken gets `linger` seconds; the loop is blocked meanwhile."""
        if not self._closed:
            self._closed = True
            self._peers.close(linger)
            os.close(self._wake_fd)

    # ------------------------------------------------------------------------------------------- receiving

    async def receive_batch(self, limit: int) -> list[Incoming]:
        """See `BotPort.receive_batch`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        # Taken only after the checkpoint: what was taken before would be overtaken by what a glance takes meanwhile.
        if self._look() or self._ready or self._peers.departed:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._look()
        return self._take(limit)

    def receive_now(self, limit: int) -> list[Incoming]:
        """See `BotPort.receive_now`."""
        stirred = not self._ready and self._look()
        batch = self._take(limit)
        if (stirred or self._ready or self._peers.departed) and not self._woken:
            # The owner sleeps, and what would have woken it was seen to here.
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)
        return batch

    def departures(self) -> list[bytes]:
        """See `BotPort.departures`."""
        departed, self._peers.departed = self._peers.departed, []
        return departed

    def _look(self) -> bool:
        """See to everything that happened, except that messages are not taken yet; True when there was anything."""
        events = self._epoll.poll(0, PASS)
        if not events:
            return False
        peers, later = self._peers, []
        for fd, what in events:
            peer = peers.by_fd.get(fd)
            if peer is None:
                later.append(fd)
            elif what & (select.EPOLLHUP | select.EPOLLERR):
                peers.part(peer)  # nobody is there to be answered: what it sent last is not served
            else:
                if what & select.EPOLLOUT:
                    peers.resume(peer)
                if what & select.EPOLLIN and not peer.queued:
                    self._read(peer)
        for fd in later:  # after the connections: an accepted one may get the descriptor of one that was closed
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                self._woken = False
            else:
                peers.happened(fd)
        return True

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._hushed:
                self._peers.deafen(peer)  # heard to its end; what it still has to read is not
            else:
                self._peers.part(peer)
            return
        peer.due = 0
        if peer.zmtp.feed(data):
            peer.queued = True
            self._ready.append(peer)

    def _take(self, limit: int) -> list[Incoming]:
        """Go through what was read, a message of each in turn."""
        batch: list[Incoming] = []
        ready, room = self._ready, BATCH_BYTES
        while ready and len(batch) < limit and room > 0:
            peer = ready.popleft()
            if peer.gone:
                continue
            zmtp = peer.zmtp
            try:
                frames = zmtp.advance()
            except Refused as refused:
                self._peers.write(peer, refused.farewell)
                self._peers.part(peer)
                continue
            room -= zmtp.spent
            if zmtp.out:
                self._peers.say(peer)
            if zmtp.ready and not peer.routing_id and not self._peers.admit(peer):
                continue
            peer.queued = zmtp.pending
            if peer.queued:
                ready.append(peer)
            if frames is not None:
                envelope, payload = split_envelope(frames)
                batch.append(Incoming(peer.routing_id, envelope, payload, None if peer.met else peer.address))
                peer.met = True
        return batch

    # ------------------------------------------------------------------------------------------- sending

    def send(self, routing_id: bytes, payload: bytes, envelope: Envelope = ()) -> Sent:
        """See `BotPort.send`. THE HOT PATH: one system call. Joining the two costs less than a `writev` up to 8 KiB."""
        peer = self._named.get(routing_id)
        if peer is None:
            return Sent.GONE
        if peer.blocked:
            return Sent.FULL
        size = len(payload)
        head = SHORT_HEADERS[size] if size < 256 else LONG_HEADER(LONG, size)
        if envelope:
            head = frames_before(envelope) + head
        try:
            if size < GATHER_BYTES:
                whole = head + payload
                sent = os.write(peer.fd, whole)
                if sent == len(whole):
                    return Sent.SENT
            else:
                sent = os.writev(peer.fd, (head, payload))
                if sent == len(head) + size:
                    return Sent.SENT
                whole = head + payload
        except BlockingIOError:
            self._peers.block(peer)
            return Sent.FULL
        except OSError:
            self._peers.shut(peer)
            return Sent.GONE
        self._peers.block(peer, memoryview(whole)[sent:])
        return Sent.SENT

    def settle(self) -> None:
        """See `BotPort.settle`: nothing is eaten here."""

    def hush(self) -> bool:
        """See `BotPort.hush`.

        A shut reading side of a Unix socket gives what is in it still, then the end; a send to it fails from that
        instant on. No message can lie between the two.
        """
        if not self._hushed:
            self._hushed = True
            self._peers.hush()
        return not self._ready and all(peer.deaf for peer in self._peers.by_fd.values())

    def unread_bytes(self, routing_id: bytes) -> int:
        """See `BotPort.unread_bytes`; as the kernel accounts it, overhead included, and what it has not taken."""
        peer = self._named.get(routing_id)
        if peer is None:
            return 0
        return unread_bytes(peer.fd) + len(peer.rest)
