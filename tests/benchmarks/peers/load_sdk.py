"""Load by the openai SDK, straight to the upstream. Runs in the SDK's own environment and imports nothing of ours."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from openai import AsyncOpenAI  # type: ignore[import-not-found, unused-ignore]

_CADENCE: Final = 1 / 60
MODEL: Final = "gpt-5-mini"


def mono_us() -> int:
    """The clock of the stamps."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class Sample:
    """As in `hot_path.py`, which needs packages that are not here."""

    def __init__(self) -> None:
        self.token_us: list[int] = []
        self.first_us: list[int] = []
        self.tokens = 0

    def arrived(self, text: str, now: int) -> None:
        """Stamps that came together."""
        for stamp in text.split():
            self.token_us.append(now - int(stamp))
            self.tokens += 1


Ask = Callable[[str, Sample], Awaitable[None]]


def client(base: str, *, aiohttp: bool = False) -> AsyncOpenAI:
    """As the SDK's README makes it; one for all streams, which keeps its connections."""
    more: dict[str, Any] = {}
    if aiohttp:
        from openai import DefaultAioHttpClient  # type: ignore[import-not-found, unused-ignore]

        more["http_client"] = DefaultAioHttpClient()
    return AsyncOpenAI(base_url=base, api_key="made-up", max_retries=0, **more)


async def chat(made: AsyncOpenAI, prompt: str, sample: Sample) -> None:
    """One chat completion, streamed as server-sent events."""
    sent, first = mono_us(), True
    stream = await made.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
    )
    async for chunk in stream:
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            now = mono_us()
            if first:
                sample.first_us.append(now - sent)
                first = False
            sample.arrived(text, now)


async def respond(connection: Any, prompt: str, sample: Sample) -> None:
    """One response on a WebSocket of `responses.connect()`."""
    sent, first = mono_us(), True
    await connection.response.create(model=MODEL, input=prompt)
    async for event in connection:
        if event.type == "response.output_text.delta":
            now = mono_us()
            if first:
                sample.first_us.append(now - sent)
                first = False
            sample.arrived(event.delta, now)
        elif event.type == "response.completed":
            return


async def latency(way: str, base: str, streams: int, tokens: int) -> tuple[Sample, float]:
    """Warm connections, a task per stream, begun over one cadence; the sample and what it cost this process."""
    made = client(base, aiohttp=way == "sdk-chat-aiohttp")
    sample, warm = Sample(), "warm [[tokens=2 cadence_us=0]]"
    managers: list[Any] = []
    connections: list[Any] = []
    asks: list[Ask]
    if way == "sdk-ws":
        managers = [made.responses.connect() for _ in range(streams)]
        connections = [await manager.enter() for manager in managers]
        asks = [functools.partial(respond, one) for one in connections]
    else:
        asks = [functools.partial(chat, made)] * streams
    await asyncio.gather(*(ask(warm, Sample()) for ask in asks))

    async def one(index: int) -> None:
        await asyncio.sleep(_CADENCE * index / streams)
        await asks[index](f"{index} [[tokens={tokens}]]", sample)

    began = time.process_time()
    await asyncio.gather(*(one(index) for index in range(streams)))
    cost = time.process_time() - began
    for connection in connections:
        await connection.close()
    await made.close()
    return sample, cost


async def first(way: str, base: str, requests: int) -> Sample:
    """Short requests one after another, the time to the first text of each."""
    made = client(base, aiohttp=way == "sdk-chat-aiohttp")
    sample, short = Sample(), "first [[tokens=2 cadence_us=0]]"
    if way == "sdk-ws":
        async with made.responses.connect() as connection:
            await respond(connection, short, Sample())
            for _ in range(requests):
                await respond(connection, short, sample)
    else:
        await chat(made, short, Sample())
        for _ in range(requests):
            await chat(made, short, sample)
    await made.close()
    return sample
