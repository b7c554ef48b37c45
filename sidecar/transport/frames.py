"""WebSocket frames (RFC 6455, section 5) without I/O: what a server sends is split, what a client sends is masked.

The splitter is the first thing every token passes through. It handles the common frame (whole, unmasked, FIN, under
64 KiB) in one tight loop and everything else, one frame at a time, in `_general`. It does not look at whether a
text is UTF-8: whoever decodes the JSON inside finds that out, and says so as `MalformedFrame` too.
Bad bytes in a field that nobody reads are skipped with it.
"""

from __future__ import annotations

from typing import Final

from sidecar.errors import MalformedFrame

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

#: Fragments one message may have: empty ones cost no bytes, so the size limit alone would let them come for ever.
MAX_FRAGMENTS: Final = 10_000

#: From this length on, masking byte lanes beats masking one big integer (measured).
_LANES_FROM: Final = 1 << 16

_PROTOCOL_ERROR: Final = 1002
_TOO_BIG: Final = 1009


class FrameSplitter:
    """Bytes from a server in, whole messages out, however the bytes were cut.

    Memory is bounded by `max_message_bytes` plus one `feed`, and work is linear in the bytes fed. After a fault
    or a Close frame the rest of the conversation means nothing: a fault is raised again, bytes after Close are dropped.

    Args:
        max_message_bytes: the longest message taken, fragments added up; at least 125.
    """

    __slots__ = (
        *("_buffer", "_closed", "_fault", "_fragments", "_max", "_message", "_need", "_opcode"),
        *("binary", "controls", "salvaged"),
    )

    def __init__(self, *, max_message_bytes: int = 1 << 20) -> None:
        if max_message_bytes < 125:
            raise ValueError("max_message_bytes must be at least 125")
        self._max = max_message_bytes
        self._buffer = bytearray()  # the beginning of a frame whose end has not come
        self._need = 0  # parse `_buffer` no sooner than it has this many bytes
        self._opcode = 0  # of the fragmented message in progress, 0 without one
        self._message = bytearray()
        self._fragments = 0
        self._closed = False
        self._fault: MalformedFrame | None = None
        #: Of the last `feed`: where in its list binary messages are; all others are text.
        self.binary: list[int] = []
        #: Of the last `feed`: (opcode, raw frame with its header) of each CLOSE, PING and PONG, in order.
        self.controls: list[tuple[int, bytes]] = []
        #: What was whole before the fault that the last `feed` raised: a finished answer followed by garbage counts.
        self.salvaged: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:  # noqa: C901 - the hot loop is written out on purpose
        """Take the next bytes of the connection.

        Returns:
            the payload of each data message now complete, fragments joined, in order. Which of them are binary says
            `binary`, and what control frames came with them says `controls`.

        Raises:
            MalformedFrame: close code 1002 (not the protocol) or 1009 (too long, too many fragments). What was
                whole before it in the same bytes lies in `salvaged`.
        """
        if self.binary:
            self.binary = []
        if self.controls:
            self.controls = []
        if self._fault is not None:
            self.salvaged = []
            raise self._fault
        if self._closed:
            return []
        if self._need:
            buffer = self._buffer
            buffer += data
            if len(buffer) < self._need:
                return []
            data = bytes(buffer)
            self._buffer = bytearray()
            self._need = 0
        out: list[bytes] = []
        append = out.append
        maximum = self._max
        position, end = 0, len(data)
        last = end - 3  # before it, four bytes can be read without asking
        while position < end:
            if not self._opcode:
                # THE HOT LOOP: whole, unmasked, FIN text and binary frames below 64 KiB. Anything else leaves it.
                while position < last:
                    first = data[position]
                    if first != 0x81 and first != 0x82:
                        break
                    length = data[position + 1]
                    if length == 126:
                        start = position + 4
                        length = data[position + 2] << 8 | data[position + 3]
                        stop = start + length
                        if stop > end or length < 126 or length > maximum:
                            break
                    elif length < 126:
                        start = position + 2
                        stop = start + length
                        if stop > end:
                            break
                    else:
                        break
                    if first == 0x82:
                        self.binary.append(len(out))
                    append(data[start:stop])
                    position = stop
                if position == end:
                    break
            try:
                after = self._general(data, position, end, out)
            except MalformedFrame as fault:
                self._fault, self.salvaged = fault, out
                raise
            if after < 0:
                self._buffer += data[position:] if position else data
                break
            position = after
        return out

    def _general(self, data: bytes, position: int, end: int, out: list[bytes]) -> int:
        """Any one frame. Returns where the next begins, or -1 with `_need` set when this one is not all there."""
        if end - position < 2:
            self._need = 2
            return -1
        first, length = data[position], data[position + 1]
        opcode = first & 0x0F
        self._check_header(first, opcode, length)
        start = position + 2
        if length >= 126:
            width = 2 if length == 126 else 8
            if end - start < width:
                self._need = 2 + width
                return -1
            length = int.from_bytes(data[start : start + width], "big")
            start += width
            if length < (126 if width == 2 else 1 << 16) or length >> 63:
                raise MalformedFrame("frame length not in its shortest form", close_code=_PROTOCOL_ERROR)
        if opcode < CLOSE and len(self._message) + length > self._max:
            raise MalformedFrame(f"message over {self._max} bytes", close_code=_TOO_BIG)
        stop = start + length
        if stop > end:
            self._need = stop - position
            return -1
        if opcode >= CLOSE:
            self.controls.append((opcode, data[position:stop]))
            if opcode == CLOSE:
                self._closed = True
                return end
            return stop
        self._data(first, opcode, data[start:stop], out)
        return stop

    def _check_header(self, first: int, opcode: int, length: int) -> None:
        """What the first two bytes alone can get wrong, said before anything is buffered for it."""
        if length & 0x80:
            raise MalformedFrame("a server must not mask its frames", close_code=_PROTOCOL_ERROR)
        if first & 0x70:
            raise MalformedFrame("reserved bits without an extension", close_code=_PROTOCOL_ERROR)
        if opcode >= CLOSE:
            if opcode > PONG:
                raise MalformedFrame(f"reserved opcode {opcode}", close_code=_PROTOCOL_ERROR)
            if not first & 0x80:
                raise MalformedFrame("fragmented control frame", close_code=_PROTOCOL_ERROR)
            if length > 125:
                raise MalformedFrame("control frame over 125 bytes", close_code=_PROTOCOL_ERROR)
        elif opcode > BINARY:
            raise MalformedFrame(f"reserved opcode {opcode}", close_code=_PROTOCOL_ERROR)
        elif opcode == CONTINUATION and not self._opcode:
            raise MalformedFrame("continuation of nothing", close_code=_PROTOCOL_ERROR)
        elif opcode != CONTINUATION and self._opcode:
            raise MalformedFrame("a message begins inside another", close_code=_PROTOCOL_ERROR)

    def _data(self, first: int, opcode: int, piece: bytes, out: list[bytes]) -> None:
        """One data frame, whole: the message it completes, or its part of one."""
        final = first & 0x80
        if final and not self._opcode:
            self._append(opcode, piece, out)
            return
        if opcode:
            self._opcode = opcode
        self._message += piece
        self._fragments += 1
        if final:
            self._append(self._opcode, bytes(self._message), out)
            self._opcode, self._fragments, self._message = 0, 0, bytearray()
        elif self._fragments >= MAX_FRAGMENTS:
            raise MalformedFrame(f"message in over {MAX_FRAGMENTS} fragments", close_code=_TOO_BIG)

    def _append(self, opcode: int, payload: bytes, out: list[bytes]) -> None:
        if opcode == BINARY:
            self.binary.append(len(out))
        out.append(payload)


