"""`messages`: Anthropic's Messages API, over HTTP only. Every event in full, as the anthropic SDK's types require."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import structs

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
)

#: Our words for why an answer stopped, in its own; any other word is said as it is.
_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
#: Fields of the other dialects: an extra input is refused, whatever it says.
_FOREIGN: Final = (
    *("id", "type", "stream_id", "stream_options", "input", "instructions", "max_output_tokens"),
    *("max_completion_tokens", "store", "seed", "stop", "n", "presence_penalty", "frequency_penalty"),
)
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_WORDS: Final = {
    "invalid_api_key": "invalid x-api-key",
    "insufficient_quota": "Your credit balance is too low to access the API.",
    "context_length_exceeded": "prompt is too long: 210000 tokens > 200000 maximum",
    "content_filter": "Output blocked by content filtering policy",
}


def read_messages(payload: bytes) -> Request:
    """The body of a message's creation.

    Raises:
        RequestRefused: it is none, or a field of it is wrong.
    """
    body = read_object(payload)
    for name in ("model", "messages", "max_tokens"):
        if body.get(name) is None:
            raise bad_request(f"{name}: Field required")
    for name in _FOREIGN:
        if name in body:
            raise bad_request(f"{name}: Extra inputs are not permitted")
    if not isinstance(body["model"], str) or not body["model"]:
        raise bad_request("model: Input should be a valid string")
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise bad_request(f"messages.{index}.role: Input should be 'user' or 'assistant'")
    temperature = body.get("temperature", 1)
    if not isinstance(temperature, int | float) or not 0 <= temperature <= 1:
        raise bad_request("temperature: range: 0..1")
    return Request(
        body=body, model=body["model"], prompt=conversation(messages), max_tokens=positive(body, "max_tokens")
    )


def worded(fault: Fault) -> Fault:
    """`fault` as this service has it: types of its own, and money is not a matter of rates."""
    status = 402 if fault.code == "insufficient_quota" else fault.status
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = _WORDS.get(fault.code or "", fault.message)
    return structs.replace(fault, status=status, type=kind, message=message, code=None, param=None)


def error_object(fault: Fault, request_id: str) -> dict[str, Any]:
    """An error, within a stream or as a body. Of the shapes only `flat` and `no_type` differ from the service's own."""
    said = worded(fault)
    error = {"type": said.type, "message": said.message}
    if fault.shape == "no_type":
        del error["type"]
    if fault.shape == "flat":
        return {"type": "error", "message": said.message, "request_id": request_id}
    return {"type": "error", "error": error, "request_id": request_id}


class MessagesVoice(Voice):
    """One message's events.

    Args:
        usage: say it; without it no event has any.
        done: end with ``message_stop``.
        request_id: as in the answer's head; errors repeat it.
    """

    name = "messages"

    def __init__(
        self,
        request: Request,
        digits: str,
        born: int,
        *,
        usage: bool = True,
        done: bool = True,
        request_id: str = "",
    ) -> None:
        super().__init__(request, digits, born)
        self._says_usage, self._done, self._request_id = usage, done, request_id
        self._index = 0
        self._head = b""

    def _event(self, kind: str, **fields: Any) -> bytes:
        return dumps({"type": kind, **fields})

    def _start(self, block: dict[str, Any]) -> bytes:
        return self._event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **fields: Any) -> bytes:
        return self._event("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _stop(self) -> bytes:
        payload = self._event("content_block_stop", index=self._index)
        self._index += 1
        self._head = b""
        return payload

    def created(self) -> list[bytes]:
        """message_start."""
        usage = {
            "input_tokens": max(1, len(self.request.prompt) // 4),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 1,
            "service_tier": "standard",
        }
        message: dict[str, Any] = {
            "id": f"msg_{self.digits}",
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        return [self._event("message_start", message={**message, "usage": usage} if self._says_usage else message)]

    def opening(self) -> list[bytes]:
        """content_block_start, and the ping that follows it there."""
        return [self._start({"type": "text", "text": ""}), self.metadata()]

    def reasoning(self, texts: Sequence[str]) -> list[bytes]:
        """A thinking block with its signature."""
        return [
            self._start({"type": "thinking", "thinking": "", "signature": ""}),
            *(self._delta("thinking_delta", thinking=text) for text in texts),
            self._delta("signature_delta", signature="c2ltdWxhdGVk" + self.digits),
            self._stop(),
        ]

    def delta(self, text: bytes) -> bytes:
        """content_block_delta."""
        if not self._head:
            self._head = self._delta("text_delta", text="")[: -len(b'""}}')]
        return b"%b%b}}" % (self._head, text)

    def closing(self, text: str, usage: tuple[int, int] | None, reason: str) -> list[list[bytes]]:
        """content_block_stop; message_delta; message_stop, if configured."""
        del text
        end = [self._event("message_stop")] if self._done else []
        return [[self._stop()], [self._message_delta(usage, _REASONS.get(reason, reason))], end]

    def _message_delta(self, usage: tuple[int, int] | None, reason: str) -> bytes:
        stops = self.request.body.get("stop_sequences")
        said = stops[0] if reason == "stop_sequence" and isinstance(stops, list) and stops else None
        delta: dict[str, Any] = {"stop_reason": reason, "stop_sequence": said}
        if reason == "refusal":
            delta["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
        if usage is None:
            return self._event("message_delta", delta=delta)
        counts = {"input_tokens": usage[0], "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return self._event("message_delta", delta=delta, usage={**counts, "output_tokens": usage[1]})

    def refusal(self, text: str, usage: tuple[int, int] | None) -> list[bytes]:
        """A block with the words, then the stop reason `refusal`."""
        said = self.delta(dumps(text))
        return [*self.opening(), said, *(one for group in self.closing(text, usage, "content_filter") for one in group)]

    def failed(self, fault: Fault) -> list[bytes]:
        """The same as an error: this dialect has no other word for it."""
        return [self.error(fault)]

    def error(self, fault: Fault) -> bytes:
        """An error event."""
        return dumps(error_object(fault, self._request_id))

    def metadata(self) -> bytes:
        """A ping."""
        return self._event("ping")

    def unknown(self) -> list[bytes]:
        """An event, and a delta of a known event, that nobody has documented."""
        return [
            self._event("message_mood", mood={"deep": [1, {"er": None}]}, text="not content"),
            self._delta("mood_delta", text="not content", mood="calm"),
        ]

    def stray(self) -> bytes:
        """A delta of a tool's input: no content of an answer in text."""
        return self._event(
            "content_block_delta", index=99, delta={"type": "input_json_delta", "partial_json": " STRAY"}
        )

    def prefab(self) -> Voice:
        """See `Voice`."""
        twin = MessagesVoice(self.request, PLACEHOLDER, self.born)
        twin._index = self._index
        return twin

    def skip(self, number: int) -> None:
        """Nothing is counted here."""

    @property
    def key(self) -> tuple[object, ...]:
        """All that a delta repeats."""
        return (self.name, self._index)
