"""10,000 calls with deadlines from 5 ms to 2 s against an upstream of which half is silent, late or cut.

The order of fates is that of the simulator's scenario `half`, laid upon each call by its prompt: so the fate of every
single call is known here, also when a call never reached the upstream. The bot speaks the bare wire and sees every
message. A call is *answerable* when it is of the healthy half and its deadline leaves `--margin` times the usual
answer time, measured before on the same relay while healthy.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections import Counter
from typing import Any

from common import (
    Bench,
    Bot,
    Verdicts,
    finish,
    histogram,
    mono_us,
    parser,
    percentile,
    percentiles,
    table,
    upstream,
)
from witness import Stall, Witnesses, excused, longest_ms

from sidecar.simulator.scenarios import Plan

SHORTEST_MS, LONGEST_MS = 5.0, 2000.0
#: Calls at once while the usual answer time is taken. Not 64: healthy answers of a few milliseconds leave so fast that
#: 64 at once would measure the saturation of this machine by simulator, daemon and bot, not an answer.
USUAL_IN_FLIGHT = 8


class Record:
    """One call as the bot saw it."""

    __slots__ = ("accepted", "code", "deadline_us", "fate", "received_us", "terminals", "timeout_ms", "timing")

    def __init__(self, fate: str, timeout_ms: float) -> None:
        self.fate = fate
        self.timeout_ms = timeout_ms
        self.deadline_us = 0
        self.received_us = 0
        self.terminals = 0
        self.code = ""
        self.accepted: dict[str, Any] | None = None
        self.timing: dict[str, Any] | None = None


def play(bot: Bot, records: list[Record], in_flight: int, *, ramp_s: float = 0.0) -> None:
    """All of them, so many at once (reached within `ramp_s`); then a while longer, for second terminals."""
    open_calls: set[str] = set()
    sent = 0
    ended = 0
    began = time.monotonic()
    while ended < len(records):
        share = min(1.0, (time.monotonic() - began) / ramp_s) if ramp_s else 1.0
        while sent < len(records) and len(open_calls) < max(1, in_flight * share):
            record = records[sent]
            name = str(sent)
            record.deadline_us = bot.call(name, f"{name} [[scenario={record.fate}]]", record.timeout_ms)
            open_calls.add(name)
            sent += 1
        messages = bot.receive(5.0)
        now = mono_us()
        if not messages:
            break  # a call without a terminal for so long has none: it shows below
        for message in messages:
            ended += take(message, records, open_calls, now)
    quiet_until = time.monotonic() + 0.3
    while time.monotonic() < quiet_until:
        for message in bot.receive(0.05):
            take(message, records, open_calls, mono_us())


def take(message: dict[str, Any], records: list[Record], open_calls: set[str], now: int) -> int:
    """Note a message; 1 for the first terminal of a call."""
    kind = message["type"]
    if kind == "delta":
        return 0
    record = records[int(message["id"])]
    if kind == "accepted":
        record.accepted = message
    elif kind in ("done", "failed"):
        record.terminals += 1
        if record.terminals == 1:
            record.received_us = now
            record.code = "done" if kind == "done" else message["code"]
            record.timing = message.get("timing")
            open_calls.discard(message["id"])
            return 1
    return 0


def targets(number: int, first_delta_timeout_ms: float) -> str:
    """The route over so many models."""
    listed = ", ".join(f'{{ upstream = "sim", model = "model-{index}" }}' for index in range(number))
    return f'[[route]]\nname = "default"\ntargets = [ {listed} ]\nfirst_delta_timeout_ms = {first_delta_timeout_ms}\n'


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--calls", type=int, default=10_000)
    arguments.add_argument("--in-flight", type=int, default=64)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--margin", type=float, default=2.0, help="times the usual answer time (its p99)")
    arguments.add_argument("--warm", type=int, default=128)
    arguments.add_argument("--max-connections", type=int, default=256)
    arguments.add_argument("--first-delta-timeout-ms", type=float, default=1200, help="of the route; the default's")
    arguments.add_argument("--targets", type=int, default=1, help="models of the one upstream, each with its breaker")
    arguments.add_argument("--ttft-ms", type=float, default=5)
    arguments.add_argument("--cadence-ms", type=float, default=2)
    arguments.add_argument("--ramp-s", type=float, default=1.0, help="until all are in flight")
    arguments.add_argument("--log", action="store_true", help="the daemon's log to stderr at the end")
    options = arguments.parse_args()
    calls = 300 if options.quick else options.calls
    warm = min(options.warm, 32) if options.quick else options.warm
    dice = random.Random(options.seed)
    with Bench() as bench:
        relay = bench.relay(
            "--tokens",
            "4",
            "--ttft-ms",
            str(options.ttft_ms),
            "--cadence-ms",
            str(options.cadence_ms),
            "--seed",
            str(options.seed),
        )
        daemon = bench.daemon(
            upstream("sim", relay.url(), warm=warm, maximum=options.max_connections)
            + targets(options.targets, options.first_delta_timeout_ms)
        )
        bench.until_connected(warm, "sim")
        with Bot(bench.endpoint) as bot:
            healthy = [Record("ok", 2000) for _ in range(min(calls, 1000))]
            play(bot, healthy, USUAL_IN_FLIGHT)
            usual_us = percentile(
                sorted(record.timing["total_us"] for record in healthy if record.code == "done" and record.timing), 0.99
            )
            plan = Plan("half", options.seed)
            spread = math.log(LONGEST_MS / SHORTEST_MS)
            records = [Record(plan.fate(), SHORTEST_MS * math.exp(spread * dice.random())) for _ in range(calls)]
            witnesses = Witnesses(bench)
            began = time.monotonic()
            play(bot, records, options.in_flight, ramp_s=options.ramp_s)
            took = time.monotonic() - began
        counters = relay.counters()
        alive = daemon.poll() is None
        stalls = witnesses.stalls()
        openings = (bench.folder / "daemon.log").read_text().count('"breaker.opened"')
        if options.log:
            sys.stderr.write((bench.folder / "daemon.log").read_text())
    return judge(
        records, options, usual_us=usual_us, took=took, counters=counters, alive=alive, stalls=stalls, openings=openings
    )


def judge(
    records: list[Record], options: Any, *, usual_us: float, took: float, counters: dict[str, Any], alive: bool,
    stalls: list[Stall], openings: int,
) -> int:  # fmt: skip
    """Figures and verdicts."""
    answerable = [r for r in records if r.fate == "ok" and 1000 * r.timeout_ms >= options.margin * usual_us]
    answered = sum(record.code == "done" for record in answerable)
    share = answered / len(answerable)
    silent = [record for record in records if record.fate == "silent"]
    misjudged = [record for record in silent if record.code != "deadline_exceeded"]
    exceeded = [record for record in records if record.code == "deadline_exceeded"]
    early = [record for record in exceeded if record.received_us < record.deadline_us]
    by_bot = [(record.received_us - record.deadline_us) / 1000 for record in exceeded]
    late_done = [
        (record.received_us - record.deadline_us) / 1000
        for record in records
        if record.received_us > record.deadline_us
    ]
    by_daemon = [
        (record.timing["total_us"] - (record.accepted["deadline_mono_us"] - record.accepted["recv_mono_us"])) / 1000
        for record in exceeded
        if record.timing and record.accepted
    ]
    calm = [
        (record.timing["total_us"] - (record.accepted["deadline_mono_us"] - record.accepted["recv_mono_us"])) / 1000
        for record in exceeded
        if record.timing and record.accepted and not excused(stalls, record.deadline_us, record.received_us)
    ]
    codes = {fate: dict(Counter(r.code for r in records if r.fate == fate)) for fate in ("ok", "silent", "late", "cut")}
    lost = dict(Counter(record.code for record in answerable if record.code != "done"))
    seen, kept, undisturbed = percentiles(by_daemon), percentiles(by_bot), percentiles(calm)
    verdicts = Verdicts()
    verdicts.judge("exactly one terminal for each call", all(record.terminals == 1 for record in records))
    # Two instants rounded to microseconds make a duration that may be one or two short.
    verdicts.judge("no deadline_exceeded before its deadline", not early and min(by_daemon, default=0.0) > -0.003)
    verdicts.judge("every silent call ended deadline_exceeded", not misjudged)
    verdicts.judge("the daemon lives", alive)
    if not options.quick:
        verdicts.judge("at least 95 % of the answerable are done", share >= 0.95)
        verdicts.judge("overshoot in the daemon: p99 <= 5 ms, max <= 25 ms", seen["p99"] <= 5 and seen["max"] <= 25)
    result = {
        "calls": len(records), "in_flight": options.in_flight, "seconds": took, "usual_answer_us": usual_us,
        "answerable": len(answerable), "answered": answered, "answered_share": share, "answerable_lost": lost,
        "codes": codes, "terminals": sum(record.terminals for record in records), "early": len(early),
        "earliest_ms": {"daemon": min(by_daemon, default=0.0), "bot": min(by_bot, default=0.0)},
        "silent": len(silent), "silent_not_deadline_exceeded": dict(Counter(r.code for r in misjudged)),
        "silent_not_deadline_exceeded_timeouts_ms": percentiles(r.timeout_ms for r in misjudged),
        "breaker_openings": openings,
        "overshoot_daemon_ms": seen, "overshoot_bot_ms": kept, "late_terminals_bot_ms": percentiles(late_done),
        "overshoot_daemon_ms_without_stalls": undisturbed, "stalls": len(stalls),
        "longest_stall_ms": longest_ms(stalls),
        "handshakes": counters["handshakes"],
    }  # fmt: skip
    rows = [
        [name, *(figures[key] for key in ("n", "p50", "p90", "p99", "max"))]
        for name, figures in (
            ("deadline_exceeded, by the daemon's clock", seen),
            ("the same, where no core stalled", undisturbed),
            ("deadline_exceeded, as the bot received it", kept),
            ("any terminal after its deadline, at the bot", percentiles(late_done)),
        )
    ]
    fates = [
        [fate, sum(found.values()), ", ".join(f"{code} {n}" for code, n in sorted(found.items()))]
        for fate, found in codes.items()
    ]
    text = (
        f"{len(records)} calls, {options.in_flight} in flight, deadlines {SHORTEST_MS:g} ms to {LONGEST_MS:g} ms "
        f"(log-uniform), {took:.1f} s, {counters['handshakes']} handshakes, "
        f"{options.targets} targets, breaker opened {openings} times\n"
        f"usual answer (p99 on a healthy relay): {usual_us / 1000:.1f} ms; answerable from "
        f"{options.margin * usual_us / 1000:.1f} ms on: {len(answerable)}, done {answered} ({100 * share:.2f} %)"
        f"{'; the others: ' + str(lost) if lost else ''}\n\n"
        + table(fates, head=["fate", "calls", "ended"])
        + "\n\novershoot, ms\n"
        + table(rows, head=["", "n", "p50", "p90", "p99", "max"])
        + f"\n  the machine: {len(stalls)} stalls of a core, the longest {longest_ms(stalls):.0f} ms"
        + "\n\nas the bot received it\n"
        + histogram(by_bot, unit="ms")
    )
    return finish(result, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
