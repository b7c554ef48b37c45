"""What a warm connection and a running stream cost in memory, what a connect costs in CPU, and what idling costs.

The daemon is a process of its own, started anew for each number of connections; what it holds is read from
smaps_rollup: resident, its proportional share, and what is its alone (USS). A connection's cost is the slope of USS
from 200 connections to 1,000, so that what the first one loads (ssl, a certificate store, caches) is nobody's. The
kernel's socket buffers are not in it. TLS is that of a private CA, verified.

`--explain` says what the bytes are: the daemon runs traced, and two numbers of connections are compared by type of
object and by line of code. What C libraries allocate (OpenSSL, most of a wss connection) is in neither; it is the rest.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

from common import Bot, Verdicts, finish, median, parser, table, upstream
from subject import (
    Memory,
    Subject,
    answering,
    authority,
    cpu_ns,
    load,
    long_route,
    memory,
    progress,
    slope,
    trees,
    upstream_flags,
)

#: KiB per warm connection.
GOAL_KIB: Final = {"ws": 4.0, "wss": 36.0}
#: Seconds that a number of connects may take.
_PATIENCE: Final = 240.0


def configured(bench: Subject, url: str, number: int, ca: Path | None, *, most: int = 0) -> str:
    """One upstream of so many warm connections."""
    text = upstream("sim", url, warm=number, maximum=max(number, most, 1), max_age_s=86_400)
    if ca is not None:
        text += f'[upstream.tls]\nca_file = "{ca}"\n'
    return text + long_route("sim")


def held(pid: int) -> Memory:
    """Memory once it has come to rest."""
    before = memory(pid)
    for _ in range(20):
        time.sleep(0.25)
        now = memory(pid)
        if abs(now.uss - before.uss) < 16:
            return now
        before = now
    return before


def at_rest(tree: Path, scheme: str, number: int, which: str, idle_s: float) -> dict[str, Any]:
    """So many warm connections: until they stand, and while nothing happens but pings."""
    with Subject(tree) as bench:
        ca, certificate, key = authority(bench.folder) if scheme == "wss" else (None, None, None)
        pair = (certificate, key) if certificate is not None and key is not None else None
        relay = answering(bench, which, tokens=60, certificate=pair)
        began = time.monotonic()
        daemon = bench.daemon_with(configured(bench, relay.url(), number, ca), ready=False)
        if number:
            bench.connected(number, "sim", _PATIENCE)
        took, used = time.monotonic() - began, cpu_ns(daemon.pid) / 1e9
        found = held(daemon.pid)
        idle: dict[str, float] = {}
        if idle_s:
            cpu, since = cpu_ns(daemon.pid), time.monotonic()
            time.sleep(idle_s)
            idle = {"idle_cpu_share": (cpu_ns(daemon.pid) - cpu) / 1e9 / (time.monotonic() - since)}
            found = memory(daemon.pid)
        lost = (bench.folder / "daemon.log").read_text().count("connection.lost")
    return {"memory": found._asdict(), "until_connected_s": took, "cpu_until_connected_s": used, "lost": lost, **idle}


def running(tree: Path, streams: int, which: str, seconds: float) -> dict[str, Any]:
    """So many streams at once at 20 tokens a second each."""
    with Subject(tree) as bench:
        relay = answering(bench, which, tokens=100_000, cadence_ms=50, jitter=0.3)
        daemon = bench.daemon_with(
            configured(bench, relay.url(), streams, None), frontend=f"max_calls_in_flight = {streams + 16}"
        )
        bench.connected(streams, "sim", _PATIENCE)
        with Bot(bench.endpoint) as bot:
            before = held(daemon.pid)
            for number in range(streams):
                bot.call(str(number), "go on and on", 3_000_000)
            flowing: set[str] = set()
            failed = 0
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for message in bot.receive(0.1):
                    failed += message["type"] == "failed"
                    if message["type"] == "delta":
                        flowing.add(message["id"])
            during = memory(daemon.pid)
    return {
        "before": before._asdict(), "during": during._asdict(), "flowing": len(flowing), "failed": failed,
        "kib_per_stream": (during.uss - before.uss) / streams, "rss_mib": during.rss / 1024,
    }  # fmt: skip


def explained(tree: Path, scheme: str, low: int, high: int, which: str) -> dict[str, Any]:
    """Per connection: bytes and objects by type, bytes by line."""
    snapshots = []
    for number in (low, high):
        with Subject(tree) as bench:
            ca, certificate, key = authority(bench.folder) if scheme == "wss" else (None, None, None)
            pair = (certificate, key) if certificate is not None and key is not None else None
            relay = answering(bench, which, tokens=60, certificate=pair)
            bench.watch(explain=True)
            daemon = bench.daemon_with(configured(bench, relay.url(), number, ca), ready=False)
            bench.connected(number, "sim", _PATIENCE)
            time.sleep(1.0)
            snapshots.append(bench.explained(daemon))
    first, second = snapshots
    share = high - low
    types = {
        kind: [(now - then) / share for now, then in zip(found, first["types"].get(kind, (0, 0)), strict=True)]
        for kind, found in second["types"].items()
    }
    lines = {line: (size - first["lines"].get(line, 0)) / share for line, size in second["lines"].items()}
    return {
        "types": {kind: found for kind, found in types.items() if found[1] >= 8},
        "lines": {line: size for line, size in lines.items() if size >= 8},
        "bytes_by_type": sum(found[1] for found in types.values()), "bytes_by_line": sum(lines.values()),
    }  # fmt: skip


def _explanation(scheme: str, found: dict[str, Any]) -> str:
    by_type = sorted(found["types"].items(), key=lambda item: -float(item[1][1]))[:30]
    by_line = sorted(found["lines"].items(), key=lambda item: -float(item[1]))[:30]
    return (
        f"\n\n{scheme}, per connection: {found['bytes_by_type']:,.0f} bytes of objects that the collector can reach, "
        f"{found['bytes_by_line']:,.0f} bytes allocated by Python\n"
        + table([[kind, *figures] for kind, figures in by_type], head=["type", "objects", "bytes"])
        + "\n\n"
        + table([[line, size] for line, size in by_line], head=["allocated at", "bytes"])
    )


def main() -> int:
    """Returns 0 when the goals were met."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--levels", type=int, nargs="+", default=[0, 200, 1000], help="warm connections")
    arguments.add_argument("--streams", type=int, default=256)
    arguments.add_argument("--idle-s", type=float, default=12, help="with the most connections; a ping every 10 s")
    arguments.add_argument("--schemes", nargs="+", choices=("ws", "wss"), default=["ws", "wss"])
    arguments.add_argument("--repetitions", type=int, default=1)
    arguments.add_argument("--explain", action="store_true", help="what the bytes are, by type and by line")
    upstream_flags(arguments)
    options = arguments.parse_args()
    levels, streams, idle_s = options.levels, options.streams, options.idle_s
    if options.quick:
        levels, streams, idle_s = [0, 8], 8, 0.5
    before = load()
    levels = sorted(set(levels))
    runs: dict[str, dict[str, Any]] = {
        name: {scheme: {str(n): [] for n in levels} for scheme in options.schemes} | {"streams": []}
        for name in trees(options)
    }
    for _ in range(options.repetitions):
        for scheme in options.schemes:
            for number in levels:
                for name, tree in trees(options).items():
                    progress(f"{name}: {scheme}, {number} connections")
                    idle = idle_s if number == levels[-1] else 0.0
                    runs[name][scheme][str(number)].append(at_rest(tree, scheme, number, options.upstream, idle))
        for name, tree in trees(options).items():
            progress(f"{name}: {streams} streams")
            runs[name]["streams"].append(running(tree, streams, options.upstream, 1.0 if options.quick else 10.0))
    explanations: dict[str, Any] = {}
    if options.explain:
        low, high = (4, 12) if options.quick else (50, 150)
        for name, tree in trees(options).items():
            for scheme in options.schemes:
                progress(f"{name}: explaining {scheme}")
                explanations[f"{name}, {scheme}"] = explained(tree, scheme, low, high, options.upstream)
    progress("")
    verdicts = Verdicts()
    text = f"load before: {before:.2f}; {options.repetitions} repetitions, medians\n"
    rows: list[list[object]] = []
    summary: dict[str, dict[str, float]] = {}
    for name, found in runs.items():
        for scheme in options.schemes:
            every: dict[str, list[dict[str, Any]]] = found[scheme]
            rows += [_row(f"{name}, {scheme}, {number} connections", every[number]) for number in every]
            summary[f"{name}, {scheme}"] = _slopes(every, levels)
    text += table(rows, head=["", "RSS MiB", "PSS MiB", "USS MiB", "s until they stand", "CPU s", "idle CPU %"])
    slopes = [[name, *figures.values()] for name, figures in summary.items()]
    text += "\n\n" + table(
        slopes, head=["a warm connection", "USS KiB", "RSS KiB", "CPU ms to connect", "wall ms", "idle CPU us/s"]
    )
    stream_rows = []
    for name, found in runs.items():
        each = found["streams"]
        kib = median(one["kib_per_stream"] for one in each)
        stream_rows.append([name, kib, median(one["rss_mib"] for one in each), each[0]["flowing"], each[0]["failed"]])
        verdicts.judge(
            f"{name}: {streams} streams flow", all(o["flowing"] == streams and not o["failed"] for o in each)
        )
    text += "\n\n" + table(stream_rows, head=[f"{streams} streams", "KiB a stream", "RSS MiB", "flow", "failed"])
    for name, explanation in explanations.items():
        text += _explanation(name, explanation)
    for scheme in options.schemes:
        lost = sum(one["lost"] for runs_of in runs["here"][scheme].values() for one in runs_of)
        verdicts.judge(f"{scheme}: no connection is lost while idle", lost == 0)
        if not options.quick:
            goal = GOAL_KIB[scheme]
            verdicts.judge(f"{scheme}: <= {goal:g} KiB a connection", summary[f"here, {scheme}"]["uss_kib"] <= goal)
    result = {"load_before": before, "runs": runs, "per_connection": summary, "explained": explanations}
    return finish(result, verdicts, as_json=options.json, text=text)


