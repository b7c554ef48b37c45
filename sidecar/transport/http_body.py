"""Where the body of an HTTP/1.1 response ends, without I/O: chunked, by its length, or with the connection (RFC 9112).

The second thing that every token of an HTTP/1.1 answer passes, after TLS: h11 takes 18 us for a chunk, this 0.6. So h11
reads the head (`http1_link`), and this reads what follows it.
"""

from __future__ import annotations

from typing import Final, Protocol

from sidecar.errors import MalformedFrame

#: The longest line between chunks (size and extensions), and all trailers together.
MAX_LINE: Final = 4096
#: A read of more chunks than `FEW`, of less than `CRUMB_BYTES` on average, brings crumbs: a token takes more. So many
#: of them are borne in one body; a read may hold 20,000, which hold up everybody for 10 ms each time.
MAX_CRUMBS: Final = 65_536
CRUMB_BYTES: Final = 16
FEW: Final = 64
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
#: Size lines that were read before -> their sizes; a service's chunks are much of one size.
_SIZES: Final[dict[bytes, int]] = {}
_MOST_SIZES: Final = 1024


class Body(Protocol):
    """What follows a response's head.

    Attributes:
        done: all of it has come.
        rest: bytes that came behind its end.
        cut_by_eof: the end of the connection before `done` cuts it; else that is its end.
    """

    done: bool
    rest: bytes
    cut_by_eof: bool

    def feed(self, data: bytes) -> bytes:
        """The connection's next bytes -> the body's.

        Raises:
            MalformedFrame: they cannot be of such a body.
        """
        ...


class LengthBody:
    """A body of so many bytes."""

    __slots__ = ("_left", "cut_by_eof", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""
        self.cut_by_eof = True

    def feed(self, data: bytes) -> bytes:
        """See `Body`."""
        if len(data) < self._left:
            self._left -= len(data)
            return data
        body, self.rest = data[: self._left], data[self._left :]
        self._left = 0
        self.done = True
        return body


class EndlessBody:
    """A body that ends with its connection."""

    __slots__ = ("cut_by_eof", "done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.cut_by_eof = False

    def feed(self, data: bytes) -> bytes:
        """See `Body`."""
        return data


class ChunkedBody:
    """A body in chunks. Extensions and trailers are passed over; memory is bounded by one `feed`."""

    __slots__ = ("_crumbs", "_held", "_left", "_trailing", "cut_by_eof", "done", "rest")

    def __init__(self) -> None:
        self._crumbs = 0
        self._held = b""  # the beginning of a line
        self._left = 0  # bytes that the chunk still has; -1: its CR LF is to come
        self._trailing = -1  # bytes of trailers so far; -1 before the last chunk
        self.done = False
        self.rest = b""
        self.cut_by_eof = True

    def feed(self, data: bytes) -> bytes:
        """See `Body`."""
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at = 0
        if self._left == 0 and self._trailing < 0:
            # The common form: whole chunks, one after another.
            find, sizes = data.find, _SIZES
            while (line_end := find(b"\r\n", at)) > 0 and (size := sizes.get(data[at:line_end])):
                stop = line_end + 2 + size
                if data[stop : stop + 2] != b"\r\n":
                    break
                pieces.append(data[line_end + 2 : stop])
                at = stop + 2
        if at < len(data):
            self._general(data, at, pieces)
        if len(pieces) == 1:
            return pieces[0]
        body = b"".join(pieces)
        if len(pieces) > FEW and len(body) < CRUMB_BYTES * len(pieces):
            self._crumbs += len(pieces)
            if self._crumbs > MAX_CRUMBS:
                raise MalformedFrame("a flood of chunks")
        return body

    def _general(self, data: bytes, at: int, pieces: list[bytes]) -> None:
        """Everything else, a part of a chunk at a time."""
        end = len(data)
        while at < end:
            if self._left > 0:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left = self._left - len(piece) or -1
                continue
            line_end = data.find(b"\n", at)
            if line_end < 0:
                if end - at > MAX_LINE or (self._left < 0 and data[at:] != b"\r"):
                    raise MalformedFrame("an endless line between chunks")
                break
            self._line(data[at:line_end].removesuffix(b"\r"))
            at = line_end + 1
            if self.done:
                self.rest = data[at:]
                return
        self._held = data[at:]

    def _line(self, line: bytes) -> None:
        """A whole line: the end of a chunk, the size of the next one, a trailer."""
        if self._left < 0:
            if line:
                raise MalformedFrame("a chunk that is longer than its size")
            self._left = 0
        elif self._trailing < 0:
            self._left = _size(line)
            if self._left == 0:
                self._trailing = 0
            elif len(_SIZES) < _MOST_SIZES and len(line) <= len(b"ffff"):
                _SIZES[line] = self._left
        elif not line:
            self.done = True
        else:
            self._trailing += len(line)
            if self._trailing > MAX_LINE:
                raise MalformedFrame("endless trailers")


def _size(line: bytes) -> int:
    """A chunk's size. Python's own reading would take a sign, blanks inside and underscores."""
    digits = line.partition(b";")[0].strip(b" \t")
    if not digits or len(digits) > 15 or not _HEX.issuperset(digits):
        raise MalformedFrame("a chunk without a size")
    return int(digits, 16)


def body_of(headers: dict[str, str]) -> Body:
    """What body a response with these headers has (to a POST: 1xx, 204 and 304 are for the caller).

    Raises:
        MalformedFrame: two lengths, a length beside chunks, or a coding that we did not ask for.
    """
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or coding.strip().lower() != "chunked":
            raise MalformedFrame("a body whose end cannot be told")
        return ChunkedBody()
    if length is None:
        return EndlessBody()
    first, *others = (one.strip() for one in length.split(","))
    if not (first.isascii() and first.isdigit()) or len(first) > 18 or any(one != first for one in others):
        raise MalformedFrame("a body whose length cannot be told")
    return LengthBody(int(first))
