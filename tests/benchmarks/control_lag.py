"""How long the control plane waits while streams flow flat out: timers, probes, deadlines, all in one run.

One bot reads N streams as fast as it can, answers as fast as the upstream writes them. Meanwhile, at the same daemon:
a Trio timer due every 2 ms, by a fixed schedule, and how late it came (`watched_daemon.py`: every tree is measured by
the same timer; the report's own `loop_lag_us`, the worst of two seconds at ten looks a second, stands beside it);
probes over ZeroMQ at a fixed rate; calls with deadlines of 50 to 500 ms to an upstream that never answers, and how
long after its deadline each got its terminal. Witnesses say when the machine itself was late (`witness.py`).
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

from common import Bot, Verdicts, finish, median, mono_us, parser, percentile, route, table, upstream
from subject import (
    SILENT_MS,
    Subject,
    answering,
    cpu_ns,
    load,
    long_route,
    progress,
    trees,
    upstream_flags,
    waited_ns,
)
from witness import Stall, Witnesses, excused, longest_ms

GOAL_P99_MS: Final = 5.0
GOAL_MAX_MS: Final = 25.0
SHORTEST_MS, LONGEST_MS = 50.0, 500.0
_PROBE_S: Final = 0.02
_CALL_S: Final = 0.02
_SETTLE_S: Final = 1.0


def flood(endpoint: str, streams: int, for_s: float) -> int:
    """The flooded bot, a process of its own: prints what it read as JSON."""
    with Bot(endpoint) as bot:
        began, sent, done, messages = time.monotonic(), 0, 0, 0
        characters = 0
        failed: Counter[str] = Counter()
        running = 0
        print("flowing", flush=True)
        while time.monotonic() < began + for_s:
            while running < streams:
                bot.call(str(sent), "flood", 3_600_000)
                sent += 1
                running += 1
            for message in bot.receive(1.0):
                messages += 1
                if message["type"] == "delta":
                    characters += len(message["text"])
                elif message["type"] in ("done", "failed"):
                    running -= 1
                    done += message["type"] == "done"
                    if message["type"] == "failed":
                        failed[message["code"]] += 1
        took = time.monotonic() - began
    print(json.dumps({"done": done, "failed": failed, "messages": messages, "characters": characters, "s": took}))
    return 0


class Seen:
    """What the control plane did in one stretch; milliseconds."""

    def __init__(self) -> None:
        self.probe_ms: list[float] = []
        self.reported_lag_ms: list[float] = []
        self.daemon_ms: list[float] = []
        self.bot_ms: list[float] = []
        self.calm_ms: list[float] = []
        self.codes: Counter[str] = Counter()
        self.early = 0
        self.refused = 0


def control(endpoint: str, until: float, dice: random.Random) -> tuple[Seen, list[tuple[int, int, float]]]:
    """Probes and short calls by a fixed schedule until then; also (deadline, received, ms) of each call."""
    seen = Seen()
    overshoots: list[tuple[int, int, float]] = []
    deadlines: dict[str, int] = {}
    accepted: dict[str, dict[str, Any]] = {}
    probes: deque[int] = deque()
    sent = 0
    spread = math.log(LONGEST_MS / SHORTEST_MS)
    with Bot(endpoint) as prober, Bot(endpoint) as caller:
        probe_at = call_at = time.monotonic()
        while (now := time.monotonic()) < until + 2 * LONGEST_MS / 1000 and (now < until or deadlines):
            while probe_at <= now < until:
                probes.append(mono_us())
                prober.send({"type": "probe"})
                probe_at += _PROBE_S
            while call_at <= now < until:
                name = str(sent)
                timeout_ms = SHORTEST_MS * math.exp(spread * dice.random())
                deadlines[name] = caller.call(name, "say nothing", timeout_ms, route="silent")
                sent += 1
                call_at += _CALL_S
            for message in prober.receive(0.001):
                if message["type"] == "report":
                    seen.probe_ms.append((mono_us() - probes.popleft()) / 1000)
                    seen.reported_lag_ms.append(message["loop_lag_us"] / 1000)
            for message in caller.receive(0.001):
                at = mono_us()
                if message["type"] == "accepted":
                    accepted[message["id"]] = message
                elif message["type"] in ("done", "failed"):
                    deadline = deadlines.pop(message["id"])
                    taken = accepted.pop(message["id"], None)
                    seen.codes[message.get("code", "done")] += 1
                    if message.get("code") != "deadline_exceeded":
                        continue
                    seen.early += at < deadline
                    seen.bot_ms.append((at - deadline) / 1000)
                    if taken is None:
                        seen.refused += 1  # its deadline was over when the daemon came to read it
                        continue
                    granted = taken["deadline_mono_us"] - taken["recv_mono_us"]
                    by_daemon = (message["timing"]["total_us"] - granted) / 1000
                    seen.daemon_ms.append(by_daemon)
                    overshoots.append((deadline, at, by_daemon))
    return seen, overshoots


def one_run(tree: Path, levels: list[int], seconds: float, which: str, seed: int) -> dict[str, Any]:
    """Each level in turn on one daemon."""
    most = max(levels)
    with Subject(tree) as bench:
        relay = answering(bench, which, tokens=20_000)
        bench.watch(lag=True)
        silent = relay.url(ttft_ms=SILENT_MS)
        daemon = bench.daemon_with(
            upstream("flood", relay.url(), warm=most, maximum=most)
            + upstream("silent", silent, warm=64, maximum=96)
            + long_route("flood")
            + route("silent", first_delta_timeout_ms=3_600_000).replace('"default"', '"silent"'),
            frontend=f"max_calls_in_flight = {most + 256}",
        )
        bench.connected(most, "flood", 60)
        witnesses = Witnesses(bench)
        found: dict[str, Any] = {}
        for streams in levels:
            progress(f"{tree}: {streams} streams")
            flooding = subprocess.Popen(
                [sys.executable, __file__, "--flood", bench.endpoint, str(streams), str(seconds + 2 * _SETTLE_S + 1)],
                stdout=subprocess.PIPE, env=bench.environ(), start_new_session=False,
            )  # fmt: skip
            bench._running.append(flooding)
            assert flooding.stdout is not None
            flooding.stdout.readline()
            time.sleep(_SETTLE_S)
            began_us, cpu, began = mono_us(), cpu_ns(daemon.pid), time.monotonic()
            waited = waited_ns(daemon.pid)
            seen, overshoots = control(bench.endpoint, began + seconds, random.Random(seed))
            ended_us, took = mono_us(), time.monotonic() - began
            used, without_core = (cpu_ns(daemon.pid) - cpu) / 1e9, (waited_ns(daemon.pid) - waited) / 1e9
            output, _ = flooding.communicate(timeout=30)
            read = json.loads(output)
            time.sleep(1.2)  # the last samples are written
            stalls = [one for one in witnesses.stalls() if one.ended_us >= began_us and one.began_us <= ended_us]
            lags = [(due, late) for due, late in bench.lags() if began_us <= due <= ended_us]
            found[str(streams)] = _figures(seen, overshoots, lags, stalls) | {
                "daemon_cores": used / took, "waited_for_a_core": without_core / took,
                "messages_per_s": read["messages"] / read["s"],
                "characters_per_s": read["characters"] / read["s"], "flood_failed": read["failed"],
            }  # fmt: skip
        alive = daemon.poll() is None
    return {"levels": found, "alive": alive}


def _figures(
    seen: Seen, overshoots: list[tuple[int, int, float]], lags: list[tuple[int, int]], stalls: list[Stall]
) -> dict[str, Any]:
    late = [value / 1000 for _, value in lags]
    calm = [value / 1000 for due, value in lags if not excused(stalls, due, due + value)]
    quiet = [ms for deadline, at, ms in overshoots if not excused(stalls, deadline, at)]
    return {
        "lag_ms": _spread(late), "lag_ms_without_stalls": _spread(calm),
        "reported_lag_ms_max": max(seen.reported_lag_ms, default=math.nan),
        "probe_ms": _spread(seen.probe_ms), "overshoot_daemon_ms": _spread(seen.daemon_ms),
        "overshoot_daemon_ms_without_stalls": _spread(quiet), "overshoot_bot_ms": _spread(seen.bot_ms),
        "early": seen.early, "read_after_deadline": seen.refused, "codes": dict(seen.codes),
        "stalls": len(stalls), "longest_stall_ms": longest_ms(stalls),
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {"n": len(ordered), **{name: percentile(ordered, share) for name, share in shares.items()}}


_SHOWN: Final = (
    ("timers, late by", "lag_ms"),
    ("the same, where no core stalled", "lag_ms_without_stalls"),
    ("probe, there and back", "probe_ms"),
    ("deadline overshoot, in the daemon", "overshoot_daemon_ms"),
    ("the same, where no core stalled", "overshoot_daemon_ms_without_stalls"),
    ("deadline overshoot, at the bot", "overshoot_bot_ms"),
)


def main() -> int:
    """Returns 0 when the goals were met."""
    if sys.argv[1:2] == ["--flood"]:
        return flood(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    arguments = parser(__doc__ or "")
    arguments.add_argument("--levels", type=int, nargs="+", default=[64, 256], help="streams at once")
    arguments.add_argument("--seconds", type=float, default=20, help="of each level")
    arguments.add_argument("--repetitions", type=int, default=1, help="of the whole; medians are shown")
    upstream_flags(arguments)
    options = arguments.parse_args()
    levels, seconds = ([4, 8], 1.0) if options.quick else (options.levels, options.seconds)
    before = load()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees(options)}
    for repetition in range(options.repetitions):
        for name, tree in trees(options).items():
            runs[name].append(one_run(tree, levels, seconds, options.upstream, repetition))
    progress("")
    verdicts = Verdicts()
    text = (
        f"load before: {before:.2f}, {os.cpu_count()} cores; {seconds:g} s a level, {options.repetitions} repetitions"
    )
    for name, found in runs.items():
        for level in map(str, levels):
            each = [run["levels"][level] for run in found]
            rows = [
                [label, *(median(one[key][part] for one in each) for part in ("n", "p50", "p99", "p999", "max"))]
                for label, key in _SHOWN
            ]
            text += (
                f"\n\n{name}, {level} streams flat out: "
                f"{median(one['daemon_cores'] for one in each):.2f} cores of daemon "
                f"(it waited for a core {100 * median(one['waited_for_a_core'] for one in each):.0f} % of the time), "
                f"{median(one['messages_per_s'] for one in each):,.0f} messages/s, "
                f"{median(one['characters_per_s'] for one in each) / 1e6:.1f} M characters/s to the bot; "
                f"short calls ended "
                f"{each[0]['codes']}, {each[0]['read_after_deadline']} read after their deadline; "
                f"report's loop lag at most "
                f"{median(one['reported_lag_ms_max'] for one in each):.1f} ms; "
                f"{each[0]['stalls']} stalls of a core, the longest {each[0]['longest_stall_ms']:.0f} ms\n"
                + table(rows, head=["ms", "n", "p50", "p99", "p99.9", "max"])
            )
    here = runs["here"]
    verdicts.judge("the daemon lives", all(run["alive"] for found in runs.values() for run in found))
    every = [one for run in here for one in run["levels"].values()]
    verdicts.judge(
        "every silent call ended deadline_exceeded", all(set(o["codes"]) <= {"deadline_exceeded"} for o in every)
    )
    verdicts.judge(
        "timers, probes and deadlines were measured", all(o["lag_ms"]["n"] and o["probe_ms"]["n"] for o in every)
    )
    verdicts.judge("no deadline_exceeded before its deadline", not any(one["early"] for one in every))
    verdicts.judge("no flowing call failed", not any(one["flood_failed"] for one in every))
    if not options.quick:
        for level in map(str, levels):
            p99 = median(run["levels"][level]["lag_ms"]["p99"] for run in here)
            worst = median(run["levels"][level]["lag_ms"]["max"] for run in here)
            verdicts.judge(
                f"{level} streams: timers late by p99 <= 5 ms, max <= 25 ms",
                p99 <= GOAL_P99_MS and worst <= GOAL_MAX_MS,
            )
    return finish({"load_before": before, "seconds": seconds, "runs": runs}, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
