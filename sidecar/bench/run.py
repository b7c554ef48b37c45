"""One repetition after the other: start, warm up, measure a window, wait for the ends, end everything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import msgspec

from sidecar.bench.alarm import mono_us
from sidecar.bench.histogram import Histogram
from sidecar.bench.job import GRACE
from sidecar.bench.load import Load
from sidecar.bench.processes import Cost, Spent, load_average, machine_busy, rss_mib, speed_us, spent
from sidecar.bench.recorder import Counted, merged
from sidecar.bench.result import Repetition
from sidecar.bench.rig import Rig, Target

#: The generator kept up when it began its calls no later than this behind their instants (the highest percentile of
#: 50, 90, 99 that the sample carries, and for p99.9 and the rest there is `start_us`).
LATE_MOST_US: Final = 10_000
#: A bot, or the simulator, that used more of a core than this is what was measured.
SHARE_MOST: Final = 0.9
#: Shares of this machine's cores that others may keep busy: until a note is made, until absolute figures mean nothing.
OTHERS_NOTED: Final = 0.05
OTHERS_MOST: Final = 0.25
_TICK: Final = 0.1
_LEAD_US: Final = 50_000

#: Told ten times a second: seconds since the start, seconds in all, the daemon's share of a core, its MiB.
Progress = Callable[[float, float, float | None, float | None], None]


def repetition(target: Target, load: Load, progress: Progress) -> Repetition:
    """Run the load once.

    Raises:
        BenchFailed: it could not be run.
    """
    speed = speed_us()
    before = load_average()
    with Rig(target, load) as rig:
        rig.start()
        start_us = mono_us() + _LEAD_US
        rig.go(start_us)
        costs, window_s, others = _watch(rig, start_us, progress)
        seen = rig.seen(load.timeout_ms / 1000 + GRACE + 60)
        broken = rig.ended_early()
    counted = merged([msgspec.json.decode(one, type=Counted) for one in seen])
    problems, notes = judged(load, counted, costs, others=others, cores=len(os.sched_getaffinity(0)))
    if broken is not None:
        problems.append(broken)
    return Repetition(
        seed=load.seed, counted=counted, costs=costs, window_s=window_s, speed_us=speed, others_share=round(others, 3),
        load_before=before, load_after=load_average(), problems=problems, notes=notes,
    )  # fmt: skip


def judged(
    load: Load, counted: Counted, costs: list[Cost], *, others: float, cores: int
) -> tuple[list[str], list[str]]:
    """Why the figures must not be trusted, and what to bear in mind."""
    problems, notes = [], []
    starts = Histogram.decode(counted.histograms["start_us"]) if "start_us" in counted.histograms else Histogram()
    percent = max((p for p in (50.0, 90.0, 99.0) if starts.carries(p)), default=100.0)
    late = starts.percentile(percent)
    if starts.n and late > LATE_MOST_US:
        problems.append(
            f"the generator could not keep up: p{percent:g} of its calls began {late / 1000:.1f} ms late. "
            "Lower --rate, or raise --clients"
        )
    if counted.fused:
        problems.append(
            f"{counted.fused} calls were not begun because {load.max_open} were open: the load is more than is taken "
            "(or raise --max-open)"
        )
    if not counted.started:
        problems.append("no call was begun in the window: raise --rate or --for-s")
    for cost in costs:
        if cost.share > SHARE_MOST and cost.name != "daemon":
            mend = "Raise --clients, or lower --rate" if cost.name.startswith("bot") else "Lower --rate"
            problems.append(f"{cost.name} used {cost.share:.0%} of a core, and its own delay was measured. {mend}")
    if counted.unlike:
        problems.append(
            f"{counted.unlike} tokens carried no stamp: leave --stamps out, or point at a simulator's ?stamp=1"
        )
    if counted.early:
        problems.append(f"{counted.early} calls were told deadline_exceeded before their deadline")
    busy = f"other processes kept {others:.1f} of {cores} cores busy"
    if others > OTHERS_MOST * cores:
        problems.append(f"{busy}: run it on a machine that is idle (taken in turn, ratios may still mean something)")
    elif others > OTHERS_NOTED * cores:
        notes.append(busy)
    return problems, notes


class _Memory:
    """Of one process: at the window's start, the most seen, at its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start = self.peak = self.end = rss_mib(pid)

    def look(self) -> None:
        now = rss_mib(self.pid)
        if now is not None:
            self.end = now
            self.peak = now if self.peak is None else max(self.peak, now)


def _watch(rig: Rig, start_us: int, progress: Progress) -> tuple[list[Cost], float, float]:
    """Wait through the warm-up and the window; what each process cost in the window, its length, others' cores."""
    load = rig.load
    begins_us = start_us + int(load.warm_up_s * 1e6)
    ends_us = begins_us + int(load.for_s * 1e6)
    whole_s = load.warm_up_s + load.for_s
    memories: dict[str, _Memory] = {}
    daemon = rig.pids.get("daemon")

    def wait_until(at_us: int) -> None:
        shown = None if daemon is None else spent(daemon)
        looked_us = mono_us()
        while (left := (at_us - mono_us()) / 1e6) > 0:
            time.sleep(min(left, _TICK))
            for memory in memories.values():
                memory.look()
            now_us = mono_us()
            latest = None if daemon is None else spent(daemon)
            if now_us - looked_us > 50_000:
                share = None
                if shown is not None and latest is not None:
                    share = (latest.cpu_s - shown.cpu_s) / ((now_us - looked_us) / 1e6)
                progress((now_us - start_us) / 1e6, whole_s, share, None if daemon is None else rss_mib(daemon))
                shown, looked_us = latest, now_us

    wait_until(begins_us)
    began_us = mono_us()
    first = {name: spent(pid) for name, pid in rig.pids.items()}
    busy = machine_busy() - time.process_time()
    memories.update({name: _Memory(pid) for name, pid in rig.pids.items()})
    wait_until(ends_us)
    ended_us = mono_us()
    last = {name: spent(pid) for name, pid in rig.pids.items()}
    busy = machine_busy() - time.process_time() - busy
    for memory in memories.values():
        memory.look()
    window_s = (ended_us - began_us) / 1e6
    costs = [
        _cost(name, pid, before, after, memories[name], window_s)
        for name, pid in rig.pids.items()
        if (before := first[name]) is not None and (after := last[name]) is not None
    ]
    others = max(0.0, busy - sum(cost.cpu_s for cost in costs)) / window_s
    return costs, window_s, others


def _cost(name: str, pid: int, before: Spent, after: Spent, memory: _Memory, window_s: float) -> Cost:
    cpu = after.cpu_s - before.cpu_s
    return Cost(
        name=name, pid=pid, cpu_s=round(cpu, 6), user_s=round(after.user_s - before.user_s, 2),
        system_s=round(after.system_s - before.system_s, 2), share=round(cpu / window_s, 4),
        rss_start_mib=_rounded(memory.start), rss_peak_mib=_rounded(memory.peak), rss_end_mib=_rounded(memory.end),
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
