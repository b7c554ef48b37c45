"""The ratio table: rows and goals of the project's performance goals, computed repetition by repetition.

A ratio is of two figures of one repetition; shown is the median of those ratios with its quartiles. Where a figure is
missing there is no ratio, and the row says why.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from peer_ledger import Ledger

Reading = Callable[[Ledger, int], float | None]


@dataclass(frozen=True)
class Goal:
    """One ratio that is owed.

    Args:
        row: number in the goals.
        what: of which the ratio is.
        ours, theirs: the two figures.
        unit: of both.
        goal, moonshot: None where there is none.
        more: more is better.
        needs: names that have to take part, for the reason if the row is empty.
        absolute: `ours` is compared with the goal itself, not with `theirs`.
    """

    row: int
    what: str
    ours: Reading
    theirs: Reading | None
    unit: str
    goal: float | None
    moonshot: float | None
    more: bool = False
    needs: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()


@dataclass
class Row:
    """A goal and what was found."""

    goal: Goal
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    why: str = ""

    def verdict(self) -> str:
        """Met, missed, or not measured and why."""
        if not self.ratios:
            return f"not measured: {self.why}"
        middle = statistics.median(self.ratios)
        if self._reaches(middle, self.goal.moonshot):
            return "met, moonshot too"
        if self.goal.goal is None:
            return "no goal, moonshot missed"
        return "met" if self._reaches(middle, self.goal.goal) else "missed"

    def _reaches(self, value: float, bar: float | None) -> bool:
        return bar is not None and (value >= bar if self.goal.more else value <= bar)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; NaN of none."""
    if not values:
        return math.nan, math.nan, math.nan
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


# ------------------------------------------------------------------------------------------------ readings


def at(key: str, *path: str, scale: float = 1.0) -> Reading:
    """A figure of a measurement."""

    def read(ledger: Ledger, repetition: int) -> float | None:
        found: Any = ledger.figures(key, repetition)
        for name in path:
            found = None if found is None else found.get(name)
        return None if found is None else float(found) * scale

    return read


def combined(function: Callable[..., float | None], *readings: Reading) -> Reading:
    """Of several, where all are there."""

    def read(ledger: Ledger, repetition: int) -> float | None:
        found = [one(ledger, repetition) for one in readings]
        return None if any(one is None for one in found) else function(*found)

    return read


def token(way: str, streams: int, which: str = "p50") -> Reading:
    """Microseconds from the sending of a token to its arrival."""
    return at(f"latency {streams}/{way}", "token_us", which)


def ttft(way: str, streams: int | None) -> Reading:
    """Microseconds from the call to the first text; one call after another where `streams` is None."""
    return at(f"first/{way}" if streams is None else f"latency {streams}/{way}", "first_us", "p50")


def added(way: str, direct: str, streams: int | None) -> Reading:
    """What a relay adds to it; at or below nought it is noise of the direct client."""
    return combined(lambda mine, base: mine - base, ttft(way, streams), ttft(direct, streams))


def positive(reading: Reading) -> Reading:
    """Not a figure at or below nought."""
    return combined(lambda value: value if value > 0 else None, reading)


def cpu(way: str, streams: int) -> Reading:
    """CPU seconds per million tokens: of relay, where there is one, and bot."""
    key = f"latency {streams}/{way}"
    return combined(
        lambda relay, bot, tokens: (relay + bot) / tokens * 1e6,
        at(key, "relay_cpu_s"), at(key, "bot_cpu_s"), at(key, "tokens"),
    )  # fmt: skip


def flood(way: str) -> Reading:
    """Tokens per CPU-second of the relaying process."""
    key = f"flood/{way}"
    return combined(lambda tokens, used: tokens / used if used else None, at(key, "tokens"), at(key, "relay_cpu_s"))


def short(way: str) -> Reading:
    """CPU microseconds of the relaying process for a short request."""
    key = f"short/{way}"
    return combined(lambda used, requests: used / requests * 1e6, at(key, "relay_cpu_s"), at(key, "requests"))


# ------------------------------------------------------------------------------------------------ the goals

_DAEMON: Final = "sidecar + AsyncClient"


