"""Server-sent events: the same whatever the cutting, with bounded memory and work."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.dialects.event_stream import EventStream
from sidecar.errors import MalformedFrame

#: The machine may be busy: slow is not wrong.
BRIEF = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def reference(body: bytes) -> list[bytes]:
    """All events of a whole body, its end taken for a line's and an event's: by the standard."""
    events: list[bytes] = []
    data = list[bytes]()
    for line in [*re.split(b"\r\n|\r|\n", body.removeprefix(b"\xef\xbb\xbf")), b""]:
        if not line:
            whole = b"\n".join(data)
            events += [whole] if whole else []
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def fed(pieces: Iterable[bytes], stream: EventStream | None = None) -> list[bytes]:
    """The events of a body in these pieces, without what `end` gives."""
    stream = stream or EventStream()
    return [event for piece in pieces for event in stream.feed(piece)]


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    """`body` cut at these places."""
    edges = sorted({place % (len(body) + 1) for place in places})
    return [body[start:end] for start, end in itertools.pairwise([0, *edges, len(body)])]


words = st.sampled_from(
    [
        b"data: {}\n\n", b"event: x\ndata: {}\n\n", b"data: ", b"data:", b"data", b"event: ", b"e", b"id: 7", b"retry:",
        b": ping", b":", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b" ", b"{}", b"x", b"data: {}\r\n\r\n",
        b"\xef\xbb\xbf", b"\xff", b"\x00", b"DATA: no", b"data : no", b"data: a\ndata: b\n\n",
    ]
)  # fmt: skip
bodies = st.lists(words | st.binary(max_size=5), max_size=20).map(b"".join)


@BRIEF
@given(body=bodies, places=st.lists(st.integers(0, 400), max_size=8))
def test_any_cutting_of_any_stream_gives_the_same(body: bytes, places: list[int]) -> None:
    """As a plain reading of the whole has it; and what counts against the limit is the same, too."""
    stream, whole = EventStream(), EventStream()
    events = fed(cut(body, places), stream)
    whole.feed(body)
    assert repr(stream) == repr(whole)
    assert events + stream.end() == reference(body)
    assert all(type(event) is bytes for event in events)


@BRIEF
@given(body=bodies)
def test_byte_by_byte(body: bytes) -> None:
    """The finest cutting, with empty reads between; every event comes with the byte that completes it."""
    stream = EventStream()
    events: list[bytes] = []
    for end in range(1, len(body) + 1):
        events += stream.feed(body[end - 1 : end])
        assert stream.feed(b"") == []
        # A carriage return ends a line at once; whether a line feed follows, nobody has to wait for.
        assert events == fed([body[:end]])
    assert events + stream.end() == reference(body)


@BRIEF
@given(body=bodies, places=st.lists(st.integers(0, 400), max_size=8), limit=st.integers(1, 60))
def test_the_limit_does_not_depend_on_the_cutting(body: bytes, places: list[int], limit: int) -> None:
    """Whether a stream is refused is its own doing, and what came in reads before is not lost."""

    def verdict(pieces: Iterable[bytes]) -> bool:
        try:
            fed(pieces, EventStream(max_event_bytes=limit))
        except MalformedFrame:
            return False
        return True

    assert verdict(cut(body, places)) == verdict([body]) == verdict(body[at : at + 1] for at in range(len(body)))


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"", []),
        (b"data: {}\n\n", [b"{}"]),
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"event: ping\ndata: 1\n\nevent: x\ndata: 2\n\n", [b"1", b"2"]),
        (b"data: 1\n\nevent: no line end", [b"1"]),
        (b"data: 1\n\nevent: x\ndata: 2", [b"1"]),
        (b"data: 1\n\nevent: x\ndata: 2\n", [b"1"]),
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [b"1"]),
        (b"data: a\ndata: b\ndata\ndata:c\n\n", [b"a\nb\n\nc"]),
        (b"data:  two blanks\n\n", [b" two blanks"]),
        (b"data: 1\nid: 3\nretry: 5\nevent: late\n\n", [b"1"]),
        (b"data: 1\r\rdata: 2\r\n\r\ndata: 3\n\r\n", [b"1", b"2", b"3"]),
        (b"data: 1\rdata: 2\n\n", [b"1\n2"]),
        (b"event: x\ndata: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"event: x\n\ndata: 2\n\n", [b"2"]),
        (b"data: \n\ndata:\n\ndata\n\n", []),
        (b"\n\n\n\ndata: 1\n\n\n\n\n", [b"1"]),
        (b"nonsense\n\ndata: 1\n\n", [b"1"]),
    ],
)
def test_what_the_standard_says(body: bytes, events: list[bytes]) -> None:
    """Fields, line ends, byte order mark; data that is empty is none."""
    assert fed([body]) == events
    assert fed(body[at : at + 1] for at in range(len(body))) == events


def test_the_end_of_a_body_completes_what_is_whole_but_for_its_line_ends() -> None:
    """Some servers leave out the last blank line, or both line ends; what was complete is not given twice."""
    for last in (b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r"):
        stream = EventStream()
        assert stream.feed(b"data: 1\n\n" + last) == [b"1"]
        assert stream.end() == [b"[DONE]"]
        assert stream.end() == []
    for nothing in (b"", b"data: 1\n\n", b"event: x", b": ping", b"\xef\xbb"):
        stream = EventStream()
        stream.feed(nothing)
        assert stream.end() == []


def test_keepalives_count_against_the_limit() -> None:
    """Comments, and events without data, until an event has some."""
    stream = EventStream()
    assert stream.feed(b": ping\n\n:\nevent: ping\n\n\n\ndata:\n\ndata: 1\n: in it\n\n") == [b"1"]
    assert repr(stream) == "<EventStream 0 bytes into an event>"
    stream.feed(b"data: 12\nda")
    assert repr(stream) == "<EventStream 11 bytes into an event>"


@pytest.mark.parametrize(
    "lines",
    [
        b"x\n",
        b"x\n\n",
        b"x\r",
        b":\nx\n",
        b":\n\nx\n",
        b"data\n",
        b"data:\n\n",
        b"data:\nx\n\n",
        b"data:1\nx\n",
        b"\r\n",
    ],
)
def test_lines_are_not_looked_at_one_by_one(lines: bytes) -> None:
    """65,536 of them fit into a read, which must not hold up everybody: a compiled search passes over them."""
    body = b"data: 0\n\n" + lines * (120_000 // len(lines))
    stream = EventStream()
    events: list[bytes] = []
    steps = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        events += stream.feed(body)
    finally:
        sys.setprofile(None)
    assert events == [b"0"]
    assert steps < 200
    assert events + stream.end() == reference(body)


@pytest.mark.parametrize(
    "endless",
    [b"\n", b":\n", b": keep-alive\n\n", b"data: x\n", b"data:\n\n", b"event: x\n\n", b"x", b"\r\n", b"data: ", b"\r"],
)
@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
def test_what_never_gets_to_an_event_is_refused_in_the_end(endless: bytes, size: int) -> None:
    """One line, one event, or nothing but keep-alives, for ever: and it stays refused, holding no more."""
    limit = 4000
    stream = EventStream(max_event_bytes=limit)
    source = itertools.cycle(endless)
    reads = (bytes(itertools.islice(source, size)) for _ in range(2 * limit // size + 1))  # "\r\n" counts as one
    with pytest.raises(MalformedFrame, match="4000") as caught:
        fed(reads, stream)
    assert caught.value.close_code == 1009
    for _ in range(3):
        with pytest.raises(MalformedFrame):
            stream.feed(endless * 1000)
        assert len(stream._held) <= limit
    with pytest.raises(MalformedFrame):
        stream.end()


def test_an_event_may_be_as_large_as_the_limit_and_no_larger() -> None:
    """Counted from the end of the last, its line ends included, alone in a read or not."""
    event = b"data: " + b"x" * 100 + b"\n\n"
    for limit, whole in ((len(event), True), (len(event) - 1, False)):
        for reads in ([event] * 3, [event * 3], [event[:50], event[50:] + event]):
            stream = EventStream(max_event_bytes=limit)
            if whole:
                assert set(fed(reads, stream)) == {b"x" * 100}
            else:
                with pytest.raises(MalformedFrame):
                    fed(reads, stream)


def test_keepalives_between_events_do_not_add_up() -> None:
    """A long answer with a comment before each of its events is no endless run."""
    stream = EventStream(max_event_bytes=100)
    for _ in range(100):
        for read in (b": ping\n\n", b"data: 1\n\n: ping\n\ndata: 2\n\n: ping\n\n", b"data: 3\n\n"):
            stream.feed(read)
    assert repr(stream) == "<EventStream 0 bytes into an event>"


def test_a_large_event_in_small_reads_is_no_more_than_its_bytes() -> None:
    """Work is linear in what is fed: 4 MiB in reads of 16 bytes take a second; by copying, minutes."""
    limit = 4 << 20
    for body in (b"data: " + b"x" * (limit - 8) + b"\n\n", b"data:\n" * (limit // 6 - 2) + b"data: x\n\n"):
        stream = EventStream(max_event_bytes=limit)
        [event] = fed((body[at : at + 16] for at in range(0, len(body), 16)), stream)
        assert event in (body[6:-2], b"\n" * (limit // 6 - 2) + b"x")
