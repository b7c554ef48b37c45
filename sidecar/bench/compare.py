"""Two results side by side: the ratio of each figure, and whether it is more than noise. Pure.

The rule: with at least `ENOUGH` repetitions on both sides, a figure is *faster* or *slower* (lower or higher: all of
them are costs) when the medians differ by more than `NOISE` and ranks so unequal come by chance at most once in
`1 / CHANCE` times (Mann-Whitney, exact); else it is the *same*. Five repetitions each reach that when every one of B
lies on the same side of every one of A; fewer cannot, so there is no verdict.

Not quartile ranges that do not overlap: with five repetitions that happens by chance in one of five comparisons of
noisy figures.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal, TypeAlias

from msgspec import Struct, structs

from sidecar.bench.load import Load
from sidecar.bench.picture import table
from sidecar.bench.result import Result, quartiles
from sidecar.bench.rig import Target

ENOUGH: Final = 5
NOISE: Final = 0.05
CHANCE: Final = 0.01
#: Repetitions a side up to which every arrangement is counted; beyond it the normal approximation is as good.
_EXACT: Final = 40
#: The machine's own speed may differ by this much before it is said.
_DRIFT: Final = 0.1
#: Costs, which are judged. Not the generator's own, not what the schedule decides, not the rarest.
_JUDGED: Final = re.compile(
    r"(first|token|gap|total|late|queued|daemon_first|daemon_total|overhead)_us\.p(50|90|99)"
    r"|cpu_us_per_(token|call)\.(daemon|bots)|rss_peak_mib\.daemon"
)

Word: TypeAlias = Literal["faster", "slower", "same", "undecided"]


class Figure(Struct, frozen=True, kw_only=True):
    """One figure of both. `ratio` is B's median over A's; quartiles as (low, median, high)."""

    name: str
    a: tuple[float, float, float]
    b: tuple[float, float, float]
    ratio: float
    word: Word


class Comparison(Struct, frozen=True, kw_only=True):
    """All figures that both have. `differences`: in which way the loads are not the same; `notes`: to bear in mind."""

    figures: list[Figure]
    differences: list[str]
    notes: list[str]

    def above(self, ratio: float) -> list[Figure]:
        """Figures that are slower by more than `ratio`."""
        return [figure for figure in self.figures if figure.word == "slower" and figure.ratio > ratio]


def compare(a: Result, b: Result) -> Comparison:
    """B against A."""
    figures = []
    for name, left in a.figures.items():
        ours = [value for value in left if value is not None]
        theirs = [value for value in b.figures.get(name, []) if value is not None]
        if ours and theirs and _JUDGED.fullmatch(name):
            figures.append(judge(name, ours, theirs))
    return Comparison(
        figures=figures, differences=differences((a.load, a.target), (b.load, b.target)), notes=_notes(a, b)
    )


def judge(name: str, a: list[float], b: list[float]) -> Figure:
    """The rule above, for one figure."""
    left, right = quartiles(a), quartiles(b)
    ratio = right[1] / left[1] if left[1] else (1.0 if not right[1] else float("inf"))
    word: Word = "same"
    if min(len(a), len(b)) < ENOUGH:
        word = "undecided"
    elif abs(ratio - 1) > NOISE and chance(a, b) <= CHANCE:
        word = "faster" if ratio < 1 else "slower"
    return Figure(name=name, a=left, b=right, ratio=ratio, word=word)


def chance(a: list[float], b: list[float]) -> float:
    """How likely ranks so unequal are if A and B are of one kind: the two-sided Mann-Whitney test.

    Ties count half for each side, which makes the answer larger, not smaller.
    """
    n, m = len(a), len(b)
    below = sum((left < right) + 0.5 * (left == right) for left in a for right in b)
    extreme = min(below, n * m - below)
    if max(n, m) > _EXACT:
        deviation = math.sqrt(n * m * (n + m + 1) / 12)
        return min(1.0, math.erfc(max(0.0, n * m / 2 - extreme - 0.5) / deviation / math.sqrt(2)))
    counts = [1] + [0] * (n * m)  # arrangements by their U: the Gaussian binomial coefficient's terms
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, n * m + 1):
            counts[u] += counts[u - i]
    return min(1.0, 2 * sum(counts[: math.ceil(extreme) + 1]) / math.comb(n + m, n))


def differences(a: tuple[Load, Target], b: tuple[Load, Target]) -> list[str]:
    """Where the loads differ; such results say nothing about each other."""
    left, right = ({**structs.asdict(load), "target": to.kind, "route": to.route} for load, to in (a, b))
    return [f"{name}: {left[name]} and {right[name]}" for name in left if left[name] != right[name] and name != "seed"]


def _notes(a: Result, b: Result) -> list[str]:
    notes = []
    for which, result in (("A", a), ("B", b)):
        notes += [f"{which} is not trustworthy: {problem}" for problem in result.problems]
        notes += [f"{which}: {note}" for note in result.notes]
        if len(result.repetitions) < ENOUGH:
            notes.append(
                f"{which} has {len(result.repetitions)} repetitions: give --repetitions {ENOUGH} for a verdict"
            )
    for name in ("cpu", "cores", "kernel", "python"):
        left, right = a.machine.get(name), b.machine.get(name)
        if left != right:
            notes.append(f"not the same machine: {name} {left} and {right}")
    ratio = _speed(b) / _speed(a) if _speed(a) else 1.0
    if abs(ratio - 1) > _DRIFT:
        notes.append(
            f"a fixed piece of work took {ratio:.2f} times as long before B: the machine itself was not the same"
        )
    return notes


def _speed(result: Result) -> float:
    return quartiles([one.speed_us for one in result.repetitions])[1]


def render(found: Comparison, *, fail_above: float | None) -> str:
    """For a terminal."""
    rows = []
    for one in found.figures:
        middles = [f"{one.a[1]:,.4g}", f"{one.b[1]:,.4g}", f"{one.ratio:.3f}"]
        rows.append([one.name, *middles, _range(one.a), _range(one.b), one.word])
    lines = [table(["", "A", "B", "B/A", "A's quartiles", "B's quartiles", ""], rows)]
    lines += [f"differs: {difference}" for difference in found.differences]
    lines += [f"note: {note}" for note in found.notes]
    words = [figure.word for figure in found.figures]
    counts = ", ".join(
        f"{words.count(word)} {word}" for word in ("faster", "slower", "same", "undecided") if word in words
    )
    lines.append(f"B against A: {counts or 'no figure that both have'}")
    if fail_above is not None:
        over = found.above(fail_above)
        lines.append(
            f"FAILED: slower by more than {fail_above:g}: {', '.join(figure.name for figure in over)}"
            if over
            else f"nothing is slower by more than {fail_above:g}"
        )
    return "\n".join(lines)


def _range(of: tuple[float, float, float]) -> str:
    return f"{of[0]:,.4g}..{of[2]:,.4g}"
