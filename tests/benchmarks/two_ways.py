"""What a warm WebSocket is worth: time to first delta and CPU over WebSocket and HTTPS, cold and warm, by round trip.

Two relays, one behind TLS (a private authority), one plain; to each, lines of 0, 20 and 80 ms round trip
(`delayed_line.py`); a daemon with an upstream for each way and line. Warm: calls on connections that stand. Cold: the
first call of an upstream that keeps none (`warm_connections = 0`), each of an upstream of its own: TCP, TLS, upgrade,
request; what else a first call costs a daemon was paid before. The relay's own time to its first token is taken off.

Calls go one after another, in rounds: in each, every way and line once, in an order that a seeded dice gives, so that
what else the machine does befalls all alike. CPU is the daemon's, without lines: per token with 16 streams at 60 tokens
a second; per short call with 16 in flight, and one at a time, when each waits for its wake-ups alone.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from common import Bench, Bot, Relay, Verdicts, finish, median, mono_us, parser, percentile, table
from subject import authority, cpu_ns

TRIPS_MS: Final = (0, 20, 80)
#: Rounds of which a line of 80 ms has a call in one: of few there is a p99 as of many, only later.
EVERY: Final = {0: 1, 20: 1, 80: 2}
TTFT_MS: Final = 5.0
TIMEOUT_MS: Final = 20_000
IN_FLIGHT: Final = 16
#: No line: the way for what is paid once, and for CPU.
DIRECT: Final = -1


class Way(NamedTuple):
    """What is compared."""

    name: str
    scheme: str
    secure: bool
    keys: str = ""


_SHARED: Final = f'http_version = "2"\ncalls_per_connection = {IN_FLIGHT}\n'
WAYS: Final = tuple(
    Way(f"{name}{', TLS' if secure else ''}", f"{scheme}{'s' if secure else ''}", secure, keys)
    for secure in (True, False)
    for name, scheme, keys in (("WebSocket", "ws", ""), ("HTTP/1.1", "http", ""), ("HTTP/2", "http", _SHARED))
)
Cell = tuple[Way, int]
CELLS: Final[tuple[Cell, ...]] = tuple((way, trip) for way in WAYS for trip in TRIPS_MS)


class Place(NamedTuple):
    """Ports, by whether TLS is spoken there and by line; and who vouches for them."""

    ports: dict[tuple[bool, int], int]
    ca: Path


def key(cell: Cell, number: int | None = None) -> str:
    """The name of a way over a line, or of the so-manieth upstream for one cold call of it."""
    way, trip = cell
    name = way.name.lower().replace("/", "").replace(", ", "-").replace(".", "")
    return f"{name}-{'direct' if trip == DIRECT else trip}" + ("" if number is None else f"-{number}")


def upstream(place: Place, cell: Cell, name: str, warm: int) -> str:
    """An upstream and its route."""
    way, trip = cell
    tls = f'tls = {{ ca_file = "{place.ca}" }}\n' if way.secure else ""
    url = f"{way.scheme}://127.0.0.1:{place.ports[way.secure, trip]}/v1/responses"
    return (
        f'[[upstream]]\nname = "{name}"\nurl = "{url}"\n'
        f'dialect = "responses"\nwarm_connections = {warm}\nmax_connections = 64\npong_timeout_s = 30\n{way.keys}{tls}'
        f'[[route]]\nname = "{name}"\ntargets = [ {{ upstream = "{name}", model = "m" }} ]\n'
        f"max_output_tokens = 100000\nfirst_delta_timeout_ms = 10000\nidle_timeout_ms = 10000\n"
    )


def ended(bot: Bot, route: str, left: int) -> Iterator[str]:
    """The types of what comes, until so many calls are done.

    Raises:
        SystemExit: one failed, or nothing came.
    """
    while left:
        messages = bot.receive(20)
        if not messages:
            raise SystemExit(f"{route}: nothing came")
        for message in messages:
            if message["type"] == "failed":
                raise SystemExit(f"{route}: {message['code']}: {message['message']}")
            left -= message["type"] == "done"
            yield message["type"]


def first_delta(bot: Bot, route: str) -> float:
    """One call's time to first delta, in milliseconds, the relay's own taken off."""
    sent = mono_us()
    bot.call("f", "[[tokens=2 cadence_ms=1]] hello", TIMEOUT_MS, route=route)
    first = 0
    for kind in ended(bot, route, 1):
        if kind == "delta" and not first:
            first = mono_us()
    return (first - sent) / 1000 - TTFT_MS


def streams(bot: Bot, route: str, tokens: int) -> None:
    """So many tokens of each of some streams at once, to their ends."""
    for index in range(IN_FLIGHT):
        bot.call(f"s{index}", f"[[tokens={tokens} cadence_ms=16.7 jitter=0.5]] hello", 60_000, route=route)
    for _ in ended(bot, route, IN_FLIGHT):
        pass


def short_calls(bot: Bot, route: str, count: int, in_flight: int) -> None:
    """So many short calls, some of them at once."""
    sent = 0

    def send() -> None:
        nonlocal sent
        if sent < count:
            bot.call(f"p{sent}", "[[tokens=2 cadence_ms=1]] hello", TIMEOUT_MS, route=route)
            sent += 1

    for _ in range(in_flight):
        send()
    for kind in ended(bot, route, count):
        if kind == "done":
            send()


def cold(bench: Bench, place: Place, rounds: int, dice: random.Random) -> dict[Cell, list[float]]:
    """Milliseconds of each cell's calls, a connection made for each."""
    parts = [upstream(place, (way, DIRECT), key((way, DIRECT)), 1) for way in WAYS]
    parts += [upstream(place, cell, key(cell, number), 0) for cell in CELLS for number in range(rounds)]
    daemon = bench.daemon("\n".join(parts), ready=False)
    found: dict[Cell, list[float]] = {cell: [] for cell in CELLS}
    with Bot(bench.endpoint) as bot:
        for way in WAYS:
            bench.until_connected(1, key((way, DIRECT)))
            first_delta(bot, key((way, DIRECT)))
        for number in range(rounds):
            for cell in dice.sample(CELLS, len(CELLS)):
                found[cell].append(first_delta(bot, key(cell, number)))
    daemon.terminate()
    daemon.wait(20)
    return found


