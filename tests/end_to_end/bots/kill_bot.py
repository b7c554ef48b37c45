"""A bot of `tests/end_to_end/kills.py`: so many streams at once by our own client, and what it was told of each.

`python kill_bot.py blocking|asyncio ENDPOINT WORDS NAME ...`. Says ``{"ready": true}`` when it stands, after a
line on stdin begins its streams, says ``{"streaming": n}`` when all have begun and ``{"told": [...]}`` when all have
ended; after another line it makes one more call and says what became of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[3])

from sidecar.client import AsyncClient, Client
from sidecar.client.handle import Reading
from sidecar.errors import CallFailed

_WISHES: Any = {"route": "streams", "timeout_ms": 30_000, "first_delta_timeout_ms": 20_000, "idle_timeout_ms": 10_000}


def text_of(name: str, words: int) -> str:
    """The whole answer of the stream of that name."""
    return " ".join(f"{name}.{number}" for number in range(words))


def _prompt(name: str, words: int) -> str:
    return f'BUY or SELL? [[id={name} text="{text_of(name, words)}"]]'


def _told(name: str, handle: Reading, at: float, words: int) -> dict[str, Any]:
    """What the bot knows of one stream at its end."""
    outcome, text, expected = "none", handle.text, text_of(name, words)
    if handle.ended:
        try:
            outcome = "done" if handle.answer.finish == "stop" else handle.answer.finish
        except CallFailed as failed:
            outcome = failed.code
    truthful = text == expected if outcome == "done" else expected.startswith(text)
    return {"name": name, "outcome": outcome, "at": at, "words": len(text.split()), "truthful": truthful}


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def blocking_bot(endpoint: str, names: list[str], words: int) -> None:
    """The streams by one `Client`; then, told to, one more call."""
    with Client(endpoint) as client:
        client.ping(timeout_ms=30_000)
        _say(ready=True)
        sys.stdin.readline()
        handles = {name: client.submit(_prompt(name, words), **_WISHES) for name in names}
        told: dict[str, dict[str, Any]] = {}
        streaming = False
        while len(told) < len(handles):
            for name, handle in handles.items():
                if name not in told:
                    try:
                        handle.poll()
                    except CallFailed:
                        pass
                    if handle.ended:
                        told[name] = _told(name, handle, time.monotonic(), words)
            if not streaming and all(handle.text or handle.ended for handle in handles.values()):
                streaming = True
                _say(streaming=len(handles))
            time.sleep(0.005)
        _say(told=list(told.values()))
        sys.stdin.readline()
        try:
            answer = client.ask(_prompt(names[0], 5), timeout_ms=30_000)
            _say(fresh="done", upstream=answer.upstream, at=time.monotonic())
        except CallFailed as failed:
            _say(fresh=str(failed), upstream=None, at=time.monotonic())


async def asyncio_bot(endpoint: str, names: list[str], words: int) -> None:
    """As `blocking_bot`, by one `AsyncClient`."""
    async with AsyncClient(endpoint) as client:
        await client.ping(timeout_ms=30_000)
        _say(ready=True)
        await asyncio.to_thread(sys.stdin.readline)
        handles = {name: client.submit(_prompt(name, words), **_WISHES) for name in names}

        async def one(name: str) -> dict[str, Any]:
            try:
                await handles[name].result()
            except CallFailed:
                pass
            return _told(name, handles[name], time.monotonic(), words)

        tasks = [asyncio.create_task(one(name)) for name in names]
        while not all(handle.text or handle.ended for handle in handles.values()):
            await asyncio.sleep(0.005)
        _say(streaming=len(handles))
        _say(told=[await task for task in tasks])
        await asyncio.to_thread(sys.stdin.readline)
        try:
            answer = await client.ask(_prompt(names[0], 5), timeout_ms=30_000)
            _say(fresh="done", upstream=answer.upstream, at=time.monotonic())
        except CallFailed as failed:
            _say(fresh=str(failed), upstream=None, at=time.monotonic())


if __name__ == "__main__":
    kind, endpoint, words, *names = sys.argv[1:]
    if kind == "asyncio":
        asyncio.run(asyncio_bot(endpoint, names, int(words)))
    else:
        blocking_bot(endpoint, names, int(words))
