"""Frames: any cut of the bytes gives the same messages, wsproto agrees, and what is not the protocol is refused."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from sidecar.errors import MalformedFrame
from sidecar.transport.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MAX_FRAGMENTS,
    PING,
    PONG,
    TEXT,
    FrameSplitter,
    close_facts,
    encode_client_frame,
)
from tests.fakes.server_frames import encode_server_frame

Messages = list[tuple[int, bytes]]

#: Lengths on both sides of each form of the header.
LENGTHS = st.sampled_from([0, 1, 2, 3, 124, 125, 126, 127, 200, 255, 256, 4096, 65535, 65536, 65537])
PAYLOADS = st.one_of(st.binary(max_size=300), LENGTHS.map(lambda length: b"x" * length))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, Messages]:
    """A well-formed conversation as bytes, and the messages in it."""
    data = bytearray()
    messages: Messages = []
    for _ in range(draw(st.integers(0, 6))):
        opcode = draw(st.sampled_from([TEXT, TEXT, BINARY, PING, PONG]))
        if opcode >= CLOSE:
            frame = encode_server_frame(opcode, draw(st.binary(max_size=125)))
            data += frame
            messages.append((opcode, frame))
            continue
        pieces = draw(st.lists(PAYLOADS, min_size=1, max_size=4))
        for index, piece in enumerate(pieces):
            if index and draw(st.booleans()):
                ping = encode_server_frame(PING, b"in between")
                data += ping
                messages.append((PING, ping))
            data += encode_server_frame(opcode if index == 0 else CONTINUATION, piece, index == len(pieces) - 1)
        messages.append((opcode, b"".join(pieces)))
    return bytes(data), messages


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """`data` in pieces, cut at `places`."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    for start, stop in itertools.pairwise(edges):
        yield data[start:stop]


def take(splitter: FrameSplitter, payloads: list[bytes]) -> Messages:
    """What a feed gave: data messages, then control frames; the order between the two is not told."""
    kinds = [BINARY if index in splitter.binary else TEXT for index in range(len(payloads))]
    return [*zip(kinds, payloads, strict=True), *splitter.controls]


def apart(messages: Messages) -> tuple[Messages, Messages]:
    """Data messages and control frames, each in order."""
    return [m for m in messages if m[0] < CLOSE], [m for m in messages if m[0] >= CLOSE]


def outcome(pieces: list[bytes], **options: int) -> tuple[tuple[Messages, Messages], str | None]:
    """All data messages, salvaged ones included, all control frames, and the fault if there was one."""
    splitter = FrameSplitter(**options)
    messages: Messages = []
    for piece in pieces:
        try:
            messages += take(splitter, splitter.feed(piece))
        except MalformedFrame as fault:
            return apart(messages + take(splitter, splitter.salvaged)), str(fault)
    return apart(messages), None


