"""A daemon of any tree as the subject of a measurement, an upstream that is not the bottleneck, and their figures."""

from __future__ import annotations

import argparse
import array
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from common import ROOT, Bench, Bot, Relay, route

#: What makes a kernel's clock of the CPU time of another process (clock_getcpuclockid(3)).
_CPU_CLOCK: Final = 2
#: Seconds that a traced daemon may take to look through its memory.
_EXPLAIN_S: Final = 180.0
#: For answers that never begin.
SILENT_MS: Final = 10_000_000


class Answering(Protocol):
    """An upstream: `common.Relay`, or `yardsticks.upstream.CUpstream`."""

    process: subprocess.Popen[bytes]

    def url(self, **query: Any) -> str:
        """Its `responses` address; `query` steers how it answers."""
        ...

    def counters(self) -> dict[str, Any]:
        """What it counted."""
        ...


class Subject(Bench):
    """As `Bench`, with the daemon from the sources under `tree`, and as it ships: a log line per call, to a file."""

    def __init__(self, tree: Path = ROOT) -> None:
        super().__init__()
        self.tree = tree
        self._watch: list[str] = []

    def watch(self, *, lag: bool = False, explain: bool = False) -> None:
        """Run the daemon under `watched_daemon.py`; call it before the daemon is started."""
        self._watch += ["--lag", str(self.folder / "lag")] if lag else []
        self._watch += ["--explain", str(self.folder / "explain")] if explain else []

    def serve(self) -> subprocess.Popen[bytes]:
        """See `Bench.serve`."""
        command = ["serve", "-c", str(self.configuration)]
        if self._watch:
            launcher = str(Path(__file__).with_name("watched_daemon.py"))
            return self._start(launcher, *self._watch, "--", *command)
        return self._start("-m", "sidecar", *command)

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        # `start` sets PYTHONPATH to this tree; the first entry that has the product wins.
        program = f"import sys, runpy; sys.path.insert(0, {str(self.tree)!r}); sys.argv = sys.argv[1:]; "
        program += (
            "runpy.run_module('sidecar', run_name='__main__', alter_sys=True)"
            if argv[0] == "-m"
            else "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        return self.start("-c", program, *(argv[1:] if argv[0] == "-m" else argv), log="daemon.log")

    def daemon_with(self, configuration: str, *, frontend: str = "", ready: bool = True) -> subprocess.Popen[bytes]:
        """As `daemon`, with `[log] calls` on."""
        text = f'[frontend]\nendpoint = "{self.endpoint}"\n{frontend}\n[log]\nformat = "json"\n{configuration}'
        self.configuration.write_text(text)
        process = self.serve()
        self.until(lambda: self.report() is not None, process)
        if ready:
            self.until(lambda: bool((self.report() or {}).get("ready")), process)
        return process

    def connected(self, number: int, upstream: str, patience: float) -> None:
        """As `until_connected`, for numbers that take their time; asks ten times a second, over one connection."""
        deadline = time.monotonic() + patience
        ready = 0
        with Bot(self.endpoint, hello=False) as bot:
            while time.monotonic() < deadline:
                bot.send({"type": "probe"})
                for message in bot.receive(5.0):
                    for one in message.get("upstreams", []):
                        if one["name"] == upstream:
                            states = {state.lower(): count for state, count in one["connections"].items()}
                            ready = states.get("ready", 0)
                if ready >= number:
                    return
                time.sleep(0.1)
        raise SystemExit(f"{ready} of {number} connections in {patience:g} s")

    def lags(self) -> list[tuple[int, int]]:
        """(due at, late by) of the daemon's timers, microseconds; the last second may be missing until it ended."""
        values = array.array("q")
        data = (self.folder / "lag").read_bytes()
        values.frombytes(data[: len(data) // 16 * 16])
        return list(zip(values[::2], values[1::2], strict=True))

    def explained(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """A snapshot of the daemon's memory now."""
        file = self.folder / "explain"
        before = len(file.read_text().splitlines()) if file.exists() else 0
        process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + _EXPLAIN_S
        while not file.exists() or file.read_text().count("\n") <= before:
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"no explanation in {_EXPLAIN_S:g} s, or ended: {process.poll()}")
            time.sleep(0.2)
        found: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
        return found


def upstream_flags(made: argparse.ArgumentParser, *, against: bool = True) -> None:
    """--upstream, and --against."""
    made.add_argument(
        "--upstream", choices=("auto", "c", "sim"), default="auto", help="in C, never the bottleneck; or the simulator"
    )
    if against:
        made.add_argument("--against", type=Path, metavar="TREE", help="the daemon of another tree, in turn with ours")


def trees(options: argparse.Namespace) -> dict[str, Path]:
    """Name -> tree."""
    return {"here": ROOT, **({"other tree": options.against.resolve()} if options.against else {})}


def answering(
    bench: Bench, which: str, *, tokens: int, cadence_ms: float = 0.0, jitter: float = 0.0,
    certificate: tuple[Path, Path] | None = None, for_s: float = 1800,
) -> Answering:  # fmt: skip
    """An upstream that answers at once with so many tokens.

    Args:
        bench: where it belongs.
        which: `c`, `sim`, or `auto`: C where there is a compiler.
        tokens, cadence_ms, jitter: of an answer; cadence 0 is a flood.
        certificate: PEM files of a certificate and its key: wss.
        for_s: it stops by itself then.
    """
    if which != "sim":
        from tests.benchmarks.yardsticks.build import Missing
        from tests.benchmarks.yardsticks.upstream import CUpstream

        try:
            cert, key = certificate or (None, None)
            flags: dict[str, Any] = {"tokens": tokens, "cadence_us": 1000 * cadence_ms, "jitter": jitter, "ttft_us": 0}
            return CUpstream(bench, for_s=for_s, cert=cert, key=key, **flags)
        except Missing as missing:
            if which == "c":
                raise SystemExit(str(missing)) from None
    argv = ["--tokens", str(tokens), "--cadence-ms", str(cadence_ms), "--jitter", str(jitter), "--ttft-ms", "0"]
    if certificate is not None:
        argv += ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])]
    relay = bench.relay(*argv, for_s=for_s)
    return _SecureRelay(relay) if certificate is not None else relay


