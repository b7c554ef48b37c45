"""`sidecar demo`: two simulated relays, the daemon and a bot on this machine; every promise is shown and measured.

Needs no configuration, no key and no network; ends by itself in under 30 s. Exit status 0 only if all of it happened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sidecar.client.blocking import Client
from sidecar.errors import CallFailed, SidecarError

PROMPT: Final = "EURUSD: ECB holds rates, euro slips. What now?"
ANSWER: Final = "The pause was priced in, so the dip looks thin: hold, and wait for the press conference."
#: Seconds until a process that was started must be there.
START_TIMEOUT: Final = 10.0
#: Milliseconds by which a terminal may be late on a busy machine before the demo calls the deadline missed.
LATE_MS: Final = 100.0

_CONFIGURATION: Final = """
[frontend]
endpoint = "ipc://{folder}/sidecar.sock"
halt_file = "halt"

[[upstream]]
name = "relay-a"
url = "ws://127.0.0.1:{a}/v1/responses"
dialect = "responses"
warm_connections = 4
max_connections = 16

[[upstream]]
name = "relay-b"
url = "ws://127.0.0.1:{b}/v1/chat"
dialect = "chat"
warm_connections = 4
max_connections = 16

[[route]]
name = "default"
targets = [ {{ upstream = "relay-a", model = "gpt-5-mini" }}, {{ upstream = "relay-b", model = "grok-4-fast" }} ]
timeout_ms = 5000
first_delta_timeout_ms = 1200
idle_timeout_ms = 800
"""


class Stage:
    """What is shown, and what is kept for the summary."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.began_at = time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def say(self, line: str = "", *, end: str = "\n") -> None:
        """Show a line, unless only JSON is wanted."""
        if not self.quiet:
            print(line, end=end, flush=True)

    def title(self, number: int, line: str) -> None:
        """A new part of the demo."""
        self.say(f"\n{number}. {line}")

    def promise(self, promised: str, measured: str, *, kept: bool, **figures: Any) -> None:
        """A line of the summary."""
        self.rows.append({"promised": promised, "measured": measured, "kept": kept, **figures})
        self.say(f"   {'✓' if kept else '✗'} {measured}")

    def summary(self) -> int:
        """Print it; the exit status."""
        kept = all(row["kept"] for row in self.rows)
        seconds = round(time.monotonic() - self.began_at, 1)
        if self.quiet:
            print(json.dumps({"ok": kept, "seconds": seconds, "promises": self.rows}))
        else:
            width = max(len(row["promised"]) for row in self.rows)
            self.say("\n   promised" + " " * (width - 8) + "   measured")
            for row in self.rows:
                self.say(f" {'✓' if row['kept'] else '✗'} {row['promised']:<{width}}   {row['measured']}")
            self.say(f"\n{'All of it happened' if kept else 'NOT all of it happened'}, in {seconds} s.")
        return 0 if kept else 1


def run(argv: list[str]) -> int:
    """Exit status 0 only if everything that was promised happened."""
    parser = argparse.ArgumentParser(prog="sidecar demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="nothing but the summary, as one JSON object")
    options = parser.parse_args(argv)
    stage = Stage(quiet=options.json)
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-", dir="/tmp") as folder:
        try:
            with _processes(Path(folder), stage) as (client, relay, daemon):
                _stream(stage, client)
                _choose(stage, client)
                _failover(stage, client, relay)
                _deadline(stage, client)
                _drain(stage, daemon)
        except (SidecarError, OSError, subprocess.SubprocessError, RuntimeError) as problem:
            stage.say()
            stage.promise("the demo runs", f"{type(problem).__name__}: {problem}", kept=False)
            log = Path(folder, "daemon.log")
            if log.exists():
                print(log.read_text()[-2000:], file=sys.stderr)
    return stage.summary()


@contextlib.contextmanager
def _processes(folder: Path, stage: Stage) -> Iterator[tuple[Client, subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """Relays, daemon and bot, each a process of its own; all of them gone afterwards."""
    stage.say("Two simulated relays, the daemon and a bot, on this machine only:")
    with contextlib.ExitStack() as stack:
        ports = {}
        relays = {}
        for name in "ab":
            port_file = folder / f"port-{name}"
            relays[name] = _start(
                stack, folder / f"relay-{name}.log",
                "sim", "--port-file", str(port_file), "--text", ANSWER, "--ttft-ms", "40", "--cadence-ms", "25",
                "--for-s", "60",
            )  # fmt: skip
        for name in "ab":
            ports[name] = int(_wait_for(folder / f"port-{name}", relays[name]))
            stage.say(f"   relay-{name}   ws://127.0.0.1:{ports[name]}")
        configuration = folder / "sidecar.toml"
        configuration.write_text(_CONFIGURATION.format(folder=folder, **ports))
        daemon = _start(stack, folder / "daemon.log", "serve", "-c", str(configuration))
        began = time.monotonic()
        _wait_for(folder / "sidecar.sock", daemon, read=False)
        client = stack.enter_context(Client(f"ipc://{folder}/sidecar.sock", name="demo"))
        while not (report := client.probe()).ready or not all(u.connections.get("READY") for u in report.upstreams):
            if time.monotonic() - began > START_TIMEOUT:
                raise RuntimeError(f"not ready after {START_TIMEOUT:g} s: {report.reasons}")
            time.sleep(0.02)
        warm = sum(upstream.connections.get("READY", 0) for upstream in report.upstreams)
        stage.say(f"   daemon    ipc://{folder}/sidecar.sock")
        stage.promise("warm before the first call", f"{warm} connections READY", kept=warm >= 2, warm=warm)
        yield client, relays["a"], daemon


def _start(stack: contextlib.ExitStack, log: Path, *argv: str) -> subprocess.Popen[bytes]:
    output = stack.enter_context(log.open("wb"))
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes], *, read: bool = True) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if path.exists() and (not read or path.read_text().strip()):
            return path.read_text() if read else ""
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(map(str, process.args[2:4]))} ended with {process.returncode}")  # type: ignore[index]
        time.sleep(0.01)
    raise RuntimeError(f"{path.name} did not appear within {START_TIMEOUT:g} s")


