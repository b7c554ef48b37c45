"""ZMTP 3.0 as a DEALER, without sockets: bytes of the connection go in, payloads come out. Standard library only.

The daemon is a ROUTER (by code of its own, or libzmq's); this is the other end of it, as RFC 23 has it: greeting, NULL
mechanism, READY, then messages, of which the daemon's have one frame. libzmq in the bot would read the same bytes in a
thread of its own and wake the bot's thread afterwards: at the pace of tokens that hop costs more than the reading
(docs/decisions/0010).
Models: h11, RFC 23 (ZMTP 3.0), RFC 37 (3.1: PING).
"""

from __future__ import annotations

import struct
from typing import Final

#: What a DEALER says first, all of it at once: neither part waits for the other side.
OPENING: Final = (
    (b"\xff\0\0\0\0\0\0\0\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
    + b"\x04\x29"
    + b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
)
#: No frame of the daemon is larger; a larger one ends the connection.
MAX_FRAME_BYTES: Final = 16 << 20
#: Answers to PING that wait to be sent; who asks on without reading gets no more of them.
_MAX_REPLY_BYTES: Final = 1024
_GREETING_BYTES: Final = 64
_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_LONG_HEADER: Final = struct.Struct("!BQ")
_SHORT_HEADERS: Final = tuple(bytes((0, size)) for size in range(256))


class NotTheDaemonError(Exception):
    """What answers speaks no ZMTP 3, or breaks it: the connection is of no use."""


def frame(payload: bytes) -> bytes:
    """A message of one frame, as it travels."""
    size = len(payload)
    return (_SHORT_HEADERS[size] if size < 256 else _LONG_HEADER.pack(_LONG, size)) + payload


class Dealer:
    """One connection, from its first byte. Make a new one for the next.

    Attributes:
        ready: the handshake is done; before it nothing of ours may be handed over.
        reply: bytes to send back (answers to PING); take and clear them.
    """

    __slots__ = ("_greeted", "_need", "_rest", "ready", "reply")

    def __init__(self) -> None:
        self.ready = self._greeted = False
        self.reply = b""
        self._rest = bytearray()
        self._need = 0

    def receive(self, data: bytes) -> list[bytes]:
        """The payloads that are whole with these bytes, in order; of a message of several frames, the last one.

        Raises:
            NotTheDaemonError: close the connection.
        """
        if self.ready and not self._rest and not data[0] and 1 < len(data) == 2 + data[1]:
            return [data[2:]]  # one short message, whole: nearly every token of a lone stream
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        return self._split(data)

    def _split(self, data: bytes) -> list[bytes]:
        """Cut what begins with a frame, or with the greeting; keep what is not whole."""
        position, end = 0, len(data)
        if not self._greeted:
            if not self._greet(data):
                return []
            position = _GREETING_BYTES
        payloads: list[bytes] = []
        while position + 2 <= end:
            flags = data[position]
            if flags & _LONG:
                start = position + 9
                if start > end:
                    break
                stop = start + int.from_bytes(data[position + 1 : start], "big")
            else:
                start = position + 2
                stop = start + data[position + 1]
            if stop - start > MAX_FRAME_BYTES or flags > _LONG | _COMMAND:
                raise NotTheDaemonError(f"a frame of {stop - start} bytes, flags {flags:#x}")
            if stop > end:
                break
            if flags & _COMMAND:
                self._obey(data[start:stop])
            elif not self.ready:
                raise NotTheDaemonError("a message before READY")
            elif not flags & _MORE:
                payloads.append(data[start:stop])
            position = stop
        if position < end:
            self._rest += data[position:]
            self._need = self._length_of(data, position)
        return payloads

    def _greet(self, data: bytes) -> bool:
        """Judge the greeting; False while it is not whole."""
        if data[0] != 0xFF:
            raise NotTheDaemonError("no ZMTP greeting")
        if len(data) < _GREETING_BYTES:
            self._rest += data
            self._need = _GREETING_BYTES
            return False
        if not data[9] & 1 or data[10] < 3 or data[12:32].rstrip(b"\0") != b"NULL":
            raise NotTheDaemonError("not ZMTP 3 with the NULL mechanism")
        self._greeted = True
        return True

    @staticmethod
    def _length_of(data: bytes, position: int) -> int:
        """Bytes of the frame that begins here, as far as its beginning tells."""
        left = len(data) - position
        if data[position] & _LONG:
            return 9 if left < 9 else 9 + int.from_bytes(data[position + 1 : position + 9], "big")
        return 2 if left < 2 else 2 + data[position + 1]

    def _obey(self, command: bytes) -> None:
        """READY ends the handshake, PING wants a PONG with its context, ERROR ends all."""
        if command.startswith(b"\x05READY"):
            self.ready = True
        elif command.startswith(b"\x04PING") and len(self.reply) < _MAX_REPLY_BYTES:
            answer = b"\x04PONG" + command[7:23]
            self.reply += bytes((_COMMAND, len(answer))) + answer
        elif command.startswith(b"\x05ERROR"):
            raise NotTheDaemonError(f"refused: {command[7:].decode(errors='replace')}")
