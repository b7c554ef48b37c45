"""What a warm WebSocket is worth: time to first delta and CPU over WebSocket and HTTPS, cold and warm, by round trip.

One relay; lines of 0, 20 and 80 ms round trip to it (`delayed_line.py`); one daemon with an upstream for each way and
line. Warm: calls one after another on connections that stand. Cold: the first call of a daemon that keeps none
(`warm_connections = 0`): name, TCP, upgrade (or HTTP/2's settings), request; what else a first call costs was paid
before on a line without delay. TLS is not in it: it adds a round trip to every cold figure (TLS 1.3) and none to a warm
one. The relay takes 20 ms to its first token, which is taken off. CPU is the daemon's: per token with 16 streams at 60
tokens a second, per call with short answers, one call after another.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from common import Bench, Bot, Relay, Verdicts, cpu_seconds, finish, median, mono_us, parser, percentile, table

WAYS: Final = {"WebSocket": ("ws", {}), "HTTP/1.1": ("http", {}), "HTTP/2": ("http", {"http_version": "2"})}
TRIPS_MS: Final = (0, 20, 80)
TTFT_MS: Final = 20.0
TIMEOUT_MS: Final = 20_000


def upstreams(port: int, lines: dict[int, int], warm: int) -> str:
    """An upstream and a route for each way and line, and for each way one without a line."""
    parts = []
    for way, (scheme, more) in WAYS.items():
        for trip, at in ((-1, port), *lines.items()):
            name = key(way, trip)
            url = f"{scheme}://127.0.0.1:{at}/v1/responses"
            keys = "".join(f'{field} = "{value}"\n' for field, value in more.items())
            parts.append(
                f'[[upstream]]\nname = "{name}"\nurl = "{url}"\ndialect = "responses"\n'
                f"warm_connections = {8 if trip < 0 else warm}\nmax_connections = 64\npong_timeout_s = 30\n{keys}"
                f'[[route]]\nname = "{name}"\ntargets = [ {{ upstream = "{name}", model = "m" }} ]\n'
                f"max_output_tokens = 100000\nfirst_delta_timeout_ms = 10000\nidle_timeout_ms = 10000\n"
            )
    return "\n".join(parts)


def key(way: str, trip: int) -> str:
    """The name of a way over a line."""
    return f"{way.lower().replace('/', '')}-{'direct' if trip < 0 else trip}"


def first_delta(bot: Bot, route: str, name: str) -> float:
    """One call's time to first delta, in milliseconds, the relay's own taken off."""
    sent = mono_us()
    bot.call(name, "[[tokens=2 cadence_ms=1]] hello", TIMEOUT_MS, route=route)
    first = 0
    while True:
        for message in bot.receive(20):
            if message["type"] == "delta" and not first:
                first = mono_us()
            elif message["type"] == "done":
                return (first - sent) / 1000 - TTFT_MS
            elif message["type"] == "failed":
                raise SystemExit(f"{route}: {message['code']}: {message['message']}")


def streams(bot: Bot, route: str, number: int, tokens: int) -> None:
    """So many at once, to their ends."""
    for index in range(number):
        bot.call(f"s{index}", f"[[tokens={tokens} cadence_ms=16.7 jitter=0.5]] hello", 60_000, route=route)
    ended = 0
    while ended < number:
        for message in bot.receive(30):
            if message["type"] == "failed":
                raise SystemExit(f"{route}: {message['code']}: {message['message']}")
            ended += message["type"] == "done"


def main() -> int:
    """Returns 0: nothing is promised here, it is compared."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--warm-calls", type=int, default=40, help="for each way and line")
    arguments.add_argument("--cold-calls", type=int, default=7, help="for each way and line")
    arguments.add_argument("--seconds", type=float, default=5.0, help="of the streams, for each way, thrice")
    arguments.add_argument("--markdown", type=Path)
    options = arguments.parse_args()
    if options.quick:
        options.warm_calls, options.cold_calls, options.seconds = 5, 1, 0.5
    with Bench() as bench:
        relay = bench.relay("--ttft-ms", str(TTFT_MS), "--cadence-ms", "2")
        lines = {trip: line(bench, relay, trip) for trip in TRIPS_MS}
        result = measure(bench, relay, lines, options)
    head = ["way", *(f"{state}, {trip} ms" for state in ("warm", "cold") for trip in TRIPS_MS), "us/token", "us/call"]
    rows = []
    for way, one in result.items():
        times = [f"{one[state][trip]:.1f}" for state in ("warm", "cold") for trip in TRIPS_MS]
        rows.append([way, *times, f"{one['us_per_token']:.0f}", f"{one['us_per_call']:.0f}"])
    if options.markdown is not None:
        lines_of = [
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
        options.markdown.write_text("\n".join(lines_of) + "\n")
    return finish({"ways": result}, Verdicts(), as_json=options.json, text=table(rows, head=head))


def line(bench: Bench, relay: Relay, trip: int) -> int:
    """A line with this round trip; its port."""
    process = bench.start(
        str(Path(__file__).with_name("delayed_line.py")), str(relay.port), str(trip),
        log=f"line{trip}.log", stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return int(process.stdout.readline())


def measure(bench: Bench, relay: Relay, lines: dict[int, int], options: Any) -> dict[str, dict[str, Any]]:
    """All figures: by way."""
    result: dict[str, dict[str, Any]] = {way: {"warm": {}, "cold": {}} for way in WAYS}
    cold: dict[tuple[str, int], list[float]] = {(way, trip): [] for way in WAYS for trip in TRIPS_MS}
    for number in range(options.cold_calls):
        daemon = bench.daemon(upstreams(relay.port, lines, warm=0), ready=False)
        with Bot(bench.endpoint) as bot:
            for way in WAYS:
                bench.until_connected(1, key(way, -1))
                first_delta(bot, key(way, -1), f"w{number}")
            for (way, trip), found in cold.items():
                found.append(first_delta(bot, key(way, trip), f"c{number}"))
        daemon.terminate()
        daemon.wait(20)
    daemon = bench.daemon(upstreams(relay.port, lines, warm=2))
    warm: dict[tuple[str, int], list[float]] = {(way, trip): [] for way in WAYS for trip in TRIPS_MS}
    tokens = max(10, int(60 * options.seconds))
    with Bot(bench.endpoint) as bot:
        for number in range(options.warm_calls):  # in turn, so that what else the machine does is shared
            for (way, trip), found in warm.items():
                found.append(first_delta(bot, key(way, trip), f"c{number}"))
        per_token: dict[str, list[float]] = {way: [] for way in WAYS}
        per_call: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(3):
            for way in WAYS:
                before = cpu_seconds(daemon.pid)
                streams(bot, key(way, -1), 16, tokens)
                per_token[way].append(1e6 * (cpu_seconds(daemon.pid) - before) / (16 * tokens))
                before = cpu_seconds(daemon.pid)
                for number in range(5 * options.warm_calls):
                    first_delta(bot, key(way, -1), f"p{number}")
                per_call[way].append(1e6 * (cpu_seconds(daemon.pid) - before) / (5 * options.warm_calls))
    for state, of_all in (("warm", warm), ("cold", cold)):
        for (way, trip), found in of_all.items():
            result[way][state][trip] = percentile(sorted(found), 0.5)
    for way in WAYS:
        result[way]["us_per_token"], result[way]["us_per_call"] = median(per_token[way]), median(per_call[way])
    return result


if __name__ == "__main__":
    sys.exit(main())
