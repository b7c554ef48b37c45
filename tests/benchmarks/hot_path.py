"""The path of a token: latency beside a direct `websockets` client, and tokens per CPU-second beside the naive relay.

Latency: 60 tokens a second per stream with jitter; each token is the simulator's CLOCK_MONOTONIC at its sending, so the
one-way time is read where the token arrives. Time to first token is from the call to the first text, the simulator
answering at once. The ways are taken in turn within each repetition; shown are medians over the repetitions, and
ratios of medians. Only ratios of one run mean anything.

Saturation: answers as fast as the simulator can write; the figure is tokens per CPU-second of the relaying process
(/proc/PID/stat, user and system, all threads), which neither the simulator nor the bot can flatter or spoil much.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from common import (
    Bench,
    Bot,
    Relay,
    Verdicts,
    cpu_seconds,
    finish,
    histogram,
    median,
    mono_us,
    parser,
    percentiles,
    route,
    table,
    upstream,
)

import msgspec  # isort: skip
from websockets.asyncio.client import ClientConnection, connect  # isort: skip

from sidecar import AsyncClient, Client

CADENCE: Final = 1 / 60
TIMEOUT_MS: Final = 60_000


class Event(msgspec.Struct):
    """A frame of the upstream, as a careful direct client would decode it."""

    type: str
    delta: str = ""


class Sample:
    """Of one run of one way: microseconds."""

    def __init__(self) -> None:
        self.token_us: list[int] = []
        self.first_us: list[int] = []
        self.tokens = 0

    def arrived(self, text: str, now: int) -> None:
        """Stamps that came together."""
        for stamp in text.split():
            self.token_us.append(now - int(stamp))
            self.tokens += 1


# ------------------------------------------------------------------------------------------------ ways


def by_asyncio(endpoint: str, streams: int) -> Sample:
    """Our AsyncClient, a task per stream."""
    sample = Sample()

    async def one(client: AsyncClient, index: int) -> None:
        await asyncio.sleep(CADENCE * index / streams)
        sent, first = mono_us(), True
        async with client.stream(str(index), timeout_ms=TIMEOUT_MS) as stream:
            async for piece in stream:
                now = mono_us()
                if first:
                    sample.first_us.append(now - sent)
                    first = False
                sample.arrived(piece, now)

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            await client.ping()
            await asyncio.gather(*(one(client, index) for index in range(streams)))

    asyncio.run(main())
    return sample


def by_blocking(endpoint: str, streams: int) -> Sample:
    """Our blocking Client, a thread and a Client per stream."""
    samples = [Sample() for _ in range(streams)]
    barrier = threading.Barrier(streams)

    def one(index: int) -> None:
        sample = samples[index]
        with Client(endpoint) as client:
            client.ping(timeout_ms=10_000)
            barrier.wait(30)
            time.sleep(CADENCE * index / streams)
            sent, first = mono_us(), True
            with client.stream(str(index), timeout_ms=TIMEOUT_MS) as stream:
                for piece in stream:
                    now = mono_us()
                    if first:
                        sample.first_us.append(now - sent)
                        first = False
                    sample.arrived(piece, now)

    if streams == 1:
        one(0)
    else:
        threads = [threading.Thread(target=one, args=(index,)) for index in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    whole = Sample()
    for sample in samples:
        whole.token_us += sample.token_us
        whole.first_us += sample.first_us
        whole.tokens += sample.tokens
    return whole


def by_wire(endpoint: str, streams: int) -> Sample:
    """The bare wire: one DEALER for all streams, batches, no library of ours."""
    sample = Sample()
    with Bot(endpoint) as bot:
        sent: dict[str, int] = {}
        started: set[str] = set()
        began = time.monotonic()
        ended = 0
        while ended < streams:
            due = [i for i in range(len(sent), streams) if began + CADENCE * i / streams <= time.monotonic()]
            for index in due:
                sent[str(index)] = mono_us()
                bot.call(str(index), str(index), TIMEOUT_MS)
            for message in bot.receive(0.001 if len(sent) < streams else 5.0):
                now = mono_us()
                if message["type"] == "delta":
                    name = message["id"]
                    if name not in started:
                        started.add(name)
                        sample.first_us.append(now - sent[name])
                    sample.arrived(message["text"], now)
                elif message["type"] in ("done", "failed"):
                    ended += 1
    return sample


def direct(url: str, streams: int) -> Sample:
    """The `websockets` package against the simulator: a warm connection and a task per stream."""
    sample = Sample()
    decode = msgspec.json.Decoder(Event).decode

    async def one(websocket: ClientConnection, index: int) -> None:
        await asyncio.sleep(CADENCE * index / streams)
        sent, first = mono_us(), True
        await websocket.send(
            msgspec.json.encode({"type": "response.create", "model": "gpt-5-mini", "input": str(index)}).decode()
        )
        while True:
            event = decode(await websocket.recv(decode=False))
            if event.type == "response.output_text.delta":
                now = mono_us()
                if first:
                    sample.first_us.append(now - sent)
                    first = False
                sample.arrived(event.delta, now)
            elif event.type == "response.completed":
                return

    async def main() -> None:
        sockets = [await connect(url, compression=None) for _ in range(streams)]
        await asyncio.gather(*(one(websocket, index) for index, websocket in enumerate(sockets)))
        await asyncio.gather(*(websocket.close() for websocket in sockets))

    asyncio.run(main())
    return sample


# ------------------------------------------------------------------------------------------------ latency


def latency(levels: list[int], repetitions: int, tokens: int) -> dict[str, Any]:
    """Way -> streams -> figures."""
    with Bench() as bench:
        relay = bench.relay("--jitter", "0.3", "--ttft-ms", "0", "--tokens", str(tokens))
        url = relay.url(stamp=1)
        most = max(levels)
        bench.daemon(upstream("sim", url, warm=most, maximum=most + 16) + route("sim", timeout_ms=TIMEOUT_MS))
        bench.until_connected(most, "sim")
        ways: dict[str, Callable[[int], Sample]] = {
            "direct websockets": lambda streams: direct(url, streams),
            "sidecar + AsyncClient": lambda streams: by_asyncio(bench.endpoint, streams),
            "sidecar + Client": lambda streams: by_blocking(bench.endpoint, streams),
            "sidecar + bare wire": lambda streams: by_wire(bench.endpoint, streams),
        }
        found: dict[str, dict[int, list[dict[str, float]]]] = {way: {n: [] for n in levels} for way in ways}
        pooled: dict[str, list[int]] = {way: [] for way in ways}
        whole = True
        for repetition in range(repetitions):
            for streams in levels:
                names = list(ways)
                turned = names[repetition % len(names) :] + names[: repetition % len(names)]
                for way in turned:
                    gc.collect()
                    sample = ways[way](streams)
                    whole = whole and sample.tokens == streams * tokens and len(sample.first_us) == streams
                    each, first = percentiles(sample.token_us), percentiles(sample.first_us)
                    found[way][streams].append(
                        {"p50": each["p50"], "p99": each["p99"], "ttft_p50": first["p50"], "ttft_max": first["max"]}
                    )
                    if streams == levels[-1]:
                        pooled[way] += sample.token_us
    medians = {
        way: {
            str(n): {key: median(one[key] for one in runs) for key in ("p50", "p99", "ttft_p50", "ttft_max")}
            for n, runs in by_level.items()
        }
        for way, by_level in found.items()
    }
    return {
        "repetitions": repetitions, "tokens_per_stream": tokens, "every_token_arrived": whole, "us": medians,
        "pooled_us": pooled, "every_run": {way: {str(n): runs for n, runs in by.items()} for way, by in found.items()},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ saturation


def flood(bench: Bench, pid: int, streams: int, per_call: int, at_least: int) -> dict[str, Any]:
    """So many streams at once until `at_least` tokens came; what they cost the process `pid`."""
    with Bot(bench.endpoint) as bot:
        # One short call first: imports, caches and connections are nobody's steady state.
        bot.call("first", "first [[tokens=100]]", TIMEOUT_MS)
        while not any(one["type"] in ("done", "failed") for one in bot.receive(10)):
            pass
        calls = max(streams, -(-at_least // per_call))
        cpu, began = cpu_seconds(pid), time.monotonic()
        sent = ended = failed = messages = 0
        silence = 0
        codes: Counter[str] = Counter()
        while ended < calls and silence < 3:
            while sent < calls and sent - ended < streams:
                bot.call(str(sent), "flood", TIMEOUT_MS)
                sent += 1
            received = bot.receive(5.0)
            silence = 0 if received else silence + 1
            messages += len(received)
            for message in received:
                if message["type"] in ("done", "failed"):
                    ended += 1
                    failed += message["type"] == "failed"
                    codes[message.get("code", "done")] += 1
        used, took = cpu_seconds(pid) - cpu, time.monotonic() - began
    tokens = (ended - failed) * per_call
    return {
        "tokens": tokens, "cpu_s": used, "seconds": took, "per_cpu_s": tokens / used if used else 0.0,
        "per_s": tokens / took, "failed": failed + calls - ended, "codes": dict(codes),
        "deltas_per_call": messages / max(1, ended),
    }  # fmt: skip


def saturation(levels: list[int], repetitions: int, per_call: int, at_least: tuple[int, int]) -> dict[str, Any]:
    """Streams -> figures of the product and of the naive relay, in turn, each with a fresh process per repetition."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {
        which: {n: [] for n in levels} for which in ("sidecar", "naive")
    }
    most = max(levels)
    for _ in range(repetitions):
        for which, total in zip(("sidecar", "naive"), at_least, strict=True):
            with Bench() as bench:
                relay = bench.relay("--cadence-ms", "0", "--ttft-ms", "0", "--tokens", str(per_call))
                process = _started(bench, which, relay, most)
                for streams in levels:
                    runs[which][streams].append(flood(bench, process, streams, per_call, total))
    result: dict[str, Any] = {
        "per_call": per_call,
        "runs": {w: {str(n): r for n, r in by.items()} for w, by in runs.items()},
    }
    for which, by_level in runs.items():
        result[which] = {str(n): median(run["per_cpu_s"] for run in found) for n, found in by_level.items()}
    result["ratio"] = {str(n): result["sidecar"][str(n)] / (result["naive"][str(n)] or 1) for n in levels}
    result["failed"] = sum(run["failed"] for by in runs.values() for found in by.values() for run in found)
    return result


