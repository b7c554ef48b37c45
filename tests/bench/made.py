"""Results for tests, made of plain values."""

from __future__ import annotations

import msgspec

from sidecar.bench.histogram import Histogram
from sidecar.bench.load import Load
from sidecar.bench.processes import Cost
from sidecar.bench.recorder import Counted
from sidecar.bench.result import Repetition, Result, finished
from sidecar.bench.rig import Target

LOAD = Load(rate=100.0)


def cost(name: str, cpu_s: float, *, rss: float | None = 40.0) -> Cost:
    """Of one process in a window of ten seconds."""
    return Cost(
        name=name, pid=1, cpu_s=cpu_s, user_s=cpu_s * 0.75, system_s=cpu_s * 0.25, share=cpu_s / 10,
        rss_start_mib=rss, rss_peak_mib=rss, rss_end_mib=rss,
    )  # fmt: skip


def repetition(
    first_us: int = 300, *, cpu_s: float = 1.0, n: int = 1000, problems: list[str] | None = None
) -> Repetition:
    """`n` calls of two tokens, each with this time to its first text and ten times that to its end."""
    first, total, start = Histogram(), Histogram(), Histogram()
    first.record(first_us, n)
    total.record(first_us * 10, n)
    start.record(50, n)
    counted = Counted(
        scheduled=n, started=n, tokens=2 * n, messages=4 * n, ended=n, terminals={"done stop": n}, attempts={"1": n},
        histograms={"first_us": first.encode(), "total_us": total.encode(), "start_us": start.encode()},
    )  # fmt: skip
    costs = [cost("simulator", 0.5), cost("daemon", cpu_s), cost("bot 0", 0.2), cost("bot 1", 0.2)]
    return Repetition(
        seed=1, counted=counted, costs=costs, window_s=10.0, speed_us=800.0, others_share=0.0,
        load_before=0.1, load_after=0.5, problems=problems or [],
    )  # fmt: skip


def result(runs: list[Repetition], load: Load = LOAD, target: Target | None = None) -> Result:
    """Of these repetitions."""
    machine = {"cores": 2, "cpu": "x", "kernel": "6", "python": "3.11"}
    return finished(at="2026-01-01T00:00:00Z", target=target or Target(), load=load, machine=machine, runs=runs)


def encoded(of: Result) -> bytes:
    """As it is saved."""
    return msgspec.json.encode(of)
