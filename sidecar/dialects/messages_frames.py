"""What a Messages server is sent, and what it sends: each struct names the fields we read, all else is skipped."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from sidecar.dialects.facts import ErrorFrame, Tokens
from sidecar.wire import ChatMessage, Finish, Usage

#: `stop_reason` -> how an answer ended; `refusal` and any other reason are faults.
FINISHES: Final[dict[str, Finish]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # A turn with the service's own tools that it wants to be asked to go on with: text that stops short of its end.
    "pause_turn": "length",
    "tool_use": "tool_calls",
}

#: The HTTP status that a type of error has when it is not said in a stream that began with 200.
STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What differs from call to call in a request; the rest is said after it."""

    model: str
    system: str | None = None
    messages: tuple[ChatMessage, ...]


class Delta(Struct, frozen=True, gc=False):
    """What is added to a content block; only `text_delta` is content."""

    type: str = ""
    text: str | None = None


class Frame(Struct, frozen=True, gc=False):
    """What the path of a token looks at, and nothing more."""

    type: str = ""
    delta: Delta | None = None


class Thinking(Struct, frozen=True):
    """Details of the tokens that came out."""

    thinking_tokens: Tokens = None


class Counts(Struct, frozen=True):
    """The upstream's `usage`. Each of its counts is the sum so far; the input is told apart by how it was cached."""

    input_tokens: Tokens = None
    cache_creation_input_tokens: Tokens = None
    cache_read_input_tokens: Tokens = None
    output_tokens: Tokens = None
    output_tokens_details: Thinking | None = None

    def later(self, newer: Counts) -> Counts:
        """What `newer` says, and what it does not say as it was."""
        said = {name: value for name in newer.__struct_fields__ if (value := getattr(newer, name)) is not None}
        return msgspec.structs.replace(self, **said)

    def facts(self) -> Usage:
        """In our words."""
        details = self.output_tokens_details
        cached = self.cache_read_input_tokens or 0
        return Usage(
            input_tokens=(self.input_tokens or 0) + (self.cache_creation_input_tokens or 0) + cached,
            output_tokens=self.output_tokens or 0,
            cached_tokens=cached,
            reasoning_tokens=(details.thinking_tokens or 0) if details is not None else 0,
        )


class Named(Struct, frozen=True):
    """The message that `message_start` carries."""

    id: str | None = None
    model: str | None = None
    usage: Counts | None = None


class MessageStart(Struct, frozen=True):
    """`message_start`."""

    message: Named


class Block(Struct, frozen=True):
    """A content block, as it begins or whole; only one of type `text` is content."""

    type: str = ""
    text: str | None = None


class BlockStart(Struct, frozen=True):
    """`content_block_start`."""

    content_block: Block


class Why(Struct, frozen=True):
    """`stop_details`: why the model refused."""

    explanation: str | None = None


class Stop(Struct, frozen=True):
    """How a message ended; without a reason it has not."""

    stop_reason: str | None = None
    stop_details: Why | None = None


class MessageDelta(Struct, frozen=True):
    """`message_delta`."""

    delta: Stop
    usage: Counts | None = None


class Message(Struct, frozen=True):
    """A whole message, of a server that was asked to stream and does not."""

    id: str | None = None
    model: str | None = None
    content: list[Block] | None = None
    stop_reason: str | None = None
    stop_details: Why | None = None
    usage: Counts | None = None


read_frame = msgspec.json.Decoder(Frame).decode
read_message_start = msgspec.json.Decoder(MessageStart).decode
read_block_start = msgspec.json.Decoder(BlockStart).decode
read_message_delta = msgspec.json.Decoder(MessageDelta).decode
read_message = msgspec.json.Decoder(Message).decode
read_error = msgspec.json.Decoder(ErrorFrame).decode
