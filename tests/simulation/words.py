"""What is said of an answer in each dialect: the JSON of its messages, whatever way they travel.

Texts here are digits, colons and blanks, so nothing needs to be escaped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from tests.simulation.request import Request


class Words(ABC):
    """One dialect. What is returned is the inside of a JSON object, or of several.

    Attributes:
        prompt: the request's field that holds the conversation.
        begins: an answer's beginning has to be said before its content.
        afterwards: something is said after the reason why an answer stopped, and may be missing.
    """

    prompt = "messages"
    begins = True
    afterwards = False

    @abstractmethod
    def created(self, request: Request) -> str:
        """The answer begins; no content yet."""

    @abstractmethod
    def delta(self, request: Request, piece: str) -> str:
        """A piece of content."""

    @abstractmethod
    def finish(self, request: Request, reason: str) -> str:
        """It stopped, for `stop` or `length`."""

    def after(self, request: Request) -> str:
        """What is said after that."""
        raise NotImplementedError

    def progress(self) -> str:
        """That it goes on, and nothing else; "" where there is no word for it."""
        return ""

    @abstractmethod
    def error(self, request: Request, said: str) -> str:
        """The upstream's own error, of which `said` says what it is."""

    @abstractmethod
    def whole(self, request: Request, text: str) -> dict[str, Any]:
        """An answer that is not streamed."""


class Responses(Words):
    """Typed events, the last with the usage."""

    prompt = "input"

    def created(self, request: Request) -> str:
        """See `Words`."""
        return f'"type":"response.created","response":{{"id":"r{request.number}","model":"m-1"}}'

    def delta(self, request: Request, piece: str) -> str:
        """See `Words`."""
        return f'"type":"response.output_text.delta","item_id":"i{request.number}","delta":"{piece}"'

    def finish(self, request: Request, reason: str) -> str:
        """See `Words`."""
        return (
            f'"type":"response.completed","response":{{"id":"r{request.number}","status":"completed","model":"m-1",'
            '"output":[],"usage":{"input_tokens":3,"output_tokens":2}}'
        )

    def progress(self) -> str:
        """See `Words`."""
        return '"type":"response.in_progress"'

    def error(self, request: Request, said: str) -> str:
        """See `Words`."""
        return said + ',"type":"error"'

    def whole(self, request: Request, text: str) -> dict[str, Any]:
        """See `Words`."""
        part = {"type": "output_text", "text": text}
        return {
            "id": f"r{request.number}",
            "object": "response",
            "status": "completed",
            "model": "m-1",
            "output": [{"type": "message", "id": "i1", "role": "assistant", "content": [part]}],
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }


class Chat(Words):
    """Chunks; the beginning and the usage may be missing."""

    begins = False
    afterwards = True

    def _chunk(self, request: Request, delta: str, reason: str = "null") -> str:
        choice = f'{{"index":0,"delta":{{{delta}}},"finish_reason":{reason}}}'
        return f'"id":"{request.name}","model":"m-1","choices":[{choice}]'

    def created(self, request: Request) -> str:
        """See `Words`: the role."""
        return self._chunk(request, '"role":"assistant","content":""')

    def delta(self, request: Request, piece: str) -> str:
        """See `Words`."""
        return self._chunk(request, f'"content":"{piece}"')

    def finish(self, request: Request, reason: str) -> str:
        """See `Words`: finish_reason alone."""
        return self._chunk(request, "", f'"{reason}"')

    def after(self, request: Request) -> str:
        """See `Words`: the usage."""
        counts = '"usage":{"prompt_tokens":3,"completion_tokens":2}'
        return f'"id":"{request.name}","model":"m-1","choices":[],{counts}'

    def error(self, request: Request, said: str) -> str:
        """See `Words`."""
        return said + f',"id":"{request.name}"'

    def whole(self, request: Request, text: str) -> dict[str, Any]:
        """See `Words`."""
        message = {"role": "assistant", "content": text}
        return {
            "id": request.name,
            "object": "chat.completion",
            "model": "m-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }


class Messages(Words):
    """Typed events; `message_stop`, which ends an answer, may be missing behind the reason why it stopped."""

    afterwards = True
    _REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}

    def created(self, request: Request) -> str:
        """See `Words`."""
        message = f'"id":"m{request.number}","model":"m-1","usage":{{"input_tokens":3,"output_tokens":1}}'
        return f'"type":"message_start","message":{{{message}}}'

    def delta(self, request: Request, piece: str) -> str:
        """See `Words`."""
        return f'"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{piece}"}}'

    def finish(self, request: Request, reason: str) -> str:
        """See `Words`."""
        stop = f'{{"stop_reason":"{self._REASONS[reason]}"}}'
        return f'"type":"message_delta","delta":{stop},"usage":{{"output_tokens":2}}'

    def after(self, request: Request) -> str:
        """See `Words`: its end."""
        return '"type":"message_stop"'

    def progress(self) -> str:
        """See `Words`."""
        return '"type":"ping"'

    def error(self, request: Request, said: str) -> str:
        """See `Words`."""
        return said + ',"type":"error"'

    def whole(self, request: Request, text: str) -> dict[str, Any]:
        """See `Words`."""
        return {
            "id": f"m{request.number}",
            "type": "message",
            "role": "assistant",
            "model": "m-1",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }


WORDS: Final[dict[str, Words]] = {"responses": Responses(), "chat": Chat(), "messages": Messages()}


def encoded(whole: dict[str, Any]) -> bytes:
    """As it travels."""
    return msgspec.json.encode(whole)
