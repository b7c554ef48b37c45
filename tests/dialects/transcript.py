"""Reads `proto/transcripts`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from sidecar.dialects import DIALECTS
from sidecar.dialects.base import Codec, Event, Faulted, Prompt

FOLDER = Path(__file__).parents[2] / "proto" / "transcripts"
PATHS = sorted(FOLDER.glob("*.jsonl"))


def load(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Head and steps."""
    head, *steps = [json.loads(line) for line in path.read_text().splitlines()]
    return head, steps


#: Every way to speak a dialect, as (dialect, slots of a connection); 0 slots: one answer over HTTP.
WAYS = [
    (name, slots)
    for name, dialect in DIALECTS.items()
    for slots in ((1, 3, 0) if "websocket" in dialect.transports else (0,))
]


def new_codec(dialect: str, slots: int) -> Codec:
    """A codec for one of the `WAYS`."""
    return DIALECTS[dialect].codec(slots=slots) if slots else DIALECTS[dialect].stream_codec()


def codec_of(head: dict[str, Any]) -> Codec:
    """A codec for the transcript's connection, or its answer."""
    http = head.get("http", False) or "websocket" not in DIALECTS[head["dialect"]].transports
    return new_codec(head["dialect"], 0 if http else head["slots"])


def payload(frame: Any) -> bytes:
    """A frame as it goes over the wire."""
    return (frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))).encode()


def prompt(given: dict[str, Any]) -> Prompt:
    """The prompt of an `up` step."""
    return msgspec.convert(given, Prompt)


def plain(event: Event) -> dict[str, Any]:
    """An event as a transcript writes it."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    if isinstance(event, Faulted):
        error = event.error
        facts = {name: getattr(error, name) for name in ("code", "type", "message", "status", "retry_after")}
        fields["error"] = {name: value for name, value in facts.items() if value is not None}
    if fields.get("usage") is not None:
        fields["usage"] = msgspec.to_builtins(fields["usage"])
    return {"event": type(event).__name__.lower()} | {
        name: value for name, value in fields.items() if value is not None
    }


def play(codec: Codec, step: dict[str, Any]) -> list[Event]:
    """Do one step; the events it gives."""
    if "up" in step:
        codec.encode(step["up"], prompt(step["prompt"]))
        return []
    if "conclude" in step:
        return [codec.conclude(step["conclude"])]
    return list(codec.decode(payload(step["down"])))
