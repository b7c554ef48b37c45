"""Several daemons on one host: what two give over one, and what pinning daemon and bot to cores does.

Throughput: bots as processes of their own keep calls in flight, as floods of long answers and as short calls; what
ended within a window of the shared clock is counted. The same bots go to one daemon or to two. Everything runs on
this machine, so upstream's and bots' CPU is shown beside the daemons': a second daemon has only what those leave.

Pinning: streams of 60 tokens a second with jitter through one daemon to one `AsyncClient`, each token the upstream's
CLOCK_MONOTONIC at its sending; daemon and bot are moved between runs. The upstream is never pinned.

Ways are taken in turn within each repetition, by the same processes; shown are medians. Only ratios of one run mean
anything; the load of the machine before is part of the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from common import (
    ROOT,
    Bench,
    Relay,
    Verdicts,
    _die_with_parent,
    finish,
    median,
    mono_us,
    parser,
    route,
    table,
    upstream,
)
from workers_bot import cpu_ns, pin, prefer

from tests.benchmarks.yardsticks.build import Missing
from tests.benchmarks.yardsticks.upstream import CUpstream

TIMEOUT_MS: Final = 60_000


Upstream = Relay | CUpstream


def upstream_of(bench: Bench, which: str, *, tokens: int, cadence_ms: float, jitter: float) -> Upstream:
    """The one in C, which is never the bottleneck; `sidecar sim` where it is asked for, or nothing can be compiled."""
    if which != "sim":
        try:
            return CUpstream(bench, tokens=tokens, cadence_us=1000 * cadence_ms, jitter=jitter, ttft_us=0)
        except Missing as missing:
            if which == "c":
                raise SystemExit(str(missing)) from None
    return bench.relay(
        "--tokens", str(tokens), "--cadence-ms", str(cadence_ms), "--jitter", str(jitter), "--ttft-ms", "0"
    )


class Worker:
    """A bot in a process of its own."""

    def __init__(self, bench: Bench, number: int) -> None:
        with (bench.folder / f"bot{number}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/benchmarks/workers_bot.py")], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, env=bench.environ(PYTHONPATH=str(ROOT)), cwd=ROOT,
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        bench._running.append(self.process)
        self.pid = self.process.pid
        self._log = bench.folder / f"bot{number}.log"
        self.result()

    def order(self, what: str, **fields: object) -> None:
        """Begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Of the order before, or that it is there; waits for it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a bot ended before its time: {self._log.read_text(errors='replace')[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


class Host:
    """The upstream, so many daemons that share one configuration file, and as many bots."""

    def __init__(self, bench: Bench, url: str, daemons: int, bots: int, connections: int) -> None:
        self.cores = sorted(os.sched_getaffinity(0))
        limit = f"max_calls_in_flight = {4 * connections}\n"
        file = bench.folder / "sidecar.toml"
        tables = upstream("sim", url, warm=connections, maximum=connections + 16)
        times = {"timeout_ms": TIMEOUT_MS, "first_delta_timeout_ms": TIMEOUT_MS, "idle_timeout_ms": TIMEOUT_MS}
        file.write_text(f"[frontend]\n{limit}[log]\ncalls = false\n{tables}{route('sim', **times)}")
        self.endpoints: list[str] = []
        self.daemons: list[int] = []
        for number in range(daemons):
            bench.endpoint = f"ipc://{bench.folder}/{number}/sidecar.sock"
            process = bench.start(
                "-m", "sidecar", "serve", "-c", str(file), "--endpoint", bench.endpoint, log="daemon.log"
            )
            bench.until(lambda: bench.report() is not None, process)
            bench.until_connected(connections, "sim")
            self.endpoints.append(bench.endpoint)
            self.daemons.append(process.pid)
        self.bots = [Worker(bench, number) for number in range(bots)]

    def place(self, daemons: list[list[int]], bots: list[list[int]]) -> None:
        """Cores for each daemon and each bot."""
        for pid, cores in zip(self.daemons, daemons, strict=True):
            pin(pid, cores)
        for bot, cores in zip(self.bots, bots, strict=True):
            pin(bot.pid, cores)


# ------------------------------------------------------------------------------------------------ one daemon or two


def run_load(
    host: Host, relay: Upstream, way: str, turn: int, work: dict[str, Any], warm_s: float, seconds: float
) -> dict[str, Any]:
    """One way once: `1`, `2`, or `2 pinned` (daemon and bots together on a core each)."""
    everywhere, first, last = host.cores, host.cores[:1], host.cores[-1:]
    pinned = way == "2 pinned"
    host.place([first, last] if pinned else [everywhere] * 2, [(first, last)[n % 2] if pinned else everywhere
               for n in range(len(host.bots))])  # fmt: skip
    begin = mono_us() + int(1e6 * warm_s)
    end = begin + int(1e6 * seconds)
    for number, bot in enumerate(host.bots):
        # One daemon: now this one, now the other, so that neither's luck decides.
        endpoint = host.endpoints[turn % 2 if way == "1" else number % 2]
        bot.order("load", endpoint=endpoint, begin_us=begin, end_us=end, **work)
    pids = {"daemons": host.daemons, "upstream": [relay.process.pid], "bots": [bot.pid for bot in host.bots]}
    time.sleep(max(0.0, (begin - mono_us()) / 1e6))
    before = {who: sum(map(cpu_ns, them)) for who, them in pids.items()}
    time.sleep(max(0.0, (end - mono_us()) / 1e6))
    cpu = {who: (sum(map(cpu_ns, them)) - before[who]) / 1e9 for who, them in pids.items()}
    found = [bot.result() for bot in host.bots]
    calls = sum(one["done"] for one in found)
    return {
        "calls_per_s": calls / seconds,
        "calls_per_daemon_cpu_s": calls / cpu["daemons"] if cpu["daemons"] else 0.0,
        "bad": sum(one["failed"] + one["lost"] for one in found),
        "codes": [one["codes"] for one in found],
        **{f"{who}_cores": used / seconds for who, used in cpu.items()},
    }


def throughput(options: Any) -> dict[str, Any]:
    """Kind of work -> way -> medians."""
    works = {
        "flood": ({"in_flight": options.in_flight // 2, "prompt": "flood", "stream": True}, options.flood_tokens),
        "short": ({"in_flight": options.in_flight // 2, "prompt": "short [[tokens=2]]", "stream": False}, 1),
    }
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {} for kind in works}
    with Bench() as bench:
        relay = upstream_of(bench, options.upstream, tokens=options.flood_tokens, cadence_ms=0, jitter=0)
        host = Host(bench, relay.url(), daemons=2, bots=2, connections=options.in_flight)
        ways = ["1", "2", "2 pinned"]
        for turn in range(options.repetitions):
            for kind, (work, _) in works.items():
                for way in ways[turn % 3 :] + ways[: turn % 3]:
                    found = run_load(host, relay, way, turn, work, options.warm_s, options.seconds)
                    runs[kind].setdefault(way, []).append(found)
    result: dict[str, Any] = {
        "upstream": type(relay).__name__,
        "tokens_per_answer": options.flood_tokens,
        "in_flight": options.in_flight,
        "runs": runs,
    }
    for kind, (_, tokens) in works.items():
        result[kind] = {way: _medians(found, tokens) for way, found in runs[kind].items()}
        ones = [run["calls_per_s"] for run in runs[kind]["1"]]
        for way in ways:
            each = [run["calls_per_s"] / one for run, one in zip(runs[kind][way], ones, strict=True) if one]
            result[kind][way].update(
                ratio=median(each), ratio_least=min(each, default=0), ratio_most=max(each, default=0)
            )
    result["bad"] = sum(run["bad"] for by in runs.values() for found in by.values() for run in found)
    return result


def _medians(found: list[dict[str, Any]], tokens: int) -> dict[str, float]:
    names = ("calls_per_s", "calls_per_daemon_cpu_s", "daemons_cores", "upstream_cores", "bots_cores")
    middle = {name: median(run[name] for run in found) for name in names}
    return {
        "per_s": middle.pop("calls_per_s") * tokens,
        "per_daemon_cpu_s": middle.pop("calls_per_daemon_cpu_s") * tokens,
        **middle,
    }


# ------------------------------------------------------------------------------------------------ pinning


def ways_of_pinning(cores: list[int], *, priorities: bool) -> dict[str, dict[str, Any]]:
    """Name -> cores of the daemon and of the bot; their rank."""
    one, other = cores[:1], cores[-1:]
    if priorities:
        free = {"daemon": cores, "bot": cores}
        ranks = {"unpinned": "normal", "unpinned, nice -10": "nice", "unpinned, SCHED_FIFO": "fifo"}
        if Path("/proc/self/autogroup").exists():
            ranks["unpinned, group of all three x9"] = "group"
        return {name: {**free, "rank": rank} for name, rank in ranks.items()}
    return {
        "unpinned": {"daemon": cores, "bot": cores},
        "both on one core": {"daemon": one, "bot": one},
        "a core each": {"daemon": one, "bot": other},
    }


def weigh_group(nice: int) -> None:
    """What this session's processes together weigh beside those of others, where the kernel groups by session.

    -10 is about nine times the weight, as CPUWeight=930 would be for a unit. Within the group nothing changes.
    """
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(nice))


def pinning(options: Any) -> dict[str, Any]:
    """Streams -> way -> medians, and ratios to `unpinned` of the same repetition."""
    levels, tokens = options.streams, options.tokens
    found: dict[str, dict[str, list[dict[str, Any]]]] = {str(level): {} for level in levels}
    with Bench() as bench:
        relay = upstream_of(bench, options.upstream, tokens=tokens, cadence_ms=1000 / 60, jitter=0.3)
        host = Host(bench, relay.url(stamp=1), daemons=1, bots=1, connections=max(levels))
        ways = ways_of_pinning(host.cores, priorities=options.priorities)
        names = list(ways)
        bot, daemon = host.bots[0], host.daemons[0]
        for turn in range(options.repetitions):
            for level in levels:
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    way = ways[name]
                    pin(daemon, way["daemon"])
                    rank = way.get("rank", "")
                    if rank:
                        prefer(daemon, rank)
                        weigh_group(-10 if rank == "group" else 0)
                    bot.order("paced", endpoint=host.endpoints[0], streams=level, daemon=daemon, cores=way["bot"],
                              rank=rank)  # fmt: skip
                    found[str(level)].setdefault(name, []).append(bot.result())
    keys = ("p50", "p99", "ttft_p50", "daemon_us_per_token", "bot_us_per_token")
    medians: dict[str, dict[str, dict[str, float]]] = {}
    for level, by_way in found.items():
        medians[level] = {}
        base = by_way["unpinned"]
        for name, runs in by_way.items():
            row = {key: median(run[key] for run in runs) for key in keys}
            # The best repetition: least disturbed by whatever else ran on the machine.
            row["p50_least"] = min(run["p50"] for run in runs)
            row["p99_least"] = min(run["p99"] for run in runs)
            row["cpu_least"] = min(map(_cpu, runs))
            row["p50_ratio"] = median(run["p50"] / free["p50"] for run, free in zip(runs, base, strict=True))
            row["p99_ratio"] = median(run["p99"] / free["p99"] for run, free in zip(runs, base, strict=True))
            row["cpu_ratio"] = median(_cpu(run) / _cpu(free) for run, free in zip(runs, base, strict=True))
            medians[level][name] = row
    whole = all(run["tokens"] == int(n) * tokens for n, by in found.items() for runs in by.values() for run in runs)
    return {
        "upstream": type(relay).__name__,
        "tokens_per_stream": tokens,
        "medians": medians,
        "runs": found,
        "every_token_arrived": whole,
    }


def _cpu(run: dict[str, float]) -> float:
    return run["daemon_us_per_token"] + run["bot_us_per_token"]


# ------------------------------------------------------------------------------------------------ the command


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--only", choices=["throughput", "pinning"])
    arguments.add_argument("--upstream", choices=["auto", "c", "sim"], default="auto", help="auto: c if it compiles")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--in-flight", type=int, default=32, help="calls at once, of both bots together")
    arguments.add_argument("--flood-tokens", type=int, default=3000, help="of a flood's answer")
    arguments.add_argument("--warm-s", type=float, default=0.7)
    arguments.add_argument("--seconds", type=float, default=2.0, help="of each window")
    arguments.add_argument("--streams", type=int, nargs="+", default=[16, 64], help="for pinning")
    arguments.add_argument("--tokens", type=int, default=90, help="per stream, for pinning")
    arguments.add_argument(
        "--priorities",
        action="store_true",
        help="for pinning: ranks instead of cores; as root, and by setsid: it changes what its whole session weighs",
    )
    options = arguments.parse_args()
    if options.quick:
        options.repetitions, options.in_flight, options.flood_tokens = 1, 4, 500
        options.warm_s, options.seconds, options.streams, options.tokens = 0.2, 0.3, [4], 15
    result: dict[str, Any] = {
        "load_before": os.getloadavg(),
        "cores": sorted(os.sched_getaffinity(0)),
        "repetitions": options.repetitions,
    }
    verdicts = Verdicts()
    head = f"load before {result['load_before'][0]:.2f}, cores {result['cores']}"
    text = [f"{head}, medians of {options.repetitions} repetitions in turn"]
    if options.only != "pinning":
        result["throughput"] = found = throughput(options)
        verdicts.judge("every call of every load ended done", found["bad"] == 0)
        text.append(_throughput_text(found))
    if options.only != "throughput":
        try:
            result["pinning"] = found = pinning(options)
        finally:
            if options.priorities:
                weigh_group(0)
        verdicts.judge("every token of every paced stream arrived", found["every_token_arrived"])
        text.append(_pinning_text(found))
    return finish(result, verdicts, as_json=options.json, text="\n\n".join(text))


def _throughput_text(found: dict[str, Any]) -> str:
    parts = []
    for kind, what in (("flood", f"tokens, answers of {found['tokens_per_answer']}"), ("short", "calls of two tokens")):
        rows = [
            [way, row["per_s"], f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})",
             row["per_daemon_cpu_s"], row["daemons_cores"], row["upstream_cores"], row["bots_cores"]]
            for way, row in found[kind].items()
        ]  # fmt: skip
        head = ["daemons", "per s", "to one", "per CPU-s of daemons", "cores: daemons", "upstream", "bots"]
        parts.append(f"{what}; {found['in_flight']} in flight, two bots, {found['upstream']}\n{table(rows, head=head)}")
    return "\n\n".join(parts)


def _pinning_text(found: dict[str, Any]) -> str:
    rows = [
        [f"{level} streams, {name}", row["p50"], row["p99"], row["ttft_p50"], row["daemon_us_per_token"],
         row["bot_us_per_token"], f"{row['p50_ratio']:.2f}", f"{row['p99_ratio']:.2f}", f"{row['cpu_ratio']:.2f}",
         row["p50_least"], row["p99_least"], row["cpu_least"]]
        for level, by_way in found["medians"].items()
        for name, row in by_way.items()
    ]  # fmt: skip
    head = ["60 tokens/s", "p50 us", "p99 us", "TTFT p50", "daemon us/token", "bot us/token", "p50 ratio", "p99 ratio",
            "CPU ratio", "least p50", "least p99", "least CPU"]  # fmt: skip
    return f"daemon and AsyncClient on cores, {found['upstream']}; ratios to unpinned\n{table(rows, head=head)}"


if __name__ == "__main__":
    sys.exit(main())
