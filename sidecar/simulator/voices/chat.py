"""`chat`: chat.completion.chunk objects over a WebSocket. An assumption, as no such relay documents its frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def read_chat(payload: bytes, *, over_http: bool = False) -> Request:
    """The body of a chat completion; over HTTP it has no id.

    Raises:
        RequestRefused: it is none, or a field of it is wrong.
    """
    body = read_object(payload)
    if over_http:
        unknown(body, "id")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise bad_request("you must provide a model parameter", param="model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise bad_request("'messages' must be a list of at least one message.", param="messages")
    if not body.get("stream") and not over_http:
        raise bad_request("only stream: true is supported over WebSocket.", param="stream")
    options = body.get("stream_options")
    name, streamed = body.get("id"), body.get("stream") is True
    return Request(
        body=body,
        model=body["model"],
        prompt=conversation(messages),
        name=name if isinstance(name, str) else None,
        max_tokens=positive(body, "max_completion_tokens", "max_tokens"),
        wants_usage=not streamed or (isinstance(options, dict) and options.get("include_usage") is True),
    )


class ChatVoice(Voice):
    """One completion's chunks.

    Args:
        envelope: bare | wrapped (``{id, data}`` with the request's own id) | sse (a ``data: `` prefix).
        done: end with ``[DONE]``.
    """

    name = "chat"

    def __init__(self, request: Request, digits: str, born: int, *, envelope: str = "bare", done: bool = True) -> None:
        super().__init__(request, digits, born)
        self._envelope, self._done = envelope, done
        self._prefix = self._suffix = b""
        if envelope == "wrapped":
            self._prefix, self._suffix = b'{"id":%b,"data":' % dumps(request.name), b"}"
        elif envelope == "sse":
            self._prefix = b"data: "
        base = {"id": f"chatcmpl-{digits}", "object": "chat.completion.chunk", "created": born, "model": request.model}
        self._base = {**base, "service_tier": "default", "system_fingerprint": "fp_simulated"}
        self._head = self._prefix + dumps(self._base)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        self._tail = b'},"logprobs":null,"finish_reason":null}]}' + self._suffix

    def _wrap(self, payload: bytes) -> bytes:
        return self._prefix + payload + self._suffix

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._wrap(dumps({**self._base, "choices": [choice]}))

    def created(self) -> list[bytes]:
        """The role chunk."""
        return [self._chunk({"role": "assistant", "content": "", "refusal": None})]

    def opening(self) -> list[bytes]:
        """Nothing: content follows the role at once."""
        return []

    def reasoning(self, texts: Sequence[str]) -> list[bytes]:
        """``reasoning_content``, as several services send it."""
        return [self._chunk({"reasoning_content": text}) for text in texts]

    def delta(self, text: bytes) -> bytes:
        """A content chunk."""
        return self._head + text + self._tail

    def closing(self, text: str, usage: tuple[int, int] | None, reason: str) -> list[list[bytes]]:
        """The finish_reason; a usage chunk without choices, if asked for; ``[DONE]``, if configured."""
        del text
        return [[self._chunk({}, reason)], self._usage(usage), self._end()]

    def _usage(self, usage: tuple[int, int] | None) -> list[bytes]:
        if usage is None or not self.request.wants_usage:
            return []
        said = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        return [self._wrap(dumps({**self._base, "choices": [], "usage": said}))]

    def _end(self) -> list[bytes]:
        if not self._done:
            return []
        return [self._wrap(b'"[DONE]"') if self._envelope == "wrapped" else self._wrap(b"[DONE]")]

    def refusal(self, text: str, usage: tuple[int, int] | None) -> list[bytes]:
        """``delta.refusal``, then an ordinary stop."""
        return [self._chunk({"refusal": text}), self._chunk({}, "stop"), *self._usage(usage), *self._end()]

    def failed(self, fault: Fault) -> list[bytes]:
        """The same as an error: chat has no other word for it."""
        return [self.error(fault)]

    def error(self, fault: Fault) -> bytes:
        """An error object, never wrapped. Its `no_status` shape is the bare ``{"error": {...}}``."""
        frame = fault.shaped({} if self.request.name is None else {"id": self.request.name})
        if fault.shape == "no_status":
            del frame["type"]
        return dumps(frame)

    def metadata(self) -> bytes:
        """A chunk with an empty delta."""
        return self._chunk({})

    def unknown(self) -> list[bytes]:
        """An unknown object, an unknown delta field, and a ping of somebody's own making."""
        return [
            self._wrap(dumps({"object": "gateway.event", "event": "routed", "content": "not content"})),
            self._chunk({"mood": "calm"}),
            self._wrap(dumps({"type": "ping"})),
        ]

    def stray(self) -> bytes:
        """A content chunk of another completion."""
        choice = {"index": 0, "delta": {"content": " STRAY"}, "finish_reason": None}
        chunk = {**self._base, "id": "chatcmpl-" + "0" * 32, "choices": [choice]}
        if self._envelope == "wrapped":
            return dumps({"id": "somebody-else", "data": chunk})
        return self._wrap(dumps(chunk))

    def prefab(self) -> Voice:
        """See `Voice`."""
        return ChatVoice(self.request, PLACEHOLDER, self.born, envelope=self._envelope, done=self._done)

    def skip(self, number: int) -> None:
        """Nothing is counted here."""

    @property
    def key(self) -> tuple[object, ...]:
        """What each chunk repeats. The second of birth is constant in a relay."""
        name = self.request.name if self._envelope == "wrapped" else None
        return (self.name, self.request.model, self._envelope, name, self.born)
