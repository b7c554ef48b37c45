"""One question to the daemon and its answer, over a plain socket: enough of ZMTP 3.0 for a command that must be quick.

Importing pyzmq alone costs 70 ms; `sidecar probe` promises an answer in less than 100 ms, Python's start included. So
this speaks the protocol by itself, as RFC 23 has it: greeting, NULL mechanism, READY, then messages of one frame. It
also hears what libzmq keeps to itself: a connection refused is told at once.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

_GREETING: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_MAX_FRAME_BYTES: Final = 16 << 20


class UnansweredError(Exception):
    """No answer came, and why."""


def ask(path: str, payload: bytes, *, timeout: float) -> bytes:
    """Send one payload to the ROUTER behind a socket file, and return the first message that comes back.

    Args:
        path: of the socket.
        payload: one frame.
        timeout: seconds, for all of it.

    Raises:
        UnansweredError: nobody listens, nobody answers in time, or what answers is no ZeroMQ ROUTER.
    """
    until = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        try:
            stream.settimeout(timeout)
            stream.connect(path)
            stream.sendall(_GREETING)
            greeting = _take(stream, 64, until)
            if greeting[:1] != b"\xff" or greeting[9] & 1 != 1 or greeting[10] < 3 or greeting[12:17] != b"NULL\0":
                raise UnansweredError(f"what listens at {path} is not the daemon")
            stream.sendall(_frame(_COMMAND, _READY))
            stream.sendall(_frame(0, payload))
            while True:
                flags, body = _take_frame(stream, until)
                if flags & _COMMAND or flags & _MORE:
                    continue
                return body
        except TimeoutError:
            raise UnansweredError(f"no answer within {timeout * 1000:.0f} ms") from None
        except ConnectionRefusedError:
            raise UnansweredError(f"nobody listens at {path}: the daemon that made it is gone") from None
        except (BrokenPipeError, ConnectionResetError):
            raise UnansweredError("the connection was closed without an answer") from None
        except OSError as problem:
            raise UnansweredError(f"{path}: {problem.strerror or problem}") from None


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return struct.pack("!BQ", flags | _LONG, len(body)) + body


def _take_frame(stream: socket.socket, until: float) -> tuple[int, bytes]:
    flags = _take(stream, 1, until)[0]
    size = struct.unpack("!Q", _take(stream, 8, until))[0] if flags & _LONG else _take(stream, 1, until)[0]
    if size > _MAX_FRAME_BYTES:
        raise UnansweredError(f"an answer of {size} bytes")
    return flags, _take(stream, size, until)


def _take(stream: socket.socket, size: int, until: float) -> bytes:
    """Exactly so many bytes, by the instant: a server that drips them does not stretch it."""
    taken = bytearray()
    while len(taken) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        piece = stream.recv(min(size - len(taken), 65536))
        if not piece:
            raise UnansweredError("the connection was closed without an answer")
        taken += piece
    return bytes(taken)
