"""Exit calls beside ten times as much research as fits: how much later does their first delta come than alone?

One daemon, one relay, a bot that makes exit calls at a steady rate, and research bots that offer, whatever comes back
(an open loop), so many times what fits; what fits is `max_calls_in_flight`, or the connections where these are fewer,
divided by how long a research call takes, which is measured first. Calls that are refused count as offered. Phases of
exit calls alone and of both alternate in one run, so that both see the same machine. A third kind of phase, research
as it fits, tells what a shed call costs: the processor time of the daemon in a full phase beyond it, over the calls
that were shed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from typing import Any, Final

from common import (
    Bench,
    Bot,
    Verdicts,
    cpu_seconds,
    finish,
    median,
    mono_us,
    parser,
    percentiles,
    route,
    table,
    upstream,
)
from witness import Stall, Witnesses, excused, longest_ms

RESEARCH: Final = "[[tokens={tokens} cadence_ms={cadence_ms} ttft_ms={ttft_ms}]] research"
#: Seconds from starting witnesses and research bots until a phase begins: imports and hello, part of no figure.
LEAD: Final = 1.0
#: Seconds after a phase for what is still open; a call without a terminal by then has none.
SETTLE: Final = 10.0
ALONE, FITS, BESIDE = "alone", "research fits", "beside research"
KINDS: Final = (ALONE, FITS, BESIDE)


class Phase:
    """What the bot of exit calls saw in one phase, or in all of a kind (`add`)."""

    def __init__(self) -> None:
        self.sent = 0
        self.terminals: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.first: list[tuple[int, int]] = []  # sent and first delta received, microseconds
        self.queued_ms: list[float] = []
        self.seconds = self.cpu_s = 0.0
        self.research: Counter[str] = Counter()
        self.offered = 0
        self.without_terminal = 0
        self.refused_ms: list[float] = []

    def add(self, other: Phase) -> None:
        """Of the same kind."""
        self.sent += other.sent
        self.codes += other.codes
        self.terminals += other.terminals
        self.first += other.first
        self.queued_ms += other.queued_ms
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.research += other.research
        self.offered += other.offered
        self.without_terminal += other.without_terminal
        self.refused_ms += other.refused_ms

    def first_ms(self, stalls: list[Stall] | None = None) -> dict[str, float]:
        """Time to first delta; with `stalls`, of the calls during which no core stalled."""
        return percentiles((came - sent) / 1000 for sent, came in self.first if not excused(stalls or [], sent, came))

    @property
    def shed(self) -> int:
        """Research calls turned away, or out of the queue."""
        return self.research["overloaded"] + self.research["deadline_unreachable"]


def exit_calls(bot: Bot, phase: Phase, *, begin_us: int, seconds: float, rate: float, prompt: str) -> None:
    """Calls at equal distances, each sent when it is due whatever the others do; then until all have ended."""
    sent_us: dict[str, int] = {}
    first: set[str] = set()
    interval_us = 1e6 / rate
    total = int(seconds * rate)
    give_up_us = begin_us + int(1e6 * (seconds + SETTLE))
    while (phase.sent < total or len(phase.terminals) < total) and mono_us() < give_up_us:
        due_us = begin_us + phase.sent * interval_us if phase.sent < total else give_up_us
        if mono_us() >= due_us:
            name = f"{begin_us}-{phase.sent}"
            sent_us[name] = mono_us()
            bot.call(name, prompt, 10_000, lane="exit")
            phase.sent += 1
            continue
        for message in bot.receive(min(0.2, (due_us - mono_us()) / 1e6)):
            now = mono_us()
            name, kind = str(message.get("id")), message["type"]
            if name not in sent_us:
                continue
            if kind == "delta" and name not in first:
                first.add(name)
                phase.first.append((sent_us[name], now))
            elif kind in ("done", "failed"):
                phase.terminals[name] += 1
                phase.codes["done" if kind == "done" else message["code"]] += 1
                if message.get("timing"):
                    phase.queued_ms.append(message["timing"]["queued_us"] / 1000)


def research(endpoint: str, *, begin_us: int, seconds: float, rate: float, prompt: str) -> int:
    """Be a research bot: `rate` calls a second whatever comes back; prints how they ended."""
    sent_us: dict[str, int] = {}
    codes: Counter[str] = Counter()
    refused_ms: list[float] = []
    total, sent = int(seconds * rate), 0
    give_up_us = begin_us + int(1e6 * (seconds + SETTLE))
    with Bot(endpoint, hwm=100_000) as bot:
        while (sent < total or sent_us) and mono_us() < give_up_us:
            due = min(total, max(0, int((mono_us() - begin_us) * rate / 1e6)))
            for index in range(sent, due):
                sent_us[str(index)] = mono_us()
                bot.call(str(index), prompt, 30_000, lane="research", stream=False)
            sent = max(sent, due)
            # A call in each five milliseconds is due at these rates: what comes meanwhile is read in one go.
            time.sleep(0.005)
            for message in bot.receive(0):
                if message["type"] in ("done", "failed"):
                    at_us = sent_us.pop(message["id"], None)
                    code = "second terminal" if at_us is None else message.get("code", "done")
                    codes[code] += 1
                    if at_us is not None and code == "overloaded" and message.get("call_id") is None:
                        refused_ms.append((mono_us() - at_us) / 1000)
    print(json.dumps({"offered": sent, "codes": codes, "open": len(sent_us), "refused_ms": refused_ms}))
    return 0


def usual_seconds(bot: Bot, prompt: str, *, calls: int, at_once: int) -> float:
    """How long a research call takes on the unloaded daemon: the median."""
    sent_us: dict[str, int] = {}
    took: list[float] = []
    sent = 0
    while len(took) < calls:
        while sent < calls and len(sent_us) < at_once:
            sent_us[f"u{sent}"] = mono_us()
            bot.call(f"u{sent}", prompt, 30_000, lane="research", stream=False)
            sent += 1
        messages = bot.receive(SETTLE)
        if not messages:
            raise SystemExit("a research call had no answer on the unloaded daemon")
        for message in messages:
            if message["type"] == "done":
                took.append((mono_us() - sent_us.pop(message["id"])) / 1e6)
            elif message["type"] == "failed":
                raise SystemExit(f"a research call failed on the unloaded daemon: {message}")
    return median(took)


def run(bench: Bench, bot: Bot, pid: int, *, research_rate: float, options: Any) -> Phase:
    """One phase."""
    phase = Phase()
    seconds = 1.0 if options.quick else options.seconds
    begin_us = mono_us() + int(1e6 * (LEAD if research_rate else 0.1))
    bots = [
        bench.start(
            "tests/benchmarks/exit_lane.py", "--be-research", "--endpoint", bench.endpoint, "--begin-us", str(begin_us),
            "--seconds", str(seconds), "--rate", str(research_rate / options.research_bots),
            "--prompt", options.research_prompt, log=f"research-{index}.log", stdout=subprocess.PIPE,
        )
        for index in range(options.research_bots if research_rate else 0)
    ]  # fmt: skip
    # Where there is research, exit calls begin when it has filled the places.
    settled_us = begin_us + (int(1e6 * min(0.5, seconds / 4)) if research_rate else 0)
    until_us = begin_us + int(1e6 * seconds)
    time.sleep(max(0.0, (settled_us - mono_us()) / 1e6))
    before = cpu_seconds(pid)
    exit_calls(
        bot, phase, begin_us=settled_us, seconds=(until_us - settled_us) / 1e6, rate=options.exit_rate,
        prompt=f"[[tokens=4 cadence_ms={options.exit_ms / 4} ttft_ms={options.ttft_ms}]] exit",
    )  # fmt: skip
    phase.seconds = (mono_us() - settled_us) / 1e6
    phase.cpu_s = cpu_seconds(pid) - before
    for process in bots:
        said = json.loads(process.communicate(timeout=3 * SETTLE)[0])
        phase.offered += said["offered"]
        phase.research.update(said["codes"])
        phase.without_terminal += said["open"]
        phase.refused_ms += said["refused_ms"]
    return phase


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=6, help="of each kind of phase")
    arguments.add_argument("--seconds", type=float, default=6.0, help="of a phase")
    arguments.add_argument("--exit-rate", type=float, default=20.0, help="exit calls a second")
    arguments.add_argument(
        "--exit-ms", type=float, default=100.0, help="of an exit call's answer, after its first token"
    )
    arguments.add_argument("--ttft-ms", type=float, default=20.0, help="of the relay; the simulator's own default")
    arguments.add_argument("--tokens", type=int, default=10, help="of a research call's answer")
    arguments.add_argument("--cadence-ms", type=float, default=50.0, help="of a research call's answer")
    arguments.add_argument("--max-calls", type=int, default=32, help="max_calls_in_flight")
    arguments.add_argument(
        "--connections", type=int, help="max_connections; all are warm (default: half as many again)"
    )
    arguments.add_argument("--queue", type=int, default=64, help="queue_max; twice max_calls, as the defaults are")
    arguments.add_argument("--times", type=float, default=10.0, help="research offered, in multiples of what fits")
    arguments.add_argument("--research-bots", type=int, default=2, help="processes; two can take everything")
    arguments.add_argument("--goal", type=float, default=2.0, help="p99 beside research over p99 alone, at most")
    arguments.add_argument("--frontend", default="", help="further keys of [frontend], as TOML")
    arguments.add_argument("--endpoint", help="of --be-research (internal)")
    arguments.add_argument("--prompt", help="of --be-research (internal)")
    arguments.add_argument("--begin-us", type=int, help="of --be-research (internal)")
    arguments.add_argument("--rate", type=float, help="of --be-research (internal)")
    arguments.add_argument("--be-research", action="store_true", help="be a research bot (internal)")
    options = arguments.parse_args()
    if options.be_research:
        return research(
            options.endpoint, begin_us=options.begin_us, seconds=options.seconds, rate=options.rate,
            prompt=options.prompt,
        )  # fmt: skip
    options.research_prompt = RESEARCH.format(
        tokens=options.tokens, cadence_ms=options.cadence_ms, ttft_ms=options.ttft_ms
    )
    phases = {kind: Phase() for kind in KINDS}
    with Bench() as bench:
        relay = bench.relay()
        frontend = f"max_calls_in_flight = {options.max_calls}\nqueue_max = {options.queue}\n{options.frontend}\n"
        connections = options.connections or options.max_calls * 3 // 2
        warm = min(connections, options.max_calls)
        daemon = bench.daemon(
            upstream("sim", relay.url(), warm=warm, maximum=connections) + route("sim"), frontend=frontend
        )
        bench.until_connected(warm, "sim")
        with Bot(bench.endpoint) as bot:
            usual_s = usual_seconds(bot, options.research_prompt, calls=8 if options.quick else 64, at_once=8)
            fits = warm / usual_s
            witnesses = Witnesses(bench)
            time.sleep(LEAD)
            offered = {ALONE: 0.0, FITS: fits, BESIDE: options.times * fits}
            for number in range(1 if options.quick else options.rounds):
                # Forth and back, so that no kind always comes after the same other.
                for which in KINDS if number % 2 == 0 else reversed(KINDS):
                    found = run(bench, bot, daemon.pid, research_rate=offered[which], options=options)
                    phases[which].add(found)
        alive = daemon.poll() is None
        stalls = witnesses.stalls()
    return judge(phases, options, usual_s=usual_s, fits=fits, alive=alive, stalls=stalls)


def judge(
    phases: dict[str, Phase], options: Any, *, usual_s: float, fits: float, alive: bool, stalls: list[Stall]
) -> int:
    """Figures and verdicts."""
    beside = phases[BESIDE]
    first = {kind: phase.first_ms() for kind, phase in phases.items()}
    calm = {kind: phase.first_ms(stalls) for kind, phase in phases.items()}
    queued = {kind: percentiles(phase.queued_ms) for kind, phase in phases.items()}
    ratio, calm_ratio = (
        {key: found[BESIDE][key] / found[ALONE][key] for key in ("p50", "p99")} for found in (first, calm)
    )
    cores = {kind: phase.cpu_s / phase.seconds for kind, phase in phases.items()}
    shed_per_s = {kind: phase.shed / (phase.seconds or math.nan) for kind, phase in phases.items()}
    more = shed_per_s[BESIDE] - shed_per_s[FITS]
    shed_us = 1e6 * (cores[BESIDE] - cores[FITS]) / more if more > 0 else math.nan
    refused = percentiles(beside.refused_ms)
    verdicts = Verdicts()
    verdicts.judge("the daemon lives", alive)
    verdicts.judge(
        "every exit call has one terminal, which is done",
        all(
            set(phase.codes) == {"done"} and set(phase.terminals.values()) == {1} and len(phase.terminals) == phase.sent
            for phase in phases.values()
        ),
    )
    verdicts.judge(
        "every research call has one terminal",
        all(not phase.without_terminal and not phase.research["second terminal"] for phase in phases.values()),
    )
    verdicts.judge("research was shed", beside.shed > 0)
    if not options.quick:
        promise = (
            f"p99 of exit calls' time to first delta is at most {options.goal:g} times that of the unloaded daemon"
        )
        verdicts.judge(promise, ratio["p99"] <= options.goal)
        # A machine that is busy with other things is late in both kinds of phase, and hides what the daemon adds.
        verdicts.judge("the same, of the calls during which no core stalled", calm_ratio["p99"] <= options.goal)
    result = {
        "max_calls_in_flight": options.max_calls, "usual_s": usual_s, "fits_per_s": fits, "times": options.times,
        "first_delta_ms": first, "ratio": ratio,
        "first_delta_ms_without_stalls": calm, "ratio_without_stalls": calm_ratio,
        "queued_ms": queued, "daemon_cores": cores,
        "exit": {kind: dict(phase.codes) for kind, phase in phases.items()},
        "research": {kind: {"offered": phase.offered, **phase.research} for kind, phase in phases.items()},
        "shed_us": shed_us, "refused_ms": refused, "stalls": len(stalls), "longest_stall_ms": longest_ms(stalls),
    }  # fmt: skip
    figures = ("n", "p50", "p90", "p99", "max")
    text = (
        f"{options.max_calls} places, a research call takes {usual_s:.3f} s: {fits:.0f}/s fit, {options.times:g} times "
        f"that offered by {options.research_bots} bots; exit calls {options.exit_rate:g}/s\n\n"
        "exit calls, time to first delta, ms\n"
        + table(
            [
                [kind, *(first[kind][key] for key in figures), queued[kind]["p99"], cores[kind], _ends(phase.codes)]
                for kind, phase in phases.items()
            ],
            head=["", *figures, "queued p99", "daemon, cores", "ended"],
        )
        + f"\n  beside research over alone: p50 {ratio['p50']:.2f}, p99 {ratio['p99']:.2f}\n\n"
        "the same of the calls during which no core stalled\n"
        + table([[kind, *(calm[kind][key] for key in figures)] for kind in KINDS], head=["", *figures])
        + f"\n  beside research over alone: p50 {calm_ratio['p50']:.2f}, p99 {calm_ratio['p99']:.2f}\n\nresearch\n"
        + table(
            [[kind, phases[kind].offered, _ends(phases[kind].research)] for kind in (FITS, BESIDE)],
            head=["", "offered", "ended"],
        )
        + f"\n  a refusal came back after {refused['p50']:.3g} ms (p50), {refused['p99']:.3g} ms (p99; the bot looks "
        f"every 5 ms); a shed call cost the daemon {shed_us:.0f} us of processor time\n"
        f"  the machine: {len(stalls)} stalls of a core, the longest {longest_ms(stalls):.0f} ms"
    )
    return finish(result, verdicts, as_json=options.json, text=text)


def _ends(codes: Counter[str]) -> str:
    return ", ".join(f"{code} {number}" for code, number in sorted(codes.items()))


if __name__ == "__main__":
    sys.exit(main())
