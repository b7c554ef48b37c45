"""libzmq's ROUTER on Trio: the operators' socket, and the bots' one where `[frontend] zmtp = "libzmq"` asks for it.

The daemon's door to libzmq, with `zmq_ping`, its own bot for the watchdog. Else bots are served by `zmtp_port`.

ZeroMQ's file descriptor is edge-triggered and every call on the socket can eat the edge. So one task owns the wait:
it drains until EAGAIN before it sleeps, and whoever sent something calls `settle`, which looks once and wakes the
owner when a send has eaten its edge. All that can wake it (the ROUTER, its monitor, pidfds of the bots, `settle`)
sits in one nested epoll, so that there is one wait and no cancel scope in it.

Departures: the monitor tells of a closed connection with its fd, which is mapped to the routing id by the first
message's SRCFD. Descriptors are reused, so the monitor is drained before each mapping. A pidfd stands beside it:
a killed bot is noticed even while its connection lingers in a child that inherited it.

Not bounded here: libzmq counts whole messages and single frames, so a peer of its own making (libzmq itself sends
nothing before the last frame) may send one message of endless frames. `endless` finds it.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import socket
import struct
from collections import OrderedDict
from typing import Any, Final

import trio
import zmq

from sidecar.errors import EndpointError
from sidecar.transport.bot_port import Envelope, Incoming, Sent, split_envelope
from sidecar.transport.bot_processes import BotProcesses, fd_watermark, unread_bytes

#: Bytes after which a batch ends early: 64 prompts of 1 MiB in one batch would hold the loop for long.
BATCH_BYTES: Final = 256 * 1024
#: How many departed routing ids are remembered, so that messages still in the pipe do not bring them back.
REMEMBERED: Final = 4096
FRAMES_KEPT: Final = 8
_MONITORED: Final = zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED
_NOBLOCK: Final = int(zmq.NOBLOCK)
_POLLIN: Final = int(zmq.POLLIN)
_EVENTS: Final = zmq.SocketOption.EVENTS
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


class _Known:
    """A peer from its first message to its departure."""

    __slots__ = ("fd", "pid")

    def __init__(self, fd: int, pid: int) -> None:
        self.fd, self.pid = fd, pid


class RouterPort:
    """A ROUTER as a `BotPort`.

    Args:
        max_message_bytes: the limit that bots are told; libzmq drops a connection over twice of it.
        send_high_water, receive_high_water: messages per peer.

    Resource handling: `close` (or the context manager) closes the sockets before their context and waits at most
    `linger` seconds for what is queued. Error handling: a peer's faults are `Sent` values or departures, never
    exceptions. Cancellation: `receive_batch` loses nothing when cancelled.
    """

    def __init__(self, *, max_message_bytes: int, send_high_water: int = 64, receive_high_water: int = 8) -> None:
        self._context = zmq.Context()
        # libzmq's automatic routing ids count up from rand(): unseeded, a local user could announce the next one
        # beforehand and abort us (libzmq trusts that it is free).
        ctypes.CDLL(None).srand(secrets.randbits(32))
        router = self._router = self._context.socket(zmq.ROUTER)
        router.sndhwm, router.rcvhwm = send_high_water, receive_high_water
        router.maxmsgsize = 2 * max_message_bytes
        router.handshake_ivl = 2000
        router.router_mandatory = 1
        router.router_handover = 0
        router.linger = 0
        monitor_address = f"inproc://monitor-{id(self):x}"
        router.monitor(monitor_address, _MONITORED)
        monitor = self._monitor = self._context.socket(zmq.PAIR)
        monitor.rcvhwm = 0  # a full monitor would block libzmq's I/O thread, and with it every bot
        monitor.linger = 0
        monitor.connect(monitor_address)
        # The bound methods below zmq.Socket's Python wrappers: they save a microsecond per message.
        self._send: Any = super(zmq.Socket, router).send
        self._get: Any = super(zmq.Socket, router).get
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._monitor_fd = int(monitor.fd)
        for fd in (int(router.fd), self._monitor_fd, self._wake_fd):
            self._epoll.register(fd, select.EPOLLIN)
        self._known: dict[bytes, _Known] = {}
        self._by_fd: dict[int, bytes] = {}
        self._live_fds: set[int] = set()
        self._spoke: set[int] = set()  # fds of which a message was finished, since somebody asked
        self._received = 0  # since then, too
        self._processes: BotProcesses[bytes] = BotProcesses(self._epoll)
        self._departed: list[bytes] = []
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._path = ""
        self._closed = False

    def __enter__(self) -> RouterPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when `receive_batch` has something to give, or to look after."""
        return self._epoll.fileno()

    def bind(self, address: str) -> None:
        """Bind to an ``ipc://`` address. Raises EndpointError with the system's reason."""
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            raise EndpointError(f"cannot bind {address}: {error.strerror}") from error
        self._path = address.removeprefix("ipc://")

    def close(self, *, linger: float = 0.0) -> None:
        """Close everything. What is queued gets `linger` seconds to leave; the loop is blocked meanwhile."""
        if self._closed:
            return
        self._closed = True
        self._epoll.close()
        os.close(self._wake_fd)
        self._processes.close()
        self._router.disable_monitor()
        self._monitor.close(0)
        self._router.close(int(linger * 1000))
        self._context.term()

    # ------------------------------------------------------------------------------------------- receiving

    async def receive_batch(self, limit: int) -> list[Incoming]:
        """See `BotPort.receive_batch`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        # Taken only after the checkpoint: what was taken before would be overtaken by what a glance takes meanwhile.
        # Looked at before it is drained: the drain eats a wake that meant "room again", too.
        if self._look() or self._departed or self._get(_EVENTS) & _POLLIN:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._look()
            return self._drain(limit)
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        self._look()
        return self._drain(limit)

    def receive_now(self, limit: int) -> list[Incoming]:
        """See `BotPort.receive_now`."""
        return self._drain(limit)

    def departures(self) -> list[bytes]:
        """See `BotPort.departures`."""
        departed, self._departed = self._departed, []
        return departed

    def _drain(self, limit: int) -> list[Incoming]:
        batch: list[Incoming] = []
        receive, room = self._router.recv, BATCH_BYTES
        while len(batch) < limit and room > 0:
            try:
                first = receive(_NOBLOCK, copy=False)
            except zmq.Again:
                break  # libzmq has emptied its mailbox: the next edge will be a new one
            routing_id = first.bytes
            frames: list[bytes] = []
            frame = first
            while frame.more:
                frame = receive(copy=False)
                if len(frames) < FRAMES_KEPT:  # more of them is malformed anyway
                    frames.append(frame.bytes)
                room -= len(frame)
            room -= 64
            known = self._known.get(routing_id)
            address: str | None = None
            if known is None:
                try:
                    address = str(frame.get("Peer-Address") or "") if frames else ""
                    fd = int(frame.get(zmq.SRCFD))
                except zmq.ZMQError:
                    continue  # a peer of ZMTP 1.0 or 2.0: libzmq does not tell who that is, so it is not heard
                known = self._meet(routing_id, fd, address)
                if known is None:
                    continue
            self._spoke.add(known.fd)
            self._received += 1
            envelope, payload = split_envelope(frames)
            batch.append(Incoming(routing_id, envelope, payload, address))
        return batch

    # ------------------------------------------------------------------------------------------- sending

    def send(self, routing_id: bytes, payload: bytes, envelope: Envelope = ()) -> Sent:
        """See `BotPort.send`. Two sends are cheaper than pyzmq's send_multipart."""
        send = self._send
        try:
            send(routing_id, _MORE)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        # After the routing id ROUTER takes the rest unconditionally: no message is ever left half sent.
        for frame in envelope:
            send(frame, _MORE)
        send(payload, _NOBLOCK)
        return Sent.SENT

    def settle(self) -> None:
        """See `BotPort.settle`."""
        if self._get(_EVENTS) & _POLLIN or self._departed:  # a glance may have come upon a departure
            os.eventfd_write(self._wake_fd, 1)

    def hush(self) -> bool:
        """See `BotPort.hush`. An `unbind` would end the connections, too: everybody is heard until all is closed."""
        return not self._get(_EVENTS) & _POLLIN

    def unread_bytes(self, routing_id: bytes) -> int:
        """See `BotPort.unread_bytes`; as the kernel accounts it, overhead included."""
        known = self._known.get(routing_id)
        if known is None or known.fd not in self._live_fds:
            return 0
        try:
            return unread_bytes(known.fd)
        except OSError:
            return 0  # closed meanwhile: the monitor is about to say so

    # ------------------------------------------------------------------------------------------- coming and going

    def _look(self) -> bool:
        """Who would wake us? Sees to all but the ROUTER itself; True when there was anything."""
        events = self._epoll.poll(0)
        for fd, _ in events:
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            elif fd == self._monitor_fd:
                self._drain_monitor()
            else:
                for routing_id in self._processes.ended(fd):
                    self._depart(routing_id)
        return bool(events)

    def _drain_monitor(self) -> None:
        receive = self._monitor.recv
        while True:
            try:
                event = receive(_NOBLOCK)
            except zmq.Again:
                return
            receive()  # the endpoint: ours
            kind, fd = struct.unpack("=hi", event)
            if kind == zmq.Event.ACCEPTED:
                if fd >= fd_watermark():
                    self.drop(fd)
                else:
                    self._live_fds.add(fd)
            elif kind == zmq.Event.DISCONNECTED:
                self._live_fds.discard(fd)
                routing_id = self._by_fd.get(fd)
                if routing_id is not None:
                    self._depart(routing_id)

    def _meet(self, routing_id: bytes, fd: int, address: str) -> _Known | None:
        """Map a new routing id; None when its connection has gone already, and nobody is there to answer.

        One case passes: a process that closed, connected again and was given the same descriptor before its old
        message was read. Its old id is taken for gone with the first message of the new one, or the first send.
        """
        if routing_id in self._gone:
            return None
        self._drain_monitor()
        if fd not in self._live_fds or not _is_peer(fd, address):
            return None
        former = self._by_fd.get(fd)
        if former is not None:
            self._depart(former)
        pid = _pid_of(address)
        if pid and not self._processes.watch(pid, routing_id):
            return None
        known = self._known[routing_id] = _Known(fd, pid)
        self._by_fd[fd] = routing_id
        return known

    def _depart(self, routing_id: bytes) -> None:
        known = self._known.pop(routing_id, None)
        if known is None:
            return
        if self._by_fd.get(known.fd) == routing_id:
            del self._by_fd[known.fd]
        self._processes.release(known.pid, routing_id)
        self._gone[routing_id] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        self._departed.append(routing_id)

    def connected(self) -> set[int]:
        """Descriptors of the connections that stand, met or not."""
        return self._live_fds

    def spoke_since(self) -> set[int] | None:
        """Descriptors of those that finished a message since this last told; None while some may not have had a turn.

        libzmq takes one message of each in turn: after as many as there are connections, everybody had one.
        """
        if self._received < len(self._live_fds) and self._get(_EVENTS) & _POLLIN:
            os.eventfd_write(self._wake_fd, 1)  # the look may have eaten the edge
            return None
        spoke, self._spoke, self._received = self._spoke, set(), 0
        return spoke

    def drop(self, fd: int) -> None:
        """Shut one accepted connection down; its departure follows by the usual way.

        The descriptor is looked at first: it may have been closed and reused for something of ours.
        """
        try:
            with socket.socket(fileno=os.dup(fd)) as peer:
                if peer.family == socket.AF_UNIX and peer.getsockname() == self._path:
                    peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed meanwhile: as wished


def _pid_of(address: str) -> int:
    """`localhost:uid:gid:pid` -> pid; 0 when it is not told (another pid namespace, another transport)."""
    last = address.rpartition(":")[2]
    return int(last) if address.count(":") == 3 and last.isdigit() else 0


def _is_peer(fd: int, address: str) -> bool:
    """Whether the descriptor still belongs to who sent the message, as far as the kernel tells."""
    try:
        with socket.socket(fileno=os.dup(fd)) as peer:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return False
    pid, uid, gid = struct.unpack("iII", credentials)
    return address.split(":")[1:] == [str(uid), str(gid), str(pid)]
