"""How much of what C can do the daemon reaches: tokens at saturation and CPU per short request, beside `relay.c`.

Both relay from `upstream.c`, each in a fresh process, in turn within each repetition, with the same bot. A figure is
the relaying process's own CPU time (all threads, to the nanosecond); shown are medians over the repetitions, and the
median of the ratios taken within one repetition. The C relay leaves out what stands at the head of its source.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Bench, Bot, Verdicts, finish, median, parser, route, table, upstream

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
    sent = ended = failed = 0
    tokens = 0
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
                failed += message["type"] == "failed"
                tokens += (message.get("usage") or {}).get("output_tokens", 0)
    return {"cpu_s": (cpu_ns(pid) - cpu) / 1e9, "s": time.monotonic() - began, "tokens": tokens, "failed": failed}


def repetition(levels: list[int], per_call: int, total: int, short: int) -> dict[str, dict[str, Any]]:
    """One process of each: streams -> tokens per CPU-second, and `short` -> microseconds of CPU per call at a time."""
    found: dict[str, dict[str, Any]] = {}
    most = max(levels)
    for which in WHICH:
        with Bench() as bench:
            service = CUpstream(bench, cadence_us=0, ttft_us=0, tokens=per_call)
            if which == "c":
                pid = CRelay(bench, bench.endpoint, service.url(), connections=most).process.pid
            else:
                pid = bench.daemon(
                    upstream("c", service.url(), warm=most, maximum=most) + route("c", timeout_ms=TIMEOUT_MS)
                ).pid
                bench.until_connected(most, "c")
            mine: dict[str, Any] = {"failed": 0}
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
            found[which] = mine
    return found


def main() -> int:
    """Returns 0 when every call was answered."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--flood-tokens", type=int, default=4000, help="per answer")
    options = arguments.parse_args()
    levels, repetitions, total, short = options.streams, options.repetitions, 1_000_000, 2000
    if options.quick:
        levels, repetitions, total, short = [1, 4], 1, 20_000, 50
    try:
        build("upstream"), build("relay")
    except Missing as missing:
        print(f"cannot run here: {missing}", file=sys.stderr)
        return 2
    runs = [repetition(levels, options.flood_tokens, total, short) for _ in range(repetitions)]
    keys = [str(level) for level in levels] + ["short 1", "short 8"]
    rows, ratios = [], {}
    for key in keys:
        cost = key.startswith("short")
        each = [run["sidecar"][key] / run["c"][key] for run in runs]
        ratios[key] = median(each)
        ours, theirs = (median(run[which][key] for run in runs) for which in WHICH)
        label = f"CPU us per call of 2 tokens, {key[6:]} at once" if cost else f"tokens per CPU-s, {key} streams"
        rows.append([label, ours, theirs, ratios[key], min(each), max(each)])
    for level in levels:
        own = [median(run[which][f"{level} upstream"] for run in runs) for which in WHICH]
        rows.append([f"the upstream's own tokens per CPU-s, {level} streams", *own, "", "", ""])
        rows.append([f"tokens per second, {level} streams", *(median(r[w][f"{level}/s"] for r in runs) for w in WHICH),
                     "", "", ""])  # fmt: skip
    verdicts = Verdicts()
    verdicts.judge("every call was answered", all(run[which]["failed"] == 0 for run in runs for which in WHICH))
    text = f"medians of {repetitions} repetitions in turn\n" + table(
        rows, head=["", "sidecar", "C relay", "ratio", "least", "most"]
    )
    return finish(
        {"repetitions": repetitions, "ratio": ratios, "runs": runs}, verdicts, as_json=options.json, text=text
    )


if __name__ == "__main__":
    sys.exit(main())
