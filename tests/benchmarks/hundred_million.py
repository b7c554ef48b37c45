"""100,000,000 tokens through one daemon without growth: its memory sampled on the way.

Answers come as fast as the upstream writes them, on several streams at once; one bot reads them all. Memory is read
after every hundredth of the tokens. The first tenth is warm-up (connections grow their buffers, the allocator its
arenas); what the rest may grow by, by the line of least squares through all of its samples and by its end, is 5 %.
`million_tokens.py` is the same in a minute. On a terminal the progress is shown.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

from common import ROOT, Bot, Verdicts, finish, median, parser, table, upstream
from subject import Subject, answering, cpu_ns, load, long_route, memory, progress, slope, upstream_flags

GROWTH: Final = 0.05
_SAMPLES: Final = 100
_WARM_UP: Final = 0.1


def pour(tree: Path, total: int, per_call: int, in_flight: int, which: str) -> dict[str, Any]:
    """The tokens of one daemon's run: (tokens, RSS KiB, USS KiB) on the way, and what it cost."""
    calls = -(-total // per_call)
    with Subject(tree) as bench:
        relay = answering(bench, which, tokens=per_call, for_s=7200)
        daemon = bench.daemon_with(
            upstream("sim", relay.url(), warm=in_flight, maximum=in_flight, max_age_s=86_400) + long_route("sim")
        )
        bench.connected(in_flight, "sim", 60)
        idle = memory(daemon.pid)
        samples: list[tuple[int, int, int]] = []
        tokens = characters = done = failed = sent = silent = 0
        next_look = 0
        with Bot(bench.endpoint) as bot:
            began, cpu = time.monotonic(), cpu_ns(daemon.pid)
            while done + failed < calls and silent < 3:
                while sent < calls and sent - done - failed < in_flight:
                    bot.call(str(sent), "a hundred million", 3_600_000)
                    sent += 1
                messages = bot.receive(5.0)
                silent = 0 if messages else silent + 1
                for message in messages:
                    if message["type"] == "delta":
                        characters += len(message["text"])
                    elif message["type"] == "done":
                        done += 1
                        tokens += message["usage"]["output_tokens"]
                    elif message["type"] == "failed":
                        failed += 1
                if tokens >= next_look:
                    now = memory(daemon.pid)
                    samples.append((tokens, now.rss, now.uss))
                    next_look += max(1, total // _SAMPLES)
                    rate = tokens / (time.monotonic() - began)
                    left = (total - tokens) / rate if rate else 0
                    progress(f"{tokens:,} of {total:,} tokens, {now.rss / 1024:.1f} MiB, {left:.0f} s to go")
            took, used = time.monotonic() - began, (cpu_ns(daemon.pid) - cpu) / 1e9
        last = memory(daemon.pid)
        alive = daemon.poll() is None
        logged = (bench.folder / "daemon.log").stat().st_size
    samples.append((tokens, last.rss, last.uss))
    return {
        "tokens": tokens, "characters": characters, "calls": calls, "done": done, "failed": failed, "seconds": took,
        "cpu_s": used, "idle_kib": idle._asdict(), "samples": samples, "alive": alive, "log_bytes": logged,
    }  # fmt: skip


def grown(samples: list[tuple[int, int, int]], column: int) -> dict[str, float]:
    """Of a column of the samples after the warm-up: KiB per million tokens by least squares, and shares of growth."""
    tokens = samples[-1][0]
    settled = [(one[0], one[column]) for one in samples if one[0] >= _WARM_UP * tokens] or [(0, samples[-1][column])]
    per_token = slope([(float(x), float(y)) for x, y in settled])
    level = median(y for _, y in settled[: max(1, len(settled) // 10)])
    return {
        "level_kib": level, "kib_per_million": 1e6 * per_token,
        "by_slope": per_token * (settled[-1][0] - settled[0][0]) / level, "at_end": settled[-1][1] / level - 1,
    }  # fmt: skip


def main() -> int:
    """Returns 0 when memory did not grow."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tokens", type=int, default=100_000_000)
    arguments.add_argument("--per-call", type=int, default=20_000)
    arguments.add_argument("--in-flight", type=int, default=16)
    arguments.add_argument("--tree", type=Path, default=ROOT, help="whose daemon")
    upstream_flags(arguments, against=False)
    options = arguments.parse_args()
    total, per_call, in_flight = options.tokens, options.per_call, options.in_flight
    if options.quick:
        total, per_call, in_flight = 60_000, 1_000, 4
    before = load()
    found = pour(options.tree.resolve(), total, per_call, in_flight, options.upstream)
    progress("")
    growth = {name: grown(found["samples"], column) for name, column in (("rss", 1), ("uss", 2))}
    verdicts = Verdicts()
    verdicts.judge(
        "every call is done, every token arrived",
        found["done"] == found["calls"] and found["tokens"] == found["calls"] * per_call and not found["failed"],
    )
    verdicts.judge("the daemon lives", found["alive"])
    if not options.quick:
        worst = max(growth[name][by] for name in growth for by in ("by_slope", "at_end"))
        verdicts.judge(f"memory after the warm-up grows by {100 * GROWTH:g} % at most", worst <= GROWTH)
    step = max(1, len(found["samples"]) // 12)
    rows = [[f"{n:,}", rss / 1024, uss / 1024] for n, rss, uss in found["samples"][::step]]
    figures = [
        [name, one["level_kib"] / 1024, one["kib_per_million"], 100 * one["by_slope"], 100 * one["at_end"]]
        for name, one in growth.items()
    ]
    text = (
        f"load before: {before:.2f}; {found['tokens']:,} tokens, {found['characters']:,} characters, "
        f"{found['calls']:,} calls, {in_flight} at once: {found['seconds']:.1f} s, "
        f"{found['cpu_s']:.1f} s of the daemon's CPU, "
        f"{found['tokens'] / found['seconds']:,.0f} tokens/s\n"
        f"idle before: {found['idle_kib']['rss'] / 1024:.1f} MiB\n\n"
        + table(rows, head=["tokens", "RSS MiB", "USS MiB"])
        + "\n\n"
        + table(figures, head=["after the warm-up", "MiB", "KiB per million", "growth %, line", "growth %, end"])
    )
    return finish({"load_before": before, "growth": growth, **found}, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
