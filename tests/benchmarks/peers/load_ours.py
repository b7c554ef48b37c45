"""Load on the sidecar, over its own clients and the bare wire; what is not taken from `hot_path.py` as it is."""

from __future__ import annotations

import asyncio
import time

from common import Bot, mono_us
from hot_path import TIMEOUT_MS, Event, Sample

import msgspec  # isort: skip
from websockets.asyncio.client import connect  # isort: skip

from sidecar import AsyncClient

_SHORT = "first [[tokens=2 cadence_us=0]]"


class Lost(RuntimeError):
    """A call that was not done."""


def first_by_asyncio(endpoint: str, requests: int) -> Sample:
    """Short calls one after another, the time to the first text of each."""
    sample = Sample()

    async def main() -> None:
        async with AsyncClient(endpoint) as client:
            for turn in range(requests + 1):
                sent, came = mono_us(), 0
                async with client.stream(_SHORT, timeout_ms=TIMEOUT_MS) as stream:
                    async for piece in stream:
                        came = came or mono_us()
                        sample.tokens += len(piece.split()) if turn else 0
                if turn:  # the first one is warm-up
                    sample.first_us.append(came - sent)

    asyncio.run(main())
    return sample


def first_direct(url: str, requests: int) -> Sample:
    """The same by the `websockets` package, on a warm connection."""
    sample = Sample()
    decode = msgspec.json.Decoder(Event).decode
    question = msgspec.json.encode({"type": "response.create", "model": "gpt-5-mini", "input": _SHORT}).decode()

    async def main() -> None:
        async with connect(url, compression=None) as websocket:
            for turn in range(requests + 1):
                sent, came = mono_us(), 0
                await websocket.send(question)
                while (event := decode(await websocket.recv(decode=False))).type != "response.completed":
                    if event.type == "response.output_text.delta":
                        came = came or mono_us()
                        sample.tokens += 1 if turn else 0
                if turn:
                    sample.first_us.append(came - sent)

    asyncio.run(main())
    return sample


def many(endpoint: str, at_once: int, calls: int, tokens: int) -> float:
    """So many calls on the bare wire, `at_once` at a time; seconds. Raises `Lost` unless all were done."""
    prompt = f"many [[tokens={tokens} cadence_us=0 stamp=0]]"
    with Bot(endpoint) as bot:
        began, sent, ended, silence = time.monotonic(), 0, 0, 0
        while ended < calls:
            while sent < calls and sent - ended < at_once:
                bot.call(str(sent), prompt, TIMEOUT_MS)
                sent += 1
            received = bot.receive(5.0)
            silence = 0 if received else silence + 1
            if silence > 3:
                raise Lost(f"{calls - ended} calls of {calls} without an end")
            for message in received:
                if message["type"] == "done":
                    ended += 1
                elif message["type"] == "failed":
                    raise Lost(f"a call failed: {message.get('code')}")
        return time.monotonic() - began
