"""Starts what a bench needs, as processes of their own, and ends all of it, also when interrupted or killed.

Everything binds loopback or ipc and lives in a short folder under /tmp. A child whose parent is killed is killed by
the kernel (PR_SET_PDEATHSIG); each has a session of its own, so that Ctrl-C reaches this process only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, Self

import msgspec
from msgspec import Struct

from sidecar.bench.job import Job
from sidecar.bench.load import Load, prompt_of
from sidecar.client.blocking import Client
from sidecar.errors import CallFailed, SidecarError
from sidecar.wire import Report

#: Seconds until a process that does not come up is given up.
PATIENCE: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


class BenchFailed(SidecarError):
    """The load could not be run: the message says why, and what to do."""


class NobodyThere(BenchFailed):
    """No daemon answers at the endpoint given."""


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the load goes to: a simulator and a daemon of our own, a daemon with a given file, or one that runs."""

    kind: Literal["simulator", "configuration", "endpoint"] = "simulator"
    route: str | None = None
    endpoint: str | None = None
    configuration: str | None = None


class Rig:
    """What runs. `with Rig(target, load) as rig: rig.start(); ...`

    Attributes:
        pids: name -> pid of what is measured: ``daemon``, ``simulator``, ``bot 0`` ...
    """

    def __init__(self, target: Target, load: Load) -> None:
        self.target, self.load = target, load
        self.pids: dict[str, int] = {}
        self.bots: list[subprocess.Popen[bytes]] = []
        self.daemon: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="sidecar-bench-", dir="/tmp")
        self.folder = Path(self._folder.name)
        self.endpoint = target.endpoint or f"ipc://{self.folder}/sidecar.sock"
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):  # bots, daemon, simulator
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        pass
        self._folder.cleanup()

    def start(self) -> None:
        """Everything up and warm, the bots connected.

        Raises:
            BenchFailed: something does not come up.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if self.target.kind == "simulator":
            port_file = self.folder / "port"
            simulator = self._start("simulator", *self._simulator(port_file))
            port = int(self._appears(port_file, simulator, "simulator"))
            file = self.folder / "sidecar.toml"
            file.write_text(self._configuration(port))
            self.daemon = self._start("daemon", "sidecar", "serve", "-c", str(file))
        elif self.target.kind == "configuration":
            self.daemon = self._start(
                "daemon", "sidecar", "serve", "-c", str(self.target.configuration), "--endpoint", self.endpoint,
                SIDECAR_FRONTEND__CONTROL_ENDPOINT=f"ipc://{self.folder}/control.sock",
            )  # fmt: skip
        self._wait_until_ready()
        self._start_bots()

    def go(self, start_us: int) -> None:
        """Tell the bots when to begin."""
        for bot in self.bots:
            assert bot.stdin is not None
            try:
                bot.stdin.write(b"%d\n" % start_us)
                bot.stdin.flush()
            except OSError:
                raise BenchFailed(f"a bot ended: {self._said('bot')}") from None

    def seen(self, timeout: float) -> list[bytes]:
        """What each bot wrote down; waits for them.

        Raises:
            BenchFailed: one did not end, or not well.
        """
        until = time.monotonic() + timeout
        found = []
        for index, bot in enumerate(self.bots):
            try:
                status = bot.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise BenchFailed(f"bot {index} did not end within {timeout:.0f} s") from None
            file = self.folder / f"seen-{index}.json"
            if status != 0 or not file.exists():
                raise BenchFailed(f"bot {index} ended with {status}: {self._said(f'bot {index}')}")
            found.append(file.read_bytes())
        return found

    def ended_early(self) -> str | None:
        """Which of ours ended that should run, if any."""
        for process, name in ((self.daemon, "daemon"), *((one, "simulator") for one in self._running[:1])):
            if process is not None and process not in self.bots and process.poll() is not None:
                return f"the {name} ended with {process.returncode} during the run: {self._said(name)[-300:]}"
        return None

    # ------------------------------------------------------------------------------------------ inside

    def _start(self, name: str, module: str, *argv: str, stdin: int = subprocess.DEVNULL,
               stdout: int | None = None, **extra: str) -> subprocess.Popen[bytes]:  # fmt: skip
        kept = os.environ if self.target.kind == "configuration" else _without_ours(os.environ)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *argv], stdin=stdin, stdout=stdout or log, stderr=log,
                env={**kept, **extra}, start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 -- one thread
            )  # fmt: skip
        self._running.append(process)
        self.pids[name] = process.pid
        return process

    def _simulator(self, port_file: Path) -> Sequence[str]:
        load = self.load
        lasts = PATIENCE * 3 + load.warm_up_s + load.for_s + load.timeout_ms / 1000
        return (
            "sidecar", "sim", "--port-file", str(port_file), "--ttft-ms", f"{load.ttft_ms:g}",
            "--cadence-ms", f"{load.cadence_ms:g}", "--jitter", f"{load.jitter:g}", "--tokens", str(load.tokens),
            "--seed", str(load.seed), "--for-s", f"{lasts:.0f}",
        )  # fmt: skip

    def _configuration(self, port: int) -> str:
        """A daemon with room for this load: what is measured is the way through it, not its limits."""
        load, most = self.load, self.load.open_calls
        stamp = "?stamp=1" if load.stamps else ""
        return f"""
