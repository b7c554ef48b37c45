"""The socket that bots connect to, on Trio, with nothing between it and the kernel: the daemon's own ZMTP.

What libzmq costs is its thread: a message waits in a mailbox, an eventfd wakes the thread, the thread writes. Here a
send is one `write` by who sends. Bots notice nothing: `zmtp` speaks what their libzmq speaks.

One epoll holds the listener, the connections, the pidfds of the bots, a timer and a wake; it is level-triggered, and
Trio waits for it as a whole. So a send eats nobody's wake, and what one pass leaves behind wakes the next.

Bounded by construction: per connection one read (64 KiB) that is gone through before the next one, one unfinished
message (`zmtp`), the rest of one message that the kernel did not take, one PONG. A connection whose messages are not
taken is not read, so its bot's own buffers fill, as they should.
"""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from collections import deque
from typing import Final

import trio

from sidecar.errors import EndpointError
from sidecar.transport.bot_port import Envelope, Incoming, Sent, split_envelope
from sidecar.transport.ticker import Ticker
from sidecar.transport.zmtp import GREETING, Refused, Zmtp, frames_before, header

#: Bytes after which a batch ends early: 64 prompts of 1 MiB in one batch would hold the loop for long.
BATCH_BYTES: Final = 256 * 1024
#: Bytes of one read.
READ_BYTES: Final = 65_536
#: Descriptors looked at in one pass; the kernel goes round among those that stay ready.
PASS: Final = 64
#: Connections accepted in one pass.
ACCEPTS: Final = 64
#: SO_SNDBUF: the kernel doubles it and counts 768 bytes for the smallest message, so a bot that does not read is
#: noticed after some 170 of them. libzmq leaves the default, half as much again, and queues 64 messages before it.
SEND_BUFFER: Final = 65_536
#: From here on header and payload are given to the kernel as two buffers: joining them would copy too much.
GATHER_BYTES: Final = 16_384
#: Descriptors kept free below RLIMIT_NOFILE, for the upstreams.
FD_RESERVE: Final = 64
#: Connections that have not shaken hands; one more, and the oldest of them goes.
MAX_STRANGERS: Final = 256
#: Seconds of a tick, the grain of everything timed here.
TICK: Final = 0.25
#: Ticks that a handshake may take: 2 s at least.
HANDSHAKE_TICKS: Final = 9
_EMPTY: Final = memoryview(b"")