@given(conversations(), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_any_cut_gives_the_same_messages(conversation: tuple[bytes, Messages], places: list[int]) -> None:
    """However the network cuts the bytes, the messages are those that were sent, in order."""
    data, messages = conversation
    assert outcome(list(cut(data, places))) == (apart(messages), None)


@given(st.lists(PAYLOADS.filter(lambda payload: len(payload) < 500), max_size=5))
def test_byte_by_byte(payloads: list[bytes]) -> None:
    """The worst cut of all, one byte at a time, changes nothing."""
    data = b"".join(encode_server_frame(TEXT, payload) for payload in payloads)
    (messages, _), fault = outcome([data[at : at + 1] for at in range(len(data))])
    assert ([payload for _, payload in messages], fault) == (payloads, None)


RAW_FRAMES = st.builds(
    lambda first, mask, length: bytes((first, mask | length)) + b"m" * (4 if mask else 0) + b"a" * length,
    st.one_of(st.sampled_from([0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A]), st.integers(0, 255)),
    st.sampled_from([0, 0, 0, 0, 0x80]),
    st.sampled_from([0, 2, 125]),
).filter(lambda frame: frame[0] & 0x0F != CLOSE)


def wsproto_outcome(data: bytes) -> tuple[Messages, bool]:
    """What wsproto makes of the same bytes: messages, and whether they are malformed."""
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(data)
    messages: Messages = []
    parts: list[bytes] = []
    try:
        for frame in protocol.received_frames():
            payload = frame.payload.encode() if isinstance(frame.payload, str) else bytes(frame.payload)  # type: ignore[arg-type]
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                messages.append((int(frame.opcode), payload))
                continue
            parts.append(payload)
            if frame.message_finished:
                messages.append((int(frame.opcode), b"".join(parts)))
                parts = []
    except ParseFailed:
        return messages, True
    return messages, False


@given(st.lists(RAW_FRAMES, max_size=6), st.lists(st.integers(0, 2000), max_size=4))
def test_agrees_with_wsproto_on_right_and_wrong_frames(frames: list[bytes], places: list[int]) -> None:
    """Whole frames with any first byte, masked or not: the same messages, and the same verdict, as wsproto's."""
    data = b"".join(frames)
    (messages, controls), fault = outcome(list(cut(data, places)))
    theirs, malformed = wsproto_outcome(data)
    plain = [(opcode, frame[2:]) for opcode, frame in controls]
    assert ((messages, plain), fault is not None) == (apart(theirs), malformed)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_garbage_gives_the_same_outcome_for_any_cut(data: bytes, places: list[int]) -> None:
    """Random bytes never raise anything but MalformedFrame, and the cut decides neither messages nor fault."""
    assert outcome(list(cut(data, places))) == outcome([data])


@given(PAYLOADS, st.binary(min_size=4, max_size=4), st.sampled_from([TEXT, BINARY]))
def test_client_frames_are_read_by_wsproto(payload: bytes, mask: bytes, opcode: int) -> None:
    """What we mask, a server unmasks to the same bytes."""
    if opcode == TEXT:
        payload = payload.hex().encode()
    server = FrameProtocol(client=False, extensions=[])
    server.receive_bytes(encode_client_frame(opcode, payload, mask))
    frames = list(server.received_frames())
    assert b"".join(f.payload.encode() if isinstance(f.payload, str) else f.payload for f in frames) == payload  # type: ignore[misc]
    assert frames[-1].message_finished
    assert frames[0].opcode == opcode


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 65_539, 1 << 20])
def test_long_payloads_are_masked_as_short_ones(length: int) -> None:
    """Both ways to mask give payload XOR mask, the odd last bytes included."""
    payload = bytes(range(256)) * (length // 256) + b"q" * (length % 256)
    frame = encode_client_frame(BINARY, payload, b"\x01\xff\x00\x80")
    assert frame[:2] == (b"\x82\xfe" if length < 65_536 else b"\x82\xff")
    body = frame[-length:]
    assert all(body[at] == payload[at] ^ b"\x01\xff\x00\x80"[at % 4] for at in [*range(9), *range(length - 9, length)])


MALFORMED = {
    "masked": (b"\x81\x85abcdHELLO", 1002),
    "RSV1": (b"\xc1\x01a", 1002),
    "RSV3": (b"\x91\x01a", 1002),
    "reserved data opcode": (b"\x83\x01a", 1002),
    "reserved control opcode": (b"\x8b\x00", 1002),
    "control frame over 125": (b"\x89\x7e\x00\x7e" + b"a" * 126, 1002),
    "fragmented ping": (b"\x09\x00", 1002),
    "continuation of nothing": (b"\x80\x01a", 1002),
    "text inside text": (b"\x01\x01a\x81\x01b", 1002),
    "binary inside text": (b"\x01\x01a\x02\x01b", 1002),
    "16-bit length for 5": (b"\x81\x7e\x00\x05HELLO", 1002),
    "64-bit length for 5": (b"\x81\x7f" + (5).to_bytes(8, "big") + b"HELLO", 1002),
    "64-bit length for 65535": (b"\x81\x7f" + (65_535).to_bytes(8, "big"), 1002),
    "length with the top bit": (b"\x81\x7f" + b"\xff" * 8, 1002),
    "giant": (b"\x81\x7f" + (1 << 40).to_bytes(8, "big"), 1009),
    "one byte too long": (b"\x81\x7f" + ((1 << 20) + 1).to_bytes(8, "big"), 1009),
    "too long in fragments": (encode_server_frame(TEXT, b"a" * (1 << 20), False) + b"\x00\x01", 1009),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("step", [1, 7, 1 << 21])
def test_malformed(name: str, step: int) -> None:
    """Each way to break the protocol is refused with its close code, and again at every later feed."""
    data, code = MALFORMED[name]
    if len(data) > 10_000:
        step = max(step, 4096)
    splitter = FrameSplitter()
    with pytest.raises(MalformedFrame) as caught:  # noqa: PT012 - any of the feeds may be the one
        for at in range(0, len(data), step):
            splitter.feed(data[at : at + step])
    assert caught.value.close_code == code
    with pytest.raises(MalformedFrame):
        splitter.feed(encode_server_frame(TEXT, b"as if nothing had been"))


def test_header_faults_are_seen_before_the_payload_comes() -> None:
    """Two bytes suffice to refuse a masked frame; a giant one is refused before a byte of it is kept."""
    with pytest.raises(MalformedFrame):
        FrameSplitter().feed(b"\x81\xff")
    splitter = FrameSplitter(max_message_bytes=1000)
    with pytest.raises(MalformedFrame) as caught:
        splitter.feed(encode_server_frame(TEXT, b"a" * 1001)[:4])
    assert caught.value.close_code == 1009


def test_limit_is_inclusive_whole_and_in_fragments() -> None:
    """max_message_bytes exactly is taken; one more is not, however it is divided."""
    assert FrameSplitter(max_message_bytes=1000).feed(encode_server_frame(TEXT, b"a" * 1000)) == [b"a" * 1000]
    two = encode_server_frame(TEXT, b"a" * 500, False) + encode_server_frame(CONTINUATION, b"b" * 500)
    assert FrameSplitter(max_message_bytes=1000).feed(two) == [b"a" * 500 + b"b" * 500]
    with pytest.raises(MalformedFrame):
        FrameSplitter(max_message_bytes=999).feed(two)
    with pytest.raises(ValueError, match="at least 125"):
        FrameSplitter(max_message_bytes=10)


def test_endless_empty_fragments_end() -> None:
    """Fragments without a byte in them do not come for ever, and cost no memory."""
    splitter = FrameSplitter()
    splitter.feed(b"\x01\x00")
    with pytest.raises(MalformedFrame) as caught:  # noqa: PT012
        for _ in range(MAX_FRAGMENTS):
            splitter.feed(b"\x00\x00")
    assert caught.value.close_code == 1009


def test_what_was_whole_before_a_fault_is_salvaged() -> None:
    """An answer complete before the garbage in the same read is not lost."""
    splitter = FrameSplitter()
    with pytest.raises(MalformedFrame):
        splitter.feed(encode_server_frame(TEXT, b"done") + b"\xff\xff\xff")
    assert splitter.salvaged == [b"done"]
    with pytest.raises(MalformedFrame):
        splitter.feed(b"")
    assert splitter.salvaged == []


def test_nothing_counts_after_close() -> None:
    """Bytes behind a Close frame are dropped, in the same read and later."""
    close = encode_server_frame(CLOSE, b"\x03\xe9bye")
    splitter = FrameSplitter()
    assert (splitter.feed(close + b"\xff\xff garbage"), splitter.controls) == ([], [(CLOSE, close)])
    assert splitter.feed(encode_server_frame(TEXT, b"late")) == []


def test_a_long_message_in_small_reads_keeps_memory_bounded() -> None:
    """A 1 MiB frame in tiny reads holds about its own size, not a list of fragments of it."""
    data = encode_server_frame(BINARY, b"z" * (1 << 20))
    splitter = FrameSplitter()
    tracemalloc.start()
    try:
        messages = [message for at in range(0, len(data), 64) for message in splitter.feed(data[at : at + 64])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(payload) for payload in messages] == [1 << 20]
    assert peak < 5 << 20


@pytest.mark.parametrize(
    ("payload", "facts"),
    [
        (b"", (1005, "")),
        (b"\x03\xe9", (1001, "")),
        (b"\x03\xf4busy", (1012, "busy")),
        (b"\x11\x32\xff\xfe", (4402, "��")),
    ],
)
def test_close_facts(payload: bytes, facts: tuple[int, str]) -> None:
    """Code and reason of a Close frame; a reason that is not UTF-8 is shown as well as it can be."""
    assert close_facts(encode_server_frame(CLOSE, payload)) == facts


@pytest.mark.parametrize(
    "payload", [b"\x03", b"\x00\x00", b"\x03\xe7", b"\x03\xed", b"\x03\xee", b"\x03\xf7", b"\xff\xff"]
)
def test_impossible_close_codes(payload: bytes) -> None:
    """Half a code, and codes that must not be sent, are malformed."""
    with pytest.raises(MalformedFrame):
        close_facts(encode_server_frame(CLOSE, payload))
