"""Warm connections: a burst pays no handshake, and a rotation under load loses no call.

Part one: warm = max = 64, a burst with 64 in flight; the simulator counts handshakes before and after. Part two: a
small `max_age_s`, and calls all along while every connection is replaced again and again.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from common import (
    TERMINALS,
    Bench,
    Bot,
    Verdicts,
    finish,
    histogram,
    mono_us,
    parser,
    percentiles,
    route,
    table,
    upstream,
)


class Load:
    """Calls, so many at once; what became of them and how long they took."""

    def __init__(self, bot: Bot, in_flight: int) -> None:
        self.bot = bot
        self.in_flight = in_flight
        self.codes: Counter[str] = Counter()
        self.terminals: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()
        self.latency_ms: list[float] = []
        self._sent_us: dict[str, int] = {}
        self._number = 0

    def run(self, *, calls: int | None = None, seconds: float | None = None) -> None:
        """Until so many calls were made, or so long; then until all have ended."""
        until = None if seconds is None else time.monotonic() + seconds
        left = calls
        silence = 0
        while silence < 3:
            while len(self._sent_us) < self.in_flight and left != 0 and (until is None or time.monotonic() < until):
                name = str(self._number)
                self._number += 1
                left = None if left is None else left - 1
                self._sent_us[name] = mono_us()
                self.bot.call(name, name, 10_000)
            if not self._sent_us:
                return
            messages = self.bot.receive(5.0)
            silence = 0 if messages else silence + 1
            now = mono_us()
            for message in messages:
                if message["type"] in TERMINALS:
                    self.codes["done" if message["type"] == "done" else message["code"]] += 1
                    self.terminals[message["id"]] += 1
                    self.attempts[message["attempts"]] += 1
                    sent = self._sent_us.pop(message["id"], None)
                    if sent is not None:
                        self.latency_ms.append((now - sent) / 1000)

    @property
    def made(self) -> int:
        """Calls sent so far."""
        return self._number

    @property
    def one_terminal_each(self) -> bool:
        """No call ended twice, none never."""
        return len(self.terminals) == self._number and all(number == 1 for number in self.terminals.values())


def burst(calls: int, in_flight: int) -> dict[str, Any]:
    """Part one."""
    with Bench() as bench:
        relay = bench.relay("--tokens", "8", "--ttft-ms", "20", "--cadence-ms", "5")
        bench.daemon(upstream("sim", relay.url(), warm=in_flight, maximum=in_flight) + route("sim"))
        bench.until_connected(in_flight, "sim")
        with Bot(bench.endpoint) as bot:
            load = Load(bot, in_flight)
            before = relay.counters()
            load.run(calls=calls)
            after = relay.counters()
    return {
        "calls": load.made, "codes": dict(load.codes), "one_terminal_each": load.one_terminal_each,
        "handshakes_before": before["handshakes"], "handshakes_during": after["handshakes"] - before["handshakes"],
        "accepted_during": after["accepted"] - before["accepted"] - 1,  # the question for these figures was one
        "max_in_flight": after["max_in_flight"], "latency_ms": percentiles(load.latency_ms), "values": load.latency_ms,
    }  # fmt: skip


def rotation(seconds: float, in_flight: int, max_age_s: float) -> dict[str, Any]:
    """Part two."""
    with Bench() as bench:
        relay = bench.relay("--tokens", "8", "--ttft-ms", "20", "--cadence-ms", "5")
        bench.daemon(
            upstream("sim", relay.url(), warm=in_flight, maximum=2 * in_flight, max_age_s=max_age_s) + route("sim")
        )
        bench.until_connected(in_flight, "sim")
        with Bot(bench.endpoint) as bot:
            load = Load(bot, in_flight)
            before = relay.counters()
            load.run(seconds=seconds)
            after = relay.counters()
        time.sleep(0.5)  # closes under way; part of no verdict
        end = relay.counters()
    handshakes = after["handshakes"] - before["handshakes"]
    return {
        "calls": load.made, "codes": dict(load.codes), "one_terminal_each": load.one_terminal_each,
        "seconds": seconds, "max_age_s": max_age_s, "handshakes": handshakes,
        "closed": end["handshakes"] - end["open"], "max_open": end["max_open"],
        "calls_stopped_at_the_relay": after["calls_stopped"], "attempts": {str(n): c for n, c in load.attempts.items()},
        "latency_ms": percentiles(load.latency_ms),
    }  # fmt: skip


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--calls", type=int, default=1000, help="of the burst")
    arguments.add_argument("--in-flight", type=int, default=64)
    arguments.add_argument("--seconds", type=float, default=20.0, help="of the rotation")
    arguments.add_argument("--max-age-s", type=float, default=3.0)
    options = arguments.parse_args()
    in_flight = 8 if options.quick else options.in_flight
    first = burst(100 if options.quick else options.calls, in_flight)
    age = 1.0 if options.quick else options.max_age_s
    second = rotation(2.5 if options.quick else options.seconds, in_flight, age)
    values = first.pop("values")
    verdicts = Verdicts()
    verdicts.judge("the burst paid no handshake", first["handshakes_during"] == 0)
    verdicts.judge("every call of the burst is done, once",
                   first["codes"] == {"done": first["calls"]} and first["one_terminal_each"])  # fmt: skip
    verdicts.judge("connections were rotated", second["handshakes"] > 0)
    verdicts.judge("the rotation lost no call",
                   second["codes"] == {"done": second["calls"]} and second["one_terminal_each"])  # fmt: skip
    rows = [
        [name, found["calls"], *(found["latency_ms"][key] for key in ("p50", "p90", "p99", "max"))]
        for name, found in (("burst", first), ("rotation", second))
    ]
    text = (
        f"burst: warm = max = in flight = {in_flight}; handshakes before {first['handshakes_before']}, "
        f"during {first['handshakes_during']}; ended {first['codes']}\n"
        f"rotation: max_age_s {age:g}, {second['seconds']:g} s; handshakes {second['handshakes']}, connections closed "
        f"{second['closed']}, at most {second['max_open']} open; ended {second['codes']}, "
        f"attempts {second['attempts']}\n\n"
        "call to terminal, ms (the answer alone takes 55)\n"
        + table(rows, head=["", "calls", "p50", "p90", "p99", "max"])
        + "\n\nburst\n"
        + histogram(values, unit="ms")
    )
    return finish({"burst": first, "rotation": second}, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
