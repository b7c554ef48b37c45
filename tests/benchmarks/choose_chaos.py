"""10,000 `choose()` calls while the daemon is killed, stopped, continued and restarted at random.

Two bots, each a process: one with the AsyncClient and some calls at once, one with the blocking Client. This process
supervises the daemon and is unkind to it: SIGKILL and a restart, SIGSTOP and SIGCONT, SIGTERM and a restart. Some
prompts are answered with a choice, some with something else, some too late.

Lateness is from the deadline (the call of the method plus `timeout_ms`) to its return; negative is early, as it should
be. Two controls: how late a bare timer is in the same processes, and witnesses (see `witness`) on every core: a call
more than 10 ms late is *unexcused* when no core stalled between its deadline and its return.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from common import Bench, Verdicts, finish, histogram, mono_us, parser, percentiles, route, table, upstream
from witness import Stall, Witnesses, excused, longest_ms

from sidecar.client import AsyncClient, Choice, Client

CHOICES = ["BUY", "SELL", "HOLD"]
PROMPTS = (
    "[[text=BUY]]", "[[text=SELL]]", "[[text=HOLD]]", "[[text=maybe]]", "[[text=BUY ttft_ms=400]]",
    "[[scenario=silent]]",
)  # fmt: skip


class Tally:
    """What came back, and when."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self.timer_late_ms: list[float] = []
        self.reasons: Counter[str] = Counter()
        self.bad: list[str] = []
        self.over: list[tuple[int, int, str]] = []

    def note(self, choice: object, late: float) -> None:
        """One call."""
        self.late_ms.append(round(1000 * late, 4))
        if late > 0.010:
            now = mono_us()
            self.over.append((now - int(1e6 * late), now, getattr(choice, "reason", "?")))
        if not isinstance(choice, Choice) or str(choice) not in CHOICES or not choice.reason:
            self.bad.append(repr(choice))
        else:
            self.reasons[choice.reason] += 1

    def shown(self) -> str:
        """For the parent."""
        return json.dumps({
            "late_ms": self.late_ms, "timer_late_ms": self.timer_late_ms, "reasons": self.reasons, "bad": self.bad,
            "over": self.over,
        })  # fmt: skip


def plan(calls: int, seed: int) -> list[tuple[str, float]]:
    """Prompts and timeouts."""
    dice = random.Random(seed)
    weights = (6, 3, 3, 1, 1, 1)
    return [(dice.choices(PROMPTS, weights)[0], dice.uniform(10, 120)) for _ in range(calls)]


def blocking(endpoint: str, calls: int, seed: int) -> Tally:
    """One after another; a pause after each, so that a dead daemon does not use up the calls in a moment."""
    tally = Tally()
    with Client(endpoint, name="chaos-blocking") as client:
        for prompt, timeout_ms in plan(calls, seed):
            began = time.monotonic()
            choice = client.choose(prompt, CHOICES, default="HOLD", timeout_ms=timeout_ms)
            tally.note(choice, time.monotonic() - began - timeout_ms / 1000)
            began = time.monotonic()
            time.sleep(0.02)
            tally.timer_late_ms.append(1000 * (time.monotonic() - began - 0.02))
    return tally


def looping(endpoint: str, calls: int, seed: int, at_once: int) -> Tally:
    """Some at once in one loop."""
    tally = Tally()
    todo = iter(plan(calls, seed))

    async def worker(client: AsyncClient) -> None:
        for prompt, timeout_ms in todo:
            began = time.monotonic()
            choice = await client.choose(prompt, CHOICES, default="HOLD", timeout_ms=timeout_ms)
            tally.note(choice, time.monotonic() - began - timeout_ms / 1000)
            began = time.monotonic()
            await asyncio.sleep(0.02)
            tally.timer_late_ms.append(1000 * (time.monotonic() - began - 0.02))

    async def main() -> None:
        async with AsyncClient(endpoint, name="chaos-asyncio") as client:
            await asyncio.gather(*(worker(client) for _ in range(at_once)))

    asyncio.run(main())
    return tally


