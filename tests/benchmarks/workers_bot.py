"""A bot of `workers.py`: a process that takes one order a line (JSON) on stdin and answers it by a line on stdout.

Orders: `load` keeps so many calls in flight and counts those that end within a window of the shared clock; `paced`
holds so many streams at the upstream's cadence and reads the one-way time of each token. It ends when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from common import Bot, mono_us, percentiles

from sidecar import AsyncClient

TIMEOUT_MS: Final = 60_000
CADENCE: Final = 1 / 60


def pin(pid: int, cores: Sequence[int]) -> None:
    """Let every thread of a process run on `cores` only."""
    for task in map(int, os.listdir(f"/proc/{pid}/task")):
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(task, cores)


def prefer(pid: int, how: str) -> None:
    """How the kernel's scheduler ranks every thread of a process: `normal`, `nice` (-10) or `fifo` (real time, 1)."""
    for task in map(int, os.listdir(f"/proc/{pid}/task")):
        with contextlib.suppress(ProcessLookupError):
            policy = os.SCHED_FIFO if how == "fifo" else os.SCHED_OTHER
            os.sched_setscheduler(task, policy, os.sched_param(int(how == "fifo")))
            os.setpriority(os.PRIO_PROCESS, task, -10 if how == "nice" else 0)


def cpu_ns(pid: int) -> int:
    """What all threads of a process, also those that ended, have had of the processors so far; nanoseconds."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # clock_getcpuclockid(3) of another process


def load(
    endpoint: str, *, in_flight: int, prompt: str, stream: bool, begin_us: int, end_us: int, **_: object
) -> dict[str, Any]:
    """So many calls in flight until `end_us`; those that ended `done` from `begin_us` on, and any that failed."""
    done = failed = sent = ended = 0
    codes: dict[str, int] = {}
    with Bot(endpoint) as bot:
        while True:
            now = mono_us()
            if now >= end_us and (ended == sent or now > end_us + 30_000_000):
                break
            while now < end_us and sent - ended < in_flight:
                bot.call(str(sent), prompt, TIMEOUT_MS, stream=stream)
                sent += 1
            for message in bot.receive(0.1):
                if message["type"] in ("done", "failed"):
                    ended += 1
                    good = message["type"] == "done"
                    failed += not good
                    done += good and begin_us <= mono_us() < end_us
                    if not good:
                        codes[message["code"]] = codes.get(message["code"], 0) + 1
    return {"done": done, "failed": failed, "lost": sent - ended, "codes": codes}


def paced(endpoint: str, *, streams: int, daemon: int, cores: list[int], rank: str, **_: object) -> dict[str, Any]:
    """So many streams at once by `AsyncClient`, one bot and one daemon: one-way times, and the CPU time of both."""
    token_us: list[int] = []
    first_us: list[int] = []
    spent: dict[str, int] = {}

    async def one(client: AsyncClient, index: int) -> None:
        await asyncio.sleep(CADENCE * index / streams)
        sent, first = mono_us(), True
        async with client.stream(str(index), timeout_ms=TIMEOUT_MS) as stream:
            async for piece in stream:
                now = mono_us()
                if first:
                    first_us.append(now - sent)
                    first = False
                token_us.extend(now - int(stamp) for stamp in piece.split())

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            await client.ping(timeout_ms=10_000)
            pin(os.getpid(), cores)
            if rank:
                prefer(os.getpid(), rank)
            gc.collect()
            before = cpu_ns(os.getpid()), cpu_ns(daemon)
            await asyncio.gather(*(one(client, index) for index in range(streams)))
            spent["bot"], spent["daemon"] = cpu_ns(os.getpid()) - before[0], cpu_ns(daemon) - before[1]

    pin(os.getpid(), sorted(os.sched_getaffinity(1)))
    asyncio.run(main())
    each, first = percentiles(token_us), percentiles(first_us)
    return {
        "tokens": len(token_us), "p50": each["p50"], "p99": each["p99"], "ttft_p50": first["p50"],
        **{f"{who}_us_per_token": ns / 1000 / max(1, len(token_us)) for who, ns in spent.items()},
    }  # fmt: skip


def main() -> int:
    """Until stdin ends. The first line says that everything is imported."""
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(load(**order) if order.pop("do") == "load" else paced(**order)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