def _header(first: int, length: int, masked: int) -> bytes:
    if length < 126:
        return bytes((first, masked | length))
    if length < 1 << 16:
        return bytes((first, masked | 126)) + length.to_bytes(2, "big")
    return bytes((first, masked | 127)) + length.to_bytes(8, "big")


def encode_client_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """One whole frame from a client, masked with the four bytes of `mask`."""
    length = len(payload)
    if length < _LANES_FROM:
        # The shortest way for a short prompt: both as one big integer.
        repeated = (mask * ((length + 3) >> 2))[:length]
        masked = (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(length, "little")
        return b"".join((_header(0x80 | opcode, length, 0x80), mask, masked))
    # Four strided translations: 1.6 ms for 1 MiB, a third of what the big integers take.
    lanes = bytearray(payload)
    for lane in range(4):
        key = mask[lane]
        lanes[lane::4] = lanes[lane::4].translate(bytes(byte ^ key for byte in range(256)))
    return b"".join((_header(0x80 | opcode, length, 0x80), mask, lanes))


def close_facts(frame: bytes) -> tuple[int, str]:
    """A raw server Close frame -> (code, reason); 1005 when it carries none.

    Raises:
        MalformedFrame: half a code, or one that must not appear on the wire (RFC 6455, 7.4).
    """
    payload = frame[2:]
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not 1000 <= code <= 4999 or code in (1004, 1005, 1006, 1015):
        raise MalformedFrame("close frame with an impossible code", close_code=_PROTOCOL_ERROR)
    return code, payload[2:].decode("utf-8", "replace")
