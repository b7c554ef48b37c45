"""A result for a terminal: bars, percentiles, processes, ends, a verdict. Pure: text in, text out."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Final

from sidecar.bench.histogram import Histogram
from sidecar.bench.load import Load
from sidecar.bench.processes import Cost
from sidecar.bench.recorder import MEASURES, Counted
from sidecar.bench.result import PERCENTS, Repetition, Result, by_group, quartiles

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
#: What is drawn: the first of these that was measured.
_DRAWN: Final = ("token_us", "first_us", "total_us", "failed_us")
_NARROWEST: Final = 60


def render(result: Result, *, width: int, unicode: bool = True) -> str:
    """All of it. Bars and sentences keep to `width`, tables take what they need: some 95 columns.

    Args:
        result: what to show.
        width: of the terminal.
        unicode: False: plain ASCII.
    """
    width = max(_NARROWEST, width)
    counted = result.counted
    histograms = {name: Histogram.decode(text) for name, text in counted.histograms.items()}
    parts = [_wrapped(_headline(result), width)]
    for name in _DRAWN:
        if name in histograms:
            parts.append(f"{MEASURES[name]}\n{bars(histograms[name], width=width, unicode=unicode)}")
            break
    parts += [percentiles(histograms), processes(result.repetitions), ends(counted, result)]
    if len(result.repetitions) > 1:
        parts.append(spread(result))
    parts.append(_wrapped(verdict(result), width))
    text = "\n\n".join(parts)
    return text if unicode else text.replace("µ", "u").replace("±", "+-").encode("ascii", "replace").decode()


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in text.split("\n"))


def bars(histogram: Histogram, *, width: int, unicode: bool = True, rows: int = 14) -> str:
    """The histogram in logarithmic steps (1, 2, 5 of each decade, finer where few are wide), a bar each."""
    if not histogram.n:
        return "  (nothing)"
    edges = _edges(max(1, histogram.min), histogram.max, rows)
    counts = [
        histogram.between(low if nth else -1.0, high) for nth, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    room = max(10, width - 34)
    most = max(counts)
    lines = []
    seen = 0
    for low, count in zip(edges, counts, strict=False):
        seen += count
        bar = _bar(count / most, room, unicode=unicode)
        lines.append(f"  {shown_us(low):>8} |{bar:<{room}} {count:>9,} {100 * seen / histogram.n:6.2f}%")
    return "\n".join(lines)


def _edges(low: int, high: int, rows: int) -> list[float]:
    """Steps of one ratio from the 1-2-5 series or its refinements, from below `low` to above `high`."""
    for per_decade in (20, 10, 5, 3, 1):
        first = math.floor(per_decade * math.log10(low) + 1e-9)
        last = math.floor(per_decade * math.log10(high + 1) + 1e-9) + 1
        if last - first <= rows or per_decade == 1:
            break
    return [10 ** (nth / per_decade) for nth in range(first, last + 1)]


def _bar(share: float, room: int, *, unicode: bool) -> str:
    if not unicode:
        return "#" * math.ceil(share * room)
    eighths = math.ceil(share * room * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def percentiles(histograms: dict[str, Histogram]) -> str:
    """A row per measure; a percentile that its sample cannot carry is a dash."""
    rows = []
    for name, line in MEASURES.items():
        if name in histograms:
            one = histograms[name]
            shown = [shown_us(one.percentile(p)) if one.carries(p) else "-" for p in PERCENTS]
            rows.append([line, f"{one.n:,}", *shown, shown_us(one.max)])
    return table(["", "n", *(f"p{percent:g}" for percent in PERCENTS), "max"], rows)


def processes(runs: Sequence[Repetition]) -> str:
    """What each kind of process cost, medians over the repetitions."""
    groups = [by_group(one.costs) for one in runs]
    rows = []
    for name in dict.fromkeys(name for group in groups for name in group):
        each = [(group[name], one) for group, one in zip(groups, runs, strict=True) if name in group]
        shown = name if len(each[0][0]) == 1 else f"{name} ({len(each[0][0])})"
        rows.append([
            shown,
            f"{_median([sum(c.share for c in costs) for costs, _ in each]):.1%}",
            _user_system([c for costs, _ in each for c in costs]),
            _per([(costs, one.counted.tokens) for costs, one in each]),
            _per([(costs, one.counted.ended) for costs, one in each]),
            _memory([costs for costs, _ in each]),
        ])  # fmt: skip
    if not rows:
        return "  (no process could be looked at)"
    return table(["process", "of a core", "user:sys", "CPU/token", "CPU/call", "MiB start/peak/end"], rows)


def _user_system(costs: list[Cost]) -> str:
    user, system = sum(cost.user_s for cost in costs), sum(cost.system_s for cost in costs)
    return f"{user / (user + system):.0%}:{system / (user + system):.0%}" if user + system else "-"


def _per(each: list[tuple[list[Cost], int]]) -> str:
    found = [1e6 * sum(cost.cpu_s for cost in costs) / number for costs, number in each if number]
    return shown_us(_median(found)) if found else "-"


def _memory(each: list[list[Cost]]) -> str:
    def middle(field: str) -> str:
        sums = [
            sum(value for cost in costs if (value := getattr(cost, field)) is not None)
            for costs in each
            if any(getattr(cost, field) is not None for cost in costs)
        ]
        return f"{_median(sums):.1f}" if sums else "-"

    return f"{middle('rss_start_mib')} / {middle('rss_peak_mib')} / {middle('rss_end_mib')}"


def ends(counted: Counted, result: Result) -> str:
    """How the calls ended, and how much came per second."""
    window = sum(one.window_s for one in result.repetitions)
    rows = [
        [name, f"{number:,}", f"{100 * number / max(1, counted.started):.2f}%"]
        for name, number in sorted(counted.terminals.items(), key=lambda item: -item[1])
    ]
    if counted.unfinished:
        rows.append(
            ["NO TERMINAL", f"{counted.unfinished:,}", f"{100 * counted.unfinished / max(1, counted.started):.2f}%"]
        )
    tries = ", ".join(
        f"{tries}: {number:,}" for tries, number in sorted(counted.attempts.items(), key=lambda i: int(i[0]))
    )
    return (
        table(["calls ended", "n", "share"], rows)
        + f"\n  attempts {tries or '-'}; by a backup beside a silent attempt: {counted.backup_used:,}"
        + f"\n  per second: {counted.ended / window:,.1f} calls, {counted.tokens / window:,.0f} tokens, "
        + f"{counted.messages / window:,.0f} messages"
    )


def spread(result: Result) -> str:
    """The main figures over the repetitions: what a comparison goes by."""
    rows = []
    for name, values in result.figures.items():
        there = [value for value in values if value is not None]
        if there and name.endswith((".p50", ".p99", ".daemon")):
            low, middle, high = quartiles(there)
            rows.append([name, str(len(there)), f"{middle:,.4g}", f"{low:,.4g} .. {high:,.4g}"])
    return table(["over the repetitions", "n", "median", "quartiles"], rows)


def verdict(result: Result) -> str:
    """One line for the calls, one for each reason not to trust, one for each note."""
    counted = result.counted
    if result.ok:
        lines = [f"OK: {counted.started:,} calls, and every one had its terminal"]
    elif not counted.started:
        lines = ["NOT OK: no call was begun"]
    else:
        lines = [f"NOT OK: {counted.unfinished:,} of {counted.started:,} calls had no terminal"]
    lines += [f"NOT TRUSTWORTHY: {problem}" for problem in result.problems]
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def _headline(result: Result) -> str:
    load, machine, one = result.load, result.machine, result.repetitions[0]
    where = {
        "simulator": "simulator and daemon started here",
        "configuration": f"daemon started with {result.target.configuration}",
        "endpoint": f"daemon at {result.target.endpoint}",
    }[result.target.kind]
    times = f", {len(result.repetitions)} times" if len(result.repetitions) > 1 else ""
    loads = f"load {one.load_before:g} before, {result.repetitions[-1].load_after:g} after"
    bots = f"{load.clients} {load.client} {'bot' if load.clients == 1 else 'bots'}"
    return (
        f"{load.rate:g} calls/s ({load.arrivals}, seed {load.seed}) for {load.for_s:g} s "
        f"after {load.warm_up_s:g} s{times}; {bots}; {shape(load)}\n"
        f"{where}; {machine.get('cores', '?')} cores, Python {machine.get('python', '?')}, {loads}"
    )


def shape(load: Load) -> str:
    """The answers, in words."""
    tokens = "tokens as they come" if load.tokens is None else f"{load.tokens:,} tokens"
    pace = f", one every {load.cadence_ms:g} ms ± {load.jitter:.0%}" if load.cadence_ms else ""
    return f"{tokens}{pace}, {'streamed' if load.stream else 'not streamed'}"


def shown_us(value: float) -> str:
    """Microseconds for people: three digits and a unit."""
    for limit, divisor, unit in ((1e3, 1, "µs"), (1e6, 1e3, "ms")):
        if value < limit * 0.9995:
            return f"{value / divisor:.3g}{unit}"
    return f"{value / 1e6:.3g}s" if value < 1e9 else f"{value / 1e6:.0f}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, right-aligned but for the first."""
    shown = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    lines = []
    for row in shown:
        cells = [f"{row[0]:<{widths[0]}}", *(f"{cell:>{size}}" for cell, size in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _median(values: list[float]) -> float:
    return quartiles(sorted(values))[1]
