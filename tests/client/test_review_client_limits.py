"""What must not grow, spin or hang in the clients, however long a daemon is down, deaf or dropping them."""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time

import pytest

from sidecar.client import Client
from sidecar.client.dealer import OPENING
from sidecar.client.endpoint import Places
from sidecar.client.fleet import Fleet
from sidecar.client.link import Link
from sidecar.client.session import Session
from sidecar.errors import CallFailed
from tests.fakes.fake_daemon import FakeDaemon
from tests.fakes.listening_peer import Peer, connected

SILENT = '["accept", "silence"]'


def test_calls_that_ended_unsent_are_not_kept() -> None:
    """A bot that goes on asking while its daemon is down for hours keeps none of the prompts; the last one is sent."""
    session = Session()
    for second in range(1000):
        session.open("x", {"timeout_ms": 10}, now=float(second), mono_us=0)
        session.expire(now=second + 0.5)
    assert len(session._outgoing) < 100
    waiting = [session.open("x", {"timeout_ms": 10}, now=1000.0, mono_us=0) for _ in range(500)]
    session.connection_made()
    sent = 0
    while session.next_payload() is not None:
        session.handed_over()
        sent += 1
    assert sent == 1 + len(waiting)
    assert all(call.handed_over for call in waiting)


def test_who_pings_without_reading_fills_no_memory(peer: Peer) -> None:
    """The answers that the socket does not take are bounded; what was cut goes on where it was cut."""
    link, other = connected(peer)
    calls = [link.session.open("x" * 50_000, {"timeout_ms": 60_000}, now=0.0, mono_us=0) for _ in range(20)]
    link.write()
    assert link.wants_write
    for _ in range(50):
        other.sendall(b"\x04\x0a\x04PING\x00\x10abc" * 100)
        link.read(0.1)
    assert len(link._dealer.reply) < 2000
    assert len(link._rest) < 60_000
    received = b""
    while select.select([other], [], [], 0)[0]:
        received += other.recv(1 << 20)
        link.write()
    assert all(call.handed_over for call in calls)
    assert received.count(b"x" * 50_000) == len(calls)
    assert received.count(b"\x04\x08\x04PONGabc") > 10
    link.close()


def test_a_daemon_that_shakes_hands_and_hangs_up_is_asked_less_and_less(peer: Peer) -> None:
    """A handshake alone earns no quick retry: else a full daemon would be asked 130 times a second by every bot."""
    link, now, waited = Link(peer.endpoint, Session(), now=0.0), 0.0, 0.0
    for _ in range(10):
        other = peer.accept()
        other.sendall(OPENING)
        link.read(now)
        assert link.session.ever_connected
        other.close()
        link.read(now)
        link.read(now)
        assert link.descriptor == -1
        link.bury()
        waited, now = link.due_at - now, link.due_at
        link.tick(now)
    assert 0.5 <= waited <= 1.0
    link.close()


def test_closing_wakes_a_thread_that_waits(daemon: FakeDaemon) -> None:
    """It is told so, long before its deadline."""
    client = Client(daemon.endpoint)
    client.ask("x", timeout_ms=5000)
    codes = []

    def wait() -> None:
        with pytest.raises(CallFailed) as caught:
            client.ask(SILENT, timeout_ms=60_000)
        codes.append(caught.value.code)

    thread = threading.Thread(target=wait)
    thread.start()
    while not any(call["input"] == SILENT for call in daemon.received()):
        time.sleep(0.001)
    time.sleep(0.05)  # it is in `poll` by now, most likely; the verdict hangs on the next line only
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert codes == ["cancelled"]


def test_closing_ends_the_connection_though_a_child_holds_a_copy(peer: Peer) -> None:
    """The daemon need not wait for a forked child to end to know that the bot has gone."""
    fleet = Fleet(Places((peer.endpoint,)), name="", now=0.0)
    other = peer.accept()
    copy = os.dup(fleet.links[0].descriptor)
    fleet.close()
    assert other.recv(1000) == OPENING
    assert other.recv(1000) == b""
    os.close(copy)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket just made, in nobody's hand
def test_a_signal_handler_that_raises_anywhere_leaves_the_client_of_use(daemon: FakeDaemon) -> None:
    """Also between taking the lock and minding it: the next call is answered, and none reached the daemon twice."""

    class RangError(Exception):
        pass

    def ring(*_: object) -> None:
        raise RangError

    dice = random.Random(5)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with Client(daemon.endpoint) as client:
            for _ in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + dice.random() * 0.0012)
                    client.choose("B", ["B"], default="D", timeout_ms=1000)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except RangError:
                    pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert client.choose("B", ["B"], default="D", timeout_ms=5000).reason == "answered"
    finally:
        signal.signal(signal.SIGALRM, before)
    keys = [(call["id"], call["sent_mono_us"]) for call in daemon.received()]
    assert len(keys) == len(set(keys))
