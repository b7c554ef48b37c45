"""WebSocket frames as a server sees them: unmasked out, masked in. RFC 6455 sections 5.2 to 5.5."""

from __future__ import annotations

from typing import Final

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_SHORT: Final = 126
_MEDIUM: Final = 127


class Violation(Exception):
    """The client broke the protocol; `code` is what to close with."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


def header(length: int, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """The head of an unmasked frame whose payload is `length` bytes."""
    first = opcode | (0x80 if fin else 0)
    if length < _SHORT:
        return bytes((first, length))
    if length < 1 << 16:
        return bytes((first, _SHORT)) + length.to_bytes(2, "big")
    return bytes((first, _MEDIUM)) + length.to_bytes(8, "big")


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """A whole unmasked frame."""
    return header(len(payload), opcode, fin=fin) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; code 1005 means one without a code."""
    return frame(b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()[:123], CLOSE)


class Reader:
    """Splits what a client sends into messages: fragments joined, masks taken off.

    Args:
        limit: the longest message, in bytes.
    """

    def __init__(self, limit: int = 16 << 20) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._opcode = 0
        self._message = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, payload) of every whole message and control frame that `data` completes.

        Raises:
            Violation: not a client's frame, or too long.
        """
        self._buffer += data
        found: list[tuple[int, bytes]] = []
        while (one := self._next()) is not None:
            fin, opcode, payload = one
            if opcode >= CLOSE:
                if not fin or len(payload) >= _SHORT:
                    raise Violation(1002, "a control frame is whole and short")
                found.append((opcode, payload))
                continue
            if (opcode == CONTINUATION) != bool(self._opcode):
                raise Violation(1002, "fragments out of order")
            self._opcode = self._opcode or opcode
            self._message += payload
            if len(self._message) > self._limit:
                raise Violation(1009, "message too long")
            if fin:
                found.append((self._opcode, bytes(self._message)))
                self._opcode, self._message = 0, bytearray()
        return found

    def _next(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 6:
            return None
        first, second = buffer[0], buffer[1]
        if first & 0x70 or first & 0x0F not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise Violation(1002, "reserved bits or opcode")
        if not second & 0x80:
            raise Violation(1002, "a client masks its frames")
        length, start = second & 0x7F, 2
        if length == _SHORT:
            length, start = int.from_bytes(buffer[2:4], "big"), 4
        elif length == _MEDIUM:
            length, start = int.from_bytes(buffer[2:10], "big"), 10
            if len(buffer) < start:
                return None
        if length > self._limit:
            raise Violation(1009, "frame too long")
        end = start + 4 + length
        if len(buffer) < end:
            return None
        mask, masked = bytes(buffer[start : start + 4]), bytes(buffer[start + 4 : end])
        del buffer[:end]
        key = (mask * (length // 4 + 1))[:length]
        payload = (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
        return bool(first & 0x80), first & 0x0F, payload
