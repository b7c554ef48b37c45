"""One question to the daemon and its answer, over a plain socket: for a command that must be quick.

Importing pyzmq alone costs 70 ms; `sidecar probe` promises an answer in less than 100 ms, Python's start included. So
this uses the clients' own ZMTP (`dealer`), which loads nothing. It also hears what libzmq keeps to itself: a connection
refused is told at once.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from sidecar.client.dealer import OPENING, Dealer, NotTheDaemonError, frame

_READ_BYTES: Final = 65_536


class UnansweredError(Exception):
    """No answer came, and why."""


def ask(path: str, payload: bytes, *, timeout: float) -> bytes:
    """Send one payload to the ROUTER behind a socket file, and return the first message that comes back.

    Args:
        path: of the socket.
        payload: one frame.
        timeout: seconds, for all of it: a server that drips bytes does not stretch it.

    Raises:
        UnansweredError: nobody listens, nobody answers in time, or what answers is no ZeroMQ ROUTER.
    """
    until = time.monotonic() + timeout
    dealer, asked = Dealer(), False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        try:
            stream.settimeout(timeout)
            stream.connect(path)
            stream.sendall(OPENING)
            while True:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                stream.settimeout(left)
                data = stream.recv(_READ_BYTES)
                if not data:
                    raise UnansweredError("the connection was closed without an answer")
                answers = dealer.receive(data)
                if answers:
                    return answers[0]
                if dealer.ready and not asked:
                    asked = True
                    stream.sendall(frame(payload))
        except NotTheDaemonError as problem:
            raise UnansweredError(f"what listens at {path} is not the daemon: {problem}") from None
        except TimeoutError:
            raise UnansweredError(f"no answer within {timeout * 1000:.0f} ms") from None
        except ConnectionRefusedError:
            raise UnansweredError(f"nobody listens at {path}: the daemon that made it is gone") from None
        except (BrokenPipeError, ConnectionResetError):
            raise UnansweredError("the connection was closed without an answer") from None
        except OSError as problem:
            raise UnansweredError(f"{path}: {problem.strerror or problem}") from None
