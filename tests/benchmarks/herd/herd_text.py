"""The tables, for a terminal and for docs/herd.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from common import table

Row = dict[str, Any]

CONNECTS = (
    "hosts, design", "connects/s in the outage: peak", "mean", "after: peak", "mean", "peak:mean whole", "after",
    "half connected, s", "99 %", "all", "calls/s after: peak", "mean", "99 % served from, s",
)  # fmt: skip
CALLS = (
    "scenario", "hosts, design", "offered in the outage", "tries of bots for one", "attempts",
    "per offered call", "answered", "most for one",
    "calls/s in the outage: peak", "mean", "99 % served from, s",
)  # fmt: skip


def number(value: float, unit: str = "") -> str:
    """Three figures that matter; `never` for infinity."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "never"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def _served_from(row: Row) -> str:
    """Of few hosts a second has so few calls that one of them decides: not said."""
    return number(row["served_from"]) if row["hosts"] >= 50 else "-"


def connect_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A line per run with a dark outage and one target."""
    return [
        [
            f"{row['hosts']:,}, {row['design']}",
            number(row["connects"]["outage"]["peak"]), number(row["connects"]["outage"]["mean"]),
            number(row["connects"]["after"]["peak"]), number(row["connects"]["after"]["mean"]),
            number(row["connects"]["whole"]["ratio"]), number(row["connects"]["after"]["ratio"]),
            number(row["connected"]["p50"]), number(row["connected"]["p99"]), number(row["connected"]["all"]),
            number(row["calls"]["after"]["peak"]), number(row["calls"]["after"]["mean"]), _served_from(row),
        ]
        for row in rows if row["scenario"] == "dark"
    ]  # fmt: skip


def call_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A line per run: what calls cost the service while it was in trouble."""
    return [
        [
            row["scenario"], f"{row['hosts']:,}, {row['design']}", number(row["offered"]),
            number(row["tries"] / row["offered"] if row["offered"] else math.nan), number(row["attempts"]),
            number(row["amplification"]), number(100 * row["served"], " %"), number(row["most_attempts"]),
            number(row["calls"]["outage"]["peak"]), number(row["calls"]["outage"]["mean"]), _served_from(row),
        ]
        for row in rows
    ]  # fmt: skip


def for_terminal(rows: Sequence[Row]) -> str:
    """Both tables and what the run took."""
    took = ", ".join(f"{row['scenario']} {row['hosts']} {row['design']} {row['cpu_s']:.1f} s" for row in rows)
    return "\n".join(
        [
            "Connects, dark outage (refused, and standing connections cut), one target",
            table(connect_rows(rows), head=CONNECTS), "",
            "Calls during the outage", table(call_rows(rows), head=CALLS), "", f"CPU: {took}",
        ]
    )  # fmt: skip


def markdown_table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """As GitHub reads it."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


BEGIN, END = "<!-- python tests/benchmarks/herd.py -->", "<!-- end -->"


def into_markdown(document: str, rows: Sequence[Row]) -> str:
    """The tables between the two marks of a document, the rest as it was."""
    before, _, rest = document.partition(BEGIN)
    after = rest.partition(END)[2]
    parts = [
        "**Connects**: a dark outage, one target", markdown_table(connect_rows(rows), CONNECTS),
        "**Calls**", markdown_table(call_rows(rows), CALLS),
    ]  # fmt: skip
    return before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + after
