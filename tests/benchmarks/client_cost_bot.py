"""The bot that `client_cost` measures, a process of its own: whichever `sidecar` its PYTHONPATH names is used.

    python tests/benchmarks/client_cost_bot.py WAY ENDPOINT STREAMS TOKENS CALLS PROMPT

WAY is asyncio, blocking or wire. Prints one JSON object: of the streams, then of the calls, the CPU of the process (all
threads, user and system) and its voluntary context switches, and the times in microseconds. Only the stretch between
the first and the last token is counted, not the imports.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

CADENCE: Final = 1 / 60
TIMEOUT_MS: Final = 60_000
#: The prompt of a short call; how the upstream is told to be quick depends on the upstream.
SHORT: Final = sys.argv[6]


def mono_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same in every process of a host."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def switches() -> int:
    """Voluntary context switches of all threads so far: how often one of them went to sleep, and was woken."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            said = (task / "status").read_text()
        except OSError:
            continue  # a thread that has just ended
        total += int(said.partition("\nvoluntary_ctxt_switches:")[2].split(None, 1)[0])
    return total


class Meter:
    """CPU and switches since its making."""

    def __init__(self) -> None:
        gc.collect()
        self.switches, self.cpu_ns = switches(), time.process_time_ns()

    def per(self, number: int) -> dict[str, float]:
        """For each of so many."""
        cpu_ns = time.process_time_ns() - self.cpu_ns
        return {"cpu_us": cpu_ns / 1000 / max(1, number), "wakeups": (switches() - self.switches) / max(1, number)}


class Sample:
    """Microseconds, one way per token, and to the first token."""

    def __init__(self) -> None:
        self.token_us: list[int] = []
        self.first_us: list[int] = []

    def arrived(self, text: str) -> None:
        """Stamps that came together."""
        now = mono_us()
        for stamp in text.split():
            self.token_us.append(now - int(stamp))


def figures(meter: dict[str, float], sample: Sample, calls: dict[str, float], call_us: list[int]) -> dict[str, Any]:
    """What is printed."""
    return {
        "tokens": len(sample.token_us), "token": meter, "token_us": sample.token_us, "first_us": sample.first_us,
        "calls": len(call_us), "call": calls, "call_us": call_us,
    }  # fmt: skip


def by_asyncio(endpoint: str, streams: int, tokens: int, calls: int) -> dict[str, Any]:
    """`AsyncClient`, a task per stream."""
    from sidecar import AsyncClient

    sample = Sample()
    call_us: list[int] = []

    async def one(client: AsyncClient, index: int) -> None:
        await asyncio.sleep(CADENCE * index / streams)
        sent, first = mono_us(), True
        async with client.stream(f"[[tokens={tokens}]] {index}", timeout_ms=TIMEOUT_MS) as stream:
            async for piece in stream:
                if first:
                    sample.first_us.append(mono_us() - sent)
                    first = False
                sample.arrived(piece)

    async def main() -> dict[str, Any]:
        async with AsyncClient(endpoint) as client:
            await client.ask(SHORT, timeout_ms=TIMEOUT_MS)
            meter = Meter()
            await asyncio.gather(*(one(client, index) for index in range(streams)))
            token = meter.per(len(sample.token_us))
            meter = Meter()
            for _ in range(calls):
                sent = mono_us()
                await client.ask(SHORT, timeout_ms=TIMEOUT_MS)
                call_us.append(mono_us() - sent)
            return figures(token, sample, meter.per(calls), call_us)

    return asyncio.run(main())


def by_blocking(endpoint: str, streams: int, tokens: int, calls: int) -> dict[str, Any]:
    """`Client`, a thread and a client per stream: so do bots that block."""
    from sidecar import Client

    samples = [Sample() for _ in range(streams)]
    clients = [Client(endpoint) for _ in range(streams)]

    def one(index: int) -> None:
        sample = samples[index]
        time.sleep(CADENCE * index / streams)
        sent, first = mono_us(), True
        with clients[index].stream(f"[[tokens={tokens}]] {index}", timeout_ms=TIMEOUT_MS) as stream:
            for piece in stream:
                if first:
                    sample.first_us.append(mono_us() - sent)
                    first = False
                sample.arrived(piece)

    for client in clients:
        client.ask(SHORT, timeout_ms=TIMEOUT_MS)
    threads = [threading.Thread(target=one, args=(index,)) for index in range(1, streams)]
    meter = Meter()
    for thread in threads:
        thread.start()
    one(0)
    # A thread that has ended takes its count along: those of the others are read while the last one lives.
    token: dict[str, float] = meter.per(1) if streams == 1 else {}
    for thread in threads:
        thread.join()
    whole = Sample()
    for sample in samples:
        whole.token_us += sample.token_us
        whole.first_us += sample.first_us
    number = len(whole.token_us)
    spent = meter.per(number)
    token = {"cpu_us": spent["cpu_us"], "wakeups": token["wakeups"] / number if token else float("nan")}
    call_us: list[int] = []
    meter = Meter()
    for _ in range(calls):
        sent = mono_us()
        clients[0].ask(SHORT, timeout_ms=TIMEOUT_MS)
        call_us.append(mono_us() - sent)
    spent = meter.per(calls)
    for client in clients:
        client.close()
    return figures(token, whole, spent, call_us)


def by_wire(endpoint: str, streams: int, tokens: int, calls: int) -> dict[str, Any]:
    """The bare wire: one DEALER of pyzmq for all streams, arrays, no library of ours."""
    import msgspec
    import zmq

    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)

    def call(name: str, prompt: str, **fields: Any) -> int:
        sent = mono_us()
        message = {"type": "call", "id": name, "input": prompt, "timeout_ms": TIMEOUT_MS, "sent_mono_us": sent}
        socket.send(encode({**message, **fields}))
        return sent

    def ended(messages: Any) -> int:
        found = messages if isinstance(messages, list) else [messages]
        return sum(one["type"] in ("done", "failed") for one in found)

    def short() -> int:
        sent = call("short", SHORT, stream=False)
        while not ended(decode(socket.recv())):
            pass
        return mono_us() - sent

    socket.send(encode({"type": "hello", "name": "bare", "batch": True}))
    short()
    sample = Sample()
    sent: list[int] = []
    began, over = time.monotonic(), 0
    started: set[str] = set()
    meter = Meter()
    while over < streams:
        while len(sent) < streams and began + CADENCE * len(sent) / streams <= time.monotonic():
            sent.append(call(str(len(sent)), f"[[tokens={tokens}]] {len(sent)}"))
        if not socket.poll(1 if len(sent) < streams else 5000):
            continue
        try:
            while True:
                messages = decode(socket.recv(zmq.NOBLOCK))
                for message in messages if isinstance(messages, list) else [messages]:
                    if message["type"] == "delta":
                        if message["id"] not in started:
                            started.add(message["id"])
                            sample.first_us.append(mono_us() - sent[int(message["id"])])
                        sample.arrived(message["text"])
                    over += message["type"] in ("done", "failed")
        except zmq.Again:
            pass
    token = meter.per(len(sample.token_us))
    meter = Meter()
    call_us = [short() for _ in range(calls)]
    spent = meter.per(calls)
    socket.close()
    context.term()
    return figures(token, sample, spent, call_us)


if __name__ == "__main__":
    WAYS = {"asyncio": by_asyncio, "blocking": by_blocking, "wire": by_wire}
    print(json.dumps(WAYS[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:6]))))
