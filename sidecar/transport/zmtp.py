"""ZMTP 3 as a ROUTER speaks it to one peer, without sockets: bytes go in, messages come out. Standard library only.

RFC 23 (ZMTP 3.0) and RFC 37 (3.1), mechanism NULL. The other end is libzmq in any language, or a client that speaks
for itself. Whoever breaks the protocol is refused: `Refused`, and the connection is over.

Bounded in every direction, however the bytes arrive: a length is judged when its header is there, not when its bytes
are; of a message only the first frames are kept; one `advance` looks at so many frames and no more; a PONG replaces
the one before it that could not be sent. Work is linear in the bytes, also when they come one at a time.
Models: h11, RFC 23, and libzmq's `stream_engine_base_t` for what is tolerated.
"""

from __future__ import annotations

import struct
from typing import Final

#: What a ROUTER says first. libzmq sends its own in pieces and waits in between; nobody minds having all of it.
GREETING: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY: Final = b"\x04\x29" + b"\x05READY" + b"\x0bSocket-Type\0\0\0\x06ROUTER" + b"\x08Identity\0\0\0\0"
#: Frames of a message that are kept: two of REQ_CORRELATE's, the payload, and enough to see that there are too many.
FRAMES_KEPT: Final = 8
#: Frames after which a message is taken for endless; they are read and not kept.
MAX_FRAMES: Final = 65_536
#: Bytes that all frames of a message may have beyond what its payload may.
ENVELOPE_ROOM: Final = 65_536
#: A command's body. READY with every property that libzmq knows has less than 200, an identity up to 255.
MAX_COMMAND_BYTES: Final = 4096
#: Frames and commands that one `advance` goes through.
STEP_FRAMES: Final = 512
#: What one frame costs whoever keeps accounts, in bytes: 1,024 PINGs (2 ms) then end a batch as 256 KiB do.
FRAME_COST: Final = 256
#: Who may speak to a ROUTER (RFC 28).
SOCKET_TYPES: Final = frozenset((b"DEALER", b"REQ", b"ROUTER"))

_SIGNATURE_AND_MAJOR: Final = 11
_GREETING_BYTES: Final = 64
_MORE: Final = 1
_COMMAND: Final = 4
_MAX_CONTEXT: Final = 16
#: What goes before the last, or only, frame of a message: of less than 256 bytes, or `LONG_HEADER(LONG, size)`.
SHORT_HEADERS: Final = tuple(bytes((0, size)) for size in range(256))
LONG_HEADER: Final = struct.Struct("!BQ").pack
LONG: Final = 2


class Refused(Exception):
    """The peer speaks something else, or breaks the protocol. `farewell`: bytes to send before the connection ends."""

    def __init__(self, reason: str, farewell: bytes = b"") -> None:
        super().__init__(reason)
        self.farewell = farewell


def frames_before(envelope: tuple[bytes, ...]) -> bytes:
    """The frames of an envelope as they travel, each followed by another one."""
    parts: list[bytes] = []
    for frame in envelope:
        size = len(frame)
        parts += (bytes((_MORE, size)) if size < 256 else LONG_HEADER(LONG | _MORE, size), frame)
    return b"".join(parts)


def command(name: bytes, body: bytes) -> bytes:
    """A short command as it travels."""
    return bytes((_COMMAND, 1 + len(name) + len(body), len(name))) + name + body


