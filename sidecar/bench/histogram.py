"""An HdrHistogram: counts in log-linear buckets, three significant digits from 1 us to a day, mergeable, small to keep.

Source: Gil Tene's HdrHistogram (http://hdrhistogram.org). Bucket layout, percentiles and the encoding are its "V2
compressed" format, base64, so that every tool that reads those reads ours; golden vectors made by HdrHistogram_py hold
it. That package is not used because it brings setuptools and pbr into the daemon's environment, has no wheel for
aarch64, and decodes into memory by address what a file claims.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Final

LOWEST: Final = 1
HIGHEST: Final = 86_400_000_000  # a day in microseconds
DIGITS: Final = 3

_SUB_BITS: Final = 11  # 2 * 10**DIGITS values at unit resolution need 2048 sub-buckets
_HALF_BITS: Final = _SUB_BITS - 1
_HALF: Final = 1 << _HALF_BITS
_BUCKETS: Final = 27  # doublings of 2048 until HIGHEST is covered
_LENGTH: Final = (_BUCKETS + 1) * _HALF

_COOKIE: Final = 0x1C849303 | 0x10
_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_OUTER: Final = struct.Struct(">II")
_INNER: Final = struct.Struct(">IIIIQQd")
#: Of a payload, unpacked: each count takes 9 bytes at most.
_MOST_BYTES: Final = _INNER.size + 9 * _LENGTH


class Histogram:
    """Counts of whole microseconds. A value below 0 counts as 0, one over a day as a day.

    Values come back as the highest one of their bucket, at most 0.1 % above what was recorded.
    """

    __slots__ = ("_counts", "n")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.n = 0

    def __repr__(self) -> str:
        return f"<Histogram n={self.n} p50={self.percentile(50)} max={self.max}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]

    def record(self, value: int, count: int = 1) -> None:
        """Count one value."""
        if value < 0:
            value = 0
        elif value > HIGHEST:
            value = HIGHEST
        bucket = value.bit_length() - _SUB_BITS
        index = (bucket << _HALF_BITS) + (value >> bucket) if bucket > 0 else value
        self._counts[index] = self._counts.get(index, 0) + count
        self.n += count

    def add(self, other: Histogram) -> None:
        """Count all that `other` counted."""
        counts = self._counts
        for index, count in other._counts.items():
            counts[index] = counts.get(index, 0) + count
        self.n += other.n

    def percentile(self, percent: float) -> int:
        """The value that `percent` of all are at or below; 0 of none."""
        if not self.n:
            return 0
        wanted = max(1, int(percent * self.n / 100 + 0.5))
        seen = 0
        index = 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= wanted:
                break
        return _highest(index)

    def carries(self, percent: float) -> bool:
        """The sample is large enough for this percentile: at least five values lie beyond it."""
        return self.n * (100 - percent) >= 5 * 100 - 1e-6

    @property
    def min(self) -> int:
        """The lowest value, 0 of none."""
        return _lowest(min(self._counts)) if self.n else 0

    @property
    def max(self) -> int:
        """The highest value, 0 of none."""
        return _highest(max(self._counts)) if self.n else 0

    @property
    def mean(self) -> float:
        """The mean of the buckets' middles, 0 of none."""
        if not self.n:
            return 0.0
        return sum(count * (_lowest(i) + _highest(i) + 1) // 2 for i, count in self._counts.items()) / self.n

    def between(self, low: float, high: float) -> int:
        """How many buckets' middles lie in [low, high): for drawing."""
        return sum(count for i, count in self._counts.items() if low <= (_lowest(i) + _highest(i)) / 2 < high)

    def encode(self) -> str:
        """The V2 compressed format in base64."""
        payload = bytearray()
        empty = 0
        for index in range(max(self._counts, default=-1) + 1):
            count = self._counts.get(index, 0)
            if count == 0:
                empty += 1
                continue
            if empty:
                _put(payload, -empty)
                empty = 0
            _put(payload, count)
        head = _INNER.pack(_COOKIE, len(payload), 0, DIGITS, LOWEST, HIGHEST, 1.0)
        squeezed = zlib.compress(head + payload)
        return base64.b64encode(_OUTER.pack(_COMPRESSED_COOKIE, len(squeezed)) + squeezed).decode()

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """What `encode` made, here or by another HdrHistogram of the same range and digits.

        Raises:
            ValueError: it is not such a text.
        """
        try:
            raw = base64.b64decode(text, validate=True)
            cookie, length = _OUTER.unpack_from(raw)
            if cookie & ~0xF0 != _COMPRESSED_COOKIE & ~0xF0 or length != len(raw) - _OUTER.size:
                raise ValueError("not a compressed V2 histogram")
            unpacking = zlib.decompressobj()
            payload = unpacking.decompress(raw[_OUTER.size :], _MOST_BYTES + 1)
            if len(payload) > _MOST_BYTES or not unpacking.eof:
                raise ValueError("too long, or cut")
            cookie, length, offset, digits, lowest, highest, _ = _INNER.unpack_from(payload)
        except (binascii.Error, struct.error, zlib.error) as problem:
            raise ValueError(f"not an encoded histogram: {problem}") from None
        if cookie & ~0xF0 != _COOKIE & ~0xF0 or length != len(payload) - _INNER.size:
            raise ValueError("not a V2 histogram")
        if (offset, digits, lowest, highest) != (0, DIGITS, LOWEST, HIGHEST):
            raise ValueError(f"a histogram of another range: {lowest} to {highest} with {digits} digits")
        return cls._of(payload[_INNER.size :])

    @classmethod
    def _of(cls, payload: bytes) -> Histogram:
        made = cls()
        index = place = 0
        while place < len(payload):
            count, place = _take(payload, place)
            if count < 0:
                index -= count
                continue
            if index >= _LENGTH:
                raise ValueError("more counts than the range has")
            if count:
                made._counts[index] = count
                made.n += count
            index += 1
        return made


def _lowest(index: int) -> int:
    bucket = (index >> _HALF_BITS) - 1
    return index if bucket <= 0 else ((index & (_HALF - 1)) + _HALF) << bucket


def _highest(index: int) -> int:
    bucket = (index >> _HALF_BITS) - 1
    return index if bucket <= 0 else _lowest(index) + (1 << bucket) - 1


def _put(payload: bytearray, value: int) -> None:
    """ZigZag LEB128, at most nine bytes of which the last one has eight bits."""
    rest = (value << 1) ^ (value >> 63)
    for _ in range(8):
        if rest < 0x80:
            payload.append(rest)
            return
        payload.append(rest & 0x7F | 0x80)
        rest >>= 7
    payload.append(rest)


def _take(payload: bytes, place: int) -> tuple[int, int]:
    rest = 0
    for nth in range(9):
        if place >= len(payload):
            raise ValueError("the counts are cut")
        byte = payload[place]
        place += 1
        rest |= (byte if nth == 8 else byte & 0x7F) << (7 * nth)
        if byte < 0x80:
            break
    return (rest >> 1) ^ -(rest & 1), place