class Supervisor:
    """Keeps the daemon running, except when it is told otherwise by the dice."""

    def __init__(self, bench: Bench, daemon: subprocess.Popen[bytes], seed: int) -> None:
        self.bench = bench
        self.daemon = daemon
        self.dice = random.Random(seed)
        self.done: Counter[str] = Counter()

    def act(self) -> None:
        """One unkindness, and the wait until the next."""
        deed = self.dice.choice(["kill", "kill", "stop", "stop", "stop", "terminate"])
        self.done[deed] += 1
        if deed == "stop":
            self.daemon.send_signal(signal.SIGSTOP)
            time.sleep(self.dice.uniform(0.02, 0.6))
            self.daemon.send_signal(signal.SIGCONT)
        else:
            self.daemon.send_signal(signal.SIGKILL if deed == "kill" else signal.SIGTERM)
            try:
                self.daemon.wait(10)
            except subprocess.TimeoutExpired:
                self.done["did not end in 10 s"] += 1
                self.daemon.kill()
                self.daemon.wait()
            time.sleep(self.dice.uniform(0, 0.3))
            self.daemon = self.bench.serve()
            self.done["restart"] += 1
        time.sleep(self.dice.uniform(0.3, 1.8))


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--calls", type=int, default=10_000)
    arguments.add_argument("--at-once", type=int, default=8, help="of the AsyncClient")
    arguments.add_argument("--blocking-share", type=float, default=0.1, help="of the calls, by the blocking Client")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--bot", choices=["asyncio", "blocking"], help="be a bot (internal)")
    arguments.add_argument("--endpoint", help="of --bot (internal)")
    options = arguments.parse_args()
    if options.bot == "asyncio":
        print(looping(options.endpoint, options.calls, options.seed, options.at_once).shown())
        return 0
    if options.bot == "blocking":
        print(blocking(options.endpoint, options.calls, options.seed).shown())
        return 0
    calls = 200 if options.quick else options.calls
    by_blocking = int(calls * options.blocking_share)
    shares = {"asyncio": calls - by_blocking, "blocking": by_blocking}
    began = time.monotonic()
    with Bench() as bench:
        relay = bench.relay("--tokens", "1", "--ttft-ms", "3", "--cadence-ms", "1")
        daemon = bench.daemon(
            upstream("sim", relay.url(), warm=16, maximum=64) + route("sim"), frontend="drain_timeout_s = 0.5"
        )
        bots = {
            kind: bench.start(
                "tests/benchmarks/choose_chaos.py", "--bot", kind, "--endpoint", bench.endpoint, "--calls", str(number),
                "--seed", str(options.seed), "--at-once", str(options.at_once), log=f"{kind}.log",
            )
            for kind, number in shares.items()
        }  # fmt: skip
        witnesses = Witnesses(bench)
        supervisor = Supervisor(bench, daemon, options.seed)
        while any(bot.poll() is None for bot in bots.values()) and time.monotonic() - began < 900:
            supervisor.act()
        tallies: dict[str, dict[str, Any]] = {}
        for kind, bot in bots.items():
            said = (bench.folder / f"{kind}.log").read_text()
            if bot.poll() != 0:
                raise SystemExit(f"the {kind} bot ended with {bot.poll()}: {said[-3000:]}")
            tallies[kind] = json.loads(said)
        stalls = witnesses.stalls()
    return judge(tallies, shares, supervisor.done, time.monotonic() - began, stalls, options)


def judge(
    tallies: dict[str, dict[str, Any]], shares: dict[str, int], deeds: Counter[str], took: float, stalls: list[Stall],
    options: Any,
) -> int:  # fmt: skip
    """Figures and verdicts."""
    late = {kind: percentiles(tally["late_ms"]) for kind, tally in tallies.items()}
    past = {kind: percentiles(v for v in tally["late_ms"] if v > 0) for kind, tally in tallies.items()}
    timer = {kind: percentiles(tally["timer_late_ms"]) for kind, tally in tallies.items()}
    over = {kind: sum(value > 10 for value in tally["late_ms"]) for kind, tally in tallies.items()}
    timer_over = {kind: sum(value > 10 for value in tally["timer_late_ms"]) for kind, tally in tallies.items()}
    reasons = {kind: dict(Counter(tally["reasons"]).most_common()) for kind, tally in tallies.items()}
    bad = [one for tally in tallies.values() for one in tally["bad"]]
    unexcused = {
        kind: [
            (reason, (until - since) / 1000)
            for since, until, reason in tally["over"]
            if not excused(stalls, since, until)
        ]
        for kind, tally in tallies.items()
    }
    verdicts = Verdicts()
    verdicts.judge("always a choice and a reason",
                   not bad and all(sum(reasons[kind].values()) == shares[kind] for kind in shares))  # fmt: skip
    if not options.quick:
        verdicts.judge("never later than the deadline plus 10 ms, where no core stalled", not any(unexcused.values()))
    result = {
        "calls": shares, "seconds": took, "deeds": dict(deeds), "late_ms": late, "past_deadline_ms": past,
        "over_10_ms": over, "over_10_ms_unexcused": unexcused, "stalls": len(stalls),
        "longest_stall_ms": longest_ms(stalls),
        "timer_late_ms": timer, "timer_over_10_ms": timer_over, "reasons": reasons, "bad": bad,
    }  # fmt: skip
    rows = []
    for kind in tallies:
        for name, figures, beyond in (
            ("lateness of choose()", late[kind], over[kind]),
            ("of those past their deadline", past[kind], over[kind]),
            ("control: a bare timer", timer[kind], timer_over[kind]),
        ):
            rows.append([f"{kind}: {name}", *(figures[key] for key in ("n", "p50", "p90", "p99", "max")), beyond])
    told = "\n".join(f"  {kind}: " + ", ".join(f"{r} {n}" for r, n in found.items()) for kind, found in reasons.items())
    text = (
        f"{sum(shares.values())} calls in {took:.0f} s; to the daemon: {dict(deeds)}\n\n"
        + table(rows, head=["ms", "n", "p50", "p90", "p99", "max", "over 10"])
        + f"\n\nmore than 10 ms late while no core stalled: {unexcused}\n"
        f"the machine: {len(stalls)} stalls of a core, the longest {longest_ms(stalls):.0f} ms\n\n"
        f"reasons\n{told}\n\npast the deadline\n"
        + histogram([v for tally in tallies.values() for v in tally["late_ms"] if v > 0], unit="ms")
    )
    return finish(result, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