[frontend]
endpoint = "{self.endpoint}"
halt_file = "halt"
max_calls_in_flight = {min(100_000, max(256, 4 * most))}
queue_max = {min(1_000_000, max(512, 8 * most))}

[[upstream]]
name = "simulator"
url = "ws://127.0.0.1:{port}/v1/responses{stamp}"
dialect = "responses"
warm_connections = {min(5_000, most)}
max_connections = {min(10_000, 2 * most + 16)}

[[route]]
name = "{self.target.route or "default"}"
targets = [ {{ upstream = "simulator", model = "simulated" }} ]
timeout_ms = {load.timeout_ms}
first_delta_timeout_ms = {load.timeout_ms}
idle_timeout_ms = {load.timeout_ms}
max_output_tokens = {max(16, load.tokens or 1)}
"""

    def _wait_until_ready(self) -> None:
        """Ready, and with as many warm connections as the load wants."""
        until = time.monotonic() + PATIENCE
        if self.daemon is not None:
            self._appears(Path(self.endpoint.removeprefix("ipc://")), self.daemon, "daemon", read=False)
        wanted = min(5_000, self.load.open_calls) if self.target.kind == "simulator" else 0
        with Client(self.endpoint, name="bench") as client:
            while True:
                try:
                    report = client.probe(timeout_ms=2000)
                except CallFailed as failure:
                    if self.daemon is None:
                        raise NobodyThere(failure.message) from None
                    raise BenchFailed(
                        f"the daemon does not answer: {failure.message}; {self._said('daemon')}"
                    ) from None
                warm = sum(one.connections.get("READY", 0) for one in report.upstreams)
                if report.ready and warm >= wanted:
                    break
                if self.target.route is not None:
                    self._refuse_unknown_route(report)
                if time.monotonic() > until or (self.daemon is not None and self.daemon.poll() is not None):
                    why = "; ".join(report.reasons) or f"{warm} of {wanted} connections are warm"
                    raise BenchFailed(f"the daemon is not ready after {PATIENCE:.0f} s: {why}")
                time.sleep(0.02)
            self._refuse_unknown_route(report)
        if self.daemon is None and _is_sidecar(report.pid):
            self.pids["daemon"] = report.pid

    def _refuse_unknown_route(self, report: Report) -> None:
        route = self.target.route or "default"
        known = [one.name for one in report.routes]
        if known and route not in known:
            raise BenchFailed(f"the daemon has no route {route!r}: give --route, one of {', '.join(known)}")

    def _start_bots(self) -> None:
        for index in range(self.load.clients):
            job = Job(
                load=self.load, index=index, endpoint=self.endpoint, route=self.target.route,
                prompt=prompt_of(self.load), ask_tokens=self.target.kind != "simulator",
                result=str(self.folder / f"seen-{index}.json"),
            )  # fmt: skip
            bot = self._start(f"bot {index}", "sidecar.bench.bot", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert bot.stdin is not None
            bot.stdin.write(msgspec.json.encode(job) + b"\n")
            bot.stdin.flush()
            self.bots.append(bot)
        until = time.monotonic() + PATIENCE
        for index, bot in enumerate(self.bots):
            assert bot.stdout is not None
            there, _, _ = select.select([bot.stdout], [], [], max(0.0, until - time.monotonic()))
            if not there or bot.stdout.readline() != b"ready\n":
                raise BenchFailed(f"bot {index} does not come up: {self._said(f'bot {index}')}")

    def _appears(self, path: Path, process: subprocess.Popen[bytes], name: str, *, read: bool = True) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if path.exists() and (not read or path.read_text().strip()):
                return path.read_text() if read else ""
            if process.poll() is not None:
                raise BenchFailed(f"the {name} ended with {process.returncode}: {self._said(name)}")
            time.sleep(0.01)
        raise BenchFailed(f"the {name} did not come up within {PATIENCE:.0f} s: {self._said(name)}")

    def _said(self, name: str) -> str:
        try:
            return (self.folder / f"{name}.log").read_text(errors="replace")[-1500:].strip() or "it said nothing"
        except OSError:
            return "it said nothing"


def _without_ours(environ: os._Environ[str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith("SIDECAR_")}


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_sidecar(pid: int) -> bool:
    """The pid that a daemon gave means the same process here (it may live in another namespace)."""
    try:
        return b"sidecar" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
