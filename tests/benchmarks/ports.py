"""The hop from daemon to bot: libzmq's ROUTER against our own ZMTP, behind the same frontend, in one process.

A host holds both sockets, each behind a `Frontend`, and streams stamps of CLOCK_MONOTONIC: 60 a second to each stream
(`paced`), or as many as go (`flood`). A bot in another process takes them, from one socket and then from the other, in
turn: by pyzmq's DEALER on the bare wire, and by our `AsyncClient`. Then pings, by pyzmq and by a bare socket, and what
a `send` alone costs the host. CPU is that of all threads of a process, per token (or message); latency is one way, from
the stamp to the bot's hand.

The figures contain the frontend and Trio's timer, the same for both.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from common import Bench, Bot, Verdicts, finish, median, mono_us, parser, percentiles, table

from sidecar import AsyncClient, wire
from sidecar.client.dealer import OPENING, Dealer, frame
from sidecar.service.frontend import Frontend
from sidecar.service.ports import Peer, Reply
from sidecar.transport.bot_port import Sent
from sidecar.transport.zmq_socket import RouterPort
from sidecar.transport.zmtp_port import ZmtpPort
from sidecar.wire import Accepted, Call, Done, Failed

KINDS: Final = {"libzmq": RouterPort, "native": ZmtpPort}
CADENCE: Final = 1 / 60
#: Tokens that a flooding host makes between two flushes, as a pass over several upstreams does.
FLOOD_PASS: Final = 16
#: What a `send` alone is given: about the size of a delta.
PAYLOAD: Final = b"x" * 150
LIMIT: Final = 1 << 20
TIMEOUT_MS: Final = 120_000
FIGURES: Final = ("host_us", "bot_us", "p50", "p99", "rate")


# ------------------------------------------------------------------------------------------------ the host


class Ticket:
    """Of a call that cannot be stopped."""

    admitted: bool | None = True

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.over = False

    def end(self, code: str, message: str) -> None:
        """See `Ticket`."""

    def abandon(self) -> None:
        """The bot is gone."""
        self.over = True


class Host:
    """Takes the calls of one frontend."""

    def __init__(self, port: RouterPort | ZmtpPort) -> None:
        self.port = port
        self.frontend = Frontend(
            port, self, session="bench", version="0", routes=["default"], clock=trio.current_time, jitter=lambda: 0.5,
            limits=wire.Limits(max_message_bytes=LIMIT, max_calls_in_flight=1024, queue_max=8),
            mono_us=mono_us, wall_us=lambda: 1, report=self._no_report, max_message_bytes=LIMIT, stall_timeout=30.0,
        )  # fmt: skip
        self.nursery: trio.Nursery

    def submit(self, call: Call, reply: Reply, peer: Peer, *, recv_mono_us: int, ignored: list[str]) -> Ticket | Failed:
        """Accept, and do what the prompt says."""
        ticket = Ticket(call.id)
        reply.accept(
            Accepted(
                id=call.id, call_id=call.id, session="bench", recv_mono_us=recv_mono_us,
                deadline_mono_us=recv_mono_us + 1000 * TIMEOUT_MS, route="default",
            )
        )  # fmt: skip
        what, *numbers = str(call.input).split()
        tasks: dict[str, Callable[..., Awaitable[None]]] = {
            "cpu": self._cpu, "paced": self._paced, "flood": self._flood, "raw": self._raw
        }  # fmt: skip
        self.nursery.start_soon(tasks[what], call, reply, ticket, *map(int, numbers))
        return ticket

    def _finish(self, call: Call, reply: Reply) -> None:
        reply.finish(Done(id=call.id, call_id=call.id, finish="stop", deltas=0, usage=wire.Usage(), route="default",
                          upstream="host", model="m", attempts=1, timing=wire.Timing(), wall_us=1))  # fmt: skip
        self.frontend.flush()

    async def _cpu(self, call: Call, reply: Reply, ticket: Ticket) -> None:
        reply.text(f"{time.process_time_ns()}")
        self._finish(call, reply)

    async def _paced(self, call: Call, reply: Reply, ticket: Ticket, streams: int, tokens: int) -> None:
        """Of so many streams this is one: 60 a second, the others' between them."""
        begun = trio.current_time() + CADENCE * (int(call.id.rpartition("-")[2]) if "-" in call.id else 0) / streams
        for number in range(tokens):
            await trio.sleep_until(begun + number * CADENCE)
            reply.text(f"{mono_us()} ")
            self.frontend.flush()
        self._finish(call, reply)

    async def _flood(self, call: Call, reply: Reply, ticket: Ticket, tokens: int) -> None:
        """Passes of a few tokens; the loop has its turn after each."""
        for number in range(tokens):
            reply.text(f"{mono_us()} ")
            if number % FLOOD_PASS == FLOOD_PASS - 1:
                self.frontend.flush()
                await trio.lowlevel.checkpoint()
        self._finish(call, reply)

    async def _raw(self, call: Call, reply: Reply, ticket: Ticket, number: int, burst: int) -> None:
        """`send` alone, so many at a time, every millisecond; the text is what one cost, without the waiting."""
        (routing_id,) = self.frontend._peers
        send, settle = self.port.send, self.port.settle
        spent = []
        for size in (0, burst):
            began = time.process_time_ns()
            for _ in range(number // burst):
                for _ in range(size):
                    if send(routing_id, PAYLOAD) is not Sent.SENT:
                        raise SystemExit("the bot of `raw` does not read")
                settle()
                await trio.sleep(0.001)
            spent.append(time.process_time_ns() - began)
        reply.text(f"{(spent[1] - spent[0]) / number:.0f}")
        self._finish(call, reply)

    def _no_report(self) -> wire.Report:
        raise SystemExit("nobody asks for a report")

    async def run(self) -> None:
        """Serve."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await nursery.start(self.frontend.run)


async def host(folder: str) -> None:
    """Both, until killed."""
    async with trio.open_nursery() as nursery:
        for name, kind in KINDS.items():
            port = kind(max_message_bytes=LIMIT)
            port.bind(f"ipc://{folder}/{name}")
            nursery.start_soon(Host(port).run)
        gc.collect()
        gc.freeze()
        print("ready", flush=True)


# ------------------------------------------------------------------------------------------------ the bots


def heard(bot: Bot) -> list[dict[str, Any]]:
    """What came; the end of it all when nothing does."""
    found = bot.receive(10)
    if not found:
        raise SystemExit("the host has fallen silent")
    return found


def host_cpu_ns(bot: Bot) -> int:
    """CPU of the host so far."""
    bot.send({"type": "call", "id": "cpu", "input": "cpu", "timeout_ms": TIMEOUT_MS})
    text = ""
    while True:
        for message in heard(bot):
            text += message.get("text") or ""
            if message["type"] in ("done", "failed"):
                return int(text)


def by_pyzmq(endpoint: str, prompt: str, streams: int) -> list[int]:
    """Microseconds of every token, on the bare wire."""
    found: list[int] = []
    with Bot(endpoint) as bot:
        for index in range(streams):
            bot.send({"type": "call", "id": f"s-{index}", "input": prompt, "timeout_ms": TIMEOUT_MS})
        open_calls = streams
        while open_calls:
            for message in heard(bot):
                if message["type"] == "delta":
                    now = mono_us()
                    found.extend(now - int(stamp) for stamp in message["text"].split())
                elif message["type"] in ("done", "failed"):
                    open_calls -= 1
    return found


def by_asyncio(endpoint: str, prompt: str, streams: int) -> list[int]:
    """The same by `AsyncClient`."""
    found: list[int] = []

    async def one(client: AsyncClient, index: int) -> None:
        await asyncio.sleep(CADENCE * index / streams)
        async with client.stream(prompt, timeout_ms=TIMEOUT_MS) as stream:
            async for piece in stream:
                now = mono_us()
                found.extend(now - int(stamp) for stamp in piece.split())

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            await asyncio.gather(*(one(client, index) for index in range(streams)))

    asyncio.run(main())
    return found


WAYS: Final[dict[str, Callable[[str, str, int], list[int]]]] = {"pyzmq": by_pyzmq, "AsyncClient": by_asyncio}


def streamed(endpoint: str, way: str, prompt: str, streams: int, tokens: int) -> dict[str, float]:
    """One run: CPU per token on either side, latency, tokens a second."""
    with Bot(endpoint) as meter:
        gc.collect()
        before = host_cpu_ns(meter)
        own, began = time.process_time_ns(), time.monotonic()
        taken = WAYS[way](endpoint, prompt, streams)
        took, own = time.monotonic() - began, time.process_time_ns() - own
        spent = host_cpu_ns(meter) - before
    latency = percentiles(taken)
    number = streams * tokens
    return {
        "whole": len(taken) == number, "host_us": spent / 1000 / number, "bot_us": own / 1000 / number,
        "p50": latency["p50"], "p99": latency["p99"], "rate": number / took,
    }  # fmt: skip


def raw(endpoint: str, number: int, burst: int) -> float:
    """Nanoseconds of the host's CPU for one `send` to a bot that reads."""
    path = endpoint.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX) as stream:
        ask, dealer = _opened(stream, path)
        ask({"type": "call", "id": "r", "input": f"raw {number} {burst}", "timeout_ms": TIMEOUT_MS})
        text = ""
        while True:
            for payload in dealer.receive(stream.recv(1 << 16)):
                if payload.startswith(b"x"):
                    continue
                message = json.loads(payload)
                text += message.get("text") or ""
                if message["type"] == "done":
                    return float(text)


