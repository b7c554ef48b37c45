"""Clients of several daemons at once, over real ipc. Bounds on time are generous; no verdict hangs on a narrow one."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.client import AsyncClient, Client, fleet
from sidecar.errors import CallFailed, DaemonGone
from tests.fakes.fake_daemon import FakeDaemon

SIDES = ["BUY", "SELL", "HOLD"]
SILENT = json.dumps(["accept", "silence"])
#: Against "never". How exact it is, benchmarks say, which compare: a test only asks whether the caller was let go, on a
#: machine where a process may be held for a second.
LATE_S = 10.0


@pytest.fixture
def base() -> Iterator[Path]:
    """A short folder: socket paths are."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def two(base: Path) -> Iterator[list[FakeDaemon]]:
    """Two daemons, each in a folder of its instance; not started."""
    for name in "ab":
        (base / f"sidecar-{name}").mkdir()
    with FakeDaemon(base / "sidecar-a") as one, FakeDaemon(base / "sidecar-b") as other:
        yield [one, other]


def pattern(base: Path) -> str:
    """Finds them all."""
    return f"ipc://{base}/sidecar-*/fake.sock"


def both(two: list[FakeDaemon]) -> str:
    """Both started, and named."""
    return ",".join(daemon.start().endpoint for daemon in two)


def until_connected(client: Client, number: int) -> None:
    """So many of its daemons have shaken hands."""
    while sum(link.session.connected for link in client._pump.fleet.links) != number:
        client._pump.turn(0.1)


def calls(two: list[FakeDaemon]) -> list[int]:
    """How many reached each."""
    return [len(daemon.received()) for daemon in two]


def test_open_calls_are_spread_evenly(two: list[FakeDaemon]) -> None:
    """Each daemon gets half of those that stay open, and a cancel goes where its call went."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        handles = [client.submit(SILENT, timeout_ms=20_000) for _ in range(20)]
        while not all(handle.accepted for handle in handles):
            handles[0].poll(50)
        assert calls(two) == [10, 10]
        for handle in handles:
            handle.leave()
        while [len(daemon.received("cancel")) for daemon in two] != [10, 10]:
            client.ping()
    for daemon in two:
        cancels = {message["id"] for message in daemon.received("cancel")}
        assert cancels == {message["id"] for message in daemon.received()}


def test_the_less_busy_daemon_gets_the_next_call(two: list[FakeDaemon]) -> None:
    """Ten open on one of them: the following ten go to the other."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        busy = client._pump.fleet.links[0].session
        for _ in range(10):
            busy.open(SILENT, {"timeout_ms": 20_000}, now=time.monotonic(), mono_us=time.monotonic_ns() // 1000)
        for _ in range(10):
            client.submit(SILENT, timeout_ms=20_000)
        assert [link.session.open_calls for link in client._pump.fleet.links] == [10, 10]


def test_streams_and_answers_come_from_both(two: list[FakeDaemon]) -> None:
    """asyncio: a hundred calls at once over two daemons, each its own text."""

    async def main() -> None:
        async with AsyncClient(both(two)) as client, asyncio.timeout(30):
            while not all(link.session.connected for link in client._pump.fleet.links):
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*(client.ask(f"n{number}", timeout_ms=20_000) for number in range(100)))
            assert [answer.text for answer in answers] == [f"n{number}" for number in range(100)]

    asyncio.run(main())
    assert min(calls(two)) > 20


