"""Daemons that are ended and started anew under load, as processes: what every call of a client ended with.

The bots are in threads of this process, on our clients. Nothing here is judged by how long it took: waits have an issue
(`PATIENCE`), and deadlines of calls that are to be answered are longer than it.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar import Client
from sidecar.client import AsyncClient
from sidecar.errors import CallFailed, NeverSent, Stopped
from tests.end_to_end.processes import PATIENCE, Processes, route, until, upstream
from tests.end_to_end.test_several_daemons import Pair

#: Of calls that must be answered, however long a restart takes here.
LONG_MS = 4000 * PATIENCE
PER_SECOND = 200


class Single(Processes):
    """One daemon that is started again and again on one endpoint."""

    def begin(self, frontend: str = "", *sim: str, routes: str = "") -> subprocess.Popen[bytes]:
        """A relay that answers at once unless a prompt says otherwise, and the daemon, ready."""
        port = self.relay("--text", "HOLD", "--ttft-ms", "3", "--cadence-ms", "0", *sim)
        return self.daemon(
            f"queue_max = 4000\n{frontend}\n{upstream('sim', f'ws://127.0.0.1:{port}/v1/responses')}"
            + route("sim", more=f"timeout_ms = {LONG_MS}\nidle_timeout_ms = {LONG_MS}\n{routes}")
        )

    def again(self, *, bound: bool = True) -> subprocess.Popen[bytes]:
        """The next daemon."""
        process = self.start("serve", "-c", str(self.folder / "sidecar.toml"), log="next.log")
        if bound:
            until(lambda: self.report(timeout=0.5) is not None, process, self.folder / "next.log")
        return process


@pytest.fixture
def single() -> Iterator[Single]:
    """Nothing runs yet; all ends with the test."""
    with Single() as started:
        yield started


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The same, of two instances."""
    with Pair() as started:
        yield started