def _started(bench: Bench, which: str, relay: Relay, connections: int) -> int:
    if which == "sidecar":
        process = bench.daemon(
            upstream("sim", relay.url(), warm=connections, maximum=connections)
            + route("sim", timeout_ms=TIMEOUT_MS, first_delta_timeout_ms=TIMEOUT_MS, idle_timeout_ms=TIMEOUT_MS)
        )
        bench.until_connected(connections, "sim")
    else:
        process = bench.start(
            "tests/benchmarks/naive_relay.py", "--endpoint", bench.endpoint, "--url", relay.url(),
            "--connections", str(connections), log="naive.log",
        )  # fmt: skip
        bench.until(lambda: relay.counters()["open"] >= connections, process, "naive.log")
    return process.pid


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=60, help="per stream, for latency")
    arguments.add_argument("--flood-repetitions", type=int, default=3)
    arguments.add_argument("--flood-tokens", type=int, default=4000, help="per answer, for saturation")
    arguments.add_argument("--only", choices=["latency", "saturation"])
    options = arguments.parse_args()
    levels, repetitions, tokens = options.streams, options.repetitions, options.tokens
    floods, per_call, at_least = options.flood_repetitions, options.flood_tokens, (1_000_000, 100_000)
    if options.quick:
        levels, repetitions, tokens, floods, per_call, at_least = [1, 4], 1, 15, 1, 1000, (20_000, 4_000)
    verdicts = Verdicts()
    result: dict[str, Any] = {}
    text = []
    if options.only != "saturation":
        result["latency"] = found = latency(levels, repetitions, tokens)
        pooled = found.pop("pooled_us")
        verdicts.judge("every token arrived, by every way", found["every_token_arrived"])
        text.append(_latency_text(found, pooled, levels))
    if options.only != "latency":
        result["saturation"] = found = saturation(levels, floods, per_call, at_least)
        verdicts.judge("every flood was answered", found["failed"] == 0)
        if not options.quick:
            verdicts.judge("at least 11 times the naive path's tokens per CPU-second",
                           all(ratio >= 11 for ratio in found["ratio"].values()))  # fmt: skip
        text.append(_saturation_text(found, levels))
    return finish(result, verdicts, as_json=options.json, text="\n\n".join(text))


