"""One connection, against a socket of the test's own: liars, drips, a daemon that reads nothing, one that goes."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.client.calls import OpenCall
from sidecar.client.dealer import OPENING, frame
from sidecar.client.link import Link
from sidecar.client.session import Session
from sidecar.wire import Failed
from tests.fakes.listening_peer import Peer

#: What a ROUTER says: its handshake differs from a DEALER's only in a name that nobody looks at.
HANDSHAKE = OPENING


def made(peer: Peer, *, now: float = 0.0) -> tuple[Link, socket.socket]:
    """A link whose handshake is done, and the other end, its greeting read."""
    link = Link(peer.endpoint, Session(), now=now)
    other = peer.accept()
    assert other.recv(len(OPENING), socket.MSG_WAITALL) == OPENING
    other.sendall(HANDSHAKE)
    link.read(now)
    assert link.session.connected
    assert messages(other.recv(1000)) == [{"type": "hello", "name": "", "batch": True}]
    return link, other


def messages(data: bytes) -> list[Any]:
    """The frames of a stream that are whole, decoded."""
    found = []
    while len(data) > 9:
        size, start = (struct.unpack("!Q", data[1:9])[0], 9) if data[0] & 2 else (data[1], 2)
        if len(data) < start + size:
            break
        found.append(msgspec.msgpack.decode(data[start : start + size]))
        data = data[start + size :]
    return found


def opened(link: Link, prompt: str = "p", **wishes: Any) -> OpenCall:
    """A call that was handed over as far as the socket takes it."""
    call = link.session.open(prompt, wishes, now=0.0, mono_us=0)
    link.write()
    return call


def code(call: OpenCall) -> str:
    """The code it failed with."""
    assert isinstance(call.ended, Failed)
    return call.ended.code


def test_a_hello_follows_the_handshake_by_itself(peer: Peer) -> None:
    """And nothing precedes it; then calls go at once."""
    link, other = made(peer)
    call = opened(link)
    assert call.handed_over
    assert messages(other.recv(1000)) == [{"type": "call", "id": "c1", "input": "p", "sent_mono_us": 0}]
    link.close()


def test_nothing_is_handed_over_before_the_handshake(peer: Peer) -> None:
    """A stopped daemon: the kernel takes the connection, and the call waits here."""
    link = Link(peer.endpoint, Session(), now=0.0)
    other = peer.accept()
    call = opened(link, timeout_ms=100)
    assert not call.handed_over
    link.tick(0.2)
    assert code(call) == "daemon_unavailable"
    other.sendall(HANDSHAKE)
    link.read(0.3)
    received = other.recv(1000)[len(OPENING) :]
    assert [message["type"] for message in messages(received)] == ["hello"]
    link.close()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64), HANDSHAKE + b"\xff" * 9, b"\x04\x01x"]
)
def test_who_speaks_no_zmtp_is_left_and_tried_again_later(peer: Peer, said: bytes) -> None:
    """Not at once: the connection is given up, the next is made when it is due, and the call waits for it."""
    link = Link(peer.endpoint, Session(), now=0.0)
    call = opened(link, timeout_ms=60_000)
    peer.accept().sendall(said)
    link.read(1.0)
    assert (link.descriptor, link.stale, link.session.connected) == (-1, True, False)
    assert 1.0 < link.due_at <= 1.1
    link.bury()
    link.tick(1.0)
    assert link.descriptor == -1
    link.tick(link.due_at)
    other = peer.accept()
    other.sendall(HANDSHAKE)
    link.read(1.2)
    assert call.handed_over
    link.close()


def test_a_handshake_that_does_not_come_is_given_up(peer: Peer) -> None:
    """After five seconds; a drip of bytes does not stretch it."""
    link = Link(peer.endpoint, Session(), now=0.0)
    other = peer.accept()
    other.sendall(HANDSHAKE[:30])
    link.read(4.0)
    assert link.due_at == 5.0
    link.tick(4.9)
    assert link.descriptor >= 0
    link.tick(5.0)
    assert link.descriptor == -1
    link.close()


def test_retries_slow_down_to_a_tenth_of_a_second() -> None:
    """Nobody listens, a call waits: ten tries take between a quarter and a whole second, not a storm."""
    link, now = Link("ipc:///nowhere/at/all.sock", Session(), now=0.0), 0.0
    link.session.open("p", {"timeout_ms": 60_000}, now=0.0, mono_us=0)
    for _ in range(10):
        assert 0.005 <= link.due_at - now <= 0.1
        now = link.due_at
        link.tick(now)
    assert 0.25 < now < 1.0
    obstacle = link.obstacle()
    assert obstacle is not None
    assert "ENOENT" in obstacle.message
    link.close()


@pytest.mark.parametrize(("stood", "at_once"), [(0.5, False), (1.0, True)])
def test_after_a_loss_the_next_daemon_is_tried_at_once(peer: Peer, stood: float, at_once: bool) -> None:
    """A bot that was busy while the daemon was restarted waits for nothing; one that is taken and dropped does."""
    link, other = made(peer)
    other.close()
    link.read(stood)
    assert not link.session.connected
    assert (link.due_at == stood) == at_once
    link.bury()
    peer.listener.close()
    link.tick(link.due_at)
    assert stood + 0.005 <= link.due_at <= stood + 0.031
    link.close()


def test_a_folder_of_somebody_else_under_tmp_is_never_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it could read the prompts: not even the greeting goes there."""
    with tempfile.TemporaryDirectory(prefix="sidecar-", dir="/tmp") as folder:
        peer = Peer(Path(folder) / "s")
        os.chown(folder, 4242, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 4242)
        link = Link(peer.endpoint, Session(), now=0.0)
        assert link.descriptor == -1
        obstacle = link.obstacle()
        assert obstacle is not None
        assert "could read your prompts" in obstacle.message
        peer.listener.close()


