"""How late `choose()` is while the daemon is killed, stopped and restarted at random: a command, not a test.

    python -m tests.client.measure_choose [--calls 2000] [--timeout-ms 50] [--seed 1] [--asyncio]

Prints the lateness (return minus deadline) as p50, p99 and max of the calls that lasted to their deadline, the reasons,
and whether any call reached a daemon twice. The promise is 10 ms. ``machine_late`` is the lateness of a bare `select`
between the calls: what no client can mend.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import select
import signal
import tempfile
import time
from pathlib import Path

from sidecar.client import AsyncClient, Choice, Client
from tests.fakes.fake_daemon import FakeDaemon

SIDES = ["BUY", "SELL", "HOLD"]
PROMPTS = ["BUY", "no idea", '["accept","silence"]', '["accept","die"]', '["stop"]', '["accept",{"delta":"B"},"stop"]']


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--timeout-ms", type=float, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--asyncio", action="store_true")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    lateness: list[float] = []
    control: list[float] = []
    reasons: collections.Counter[str] = collections.Counter()
    disturbed: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, FakeDaemon(Path(folder)) as daemon, asyncio.Runner() as runner:
        daemon.start()
        blocking = Client(daemon.endpoint)
        looping = AsyncClient(daemon.endpoint)

        def choose(prompt: str) -> Choice:
            if options.asyncio:
                return runner.run(looping.choose(prompt, SIDES, default="HOLD", timeout_ms=options.timeout_ms))
            return blocking.choose(prompt, SIDES, default="HOLD", timeout_ms=options.timeout_ms)

        for _ in range(options.calls):
            what = dice.choice(["nothing", "nothing", "kill", "stop", "continue", "restart"])
            disturbed[what] += 1
            if what in {"kill", "restart"}:
                daemon.kill()
            if what == "restart":
                daemon.start()
            if what in {"stop", "continue"}:
                daemon.signal(signal.SIGSTOP if what == "stop" else signal.SIGCONT)
            started = time.monotonic()
            choice = choose(dice.choice(PROMPTS))
            lateness.append((time.monotonic() - started) * 1000 - options.timeout_ms)
            assert choice in SIDES
            assert choice.reason
            reasons[choice.reason] += 1
            started = time.monotonic()
            select.select([], [], [], 0.01)
            control.append((time.monotonic() - started) * 1000 - 10)
        blocking.close()
        looping.close()
        daemon.signal(signal.SIGCONT)
        ids = collections.Counter((call["id"], call["sent_mono_us"]) for call in daemon.received())
    waited = sorted(late for late in lateness if late > -1) or [0.0]
    control.sort()
    figures = {
        "calls": options.calls,
        "at_the_deadline": len(waited),
        "late_ms_p50": round(waited[len(waited) // 2], 2),
        "late_ms_p99": round(waited[int(len(waited) * 0.99)], 2),
        "late_ms_max": round(waited[-1], 2),
        "machine_late_ms_p99": round(control[int(len(control) * 0.99)], 2),
        "machine_late_ms_max": round(control[-1], 2),
        "reasons": dict(reasons.most_common()),
        "disturbances": dict(disturbed),
        "received_twice": sum(count > 1 for count in ids.values()),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