def test_a_call_refused_as_draining_moves_within_its_deadline(two: list[FakeDaemon]) -> None:
    """The other daemon answers it, with the instant of its first sending; the draining one is left aside."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        two[0].refuse("draining")
        assert [client.ask(f"n{number}", timeout_ms=20_000).text for number in range(8)] == [
            f"n{number}" for number in range(8)
        ]
        assert calls(two) == [1, 8]
        (moved,) = two[0].received()
        again = [call for call in two[1].received() if call["id"] == moved["id"]]
        assert [call["sent_mono_us"] for call in again] == [moved["sent_mono_us"]]


def test_a_moved_call_of_an_asyncio_client(two: list[FakeDaemon]) -> None:
    """The waiting task sees one answer, and no refusal."""

    async def main() -> None:
        async with AsyncClient(both(two)) as client, asyncio.timeout(30):
            while not all(link.session.connected for link in client._pump.fleet.links):
                await asyncio.sleep(0.01)
            two[1].refuse("draining")
            for number in range(6):
                assert (await client.ask(f"n{number}", timeout_ms=20_000)).text == f"n{number}"

    asyncio.run(main())
    assert calls(two) == [6, 1]


def test_where_all_are_draining_the_refusal_is_told(two: list[FakeDaemon]) -> None:
    """To calls that do not move on: at once, once."""
    with Client(both(two), moves_on=False) as client:
        until_connected(client, 2)
        for daemon in two:
            daemon.refuse("draining")
        for _ in range(5):
            with pytest.raises(CallFailed) as caught:
                client.ask("p", timeout_ms=20_000)
            assert caught.value.code == "draining"
    assert sum(calls(two)) == 5


def test_where_all_are_draining_a_call_waits_for_who_comes(two: list[FakeDaemon]) -> None:
    """It is offered to each once, to nobody in circles, and answered by the first successor."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        for daemon in two:
            daemon.refuse("draining")
        handles = [client.submit("n0", timeout_ms=20_000)]
        while calls(two) != [1, 1]:  # offered to one, and then to the other, who may yet have another answer
            handles[0].poll(50)
        handles += [client.submit(f"n{number}", timeout_ms=20_000) for number in range(1, 4)]
        while sum(len(link.session._held) for link in client._pump.fleet.links) < 4:  # the word on each has come
            handles[0].poll(50)
        assert not any(handle.ended for handle in handles)
        offered = sum(calls(two))
        assert offered == 5
        two[1].kill()
        two[1].refuse("")
        two[1].start()
        assert [handle.result().text for handle in handles] == [f"n{number}" for number in range(4)]
    assert sum(calls(two)) == offered + 4


def test_an_overloaded_daemon_is_left_aside_and_its_refusal_told(two: list[FakeDaemon]) -> None:
    """`overloaded` is no reason to load the other one with the same call; the next ones go there."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        two[0].refuse("overloaded")
        codes = []
        for _ in range(4):
            try:
                codes.append(client.ask("p", timeout_ms=20_000).text)
            except CallFailed as failure:
                codes.append(failure.code)
        assert codes.count("overloaded") == 1
        assert codes.count("p") == 3


def test_a_cancelled_call_is_not_moved(two: list[FakeDaemon]) -> None:
    """It was not wanted any more: the refusal ends it."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        for daemon in two:
            daemon.refuse("draining")
        handle = client.submit("p", timeout_ms=20_000)
        handle.cancel()
        with pytest.raises(CallFailed) as caught:
            handle.result()
        assert caught.value.code == "draining"
    assert sum(calls(two)) == 1


def test_a_killed_daemon_loses_its_calls_and_no_others(two: list[FakeDaemon]) -> None:
    """`daemon_lost` for what it had, nothing sent twice; the other one answers all that follows."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        handles = [client.submit(SILENT, timeout_ms=20_000) for _ in range(8)]
        while not all(handle.accepted for handle in handles):
            handles[0].poll(50)
        two[0].kill()
        until_connected(client, 1)
        lost = [handle for handle in handles if handle.ended]
        assert len(lost) == 4
        for handle in lost:
            with pytest.raises(DaemonGone, match="went away"):
                handle.result()
        assert [client.ask(f"n{number}", timeout_ms=20_000).text for number in range(6)] == [
            f"n{number}" for number in range(6)
        ]
        two[0].start()
        until_connected(client, 2)
    ids = [call["id"] for daemon in two for call in daemon.received()]
    assert len(ids) == len(set(ids)) == 14


def test_a_stopped_daemon_costs_one_deadline(two: list[FakeDaemon]) -> None:
    """Its call passes the deadline without a word; the next go to the other, until it speaks again."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        two[0].signal(signal.SIGSTOP)
        reasons = [client.choose("BUY", SIDES, default="HOLD", timeout_ms=200).reason for _ in range(10)]
        assert reasons.count("deadline_exceeded") == 1
        assert reasons.count("answered") == 9
        two[0].signal(signal.SIGCONT)
        while any(link.session.silent for link in client._pump.fleet.links):
            client._pump.turn(0.1)


def test_a_daemon_that_is_stopped_from_the_beginning_is_passed_over(two: list[FakeDaemon]) -> None:
    """The kernel takes the connection, nobody shakes hands: a call that waited there moves to the other."""
    endpoint = both(two)
    two[0].signal(signal.SIGSTOP)
    with Client(endpoint) as client:
        assert client.ask("there", timeout_ms=20_000).text == "there"
    two[0].signal(signal.SIGCONT)
    assert [call["input"] for call in two[1].received()] == ["there"]


