"""`python -m tests.simulation`: many schedules, or one again.

python -m tests.simulation --seeds 10000 --jobs 2
python -m tests.simulation --seconds 600 --first 50000
python -m tests.simulation --seed 4711 --trace
python -m tests.simulation --seed 4711 --shrink > small.json
python -m tests.simulation --schedule small.json --trace
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.simulation.engine import collect_rarely
from tests.simulation.schedule import Schedule, draw
from tests.simulation.shrink import shrink
from tests.simulation.world import Result, play

REPLAY = "python -m tests.simulation --seed {} --trace"


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when an invariant was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="The whole daemon in virtual time.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, help="as many as fit into so many seconds, instead of --seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="one schedule")
    parser.add_argument("--trace", action="store_true", help="with --seed: everything that happens")
    parser.add_argument("--shrink", action="store_true", help="with --seed: the smallest schedule that fails alike")
    parser.add_argument("--schedule", type=Path, help="play a schedule that --shrink has printed")
    arguments = parser.parse_args(argv)
    if arguments.schedule is not None:
        return one(msgspec.json.decode(arguments.schedule.read_bytes(), type=Schedule), trace=arguments.trace)
    if arguments.seed is not None and arguments.shrink:
        print(msgspec.json.format(msgspec.json.encode(shrink(draw(arguments.seed)))).decode())
        return 1
    if arguments.seed is not None:
        return one(draw(arguments.seed), trace=arguments.trace)
    return many(arguments.first, arguments.seeds, arguments.seconds, arguments.jobs)


def one(schedule: Schedule, *, trace: bool) -> int:
    """Play one."""
    seed = schedule.seed
    result = play(schedule, tracing=trace)
    for line in result.trace:
        print(line)
    for broken in result.broken:
        print(f"seed {seed} BROKEN {broken.invariant} at {broken.at:.6f}: {broken.what}")
    print(f"seed {seed}: {result.events} events, {result.virtual_s:.1f} virtual seconds, digest {result.digest or '-'}")
    return 1 if result.broken else 0


def many(first: int, seeds: int, seconds: float | None, jobs: int) -> int:
    """Play many; says at once which fail, and how to play them again."""
    began = said = time.monotonic()
    counts: Counter[str] = Counter()
    failed: list[Result] = []
    played, virtual = 0, 0.0
    last = first + seeds if seconds is None else sys.maxsize
    for result in _results(range(first, last), jobs):
        played += 1
        counts.update(result.counts)
        virtual += result.virtual_s
        if result.broken:
            failed.append(result)
            broken = result.broken[0]
            print(f"seed {result.seed} BROKEN {broken.invariant}: {broken.what}\n  {REPLAY.format(result.seed)}")
        now = time.monotonic()
        if now - said >= 5:
            said = now
            print(f"... {played} schedules, {played / (now - began):.0f} per second, {len(failed)} failed", flush=True)
        if seconds is not None and now - began >= seconds:
            break
    wall = time.monotonic() - began
    print(table(counts))
    print(
        f"{played} schedules (seeds {first} to {first + played - 1}), {virtual / 3600:.1f} hours of virtual time in "
        f"{wall:.1f} s: {played / wall:.1f} per second with {jobs} process(es); {len(failed)} failed"
    )
    return 1 if failed else 0


def _results(seeds: range, jobs: int) -> Iterator[Result]:
    if jobs <= 1:
        yield from map(play, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=collect_rarely) as pool:
        yield from pool.imap_unordered(play, seeds, chunksize=16)


def table(counts: Counter[str]) -> str:
    """How calls ended, and what happened: whether the schedules reach what they are for."""
    ends = sorted(((n, key[4:]) for key, n in counts.items() if key.startswith("end ")), reverse=True)
    rest = sorted((key, n) for key, n in counts.items() if not key.startswith("end "))
    total = sum(n for n, _ in ends) or 1
    lines = ["how calls ended"]
    lines += [f"  {key:<40}{n:>10}{100 * n / total:>8.1f} %" for n, key in ends]
    lines.append("what happened")
    lines += [f"  {key:<40}{n:>10}" for key, n in rest]
    return "\n".join(lines)


if __name__ == "__main__":
    collect_rarely()
    sys.exit(main())
