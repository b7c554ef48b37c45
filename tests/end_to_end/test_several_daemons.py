"""Two daemons on one host that share a configuration file: one is drained under load, the other one serves."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import Client
from sidecar.errors import CallFailed
from tests.end_to_end.processes import PATIENCE, Processes, route, until, upstream


class Pair(Processes):
    """A relay and two instances, `a` and `b`, each with the runtime directory that systemd would give it."""

    def __init__(self) -> None:
        super().__init__()
        self.file = self.folder / "sidecar.toml"
        self.endpoints = {name: f"ipc://{self.folder}/sidecar-{name}/sidecar.sock" for name in "ab"}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, *sim: str, frontend: str = "") -> None:
        """Start all three and wait until both daemons are ready."""
        port = self.relay(*sim)
        self.file.write_text(
            f"[frontend]\n{frontend}\n{upstream('sim', f'ws://127.0.0.1:{port}/v1/responses')}{route('sim')}"
        )
        for name in self.endpoints:
            self.instance(name)

    def instance(self, name: str, *, ready: bool = True) -> None:
        """Start one, or start it again."""
        log = f"{name}.log"
        self.daemons[name] = process = self.start(
            "serve", "-c", str(self.file), "--instance", name, log=log, RUNTIME_DIRECTORY=str(self.socket(name).parent)
        )
        if ready:
            until(lambda: self.probed(name), process, self.folder / log)

    def socket(self, name: str) -> Path:
        """The file."""
        return Path(self.endpoints[name].removeprefix("ipc://"))

    def probed(self, name: str) -> bool:
        """It answers, and is ready."""
        self.endpoint = self.endpoints[name]
        return bool((self.report(timeout=0.5) or {}).get("ready"))


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Nothing runs yet; all ends with the test."""
    with Pair() as started:
        yield started


#: Deadlines of calls to each, milliseconds.
PATIENT = {"a": 4000, "b": 10_000}


class LoadingBot(threading.Thread):
    """A client that calls again and again, until it is told to stop or, unless it is stubborn, a call fails."""

    def __init__(self, endpoint: str, *, stubborn: bool = False, timeout_ms: float = 10_000) -> None:
        super().__init__(daemon=True)
        self.endpoint, self.timeout_ms = endpoint, timeout_ms
        self.stubborn = stubborn
        self.begun = 0
        self.ended: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self) -> None:
        """One call at a time."""
        with Client(self.endpoint) as client:
            while not self.over.is_set():
                self.begun += 1
                try:
                    client.ask("x", timeout_ms=self.timeout_ms)
                    self.ended["done"] += 1
                except CallFailed as failure:
                    self.ended[failure.code] += 1
                    if not self.stubborn:
                        return


def test_one_is_drained_under_load_and_the_other_serves(pair: Pair) -> None:
    """Every call of every client ends; all of the other daemon's with an answer, and what was accepted is finished."""
    pair.begin("--text", "HOLD", "--ttft-ms", "30", "--cadence-ms", "1")
    # Those of the one that goes wait for its successor, whom nobody starts, until their deadline.
    bots = {name: [LoadingBot(pair.endpoints[name], timeout_ms=ms) for _ in range(2)] for name, ms in PATIENT.items()}
    for bot in bots["a"] + bots["b"]:
        bot.start()

    def more_answers(name: str) -> None:
        before = [bot.ended["done"] for bot in bots[name]]
        until(
            lambda: all(bot.ended["done"] >= was + 3 for bot, was in zip(bots[name], before, strict=True)),
            pair.daemons[name], pair.folder / f"{name}.log",
        )  # fmt: skip

    more_answers("a")
    pair.endpoint = pair.endpoints["a"]
    accepted = pair.talk({"type": "call", "id": "1", "input": "x [[ttft_ms=600]]", "timeout_ms": 10_000})
    assert next(accepted)["type"] == "accepted"
    pair.daemons["a"].send_signal(signal.SIGTERM)
    assert [message["type"] for message in accepted][-1] == "done"
    assert pair.daemons["a"].wait(PATIENCE) == 0
    more_answers("b")
    for bot in bots["b"]:
        bot.over.set()
    for bot in bots["a"] + bots["b"]:
        bot.join(PATIENCE)
        assert not bot.is_alive()
        assert bot.begun == sum(bot.ended.values())
    for bot in bots["b"]:
        assert set(bot.ended) == {"done"}
    for bot in bots["a"]:
        refusals = set(bot.ended) - {"done"}
        assert len(refusals) == 1
        assert refusals <= {"draining", "daemon_lost", "daemon_unavailable"}
    assert not pair.socket("a").exists()
    assert pair.probed("b")


