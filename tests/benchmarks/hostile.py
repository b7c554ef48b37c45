"""A well-behaved bot beside a stopped, a dead, a slow and a flooding one: is it harmed, and does the daemon grow?

The well-behaved bot keeps `--streams` streams of 60 tokens a second going; each token is the simulator's clock. It is
measured alone, then beside each of the others, and alone again in between: the ratio is to the mean of the two
neighbours. Every hostile bot is a process of its own:

    stopped   SIGSTOP while long answers stream to it: its upstream work ends within stall_timeout_s + 1 s
    dead      SIGKILL while long answers stream to it: its upstream work ends within 100 ms
    slow      takes a message every 20 ms of streams that bring 4,000 tokens a second
    garbage   sends bytes that are no message, pings and unknown routes as fast as it can, and reads nothing
    flood     sends calls as fast as it can, and reads nothing
    unread    asks for 10,000 pongs and 16 answers, and never reads: more than 5,000 messages for it
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from typing import Any, Final

import zmq
from common import (
    TERMINALS,
    Bench,
    Bot,
    Verdicts,
    cpu_seconds,
    finish,
    histogram,
    mono_us,
    parser,
    percentiles,
    route,
    rss_mib,
    table,
    upstream,
)

ROLES: Final = ("stopped", "dead", "slow", "garbage", "flood", "unread")
LONG: Final = "[[id={name} tokens=1000000 cadence_ms=2 ttft_ms=1]]"


# ------------------------------------------------------------------------------------------------ the others


def be(role: str, endpoint: str, seconds: float) -> int:
    """Be a hostile bot, for so long at most."""
    until = time.monotonic() + seconds
    with Bot(endpoint, batch=False, hwm=10 if role in ("slow", "unread") else 1000) as bot:
        if role in ("stopped", "dead", "slow", "unread"):
            for index in range(16 if role == "unread" else 8):
                bot.call(f"{role}-{index}", LONG.format(name=f"{role}-{index}"), 1000 * seconds)
        if role == "unread":
            for number in range(10_000):
                bot.send({"type": "ping", "nonce": number})
            time.sleep(seconds)
        elif role in ("garbage", "flood"):
            _shout(bot, role, until)
        else:
            while time.monotonic() < until:
                if role == "slow":
                    if bot.socket.poll(100):
                        bot.socket.recv()
                    time.sleep(0.02)
                else:
                    bot.receive(0.1)
    return 0


def _shout(bot: Bot, role: str, until: float) -> None:
    number = 0
    while time.monotonic() < until:
        number += 1
        try:
            if role == "flood":
                fields = {"type": "call", "id": str(number), "input": "flood [[tokens=5]]", "timeout_ms": 1000}
            elif number % 3 == 0:
                fields = {"type": "call", "id": str(number), "input": "x", "route": "nowhere"}
            else:
                fields = {"type": "ping", "nonce": number}
            payload = bot._encode(fields) if number % 5 else b"\xc1garbage" * 20
            bot.socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            time.sleep(0.001)  # the daemon takes no more for the moment


# ------------------------------------------------------------------------------------------------ the good one


class Good:
    """The well-behaved bot: streams one after another, so many at once."""

    def __init__(self, endpoint: str, streams: int, tokens: int, pid: int) -> None:
        self.bot = Bot(endpoint)
        self.streams, self.tokens, self.pid = streams, tokens, pid
        self.sent = 0
        self.terminals: Counter[str] = Counter()
        self.open: set[str] = set()

    def run(self, seconds: float) -> dict[str, Any]:
        """So long; waits for the last terminals."""
        token_us: list[int] = []
        codes: Counter[str] = Counter()
        first_us: list[int] = []
        sent_us: dict[str, int] = {}
        resident = 0.0
        began, cpu = time.monotonic(), cpu_seconds(self.pid)
        looked = 0.0
        while True:
            now = time.monotonic()
            if now - looked > 0.1:
                looked, resident = now, max(resident, rss_mib(self.pid))
            if now - began < seconds:
                while len(self.open) < self.streams:
                    name = f"good-{self.sent}"
                    self.sent += 1
                    self.open.add(name)
                    sent_us[name] = mono_us()
                    self.bot.call(name, f"[[tokens={self.tokens}]]", 10_000)
            elif not self.open or now - began > seconds + 12:
                break
            messages = self.bot.receive(0.05)
            arrived = mono_us()
            for message in messages:
                kind = message["type"]
                if kind == "delta":
                    if message["seq"] == 0:
                        first_us.append(arrived - sent_us[message["id"]])
                    token_us += [arrived - int(stamp) for stamp in message["text"].split()]
                elif kind in TERMINALS:
                    codes["done" if kind == "done" else message["code"]] += 1
                    self.terminals[message["id"]] += 1
                    self.open.discard(message["id"])
        took = time.monotonic() - began
        return {
            "tokens": len(token_us), "per_token_us": percentiles(token_us), "ttft_us": percentiles(first_us),
            "codes": dict(codes), "without_terminal": len(self.open), "rss_mib": resident, "seconds": took,
            "daemon_cores": (cpu_seconds(self.pid) - cpu) / took, "values": token_us,
        }  # fmt: skip


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--role", choices=ROLES, help="be that bot (internal)")
    arguments.add_argument("--endpoint", help="of --role (internal)")
    arguments.add_argument("--for-s", type=float, default=60.0, help="of --role (internal)")
    arguments.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES), help="beside which ones")
    arguments.add_argument("--streams", type=int, default=8)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments.add_argument("--stall-timeout-s", type=float, default=5.0)
    options = arguments.parse_args()
    if options.role:
        return be(options.role, options.endpoint, options.for_s)
    seconds, stall, roles = options.seconds, options.stall_timeout_s, options.roles
    if options.quick:
        seconds, stall, roles = 1.0, 1.0, ["stopped", "dead", "garbage"]
    alone: list[dict[str, Any]] = []
    beside: dict[str, dict[str, Any]] = {}
    stopped_ms: dict[str, list[float]] = {}
    with Bench() as bench:
        relay = bench.relay("--jitter", "0.3", "--ttft-ms", "5")
        warm = options.streams + 16
        daemon = bench.daemon(
            upstream("sim", relay.url(stamp=1), warm=warm, maximum=128) + route("sim", timeout_ms=10_000),
            frontend=f"stall_timeout_s = {stall}",
        )
        bench.until_connected(warm, "sim")
        good = Good(bench.endpoint, options.streams, 30, daemon.pid)
        good.run(min(2.0, seconds))  # imports and caches
        base = rss_mib(daemon.pid)
        alone.append(good.run(seconds))
        for role in roles:
            before = relay.counters()
            bot = bench.start(
                "tests/benchmarks/hostile.py", "--role", role, "--endpoint", bench.endpoint, "--for-s", "60",
                log=f"{role}.log",
            )  # fmt: skip
            if role in ("stopped", "dead", "slow", "unread"):
                wanted = 16 if role == "unread" else 8
                bench.until(lambda: sum(name.startswith(role) for name in relay.counters()["attempts"]) >= wanted)  # noqa: B023
                time.sleep(0.3)  # streaming by now; part of no verdict
            at_us = mono_us()
            if role == "stopped":
                bot.send_signal(signal.SIGSTOP)
            elif role == "dead":
                bot.send_signal(signal.SIGKILL)
            beside[role] = good.run(stall + 3 if role in ("stopped", "unread") else seconds)
            stops = [one for one in relay.counters()["stops"] if one["id"].startswith(role)]
            stopped_ms[role] = sorted((one["at_us"] - at_us) / 1000 for one in stops)
            beside[role]["stops"] = len(stops)
            beside[role]["calls_at_relay"] = relay.counters()["calls_started"] - before["calls_started"]
            bot.kill()
            bot.wait()
            time.sleep(0.5)  # the daemon lets go of it; part of no verdict
            alone.append(good.run(seconds))
        alive = daemon.poll() is None
        good.bot.close()
    return judge(alone, beside, stopped_ms, base=base, stall=stall, alive=alive, options=options, good=good)


def judge(
    alone: list[dict[str, Any]], beside: dict[str, dict[str, Any]], stopped_ms: dict[str, list[float]], *,
    base: float, stall: float, alive: bool, options: Any, good: Good,
) -> int:  # fmt: skip
    """Figures and verdicts."""
    rows, ratios = [], {}
    rows.append(_row("alone", alone[0], None))
    for index, (role, found) in enumerate(beside.items()):
        ratios[role] = {
            key: found["per_token_us"][key]
            / ((alone[index]["per_token_us"][key] + alone[index + 1]["per_token_us"][key]) / 2)
            for key in ("p50", "p99")
        }
        rows.append(_row(f"beside {role}", found, ratios[role]))
        rows.append(_row("alone again", alone[index + 1], None))
    everything = [*alone, *beside.values()]
    growth = max(found["rss_mib"] for found in everything) - base
    verdicts = Verdicts()
    verdicts.judge("the daemon lives", alive)
    verdicts.judge("the good bot: exactly one terminal each",
                   len(good.terminals) == good.sent and set(good.terminals.values()) == {1})  # fmt: skip
    for role, found in beside.items():
        verdicts.judge(f"beside {role}: every terminal of the good bot is done", set(found["codes"]) == {"done"})
    verdicts.judge("the daemon's memory stays within base + 64 MiB", growth < 64)
    for role, calls in (("dead", 8), ("stopped", 8)):
        if role in beside:
            verdicts.judge(f"all upstream work of the {role} bot is stopped", len(stopped_ms[role]) == calls)
    if not options.quick:
        if stopped_ms.get("dead"):
            verdicts.judge("dead: its upstream work stopped within 100 ms", max(stopped_ms["dead"]) <= 100)
        if stopped_ms.get("stopped"):
            verdicts.judge("stopped: within stall_timeout_s + 1 s", max(stopped_ms["stopped"]) <= 1000 * (stall + 1))
        verdicts.judge("the good bot's p50 beside each is within twice its p50 alone",
                       all(ratio["p50"] <= 2 for ratio in ratios.values()))  # fmt: skip
    for found in everything:
        values = found.pop("values")
    stops = {role: percentiles(found) for role, found in stopped_ms.items() if found}
    result = {
        "alone": alone, "beside": beside, "ratios": ratios, "base_rss_mib": base, "growth_mib": growth,
        "stall_timeout_s": stall, "upstream_stopped_after_ms": stops,
    }  # fmt: skip
    head = [
        "per token, us",
        "tokens",
        "p50",
        "p90",
        "p99",
        "max",
        "p50 ratio",
        "p99 ratio",
        "TTFT p99",
        "MiB",
        "cores",
        "ended",
    ]
    text = (
        table(rows, head=head)
        + f"\n\nresident: {base:.1f} MiB at first, at most {growth:+.1f} MiB\nupstream work stopped after, ms\n"
        + table([[role, *(f[k] for k in ("n", "p50", "p90", "p99", "max"))] for role, f in stops.items()],
                head=["", "n", "p50", "p90", "p99", "max"])
        + "\n\nalone, the last time\n"
        + histogram(values, unit="us")
    )  # fmt: skip
    return finish(result, verdicts, as_json=options.json, text=text)


def _row(name: str, found: dict[str, Any], ratio: dict[str, float] | None) -> list[object]:
    each = found["per_token_us"]
    ended = ", ".join(f"{code} {number}" for code, number in found["codes"].items())
    if found["without_terminal"]:
        ended += f", none {found['without_terminal']}"
    return [
        name, found["tokens"], each["p50"], each["p90"], each["p99"], each["max"],
        f"{ratio['p50']:.2f}" if ratio else "", f"{ratio['p99']:.2f}" if ratio else "", found["ttft_us"]["p99"],
        found["rss_mib"], found["daemon_cores"], ended,
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