def warm(bench: Bench, dice: random.Random, rounds: int) -> dict[Cell, list[float]]:
    """Milliseconds of each cell's calls on connections that stand."""
    found: dict[Cell, list[float]] = {cell: [] for cell in CELLS}
    with Bot(bench.endpoint) as bot:
        for number in range(rounds):
            for cell in dice.sample(CELLS, len(CELLS)):
                if number % EVERY[cell[1]] == 0:
                    found[cell].append(first_delta(bot, key(cell)))
    return found


def cpu(bench: Bench, pid: int, dice: random.Random, options: Any) -> dict[str, dict[Way, float]]:
    """Microseconds of the daemon, by what was done and way: the median of three rounds."""
    tokens, calls = max(10, int(60 * options.seconds)), options.calls
    alone = max(1, calls // 4)
    spent: dict[str, dict[Way, list[float]]] = {what: {way: [] for way in WAYS} for what in ("token", "call", "alone")}
    with Bot(bench.endpoint) as bot:

        def measure(what: str, way: Way, count: int, work: Callable[[str], None]) -> None:
            before = cpu_ns(pid)
            work(key((way, DIRECT)))
            spent[what][way].append((cpu_ns(pid) - before) / 1000 / count)

        for _ in range(3):
            for way in dice.sample(WAYS, len(WAYS)):
                measure("token", way, IN_FLIGHT * tokens, lambda route: streams(bot, route, tokens))
                measure("call", way, calls, lambda route: short_calls(bot, route, calls, IN_FLIGHT))
                measure("alone", way, alone, lambda route: short_calls(bot, route, alone, 1))
    return {what: {way: median(values) for way, values in by.items()} for what, by in spent.items()}


def line(bench: Bench, relay: Relay, trip: int) -> int:
    """A line with this round trip; its port."""
    process = bench.start(
        str(Path(__file__).with_name("delayed_line.py")), str(relay.port), str(trip),
        log=f"line{relay.port}-{trip}.log", stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return int(process.stdout.readline())


def lines(bench: Bench) -> Place:
    """The relays and the lines to them."""
    ca, certificate, private = authority(bench.folder)
    ports: dict[tuple[bool, int], int] = {}
    for secure in (True, False):
        tls = ("--tls-cert", str(certificate), "--tls-key", str(private)) if secure else ()
        relay = bench.relay("--ttft-ms", str(TTFT_MS), "--cadence-ms", "2", *tls, name=f"relay{secure}")
        ports |= {(secure, trip): line(bench, relay, trip) for trip in TRIPS_MS}
        ports[secure, DIRECT] = relay.port
    return Place(ports, ca)


def measured(options: Any) -> dict[str, dict[str, Any]]:
    """All figures, by way."""
    dice = random.Random(options.seed)
    with Bench() as bench:
        place = lines(bench)
        times = {"cold": cold(bench, place, options.cold_calls, dice)}
        parts = [upstream(place, cell, key(cell), 2) for cell in CELLS]
        parts += [upstream(place, (way, DIRECT), key((way, DIRECT)), IN_FLIGHT // 2) for way in WAYS]
        daemon = bench.daemon("\n".join(parts))
        time.sleep(1.0)
        before = cpu_ns(daemon.pid)
        time.sleep(2.0)
        idle = (cpu_ns(daemon.pid) - before) / 2e9
        times["warm"] = warm(bench, dice, options.warm_calls)
        spent = cpu(bench, daemon.pid, dice, options)
    result: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        one: dict[str, Any] = {f"us_{what}": by[way] for what, by in spent.items()}
        for state, found in times.items():
            ordered = {trip: sorted(found[way, trip]) for trip in TRIPS_MS}
            one[state] = {
                trip: {"p50": percentile(of, 0.5), "p99": percentile(of, 0.99), "n": len(of)}
                for trip, of in ordered.items()
            }
        one["round_trips"] = {
            state: (one[state][TRIPS_MS[-1]]["p50"] - one[state][0]["p50"]) / TRIPS_MS[-1] for state in times
        }
        result[way.name] = one
    return {"ways": result, "idle": {"cpu_share": idle}}


HEAD: Final = [
    "way", *(f"warm, {trip} ms" for trip in TRIPS_MS), *(f"cold, {trip} ms" for trip in TRIPS_MS), "round trips",
    "us/token", "us/call", "us/call alone",
]  # fmt: skip


def row(name: str, one: dict[str, Any]) -> list[str]:
    """A line of the table: warm p50 and p99, cold p50, round trips of a warm and of a cold call, CPU."""
    warm_times = [f"{one['warm'][trip]['p50']:.1f} / {one['warm'][trip]['p99']:.1f}" for trip in TRIPS_MS]
    cold_times = [f"{one['cold'][trip]['p50']:.1f}" for trip in TRIPS_MS]
    trips = f"{one['round_trips']['warm']:.1f}, {one['round_trips']['cold']:.1f}"
    return [name, *warm_times, *cold_times, trips, *(f"{one[f'us_{what}']:.0f}" for what in ("token", "call", "alone"))]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """For the documents."""
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]) + "\n"


def main() -> int:
    """Returns 0: nothing is promised here, it is compared."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--warm-calls", type=int, default=200, help="for each way and line; half at 80 ms")
    arguments.add_argument("--cold-calls", type=int, default=15, help="for each way and line")
    arguments.add_argument("--seconds", type=float, default=2.0, help="of the streams, for each way, thrice")
    arguments.add_argument("--calls", type=int, default=200, help="short ones for the CPU, for each way, thrice")
    arguments.add_argument("--seed", type=int, default=1, help="of the order")
    arguments.add_argument("--markdown", type=Path)
    options = arguments.parse_args()
    if options.quick:
        options.warm_calls, options.cold_calls, options.seconds, options.calls = 4, 1, 0.3, 16
    result = measured(options)
    rows = [row(name, one) for name, one in result["ways"].items()]
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows))
    idle = f"\nwithout calls the daemon takes {100 * result['idle']['cpu_share']:.2f} % of a core"
    return finish(result, Verdicts(), as_json=options.json, text=table(rows, head=HEAD) + idle)


if __name__ == "__main__":
    sys.exit(main())