class Load(threading.Thread):
    """A bot that begins so many calls a second, whatever became of the earlier ones, until `over` is set.

    Attributes:
        begun: prompts, each with its number in it.
        ended: prompt -> how it ended; a second end of one would be noted in `twice`.
    """

    def __init__(self, endpoint: str, *, timeout_ms: float = LONG_MS, **wishes: Any) -> None:
        super().__init__(daemon=True)
        self.endpoint, self.wishes = endpoint, {"timeout_ms": timeout_ms, **wishes}
        self.begun: list[str] = []
        self.ended: dict[str, str] = {}
        self.call_ids: list[str] = []
        self.over = threading.Event()
        self.problem: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The loop's thread."""
        try:
            asyncio.run(self._main())
        except BaseException as problem:
            self.problem = problem
            raise

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        async with AsyncClient(self.endpoint, name="load") as client, asyncio.TaskGroup() as calls:
            began = loop.time()
            while not self.over.is_set():
                calls.create_task(self._call(client, f"n{len(self.begun)}"))
                await asyncio.sleep(max(0.0, began + (len(self.begun) + 1) / PER_SECOND - loop.time()))

    async def _call(self, client: AsyncClient, prompt: str) -> None:
        self.begun.append(prompt)
        try:
            answer = await client.ask(prompt, **self.wishes)
            assert answer.text == "HOLD"
            self.call_ids.append(answer.call_id)
            code = "done"
        except CallFailed as failure:
            code = failure.code
        assert self.ended.setdefault(prompt, code) is code

    @property
    def codes(self) -> Counter[str]:
        """How they ended so far."""
        return Counter(self.ended.values())

    def more(self, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
        """Wait for so many further answers."""
        due = self.codes["done"] + count
        until(lambda: self.codes["done"] >= due or not self.is_alive(), process, log)
        assert self.is_alive()

    def finish(self) -> Counter[str]:
        """Stop, wait for the last end, and see that every call has one."""
        self.over.set()
        self.join(4 * PATIENCE)
        assert not self.is_alive(), f"{len(self.begun) - len(self.ended)} calls without an end"
        assert self.problem is None
        assert len(self.begun) == len(self.ended)
        assert len(set(self.call_ids)) == len(self.call_ids) == self.codes["done"]
        return self.codes


def asked_once(processes: Processes, load: Load) -> None:
    """The upstream was asked once for each answer, and never twice for one prompt."""
    attempts: dict[str, int] = processes.counters()["attempts"]
    assert {attempts.get(prompt, 0) for prompt, code in load.ended.items() if code == "done"} == {1}
    assert set(attempts.values()) == {1}


def test_a_restart_under_load_costs_time_and_no_call(single: Single) -> None:
    """200 calls a second and eight long streams: the streams end where they began, all the rest is answered by one of
    the two daemons, each call once, though for a while nobody was there.
    """
    daemon = single.begin("drain_timeout_s = 60")
    load = Load(single.endpoint)
    load.more(50, daemon, single.folder / "daemon.log")
    with Client(single.endpoint, name="streams") as client:
        streams = [client.stream(f"s{number} [[tokens=40 cadence_ms=25]]") for number in range(8)]
        for stream in streams:
            next(stream)
        daemon.send_signal(signal.SIGTERM)
        assert [sum(1 for _ in stream) > 0 for stream in streams] == [True] * 8
        assert {stream.answer.finish for stream in streams} == {"stop"}
    assert daemon.wait(PATIENCE) == 0
    successor = single.again()
    load.more(50, successor, single.folder / "next.log")
    assert load.finish() == {"done": len(load.begun)}
    asked_once(single, load)


def test_who_does_not_move_on_hears_of_it_and_nobody_is_lost(single: Single) -> None:
    """The same load with ``moves_on=False``: `draining`, then `daemon_unavailable`, each with `retryable`; never
    `daemon_lost`: the daemon answers, or the bot knows that it sent nothing.
    """
    daemon = single.begin()
    load = Load(single.endpoint, moves_on=False)
    load.more(50, daemon, single.folder / "daemon.log")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0
    successor = single.again()
    load.more(50, successor, single.folder / "next.log")
    codes = load.finish()
    assert set(codes) <= {"done", "draining", "daemon_unavailable"}
    assert codes["daemon_unavailable"] > 0
    asked_once(single, load)


def test_when_the_time_to_drain_is_over_the_rest_is_told(single: Single) -> None:
    """What had work upstream ends `halted` with its text so far; what was queued, and what is new, `draining`; what may
    move on is answered by the next daemon.
    """
    daemon = single.begin("drain_timeout_s = 1\nmax_calls_in_flight = 2")
    with Client(single.endpoint) as client, Client(single.endpoint, moves_on=False) as other:
        running = [client.stream("r [[tokens=100000 cadence_ms=50]]") for _ in range(2)]
        for stream in running:
            next(stream)
        queued, patient = other.submit("q"), client.submit("p", timeout_ms=LONG_MS)
        while not (queued.accepted and patient.accepted):
            queued.poll(20)
            patient.poll(20)
        daemon.send_signal(signal.SIGTERM)
        until(lambda: '"event":"drain.started"' in single.log(), daemon, single.folder / "daemon.log")
        with pytest.raises(NeverSent) as refused:
            other.ask("new", timeout_ms=LONG_MS)
        assert (refused.value.code, refused.value.retryable, refused.value.phase) == ("draining", True, None)
        assert (refused.value.retry_after_ms or 0) > 0
        for stream in running:
            with pytest.raises(Stopped) as halted:
                for _ in stream:
                    pass
            assert (halted.value.code, halted.value.retryable) == ("halted", False)
            assert halted.value.text
        with pytest.raises(NeverSent) as told:
            queued.result()
        assert (told.value.code, told.value.retryable, told.value.phase) == ("draining", True, "queue")
        assert daemon.wait(PATIENCE) == 0
        assert not patient.ended
        single.again()
        assert patient.result().text == "HOLD"
    assert single.counters()["attempts"]["p"] == 1


def test_a_killed_daemon_loses_what_it_had_and_no_more(single: Single) -> None:
    """Under load: streams in flight are `daemon_lost` at once and sent nowhere again; what nobody had is answered."""
    daemon = single.begin()
    load = Load(single.endpoint)
    load.more(50, daemon, single.folder / "daemon.log")
    with Client(single.endpoint) as client:
        streams = [client.stream(f"s{number} [[tokens=100000 cadence_ms=20]]") for number in range(8)]
        for stream in streams:
            next(stream)
        daemon.kill()
        for stream in streams:
            with pytest.raises(CallFailed) as lost:
                for _ in stream:
                    pass
            assert (lost.value.code, lost.value.retryable) == ("daemon_lost", False)
            assert lost.value.text
    daemon.wait()
    successor = single.again()
    load.more(50, successor, single.folder / "next.log")
    codes = load.finish()
    assert set(codes) <= {"done", "daemon_lost"}
    asked_once(single, load)


def test_a_second_sigterm_ends_it_at_once(single: Single) -> None:
    """130; what it had is `daemon_lost`, not waited for; what it would not begin is answered by the next one."""
    daemon = single.begin("drain_timeout_s = 600")
    with Client(single.endpoint) as client:
        stream = client.stream("s [[tokens=100000 cadence_ms=20]]")
        next(stream)
        daemon.send_signal(signal.SIGTERM)
        until(lambda: '"event":"drain.started"' in single.log(), daemon, single.folder / "daemon.log")
        refused = client.submit("p", timeout_ms=LONG_MS)
        client.ping()
        assert not refused.ended
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 130
        with pytest.raises(CallFailed) as lost:
            stream.result()
        assert lost.value.code == "daemon_lost"
        single.again()
        assert refused.result().text == "HOLD"


@pytest.mark.parametrize("seen", ["nothing", "s.sock.lock", "s.sock", "s.control.sock"])
def test_sigterm_while_it_starts(single: Single, seen: str) -> None:
    """However far it came, it ends, by the signal or with 0, and is in nobody's way: a waiting call is answered by the
    next daemon.
    """
    daemon = single.begin()
    with Client(single.endpoint) as client:
        assert client.ask("first", timeout_ms=LONG_MS).text == "HOLD"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 0
        waiting = client.submit("p", timeout_ms=LONG_MS)
        starting = single.again(bound=False)
        if seen != "nothing":
            log = single.folder / "next.log"
            until(lambda: (single.folder / seen).exists(), starting, log)
        starting.send_signal(signal.SIGTERM)
        assert starting.wait(PATIENCE) in (0, -signal.SIGTERM)
        single.again()
        assert waiting.result().text == "HOLD"
    assert single.counters()["attempts"]["p"] == 1


def test_a_rolling_restart_answers_every_call(pair: Pair) -> None:
    """Two instances, restarted one after the other under 200 calls a second and a stream on each: all is `done`."""
    pair.begin("--text", "HOLD", "--ttft-ms", "3", "--cadence-ms", "0", frontend="queue_max = 4000")
    load = Load(f"ipc://{pair.folder}/sidecar-*/sidecar.sock")
    for name in "ab":
        daemon, log = pair.daemons[name], pair.folder / f"{name}.log"
        load.more(50, daemon, log)
        with Client(pair.endpoints[name]) as client:
            stream = client.stream("long [[id=long tokens=20 cadence_ms=25]]", timeout_ms=LONG_MS)
            next(stream)
            daemon.send_signal(signal.SIGTERM)
            assert stream.result().finish == "stop"
        assert daemon.wait(PATIENCE) == 0
        pair.instance(name)
    load.more(50, pair.daemons["b"], pair.folder / "b.log")
    assert load.finish() == {"done": len(load.begun)}
    attempts = pair.counters()["attempts"]
    assert attempts.pop("long") == 2
    assert set(attempts.values()) == {1}


def test_of_two_one_killed_under_load_loses_what_it_had(pair: Pair) -> None:
    """`daemon_lost` for that, `done` for all the rest, and nobody asks the upstream twice."""
    pair.begin("--text", "HOLD", "--ttft-ms", "3", "--cadence-ms", "0", frontend="queue_max = 4000")
    load = Load(f"ipc://{pair.folder}/sidecar-*/sidecar.sock")
    for name in "ab":
        load.more(50, pair.daemons[name], pair.folder / f"{name}.log")
        pair.daemons[name].kill()
        pair.daemons[name].wait()
        pair.instance(name)
    load.more(50, pair.daemons["b"], pair.folder / "b.log")
    assert set(load.finish()) <= {"done", "daemon_lost"}
    assert set(pair.counters()["attempts"].values()) == {1}
