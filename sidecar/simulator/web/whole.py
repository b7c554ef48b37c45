"""An answer that is not streamed: the same events, folded into the one object that the services send instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def fold(dialect: str, payloads: Sequence[bytes]) -> bytes:
    """The body that says what `payloads` say in a stream. None of them is an error."""
    events = [json.loads(one) for one in payloads if one != b"[DONE]"]  # which lets half a pair of surrogates pass
    folded = {"responses": _responses, "chat": _chat, "messages": _messages}[dialect]
    return json.dumps(folded(events)).encode()


def _responses(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response of the last event that has one."""
    found: dict[str, Any] = {}
    for event in events:
        found = event.get("response") or found
    return found


def _messages(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message as it began, its blocks filled, its end as the last delta says."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for event in events:
        kind, index = event["type"], event.get("index", 0)
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            blocks[index] = event["content_block"]
        elif kind == "content_block_delta" and index in blocks:
            for name in ("text", "thinking", "signature"):
                if name in blocks[index]:
                    blocks[index][name] += event["delta"].get(name, "")
        elif kind == "message_delta":
            message.update(event["delta"])
            if "usage" in event:
                message["usage"] = {**message["usage"], **event["usage"]}
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return message


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
