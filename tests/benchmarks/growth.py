"""What one more stream costs: 1, 4, 16, 64, 256, 1,000 of them in one table.

Three ways to flow. *cadence*: each stream at 60 tokens a second with jitter, more slowly where all of them together
would be more than `--most` tokens a second (said in the table). *total*: 2,000 tokens a second, spread over the
streams: the price of the streams, not of the tokens. *flood*: as fast as the upstream writes.

Of each: CPU per token of the daemon and of the bot (its ZeroMQ thread included), ZeroMQ messages per token, and, with a
cadence, the way of a token from the upstream's write to the bot's hands, p50 and p99, by the CLOCK_MONOTONIC in it. A
row whose tokens came at less than 95 % of the rate asked for is marked "behind": it measures a queue, not a way.
("came" counts the time in which the streams start, too; the mark does not.)

The bot is `wire`: one process on the bare wire with batches; or `asyncio`: our client, a task per stream (its messages
are not counted).
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from common import Verdicts, finish, median, mono_us, parser, percentile, table, upstream
from subject import Answering, Subject, answering, cpu_ns, load, long_route, progress, trees, upstream_flags

import msgspec  # isort: skip
import zmq  # isort: skip

from sidecar import AsyncClient

TOKENS_PER_S: Final = 60.0
TIMEOUT_MS: Final = 3_600_000
#: A cadence is kept when at least this share of the tokens came in the time they should take.
KEPT: Final = 0.95
#: At least so many tokens in a call with a cadence: a call has its own price, which `short_call.py` measures.
_TOKENS_A_CALL: Final = 40
#: Streams that start in a second at most, for the same reason.
_STARTS_PER_S: Final = 500
#: Microseconds in a row's latencies at most; beyond, every other one is kept.
_SAMPLES: Final = 2_000_000


class Took:
    """What the bot of one row saw."""

    def __init__(self) -> None:
        self.tokens = 0
        self.messages = 0
        self.failed = 0
        self.ways_us: list[int] = []

    def arrived(self, text: str, now: int) -> None:
        """Stamps that came together."""
        stamps = text.split()
        self.tokens += len(stamps)
        if len(self.ways_us) < _SAMPLES:
            self.ways_us += [now - int(stamp) for stamp in stamps]


def by_wire(endpoint: str, streams: int, spread_s: float, stamped: int, until: Callable[[int], bool]) -> Took:
    """One DEALER for all streams. `until`: of the calls ended, whether to start no more."""
    took = Took()
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        socket.send(encode({"type": "hello", "name": "growth", "batch": True}))
        began = time.monotonic()
        sent = running = ended = 0
        while True:
            while running < streams and not until(ended):
                if sent < streams and began + spread_s * sent / streams > time.monotonic():
                    break
                call = {"type": "call", "id": str(sent), "input": "go", "timeout_ms": TIMEOUT_MS}
                socket.send(encode({**call, "sent_mono_us": mono_us()}))
                sent += 1
                running += 1
            if not running and until(ended):
                return took
            if not socket.poll(1 if sent < streams else 5000):
                if sent < streams:
                    continue
                took.failed += running
                return took
            received = decode(socket.recv())
            took.messages += 1
            now = mono_us()
            for message in received if isinstance(received, list) else (received,):
                kind = message["type"]
                if kind == "delta":
                    if stamped:
                        took.arrived(message["text"], now)
                elif kind == "done":
                    running -= 1
                    ended += 1
                    if not stamped:
                        took.tokens += message["usage"]["output_tokens"]
                elif kind == "failed":
                    running -= 1
                    ended += 1
                    took.failed += 1
    finally:
        socket.close()
        context.term()


def by_asyncio(endpoint: str, streams: int, spread_s: float, stamped: int, until: Callable[[int], bool]) -> Took:
    """`AsyncClient`, a task per stream."""
    took = Took()
    ended = 0

    async def one(client: AsyncClient, index: int) -> None:
        nonlocal ended
        await asyncio.sleep(spread_s * index / streams)
        while not until(ended):
            async with client.stream("go", timeout_ms=TIMEOUT_MS) as stream:
                async for piece in stream:
                    if stamped:
                        took.arrived(piece, mono_us())
                    else:
                        took.tokens += len(piece.split())
            ended += 1

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            await asyncio.gather(*(one(client, index) for index in range(streams)))

    asyncio.run(main())
    return took


_BOTS: Final = {"wire": by_wire, "asyncio": by_asyncio}


class House:
    """A daemon of one tree with an upstream that is steered by its URL: one daemon for each way to flow."""

    def __init__(self, tree: Path, which: str, streams: int, *, tokens: int, cadence_ms: float, jitter: float) -> None:
        self.bench = Subject(tree)
        self.relay: Answering = answering(self.bench, which, tokens=tokens, cadence_ms=cadence_ms, jitter=jitter)
        self.stamped = int(cadence_ms > 0)
        url = self.relay.url(stamp=self.stamped)
        self.daemon = self.bench.daemon_with(
            upstream("sim", url, warm=streams, maximum=streams + 8) + long_route("sim"),
            frontend=f"max_calls_in_flight = {streams + 16}",
        )
        self.bench.connected(streams, "sim", 240)

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.__exit__()


def measure(
    tree: Path, way: str, streams: int, *, bot: str, which: str, per_s: float, seconds: float, at_least: int
) -> dict[str, Any]:
    """One row.

    Args:
        tree: of the daemon.
        way: cadence, total or flood.
        streams: at once.
        bot, which: `--bot`, `--upstream`.
        per_s: tokens a second of each stream; 0: a flood.
        seconds: with a cadence.
        at_least: tokens of a flood.
    """
    flooding = per_s == 0
    if seconds >= 1:  # the calls themselves are not what is measured here
        seconds = max(seconds, _TOKENS_A_CALL / per_s) if per_s else seconds
    tokens = max(50, min(2_000, at_least // streams)) if flooding else max(5, round(per_s * seconds))
    cadence_s = 0.0 if flooding else 1 / per_s
    calls = max(streams, at_least // tokens) if flooding else streams
    ramp_s = 0.0 if flooding else max(cadence_s, streams / _STARTS_PER_S)
    with House(tree, which, streams, tokens=tokens, cadence_ms=1000 * cadence_s, jitter=0.3) as house:
        pids = {"daemon": house.daemon.pid, "upstream": house.relay.process.pid}
        time.sleep(0.3)
        gc.collect()
        used = {name: cpu_ns(pid) for name, pid in pids.items()}
        mine, began = time.process_time_ns(), time.monotonic()
        run = _BOTS[bot]
        took = run(house.bench.endpoint, streams, ramp_s, house.stamped, lambda ended: ended >= calls - streams + 1)
        lasted = time.monotonic() - began
        cpu = {name: cpu_ns(pid) - used[name] for name, pid in pids.items()} | {"bot": time.process_time_ns() - mine}
    ways = sorted(took.ways_us)
    count = max(1, took.tokens)
    return {
        "tokens": took.tokens, "failed": took.failed, "seconds": lasted, "per_s": took.tokens / lasted,
        "asked_per_s": math.nan if flooding else per_s * streams,
        "kept": flooding or lasted <= tokens * cadence_s / KEPT + ramp_s + 0.5,
        "us": {name: value / 1000 / count for name, value in cpu.items()},
        "cores": {name: value / 1e9 / lasted for name, value in cpu.items()},
        "messages_per_token": took.messages / count if took.messages else math.nan,
        "p50_us": percentile(ways, 0.5), "p99_us": percentile(ways, 0.99), "whole": took.tokens >= streams * tokens,
    }  # fmt: skip


def main() -> int:
    """Returns 0 when every token came."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1000], help="streams at once")
    arguments.add_argument(
        "--ways", nargs="+", choices=("cadence", "total", "flood"), default=["cadence", "total", "flood"]
    )
    arguments.add_argument("--seconds", type=float, default=6, help="of a row with a cadence")
    arguments.add_argument("--most", type=float, default=15_360, help="tokens a second of all streams, for `cadence`")
    arguments.add_argument("--total", type=float, default=2_000, help="tokens a second of all streams, for `total`")
    arguments.add_argument("--at-least", type=int, default=400_000, help="tokens of a flood")
    arguments.add_argument("--bot", choices=tuple(_BOTS), default="wire")
    arguments.add_argument("--repetitions", type=int, default=3)
    upstream_flags(arguments)
    options = arguments.parse_args()
    levels, seconds, at_least, repetitions = options.levels, options.seconds, options.at_least, options.repetitions
    if options.quick:
        levels, seconds, at_least, repetitions = [1, 4], 0.5, 4_000, 1
    before = load()
    runs: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {
        name: {way: {str(streams): [] for streams in levels} for way in options.ways} for name in trees(options)
    }
    asked: dict[str, dict[str, float]] = {
        way: {
            str(streams): {
                "cadence": min(TOKENS_PER_S, options.most / streams), "total": options.total / streams, "flood": 0.0
            }[way]
            for streams in levels
        }
        for way in options.ways
    }  # fmt: skip
    for repetition in range(repetitions):
        for way in options.ways:
            for streams in levels:
                for name, tree in trees(options).items():
                    progress(f"{repetition + 1}/{repetitions} {name}: {way}, {streams} streams")
                    runs[name][way][str(streams)].append(
                        measure(
                            tree, way, streams, bot=options.bot, which=options.upstream,
                            per_s=asked[way][str(streams)], seconds=seconds, at_least=at_least,
                        )
                    )  # fmt: skip
    progress("")
    verdicts = Verdicts()
    text = f"load before: {before:.2f}; bot: {options.bot}; medians of {repetitions}"
    head = [
        "streams", "tok/s asked", "came", "daemon us/token", "bot us/token", "messages/token", "p50 us", "p99 us",
        "daemon cores", "upstream cores", "",
    ]  # fmt: skip
    for name, by_way in runs.items():
        for way, by_level in by_way.items():
            rows = [_row(streams, each, asked[way][streams]) for streams, each in by_level.items()]
            text += f"\n\n{name}, {way}\n" + table(rows, head=head)
            every = [one for each in by_level.values() for one in each]
            verdicts.judge(f"{name}, {way}: every token came", all(one["whole"] and not one["failed"] for one in every))
    result = {"load_before": before, "bot": options.bot, "asked_per_stream": asked, "runs": runs}
    return finish(result, verdicts, as_json=options.json, text=text)


def _row(streams: str, each: list[dict[str, Any]], per_s: float) -> list[object]:
    def middle(*path: str) -> float:
        values = []
        for one in each:
            found: Any = one
            for name in path:
                found = found[name]
            values.append(float(found))
        return median(values)

    kept = sum(one["kept"] for one in each) * 2 > len(each)
    return [
        streams, f"{per_s:.3g} each" if per_s else "flood", middle("per_s"), middle("us", "daemon"),
        middle("us", "bot"), middle("messages_per_token"), middle("p50_us"), middle("p99_us"),
        middle("cores", "daemon"), middle("cores", "upstream"), "" if kept else "behind",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
