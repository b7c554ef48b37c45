"""What a busy bot, a full table of descriptors, a raising signal handler and a closed loop do to the clients."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.client import AsyncClient, Client
from sidecar.client.dealer import OPENING, frame
from sidecar.client.endpoint import Places, look
from sidecar.client.fleet import Fleet
from sidecar.client.link import Link
from sidecar.client.session import Session
from sidecar.errors import CallFailed
from sidecar.wire import MSGPACK, Failed
from tests.fakes.fake_daemon import FakeDaemon
from tests.fakes.listening_peer import Peer, connected

SILENT = '["accept", "silence"]'


def refusal(name: str) -> bytes:
    """A terminal, as it travels."""
    return frame(MSGPACK.encode({"type": "failed", "id": name, "code": "overloaded", "message": "", "retryable": True}))


def code(call: Any) -> str:
    """How a call failed."""
    assert isinstance(call.ended, Failed)
    return call.ended.code


class Interrupted:
    """A socket below which a signal handler raises as soon as a system call has done its work."""

    def __init__(self, real: socket.socket) -> None:
        self.real, self.armed = real, ""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)

        def call(*arguments: Any) -> Any:
            found = method(*arguments)
            if name == self.armed:
                raise KeyboardInterrupt
            return found

        return call


# ---------------------------------------------------------------------- a bot that looks late


def test_an_answer_that_came_in_time_counts_however_late_the_bot_looks(peer: Peer) -> None:
    """It lay in the socket when the deadline passed; nobody had looked meanwhile."""
    link, other = connected(peer)
    call = link.session.open("p", {"timeout_ms": 100}, now=0.0, mono_us=0)
    link.write()
    other.sendall(refusal(call.id))
    link.tick(60.0)
    assert code(call) == "overloaded"
    link.close()


def test_a_submitted_answer_waits_for_a_busy_bot(daemon: FakeDaemon) -> None:
    """`submit`, work past the deadline, `result`: the answer is there."""
    with Client(daemon.endpoint) as client:
        client.ask("x", timeout_ms=5000)
        handle = client.submit("hello", stream=False, timeout_ms=200)
        link = client._pump.fleet.links[0]
        assert select.select([link.descriptor], [], [], 5)[0]
        time.sleep(0.25)  # past the deadline: no verdict hangs on how far
        assert handle.result().text == "hello"


def test_a_handshake_that_came_in_time_counts_however_late_the_bot_looks(peer: Peer) -> None:
    """A client made at the start of a bot that then loads for a minute is connected when it is first used."""
    link = Link(peer.endpoint, Session(), now=0.0)
    peer.accept().sendall(OPENING)
    link.tick(60.0)
    assert link.session.connected
    link.tick(61.0)
    assert link.session.connected
    link.close()


# ---------------------------------------------------------------------- connecting


def test_no_descriptor_left_is_a_reason_to_try_later(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither making a link nor its ticking raises; once there is one, it connects."""

    def none(*_: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", none)
        link = Link(peer.endpoint, Session(), now=0.0)
        call = link.session.open("p", {"timeout_ms": 50}, now=0.0, mono_us=0)
        assert 0.0 < link.due_at <= 0.010
        link.tick(link.due_at)
        link.tick(0.06)
        assert code(call) == "daemon_unavailable"
    link.tick(link.due_at)
    assert link.descriptor >= 0
    link.close()


def test_choose_without_descriptors_is_the_default_in_time(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asyncio too: the timer that connects again is also the one that keeps the deadline."""

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client, asyncio.timeout(10):
            await client.ask("x", timeout_ms=5000)
            daemon.kill()
            while client._pump.session.connected:
                await asyncio.sleep(0.001)
            daemon.start()
            with monkeypatch.context() as patch:
                patch.setattr("sidecar.client.link.socket.socket", _no_more)
                choice = await client.choose("B", ["B"], default="D", timeout_ms=50)
            assert (choice, choice.reason) == ("D", "daemon_unavailable")
            assert await client.choose("B", ["B"], default="D", timeout_ms=5000) == "B"

    asyncio.run(main())


def _no_more(*_: Any) -> socket.socket:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_full_backlog_neither_blocks_nor_leaks(base: Path) -> None:
    """Connecting is refused for now; the call waits for its deadline, and no descriptor is kept."""
    peer = Peer(base / "s", backlog=0)
    fillers = []
    try:
        while True:
            filler = socket.socket(socket.AF_UNIX)
            filler.setblocking(False)
            fillers.append(filler)
            filler.connect(str(base / "s"))
    except BlockingIOError:
        pass
    before = len(os.listdir("/proc/self/fd"))
    with Client(peer.endpoint) as client:
        choice = client.choose("B", ["B"], default="D", timeout_ms=60)
        assert (choice, choice.reason) == ("D", "daemon_unavailable")
        assert len(os.listdir("/proc/self/fd")) == before
    for one in (*fillers, peer.listener):
        one.close()


def test_a_folder_below_one_that_may_not_be_entered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing at all can be said about the folder of the socket but that."""

    def forbidden(path: Any, **_: Any) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "stat", forbidden)
    obstacle = look("ipc:///closed/inner/s.sock")
    assert obstacle is not None
    assert (obstacle.errno, obstacle.may_pass) == (errno.EACCES, False)
    assert "/closed/inner" in obstacle.message


def test_a_folder_under_tmp_that_goes_while_one_looks_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not raise, and it may pass."""
    with tempfile.TemporaryDirectory(prefix="sidecar-", dir="/tmp") as folder:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/s")

        def gone(path: Any) -> os.stat_result:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "lstat", gone)
            obstacle = look(f"ipc://{folder}/s")
        listener.close()
        assert obstacle is not None
        assert obstacle.may_pass


# ---------------------------------------------------------------------- signal handlers that raise


def test_a_call_interrupted_while_it_was_sent_is_never_sent_again(peer: Peer) -> None:
    """The kernel has it, and the handler raised before we could note that: it is lost, not repeated; others go on."""
    link, other = connected(peer)
    link._socket = interrupted = Interrupted(link._socket)  # type: ignore[assignment, arg-type]
    sent = link.session.open("p", {"timeout_ms": 60_000}, now=0.0, mono_us=0)
    waiting = link.session.open("q", {"timeout_ms": 60_000}, now=0.0, mono_us=0)
    interrupted.armed = "send"
    with pytest.raises(KeyboardInterrupt):
        link.write()
    assert code(sent) == "daemon_lost"
    assert waiting.ended is None
    assert b"c1" in other.recv(1000)
    assert other.recv(1000) == b""  # the daemon knows at once
    link.bury()
    link.tick(0.1)
    again = peer.accept()
    again.sendall(OPENING)
    link.read(0.2)
    received = again.recv(1000)
    assert waiting.handed_over
    assert b"c2" in received
    assert b"c1" not in received
    link.close()


def test_a_pass_interrupted_while_it_was_read_ends_the_connection(peer: Peer) -> None:
    """What was taken from the socket is lost, and the next byte might be the middle of a frame: nothing is guessed."""
    link, other = connected(peer)
    call = link.session.open("p", {"timeout_ms": 60_000}, now=0.0, mono_us=0)
    link.write()
    link._socket = interrupted = Interrupted(link._socket)  # type: ignore[assignment, arg-type]
    interrupted.armed = "recv"
    other.sendall(refusal(call.id)[:20])
    with pytest.raises(KeyboardInterrupt):
        link.read(0.1)
    assert code(call) == "daemon_lost"
    assert not link.session.connected
    assert (link.descriptor, link.stale) == (-1, True)
    link.bury()
    link.tick(0.1)
    assert link.descriptor >= 0
    link.close()


# ---------------------------------------------------------------------- loops and waiters


def test_a_loop_closed_under_a_waiting_task_harms_nobody_in_the_next(daemon: FakeDaemon) -> None:
    """Its task can be woken no more; the client, and its calls in the next loop, go on."""
    client = AsyncClient(daemon.endpoint)
    first = asyncio.new_event_loop()
    handles = []

    async def begin() -> None:
        handle = client.submit(SILENT, timeout_ms=60_000)
        handles.append(handle)
        client._pump.ended(handle._call).add_done_callback(lambda _: None)
        client._pump.changed(handle._call).add_done_callback(lambda _: None)

    first.run_until_complete(begin())
    first.close()

    async def go_on() -> None:
        handles[0].leave()
        assert (await client.ask("one", timeout_ms=5000)).text == "one"

    asyncio.run(go_on())
    client.close()


def test_cancelled_waits_do_not_pile_up(daemon: FakeDaemon) -> None:
    """A reader with a timeout of its own may ask as often as it likes."""

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            handle = client.submit(SILENT, timeout_ms=60_000)
            for _ in range(50):
                for wait in (client._pump.changed, client._pump.ended):
                    wait(handle._call).cancel()
            assert len(handle._call.wake or []) == len(handle._call.wake_at_end or []) == 1

    asyncio.run(main())


# ---------------------------------------------------------------------- several daemons


def test_a_ping_to_an_instance_that_goes_is_ended(peer: Peer, base: Path) -> None:
    """Its socket vanished before it shook hands: the question still has its end, by its timeout."""
    fleet = Fleet(Places((), (f"ipc://{base}/*",)), name="", now=0.0)
    link = fleet.links[0]
    question = link.session.ping(now=0.0, timeout=1.0)
    (base / "s").unlink()
    fleet.tick(0.2)
    assert fleet.links == [link]
    fleet.tick(1.0)
    assert isinstance(question.failure, CallFailed)
    fleet.tick(1.2)
    assert fleet.links == []
    fleet.close()


def test_a_call_that_waits_for_a_stopped_instance_looks_for_another(peer: Peer, base: Path) -> None:
    """The one that is there takes the connection and says nothing; one that comes later is found meanwhile."""
    fleet = Fleet(Places((), (f"ipc://{base}/*",)), name="", now=0.0)
    fleet.home(0.0).open("p", {"timeout_ms": 60_000}, now=0.0, mono_us=0)
    assert fleet.due_at <= 0.1
    other = Peer(base / "t")
    fleet.tick(fleet.due_at)
    assert [link.endpoint for link in fleet.links] == [peer.endpoint, other.endpoint]
    fleet.close()
    other.listener.close()


# ---------------------------------------------------------------------- waiting


def test_the_last_millisecond_is_not_rounded_up(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`poll` is asked for whole milliseconds that are surely over by then, `select` for the rest; neither spins."""
    asked: list[tuple[str, float]] = []

    class Poll:
        def poll(self, timeout: float) -> list[tuple[int, int]]:
            asked.append(("poll", timeout))
            return []

    with Client(peer.endpoint) as client:
        monkeypatch.setattr(client._pump, "_poll", Poll())
        monkeypatch.setattr(select, "select", lambda fds, _w, _x, wait: asked.append((f"select {len(fds)}", wait)))
        client._pump._watched = {7: client._pump.fleet.links[0]}
        for wait in (0.0499, 0.0004, 0.0, -1.0):
            client._pump._wait(wait)
        assert asked == [("poll", 49), ("select 1", 0.0004), ("poll", 0), ("poll", 0), ("poll", 0)]
        asked.clear()
        client._pump._watched = {5000: client._pump.fleet.links[0]}
        client._pump._wait(0.0004)
        assert asked == [("poll", 1)]
        client._pump._watched = {}
