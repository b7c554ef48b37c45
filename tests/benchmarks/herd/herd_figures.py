"""What a run came to: peaks and means at the service, amplification, and until when hosts and calls waited.

A peak is the busiest tenth of a second, as a rate; a mean is over the whole span. Spans: the outage, "after" from the
recovery until the last host is connected again (or the run's end), "whole" both together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from common import percentile
from herd_run import Seen

BIN: Final = 0.1
#: Seconds from the outage's beginning in which every host dials: the outage itself is what they have in common.
FIRST: Final = 5.0
#: Width of the plot's bins, seconds.
STEP: Final = 0.5
#: A second in which so many of the offered calls are answered counts as served.
SERVED: Final = 0.99


def peak(instants: Iterable[float], begin: float, end: float) -> float:
    """Of the busiest `BIN` in the span, per second."""
    bins = Counter(int((at - begin) / BIN) for at in instants if begin <= at < end)
    return max(bins.values(), default=0) / BIN


def mean(instants: Iterable[float], begin: float, end: float) -> float:
    """Per second of the span."""
    return sum(begin <= at < end for at in instants) / (end - begin) if end > begin else math.nan


def load(instants: Sequence[float], begin: float, end: float) -> dict[str, float]:
    """Peak, mean and their ratio."""
    high, level = peak(instants, begin, end), mean(instants, begin, end)
    return {"peak": high, "mean": level, "ratio": high / level if level else math.nan}


def figures(seen: Seen) -> dict[str, Any]:
    """Everything that the tables show."""
    scenario = seen.scenario
    recovered, ends = scenario.outage, scenario.outage + scenario.recovery
    connected = sorted(at - recovered for at in seen.connected)
    last = min(ends, recovered + connected[-1]) if connected[-1] > 0 else recovered
    offered = [wish for wish in seen.wishes if 0 <= wish.at < recovered]
    tries = sum(wish.tries for wish in offered)
    done = sum(wish.code == "done" for wish in offered)
    attempts = [*seen.attempts, *seen.second_attempts]
    in_outage = sum(0 <= at < recovered for at in attempts)
    first_only = sum(0 <= at < recovered for at in seen.attempts)
    waiting = [wish for wish in seen.wishes if wish.at < recovered < wish.ended_at]
    return {
        "scenario": scenario.name, "hosts": scenario.hosts, "design": scenario.design, "cpu_s": seen.cpu_s,
        "offered": len(offered),
        "tries": tries,
        "attempts": in_outage,
        "amplification": in_outage / len(offered) if offered else math.nan,
        "first_amplification": first_only / len(offered) if offered else math.nan,
        "served": done / len(offered) if offered else math.nan,
        "unserved": len(offered) - done,
        "codes": dict(Counter(wish.code for wish in offered)),
        "after_codes": dict(Counter(wish.code for wish in seen.wishes if recovered <= wish.at < ends)),
        "most_attempts": seen.most_attempts,
        "unended": seen.unended,
        "connects": {
            "outage": load(seen.dials, 0, recovered),
            "after": load(seen.dials, recovered, last),
            "whole": load(seen.dials, 0, last),
        },
        #: the busiest tenth of a second of connects, as a share of the hosts
        "step_first": peak(seen.dials, 0, FIRST) * BIN / scenario.hosts,
        "step_later": peak(seen.dials, FIRST, ends) * BIN / scenario.hosts,
        "upgrades_refused": sum(at >= recovered for at in seen.upgrades_refused),
        "calls": {
            "outage": load(seen.attempts, 0, recovered),
            "after": load(seen.attempts, recovered, ends),
        },
        "connected": {
            "p50": percentile(connected, 0.5), "p99": percentile(connected, 0.99), "all": connected[-1],
            "never": sum(at == math.inf for at in connected),
        },
        "warm": max(seen.warm) - recovered,
        "waiting": {
            "calls": len(waiting), "done": sum(wish.code == "done" for wish in waiting),
            "until": max((wish.ended_at - recovered for wish in waiting), default=0.0),
        },
        "served_from": _served_from(seen, recovered, ends),
        "series": {
            "connects": _series(seen.dials, ends), "calls": _series(seen.attempts, ends),
            "second": _series(seen.second_attempts, ends),
        },
    }  # fmt: skip


def _served_from(seen: Seen, recovered: float, ends: float) -> float:
    """Seconds after the recovery from which on, second by second, `SERVED` of the calls then offered are answered."""
    seconds = int(ends - recovered)
    offered, done = [0] * seconds, [0] * seconds
    for wish in seen.wishes:
        place = int(wish.at - recovered)
        if wish.at >= recovered and place < seconds:
            offered[place] += 1
            done[place] += wish.code == "done"
    for place in range(seconds - 1, -1, -1):
        if done[place] < SERVED * offered[place]:
            return math.inf if place == seconds - 1 else place + 1.0
    return 0.0


def _series(instants: Iterable[float], ends: float) -> list[float]:
    """Per second, in bins of `STEP` from five seconds before the outage."""
    bins = Counter(int((at + 5) / STEP) for at in instants if -5 <= at < ends)
    return [bins[place] / STEP for place in range(int((ends + 5) / STEP))]