def test_one_client_over_both_loses_nothing_when_one_is_drained(pair: Pair) -> None:
    """What the leaving daemon has taken is finished there; what it refuses, and all that is new, goes to the other one.

    Also a call that meets the closing of the socket: it is refused still, or the bot's own send of it fails.
    """
    pair.begin("--text", "HOLD", "--ttft-ms", "30", "--cadence-ms", "1")
    bots = [LoadingBot(f"ipc://{pair.folder}/sidecar-*/sidecar.sock", stubborn=True) for _ in range(4)]
    for bot in bots:
        bot.start()

    def more_answers(count: int) -> None:
        before = [bot.ended["done"] for bot in bots]
        until(
            lambda: all(bot.ended["done"] >= was + count for bot, was in zip(bots, before, strict=True)),
            pair.daemons["b"], pair.folder / "b.log",
        )  # fmt: skip

    more_answers(4)
    for name in "ab":
        assert '"event":"call"' in pair.log(f"{name}.log"), "both have served"
    pair.daemons["a"].send_signal(signal.SIGTERM)
    assert pair.daemons["a"].wait(PATIENCE) == 0
    more_answers(4)
    pair.instance("a")
    more_answers(2)
    for bot in bots:
        bot.over.set()
    for bot in bots:
        bot.join(PATIENCE)
        assert not bot.is_alive()
        assert bot.begun == sum(bot.ended.values())
        assert set(bot.ended) == {"done"}


def test_a_rolling_restart_is_one_after_the_other(pair: Pair) -> None:
    """Each comes back on its own path while the other one is ready."""
    pair.begin()
    for name, other in ("ab", "ba"):
        pair.daemons[name].send_signal(signal.SIGTERM)
        assert pair.daemons[name].wait(PATIENCE) == 0
        assert pair.probed(other)
        pair.instance(name)
    assert pair.probed("a")
    assert pair.probed("b")


def test_a_path_in_the_shared_file_is_75_for_the_second(pair: Pair) -> None:
    """It says who holds the path and what to leave out; the first goes on."""
    port = pair.relay()
    fixed = pair.folder / "one.sock"
    tables = upstream("sim", f"ws://127.0.0.1:{port}/v1/responses") + route("sim")
    pair.file.write_text(f'[frontend]\nendpoint = "ipc://{fixed}"\n{tables}')
    pair.endpoints["a"] = f"ipc://{fixed}"
    pair.instance("a")
    pair.instance("b", ready=False)
    assert pair.daemons["b"].wait(PATIENCE) == 75
    said = pair.log("b.log")
    assert f"another daemon holds it (pid {pair.daemons['a'].pid})" in said
    assert "Instances that share frontend.endpoint" in said
    assert pair.probed("a")


def test_show_finds_a_control_endpoint_of_any_name(pair: Pair) -> None:
    """By `--control`, or from the file; by the bots' endpoint alone it cannot be known, and that is said."""
    control = pair.folder / "operators.sock"
    port = pair.relay()
    tables = upstream("sim", f"ws://127.0.0.1:{port}/v1/responses") + route("sim")
    pair.file.with_name("a.toml").write_text(f'[frontend]\ncontrol_endpoint = "ipc://{control}"\n{tables}')
    pair.instance("a")
    for way in (["--control", f"ipc://{control}"], ["-c", str(pair.file), "--instance", "a"]):
        shown = pair.run("show", "upstreams", "--json", *way)
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)[0]["name"] == "sim"
    blind = pair.run("show", "upstreams", "--endpoint", pair.endpoints["a"])
    assert blind.returncode == 3
    assert "sidecar.control.sock" in blind.stderr
    assert "--control" in blind.stderr
    broken = pair.run("show", "upstreams", "-c", str(pair.folder / "gone.toml"))
    assert broken.returncode == 3
    assert "gone.toml" in broken.stderr
    unit = pair.run("show", "upstreams", "--instance", "no-such-one")
    assert unit.returncode == 3
    assert "/run/sidecar-no-such-one/sidecar.control.sock" in unit.stderr


def test_probe_all_is_as_well_as_the_worst(pair: Pair) -> None:
    """Every daemon that the pattern finds has a report; one that does not answer is told by name."""
    pair.begin()
    pattern = f"ipc://{pair.folder}/sidecar-*/sidecar.sock"
    healthy = pair.run("probe", "--all", "--endpoint", pattern, "--format", "json")
    assert healthy.returncode == 0, healthy.stderr
    each = json.loads(healthy.stdout)
    assert [one["endpoint"] for one in each] == list(pair.endpoints.values())
    assert {one["report"]["pid"] for one in each} == {daemon.pid for daemon in pair.daemons.values()}
    pair.daemons["b"].kill()  # its socket stays, and nobody listens
    pair.daemons["b"].wait()
    ill = pair.run("probe", "--all", "--endpoint", pattern)
    assert ill.returncode == 1
    assert [line.partition(": ")[2][:9] for line in ill.stdout.splitlines() if "sock: " in line] == [
        "ready: ve", "no answer",
    ]  # fmt: skip
    monitored = pair.run("probe", "--all", "--format", "nagios", "--endpoint", pattern)
    assert monitored.returncode == 2
    assert monitored.stdout.startswith(f"SIDECAR CRITICAL - 1 of 2 ok: {pair.endpoints['b']} no answer")
    assert len(monitored.stdout.splitlines()) == 1
    nobody = pair.run("probe", "--all", "--endpoint", f"ipc://{pair.folder}/nothing-*/sidecar.sock")
    assert nobody.returncode == 1
    assert "nothing-*" in nobody.stdout
