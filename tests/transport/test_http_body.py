"""Bodies of HTTP/1.1 responses: any cutting gives the same bytes, and what cannot be one is found out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import MalformedFrame
from sidecar.transport.http_body import FEW, MAX_CRUMBS, MAX_LINE, ChunkedBody, EndlessBody, LengthBody, body_of

PIECES = st.lists(st.binary(min_size=1, max_size=600), max_size=12)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(marks)]


@given(PIECES, st.lists(st.integers(0, 10_000), max_size=20), st.booleans(), st.binary(max_size=20))
def test_chunks_however_they_are_cut(pieces: list[bytes], places: list[int], odd: bool, rest: bytes) -> None:
    """Sizes in either case, with extensions and trailers or without: the same bytes, the end, and what is behind it."""
    extension, trailer = (b" ;a=b", b"X-T: 1\r\n") if odd else (b"", b"")
    data = b"".join(b"%X%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    data += b"0\r\n" + trailer + b"\r\n"
    body = ChunkedBody()
    found = left = b""
    for piece in cut(data + rest, places):
        if body.done:
            left += piece
        else:
            found += body.feed(piece)
    assert found == b"".join(pieces)
    assert body.done
    assert body.rest + left == rest


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n", b"\r\n", b"-5\r\n", b"0x5\r\n", b"1_0\r\n", b"1" * 16 + b"\r\n", b"3\r\nabcd\r\n", b"3\r\nabcx",
        b"x" * (MAX_LINE + 2), b"0\r\n" + b"A: b\r\n" * MAX_LINE,
    ],
)  # fmt: skip
def test_what_is_no_chunk(data: bytes) -> None:
    """Garbage and endless lines are malformed; nothing is guessed."""
    body = ChunkedBody()
    with pytest.raises(MalformedFrame):
        body.feed(data)


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=8), st.binary(max_size=10))
def test_a_length(data: bytes, places: list[int], rest: bytes) -> None:
    """So many bytes and no more."""
    body = LengthBody(len(data))
    found = left = b""
    for piece in cut(data + rest, places):
        if body.done:
            left += piece
        else:
            found += body.feed(piece)
    assert found == data
    assert body.done
    assert body.rest + left == rest


def test_which_body_a_response_has() -> None:
    """By its headers; a body whose end two headers tell differently is refused."""
    assert isinstance(body_of({"transfer-encoding": "Chunked"}), ChunkedBody)
    assert isinstance(body_of({"content-length": "5"}), LengthBody)
    endless = body_of({})
    assert isinstance(endless, EndlessBody)
    assert endless.feed(b"abc") == b"abc"
    assert not endless.cut_by_eof
    for headers in (
        {"transfer-encoding": "gzip, chunked"}, {"transfer-encoding": "chunked", "content-length": "5"},
        {"content-length": "5, 6"}, {"content-length": "-1"}, {"content-length": ""}, {"content-length": "٣"},
    ):  # fmt: skip
        with pytest.raises(MalformedFrame):
            body_of(headers)


def test_crumbs_are_borne_only_so_long() -> None:
    """Chunks of a byte, thousands in a read, are no answer; those of a token each are, however many."""
    body = ChunkedBody()
    crumbs = b"1\r\nx\r\n" * 1024
    for _ in range(MAX_CRUMBS // 1024):
        assert body.feed(crumbs) == b"x" * 1024
    for chunk in (b"10\r\n0123456789abcdef\r\n" * 1024, b"1\r\nx\r\n" * FEW):
        for _ in range(MAX_CRUMBS // 512):
            body.feed(chunk)
    with pytest.raises(MalformedFrame, match="flood"):
        body.feed(crumbs)
