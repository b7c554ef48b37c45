"""`probe` while the daemon is saturated, and while every upstream is down: round trips, and the command's wall time.

Saturated: floods on 64 streams, read by a bot of its own process. Down: the relay is gone, and a bot keeps asking.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from common import (
    ROOT,
    Bench,
    Bot,
    Verdicts,
    cpu_seconds,
    finish,
    histogram,
    parser,
    percentiles,
    route,
    table,
    upstream,
)


def load(endpoint: str, seconds: float, in_flight: int) -> int:
    """What the loading process does: calls, so many at once, for so long; prints how many ended."""
    with Bot(endpoint) as bot:
        until = time.monotonic() + seconds
        sent = ended = 0
        while time.monotonic() < until:
            while sent - ended < in_flight:
                bot.call(str(sent), "load", 5_000)
                sent += 1
            failed = 0
            for message in bot.receive(0.1):
                if message["type"] in ("done", "failed"):
                    ended += 1
                    failed += message["type"] == "failed"
            if failed:
                time.sleep(0.002)  # refusals come back at once: 64 every 2 ms are load enough
    print(ended)
    return 0


def round_trips(bench: Bench, number: int, interval: float) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of so many probes over one connection, and the last report."""
    values: list[float] = []
    report: dict[str, Any] = {}
    with Bot(bench.endpoint, hello=False) as bot:
        for _ in range(number):
            began = time.perf_counter()
            bot.send({"type": "probe"})
            answers = bot.receive(5.0)
            if answers:
                values.append(1000 * (time.perf_counter() - began))
                report = answers[-1]
            time.sleep(interval)
    return values, report


def command_times(bench: Bench, number: int) -> tuple[list[float], list[int]]:
    """Milliseconds of `sidecar probe`, process start and end included, and its exit statuses."""
    values, statuses = [], []
    for _ in range(number):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", "probe", "--live", "--endpoint", bench.endpoint],
            capture_output=True, check=False, timeout=10, cwd=bench.folder, env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        values.append(1000 * (time.perf_counter() - began))
        statuses.append(done.returncode)
    return values, statuses


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--probes", type=int, default=1000, help="per state")
    arguments.add_argument("--commands", type=int, default=20, help="runs of `sidecar probe` per state")
    arguments.add_argument("--streams", type=int, default=64)
    arguments.add_argument("--load", metavar="ENDPOINT", help="be the loading process (internal)")
    arguments.add_argument("--seconds", type=float, default=30.0, help="of --load (internal)")
    options = arguments.parse_args()
    if options.load:
        return load(options.load, options.seconds, options.streams)
    probes, commands, streams = (50, 2, 8) if options.quick else (options.probes, options.commands, options.streams)
    trips: dict[str, list[float]] = {}
    walls: dict[str, list[float]] = {}
    exits: dict[str, list[int]] = {}
    shown: dict[str, dict[str, Any]] = {}
    with Bench() as bench:
        relay = bench.relay("--cadence-ms", "0", "--ttft-ms", "0", "--tokens", "4000")
        daemon = bench.daemon(
            upstream("sim", relay.url(), warm=streams, maximum=streams)
            + route("sim", first_delta_timeout_ms=60_000, idle_timeout_ms=60_000)
        )
        bench.until_connected(streams, "sim")

        def measure(state: str) -> None:
            cpu, began = cpu_seconds(daemon.pid), time.monotonic()
            trips[state], report = round_trips(bench, probes, 0.005)
            busy = (cpu_seconds(daemon.pid) - cpu) / (time.monotonic() - began)
            walls[state], exits[state] = command_times(bench, commands)
            names = ("live", "ready", "in_flight", "queued", "loop_lag_us", "reasons")
            shown[state] = {"cores_busy": busy, **{name: report.get(name) for name in names}}

        def loaded(state: str) -> None:
            loader = bench.start(
                "tests/benchmarks/probe_under_load.py", "--load", bench.endpoint, "--streams", str(streams),
                "--seconds", "300", log="load.log",
            )  # fmt: skip
            time.sleep(0.3 if options.quick else 1.0)  # until the load has begun
            measure(state)
            loader.terminate()
            loader.wait()

        measure("idle")
        loaded("saturated")
        relay.process.kill()
        relay.process.wait()
        bench.until(lambda: not (bench.report() or {"ready": True})["ready"])
        loaded("all upstreams down")
        alive = daemon.poll() is None
    figures = {state: percentiles(values) for state, values in trips.items()}
    wall = {state: percentiles(values) for state, values in walls.items()}
    verdicts = Verdicts()
    verdicts.judge("every probe was answered", all(len(values) == probes for values in trips.values()))
    verdicts.judge("`sidecar probe --live` says 0 in every state", not any(any(codes) for codes in exits.values()))
    verdicts.judge("not ready, and says so, when every upstream is down", shown["all upstreams down"]["ready"] is False)
    verdicts.judge("the daemon lives", alive)
    if not options.quick:
        verdicts.judge("answered in milliseconds: p99 <= 20 ms in every state",
                       all(found["p99"] <= 20 for found in figures.values()))  # fmt: skip
    rows = [
        [state, *(figures[state][key] for key in ("n", "p50", "p90", "p99", "max")), wall[state]["p50"],
         wall[state]["max"], shown[state]["cores_busy"]]
        for state in figures
    ]  # fmt: skip
    head = ["ms", "n", "p50", "p90", "p99", "max", "command p50", "command max", "daemon's cores"]
    text = table(rows, head=head) + "\n\nround trip, saturated\n" + histogram(trips["saturated"], unit="ms")
    result = {"round_trip_ms": figures, "command_ms": wall, "exit_statuses": exits, "reports": shown}
    return finish(result, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