class _SecureRelay:
    """A `Relay` that speaks TLS."""

    def __init__(self, relay: Relay) -> None:
        self.process, self._relay = relay.process, relay

    def url(self, **query: Any) -> str:
        return self._relay.url(**query).replace("ws://", "wss://", 1)

    def counters(self) -> dict[str, Any]:
        return {}


def authority(folder: Path) -> tuple[Path, Path, Path]:
    """A private CA and what it vouches for, for 127.0.0.1: the CA's file, a certificate, its key."""
    import trustme

    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    ca.cert_pem.write_to_path(str(files[0]))
    certificate.private_key_pem.write_to_path(str(files[2]))
    for index, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(files[1]), append=index > 0)
    return files


def long_route(*targets: str, **more: object) -> str:
    """`common.route` whose clocks are of no consequence."""
    return route(
        *targets,
        **{"timeout_ms": 3_600_000, "first_delta_timeout_ms": 3_600_000, "idle_timeout_ms": 3_600_000, **more},
    )


def cpu_ns(pid: int) -> int:
    """CPU time of a process and its threads so far, those that ended included, to the nanosecond."""
    return time.clock_gettime_ns((~pid << 3) | _CPU_CLOCK)


def waited_ns(pid: int) -> int:
    """How long a process's main thread could have run so far and had no core: others' work, no fault of its own."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1])


class Memory(NamedTuple):
    """KiB of a process: resident; its share of what is shared; what is its alone."""

    rss: int
    pss: int
    uss: int


def memory(pid: int) -> Memory:
    """Now, from smaps_rollup."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0])
    return Memory(fields["Rss"], fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line of least squares through them; 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def load() -> float:
    """The machine's load average over the last minute: figures are to be read with it."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def progress(text: str) -> None:
    """For a person who waits: on stderr, where that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
