"""What the benchmarks share: relay and daemon as processes of their own, a bot on the bare wire, figures, tables.

Everything binds loopback or ipc, lives in a short folder under /tmp, and is gone at the end; a child whose parent
was killed is killed by the kernel. Times inside are seconds, CLOCK_MONOTONIC instants (`mono_us`) microseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # this tree's product, wherever the command is run from

import msgspec  # noqa: E402
import zmq  # noqa: E402

from tests.fakes.running import Running  # noqa: E402

#: Seconds until a process that does not come up is given up; never part of a verdict.
PATIENCE: Final = 30.0
TERMINALS: Final = ("done", "failed")
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


def mono_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same in every process of a host."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


# ------------------------------------------------------------------------------------------------ processes


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Relay:
    """A running `sidecar sim`."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def url(self, **query: object) -> str:
        """Its `responses` address, steered by `query` (see `simulator.behaviour.Behaviour`)."""
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return f"ws://127.0.0.1:{self.port}/v1/responses" + (f"?{asked}" if asked else "")

    def counters(self) -> dict[str, Any]:
        """What it counted."""
        return self._get("_stats")

    def command(self, path: str) -> dict[str, Any]:
        """Steer it: `_scenario?name=cut`, `_kill`, ..."""
        return self._get(path)

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


class Bench(Running):
    """Starts processes and ends them: `with Bench() as bench: relay = bench.relay(); bench.daemon(...)`."""

    def __init__(self) -> None:
        super().__init__("sb-")
        self.configuration = self.folder / "sidecar.toml"

    def start(self, *argv: str, log: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        """`python ARGV` in the background with this tree's product, what it says in `log`."""
        return self.spawn([sys.executable, *argv], log=log, stdout=stdout, PYTHONPATH=str(ROOT))

    def spawn(
        self, argv: Sequence[str], *, log: str, stdout: int | None = None, **extra: str
    ) -> subprocess.Popen[bytes]:
        """Any program in the background, with `extra` in its environment; it dies with this process, and with us."""
        with (self.folder / log).open("wb") as output:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stdout or output, stderr=output,
                env=self.environ(**extra), cwd=ROOT, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self._running.append(process)
        return process

    def relay(self, *argv: str, name: str = "relay", for_s: float = 1800) -> Relay:
        """Start `sidecar sim ARGV`; it stops by itself after `for_s` at the latest."""
        port_file = self.folder / f"{name}.port"
        process = self.start(
            "-m", "sidecar", "sim", "--port-file", str(port_file), "--for-s", str(for_s), *argv, log=f"{name}.log"
        )
        self.until(lambda: port_file.exists() and port_file.read_text().strip() != "", process, f"{name}.log")
        return Relay(int(port_file.read_text()), process)

    def daemon(self, configuration: str, *, frontend: str = "", ready: bool = True) -> subprocess.Popen[bytes]:
        """Start `sidecar serve` with this TOML, quiet about calls, and wait until it is bound, or ready."""
        self.configuration.write_text(
            f'[frontend]\nendpoint = "{self.endpoint}"\n{frontend}\n[log]\ncalls = false\n{configuration}'
        )
        process = self.serve()
        self.until(lambda: self.report() is not None, process, "daemon.log")
        if ready:
            self.until(lambda: bool((self.report() or {}).get("ready")), process, "daemon.log")
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        """`sidecar serve` with the configuration written before; waits for nothing."""
        return self.start("-m", "sidecar", "serve", "-c", str(self.configuration), log="daemon.log")

    def report(self, *, timeout: float = 1.0) -> dict[str, Any] | None:
        """The daemon's report, or None when nobody answers in time."""
        with Bot(self.endpoint, hello=False) as bot:
            bot.send({"type": "probe"})
            for message in bot.receive(timeout):
                if message["type"] == "report":
                    return message
        return None

    def until_connected(self, number: int, upstream: str) -> None:
        """Wait until so many connections of an upstream are READY."""

        def enough() -> bool:
            found = [one for one in (self.report() or {}).get("upstreams", []) if one["name"] == upstream]
            states = {state.lower(): count for state, count in found[0]["connections"].items()} if found else {}
            return int(states.get("ready", 0)) >= number

        self.until(enough)

    def until(
        self, condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, log: str = "daemon.log"
    ) -> None:
        """Wait for `condition`; fail with the log when the process ends before, or patience does."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline:
                said = (self.folder / log).read_text(errors="replace")[-3000:]
                raise SystemExit(f"not in time, or ended ({process and process.poll()}): {said}")
            time.sleep(0.02)


def upstream(name: str, url: str, *, warm: int, maximum: int, **more: object) -> str:
    """An `[[upstream]]`; `more` are further keys."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    return "\n".join(
        ["[[upstream]]", f'name = "{name}"', f'url = "{url}"', 'dialect = "responses"',
         f"warm_connections = {warm}", f"max_connections = {maximum}", *lines, ""]
    )  # fmt: skip


