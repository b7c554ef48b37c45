"""Connects and calls per second over time as an SVG, written by hand: it needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from herd_figures import STEP

_WIDTH: Final = 1080
_LEFT: Final = 70
_RIGHT: Final = 20
_PANEL: Final = 210
_TOP: Final = 92
_GAP: Final = 64
_BEFORE: Final = 5.0
_STYLE: Final = """
.card{fill:#fff;stroke:#d0d7de}.t{fill:#1f2328}.s{fill:#59636e}.g{stroke:#d0d7de}.out{fill:#59636e;fill-opacity:.12}
.l{fill:none;stroke-width:1.6}.a{stroke:#bc4c00}.b{stroke:#1a7f5a;stroke-width:3.2}
.c{stroke:#8250df;stroke-dasharray:4 3}
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif}.h{font-size:15px;font-weight:600}
@media(prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#3d444d}.t{fill:#f0f6fc}.s{fill:#9198a1}.g{stroke:#3d444d}
.a{stroke:#f0883e}.b{stroke:#3fb68b}.c{stroke:#be8fff}}
"""
#: Drawn in this order: where budgets change nothing, their dashes lie on the line of this design.
_KINDS: Final = (("no jitter", "a"), ("this design", "b"), ("budgets off", "c"))
_ALSO: Final = "brown-out, 429"


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """The dark outage with the most hosts, every design in one picture; below it the calls of a brown-out."""
    dark = [row for row in rows if row["scenario"] == "dark"]
    hosts = max(row["hosts"] for row in dark)
    shown = {row["design"]: row for row in dark if row["hosts"] == hosts}
    brown = {row["design"]: row for row in rows if row["scenario"] == _ALSO}
    panels = [
        (f"{hosts:,} hosts, dark outage: connects per second", _lines(shown, "connects")),
        (f"{hosts:,} hosts, dark outage: calls per second", _lines(shown, "calls")),
    ]
    if brown:
        few = next(iter(brown.values()))["hosts"]
        panels.append((f"{few:,} hosts, six tenths of the calls admitted: calls per second", _lines(brown, "calls")))
    height = _TOP + len(panels) * (_PANEL + _GAP) - 12
    length = max(len(values) for _, lines in panels for values in lines.values()) * STEP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>Connects and calls at the service through an outage</title>",
        f"<style>{_STYLE.strip()}</style>",
        f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '<text class="t h" x="20" y="30">Daemons through an outage of the service they share</text>',
    ]
    x = 20.0
    for design, kind in _KINDS:
        if design in shown:
            parts.append(f'<line class="l {kind}" x1="{x}" x2="{x + 26}" y1="48" y2="48"/>')
            parts.append(f'<text class="t" x="{x + 32}" y="52">{design}</text>')
            x += 150
    parts.append(
        f'<text class="s" x="{x + 10}" y="52">grey: the outage, 30 s · logarithmic · bins of {STEP:g} s</text>'
    )
    for place, (name, lines) in enumerate(panels):
        parts += _panel(name, lines, _TOP + place * (_PANEL + _GAP), length)
    return "\n".join([*parts, "</svg>", ""])


def _lines(rows: dict[str, dict[str, Any]], series: str) -> dict[str, list[float]]:
    return {design: row["series"][series] for design, row in rows.items()}


def _panel(name: str, lines: dict[str, list[float]], top: int, length: float) -> list[str]:
    highest = max(max(values, default=1.0) for values in lines.values())
    decades = max(1, math.ceil(math.log10(max(10.0, highest))))
    width = _WIDTH - _LEFT - _RIGHT

    def across(at: float) -> float:
        return _LEFT + width * (at + _BEFORE) / length

    def up(value: float) -> float:
        return top + _PANEL * (1 - (math.log10(value) if value > 1 else 0.0) / decades)

    parts = [
        f'<rect class="out" x="{across(0):.1f}" y="{top}" width="{across(30) - across(0):.1f}" height="{_PANEL}"/>',
        f'<text class="t" x="{_LEFT}" y="{top - 10}">{name}</text>',
    ]
    for power in range(decades + 1):
        y = up(10.0**power)
        parts.append(f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="s" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for second in range(0, int(length - _BEFORE) + 1, 10):
        parts.append(
            f'<text class="s" x="{across(second):.1f}" y="{top + _PANEL + 18}" text-anchor="middle">{second} s</text>'
        )
    for design, kind in _KINDS:
        if design in lines:
            points = " ".join(
                f"{across(STEP * (place + 0.5) - _BEFORE):.1f},{up(value):.1f}"
                for place, value in enumerate(lines[design])
            )
            parts.append(f'<polyline class="l {kind}" points="{points}"/>')
    return parts