def _latency_text(found: dict[str, Any], pooled: dict[str, list[int]], levels: list[int]) -> str:
    base = found["us"]["direct websockets"]
    rows = []
    for way, by_level in found["us"].items():
        for level in map(str, levels):
            mine, theirs = by_level[level], base[level]
            rows.append(
                [way, level, *(mine[key] for key in ("p50", "p99", "ttft_p50", "ttft_max")),
                 *(mine[key] / theirs[key] for key in ("p50", "p99", "ttft_p50"))]
            )  # fmt: skip
    head = ["", "streams", "p50 us", "p99 us", "TTFT p50", "TTFT max", "p50 /direct", "p99 /direct", "TTFT /direct"]
    return (
        "one way per token, 60 tokens/s per stream, jitter 0.3; "
        f"medians of {found['repetitions']} repetitions in turn\n"
        + table(rows, head=head)
        + f"\n\nper token at {levels[-1]} streams, sidecar + AsyncClient, all repetitions\n"
        + histogram(pooled["sidecar + AsyncClient"], unit="us")
    )


def _saturation_text(found: dict[str, Any], levels: list[int]) -> str:
    rows = []
    for level in map(str, levels):
        mine, theirs = found["runs"]["sidecar"][level], found["runs"]["naive"][level]
        rows.append(
            [level, found["sidecar"][level], found["naive"][level], f"{found['ratio'][level]:.1f}",
             median(run["per_s"] for run in mine), median(run["per_s"] for run in theirs),
             median(run["deltas_per_call"] for run in mine)]
        )  # fmt: skip
    head = ["streams", "sidecar /CPU-s", "naive /CPU-s", "ratio", "sidecar /s", "naive /s", "messages per answer"]
    codes = {
        which: [run["codes"] for by in found["runs"][which].values() for run in by] for which in ("sidecar", "naive")
    }
    ended: dict[str, dict[str, int]] = {
        which: dict(sum(map(Counter, runs), Counter())) for which, runs in codes.items()
    }
    return f"tokens at saturation, answers of {found['per_call']}, ended {ended}\n" + table(rows, head=head)


if __name__ == "__main__":
    sys.exit(main())
