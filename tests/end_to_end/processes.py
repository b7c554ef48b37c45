"""Relay and daemon as processes of their own, as in life; all in a short folder under /tmp, gone at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import zmq

from tests.end_to_end.keeper import keep
from tests.fakes.running import Running

#: The issue of every wait here; never part of a verdict.
PATIENCE = 45.0


class Processes(Running):
    """Starts and ends them. `with Processes() as p: p.relay(); p.daemon(...)`."""

    def __init__(self) -> None:
        super().__init__("sc-")
        self.port = 0

    def start(self, *argv: str, log: str, **environ: str) -> subprocess.Popen[bytes]:
        """`sidecar ARGV` in the background, its output in `log`."""
        with (self.folder / log).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", *argv],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environ(**environ),
            )  # fmt: skip
        self._running.append(process)
        keep(process.pid, self.folder)
        return process

    def run(self, *argv: str, timeout: float = 30, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """`sidecar ARGV` to its end."""
        return self.run_script("-m", "sidecar", *argv, timeout=timeout, stdin=stdin, **environ)

    def run_script(
        self, *argv: str, timeout: float = 30, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """`python ARGV` to its end."""
        return subprocess.run(
            [sys.executable, *argv], capture_output=True, text=True, timeout=timeout, input=stdin,
            env=self.environ(**environ), check=False,
        )  # fmt: skip

    def relay(self, *argv: str, name: str = "relay") -> int:
        """Start `sidecar sim`; its port."""
        port_file = self.folder / f"{name}.port"
        process = self.start("sim", "--port-file", str(port_file), "--for-s", "120", *argv, log=f"{name}.log")
        until(lambda: port_file.exists() and port_file.read_text().strip() != "", process, self.folder / f"{name}.log")
        self.port = int(port_file.read_text())
        return self.port

    def daemon(self, configuration: str, *, ready: bool = True, **environ: str) -> subprocess.Popen[bytes]:
        """Start `sidecar serve` with this TOML (the endpoint is ours) and wait until it is bound, or ready."""
        path = self.folder / "sidecar.toml"
        path.write_text(f'[frontend]\nendpoint = "{self.endpoint}"\n{configuration}')
        process = self.start("serve", "-c", str(path), log="daemon.log", **environ)
        until(lambda: self.report(timeout=0.5) is not None, process, self.folder / "daemon.log")
        if ready:
            until(lambda: bool((self.report() or {}).get("ready")), process, self.folder / "daemon.log")
        return process

    def report(self, *, timeout: float = 2.0) -> dict[str, Any] | None:
        """The daemon's report, or None when nobody answers."""
        answers = list(self.talk({"type": "probe"}, last=("report", "failed"), timeout=timeout))
        return answers[-1] if answers else None

    def talk(self, *messages: dict[str, Any], last: tuple[str, ...] = ("done", "failed"), timeout: float = 10.0) -> Any:
        """Send, and yield what comes until a message of type `last`, or nothing for `timeout` seconds."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as bot:
            bot.setsockopt(zmq.LINGER, 0)
            bot.connect(self.endpoint)
            for message in messages:
                bot.send(json.dumps(message).encode())
            while bot.poll(1000 * timeout):
                answer = json.loads(bot.recv())
                yield answer
                if answer["type"] in last:
                    return

    def counters(self) -> dict[str, Any]:
        """What the relay counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_stats", timeout=5) as answer:
            counted: dict[str, Any] = json.load(answer)
        return counted

    def log(self, name: str = "daemon.log") -> str:
        """What a process wrote."""
        return (self.folder / name).read_text()


def until(condition: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for `condition`; fail with the log when the process ends before, or patience does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"ended with {process.poll()}: {log.read_text()[-2000:]}")
        time.sleep(0.01)


def upstream(name: str, url: str, dialect: str = "responses", *, more: str = "") -> str:
    """An `[[upstream]]` with few connections."""
    return (
        f'[[upstream]]\nname = "{name}"\nurl = "{url}"\ndialect = "{dialect}"\n'
        f"warm_connections = 2\nmax_connections = 8\n{more}\n"
    )


def route(*targets: str, more: str = "") -> str:
    """The default `[[route]]` over upstreams of these names."""
    listed = ", ".join(f'{{ upstream = "{target}", model = "gpt-5-mini" }}' for target in targets)
    return f'[[route]]\nname = "default"\ntargets = [ {listed} ]\n{more}\n'
