"""Time to first delta and the share over HTTPS over time as an SVG, written by hand: it needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

_WIDTH: Final = 1080
_LEFT: Final = 70
_RIGHT: Final = 20
_PANEL: Final = 190
_TOP: Final = 76
_GAP: Final = 58
_LEGEND: Final = (
    "grey: WebSockets reset, then refused · green: median · orange: slowest of each half second · "
    "violet: share over HTTPS"
)
_STYLE: Final = """
.card{fill:#fff;stroke:#d0d7de}.t{fill:#1f2328}.s{fill:#59636e}.g{stroke:#d0d7de}.out{fill:#59636e;fill-opacity:.12}
.l{fill:none;stroke-width:1.8}.a{stroke:#bc4c00}.b{stroke:#1a7f5a}.c{stroke:#8250df}
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif}.h{font-size:15px;font-weight:600}
@media(prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#3d444d}.t{fill:#f0f6fc}.s{fill:#9198a1}.g{stroke:#3d444d}
.a{stroke:#f0883e}.b{stroke:#3fb68b}.c{stroke:#be8fff}}
"""


def plot(result: dict[str, Any], *, per_second: float) -> str:
    """Two panels: milliseconds to the first delta (median and worst of each step), and per cent over HTTPS."""
    steps = result["steps"]
    length = steps[-1]["at_s"] + steps[1]["at_s"] - steps[0]["at_s"]
    height = _TOP + 2 * (_PANEL + _GAP) - 10
    worst = max(step["max_ms"] for step in steps if not math.isnan(step["max_ms"]))
    top = 50 * math.ceil(worst / 50)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>Time to first delta while WebSockets fail</title>",
        f"<style>{_STYLE.strip()}</style>",
        f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="t h" x="20" y="30">Upgrades refused in the middle of {per_second:g} calls a second</text>',
        f'<text class="s" x="20" y="52">{_LEGEND}</text>',
    ]
    first = [("b", [step["p50_ms"] for step in steps]), ("a", [step["max_ms"] for step in steps])]
    parts += _panel("ms to the first delta", first, _TOP, top, length, result["outage_s"])
    share = [("c", [100 * step["sse"] for step in steps])]
    parts += _panel("% of the calls over HTTPS", share, _TOP + _PANEL + _GAP, 100, length, result["outage_s"])
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    name: str,
    lines: Sequence[tuple[str, Sequence[float]]],
    y: float,
    top: float,
    length: float,
    outage: Sequence[float],
) -> list[str]:
    width, floor = _WIDTH - _LEFT - _RIGHT, y + _PANEL

    def x_of(second: float) -> float:
        return _LEFT + width * second / length

    def y_of(value: float) -> float:
        return floor - (_PANEL - 24) * min(value, top) / top

    parts = [f'<text class="t" x="20" y="{y + 12}">{name}</text>']
    parts.append(
        f'<rect class="out" x="{x_of(outage[0]):.1f}" y="{y + 24}" width="{x_of(outage[1]) - x_of(outage[0]):.1f}" '
        f'height="{_PANEL - 24}"/>'
    )
    for share in (0.0, 0.5, 1.0):
        at = y_of(top * share)
        parts.append(f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="s" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{top * share:g}</text>')
    for second in range(0, int(length) + 1, 10):
        parts.append(f'<text class="s" x="{x_of(second):.1f}" y="{floor + 18}" text-anchor="middle">{second} s</text>')
    for kind, values in lines:
        points = " ".join(
            f"{x_of(length * (index + 0.5) / len(values)):.1f},{y_of(value):.1f}"
            for index, value in enumerate(values)
            if not math.isnan(value)
        )
        parts.append(f'<polyline class="l {kind}" points="{points}"/>')
    return parts
