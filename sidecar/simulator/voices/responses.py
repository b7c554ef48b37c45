"""`responses`: the Responses WebSocket mode. Every event in full, as the openai SDK's types require."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from sidecar.simulator.voices.base import (
    PLACEHOLDER,
    Fault,
    Request,
    Voice,
    bad_request,
    conversation,
    dumps,
    positive,
    read_object,
    unknown,
)

_LANE: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_OBFUSCATION: Final = "q7Rf0VtKx2Zb9LmN"


def read_responses(payload: bytes, *, over_http: bool = False) -> Request:
    """A `response.create`, or over HTTP the body of one, which has no type and no stream_id.

    Raises:
        RequestRefused: it is none, or a field of it is wrong.
    """
    body = read_object(payload)
    if over_http:
        unknown(body, "type", "stream_id")
    lane = body.get("stream_id")
    if lane is not None and not (isinstance(lane, str) and _LANE.fullmatch(lane)):
        raise bad_request("Invalid stream_id.", code="invalid_stream_id", param="stream_id")
    kind = body.get("type")
    if kind != "response.create" and not over_http:
        raise bad_request(f"Invalid value: {kind!r:.80}. Supported: 'response.create'.", param="type", lane=lane)
    for name in ("background",) if over_http else ("stream", "background"):
        if body.get(name):
            raise bad_request(f"{name} is not supported here.", param=name, lane=lane)
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise bad_request("Missing required parameter: 'model'.", param="model", lane=lane)
    given = body.get("input", "")
    if not isinstance(given, str | list):
        raise bad_request("Invalid type for 'input'.", param="input", lane=lane)
    options = body.get("stream_options")
    return Request(
        body=body,
        model=body["model"],
        prompt=conversation(given),
        lane=lane,
        max_tokens=positive(body, "max_output_tokens"),
        obfuscate=not (isinstance(options, dict) and options.get("include_obfuscation") is False),
        generate=body.get("generate") is not False,
    )


class ResponsesVoice(Voice):
    """One response's events; `sequence_number` counts them from 0."""

    name = "responses"

    def __init__(self, request: Request, digits: str, born: int) -> None:
        super().__init__(request, digits, born)
        self.sequence = 0
        self._output = 0
        self._done: list[dict[str, Any]] = []
        self._lane = {} if request.lane is None else {"stream_id": request.lane}
        self._head = b'{"type":"response.output_text.delta","sequence_number":'
        self._tail = b""

    # ------------------------------------------------------------------------------------------ building blocks

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = dumps({"type": kind, "sequence_number": self.sequence, **fields, **self._lane})
        self.sequence += 1
        return payload

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        body = self.request.body
        return {
            "id": f"resp_{self.digits}",
            "object": "response",
            "created_at": self.born,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": self.request.max_tokens,
            "model": self.request.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": body.get("previous_response_id"),
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": body.get("store", True),
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": {},
            **fields,
        }

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        item_id = f"msg_{self.digits}"
        return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self.digits}", "output_index": self._output, "content_index": 0}

    def _terminal(self, status: str, usage: tuple[int, int] | None, **fields: Any) -> bytes:
        said = None
        if usage is not None:
            said = {
                "input_tokens": usage[0],
                "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
                "output_tokens": usage[1],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": sum(usage),
            }
        return self._event(f"response.{status}", response=self._response(status, usage=said, **fields))

    # ------------------------------------------------------------------------------------------------- the voice

    def created(self) -> list[bytes]:
        """response.created, response.in_progress."""
        return [
            self._event("response.created", response=self._response("in_progress")),
            self._event("response.in_progress", response=self._response("in_progress")),
        ]

    def opening(self) -> list[bytes]:
        """response.output_item.added, response.content_part.added."""
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        return [
            self._event("response.output_item.added", output_index=self._output, item=self._message("in_progress", [])),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def reasoning(self, texts: Sequence[str]) -> list[bytes]:
        """A reasoning item with one summary: one event per text, and the item's beginning and end around them."""
        item_id = f"rs_{self.digits}"
        place = {"item_id": item_id, "output_index": 0, "summary_index": 0}
        whole = "".join(texts)
        part = {"type": "summary_text", "text": whole}
        item = {"id": item_id, "type": "reasoning", "summary": [part]}
        frames = [
            self._event("response.output_item.added", output_index=0, item={**item, "summary": []}),
            self._event("response.reasoning_summary_part.added", **place, part={**part, "text": ""}),
            *(self._event("response.reasoning_summary_text.delta", **place, delta=text) for text in texts),
            self._event("response.reasoning_summary_text.done", **place, text=whole),
            self._event("response.reasoning_summary_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
        ]
        self._output, self._done = 1, [item]
        return frames

    def delta(self, text: bytes) -> bytes:
        """response.output_text.delta."""
        tail = self._tail
        if not tail:
            fields: dict[str, Any] = {"logprobs": [], **self._place(), **self._lane}
            if self.request.obfuscate:
                fields["obfuscation"] = _OBFUSCATION
            tail = self._tail = b"," + dumps(fields)[1:]
        payload = b'%b%d,"delta":%b%b' % (self._head, self.sequence, text, tail)
        self.sequence += 1
        return payload

    def closing(self, text: str, usage: tuple[int, int] | None, reason: str) -> list[list[bytes]]:
        """output_text.done, content_part.done, output_item.done; then completed or incomplete."""
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
        status = "completed" if reason == "stop" else "incomplete"
        item = self._message(status, [part])
        content = [
            self._event("response.output_text.done", **self._place(), text=text, logprobs=[]),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=self._output, item=item),
        ]
        fields: dict[str, Any] = {"output": [*self._done, item]}
        if reason != "stop":
            fields["incomplete_details"] = {"reason": "max_output_tokens" if reason == "length" else reason}
        else:
            fields["completed_at"] = self.born + 1
        return [content, [self._terminal(status, usage, **fields)], []]

    def bare(self) -> list[bytes]:
        """A completed response without output: the answer to ``generate: false``."""
        return [self._terminal("completed", (0, 0), completed_at=self.born + 1)]

    def refusal(self, text: str, usage: tuple[int, int] | None) -> list[bytes]:
        """A message whose only part is a refusal, in a completed response."""
        part = {"type": "refusal", "refusal": text}
        item = self._message("completed", [part])
        return [
            self._event("response.output_item.added", output_index=self._output, item=self._message("in_progress", [])),
            self._event("response.content_part.added", **self._place(), part={"type": "refusal", "refusal": ""}),
            self._event("response.refusal.delta", **self._place(), delta=text),
            self._event("response.refusal.done", **self._place(), refusal=text),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=self._output, item=item),
            self._terminal("completed", usage, output=[item], completed_at=self.born + 1),
        ]

    def failed(self, fault: Fault) -> list[bytes]:
        """response.failed."""
        return [self._terminal("failed", None, error={"code": fault.code, "message": fault.message})]

    def error(self, fault: Fault) -> bytes:
        """An `error` frame; a response that has begun numbers it."""
        return dumps(fault.shaped({"sequence_number": self.sequence, **self._lane}))

    def metadata(self) -> bytes:
        """response.in_progress, once more."""
        return self._event("response.in_progress", response=self._response("in_progress"))

    def unknown(self) -> list[bytes]:
        """Types of the future; a known type with unknown fields."""
        return [
            self._event("response.telemetry.sampled", sample={"deep": [1, {"er": None}]}, text="not content"),
            self._event("rate_limits.updated", rate_limits=[{"name": "tokens", "remaining": 12}]),
            dumps({"type": "session.note", "delta": "not content either"}),
        ]

    def stray(self) -> bytes:
        """A delta under another item and another stream_id."""
        place = {"item_id": "msg_" + "0" * 32, "output_index": 0, "content_index": 0, "logprobs": []}
        lane = {} if self.request.lane is None else {"stream_id": "somebody-else"}
        fields = {"type": "response.output_text.delta", "sequence_number": 4, "delta": " STRAY", **place, **lane}
        return dumps(fields)

    def prefab(self) -> Voice:
        """See `Voice`; its first delta has the number that this voice's next would have."""
        twin = ResponsesVoice(self.request, PLACEHOLDER, 0)
        twin.sequence, twin._output = self.sequence, self._output
        return twin

    def skip(self, number: int) -> None:
        """Counts them."""
        self.sequence += number

    @property
    def key(self) -> tuple[object, ...]:
        """Where the next delta stands, and what its frame repeats."""
        return (self.name, self.request.lane, self.request.obfuscate, self._output, self.sequence)