class _Peer:
    """A connection, from accept to its end."""

    __slots__ = (
        "address", "blocked", "due", "fd", "gone", "met", "owed", "pid", "queued", "rest", "routing_id", "socket",
        "zmtp",
    )  # fmt: skip

    def __init__(self, made: socket.socket, zmtp: Zmtp) -> None:
        self.socket, self.fd, self.zmtp = made, made.fileno(), zmtp
        self.pid, uid, gid = struct.unpack("iII", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.address = f"localhost:{uid}:{gid}:{self.pid}"
        self.routing_id = b""  # until it has shaken hands
        self.blocked = False  # the kernel takes nothing now
        self.rest = _EMPTY  # of a message of which it took a part
        self.owed = b""  # one PONG after it
        self.queued = False  # what was read waits to be gone through
        self.met = self.gone = False
        self.due = 0  # the tick at which its own TTL ends it; 0: none


class ZmtpPort:
    """A ROUTER as a `BotPort`.

    Args:
        max_message_bytes: the limit that bots are told; a connection that sends more than twice of it is closed.
        send_buffer: see `SEND_BUFFER`.

    Resource handling: `close` (or the context manager) closes all connections, waits at most `linger` seconds for what
    the kernel has not taken, and removes the socket file. Error handling: a peer's faults are `Sent` values or
    departures, never exceptions. Cancellation: `receive_batch` loses nothing when cancelled.
    """

    def __init__(self, *, max_message_bytes: int, send_buffer: int = SEND_BUFFER) -> None:
        self._max_frame_bytes = 2 * max_message_bytes
        self._send_buffer = send_buffer
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ticker = Ticker(TICK)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        for fd in (self._wake_fd, self._ticker.fd):
            self._epoll.register(fd, select.EPOLLIN)
        self._peers: dict[bytes, _Peer] = {}  # those that have shaken hands
        self._by_fd: dict[int, _Peer] = {}  # all
        self._strangers: dict[_Peer, int] = {}  # those that have not, oldest first -> the tick that ends them
        self._mortal: set[_Peer] = set()  # those with a TTL
        self._ready: deque[_Peer] = deque()  # those that are `queued`
        self._pidfds: dict[int, tuple[int, set[_Peer]]] = {}  # pid -> pidfd, its connections
        self._pids: dict[int, int] = {}  # pidfd -> pid
        self._departed: list[bytes] = []
        self._number = 0
        self._woken = self._resting = False  # the owner is being woken; nobody is accepted before the next tick
        self._path = ""
        self._closed = False

    def __enter__(self) -> ZmtpPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ZmtpPort peers={len(self._peers)} strangers={len(self._strangers)}>"

    def bind(self, address: str) -> None:
        """Bind to an ``ipc://`` address and listen. Raises EndpointError with the system's reason."""
        path = address.removeprefix("ipc://")
        try:
            self._listener.bind(path)
            self._path = path
            self._listener.listen(4096)
        except OSError as error:
            raise EndpointError(f"cannot bind {address}: {error.strerror or error}") from error
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Readable while there is anything to receive, or to be seen to."""
        return self._epoll.fileno()

    def close(self, *, linger: float = 0.0) -> None:
        """Close everything. What the kernel has not taken gets `linger` seconds; the loop is blocked meanwhile."""
        if self._closed:
            return
        self._closed = True
        self._listener.close()
        if self._path:
            try:
                os.unlink(self._path)  # noqa: PTH108 - bytes that are no UTF-8 stay what they are
            except OSError:
                pass  # somebody was faster
        if linger > 0:
            self._linger(linger)
        for peer in tuple(self._by_fd.values()):
            self._part(peer)
        self._epoll.close()
        self._ticker.close()
        os.close(self._wake_fd)

    # ------------------------------------------------------------------------------------------- receiving

    async def receive_batch(self, limit: int) -> list[Incoming]:
        """See `BotPort.receive_batch`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        # Taken only after the checkpoint: what was taken before would be overtaken by what a glance takes meanwhile.
        if self._look() or self._ready or self._departed:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._look()
        return self._take(limit)

    def receive_now(self, limit: int) -> list[Incoming]:
        """See `BotPort.receive_now`."""
        stirred = not self._ready and self._look()
        batch = self._take(limit)
        if (stirred or self._ready or self._departed) and not self._woken:
            # The owner sleeps, and what would have woken it was seen to here.
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)
        return batch

    def departures(self) -> list[bytes]:
        """See `BotPort.departures`."""
        departed, self._departed = self._departed, []
        return departed

    def _look(self) -> bool:
        """See to everything that happened, except that messages are not taken yet; True when there was anything."""
        events = self._epoll.poll(0, PASS)
        if not events:
            return False
        by_fd = self._by_fd
        later = []
        for fd, what in events:
            peer = by_fd.get(fd)
            if peer is None:
                later.append(fd)
            elif what & (select.EPOLLHUP | select.EPOLLERR):
                self._part(peer)  # nobody is there to be answered: what it sent last is not served
            else:
                if what & select.EPOLLOUT:
                    self._resume(peer)
                if what & select.EPOLLIN and not peer.queued:
                    self._read(peer)
        for fd in later:  # after the connections: an accepted one may get the descriptor of one that was closed
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                self._woken = False
            elif fd == self._ticker.fd:
                self._tick()
            elif fd in self._pids:
                for peer in tuple(self._pidfds[self._pids[fd]][1]):
                    self._part(peer)
            elif fd == self._listener.fileno():
                self._accept()
        return True

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._part(peer)
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
                self._write(peer, refused.farewell)
                self._part(peer)
                continue
            room -= zmtp.spent
            if zmtp.out:
                self._say(peer)
            if zmtp.ready and not peer.routing_id and not self._admit(peer):
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
        """See `BotPort.send`. THE HOT PATH: one system call."""
        peer = self._peers.get(routing_id)
        if peer is None:
            return Sent.GONE
        if peer.blocked:
            return Sent.FULL
        size = len(payload)
        head = header(size)
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
            self._block(peer)
            return Sent.FULL
        except OSError:
            self._shut(peer)
            return Sent.GONE
        peer.rest = memoryview(whole)[sent:]
        self._block(peer)
        return Sent.SENT

    def settle(self) -> None:
        """See `BotPort.settle`: nothing is eaten here."""

    def unread_bytes(self, routing_id: bytes) -> int:
        """See `BotPort.unread_bytes`; as the kernel accounts it, overhead included, and what it has not taken."""
        peer = self._peers.get(routing_id)
        if peer is None:
            return 0
        count = array.array("i", [0])
        fcntl.ioctl(peer.fd, termios.TIOCOUTQ, count, True)
        return count[0] + len(peer.rest)

    def _block(self, peer: _Peer) -> None:
        peer.blocked = True
        self._epoll.modify(peer.fd, select.EPOLLIN | select.EPOLLOUT)

    def _resume(self, peer: _Peer) -> None:
        """The kernel has room again: first what it did not take."""
        try:
            while peer.rest or peer.owed:
                if not peer.rest:
                    peer.rest, peer.owed = memoryview(peer.owed), b""
                peer.rest = peer.rest[os.write(peer.fd, peer.rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._shut(peer)
            return
        peer.rest, peer.blocked = _EMPTY, False
        self._epoll.modify(peer.fd, select.EPOLLIN)

    def _say(self, peer: _Peer) -> None:
        """READY and PONGs. Of PONGs that cannot be sent the last one is kept, as libzmq does."""
        zmtp = peer.zmtp
        if peer.blocked:
            peer.owed = zmtp.out[-1]
        else:
            self._write(peer, b"".join(zmtp.out))
        zmtp.out.clear()
        if zmtp.ttl:
            peer.due = self._ticker.after(zmtp.ttl / 10)
            self._mortal.add(peer)
            zmtp.ttl = 0

    def _write(self, peer: _Peer, data: bytes) -> None:
        """A few bytes of our own."""
        if peer.blocked or not data:
            return
        try:
            sent = os.write(peer.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._shut(peer)
            return
        if sent < len(data):
            peer.rest = memoryview(data)[sent:]
            self._block(peer)

    def _linger(self, seconds: float) -> None:
        """Until everything is handed to the kernel, or the time is over."""
        waiting = {peer.fd: peer for peer in self._peers.values() if peer.blocked}
        with Ticker(seconds) as alarm, select.epoll() as epoll:
            alarm.start()
            epoll.register(alarm.fd, select.EPOLLIN)
            for fd in waiting:
                epoll.register(fd, select.EPOLLOUT)
            while waiting:
                for fd, _ in epoll.poll():
                    if fd == alarm.fd:
                        return
                    self._resume(waiting[fd])
                    if waiting[fd].gone or not waiting[fd].blocked:
                        epoll.unregister(fd)
                        del waiting[fd]

    # ------------------------------------------------------------------------------------------- coming and going

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                made, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no descriptors, no memory: those who wait outside go on waiting
                self._resting = True
                self._epoll.modify(self._listener.fileno(), 0)
                self._ticker.start()
                return
            if made.fileno() >= _fd_watermark():
                made.close()
                continue
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
            peer = _Peer(made, Zmtp(max_frame_bytes=self._max_frame_bytes))
            self._by_fd[peer.fd] = peer
            self._epoll.register(peer.fd, select.EPOLLIN)
            self._ticker.start()
            self._strangers[peer] = self._ticker.now + HANDSHAKE_TICKS
            self._write(peer, GREETING)
            if len(self._strangers) > MAX_STRANGERS:
                self._part(next(iter(self._strangers)))

    def _admit(self, peer: _Peer) -> bool:
        """It has shaken hands: name it. False: its process has ended."""
        del self._strangers[peer]
        if peer.pid and not self._watch(peer):
            self._part(peer)
            return False
        # What a peer calls itself is not used: two may choose the same. That it chose one is told by the first byte.
        first = b"\1" if peer.zmtp.identity else b"\0"
        while True:
            self._number = (self._number + 1) % (1 << 32)
            routing_id = first + self._number.to_bytes(4, "big")
            if routing_id not in self._peers:
                break
        peer.routing_id = routing_id
        self._peers[routing_id] = peer
        return True

    def _watch(self, peer: _Peer) -> bool:
        """Have the kernel tell when the process ends: a child may have inherited the connection. False: it has."""
        if peer.pid not in self._pidfds:
            try:
                pidfd = os.pidfd_open(peer.pid)
            except ProcessLookupError:
                return False
            except OSError:
                return True  # not permitted, or out of descriptors: the connection's end is told still
            self._pidfds[peer.pid] = pidfd, set()
            self._pids[pidfd] = peer.pid
            self._epoll.register(pidfd, select.EPOLLIN)
        self._pidfds[peer.pid][1].add(peer)
        return True

    def _shut(self, peer: _Peer) -> None:
        """It is of no use any more; that it is gone is told by the usual way."""
        try:
            peer.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # shut already

    def _part(self, peer: _Peer) -> None:
        """The end of a connection, whoever ended it."""
        if peer.gone:
            return
        peer.gone = True
        peer.rest = _EMPTY
        del self._by_fd[peer.fd]
        self._strangers.pop(peer, None)
        self._mortal.discard(peer)
        self._epoll.unregister(peer.fd)
        peer.socket.close()
        if not peer.routing_id:
            return
        del self._peers[peer.routing_id]
        if peer.met:
            self._departed.append(peer.routing_id)
        pidfd, others = self._pidfds.get(peer.pid, (-1, set()))
        others.discard(peer)
        if pidfd >= 0 and not others:
            del self._pidfds[peer.pid], self._pids[pidfd]
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def _tick(self) -> None:
        """Whose time is up?"""
        now = self._ticker.take()
        for peer, due in tuple(self._strangers.items()):
            if due > now:
                break
            if not peer.queued:
                self._part(peer)
        for peer in tuple(self._mortal):
            if not peer.due:
                self._mortal.discard(peer)
            elif peer.due <= now and not peer.queued:
                self._part(peer)
        if self._resting:
            self._resting = False
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
        if not self._strangers and not self._mortal:
            self._ticker.stop()


def _fd_watermark() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FD_RESERVE
