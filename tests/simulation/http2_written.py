"""What the client writes on an HTTP/2 connection, ahead of the network: its requests, as far as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

_PREFACE: Final = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_DATA, _HEADERS, _RST_STREAM = 0, 1, 3


class Written:
    """See the module.

    Args:
        complete: told of a request: its stream, its body, and since when it was being written.
        reset: told of a stream that the client has given up.

    Attributes:
        began: streams whose request is neither complete nor given up, and since when.
    """

    def __init__(self, complete: Callable[[int, bytes, float], None], reset: Callable[[int], None]) -> None:
        self.began: dict[int, float] = {}
        self._complete, self._reset = complete, reset
        self._bodies: dict[int, bytearray] = {}
        self._seen = bytearray()
        self._seen_preface = False

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self._seen += data
        if not self._seen_preface:
            if len(self._seen) < _PREFACE:
                return
            del self._seen[:_PREFACE]
            self._seen_preface = True
        for kind, flags, sid, payload in frames(self._seen):
            if kind == _HEADERS:
                self.began[sid] = trio.current_time()
                self._bodies[sid] = bytearray()
            elif kind == _DATA and sid in self.began:
                self._bodies[sid] += payload
                if flags & 1:
                    self._complete(sid, bytes(self._bodies.pop(sid)), self.began.pop(sid))
            elif kind == _RST_STREAM:
                self.began.pop(sid, None)
                self._bodies.pop(sid, None)
                self._reset(sid)

    def forget(self, after: int) -> None:
        """Streams after that one are nobody's: the client has been told so."""
        for sid in [sid for sid in self.began if sid > after]:
            del self.began[sid]


def frames(buffer: bytearray) -> list[tuple[int, int, int, bytes]]:
    """Take whole frames (type, flags, stream, payload) off `buffer`."""
    found = []
    while len(buffer) >= 9:
        stop = 9 + int.from_bytes(buffer[:3], "big")
        if len(buffer) < stop:
            break
        found.append((buffer[3], buffer[4], int.from_bytes(buffer[5:9], "big"), bytes(buffer[9:stop])))
        del buffer[:stop]
    return found