class Zmtp:
    """One connection from its first byte: `feed` what was read, then `advance` while `pending`.

    Args:
        max_frame_bytes: a longer frame is not waited for.

    Attributes:
        ready: the handshake is done.
        identity: what the peer calls itself; empty for who lets the ROUTER choose.
        out: frames to send: READY, PONGs. Take and clear them.
        ttl: tenths of a second, of the last PING: after so much silence the peer wants to be given up. 0: never.
        spent: what the last `advance` went through: its bytes, and `FRAME_COST` for each frame.
    """

    __slots__ = (
        "_at", "_data", "_frames", "_gathered", "_greeted", "_limit", "_need", "_number", "_rest",
        "identity", "out", "ready", "spent", "ttl",
    )  # fmt: skip

    def __init__(self, *, max_frame_bytes: int) -> None:
        self._limit = max_frame_bytes
        self._data = b""  # read and not gone through yet, from `_at`
        self._at = 0
        self._rest = bytearray()  # the beginning of a frame; nothing to go through before `_need` bytes are there
        self._need = 1
        self._frames: list[bytes] = []
        self._number = self._gathered = 0  # frames and bytes of the unfinished message, kept or not
        self._greeted = self.ready = False
        self.identity = b""
        self.out: list[bytes] = []
        self.ttl = self.spent = 0

    @property
    def pending(self) -> bool:
        """There is something to go through; nothing may be fed before it is."""
        return bool(self._data)

    def feed(self, data: bytes) -> bool:
        """Take what was read; whether there is something to `advance` through now."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._need:
                return False
            data = bytes(rest)
            rest.clear()
        self._data = data
        return True

    def advance(self) -> list[bytes] | None:
        """The frames of the next message, the first `FRAMES_KEPT` of them; None when none was finished in this step.

        Raises:
            Refused: close the connection.
        """
        data, end = self._data, len(self._data)
        begun = at = self._at
        self.spent = 0
        if not self._greeted:
            if not self._greet():
                self._keep(at)
                return None
            at = _GREETING_BYTES
        left = STEP_FRAMES
        while left and at + 2 <= end:
            flags = data[at]
            if flags & LONG:
                start = at + 9
                if start > end:
                    break
                size = int.from_bytes(data[at + 1 : start], "big")
            else:
                start = at + 2
                size = data[at + 1]
            self._judge(flags, size)
            stop = start + size
            if stop > end:
                break
            at, left = stop, left - 1
            if flags & _COMMAND:
                self._obey(data[start:stop])
                continue
            frames, self._number, self._gathered = self._frames, self._number + 1, self._gathered + size
            if len(frames) < FRAMES_KEPT:
                frames.append(data[start:stop])
            if not flags & _MORE:
                self._frames, self._number, self._gathered = [], 0, 0
                self._passed(begun, at, left)
                return frames
        self._passed(begun, at, left)
        if left and self._data:
            self._keep(at)
        return None

    def _passed(self, begun: int, at: int, left: int) -> None:
        """Went through the bytes from `begun` to `at`."""
        self.spent = at - begun + FRAME_COST * (STEP_FRAMES - left)
        self._at = at
        if at == len(self._data):
            self._data, self._at = b"", 0

    def _keep(self, at: int) -> None:
        """What begins here is not whole: nothing more to go through before it is."""
        data = self._data
        size = len(data) - at
        if self._greeted:
            head = 9 if data[at] & LONG else 2
            if size >= head:
                head += int.from_bytes(data[at + 1 : at + head], "big")
        else:
            head = _SIGNATURE_AND_MAJOR if size < _SIGNATURE_AND_MAJOR else _GREETING_BYTES
        self._need = head
        self._rest += data[at:] if at else data
        self._data, self._at = b"", 0

    def _greet(self) -> bool:
        """Judge the greeting, as far as it has come; False while it is not whole."""
        data = self._data
        if data[0] != 0xFF:
            raise Refused("no ZMTP greeting, or one of ZMTP 1.0")
        if len(data) >= _SIGNATURE_AND_MAJOR and (not data[9] & 1 or data[10] < 3):
            raise Refused("not ZMTP 3: the peer's libzmq is older than 4.0")
        if len(data) < _GREETING_BYTES:
            return False
        if data[12:32].rstrip(b"\0") != b"NULL":
            raise Refused("another mechanism than NULL", _error(b"this socket takes the NULL mechanism only"))
        self._greeted = True
        self.out.append(READY)
        return True

    def _judge(self, flags: int, size: int) -> None:
        """Of a frame whose header alone is there: is it one, and may it be so long?"""
        if flags & _COMMAND:
            if flags & ~(_COMMAND | LONG) or not 2 <= size <= MAX_COMMAND_BYTES:
                raise Refused("no command, or one too long")
        elif flags & ~(_MORE | LONG):
            raise Refused("reserved flags are set")
        elif not self.ready:
            raise Refused("a message before READY")
        elif size > self._limit or self._gathered + size > self._limit + ENVELOPE_ROOM or self._number >= MAX_FRAMES:
            raise Refused("a message too long, or without an end")

    def _obey(self, body: bytes) -> None:
        """READY ends the handshake, PING wants a PONG with its context, ERROR ends all; others are for nobody here."""
        cut = 1 + body[0]
        name, body = body[1:cut], body[cut:]
        if not self.ready:
            if name != b"READY":
                raise Refused("another command than READY")
            self._introduce(body)
        elif name == b"PING":
            if len(body) < 2:
                raise Refused("a PING without its TTL")
            self.ttl = int.from_bytes(body[:2], "big")
            self.out.append(command(b"PONG", body[2 : 2 + _MAX_CONTEXT]))
        elif name == b"ERROR":
            raise Refused("the peer says ERROR")

    def _introduce(self, body: bytes) -> None:
        """READY's properties: who the peer is."""
        kind, at, end = b"", 0, len(body)
        while at < end:
            start = at + 1 + body[at]
            value = start + 4
            stop = value + int.from_bytes(body[start:value], "big")
            if stop > end or value > end:
                raise Refused("READY with properties cut short")
            name = body[at + 1 : start].lower()
            if name == b"socket-type":
                kind = body[value:stop]
            elif name == b"identity":
                self.identity = body[value:stop]
            at = stop
        if kind not in SOCKET_TYPES:
            raise Refused("a socket that does not go with a ROUTER", _error(b"a ROUTER is for DEALER, REQ, ROUTER"))
        self.ready = True


def _error(reason: bytes) -> bytes:
    return command(b"ERROR", bytes((len(reason),)) + reason)
