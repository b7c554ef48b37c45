"""What a token and a short call cost the bot: CPU of its process, wake-ups, and the way they take.

60 tokens a second per stream with jitter, each token the simulator's CLOCK_MONOTONIC at its sending; then short calls
one after another. `Client` (a thread and a client per stream), `AsyncClient` (a task per stream) and the bare wire (one
DEALER of pyzmq and no library of ours), each in a process of its own beside the same daemon, taken in turn.
`--against PATH` takes the clients of another tree too, between the others: only ratios of one run mean anything.

Wake-ups are voluntary context switches of all threads of the bot. Of blocking bots with several threads they are not
shown: a thread that has ended takes its count along.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from common import ROOT, Bench, Verdicts, finish, median, parser, percentiles, route, table, upstream
from yardsticks.upstream import CUpstream

BOT: Final = Path(__file__).with_name("client_cost_bot.py")
TIMEOUT_MS: Final = 60_000
#: The prompt of a short call, by upstream: two tokens at once.
SHORT: Final = {
    "sim": "BUY, SELL or HOLD? [[tokens=2]] [[cadence_ms=0]]",
    "c": "BUY, SELL or HOLD? [[tokens=2 cadence_us=0]]",
}
FIGURES: Final = ("cpu_us", "wakeups", "p50", "p99", "first_p50", "call_cpu_us", "call_wakeups", "call_p50")


def bot(tree: Path, way: str, endpoint: str, streams: int, tokens: int, calls: int, short: str) -> dict[str, Any]:
    """One run of one way; the clients are those of `tree`."""
    done = subprocess.run(
        [sys.executable, str(BOT), way, endpoint, str(streams), str(tokens), str(calls), short],
        env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{way} of {tree}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    token, first, call = (percentiles(found[key]) for key in ("token_us", "first_us", "call_us"))
    return {
        "tokens": found["tokens"], "calls": found["calls"],
        "cpu_us": found["token"]["cpu_us"], "wakeups": found["token"]["wakeups"],
        "p50": token["p50"], "p99": token["p99"], "first_p50": first["p50"],
        "call_cpu_us": found["call"]["cpu_us"], "call_wakeups": found["call"]["wakeups"], "call_p50": call["p50"],
    }  # fmt: skip


def answering(bench: Bench, which: str, tokens: int) -> str:
    """Start the upstream, and its address; each token is the instant of its sending."""
    if which == "c":
        return CUpstream(bench, tokens=tokens, cadence_us=16_667, jitter=0.3, ttft_us=0).url(stamp=1)
    return bench.relay("--jitter", "0.3", "--ttft-ms", "0", "--tokens", str(tokens)).url(stamp=1)


def measure(
    trees: dict[str, Path], levels: list[int], repetitions: int, tokens: int, calls: int, kinds: list[str], which: str
) -> dict[str, Any]:
    """Way -> streams -> every run."""
    ways = {"wire": ("wire", ROOT)} if "wire" in kinds else {}
    for kind in kinds:
        if kind != "wire":
            ways |= {f"{kind} {tree}".strip(): (kind, path) for tree, path in trees.items()}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {way: {str(level): [] for level in levels} for way in ways}
    with Bench() as bench:
        url = answering(bench, which, tokens)
        most = max(levels)
        bench.daemon(
            upstream("sim", url, warm=most, maximum=most + 16)
            + route("sim", timeout_ms=TIMEOUT_MS, first_delta_timeout_ms=TIMEOUT_MS, idle_timeout_ms=TIMEOUT_MS)
        )
        bench.until_connected(most, "sim")
        names = list(ways)
        for repetition in range(repetitions):
            for level in levels:
                for place in range(len(names)):
                    way = names[(place + repetition) % len(names)]
                    kind, tree = ways[way]
                    runs[way][str(level)].append(bot(tree, kind, bench.endpoint, level, tokens, calls, SHORT[which]))
    return runs


def main() -> int:
    """Returns 0 when every token and call arrived."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--against", type=Path, help="another tree of this project, to be compared with")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=120, help="per stream")
    arguments.add_argument("--calls", type=int, default=300, help="short ones, one after another")
    arguments.add_argument("--kinds", nargs="+", default=["wire", "asyncio", "blocking"])
    arguments.add_argument("--upstream", choices=["sim", "c"], default="sim", help="c: needs a C compiler")
    options = arguments.parse_args()
    levels, repetitions, tokens, calls = options.streams, options.repetitions, options.tokens, options.calls
    if options.quick:
        levels, repetitions, tokens, calls = [1, 4], 1, 15, 20
    trees = {"": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    runs = measure(trees, levels, repetitions, tokens, calls, options.kinds, options.upstream)
    verdicts = Verdicts()
    for what, due in (("token", "tokens"), ("call", "calls")):
        wanted = {str(level): level * tokens if what == "token" else calls for level in levels}
        whole = all(run[due] == wanted[level] for by in runs.values() for level, made in by.items() for run in made)
        verdicts.judge(f"every {what} arrived, by every way", whole)
    medians = {
        way: {level: {key: median(run[key] for run in made) for key in FIGURES} for level, made in by.items()}
        for way, by in runs.items()
    }
    ratios = {
        way: {
            level: {key: mine[key] / medians[f"{way} before"][level][key] for key in FIGURES}
            for level, mine in by.items()
        }
        for way, by in medians.items()
        if f"{way} before" in medians
    }
    result = {"load": os.getloadavg()[0], "medians": medians, "ratios": ratios, "runs": runs}
    return finish(result, verdicts, as_json=options.json, text=_text(medians, ratios, repetitions))


def _text(medians: dict[str, Any], ratios: dict[str, Any], repetitions: int) -> str:
    head = ["", "streams", "CPU us", "wake-ups", "p50 us", "p99 us", "TTFT p50", "CPU us", "wake-ups", "p50 us"]
    rows = [
        [way, level, *(found[key] for key in FIGURES)] for way, by in medians.items() for level, found in by.items()
    ]
    text = f"per token (five figures) and per short call (three); medians of {repetitions} in turn\n"
    text += table(rows, head=head)
    if ratios:
        rows = [
            [f"{way} / before", level, *(math.nan if math.isnan(found[key]) else found[key] for key in FIGURES)]
            for way, by in ratios.items()
            for level, found in by.items()
        ]
        text += "\n\nratios\n" + table(rows, head=head)
    return text


if __name__ == "__main__":
    sys.exit(main())