def route(*targets: str, **more: object) -> str:
    """The default `[[route]]` over upstreams of these names; no fuse on the length of an answer."""
    listed = ", ".join(f'{{ upstream = "{target}", model = "gpt-5-mini" }}' for target in targets)
    keys: dict[str, object] = {"max_output_tokens": 100_000_000, **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(["[[route]]", 'name = "default"', f"targets = [ {listed} ]", *lines, ""])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads so far; the kernel counts in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def rss_mib(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / (1 << 20)


# ------------------------------------------------------------------------------------------------ a bot


class Bot:
    """A DEALER that speaks the bare wire in MessagePack: it sees every message, also those a client would drop.

    Args:
        endpoint: ipc address.
        batch: say so in `hello`.
        hello: say hello at all.
        hwm: RCVHWM; ZeroMQ's own default is 1000.
    """

    def __init__(self, endpoint: str, *, batch: bool = True, hello: bool = True, hwm: int = 1000) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, hwm)
        self.socket.connect(endpoint)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder().decode
        if hello:
            self.send({"type": "hello", "name": "benchmark", "batch": batch})
            if not any(one["type"] == "welcome" for one in self.receive(10)):
                raise SystemExit("no welcome")

    def __enter__(self) -> Bot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go."""
        self.socket.close()
        self._context.term()

    def send(self, message: dict[str, Any]) -> None:
        """One message."""
        self.socket.send(self._encode(message))

    def call(self, name: str, prompt: str, timeout_ms: float, **fields: Any) -> int:
        """Send a call now; the instant of its deadline in microseconds, by the shared clock."""
        sent = mono_us()
        self.send({
            "type": "call", "id": name, "input": prompt, "timeout_ms": timeout_ms, "sent_mono_us": sent, **fields
        })  # fmt: skip
        return sent + int(1000 * timeout_ms)

    def receive(self, timeout: float) -> list[dict[str, Any]]:
        """What there is, waiting up to `timeout` seconds for the first message."""
        if not self.socket.poll(max(0, math.ceil(timeout * 1000))):
            return []
        found: list[dict[str, Any]] = []
        try:
            while len(found) < 1000:
                message = self._decode(self.socket.recv(zmq.NOBLOCK))
                found.extend(message) if isinstance(message, list) else found.append(message)
        except zmq.Again:
            pass
        return found


# ------------------------------------------------------------------------------------------------ figures


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, by nearest rank; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """n, p50, p90, p99, max."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": percentile(ordered, 0.5),
        "p90": percentile(ordered, 0.9),
        "p99": percentile(ordered, 0.99),
        "max": ordered[-1] if ordered else math.nan,
    }


def median(values: Iterable[float]) -> float:
    """The middle one, NaN of none."""
    return percentile(sorted(values), 0.5)


def histogram(values: Sequence[float], *, unit: str, rows: int = 10, width: int = 46) -> str:
    """Bars on a logarithmic scale, for a terminal."""
    positive = [value for value in values if value > 0]
    if not positive:
        return "  (nothing above 0)"
    low, high = math.log10(min(positive)), math.log10(max(positive))
    step = (high - low) / rows or 1.0
    counts = [0] * rows
    for value in positive:
        counts[min(rows - 1, int((math.log10(value) - low) / step))] += 1
    lines = [f"  {len(values) - len(positive):>8} at or below 0"] if len(positive) < len(values) else []
    for index, count in enumerate(counts):
        bar = "#" * math.ceil(width * count / max(counts))
        lines.append(f"  {10 ** (low + index * step):>10.3g} {unit} |{bar:<{width}} {count}")
    return "\n".join(lines)


def table(rows: Sequence[Sequence[object]], *, head: Sequence[str]) -> str:
    """Columns, right-aligned but for the first."""
    shown = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    lines = []
    for row in shown:
        cells = [f"{row[0]:<{widths[0]}}"] + [f"{cell:>{size}}" for cell, size in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


# ------------------------------------------------------------------------------------------------ the command


def parser(description: str) -> argparse.ArgumentParser:
    """With the flags that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    made.add_argument("--quick", action="store_true", help="a few seconds, for a smoke test; its figures mean little")
    return made


class Verdicts:
    """What was promised and whether it was kept; the exit status of a benchmark."""

    def __init__(self) -> None:
        self.kept: dict[str, bool] = {}

    def judge(self, promise: str, kept: bool) -> None:
        """Note it."""
        self.kept[promise] = bool(kept)

    def show(self) -> str:
        """A line each."""
        return "\n".join(f"  [{'kept' if kept else 'NOT KEPT'}] {promise}" for promise, kept in self.kept.items())


def finish(result: dict[str, Any], verdicts: Verdicts, *, as_json: bool, text: str) -> int:
    """Print; 0 when everything promised was kept, else 1."""
    if as_json:
        print(json.dumps({**result, "promises": verdicts.kept}))
    else:
        print(f"{text}\n\n{verdicts.show()}")
    return 0 if all(verdicts.kept.values()) else 1
