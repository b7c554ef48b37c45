"""What a short call costs the daemon: a classification prompt, answered with two tokens.

A bot on the bare wire keeps 1, 8, 32 calls in flight over warm connections. Counted are the daemon's CPU per call,
calls per second, and the bot's latency; as it ships (a log line per call, written to a file) and with `[log] calls =
false`.

`--against PATH` runs the same on the daemon of another tree, from its own sources, in turn with ours within each
repetition: its figures and the ratio stand beside ours. `--stages` adds where the time goes, measured inside one
process without sockets (`short_call_stages.py`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any, Final, NamedTuple

from common import Bench, Bot, Verdicts, finish, median, mono_us, parser, percentile, route, table, upstream
from subject import Subject, answering, cpu_ns, load, trees, upstream_flags

#: Seconds a call may take; none is near it.
TIMEOUT_MS: Final = 20_000
#: What a bot asks that wants a word: a rule, and a headline of some 300 characters.
PROMPT: Final = (
    "Answer with one word, buy, sell or hold. " + "The central bank left its rate unchanged and expects two cuts. " * 4
)


class Daemon(NamedTuple):
    """A daemon to be measured."""

    tree: str
    log: str
    pid: int
    endpoint: str


class Sample(NamedTuple):
    """One run of so many calls. Microseconds."""

    cpu_us: float
    per_second: float
    p50: float
    p99: float
    done: int
    others: int


def start(bench: Subject, url: str, *, tree: str, log_calls: bool, connections: int) -> Daemon:
    """Start a daemon and wait for its warm connections."""
    bench.configuration.write_text(
        f'[frontend]\nendpoint = "{bench.endpoint}"\n[log]\ncalls = {json.dumps(log_calls)}\nformat = "json"\n'
        + upstream("sim", url, warm=connections, maximum=connections)
        + route("sim", timeout_ms=TIMEOUT_MS, first_delta_timeout_ms=TIMEOUT_MS, idle_timeout_ms=TIMEOUT_MS)
    )
    process = bench.serve()
    bench.until(lambda: bench.report() is not None, process)
    bench.until_connected(connections, "sim")
    return Daemon(tree, "on" if log_calls else "off", process.pid, bench.endpoint)


def measure(subject: Daemon, calls: int, in_flight: int) -> Sample:
    """Keep `in_flight` calls going until `calls` have ended."""
    took: list[float] = []
    done = others = sent = 0
    began_at: dict[str, int] = {}
    with Bot(subject.endpoint) as bot:
        began, cpu = time.monotonic(), cpu_ns(subject.pid)
        silent = 0
        while done + others < calls and silent < 3:
            while sent < calls and len(began_at) < in_flight:
                name = f"c{sent}"
                began_at[name] = mono_us()
                bot.call(name, PROMPT, TIMEOUT_MS)
                sent += 1
            messages = bot.receive(5.0)
            silent = 0 if messages else silent + 1
            now = mono_us()
            for message in messages:
                if message["type"] in ("done", "failed"):
                    took.append(now - began_at.pop(message["id"]))
                    answered = message["type"] == "done" and message["finish"] == "stop" and message["deltas"] > 0
                    done, others = (done + 1, others) if answered else (done, others + 1)
        used, seconds = cpu_ns(subject.pid) - cpu, time.monotonic() - began
    took.sort()
    ended = max(1, done + others)
    return Sample(used / 1000 / ended, ended / seconds, percentile(took, 0.5), percentile(took, 0.99), done, others)


def main() -> int:
    """Returns 0 when every call was answered."""
    arguments = parser(__doc__ or "")
    upstream_flags(arguments)
    arguments.add_argument("--calls", type=int, default=4_000, help="calls of one run")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    arguments.add_argument("--stages", action="store_true", help="where the time goes, inside one process")
    options = arguments.parse_args()
    calls, repetitions = (400, 1) if options.quick else (options.calls, options.repetitions)
    connections = max(options.in_flight)
    samples: dict[tuple[str, str, int], list[Sample]] = {}
    with contextlib.ExitStack() as stack:
        url = answering(stack.enter_context(Bench()), options.upstream, tokens=2).url()
        subjects = [
            start(stack.enter_context(Subject(root)), url, tree=tree, log_calls=log_calls, connections=connections)
            for tree, root in trees(options).items()
            for log_calls in (True, False)
        ]
        for subject in subjects:
            measure(subject, min(calls, 500), connections)  # warm: the first calls pay for what is built once
        for _ in range(repetitions):
            for in_flight in options.in_flight:
                for subject in subjects:
                    key = subject.tree, subject.log, in_flight
                    samples.setdefault(key, []).append(measure(subject, calls, in_flight))
    answered = all(one.done == calls and not one.others for several in samples.values() for one in several)
    verdicts = Verdicts()
    verdicts.judge("every call is answered: done, stop, with text", answered)
    found = [_summary(*key, several) for key, several in sorted(samples.items(), key=lambda one: one[0][1:])]
    ratios = _ratios(found)
    stages: dict[str, float] = {}
    if options.stages:
        from short_call_stages import measure_stages

        stages = measure_stages(rounds=20 if options.quick else 200)
    result = {
        "calls": calls, "repetitions": repetitions, "load": load(), "runs": found, "cpu_ratio": ratios,
        "stages_us": stages,
    }  # fmt: skip
    return finish(result, verdicts, as_json=options.json, text=_text(found, ratios, stages))


def _summary(tree: str, log: str, in_flight: int, samples: list[Sample]) -> dict[str, Any]:
    return {
        "tree": tree,
        "log": log,
        "in_flight": in_flight,
        "cpu_us": median(one.cpu_us for one in samples),
        "cpu_us_low": min(one.cpu_us for one in samples),
        "cpu_us_high": max(one.cpu_us for one in samples),
        "per_second": median(one.per_second for one in samples),
        "p50_us": median(one.p50 for one in samples),
        "p99_us": median(one.p99 for one in samples),
    }


def _ratios(found: list[dict[str, Any]]) -> dict[str, float]:
    """CPU per call of the other tree by ours, of the medians; by log and calls in flight."""
    by_key = {(one["tree"], one["log"], one["in_flight"]): one["cpu_us"] for one in found}
    return {
        f"log {log}, {in_flight} in flight": cpu / by_key["here", log, in_flight]
        for (tree, log, in_flight), cpu in by_key.items()
        if tree != "here"
    }


def _text(found: list[dict[str, Any]], ratios: dict[str, float], stages: dict[str, float]) -> str:
    rows = [
        [f"{one['tree']}, log {one['log']}", one["in_flight"], one["cpu_us"], one["cpu_us_low"], one["cpu_us_high"],
         one["per_second"], one["p50_us"], one["p99_us"]]
        for one in found
    ]  # fmt: skip
    head = ["daemon", "in flight", "CPU us/call", "lowest", "highest", "calls/s", "p50 us", "p99 us"]
    text = table(rows, head=head)
    if ratios:
        text += "\n\nCPU per call, the other tree's by ours\n" + table(list(map(list, ratios.items())), head=["", "x"])
    if stages:
        rows = [[stage, us] for stage, us in stages.items()]
        text += "\n\ninside one process, without sockets\n" + table(rows, head=["stage", "us"])
    return text


if __name__ == "__main__":
    sys.exit(main())
