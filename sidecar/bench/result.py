"""What a bench leaves: every repetition with its histograms and costs, and the figures drawn from them."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from sidecar.bench.histogram import Histogram
from sidecar.bench.load import Load
from sidecar.bench.processes import Cost
from sidecar.bench.recorder import MEASURES, Counted, merged
from sidecar.bench.rig import Target
from sidecar.errors import SidecarError

FORMAT: Final = "sidecar-bench/1"
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")
PERCENTS: Final = (50.0, 90.0, 99.0, 99.9)
#: Bytes of a result that is read: one repetition takes some 30 KiB.
_MOST_BYTES: Final = 64 << 20


class Unreadable(SidecarError):
    """A file that is no result; the message says why."""


class Repetition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of the load.

    Args:
        counted: what the bots saw.
        costs: of each process, in the measured window.
        window_s: its length as it was.
        speed_us: time of a fixed piece of work just before; tells a slower machine from a slower daemon.
        others_share: cores that processes which are not ours kept busy.
        load_before, load_after: the machine's load average of the last minute.
        problems: why its figures must not be trusted.
        notes: what to bear in mind.
    """

    seed: int
    counted: Counted
    costs: list[Cost]
    window_s: float
    speed_us: float
    others_share: float
    load_before: float
    load_after: float
    problems: list[str] = []
    notes: list[str] = []


class Result(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. `figures` is drawn from `repetitions`, for readers who do not want to decode histograms."""

    format: Literal["sidecar-bench/1"] = FORMAT
    at: str
    target: Target
    load: Load
    machine: dict[str, Any]
    repetitions: list[Repetition]
    figures: dict[str, list[float | None]] = {}
    histograms: dict[str, dict[str, float]] = {}
    ok: bool = False
    trustworthy: bool = False

    @property
    def counted(self) -> Counted:
        """All repetitions as one."""
        return merged([one.counted for one in self.repetitions])

    @property
    def problems(self) -> list[str]:
        """Why the figures must not be trusted, each kind once."""
        return _once([one.problems for one in self.repetitions])

    @property
    def notes(self) -> list[str]:
        """What to bear in mind, each kind once."""
        return _once([one.notes for one in self.repetitions])


def _once(each: list[list[str]]) -> list[str]:
    """Sentences that differ in their numbers only as one: the first, and in how many repetitions."""
    first: dict[str, str] = {}
    often: Counter[str] = Counter()
    for said in each:
        for kind in {_NUMBER.sub("#", line): first.setdefault(_NUMBER.sub("#", line), line) for line in said}:
            often[kind] += 1
    return [
        f"{line} [in {often[kind]} of {len(each)} repetitions]" if len(each) > 1 else line
        for kind, line in first.items()
    ]


def finished(*, at: str, target: Target, load: Load, machine: dict[str, Any], runs: list[Repetition]) -> Result:
    """The result of these repetitions, with everything that is drawn from them."""
    whole = merged([one.counted for one in runs])
    return Result(
        at=at, target=target, load=load, machine=machine, repetitions=runs,
        figures=gathered(runs),
        histograms={name: described(Histogram.decode(text)) for name, text in whole.histograms.items()},
        ok=whole.unfinished == 0 and whole.started > 0,
        trustworthy=not any(one.problems for one in runs),
    )  # fmt: skip


def described(histogram: Histogram) -> dict[str, float]:
    """n, min, mean, the percentiles that the sample carries, max; microseconds."""
    shown: dict[str, float] = {"n": histogram.n, "min": histogram.min, "mean": round(histogram.mean, 1)}
    shown.update({f"p{percent:g}": histogram.percentile(percent) for percent in PERCENTS if histogram.carries(percent)})
    shown["max"] = histogram.max
    return shown


def figures_of(one: Repetition) -> dict[str, float]:
    """The figures of one repetition: ``token_us.p99``, ``cpu_us_per_token.daemon``, ``rss_peak_mib.daemon`` ..."""
    found: dict[str, float] = {}
    counted = one.counted
    for name in MEASURES:
        if name in counted.histograms:
            histogram = Histogram.decode(counted.histograms[name])
            for percent in PERCENTS:
                if histogram.carries(percent):
                    found[f"{name}.p{percent:g}"] = histogram.percentile(percent)
    for group, costs in by_group(one.costs).items():
        cpu = sum(cost.cpu_s for cost in costs)
        if counted.tokens:
            found[f"cpu_us_per_token.{group}"] = round(1e6 * cpu / counted.tokens, 3)
        if counted.ended:
            found[f"cpu_us_per_call.{group}"] = round(1e6 * cpu / counted.ended, 2)
        peaks = [cost.rss_peak_mib for cost in costs if cost.rss_peak_mib is not None]
        if group == "daemon" and peaks:
            found["rss_peak_mib.daemon"] = round(sum(peaks), 2)
    for name in ("tokens", "messages", "ended"):
        found[f"{name}_per_s"] = round(getattr(counted, name) / one.window_s, 2)
    return found


def by_group(costs: list[Cost]) -> dict[str, list[Cost]]:
    """All bots as one group."""
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault("bots" if cost.name.startswith("bot") else cost.name, []).append(cost)
    return groups


def gathered(runs: list[Repetition]) -> dict[str, list[float | None]]:
    """Figure -> its value in each repetition, None where the sample did not carry it."""
    each = [figures_of(one) for one in runs]
    names = dict.fromkeys(name for figures in each for name in figures)
    return {name: [figures.get(name) for figures in each] for name in names}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one value, itself."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def read(path: Path) -> Result:
    """A result that was saved with `--out` or `--json`.

    Raises:
        Unreadable: no such file, too long, not JSON, or not a result of this format.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Unreadable(f"{path}: over {_MOST_BYTES >> 20} MiB, no result of `sidecar bench`")
        raw = path.read_bytes()
    except OSError as problem:
        raise Unreadable(f"{path}: {problem.strerror}") from None
    try:
        result = msgspec.json.decode(raw, type=Result)
        if not result.repetitions:
            raise ValueError("it has no repetitions")
        # What is compared is drawn anew from the histograms: a figure that somebody edited counts for nothing.
        return msgspec.structs.replace(result, figures=gathered(result.repetitions))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, ZeroDivisionError) as problem:
        raise Unreadable(
            f"{path}: not a result of this `sidecar bench` ({problem}); make one with `sidecar bench --out FILE`"
        ) from None