def goals(levels: Sequence[int], most: int) -> list[Goal]:
    """All rows. `levels` are the numbers of streams, `most` the largest one."""
    found: list[Goal] = []
    busy = list(levels[1:])
    for suffix, over in (("", ""), ("-tls", ", wss")):
        mine, direct, chat = f"asyncio{suffix}", f"direct{suffix}", f"sdk-chat{suffix}"
        needs = ("wss",) if suffix else ()
        for n in busy:
            found.append(Goal(1, f"token p50, {_DAEMON} / direct `websockets`, {n} streams{over}", token(mine, n),
                              token(direct, n), "us", 2.5, 1.5, needs=needs))  # fmt: skip
        for n in busy if suffix else levels:
            found.append(Goal(2, f"token p50, {_DAEMON} / openai SDK chat, {n} streams{over}", token(mine, n),
                              token(chat, n), "us", 1.0, 0.5, needs=(*needs, "sdk")))  # fmt: skip
        for n in busy:
            found.append(Goal(3, f"token p99, {_DAEMON} / direct `websockets`, {n} streams{over}",
                              token(mine, n, "p99"), token(direct, n, "p99"), "us", 1.5, 1.0, needs=needs))  # fmt: skip
        for m in (None, *busy):
            of = "one call at a time" if m is None else f"{m} streams"
            found.append(Goal(4, f"TTFT p50, {_DAEMON} / direct `websockets`, {of}{over}", ttft(mine, m),
                              ttft(direct, m), "us", 2.5, 1.3, needs=needs))  # fmt: skip
        found.append(Goal(4, f"TTFT p50, {_DAEMON} / openai SDK chat, {levels[1]} streams{over}",
                          ttft(mine, levels[1]), ttft(chat, levels[1]), "us", 0.1, 0.05,
                          needs=(*needs, "sdk")))  # fmt: skip
        found.append(Goal(6, f"CPU per million tokens, daemon + bot / openai SDK chat, {levels[-1]} streams{over}",
                          cpu(mine, levels[-1]), cpu(chat, levels[-1]), "s", 0.6, 0.25,
                          needs=(*needs, "sdk")))  # fmt: skip
        found.append(Goal(9, f"token p50, {most} streams / {levels[1]} streams{over}", token(mine, most),
                          token(mine, levels[1]), "us", 1.5, 1.1, needs=needs))  # fmt: skip
    for peer, title, bars in (("litellm", "LiteLLM", (0.05, 0.01)), ("tensorzero", "TensorZero", (0.5, 0.1))):
        for m in (None, levels[1]):
            of = "one call at a time" if m is None else f"{m} streams"
            found.append(Goal(5, f"added TTFT p50, sidecar / {title}, {of}", positive(added("asyncio", "direct", m)),
                              positive(added(peer, "http-direct", m)), "us", *bars, needs=(peer,)))  # fmt: skip
    for peer, title, low, high in (
        ("litellm", "LiteLLM", 80.0, 250.0), ("tensorzero", "TensorZero", 2.0, 5.0), ("nginx", "nginx", None, 1.0),
        ("c-relay", "our C relay", 0.25, 0.6),
    ):  # fmt: skip
        found.append(Goal(7, f"tokens per core-second, sidecar / {title}", flood("wire"), flood(peer), "/s", low, high,
                          more=True, needs=(peer,)))  # fmt: skip
    for peer, title, low, high in (("litellm", "LiteLLM", 1 / 100, 1 / 500), ("nginx", "nginx", 5.0, 1.5)):
        found.append(Goal(8, f"CPU per short request, sidecar / {title}", short("wire"), short(peer), "us", low, high,
                          needs=(peer,)))  # fmt: skip
    found.append(Goal(10, "memory per warm connection, ws", at("memory/ws", "kib"), None, "KiB", 4.0, 0.5))
    found.append(Goal(10, "memory per warm connection, wss", at("memory/wss", "kib"), None, "KiB", 36.0, 30.0,
                      needs=("wss",)))  # fmt: skip
    found.append(Goal(10, f"RSS at {most} streams, sidecar / LiteLLM", at(f"latency {most}/asyncio", "rss_mib"),
                      positive(at(f"latency {most}/litellm", "rss_mib")), "MiB", 0.2, 0.1,
                      needs=("litellm",)))  # fmt: skip
    return sorted(found, key=lambda one: one.row)


def rows(ledger: Ledger, levels: Sequence[int], most: int) -> list[Row]:
    """Every goal with what the ledger has for it."""
    found = []
    for goal in goals(levels, most):
        row = Row(goal)
        for repetition in range(ledger.repetitions()):
            mine = goal.ours(ledger, repetition)
            theirs = 1.0 if goal.theirs is None else goal.theirs(ledger, repetition)
            if mine is not None and theirs is not None:
                row.ours.append(mine)
                row.theirs.append(theirs)
                row.ratios.append(mine / theirs)
        if not row.ratios:
            lacking = [f"{name}: {ledger.data['missing'][name]}" for name in goal.needs
                       if name in ledger.data["missing"]]  # fmt: skip
            row.why = "; ".join(lacking) or "no measurement of both in one repetition succeeded"
        found.append(row)
    return found
