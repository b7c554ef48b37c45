"""An answer that is not streamed: the same events, folded into the one object that the services send instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sidecar.simulator.voices.base import dumps


def fold(dialect: str, payloads: Sequence[bytes]) -> tuple[int, bytes]:
    """Status and body of what `payloads` say in a stream."""
    events = [msgspec.json.decode(one) for one in payloads if one.startswith(b"{")]
    for event in events:
        if event.get("type") == "error" or ("error" in event and "choices" not in event):
            return 500, dumps({"error": event.get("error") or {**event, "type": "server_error"}})
    return 200, dumps(_responses(events) if dialect == "responses" else _chat(events))


def _responses(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response of the last event that has one."""
    found: dict[str, Any] = {}
    for event in events:
        found = event.get("response") or found
    return found


def _chat(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    answer: dict[str, Any] = {}
    finish, usage = None, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            answer = answer or {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
            finish = choice["finish_reason"] or finish
            for name, text in choice["delta"].items():
                if name in ("content", "refusal", "reasoning_content") and isinstance(text, str):
                    message[name] = (message.get(name) or "") + text
    answer["object"] = "chat.completion"
    answer["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish or "stop"}]
    return answer if usage is None else {**answer, "usage": usage}
