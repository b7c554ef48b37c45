"""The zstd stream: whole messages out, bounded memory, no mercy for what is not of the stream."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.compression import MAX_MESSAGE_BYTES, ZstdCompressor, ZstdStream
from sidecar.errors import MalformedFrame

#: The machine may be busy: slow is not wrong.
BRIEF = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

EVENT = b'{"type":"response.output_text.delta","item_id":"msg_1","output_index":0,"delta":" token"}'


def slices(*messages: bytes) -> list[bytes]:
    """What a relay would send."""
    compressor = ZstdCompressor()
    return [compressor.feed(message) for message in messages]


@BRIEF
@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=20))
def test_every_message_comes_out_whole(messages: list[bytes]) -> None:
    """Each slice gives exactly its message, at once."""
    stream = ZstdStream()
    assert [stream.feed(slice_) for slice_ in slices(*messages)] == messages


def test_repetition_is_cheap() -> None:
    """The point of one stream: the second event of a kind costs a few bytes."""
    first, second = slices(EVENT, EVENT)
    assert len(second) < len(EVENT) / 4
    stream = ZstdStream()
    assert stream.feed(memoryview(first)) == stream.feed(second) == EVENT


@pytest.mark.parametrize("limit", [1000, 128 << 10, MAX_MESSAGE_BYTES])
def test_a_message_of_the_limit_passes_and_one_byte_more_does_not(limit: int) -> None:
    """Exactly."""
    assert len(ZstdStream(max_message_bytes=limit).feed(slices(b"a" * limit)[0])) == limit
    with pytest.raises(MalformedFrame, match=r"malformed: zstd: .*more than") as caught:
        ZstdStream(max_message_bytes=limit).feed(slices(b"a" * (limit + 1))[0])
    assert caught.value.close_code == 1009


def test_a_bomb_is_not_inflated() -> None:
    """64 MiB in 2 KiB, with its size declared or not: refused with little memory touched."""
    body = b"\0" * (64 << 20)
    streamed = slices(body)[0]
    whole = zstandard.ZstdCompressor().compress(body)
    assert len(whole) < 8192
    assert len(streamed) < 8192
    for bomb in (whole, streamed):
        stream = ZstdStream()
        with pytest.raises(MalformedFrame, match="malformed: zstd: "):
            stream.feed(bomb)


def test_memory_stays_under_twice_the_limit() -> None:
    """The pieces fed are too small to overshoot by more."""
    stream = ZstdStream()
    largest = 0
    inner = stream._decompressor

    class Watched:
        unused_data = b""

        def decompress(self, data: bytes) -> bytes:
            nonlocal largest
            part: bytes = inner.decompress(data)
            largest = max(largest, len(part))
            return part

    stream._decompressor = Watched()  # type: ignore[assignment]
    with pytest.raises(MalformedFrame):
        stream.feed(slices(b"\0" * (64 << 20))[0])
    assert 0 < largest <= 2 * MAX_MESSAGE_BYTES


def test_a_truncated_slice_is_malformed_or_gives_less_and_never_more() -> None:
    """Cut anywhere: an error, or a beginning of the message (which is then no JSON); the stream ends in an error."""
    first, second = slices(EVENT, b'{"type":"error"}' * 3)
    for length in range(len(first)):
        stream = ZstdStream()
        try:
            given_ = stream.feed(first[:length])
        except MalformedFrame:
            continue
        assert EVENT.startswith(given_)
        assert given_ != EVENT or length >= len(first) - 3
    stream = ZstdStream()
    stream.feed(first)
    with pytest.raises(MalformedFrame):
        stream.feed(b"")
    with pytest.raises(MalformedFrame, match="broken"):
        stream.feed(second)


@BRIEF
@given(st.binary(max_size=300))
def test_garbage_is_malformed(garbage: bytes) -> None:
    """At the start, and after good slices."""
    with pytest.raises(MalformedFrame, match="malformed: zstd: "):
        ZstdStream().feed(b"\x00" + garbage)
    stream = ZstdStream()
    stream.feed(slices(EVENT)[0])
    try:
        for _ in range(3):
            stream.feed(b"\xff" * 9 + garbage)
    except MalformedFrame:
        return
    pytest.fail("garbage was taken for a stream")


def test_a_window_too_large_is_refused() -> None:
    """A stream that would hold 64 MiB per connection, and one just within."""
    for log, fine in ((26, False), (24, False), (23, True)):
        parameters = zstandard.ZstdCompressionParameters(window_log=log)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        slice_ = compressor.compress(EVENT) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        if fine:
            assert ZstdStream().feed(slice_) == EVENT
        else:
            with pytest.raises(MalformedFrame, match="malformed: zstd: "):
                ZstdStream().feed(slice_)


def test_nothing_may_follow_the_end_of_the_stream() -> None:
    """In the same slice, or in the next."""
    compressor = ZstdCompressor()
    ended = compressor.feed(EVENT) + compressor.finish()
    with pytest.raises(MalformedFrame, match="malformed: zstd: "):
        ZstdStream().feed(ended + b"more")
    with pytest.raises(MalformedFrame, match="malformed: zstd: "):
        ZstdStream().feed(ended + slices(EVENT)[0])
    stream = ZstdStream()
    assert stream.feed(ended) == EVENT
    with pytest.raises(MalformedFrame, match="malformed: zstd: "):
        stream.feed(slices(EVENT)[0])
