"""The ratio table and what stands behind it, for a terminal and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

from peer_ledger import Ledger
from peer_rows import Row, flood, quartiles, short

TITLES: Final = {
    "direct": "direct `websockets`", "direct-tls": "direct `websockets`, wss", "http-direct": "direct, raw SSE client",
    "sdk-chat": "openai SDK, chat SSE", "sdk-chat-aiohttp": "openai SDK, chat SSE over aiohttp",
    "sdk-chat-tls": "openai SDK, chat SSE, https", "sdk-ws": "openai SDK, `responses.connect()`",
    "asyncio": "sidecar + `AsyncClient`", "asyncio-quiet": "the same, call log off",
    "asyncio-tls": "sidecar + `AsyncClient`, wss", "blocking": "sidecar + `Client`, a thread per stream",
    "wire": "sidecar, bare wire", "wire-quiet": "sidecar, call log off", "wire-tls": "sidecar, wss",
    "c-relay": "C relay (yardstick)", "nginx": "nginx, 1 worker", "nginx-auto": "nginx, a worker per core",
    "portkey": "Portkey", "tensorzero": "TensorZero", "litellm": "LiteLLM, 1 worker", "bifrost": "Bifrost",
}  # fmt: skip


def number(value: float) -> str:
    """Three figures that say something."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown, padded so that a terminal shows it as well."""
    every = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in every) for column in range(len(head))]

    def shown(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    return "\n".join([shown(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(shown, lines)])


def ratio_table(found: Sequence[Row]) -> str:
    """The goals, in their order."""
    lines = []
    for row in found:
        low, middle, high = quartiles(row.ratios)
        goal = row.goal
        sign = ">=" if goal.more else "<="
        bars = [f"{sign} {number(bar)}" if bar is not None else "-" for bar in (goal.goal, goal.moonshot)]
        mine = f"{number(statistics.median(row.ours))} {goal.unit}" if row.ours else "-"
        theirs = f"{number(statistics.median(row.theirs))} {goal.unit}" if row.theirs and goal.theirs else "-"
        said = f"{number(middle)} [{number(low)}, {number(high)}]" if row.ratios else "-"
        lines.append([str(goal.row), goal.what, mine, theirs, said, *bars, row.verdict(), str(len(row.ratios))])
    head = ["#", "ratio", "ours", "theirs", "median [quartiles]", "goal", "moonshot", "verdict", "n"]
    return table(head, lines)


def _median(ledger: Ledger, key: str, *path: str) -> float:
    values = []
    for repetition in range(ledger.repetitions()):
        found: Any = ledger.figures(key, repetition)
        for name in path:
            found = None if found is None else found.get(name)
        if found is not None:
            values.append(float(found))
    return statistics.median(values) if values else math.nan


def latency_table(ledger: Ledger) -> str:
    """Every way at every number of streams: medians over the repetitions."""
    lines = []
    keys = [key for key in ledger.data["cells"] if key.startswith("latency ")]
    for key in sorted(keys, key=lambda one: (list(TITLES).index(one.split("/")[1]), int(one.split("/")[0].split()[1]))):
        group, way = key.split("/")
        tokens = _median(ledger, key, "tokens")
        if math.isnan(tokens):
            lines.append([TITLES[way], group.split()[1], f"failed: {ledger.failure(key)}"[:60], "", "", "", "", ""])
            continue
        lines.append(
            [
                TITLES[way], group.split()[1], number(_median(ledger, key, "token_us", "p50")),
                number(_median(ledger, key, "token_us", "p99")), number(_median(ledger, key, "first_us", "p50")),
                number(_median(ledger, key, "relay_cpu_s") / tokens * 1e6),
                number(_median(ledger, key, "bot_cpu_s") / tokens * 1e6), number(_median(ledger, key, "rss_mib")),
            ]
        )  # fmt: skip
    head = ["way", "streams", "p50 us", "p99 us", "TTFT p50 us", "relay CPU us/token", "client CPU us/token", "RSS MiB"]
    return table(head, lines)


def relay_table(ledger: Ledger) -> str:
    """Saturation, short requests and the time to the first text alone, by relay."""
    lines = []
    ways = {key.split("/")[1] for key in ledger.data["cells"] if key.split("/")[0] in ("flood", "short", "first")}
    for way in (way for way in TITLES if way in ways):
        read = []
        for reading in (flood(way), short(way)):
            values = [reading(ledger, repetition) for repetition in range(ledger.repetitions())]
            read.append([value for value in values if value is not None])
        lines.append(
            [TITLES[way], *(number(statistics.median(values)) if values else "-" for values in read),
             number(_median(ledger, f"first/{way}", "first_us", "p50"))]
        )  # fmt: skip
    return table(["relay", "tokens per core-second", "CPU us per short request", "TTFT p50 us, one at a time"], lines)


def about(ledger: Ledger) -> str:
    """Machine, load, versions, settings, and what is missing."""
    data = ledger.data
    lines = [f"- {name}: {value}" for name, value in data["about"].items()]
    if load := data["load"]:
        lines.append(f"- load average while measuring: median {statistics.median(load)}, most {max(load)} "
                     "(the measurements themselves are part of it)")  # fmt: skip
    for name, version in data["versions"].items():
        lines.append(f"- {name} {version}: {'; '.join(data['settings'].get(name, []))}")
    lines += [f"- missing: {name}: {why}" for name, why in data["missing"].items()]
    told = {(key, why) for key in data["cells"] if (why := ledger.failure(key))}
    lines += [f"- failed: {key}: {why}" for key, why in sorted(told)]
    return "\n".join(lines)


def whole(ledger: Ledger, found: Sequence[Row]) -> str:
    """All of it."""
    return "\n\n".join(
        [
            "### Goals", ratio_table(found), "### Latency", latency_table(ledger), "### Relays", relay_table(ledger),
            "### What was measured", about(ledger),
        ]
    )  # fmt: skip
