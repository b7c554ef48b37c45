"""The halt of a daemon that is a process: it acts, it outlives a kill, and a file does when nothing answers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from tests.end_to_end.processes import PATIENCE, Processes, route, until, upstream


class Bot:
    """A DEALER with calls in flight."""

    def __init__(self, processes: Processes) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(processes.endpoint)
        self._told: dict[str, list[dict[str, Any]]] = {}

    def call(self, name: str, lane: str, *, first_delta_ms: int = 20_000) -> None:
        """Begin a call; it is accepted when this returns."""
        text = f"x [[ttft_ms={first_delta_ms}]]"
        message = {"type": "call", "id": name, "lane": lane, "input": text, "timeout_ms": 30_000}
        self._socket.send(json.dumps({**message, "first_delta_timeout_ms": 30_000}).encode())
        self.until(name, "accepted", "failed")

    def until(self, name: str, *kinds: str) -> dict[str, Any]:
        """The first message of this call that is of one of these types."""
        while True:
            for each in self._told.get(name, []):
                if each["type"] in kinds:
                    return each
            assert self._socket.poll(1000 * PATIENCE), f"{name} heard nothing"
            message = json.loads(self._socket.recv())
            self._told.setdefault(message["id"], []).append(message)

    def ended(self, name: str) -> str:
        """`done`, or the code of its failure."""
        last = self.until(name, "done", "failed")
        return "done" if last["type"] == "done" else str(last["code"])

    def close(self) -> None:
        """Socket before context."""
        self._socket.close()
        self._context.term()


@pytest.fixture
def house() -> Iterator[tuple[Processes, Bot]]:
    """A relay, a daemon, a bot."""
    with Processes() as processes:
        configure(processes)
        bot = Bot(processes)
        try:
            yield processes, bot
        finally:
            bot.close()


def configure(processes: Processes) -> None:
    """Start the relay, if there is none, and a daemon with its halt file beside its configuration."""
    port = processes.port or processes.relay()
    url = f"ws://127.0.0.1:{port}/v1/responses"
    processes.daemon('halt_file = "halt"\n' + upstream("sim", url) + route("sim"))


def daemon_of(processes: Processes) -> Any:
    """The last one started."""
    return [process for process in processes._running if "serve" in process.args][-1]  # type: ignore[operator]


def test_exits_go_on_while_entries_are_halted_over_a_kill(house: tuple[Processes, Bot]) -> None:
    """Running entries end `halted`, new ones are refused, the exit is answered; a killed daemon's successor knows."""
    processes, bot = house
    bot.call("entry", "entry")
    bot.call("research", "research")
    bot.call("exit", "exit", first_delta_ms=1500)
    halted = processes.run(
        "halt", "--lane", "entry,research", "--reason", "bad prices", "--json", "--endpoint", processes.endpoint
    )
    assert halted.returncode == 0, halted.stderr
    assert json.loads(halted.stdout)["ended"] == 2
    assert (bot.ended("entry"), bot.ended("research")) == ("halted", "halted")
    bot.call("late", "entry")
    assert bot.ended("late") == "halted"
    assert bot.ended("exit") == "done"
    assert (processes.report() or {})["halted"] == ["entry", "research"]

    daemon_of(processes).send_signal(signal.SIGKILL)
    daemon_of(processes).wait()
    configure(processes)
    assert "HALTED: entry, research" in processes.log()
    assert "bad prices" in processes.log()
    refused = processes.run("ask", "--lane", "research", "--endpoint", processes.endpoint, "hello")
    assert (refused.returncode, refused.stderr) == (1, "halted: halted by the operator: bad prices\n")
    assert processes.run("resume", "--endpoint", processes.endpoint).returncode == 0
    assert processes.run("ask", "--lane", "research", "--endpoint", processes.endpoint, "hello").returncode == 0
    assert not (processes.folder / "halt").exists()


def test_a_file_that_somebody_touches_is_a_halt(house: tuple[Processes, Bot]) -> None:
    """Without a command, without a word to the daemon; and deleting it is the resume."""
    processes, bot = house
    bot.call("exit", "exit")
    (processes.folder / "halt").touch()
    assert bot.ended("exit") == "halted"
    (processes.folder / "halt").unlink()
    until(lambda: (processes.report() or {}).get("halted") == [], daemon_of(processes), processes.folder / "daemon.log")
    assert processes.run("ask", "--endpoint", processes.endpoint, "hello").returncode == 0


def test_a_daemon_that_hangs_is_halted_by_the_command_all_the_same(house: tuple[Processes, Bot]) -> None:
    """It says that nobody answered; the daemon heeds it as soon as it moves again, and ends what ran meanwhile."""
    processes, bot = house
    bot.call("entry", "entry")
    daemon_of(processes).send_signal(signal.SIGSTOP)
    began = time.monotonic()
    halted = processes.run("halt", "-c", str(processes.folder / "sidecar.toml"))
    assert time.monotonic() - began < PATIENCE
    assert halted.returncode == 0, halted.stderr
    assert "did not answer (no answer within 1000 ms)" in halted.stderr
    assert (processes.folder / "halt").exists()
    daemon_of(processes).send_signal(signal.SIGCONT)
    assert bot.ended("entry") == "halted"


def test_a_drain_is_ordered(house: tuple[Processes, Bot]) -> None:
    """What runs is finished, the operator has an answer, the daemon ends with 0."""
    processes, bot = house
    bot.call("exit", "exit", first_delta_ms=1000)
    ordered = processes.run("drain", "--json", "--endpoint", processes.endpoint)
    assert ordered.returncode == 0, ordered.stderr
    assert json.loads(ordered.stdout)["in_flight"] == 1
    assert bot.ended("exit") == "done"
    assert daemon_of(processes).wait(PATIENCE) == 0
    assert processes.run("drain", "--endpoint", processes.endpoint).returncode == 3


def test_an_upstream_is_taken_out_and_in(house: tuple[Processes, Bot]) -> None:
    """Calls know at once that nothing is left; what it was answering goes on."""
    processes, bot = house
    bot.call("exit", "exit", first_delta_ms=1000)
    taken = processes.run("upstream", "disable", "sim", "--endpoint", processes.endpoint)
    assert taken.returncode == 0, taken.stderr
    assert "nothing is left to serve route default" in taken.stderr
    refused = processes.run("ask", "--endpoint", processes.endpoint, "hello")
    assert refused.returncode == 1
    assert "disabled" in refused.stderr
    assert bot.ended("exit") == "done"
    assert processes.run("upstream", "enable", "sim", "--endpoint", processes.endpoint).returncode == 0
    until(lambda: bool((processes.report() or {}).get("ready")), daemon_of(processes), processes.folder / "daemon.log")
    assert processes.run("ask", "--endpoint", processes.endpoint, "hello").returncode == 0
