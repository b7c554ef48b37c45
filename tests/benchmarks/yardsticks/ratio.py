"""How much of what C can do the daemon reaches: tokens at saturation and CPU per short request, beside `relay.c`.

And at 60 tokens a second per stream: what a token costs, and how late it is by the bare wire.

Both relay from `upstream.c`, each in a fresh process, in turn within each repetition, with the same bot. A figure is
the relaying process's own CPU time (all threads, to the nanosecond); shown are medians over the repetitions, and the
median of the ratios taken within one repetition. The C relay leaves out what stands at the head of its source.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Bench, Bot, Verdicts, finish, median, parser, percentiles, route, table, upstream
from hot_path import by_wire

from tests.benchmarks.yardsticks.build import Missing, build
from tests.benchmarks.yardsticks.relay import CRelay
from tests.benchmarks.yardsticks.upstream import CUpstream

TIMEOUT_MS: Final = 60_000
WHICH: Final = ("sidecar", "c")
_CPU_CLOCK: Final = 2


def cpu_ns(pid: int) -> int:
    """CPU time of a process and its threads so far (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~pid << 3) | _CPU_CLOCK)


def load(bot: Bot, pid: int, prompt: str, calls: int, streams: int) -> dict[str, Any]:
    """So many calls, so many of them at once, and what they cost `pid`."""
    sent = ended = tokens = 0
    failed: Counter[str] = Counter()
    cpu, began = cpu_ns(pid), time.monotonic()
    while ended < calls:
        while sent < calls and sent - ended < streams:
            bot.call(str(sent), prompt, TIMEOUT_MS)
            sent += 1
        received = bot.receive(10)
        if not received:
            raise SystemExit(f"silence after {ended} of {calls} calls")
        for message in received:
            if message["type"] in ("done", "failed"):
                ended += 1
                failed.update([message["code"]] if message["type"] == "failed" else [])
                tokens += (message.get("usage") or {}).get("output_tokens", 0)
    return {"cpu_s": (cpu_ns(pid) - cpu) / 1e9, "s": time.monotonic() - began, "tokens": tokens, "failed": failed}


def started(bench: Bench, which: str, service: CUpstream, connections: int) -> int:
    """The pid of what relays, all its connections standing."""
    if which == "c":
        return CRelay(bench, bench.endpoint, service.url(), connections=connections).process.pid
    process = bench.daemon(
        upstream("c", service.url(), warm=connections, maximum=connections)
        + route("c", timeout_ms=TIMEOUT_MS, first_delta_timeout_ms=TIMEOUT_MS, idle_timeout_ms=TIMEOUT_MS)
    )
    bench.until_connected(connections, "c")
    return process.pid


