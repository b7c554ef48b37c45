"""How late the machine itself is: a bare timer on each core, with no product near it.

Overshoot in the milliseconds can be a daemon's fault or the machine's (a hypervisor, somebody else's work). A witness
sleeps 2 ms at a time, pinned to a core, and writes down every sleep that was more than `FLOOR_MS` too long. What the
benchmarks measured late is then said twice: as it is, and without what fell into such a stall.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Final, NamedTuple

from common import Bench

NAP_S: Final = 0.002
#: A sleep is noted when it was too long by more than this.
FLOOR_MS: Final = 3.0


class Stall(NamedTuple):
    """From when a sleep should have ended until it did; CLOCK_MONOTONIC microseconds."""

    began_us: int
    ended_us: int


class Witnesses:
    """One per core, from now on."""

    def __init__(self, bench: Bench, *, for_s: float = 1800) -> None:
        self._logs = []
        for core in sorted(os.sched_getaffinity(0)):
            name = f"witness-{core}.log"
            bench.start("tests/benchmarks/witness.py", "--core", str(core), "--for-s", str(for_s), log=name)
            self._logs.append(bench.folder / name)

    def stalls(self) -> list[Stall]:
        """So far, of all cores. Call it before the `Bench` ends."""
        found = []
        for log in self._logs:
            for line in log.read_text().splitlines():
                began, ended = line.split()
                found.append(Stall(int(began), int(ended)))
        return sorted(found)


def excused(stalls: list[Stall], from_us: int, until_us: int) -> bool:
    """Some core stalled in that time."""
    return any(stall.began_us <= until_us and stall.ended_us >= from_us for stall in stalls)


def longest_ms(stalls: list[Stall]) -> float:
    """The longest of them."""
    return max(((stall.ended_us - stall.began_us) / 1000 for stall in stalls), default=0.0)


def main() -> int:
    """Be a witness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--for-s", type=float, default=10.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    until = time.monotonic() + options.for_s
    while (began := time.monotonic()) < until:
        time.sleep(NAP_S)
        ended = time.monotonic()
        if 1000 * (ended - began - NAP_S) > FLOOR_MS:
            print(int(1e6 * (began + NAP_S)), int(1e6 * ended), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
