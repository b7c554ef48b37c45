"""The connections of `zmtp_port`: who comes, who they are, what the kernel would not take for them, and who goes.

One level-triggered epoll holds the listener, the connections, the pidfds of their processes and a timer. Everything is
bounded: connections by RLIMIT_NOFILE, handshakes by number and time, what waits for one peer by a message and a PONG.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Final

from sidecar.errors import EndpointError
from sidecar.transport.bot_processes import BotProcesses, fd_watermark
from sidecar.transport.ticker import Ticker
from sidecar.transport.zmtp import GREETING, Zmtp

#: SO_SNDBUF: the kernel doubles it and counts 768 bytes for the smallest message, so a bot that does not read is
#: noticed after some 170 of them (libzmq, with the default and its own queues on either side: 480).
SEND_BUFFER: Final = 65_536
#: Connections accepted in one pass, and those that may wait in the kernel (somaxconn permitting).
ACCEPTS: Final = 64
BACKLOG: Final = 4096
#: Connections that have not shaken hands; one more, and the oldest of them goes.
MAX_STRANGERS: Final = 512
#: Seconds of a tick, the grain of everything timed here.
TICK: Final = 0.25
#: Ticks that a handshake may take: 2 s at least.
HANDSHAKE_TICKS: Final = 9
_EMPTY: Final = memoryview(b"")


class Peer:
    """A connection, from accept to its end.

    Attributes:
        routing_id: empty until it has shaken hands.
        address: the kernel's word at accept, ``localhost:uid:gid:pid``.
        blocked: the kernel takes nothing now.
        deaf: it was heard to its end, and may read on.
        rest, owed: what goes out when it does: the rest of a message, and one PONG after it.
        queued: what was read waits to be gone through.
        met: a message of it was handed on.
        due: the tick at which it wants to be given up; 0: never.
    """

    __slots__ = (
        "address", "blocked", "deaf", "due", "fd", "gone", "met", "owed", "pid", "queued", "rest", "routing_id",
        "socket", "zmtp",
    )  # fmt: skip

    def __init__(self, made: socket.socket, zmtp: Zmtp) -> None:
        self.socket, self.fd, self.zmtp = made, made.fileno(), zmtp
        self.pid, uid, gid = struct.unpack("iII", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.address = f"localhost:{uid}:{gid}:{self.pid}"
        self.routing_id = self.owed = b""
        self.rest = _EMPTY
        self.blocked = self.deaf = self.queued = self.met = self.gone = False
        self.due = 0


class Peers:
    """All connections of one listening socket.

    Args:
        max_frame_bytes: see `Zmtp`.
        send_buffer: SO_SNDBUF of each.

    Attributes:
        named: routing id -> who has shaken hands.
        by_fd: descriptor -> any connection.
        departed: routing ids of those that were met and are gone, until somebody takes them.
        epoll: everything here is registered with it; others may register more.
    """

    def __init__(self, *, max_frame_bytes: int, send_buffer: int) -> None:
        self.named: dict[bytes, Peer] = {}
        self.by_fd: dict[int, Peer] = {}
        self.departed: list[bytes] = []
        self.epoll = select.epoll()
        self._max_frame_bytes, self._send_buffer = max_frame_bytes, send_buffer
        self._ticker = Ticker(TICK)
        self.epoll.register(self._ticker.fd, select.EPOLLIN)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._path = ""
        self._strangers: dict[Peer, int] = {}  # who has not shaken hands, oldest first -> the tick that ends it
        self._mortal: set[Peer] = set()  # who has a TTL
        self._processes: BotProcesses[Peer] = BotProcesses(self.epoll)
        self._number = 0
        self._resting = False  # nobody is accepted before the next tick

    def __repr__(self) -> str:
        return f"<Peers named={len(self.named)} strangers={len(self._strangers)}>"

    def listen(self, path: str) -> None:
        """Bind and listen. Raises EndpointError with the system's reason."""
        try:
            self._listener.bind(path)
            self._path = path
            self._listener.listen(BACKLOG)
        except OSError as error:
            raise EndpointError(f"cannot bind ipc://{path}: {error.strerror or error}") from error
        self.epoll.register(self._listener.fileno(), select.EPOLLIN)

    def hush(self) -> None:
        """Nobody new, and nothing new from those who are here: what they have sent can be read, to its end."""
        self._stop_listening()
        for peer in self.by_fd.values():
            try:
                peer.socket.shutdown(socket.SHUT_RD)
            except OSError:
                pass  # shut already

    def deafen(self, peer: Peer) -> None:
        """It was heard to its end: that is not to wake us again. That it is gone is told still."""
        peer.deaf = True
        self.epoll.modify(peer.fd, select.EPOLLOUT if peer.blocked else 0)

    def close(self, linger: float) -> None:
        """Close the listener, remove its file, hand over what is left for `linger` seconds at most, close the rest."""
        self._stop_listening()
        if linger > 0:
            self._linger(linger)
        for peer in tuple(self.by_fd.values()):
            self.part(peer)
        self.epoll.close()
        self._ticker.close()

    def _stop_listening(self) -> None:
        self._listener.close()
        self._resting = False
        path, self._path = self._path, ""
        if path:
            try:
                os.unlink(path)  # noqa: PTH108 - as it was given
            except OSError:
                pass  # somebody was faster

    def happened(self, fd: int) -> None:
        """A descriptor that is no connection's is ready."""
        if fd == self._ticker.fd:
            self._tick()
        elif fd == self._listener.fileno():
            self._accept()
        else:
            for peer in self._processes.ended(fd):
                self.part(peer)

    # ------------------------------------------------------------------------------------------- writing

    def block(self, peer: Peer, rest: memoryview = _EMPTY) -> None:
        """The kernel takes nothing for it now; `rest` goes first when it does."""
        peer.blocked, peer.rest = True, rest
        self.epoll.modify(peer.fd, select.EPOLLOUT if peer.deaf else select.EPOLLIN | select.EPOLLOUT)

    def resume(self, peer: Peer) -> None:
        """The kernel has room again: first what it did not take."""
        try:
            while peer.rest or peer.owed:
                if not peer.rest:
                    peer.rest, peer.owed = memoryview(peer.owed), b""
                peer.rest = peer.rest[os.write(peer.fd, peer.rest) :]
        except BlockingIOError:
            return
        except OSError:
            peer.rest, peer.owed = _EMPTY, b""
            self.shut(peer)
            return
        peer.rest, peer.blocked = _EMPTY, False
        self.epoll.modify(peer.fd, 0 if peer.deaf else select.EPOLLIN)

    def write(self, peer: Peer, data: bytes) -> None:
        """A few bytes of our own: greeting, READY, PONG, ERROR. Dropped when the kernel takes nothing."""
        if peer.blocked or not data:
            return
        try:
            sent = os.write(peer.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.shut(peer)
            return
        if sent < len(data):
            self.block(peer, memoryview(data)[sent:])

    def say(self, peer: Peer) -> None:
        """What `Zmtp` wants said. Of PONGs that cannot be sent the last one is kept, as libzmq does."""
        zmtp = peer.zmtp
        if peer.blocked:
            peer.owed = zmtp.out[-1]
        else:
            self.write(peer, b"".join(zmtp.out))
        zmtp.out.clear()
        if zmtp.ttl:
            peer.due = self._ticker.after(zmtp.ttl / 10)
            self._mortal.add(peer)
            zmtp.ttl = 0

    @staticmethod
    def shut(peer: Peer) -> None:
        """It is of no use any more; that it is gone is told by the usual way."""
        try:
            peer.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # shut already

    def _linger(self, seconds: float) -> None:
        waiting = {peer.fd: peer for peer in self.named.values() if peer.rest}
        with Ticker(seconds) as alarm, select.epoll() as epoll:
            alarm.start()
            epoll.register(alarm.fd, select.EPOLLIN)
            for fd in waiting:
                epoll.register(fd, select.EPOLLOUT)
            while waiting:
                for fd, _ in epoll.poll():
                    if fd == alarm.fd:
                        return
                    self.resume(waiting[fd])
                    if not waiting[fd].rest:
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
                self.epoll.modify(self._listener.fileno(), 0)
                self._ticker.start()
                return
            if made.fileno() >= fd_watermark():
                made.close()
                continue
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
            peer = Peer(made, Zmtp(max_frame_bytes=self._max_frame_bytes))
            self.by_fd[peer.fd] = peer
            self.epoll.register(peer.fd, select.EPOLLIN)
            self._strangers[peer] = self._ticker.after(0) + HANDSHAKE_TICKS - 1
            self.write(peer, GREETING)
            if len(self._strangers) > MAX_STRANGERS:
                self.part(next(iter(self._strangers)))

    def admit(self, peer: Peer) -> bool:
        """It has shaken hands: name it. False: its process has ended, and it is gone."""
        del self._strangers[peer]
        if peer.pid and not self._processes.watch(peer.pid, peer):
            self.part(peer)
            return False
        # What a peer calls itself is not used: two may choose the same. That it chose one is told by the first byte.
        first = b"\1" if peer.zmtp.identity else b"\0"
        while True:
            self._number = (self._number + 1) % (1 << 32)
            routing_id = first + self._number.to_bytes(4, "big")
            if routing_id not in self.named:
                break
        peer.routing_id = routing_id
        self.named[routing_id] = peer
        return True

    def part(self, peer: Peer) -> None:
        """The end of a connection, whoever ended it."""
        if peer.gone:
            return
        peer.gone = True
        peer.rest = _EMPTY
        del self.by_fd[peer.fd]
        self._strangers.pop(peer, None)
        self._mortal.discard(peer)
        self.epoll.unregister(peer.fd)
        peer.socket.close()
        if self.named.pop(peer.routing_id, None) is None:
            return
        if peer.met:
            self.departed.append(peer.routing_id)
        self._processes.release(peer.pid, peer)

    def _tick(self) -> None:
        """Whose time is up? Not of those whose bytes are here and wait for us."""
        now = self._ticker.take()
        for peer, due in tuple(self._strangers.items()):
            if due > now:
                break
            if not peer.queued:
                self.part(peer)
        for peer in tuple(self._mortal):
            if not peer.due:
                self._mortal.discard(peer)
            elif peer.due <= now and not peer.queued:
                self.part(peer)
        if self._resting:
            self._resting = False
            self.epoll.modify(self._listener.fileno(), select.EPOLLIN)
        if not self._strangers and not self._mortal:
            self._ticker.stop()
