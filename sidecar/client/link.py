"""One connection of a client to one daemon: a Unix socket, ZMTP on it, and a session behind it. Never blocks.

A shell waits for `descriptor` (to be readable, and while `wants_write` to be writable) and for `due_at`, and calls
`read`, `write`, `tick`. No thread: the bytes of the daemon wake whoever waits for them, and nobody else.

Facts it rests on (Linux):

- A Unix socket is connected, or refused, at once; what is sent on it reaches that daemon or nobody: nothing is queued
  to run late or twice. Nothing is handed over before the handshake is done.
- What a dead daemon had sent is read before the end of the stream, so that a terminal sent with its last breath counts.
- Descriptors are level-triggered: what one pass leaves behind wakes the next.
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
from typing import Final

from sidecar.client.dealer import OPENING, Dealer, NotTheDaemonError, frame
from sidecar.client.endpoint import Obstacle, look, socket_path
from sidecar.client.session import Session

#: Bytes of one pass. More would let a flooding daemon hold the caller past its deadline.
_READ_BYTES: Final = 1 << 16
_FIRST_RETRY: Final = 0.010
_LAST_RETRY: Final = 0.100
#: The same while nothing waits to be sent: a thousand bots beside a daemon that is down must not fill a core.
_IDLE_RETRY: Final = 1.000
#: After a loss the first try is made at once if the connection stood so long; else one that takes and drops us spins.
_STOOD: Final = 1.0
#: Seconds that a daemon which took the connection gets to shake hands; a stopped one takes it and says nothing.
_HANDSHAKE_TIMEOUT: Final = 5.0
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Link:
    """A DEALER that connects, and reconnects, to one endpoint. Not for two threads at once.

    Attributes:
        session: who speaks here.
        descriptor: of the connection, -1 while there is none.
        wants_write: what is to be sent waits for room.
        stale: one of these two has changed; the shell watches anew, then calls `bury()`, and clears it.
        due_at: when `tick()` wants to be called for the connection's sake; the session has instants of its own.

    Resource handling: one socket; `close()` may be called twice.
    """

    def __init__(self, endpoint: str, session: Session, *, now: float) -> None:
        self.endpoint, self.session = endpoint, session
        self.descriptor = -1
        self.wants_write = self.stale = False
        self.due_at = now
        self._retry = _FIRST_RETRY
        self._stands_since = now
        self._socket: socket.socket | None = None
        self._dead: list[socket.socket] = []
        self._rest = b""
        self._unsure = False  # whether the socket has the first payload of the session
        self._dealer = Dealer()
        self._connect(now)

    def __repr__(self) -> str:
        return f"<Link {self.endpoint} {self.session!r}>"

    def read(self, now: float) -> None:
        """Take what came, up to 64 KiB: the descriptor is readable, or somebody just looks."""
        try:
            self._read(now)
        except BaseException:
            self._tear()
            raise

    def write(self) -> None:
        """Hand over what there is, as far as the socket takes it."""
        try:
            self._write()
        except BaseException:
            self._tear()
            raise

    def hurry(self, now: float) -> None:
        """Something is about to be sent: look for the daemon now, however long nobody has asked for it."""
        if self._socket is None and self._retry > _LAST_RETRY:
            self._retry, self.due_at = _FIRST_RETRY, now
        self.tick(now)

    def tick(self, now: float) -> None:
        """Do what is due: connect again, give a handshake up, end what is late.

        What lies in the socket is taken first: an answer or a handshake that came in time counts, however late the bot
        looks.
        """
        session = self.session
        if self.due_at <= now or session.due_at <= now:
            self.read(now)
        if self.due_at <= now:
            if self._socket is not None:
                self._lose(now)
            else:
                self._reconnect(now)
        if session.due_at <= now:
            session.expire(now=now)
            if session.waiting:
                self.write()

    def obstacle(self) -> Obstacle | None:
        """What is in the way of a connection, None when there is one or nothing speaks against it."""
        return None if self.session.connected else look(self.endpoint)

    def bury(self) -> None:
        """Close what was lost: nobody watches its descriptor any more."""
        for dead in self._dead:
            dead.close()
        self._dead.clear()

    def retire(self) -> None:
        """Give the connection up for good: `bury()` closes it, once nobody watches it."""
        if self._socket is not None:
            self._dead.append(self._socket)
            self._socket = None
        self.descriptor, self.wants_write, self.stale, self.due_at = -1, False, True, math.inf

    def hang_up(self) -> None:
        """End the connection for both sides, whoever else holds a copy of it; a thread that waits for it wakes."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. A fork's copy of it may be closed too: the parent's stays."""
        self.retire()
        self.bury()

    def _read(self, now: float) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose(now)
            return
        dealer, session = self._dealer, self.session
        try:
            payloads = dealer.receive(data)
        except NotTheDaemonError:
            self._lose(now)
            return
        if not session.connected and dealer.ready:
            self.due_at, self._stands_since = math.inf, now
            session.connection_made()
        for payload in payloads:
            session.receive(payload, now=now)
        if session.waiting or dealer.reply:
            self.write()

    def _write(self) -> None:
        if self._socket is None:
            return
        send, session = self._socket.send, self.session
        blocked = False
        try:
            while not blocked and (self._rest or self._dealer.reply):
                if not self._rest:
                    self._rest, self._dealer.reply = self._dealer.reply, b""
                self._rest = self._rest[send(self._rest, _FLAGS) :]
                blocked = bool(self._rest)
            while not blocked and (payload := session.next_payload()) is not None:
                whole = frame(payload)
                self._unsure = True
                sent = send(whole, _FLAGS)
                session.handed_over()
                self._unsure = False
                if sent < len(whole):
                    self._rest, blocked = whole[sent:], True
        except (BlockingIOError, InterruptedError):
            blocked, self._unsure = True, False
        except OSError:  # it reads no more: what it sent before is read first, and the end of it tells
            self._unsure, session.leaving = False, True
        if blocked != self.wants_write:
            self.wants_write, self.stale = blocked, True

    def _tear(self) -> None:
        """A signal handler raised in the middle of a pass: bytes may be lost, or sent without our knowing. No byte
        after them could be trusted, so the connection goes, and what may have been sent is never sent again.
        """
        if self._unsure and self.session.waiting:
            self.session.handed_over()
        self._unsure = False
        if self._socket is not None:
            self.hang_up()  # now: `bury()` may be long in coming
            self.retire()
        self.due_at = -math.inf
        self.session.connection_lost()

    def _reconnect(self, now: float) -> None:
        try:
            self._connect(now)
        except BaseException:
            self._tear()
            raise

    def _connect(self, now: float) -> None:
        if look(self.endpoint) is not None:  # also a folder under /tmp that somebody else made: never connected to
            self._again(now)
            return
        try:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor is left: perhaps later
            self._again(now)
            return
        try:
            made.connect(socket_path(self.endpoint))
            made.send(OPENING, _FLAGS)
        except OSError:
            made.close()
            self._again(now)
            return
        except BaseException:
            made.close()
            raise
        self._socket, self._dealer = made, Dealer()
        self._rest = b""
        self.descriptor, self.wants_write, self.stale = made.fileno(), False, True
        self.due_at = now + _HANDSHAKE_TIMEOUT

    def _lose(self, now: float) -> None:
        stood = self.session.connected and now - self._stands_since >= _STOOD
        self.retire()
        if stood:  # the loss may be old, and the next daemon there: a bot that was busy has only now looked
            self.due_at, self._retry = now, _FIRST_RETRY
        else:
            self._again(now)
        self.session.connection_lost()

    def _again(self, now: float) -> None:
        """Later, and not all bots at once."""
        self.due_at = now + self._retry * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, hides nothing
        self._retry = min(2 * self._retry, _LAST_RETRY if self.session.waiting else _IDLE_RETRY)
