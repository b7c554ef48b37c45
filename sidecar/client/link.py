"""The clients' one door to ZeroMQ: a DEALER, its monitor, and one pass of moving bytes between them and a session.

Facts it rests on (libzmq 4.3.5):

- IMMEDIATE: a message is only taken when a finished handshake stands behind it, and what the pipe of a broken
  connection still holds is destroyed (`session_base_t::reconnect`): nothing is queued to run late or twice.
- The file descriptors are edge-triggered and every zmq call can eat the edge: after any send or receive EVENTS is
  looked at again before anybody waits. `exchange()` therefore says whether it must be called again first.
- The monitor tells of a broken connection within a millisecond; messages that came before it are still in the pipe
  and are read first, so that a terminal sent with the last breath counts.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Final, cast

import zmq

from sidecar.client.endpoint import look
from sidecar.client.session import Session

#: Payloads of one pass. More would let a flooding daemon hold the caller past its deadline.
_PASS: Final = 16
_RCVHWM: Final = 16
_SNDHWM: Final = 64
_MAX_PAYLOAD_BYTES: Final = 16 << 20
_RECONNECT_MS: Final = 20
_RECONNECT_MAX_MS: Final = 100
_HANDSHAKE_MS: Final = 5_000
_EVENT: Final = struct.Struct("=hi")
_WATCHED: Final = int(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED)


class Link:
    """A DEALER that connects, and reconnects, to one endpoint. Not for two threads at once.

    Resource handling: one private context (one I/O thread) per link; `close()` may be called twice.
    """

    def __init__(self, endpoint: str, session: Session) -> None:
        self.endpoint = endpoint
        self._session = session
        self._pid = os.getpid()
        self._lost = self._made = False
        self.closed = False
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.RCVHWM, _RCVHWM),
            (zmq.SNDHWM, _SNDHWM),
            (zmq.MAXMSGSIZE, _MAX_PAYLOAD_BYTES),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
        ):
            self._socket.setsockopt(option, value)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(_WATCHED)
        self._socket.connect(endpoint)
        self.descriptors = (cast("int", self._socket.getsockopt(zmq.FD)), cast("int", self._monitor.getsockopt(zmq.FD)))

    def usable(self) -> str | None:
        """Why this link must not be used, None when it may: it is closed, or of the parent process."""
        if self.closed:
            return "this client is closed"
        if os.getpid() != self._pid:
            return f"this client was made in process {self._pid}, and this is a fork of it: make a new client here"
        return None

    def exchange(self) -> bool:
        """One pass: read, notice connects and disconnects, write, end what is late. Never blocks.

        Returns:
            True when there may be more: call again before waiting.
        """
        session, socket = self._session, self._socket
        self._watch()
        read = 0
        while read < _PASS and _ready(socket, zmq.POLLIN):
            payload = socket.recv(zmq.NOBLOCK)
            if socket.getsockopt(zmq.RCVMORE):
                payload = self._last_frame()
            read += 1
            session.receive(payload, now=time.monotonic())
        if self._lost and read < _PASS:
            self._lost = False
            session.connection_lost()
        if self._made and not self._lost:
            self._made = False
            session.connection_made()
        self._write()
        session.expire(now=time.monotonic())
        wanted = zmq.POLLIN if self._write() else zmq.POLLIN | zmq.POLLOUT
        return read == _PASS or _ready(socket, wanted) or _ready(self._monitor, zmq.POLLIN)

    def explain_absence(self) -> None:
        """End what waits for a connection that cannot come.

        A socket that may not be reached is told at once. One that is missing is told at once too, except by a
        client that was connected before: that daemon is being restarted, and the deadline is the limit.
        """
        if not self._session.connected:
            obstacle = look(self.endpoint)
            if obstacle is not None and not (obstacle.may_pass and self._session.ever_connected):
                self._session.fail_waiting(obstacle.message)

    def close(self) -> None:
        """Close the sockets. In a forked child the parent's are left alone."""
        if self.closed:
            return
        self.closed = True
        if os.getpid() == self._pid:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(0)
            self._context.term()

    def _write(self) -> bool:
        """Hand over what there is; False when the socket takes no more for now."""
        session, send = self._session, self._socket.send
        while (payload := session.next_payload()) is not None:
            try:
                send(payload, zmq.NOBLOCK)
            except zmq.Again:
                return False
            session.handed_over()
        return True

    def _watch(self) -> None:
        """What the monitor saw since: connections lost, and made after that."""
        while _ready(self._monitor, zmq.POLLIN):
            event, _ = _EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            self._made = event != zmq.Event.DISCONNECTED
            self._lost = self._lost or not self._made

    def _last_frame(self) -> bytes:
        """The payload of a message with frames before it: the last one (the daemon sends no such thing)."""
        payload = b""
        while self._socket.getsockopt(zmq.RCVMORE):
            payload = self._socket.recv(zmq.NOBLOCK)
        return payload


def _ready(socket: zmq.Socket[bytes], wanted: int) -> bool:
    """Look at EVENTS, the only truth about a ZeroMQ socket."""
    return bool(cast("int", socket.getsockopt(zmq.EVENTS)) & wanted)
