"""ZMTP as a ROUTER speaks it, without sockets: however the bytes come, the same messages, and nothing unbounded."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.client.dealer import OPENING, Dealer, frame
from sidecar.transport.zmtp import (
    ENVELOPE_ROOM,
    FRAME_COST,
    FRAMES_KEPT,
    GREETING,
    LONG,
    LONG_HEADER,
    MAX_COMMAND_BYTES,
    MAX_FRAMES,
    READY,
    SHORT_HEADERS,
    STEP_FRAMES,
    Refused,
    Zmtp,
    command,
    frames_before,
)

LIMIT = 1000
HELLO = OPENING[:64]


def framed(*frames: bytes) -> bytes:
    """A message as it travels."""
    size = len(frames[-1])
    return frames_before(frames[:-1]) + (SHORT_HEADERS[size] if size < 256 else LONG_HEADER(LONG, size)) + frames[-1]


def ready(kind: bytes = b"DEALER", identity: bytes = b"", *more: tuple[bytes, bytes]) -> bytes:
    """READY with these properties."""
    body = b""
    for name, value in ((b"Socket-Type", kind), (b"Identity", identity), *more):
        body += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return command(b"READY", body)


def fed(zmtp: Zmtp, data: bytes) -> list[list[bytes]]:
    """The messages that are whole with these bytes."""
    found = []
    if zmtp.feed(data):
        while zmtp.pending:
            message = zmtp.advance()
            if message is not None:
                found.append(message)
    return found


def dripped(zmtp: Zmtp, data: bytes) -> None:
    """Byte by byte."""
    for at in range(len(data)):
        fed(zmtp, data[at : at + 1])


def repeated(zmtp: Zmtp, data: bytes, times: int) -> None:
    """Again and again."""
    for _ in range(times):
        fed(zmtp, data)


def shaken() -> Zmtp:
    """After the handshake."""
    zmtp = Zmtp(max_frame_bytes=LIMIT)
    assert fed(zmtp, OPENING) == []
    assert zmtp.ready
    zmtp.out.clear()
    return zmtp


STREAM = OPENING + framed(b"one") + command(b"PING", b"\0\0ctx") + framed(b"", b"q" * 300) + framed(b"a", b"", b"")
MESSAGES = [[b"one"], [b"", b"q" * 300], [b"a", b"", b""]]


def test_what_we_say_is_what_our_own_client_understands() -> None:
    """Greeting and READY end its handshake; a message is a payload there."""
    dealer = Dealer()
    assert dealer.receive(GREETING + READY) == []
    assert dealer.ready
    assert dealer.receive(framed(b"x" * 255) + framed(b"x" * 256)) == [b"x" * 255, b"x" * 256]
    assert frame(b"x" * 256) == framed(b"x" * 256)


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_it_does_not_matter_where_the_bytes_are_cut(cut: int) -> None:
    """Two pieces, at every byte."""
    zmtp = Zmtp(max_frame_bytes=LIMIT)
    assert fed(zmtp, STREAM[:cut]) + fed(zmtp, STREAM[cut:]) == MESSAGES
    assert zmtp.out == [READY, command(b"PONG", b"ctx")]


@given(st.lists(st.integers(1, 200), min_size=1))
def test_any_pieces_give_the_same_messages(sizes: list[int]) -> None:
    """Many pieces of any size, single bytes among them."""
    zmtp, found, at = Zmtp(max_frame_bytes=LIMIT), [], 0
    while at < len(STREAM):
        size = sizes[at % len(sizes)]
        found += fed(zmtp, STREAM[at : at + size])
        at += size
    assert found == MESSAGES


@settings(max_examples=300)
@given(st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=FRAMES_KEPT), max_size=8), st.randoms())
def test_messages_of_any_frames_come_as_they_were(messages: list[list[bytes]], dice: random.Random) -> None:
    """Short and long frames, empty ones, commands between the frames of a message."""
    data = b""
    for frames in messages:
        for number, one in enumerate(frames):
            if dice.random() < 0.2:
                data += command(b"PING", b"\0\0")
            last = number == len(frames) - 1
            data += framed(one) if last else frames_before((one,))
    zmtp = Zmtp(max_frame_bytes=LIMIT)
    wanted = [frames for frames in messages if sum(map(len, frames)) <= LIMIT + ENVELOPE_ROOM]
    assert fed(zmtp, OPENING + data) == wanted


@settings(max_examples=500)
@given(st.binary(min_size=1, max_size=600), st.booleans())
def test_random_bytes_end_the_connection_or_are_messages(noise: bytes, greeted: bool) -> None:
    """Nothing but `Refused` is ever raised, before the handshake and after it."""
    zmtp = shaken() if greeted else Zmtp(max_frame_bytes=LIMIT)
    try:
        for message in fed(zmtp, noise):
            assert all(len(one) <= LIMIT for one in message)
    except Refused:
        pass


@settings(max_examples=500)
@given(st.data())
def test_a_damaged_byte_ends_the_connection_or_changes_a_message(data: st.DataObject) -> None:
    """A good stream with one byte wrong."""
    at = data.draw(st.integers(0, len(STREAM) - 1))
    damaged = bytearray(STREAM)
    damaged[at] = data.draw(st.integers(0, 255))
    try:
        fed(Zmtp(max_frame_bytes=LIMIT), bytes(damaged))
    except Refused:
        pass


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"\x01\x00", "1.0"),
        (b"GET / HTTP/1.1", "no ZMTP"),
        (b"\xff" + bytes(8) + b"\x7f\x01", "not ZMTP 3"),
        (b"\xff" + bytes(8) + b"\x7f\x00", "not ZMTP 3"),
        (b"\xff" + bytes(8) + b"\x00\x03", "not ZMTP 3"),
    ],
)
def test_an_older_peer_is_refused_by_its_first_bytes(first: bytes, why: str) -> None:
    """It would wait for more from us before it says more; nothing is sent that it could misread."""
    zmtp = Zmtp(max_frame_bytes=LIMIT)
    with pytest.raises(Refused, match=why) as refused:
        fed(zmtp, first)
    assert refused.value.farewell == b""


@pytest.mark.parametrize("mechanism", [b"PLAIN", b"CURVE", b"", b"NULLX"])
def test_another_mechanism_is_told_why(mechanism: bytes) -> None:
    """ERROR, as RFC 23 has it, and the end."""
    with pytest.raises(Refused) as refused:
        fed(Zmtp(max_frame_bytes=LIMIT), HELLO[:12] + mechanism.ljust(20, b"\0") + HELLO[32:])
    assert refused.value.farewell[2:].startswith(b"\x05ERROR")


@pytest.mark.parametrize("kind", [b"SUB", b"PUSH", b"", b"dealer", b"PAIR"])
def test_a_socket_that_does_not_go_with_a_router_is_told_why(kind: bytes) -> None:
    """RFC 28: DEALER, REQ and ROUTER do."""
    with pytest.raises(Refused) as refused:
        fed(Zmtp(max_frame_bytes=LIMIT), HELLO + ready(kind))
    assert b"ROUTER" in refused.value.farewell


def test_properties_are_read_in_any_order_and_case() -> None:
    """Unknown ones are passed over, the identity is kept."""
    zmtp = Zmtp(max_frame_bytes=LIMIT)
    body = b"\x03X-Y\0\0\0\x01z" + b"\x08IDENTITY\0\0\0\x02me" + b"\x0bsocket-type\0\0\0\x03REQ"
    fed(zmtp, HELLO + command(b"READY", body))
    assert (zmtp.ready, zmtp.identity) == (True, b"me")


@pytest.mark.parametrize(
    "after",
    [
        framed(b"too soon"),
        command(b"PING", b"\0\0"),
        command(b"HELLO", b""),
        command(b"ERROR", b"\x02no"),
        command(b"READY", b"\x0bSocket-Type\0\0\0\xffDEALER"),
        command(b"READY", b"\x0bSocket-Type\0\0"),
        command(b"READY", b"\xffx"),
        b"\x04\x01\x00",
        b"\x05\x06\x05READY",
        b"\x08\x00",
        LONG_HEADER(6, MAX_COMMAND_BYTES + 1),
    ],
    ids=range(11),
)
def test_nothing_but_a_whole_ready_follows_the_greeting(after: bytes) -> None:
    """Everything else is the end."""
    with pytest.raises(Refused):
        fed(Zmtp(max_frame_bytes=LIMIT), HELLO + after)


@pytest.mark.parametrize(
    "bad",
    [
        LONG_HEADER(LONG, LIMIT + 1),
        LONG_HEADER(LONG, 1 << 63),
        LONG_HEADER(LONG | 1, (1 << 64) - 1),
        LONG_HEADER(6, 1 << 62),
        b"\x08\x01",
        b"\x80\x01",
        b"\x05\x02",
        b"\x04\x00",
        command(b"PING", b"\0"),
        command(b"ERROR", b"\0"),
    ],
    ids=range(10),
)
def test_a_bad_header_is_judged_before_its_bytes_come(bad: bytes) -> None:
    """Giant lengths, reserved flags, commands that are none, also when they drip."""
    with pytest.raises(Refused):
        fed(shaken(), bad)
    with pytest.raises(Refused):
        dripped(shaken(), bad)


def test_a_ping_is_answered_with_its_context() -> None:
    """At most 16 bytes of it; its TTL is told; a PONG and unknown commands are passed over."""
    zmtp = shaken()
    assert fed(zmtp, command(b"PING", b"\0\x1e" + b"c" * 40) + command(b"PONG", b"") + command(b"WHAT", b"x")) == []
    assert (zmtp.out, zmtp.ttl) == ([command(b"PONG", b"c" * 16)], 30)


def test_a_long_message_is_one_whole_frame_or_none() -> None:
    """Up to the limit in any pieces."""
    zmtp = shaken()
    data = framed(b"x" * LIMIT)
    assert fed(zmtp, data[:500]) == []
    assert fed(zmtp, data[500:] + framed(b"y")) == [[b"x" * LIMIT], [b"y"]]


def test_of_many_frames_the_first_are_kept() -> None:
    """They are one message, which is malformed for those who want a payload."""
    (message,) = fed(shaken(), framed(*[b"x"] * 10_000))
    assert message == [b"x"] * FRAMES_KEPT


@pytest.mark.parametrize("one", [frames_before((b"",)), frames_before((b"x" * LIMIT,))], ids=["empty", "long"])
def test_a_message_without_an_end_is_ended(one: bytes) -> None:
    """By the number of its frames or by their bytes, and hardly anything of it is kept."""
    zmtp = shaken()
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="without an end"):
            repeated(zmtp, one, MAX_FRAMES + 1)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept <= peak < 100_000


def test_one_step_is_short() -> None:
    """A read full of the smallest frames, or commands, is gone through in steps; each tells what it cost."""
    for flood in (frames_before((b"",)), command(b"PING", b"\0\0")):
        zmtp = shaken()
        zmtp.feed(flood * 2000)
        steps = 0
        while zmtp.pending:
            assert zmtp.advance() is None
            assert len(zmtp.out) <= STEP_FRAMES
            assert zmtp.spent >= FRAME_COST * min(STEP_FRAMES, 2000 - STEP_FRAMES * steps)
            zmtp.out.clear()
            steps += 1
        assert steps == 4


def test_dripping_is_linear() -> None:
    """What is gathered is looked at when its header is whole and when its end is there, not with every piece."""
    for size in (200, 1 << 16):
        zmtp = Zmtp(max_frame_bytes=size)
        fed(zmtp, OPENING)
        looks = 0
        for byte in framed(b"x" * size):
            if zmtp.feed(bytes((byte,))):
                looks += 1
                found = zmtp.advance()
        assert found == [b"x" * size]
        assert looks <= 3
