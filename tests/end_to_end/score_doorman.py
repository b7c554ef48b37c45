"""A server that is nothing but a door: what befalls a connection before TLS, or HTTP/2's preface, has been answered.

The simulator reads a path before it knows what is to befall; this one needs none.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final, Self

#: A frame of SETTINGS without any, as HTTP/2's servers begin; and what speaks something else altogether.
_SETTINGS: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_GARBAGE: Final = b"SSH-2.0-OpenSSH_9.9 220 mail ready\r\n\r\n" + bytes(range(256))
_OLD: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_PATIENCE: Final = 20.0


class Doorman:
    """Listens on loopback until the end of `with`; does `kind` to whoever has said something.

    Args:
        kind: "EOF", "RST", "garbage", "drip" (of what HTTP/2 begins with, a byte in 0.15 s), "HTTP/1.1" (says that it
            speaks nothing else) or "never answered".

    Attributes:
        took: for each connection that has ended, seconds from its beginning.
    """

    def __init__(self, kind: str) -> None:
        self._act: Callable[[socket.socket], None] = {
            "EOF": lambda _: None,
            "RST": _reset,
            "garbage": lambda peer: _say(peer, _GARBAGE),
            "drip": _drip,
            "HTTP/1.1": lambda peer: _say(peer, _OLD),
            "never answered": _until_gone,
        }[kind]
        self.took: list[float] = []
        self.came = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._meet, args=(peer,), daemon=True).start()

    def _meet(self, peer: socket.socket) -> None:
        began = time.monotonic()
        self.came += 1
        with peer, contextlib.suppress(OSError):
            peer.settimeout(_PATIENCE)
            if peer.recv(65536):
                self._act(peer)
        self.took.append(time.monotonic() - began)


def _reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _say(peer: socket.socket, data: bytes) -> None:
    peer.sendall(data)
    _until_gone(peer)


def _drip(peer: socket.socket) -> None:
    for place in range(len(_SETTINGS)):
        peer.sendall(_SETTINGS[place : place + 1])
        time.sleep(0.15)
    _until_gone(peer)


def _until_gone(peer: socket.socket) -> None:
    while peer.recv(65536):
        pass
