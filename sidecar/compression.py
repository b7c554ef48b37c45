"""One zstd stream per connection, flushed at each message, in binary WebSocket frames.

There is no standard; this is what Discord's gateway does. A text frame is plain JSON, a binary frame the next slice of
the connection's single stream. An upstream is only half trusted, so the window and the size of a message are capped.
"""

from __future__ import annotations

from typing import Final

import zstandard

from sidecar.errors import MalformedFrame

#: The largest window a stream may ask for, in bytes: that much memory may be held per connection.
MAX_WINDOW_BYTES: Final = 8 << 20
#: The largest message, decompressed.
MAX_MESSAGE_BYTES: Final = 1 << 20

_BLOCK: Final = 128 << 10  # the most one zstd block can hold,
_SMALLEST_BLOCK: Final = 4  # and the fewest bytes that can say so: a header of three, and one byte to repeat


class ZstdStream:
    """The decompressing end.

    zstandard has no limit on the output of a stream that holds (its `max_output_size` is ignored as soon as the
    frame declares a size), so a slice is fed in pieces too small to overshoot the limit by more than the limit.

    Args:
        max_message_bytes: decompressed bytes per message; memory stays under twice that, and the window.
        max_window_bytes: a stream that asks for more is refused.
    """

    __slots__ = ("_broken", "_decompressor", "_limit", "_piece")

    def __init__(self, *, max_message_bytes: int = MAX_MESSAGE_BYTES, max_window_bytes: int = MAX_WINDOW_BYTES) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=max_window_bytes).decompressobj()
        self._limit = max_message_bytes
        self._piece = max(1, max_message_bytes // _BLOCK) * _SMALLEST_BLOCK
        self._broken = False

    def feed(self, payload: bytes | memoryview) -> bytes:
        """The message that a binary frame's payload stands for.

        Raises:
            MalformedFrame: its reason begins with ``zstd``. The stream cannot be used any more, and says so again.
        """
        if self._broken:
            raise MalformedFrame("zstd: the stream is broken", close_code=1007)
        self._broken = True
        message = self._decompress(payload)
        if not message:
            raise MalformedFrame("zstd: a slice that holds no message", close_code=1007)
        self._broken = False
        return message

    def _decompress(self, payload: bytes | memoryview) -> bytes:
        decompress, piece = self._decompressor.decompress, self._piece
        parts: list[bytes] = []
        total = 0
        try:
            for start in range(0, len(payload), piece):
                part = decompress(payload[start : start + piece])
                total += len(part)
                if total > self._limit:
                    raise MalformedFrame(f"zstd: a message of more than {self._limit} bytes", close_code=1009)
                parts.append(part)
        except (zstandard.ZstdError, MemoryError):
            raise MalformedFrame("zstd: not of the stream", close_code=1007) from None
        if self._decompressor.unused_data:
            raise MalformedFrame("zstd: bytes after the end of the stream", close_code=1007)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class ZstdCompressor:
    """The compressing end: the simulated relay's, and ours where an upstream has said that it takes it.

    Args:
        level: zstd's; 3 is its default and enough for token events (7 to 22 times smaller).
    """

    __slots__ = ("_compressor",)

    def __init__(self, level: int = 3) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level).compressobj()

    def feed(self, message: bytes) -> bytes:
        """The next slice: `message`, flushed so that the other end can read it whole."""
        return self._compressor.compress(message) + self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        """End the stream; nothing may follow. Only tests and a relay that misbehaves have a use for it."""
        return self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)
