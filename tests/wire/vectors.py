"""Reads `proto/vectors/*.json`, for every test that holds something against them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[2] / "proto" / "vectors"


def load(name: str) -> dict[str, Any]:
    """One file of vectors."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def payloads(case: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The payloads of a case, each with the name of its encoding."""
    if "json" in case:
        yield "json", case["json"].encode()
    if "msgpack" in case:
        yield "msgpack", bytes.fromhex(case["msgpack"])


def assembled(case: dict[str, Any]) -> bytes:
    """The payload of a case of `limits.json`."""
    whole = b""
    for part in case["parts"]:
        unit = part.get("text", part.get("repeat"))
        piece = unit.encode() if unit is not None else bytes.fromhex(part.get("hex") or part["repeat_hex"])
        whole += piece * part.get("times", 1)
    return whole


def expected(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers a case expects, with `times` written out."""
    return [
        {key: value for key, value in answer.items() if key != "times"}
        for answer in case["expect"]
        for _ in range(answer.get("times", 1))
    ]


def matches(answer: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """An answer has every field that is wanted of it; null is the same as absent."""
    return all(answer.get(key) == value for key, value in wanted.items())