def test_what_a_daemon_said_with_its_last_breath_counts(peer: Peer) -> None:
    """Its terminal is read, though sending to it fails already; what was not sent waits for the next connection."""
    link, other = made(peer)
    answered, lost = opened(link), opened(link)
    refusal = {"type": "failed", "id": answered.id, "code": "overloaded", "message": "m", "retryable": True}
    other.sendall(frame(msgspec.msgpack.encode(refusal)))
    other.close()
    waiting = opened(link)
    assert not waiting.handed_over
    link.read(0.1)
    link.read(0.1)
    assert (code(answered), code(lost), waiting.ended) == ("overloaded", "daemon_lost", None)
    link.bury()
    link.tick(link.due_at)
    again = peer.accept()
    again.sendall(HANDSHAKE)
    link.read(0.2)
    received = messages(again.recv(1000)[len(OPENING) :])
    assert [(message["type"], message.get("id")) for message in received] == [
        ("hello", None),
        ("call", waiting.id),
    ]
    link.close()


def test_a_daemon_that_reads_nothing_gets_what_the_kernel_takes_and_the_rest_later(peer: Peer) -> None:
    """Frames cut by a full buffer go on where they were cut, once, in order."""
    link, other = made(peer)
    calls = [opened(link, "x" * 60_000, timeout_ms=60_000) for _ in range(20)]
    assert link.wants_write
    assert link.stale
    assert 0 < sum(call.handed_over for call in calls) < 20
    received = b""
    while len(received) < 20 * 60_000:
        received += other.recv(1 << 20)
        link.write()
    assert [message["id"] for message in messages(received)] == [call.id for call in calls]
    assert all(call.handed_over for call in calls)
    assert not link.wants_write
    link.close()


def test_a_call_cut_in_the_middle_is_never_begun_again(peer: Peer) -> None:
    """Half of it went to a daemon that died: lost, and not sent to the next one."""
    link, other = made(peer)
    calls = [opened(link, "x" * 60_000, timeout_ms=60_000) for _ in range(20)]
    handed = [call for call in calls if call.handed_over]
    other.close()
    link.read(0.1)
    assert {code(call) for call in handed} == {"daemon_lost"}
    link.bury()
    link.tick(link.due_at)
    again = peer.accept()
    again.sendall(HANDSHAKE)
    link.read(0.2)
    received = b""
    while len(received) < (20 - len(handed)) * 60_000:
        received += again.recv(1 << 20)
        link.write()
    sent = [message["id"] for message in messages(received[len(OPENING) :]) if message["type"] == "call"]
    assert sent == [call.id for call in calls if call not in handed]
    link.close()


def test_a_ping_of_zmtp_is_answered(peer: Peer) -> None:
    """Some libraries send them; the connection stands."""
    link, other = made(peer)
    other.sendall(b"\x04\x0a\x04PING\x00\x10abc")
    link.read(0.1)
    assert other.recv(100) == b"\x04\x08\x04PONGabc"
    link.close()


def test_closing_twice_is_nothing(peer: Peer) -> None:
    """And a closed link reads, writes and connects no more."""
    link, other = made(peer)
    link.close()
    link.close()
    link.read(1.0)
    link.write()
    link.tick(99.0)
    assert other.recv(100) == b""


def _tries(link: Link, seconds: float) -> int:
    """How often it tries within so many seconds."""
    now, tries = 0.0, 0
    while (now := max(now, link.due_at)) < seconds:
        link.tick(now)
        tries += 1
    return tries


def test_a_bot_with_nothing_to_say_asks_once_a_second(tmp_path: Path) -> None:
    """While the daemon is down and nothing waits, tries become seldom; a call that waits has them often again."""
    link = Link(f"ipc://{tmp_path}/none", Session(), now=0.0)
    assert _tries(link, 60.0) < 60 / 0.5 + 10
    link.hurry(61.0)
    assert link.due_at < 61.1
    link.session.open("p", {"timeout_ms": 60_000}, now=61.0, mono_us=0)
    before, now = link.due_at, 61.0
    tries = 0
    while (now := max(now, link.due_at)) < 71.0:
        link.tick(now)
        tries += 1
    assert before < 61.1
    assert tries > 90
    link.close()


def test_a_daemon_that_came_meanwhile_is_found_by_the_first_call(peer: Peer) -> None:
    """However long the next try is put off: who begins a call tries at once."""
    missing = peer.endpoint + ".later"
    link = Link(missing, Session(), now=0.0)
    _tries(link, 30.0)
    assert link.due_at > 30.0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(missing.removeprefix("ipc://"))
        listener.listen()
        link.hurry(30.0)
        assert link.descriptor >= 0
    link.close()