def _row(label: str, each: list[dict[str, Any]]) -> list[object]:
    kinds = [median(one["memory"][kind] for one in each) / 1024 for kind in ("rss", "pss", "uss")]
    idle = median(100 * one["idle_cpu_share"] for one in each if "idle_cpu_share" in one)
    return [
        label, *kinds, median(one["until_connected_s"] for one in each),
        median(one["cpu_until_connected_s"] for one in each), idle,
    ]  # fmt: skip


def _slopes(every: dict[str, list[dict[str, Any]]], levels: list[int]) -> dict[str, float]:
    """Per connection, over the levels that have any, if there are two."""
    some = [number for number in levels if number]
    some = some if len(some) > 1 else levels

    def rise(of: str, part: str | None = None) -> float:
        points = []
        for number in some:
            values = [one[of] if part is None else one[of][part] for one in every[str(number)]]
            points.append((float(number), median(values)))
        return slope(points)

    most = every[str(levels[-1])]
    idle = median(one.get("idle_cpu_share", 0.0) for one in most)
    return {
        "uss_kib": rise("memory", "uss"), "rss_kib": rise("memory", "rss"),
        "connect_cpu_ms": 1000 * rise("cpu_until_connected_s"), "connect_wall_ms": 1000 * rise("until_connected_s"),
        "idle_cpu_us_per_s": 1e6 * idle / max(1, levels[-1]),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