def test_a_pattern_finds_daemons_that_come_later(
    base: Path, two: list[FakeDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody: ENOENT at once. Then the first is found, and the second beside it, and one that goes is forgotten."""
    monkeypatch.setattr(fleet, "_LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(fleet, "_SEARCH_INTERVAL", 0.0)
    with Client(pattern(base)) as client:
        with pytest.raises(DaemonGone, match="ENOENT"):
            client.ask("p", timeout_ms=60_000)
        two[0].start()
        assert client.ask("first", timeout_ms=20_000).text == "first"
        two[1].start()
        while not two[1].received():
            client.ask("second", timeout_ms=20_000)
        two[0].kill()
        Path(two[0].endpoint.removeprefix("ipc://")).unlink()
        until_connected(client, 1)
        while len(client._pump.fleet.links) != 1:
            client.ask("third", timeout_ms=20_000)
        assert client.endpoint == pattern(base)


def test_an_asyncio_client_finds_them_too(base: Path, two: list[FakeDaemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """And waits for one that is being restarted."""
    monkeypatch.setattr(fleet, "_LOOK_INTERVAL", 0.01)

    async def main() -> None:
        two[0].start()
        async with AsyncClient(pattern(base)) as client, asyncio.timeout(30):
            assert (await client.ask("first", timeout_ms=20_000)).text == "first"
            two[1].start()
            while not two[1].received():
                await client.ask("second", timeout_ms=20_000)
            for daemon in two:
                daemon.kill()
            while client._pump.session.connected:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(client.ask("third", timeout_ms=20_000))
            await asyncio.sleep(0)
            two[1].start()
            assert (await waiting).text == "third"

    asyncio.run(main())


@pytest.mark.parametrize("looping", [False, True])
def test_choose_keeps_its_promise_while_one_of_two_is_killed_and_stopped(two: list[FakeDaemon], looping: bool) -> None:
    """Always a choice and a reason, never much later than its deadline, and no call on both wires."""
    dice = random.Random(11)
    endpoint = both(two)
    reasons: collections.Counter[str] = collections.Counter()
    with Client(endpoint) as blocking, asyncio.Runner() as runner:
        client = AsyncClient(endpoint)
        for _ in range(60):
            daemon = dice.choice(two)
            match dice.randrange(5):
                case 0:
                    daemon.kill()
                case 1:
                    daemon.kill()
                    daemon.start()
                case 2:
                    daemon.signal(signal.SIGSTOP)
                case 3:
                    daemon.signal(signal.SIGCONT)
            prompt = dice.choice(["BUY", "BUY", "no", SILENT])
            started = time.monotonic()
            if looping:
                choice = runner.run(client.choose(prompt, SIDES, default="HOLD", timeout_ms=30))
            else:
                choice = blocking.choose(prompt, SIDES, default="HOLD", timeout_ms=30)
            assert time.monotonic() - started < 0.03 + LATE_S
            assert choice in SIDES
            reasons[choice.reason] += 1
            if not dice.randrange(6):
                for one in two:
                    one.kill()
                    one.start()
        client.close()
    assert reasons["answered"] > 0
    keys = [(call["id"], call["sent_mono_us"]) for daemon in two for call in daemon.received()]
    assert len(keys) == len(set(keys))


def test_a_fork_must_make_its_own(two: list[FakeDaemon]) -> None:
    """The child is told, and what it closes stays open in the parent."""
    with Client(both(two)) as client:
        until_connected(client, 2)
        pid = os.fork()
        if pid == 0:
            choice = client.choose("BUY", SIDES, default="HOLD", timeout_ms=100)
            client.close()
            os._exit(7 if choice.reason == "unusable_client" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert {client.ask("p", timeout_ms=20_000).text for _ in range(4)} == {"p"}
        assert min(calls(two)) == 2


def test_closing_ends_what_is_open_everywhere(two: list[FakeDaemon]) -> None:
    """`cancelled`, with both daemons and with those that wait for one."""
    client = Client(both(two))
    until_connected(client, 2)
    handles: list[Any] = [client.submit(SILENT, timeout_ms=5000) for _ in range(4)]
    client.close()
    for handle in handles:
        with pytest.raises(CallFailed) as caught:
            handle.result()
        assert caught.value.code == "cancelled"
