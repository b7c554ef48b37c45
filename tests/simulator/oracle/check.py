"""Run with the interpreter of the oracle's environment: ``check.py ws://127.0.0.1:PORT``.

Reads every frame that the simulator sends in each scenario of valid frames, validates it with pydantic against the
openai SDK's `ResponsesServerEvent`, then has the SDK itself hold conversations with the simulator. Imports nothing of
ours. Prints one JSON object; exits 1 at the first frame that is not valid.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import openai
import pydantic
from openai.types.responses import ResponsesServerEvent
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ADAPTER = pydantic.TypeAdapter(ResponsesServerEvent)
ENDS = {"response.completed", "response.failed", "response.incomplete", "error"}

#: Those whose frames are those of a real service; the others are wrong on purpose.
ANSWERED = [
    *("ok", "reasoning_first", "refusal", "empty", "no_usage", "no_done", "usage_late", "empty_deltas", "slow_first"),
    *(
        "incomplete_length",
        "incomplete_filter",
        "failed",
        "error_after_created",
        "error_midway",
        "error_401",
        "error_403",
    ),
    *("error_404", "error_429", "error_quota", "error_500", "error_503", "error_529", "error_context_length"),
    *("error_content_filter", "duplicate_terminal", "tokens_after_terminal", "stray", "masked_frame"),
]
UNANSWERED = ["silent", "silent_after_created", "stall", "stall_silent", "cut", "cut_rst", "reset", "close_1012"]
QUICK = "tokens=6 ttft_ms=1 cadence_ms=1 late_ms=30 usage_late_ms=20 keepalive_ms=20 after=3"


def create(prompt: str, **fields: object) -> str:
    """A request."""
    return json.dumps({"type": "response.create", "model": "simulated", "input": prompt, **fields})


def validated(frame: str, seen: collections.Counter[str]) -> str:
    """Judge one frame; returns its type."""
    event = json.loads(frame)
    ADAPTER.validate_python(event)
    ADAPTER.validate_json(frame)
    seen[event["type"]] += 1
    return event["type"]


def read(url: str, request: str, seen: collections.Counter[str], *, whole: bool) -> None:
    """One call on a connection of its own, and whatever comes after its end, which a whole answer has."""
    ended = False
    with connect(url + "/v1/responses", max_size=None) as socket:
        socket.send(request)
        try:
            while not ended:
                ended = validated(socket.recv(timeout=10 if whole else 0.5), seen) in ENDS
            while True:
                validated(socket.recv(timeout=0.05), seen)
        except TimeoutError:
            assert ended or not whole, request
        except ConnectionClosed:
            assert not whole, request


def frames(url: str) -> collections.Counter[str]:
    """Every scenario, both with and without a stream_id."""
    calls: list[tuple[str, bool]] = []
    for name in ANSWERED:
        for lane in ({}, {"stream_id": "lane.1"}):
            calls.append((create(f"[[scenario={name} {QUICK}]]", **lane), name != "masked_frame"))
    calls += [(create(f"[[scenario={name} {QUICK}]]"), False) for name in UNANSWERED]
    for wish in (
        create(f"[[{QUICK} cadence_ms=0]]"),
        create(f"[[{QUICK}]]", max_output_tokens=2),
        create(f"[[{QUICK}]]", stream_options={"include_obfuscation": False}, store=False),
        create("", generate=False),
        "not json",
        "[]",
        '{"type":"response.cancel"}',
        create("[[nonsense]]"),
        create("x", stream_id="no blanks"),
    ):
        calls.append((wish, True))
    works: list[Callable[[collections.Counter[str]], None]] = [
        partial(expire, f"{url}/s/{name}/v1/responses") for name in ("expiry", "expiring")
    ]
    works += [partial(read, url, request, whole=whole) for request, whole in calls]
    # Each of them waits more than it works: for silence after an end, for an end that does not come.
    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(counted, works), collections.Counter())


def counted(work: Callable[[collections.Counter[str]], None]) -> collections.Counter[str]:
    """What it has seen, in a count of its own."""
    seen: collections.Counter[str] = collections.Counter()
    work(seen)
    return seen


def expire(url: str, seen: collections.Counter[str]) -> None:
    """A connection whose time is over."""
    with connect(url) as socket:
        try:
            while True:
                validated(socket.recv(timeout=5), seen)
        except ConnectionClosed:
            pass


def blocking(base: str) -> list[str]:
    """Two answers through the SDK's blocking client."""
    client = openai.OpenAI(base_url=base, api_key="made-up", max_retries=0)
    texts = []
    with client.responses.connect() as connection:
        for word in ("BUY", "SELL now"):
            connection.response.create(model="simulated", input=f'[[{QUICK} tokens=3 text="{word}"]]')
            text = ""
            for event in connection:
                if event.type == "response.output_text.delta":
                    text += event.delta
                elif event.type == "response.completed":
                    assert event.response.output_text == text
                    assert event.response.usage is not None
                    assert event.response.usage.output_tokens == 3
                    break
            texts.append(text)
    return texts


async def parallel(base: str) -> list[str]:
    """Sixteen answers at once on one socket, told apart by stream_id."""
    client = openai.AsyncOpenAI(base_url=base, api_key="made-up", max_retries=0)
    texts: dict[str, str] = collections.defaultdict(str)
    async with client.responses.connect() as connection:
        for number in range(20):
            await connection.send(
                {
                    "type": "response.create",
                    "model": "simulated",
                    "input": f"[[{QUICK} tokens=4 text=word{number}]]",
                    "stream_id": f"s{number}",
                }
            )
        left = 20
        async for event in connection:
            if event.type == "response.output_text.delta":
                texts[event.stream_id] += event.delta
            elif event.type == "response.completed":
                left -= 1
                if not left:
                    break
    return [texts[f"s{number}"] for number in range(20)]


def main(url: str) -> None:
    """Judge, then converse."""
    seen = frames(url)
    base = url.replace("ws://", "http://") + "/v1"
    assert blocking(base) == ["BUY BUY BUY", "SELL now SELL"], "the SDK's blocking client read something else"
    assert asyncio.run(parallel(base)) == [" ".join([f"word{n}"] * 4) for n in range(20)], "the SDK's streams got mixed"
    print(json.dumps({"openai": openai.__version__, "frames": seen.total(), "types": dict(sorted(seen.items()))}))


if __name__ == "__main__":
    main(sys.argv[1])