def pings_by_pyzmq(endpoint: str, number: int) -> list[int]:
    """Microseconds of round trips."""
    found = []
    with Bot(endpoint) as bot:
        for nonce in range(number):
            began = time.perf_counter_ns()
            bot.send({"type": "ping", "nonce": nonce})
            heard(bot)
            found.append((time.perf_counter_ns() - began) // 1000)
    return found


def pings_by_hand(endpoint: str, number: int) -> list[int]:
    """The same over a bare socket."""
    found = []
    with socket.socket(socket.AF_UNIX) as stream:
        ask, dealer = _opened(stream, endpoint.removeprefix("ipc://"))
        for nonce in range(number):
            began = time.perf_counter_ns()
            ask({"type": "ping", "nonce": nonce})
            while not dealer.receive(stream.recv(1 << 16)):
                pass
            found.append((time.perf_counter_ns() - began) // 1000)
    return found


def _opened(stream: socket.socket, path: str) -> tuple[Callable[[dict[str, Any]], None], Dealer]:
    stream.settimeout(10)
    stream.connect(path)
    stream.sendall(OPENING)
    dealer = Dealer()
    while not dealer.ready:
        dealer.receive(stream.recv(1 << 16))
    return lambda message: stream.sendall(frame(json.dumps(message).encode())), dealer


PINGS: Final = {"pyzmq": pings_by_pyzmq, "bare socket": pings_by_hand}


# ------------------------------------------------------------------------------------------------ the command


def measure(folder: str, options: Any) -> dict[str, Any]:
    """Everything, the two sockets in turn."""
    streams, tokens, flood = options.streams, options.tokens, options.flood
    plans = {
        f"{streams} streams, 60 tokens/s": (f"paced {streams} {tokens}", streams, tokens),
        "1 stream, 60 tokens/s": (f"paced 1 {tokens}", 1, tokens),
        "16 streams, flood": (f"flood {flood}", 16, flood),
    }
    stages: dict[str, dict[str, list[dict[str, float]]]] = {}
    pings: dict[str, dict[str, list[float]]] = {way: {name: [] for name in KINDS} for way in PINGS}
    sends: dict[str, dict[str, list[float]]] = {f"burst of {n}": {name: [] for name in KINDS} for n in options.bursts}
    for repetition in range(options.repetitions):
        names = list(KINDS) if repetition % 2 == 0 else list(KINDS)[::-1]
        for plan, (prompt, number, each) in plans.items():
            for way in WAYS:
                for name in names:
                    found = streamed(f"ipc://{folder}/{name}", way, prompt, number, each)
                    stages.setdefault(f"{plan}, {way}", {one: [] for one in KINDS})[name].append(found)
        for way, ping in PINGS.items():
            for name in names:
                pings[way][name].append(median(ping(f"ipc://{folder}/{name}", options.pings)))
        for burst in options.bursts:
            for name in names:
                sends[f"burst of {burst}"][name].append(raw(f"ipc://{folder}/{name}", options.sends, burst) / 1000)
    return {"stages": stages, "pings": pings, "sends": sends}


def main() -> int:
    """Returns 0 when every token arrived by every way."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--host", help="(inner) be the host in this folder")
    arguments.add_argument("--streams", type=int, default=16)
    arguments.add_argument("--tokens", type=int, default=120, help="per stream, paced")
    arguments.add_argument("--flood", type=int, default=8000, help="tokens per stream, flooding")
    arguments.add_argument("--pings", type=int, default=1000)
    arguments.add_argument("--sends", type=int, default=1500)
    arguments.add_argument("--bursts", type=int, nargs="+", default=[1, 16])
    arguments.add_argument("--repetitions", type=int, default=5)
    options = arguments.parse_args()
    if options.host:
        trio.run(host, options.host)
        return 0
    if options.quick:
        options.streams, options.tokens, options.flood, options.repetitions = 4, 12, 500, 1
        options.pings, options.sends = 30, 64
    load = os.getloadavg()[0]
    with Bench() as bench:
        process = bench.start(__file__, "--host", str(bench.folder), log="host.log", stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            if not process.stdout.readline():
                raise SystemExit((bench.folder / "host.log").read_text(errors="replace")[-3000:])
            runs = measure(str(bench.folder), options)
    verdicts = Verdicts()
    every = [one for by in runs["stages"].values() for made in by.values() for one in made]
    verdicts.judge("every token arrived, by every way", all(one["whole"] for one in every))
    medians: dict[str, Any] = {
        "stages": {
            stage: {name: {key: median(one[key] for one in made) for key in FIGURES} for name, made in by.items()}
            for stage, by in runs["stages"].items()
        },
        "pings_us": {way: {name: median(made) for name, made in by.items()} for way, by in runs["pings"].items()},
        "sends_us": {what: {name: median(made) for name, made in by.items()} for what, by in runs["sends"].items()},
    }
    result = {"load": load, "medians": medians, "runs": runs}
    return finish(result, verdicts, as_json=options.json, text=_text(medians, options.repetitions, load))


def _text(medians: dict[str, Any], repetitions: int, load: float) -> str:
    head = ["per token", "", "host CPU us", "bot CPU us", "p50 us", "p99 us", "tokens/s"]
    rows: list[list[object]] = []
    for stage, by in medians["stages"].items():
        rows += [[stage, name, *(by[name][key] for key in FIGURES)] for name in KINDS]
        ratios = [by["native"][key] / by["libzmq"][key] for key in FIGURES]
        rows.append([stage, "ratio", *ratios])
    text = f"medians of {repetitions} in turn, load {load:.1f} at the start\n" + table(rows, head=head)
    rows = []
    for what, found in (("ping, round trip us", medians["pings_us"]), ("send, host CPU us", medians["sends_us"])):
        for way, by in found.items():
            rows.append([f"{what}, {way}", by["libzmq"], by["native"], by["native"] / by["libzmq"]])
    return text + "\n\n" + table(rows, head=["", *KINDS, "ratio"])


if __name__ == "__main__":
    sys.exit(main())
