"""What a process costs, from /proc and its CPU clock; and what the machine is. Linux."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq
from msgspec import Struct

from sidecar.version import __version__

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Spent(Struct, frozen=True, kw_only=True):
    """CPU seconds of a process and all its threads, also of those that have ended.

    `cpu_s` is exact to the nanosecond; the kernel tells user and system apart in ticks of 10 ms.
    """

    cpu_s: float
    user_s: float
    system_s: float


class Cost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one process in the measured window. `share` is of one core, memory in MiB; None: could not be known."""

    name: str
    pid: int
    cpu_s: float
    user_s: float
    system_s: float
    share: float
    rss_start_mib: float | None = None
    rss_peak_mib: float | None = None
    rss_end_mib: float | None = None


def spent(pid: int) -> Spent | None:
    """CPU so far, None when the process cannot be looked at."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system = int(fields[11]) / _TICK, int(fields[12]) / _TICK
        # The CPU-time clock of another process: clock_getcpuclockid(3), which Python has for threads only.
        return Spent(cpu_s=time.clock_gettime((~pid << 3) | 2), user_s=user, system_s=system)
    except (OSError, ValueError, IndexError):
        return None


def rss_mib(pid: int) -> float | None:
    """Resident memory, None when the process cannot be looked at."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * _PAGE / (1 << 20) if pages else None  # one that has ended, and is not waited for yet, has none
    except (OSError, ValueError, IndexError):
        return None


def machine_busy() -> float:
    """CPU seconds that all of this machine's cores have worked so far, stolen time included; 0 when not known."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    user, nice, system, _, _, irq, soft, stolen = fields
    return (user + nice + system + irq + soft + stolen) / _TICK


def speed_us() -> float:
    """How long this machine takes for a fixed piece of work, now; the best of five. To tell a slower machine."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter_ns()
        total = 0
        for number in range(20_000):
            total += number & 7
        best = min(best, (time.perf_counter_ns() - began) / 1000)
    return round(best, 1)


def machine() -> dict[str, Any]:
    """The facts that a figure depends on."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model or platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "sidecar": __version__,
        "libzmq": zmq.zmq_version(),
        "pyzmq": zmq.__version__,
        "msgspec": msgspec.__version__,
    }


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)