def saturated(which: str, levels: list[int], per_call: int, total: int, short: int) -> dict[str, Any]:
    """Streams -> tokens per CPU-second, and `short` -> microseconds of CPU per call of two tokens."""
    mine: dict[str, Any] = {"failed": Counter()}
    most = max(levels)
    with Bench() as bench:
        service = CUpstream(bench, cadence_us=0, ttft_us=0, tokens=per_call)
        pid = started(bench, which, service, most)
        with Bot(bench.endpoint) as bot:
            load(bot, pid, "[[tokens=100]]", 2 * most, most)  # imports and caches are nobody's steady state
            for streams in levels:
                before = cpu_ns(service.process.pid)
                one = load(bot, pid, "flood", max(streams, -(-total // per_call)), streams)
                mine[str(streams)] = one["tokens"] / one["cpu_s"]
                mine[f"{streams}/s"] = one["tokens"] / one["s"]
                mine[f"{streams} upstream"] = one["tokens"] / max(1, cpu_ns(service.process.pid) - before) * 1e9
                mine["failed"] += one["failed"]
            for at_once in (1, 8):
                one = load(bot, pid, "[[tokens=2]]", short, at_once)
                mine[f"short {at_once}"] = one["cpu_s"] / short * 1e6
                mine["failed"] += one["failed"]
    return mine


def paced(which: str, levels: list[int], tokens: int) -> dict[str, Any]:
    """Streams -> microseconds: CPU per token of the relaying process and of the upstream, lateness p50 and p99."""
    mine: dict[str, Any] = {"lost": 0}
    with Bench() as bench:
        service = CUpstream(bench, cadence_us=16_667, jitter=0.3, ttft_us=0, tokens=tokens, stamp=1)
        pid = started(bench, which, service, max(levels))
        for streams in levels:
            by_wire(bench.endpoint, 1)
            cpu, theirs = cpu_ns(pid), cpu_ns(service.process.pid)
            sample = by_wire(bench.endpoint, streams)
            late = percentiles(sample.token_us)
            mine[f"paced {streams}"] = (cpu_ns(pid) - cpu) / 1e3 / sample.tokens
            mine[f"paced {streams} upstream"] = (cpu_ns(service.process.pid) - theirs) / 1e3 / sample.tokens
            mine[f"p50 {streams}"], mine[f"p99 {streams}"] = late["p50"], late["p99"]
            mine["lost"] += streams * tokens - sample.tokens
    return mine


def main() -> int:
    """Returns 0 when every call was answered."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--flood-tokens", type=int, default=4000, help="per answer")
    options = arguments.parse_args()
    levels, repetitions, total, short, tokens = options.streams, options.repetitions, 1_000_000, 2000, 120
    if options.quick:
        levels, repetitions, total, short, tokens = [1, 4], 1, 20_000, 50, 20
    try:
        for name in ("upstream", "relay"):
            build(name)
    except Missing as missing:
        print(f"cannot run here: {missing}", file=sys.stderr)
        return 2
    runs = []
    for number in range(repetitions):
        turned = WHICH if number % 2 == 0 else WHICH[::-1]
        runs.append({
            which: {**saturated(which, levels, options.flood_tokens, total, short), **paced(which, levels, tokens)}
            for which in turned
        })  # fmt: skip
    labels = {str(n): f"tokens per CPU-s, {n} streams" for n in levels}
    labels |= {f"short {n}": f"CPU us per call of 2 tokens, {n} at once" for n in (1, 8)}
    for streams in levels:
        labels |= {f"paced {streams}": f"CPU us per token at 60/s, {streams} streams"}
        labels |= {f"{which} {streams}": f"lateness {which} us at 60/s, {streams} streams" for which in ("p50", "p99")}
    rows, ratios = [], {}
    for key, label in labels.items():
        each = [run["sidecar"][key] / run["c"][key] for run in runs]
        ratios[key] = median(each)
        rows.append([label, *(median(run[w][key] for run in runs) for w in WHICH), ratios[key], min(each), max(each)])
    for streams in levels:
        for key, label in (
            (f"{streams}/s", "tokens per second"), (f"{streams} upstream", "the upstream's own tokens per CPU-s"),
            (f"paced {streams} upstream", "the upstream's own CPU us per token at 60/s"),
        ):  # fmt: skip
            own = [median(run[which][key] for run in runs) for which in WHICH]
            rows.append([f"{label}, {streams} streams", *own, "", "", ""])
    verdicts = Verdicts()
    each_run = [run[which] for run in runs for which in WHICH]
    verdicts.judge("every call was answered", not any(one["failed"] for one in each_run))
    verdicts.judge("every token arrived", all(one["lost"] == 0 for one in each_run))
    failed = {which: dict(sum((run[which]["failed"] for run in runs), Counter())) for which in WHICH}
    text = f"medians of {repetitions} repetitions in turn\n" + table(
        rows, head=["", "sidecar", "C relay", "ratio", "least", "most"]
    )
    text += f"\n  calls that failed, by code: {failed}"
    return finish(
        {"repetitions": repetitions, "ratio": ratios, "runs": runs}, verdicts, as_json=options.json, text=text
    )


if __name__ == "__main__":
    sys.exit(main())
