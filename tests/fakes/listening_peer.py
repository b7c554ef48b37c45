"""The other end of a client's connection, held by the test itself: it says and reads what the test wants."""

from __future__ import annotations

import socket
from pathlib import Path

from sidecar.client.dealer import OPENING
from sidecar.client.link import Link
from sidecar.client.session import Session


class Peer:
    """A listening socket of the test's own. Nothing here waits longer than a Unix socket needs."""

    def __init__(self, path: Path, *, backlog: int = 8) -> None:
        self.endpoint = f"ipc://{path}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(backlog)
        self.listener.settimeout(5)
        self.open: list[socket.socket] = [self.listener]

    def accept(self) -> socket.socket:
        """The next connection."""
        made, _ = self.listener.accept()
        made.settimeout(5)
        self.open.append(made)
        return made


def connected(peer: Peer, now: float = 0.0) -> tuple[Link, socket.socket]:
    """A link that shook hands and said hello, and the other end of it."""
    link = Link(peer.endpoint, Session(), now=now)
    other = peer.accept()
    other.sendall(OPENING)
    link.read(now)
    assert link.session.connected
    other.recv(1000)
    return link, other
