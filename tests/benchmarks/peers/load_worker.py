"""A process that makes load on request: a JSON object per line comes in, one goes out.

One runs with our interpreter, one with that of the openai SDK's environment. It lives through the whole run, so that
no measurement pays for imports. CPU of relaying processes is read right around the load.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

_HERE = Path(__file__).resolve().parent
for _folder in (_HERE.parents[2], _HERE.parent, _HERE):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from peering import cpu_seconds  # noqa: E402


class Sample(Protocol):
    """What every way comes back with, in microseconds."""

    token_us: list[int]
    first_us: list[int]
    tokens: int


def spread(values: list[int]) -> dict[str, float]:
    """n, p50, p99, max by nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}
    at = [ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 100) - 1))] for share in (50, 99)]
    return {"n": len(ordered), "p50": at[0], "p99": at[1], "max": ordered[-1]}


def _latency(order: dict[str, Any]) -> dict[str, Any]:
    way, streams, tokens, pids = order["way"], order["streams"], order["tokens"], order["pids"]
    before = cpu_seconds(pids)
    sample: Sample
    if way.startswith("sdk"):
        import load_sdk

        sample, mine = asyncio.run(load_sdk.latency(way, order["url"], streams, tokens))
    elif way == "http":
        import load_http

        sample, mine = asyncio.run(load_http.latency(order["target"], streams, tokens, order.get("cadence_us")))
    else:
        import hot_path

        ways: dict[str, Callable[[str, int], hot_path.Sample]] = {
            "asyncio": hot_path.by_asyncio, "blocking": hot_path.by_blocking, "wire": hot_path.by_wire,
            "direct": hot_path.direct,
        }  # fmt: skip
        began = time.process_time()
        sample = ways[way](order["url"], streams)
        mine = time.process_time() - began
    used = cpu_seconds(pids) - before
    return {
        "token_us": spread(sample.token_us), "first_us": spread(sample.first_us), "tokens": sample.tokens,
        "bot_cpu_s": mine, "relay_cpu_s": used,
    }  # fmt: skip


def _first(order: dict[str, Any]) -> dict[str, Any]:
    way, requests = order["way"], order["requests"]
    sample: Sample
    if way.startswith("sdk"):
        import load_sdk

        sample = asyncio.run(load_sdk.first(way, order["url"], requests))
    elif way == "http":
        import load_http

        sample = asyncio.run(load_http.first(order["target"], requests))
    else:
        import load_ours

        sample = (load_ours.first_by_asyncio if way == "asyncio" else load_ours.first_direct)(order["url"], requests)
    return {"first_us": spread(sample.first_us)}


def _many(order: dict[str, Any]) -> dict[str, Any]:
    way, at_once, requests, tokens, pids = (
        order["way"], order["at_once"], order["requests"], order["tokens"], order["pids"]
    )  # fmt: skip
    if way == "http":
        import load_http

        asyncio.run(load_http.many(order["target"], at_once, at_once, tokens))
        before = cpu_seconds(pids)
        took = asyncio.run(load_http.many(order["target"], at_once, requests, tokens))
    else:
        import load_ours

        load_ours.many(order["url"], at_once, at_once, tokens)
        before = cpu_seconds(pids)
        took = load_ours.many(order["url"], at_once, requests, tokens)
    used = cpu_seconds(pids) - before
    return {"relay_cpu_s": used, "seconds": took, "requests": requests, "tokens": requests * tokens}


def main() -> None:
    """Until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kinds = {"latency": _latency, "first": _first, "many": _many}
    for line in sys.stdin:
        order = json.loads(line)
        gc.collect()
        try:
            answer: dict[str, Any] = kinds[order["kind"]](order)
        except Exception as error:  # whatever went wrong is the result of this measurement, and is told
            answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
