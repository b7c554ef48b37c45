"""ZMTP as the clients speak it, byte by byte: against libzmq elsewhere, against liars here."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.client.dealer import MAX_FRAME_BYTES, OPENING, Dealer, NotTheDaemonError, frame

GREETING = OPENING[:64]
READY = OPENING[64:]


def command(body: bytes) -> bytes:
    """A command frame."""
    return bytes((4, len(body))) + body


def standing() -> Dealer:
    """A dealer whose handshake is done."""
    dealer = Dealer()
    assert dealer.receive(GREETING + READY) == []
    assert dealer.ready
    return dealer


def test_the_opening_is_what_rfc_23_says() -> None:
    """Signature, version 3.0, NULL, not a server, filler; then READY with the socket's type and no name of its own."""
    greeting = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    assert len(greeting) == 64
    assert greeting + command(ready) == OPENING


@settings(deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=8), st.data())
def test_messages_come_out_whole_however_they_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    """Greeting, READY and frames in any portions: the same payloads, in order, each once."""
    stream = GREETING + READY + b"".join(map(frame, payloads))
    dealer, found, position = Dealer(), [], 0
    while position < len(stream):
        step = data.draw(st.integers(1, len(stream) - position))
        found += dealer.receive(stream[position : position + step])
        position += step
    assert dealer.ready
    assert found == payloads


def test_a_large_frame_is_gathered_once() -> None:
    """A mebibyte in pieces of 64 KiB, with a small message behind it."""
    dealer, stream = standing(), frame(b"x" * (1 << 20)) + frame(b"next")
    found = [one for at in range(0, len(stream), 1 << 16) for one in dealer.receive(stream[at : at + (1 << 16)])]
    assert found == [b"x" * (1 << 20), b"next"]


def test_of_several_frames_the_last_is_the_payload() -> None:
    """The daemon sends no such thing."""
    assert standing().receive(b"\x01\x01a" + b"\x01\x00" + frame(b"payload")) == [b"payload"]


def test_a_ping_is_answered_with_its_context() -> None:
    """ZMTP 3.1: the time to live goes, the context comes back; other commands mean nothing."""
    dealer = standing()
    assert dealer.receive(command(b"\x04PING\x00\x10abc") + command(b"\x09SUBSCRIBE") + frame(b"p")) == [b"p"]
    assert dealer.reply == command(b"\x04PONGabc")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0",
        GREETING[:9] + b"\x7e" + GREETING[10:],
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING[:12] + b"CURVE" + GREETING[17:],
        GREETING + frame(b"too early"),
        GREETING + command(b"\x05ERROR\x02no"),
        GREETING + READY + b"\x08\x00",
        GREETING + READY + b"\xff" * 20,
        GREETING + READY + struct.pack("!BQ", 2, MAX_FRAME_BYTES + 1),
        GREETING + READY + struct.pack("!BQ", 2, 2**64 - 1),
    ],
)
def test_what_is_no_daemon_is_refused(said: bytes) -> None:
    """Another protocol, another version or mechanism, a message before READY, ERROR, flags of no meaning, giants."""
    with pytest.raises(NotTheDaemonError):
        Dealer().receive(said)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_any_bytes_are_payloads_or_a_refusal(said: bytes, after: bool) -> None:
    """Nothing else is raised, and nothing kept grows by more than was said."""
    dealer = standing() if after else Dealer()
    try:
        found = dealer.receive(said)
    except NotTheDaemonError:
        return
    assert sum(map(len, found)) + len(dealer._rest) <= len(said)