def _stream(stage: Stage, client: Client) -> None:
    stage.title(1, "A prompt goes in, tokens come back as they are made")
    stage.say(f"   > {PROMPT}\n   ", end="")
    began = time.monotonic()
    first = 0.0
    with client.stream(PROMPT, timeout_ms=5000) as stream:
        for piece in stream:
            first = first or time.monotonic() - began
            stage.say(piece, end="")
        answer = stream.answer
    stage.say()
    overhead = answer.timing.overhead_us or 0
    stage.promise(
        "an answer, token by token",
        f"first token after {1000 * first:.0f} ms, {answer.deltas} deltas, {overhead} µs of them spent in the daemon",
        kept=answer.complete and answer.text == ANSWER and answer.deltas > 1,
        first_delta_ms=round(1000 * first, 1),
        overhead_us=overhead,
        upstream=answer.upstream,
    )


def _choose(stage: Stage, client: Client) -> None:
    stage.title(2, 'choose(prompt, ["BUY", "SELL", "HOLD"], default="HOLD", timeout_ms=500)')
    prompt = "Sentiment? [[text=SELL]]"
    began = time.monotonic()
    choice = client.choose(prompt, ["BUY", "SELL", "HOLD"], default="HOLD", timeout_ms=500)
    took = 1000 * (time.monotonic() - began)
    stage.promise(
        "a choice, or the default and why",
        f"{choice} ({choice.reason}) in {took:.0f} ms",
        kept=choice == "SELL",
        ms=round(took, 1),
    )


def _failover(stage: Stage, client: Client, relay: subprocess.Popen[bytes]) -> None:
    stage.title(3, "relay-a is killed while a call waits for its first token")
    began = time.monotonic()
    with client.stream(f"{PROMPT} [[ttft_ms=400]]", timeout_ms=5000) as stream:
        stream.poll(150)
        relay.send_signal(signal.SIGKILL)
        relay.wait()
        stage.say(f"   {1000 * (time.monotonic() - began):.0f} ms: relay-a is dead\n   ", end="")
        for piece in stream:
            stage.say(piece, end="")
        answer = stream.answer
    stage.say()
    stage.promise(
        "a dead relay costs no call",
        f"answered by {answer.upstream} ({answer.model}), attempt {answer.attempts}, "
        f"after {1000 * (time.monotonic() - began):.0f} ms",
        kept=answer.upstream == "relay-b" and answer.complete and answer.text == ANSWER,
        attempts=answer.attempts,
        upstream=answer.upstream,
    )


def _deadline(stage: Stage, client: Client) -> None:
    timeout_ms = 300.0
    stage.title(4, f"An upstream that never answers, and a deadline of {timeout_ms:.0f} ms")
    began = time.monotonic()
    code = "done"
    try:
        client.ask("Anybody there? [[scenario=silent]]", timeout_ms=timeout_ms)
    except CallFailed as failure:
        code = failure.code
    late = 1000 * (time.monotonic() - began) - timeout_ms
    stage.promise(
        "a call ends by its deadline, not before it",
        f"{code} {late:+.1f} ms from the deadline",
        kept=code == "deadline_exceeded" and 0 <= late <= LATE_MS,
        late_ms=round(late, 2),
    )
    began = time.monotonic()
    choice = client.choose("Anybody? [[scenario=silent]]", ["BUY", "SELL"], default="HOLD", timeout_ms=200)
    late = 1000 * (time.monotonic() - began) - 200
    stage.promise(
        "choose() is never late",
        f"{choice} ({choice.reason}) {late:+.1f} ms from the deadline",
        kept=choice == "HOLD" and late <= LATE_MS,
        late_ms=round(late, 2),
    )


def _drain(stage: Stage, daemon: subprocess.Popen[bytes]) -> None:
    stage.title(5, "SIGTERM: the daemon drains and leaves")
    began = time.monotonic()
    daemon.terminate()
    try:
        status = daemon.wait(10)
    except subprocess.TimeoutExpired:
        status = -1
    stage.promise(
        "a drain ends with 0", f"exit {status} after {time.monotonic() - began:.1f} s", kept=status == 0, exit=status
    )
