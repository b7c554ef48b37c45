"""The ratios against their goals as an SVG, written by hand: it needs no plotting library and no style of the page.

One line per goal. The scale is how far the ratio is from its goal, logarithmic: 1 is the goal, left of it is better,
also where more is better. A bar from quartile to quartile, a dot at the median, a stroke at the moonshot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final
from xml.sax.saxutils import escape

from peer_ledger import Ledger
from peer_rows import Row, quartiles
from peer_text import number

_WIDTH: Final = 1080
_LABEL: Final = 560
_PLOT: Final = 350
_LINE: Final = 22
_TOP: Final = 74
_STYLE: Final = """
.card{fill:#fff;stroke:#d0d7de}.t{fill:#1f2328}.s{fill:#59636e}.g{stroke:#d0d7de}.goal{stroke:#1f2328}
.met{fill:#1a7f5a;stroke:#1a7f5a}.missed{fill:#bc4c00;stroke:#bc4c00}.moon{stroke:#8250df}.none{fill:#59636e;stroke:#59636e}
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif}.h{font-size:15px;font-weight:600}
@media(prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#3d444d}.t{fill:#f0f6fc}.s{fill:#9198a1}.g{stroke:#3d444d}
.goal{stroke:#f0f6fc}.met{fill:#3fb68b;stroke:#3fb68b}.missed{fill:#f0883e;stroke:#f0883e}.moon{stroke:#be8fff}
.none{fill:#9198a1;stroke:#9198a1}}
"""


def _against(row: Row, value: float) -> float:
    """How many times its goal a ratio is; where more is better, the other way round."""
    bar = row.goal.goal if row.goal.goal is not None else row.goal.moonshot
    assert bar is not None
    if row.goal.more:
        return bar / value if value > 0 else math.inf
    return value / bar


def _steps(measured: Sequence[Row]) -> tuple[int, int]:
    """Powers of ten that hold all that is drawn."""
    values = [1.0]
    for row in measured:
        values += [_against(row, value) for value in quartiles(row.ratios)]
        if row.goal.moonshot is not None:
            values.append(_against(row, row.goal.moonshot))
    drawn = [min(1000.0, max(0.001, value)) for value in values]
    return math.floor(math.log10(min(drawn))), max(1, math.ceil(math.log10(max(drawn))))


def plot(found: Sequence[Row], ledger: Ledger) -> str:
    """The whole picture."""
    low, high = _steps([row for row in found if row.ratios])
    height = _TOP + _LINE * len(found) + 44

    def across(value: float) -> float:
        inside = min(10.0**high, max(10.0**low, value)) if value == value else 1.0
        return _LABEL + 20 + _PLOT * (math.log10(inside) - low) / (high - low)

    machine = escape(str(ledger.data["about"].get("machine", "")))
    legend = (
        f"left of the line is better · bar: quartiles, dot: median, of {ledger.repetitions()} interleaved repetitions"
    )
    legend += f" · violet: moonshot · {machine}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>Ratios beside peers, against their goals</title>",
        f"<style>{_STYLE.strip()}</style>",
        f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '<text class="t h" x="20" y="30">Ratios beside peers, as a multiple of their goal</text>',
        f'<text class="s" x="20" y="50">{legend}</text>',
    ]
    bottom = _TOP + _LINE * len(found)
    for power in range(low, high + 1):
        x = across(10.0**power)
        kind = "goal" if power == 0 else "g"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}"/>')
        label = "goal" if power == 0 else f"{10.0**power:g} ×"
        parts.append(f'<text class="s" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    for place, row in enumerate(found):
        parts += _line(row, _TOP + _LINE * place + _LINE / 2, across)
    return "\n".join([*parts, "</svg>", ""])


def _line(row: Row, y: float, across: Callable[[float], float]) -> list[str]:
    what = escape(f"{row.goal.row}  {row.goal.what}".replace("`", ""))
    said = [f'<text class="t" x="20" y="{y + 4:.1f}">{what}</text>']
    if not row.ratios:
        return [*said, f'<text class="s" x="{_LABEL + 20}" y="{y + 4:.1f}">not measured</text>']
    low, middle, high = quartiles(row.ratios)
    kind = {"met": "met", "no": "none"}.get(row.verdict().split(",")[0].split()[0], "missed")
    ends = sorted((across(_against(row, low)), across(_against(row, high))))
    if row.goal.moonshot is not None:
        x = across(_against(row, row.goal.moonshot))
        said.append(
            f'<line class="moon" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6:.1f}" y2="{y + 6:.1f}" stroke-width="2"/>'
        )
    said.append(f'<line class="{kind}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}" stroke-width="5" '
                'stroke-opacity=".4"/>')  # fmt: skip
    said.append(f'<circle class="{kind}" cx="{across(_against(row, middle)):.1f}" cy="{y}" r="4.5"/>')
    unit = f" {row.goal.unit}" if row.goal.theirs is None else ""
    said.append(f'<text class="t" x="{_WIDTH - 20}" y="{y + 4:.1f}" text-anchor="end">{number(middle)}{unit}</text>')
    return said
