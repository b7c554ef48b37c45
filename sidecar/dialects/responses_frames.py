"""What a Responses server is sent, and what it sends: each struct names the fields we read, all else is skipped."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from sidecar.dialects.facts import CachedTokens, ErrorBody, ErrorFrame, ReasoningTokens, Tokens
from sidecar.dialects.text import typed
from sidecar.wire import ChatMessage, Usage


class Request(Struct, frozen=True, kw_only=True, tag_field="type", tag="response.create", omit_defaults=True):
    """What differs from call to call in a request; the rest is said after it."""

    stream_id: str | None = None
    model: str
    instructions: str | None = None
    input: tuple[ChatMessage, ...]


class Body(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same over HTTP: what kind of request it is says its path."""

    model: str
    instructions: str | None = None
    input: tuple[ChatMessage, ...]


class Frame(Struct, frozen=True, gc=False):
    """What the path of a token looks at, and nothing more: all else is skipped unread."""

    type: str = ""
    delta: str = ""
    item_id: str | None = None
    stream_id: str | None = None


class Named(Struct, frozen=True):
    """A response or an item, by what it is called."""

    type: str | None = None
    id: str | None = None
    model: str | None = None


class Created(Struct, frozen=True):
    """`response.created`."""

    response: Named


class ItemAdded(Struct, frozen=True):
    """`response.output_item.added`."""

    item: Named


class TextDone(Struct, frozen=True):
    """`response.output_text.done`: the whole text of a part."""

    text: str


class RefusalDone(Struct, frozen=True):
    """`response.refusal.done`."""

    refusal: str


class Part(Struct, frozen=True):
    """One part of a message."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None


class Message(Struct, frozen=True):
    """An output item of type `message`."""

    content: list[Part] | None = None


class Counts(Struct, frozen=True):
    """The upstream's `usage`."""

    input_tokens: Tokens = None
    output_tokens: Tokens = None
    input_tokens_details: CachedTokens | None = None
    output_tokens_details: ReasoningTokens | None = None

    def facts(self) -> Usage | None:
        """In our words; None for a map that says nothing."""
        if self.input_tokens is None and self.output_tokens is None:
            return None  # an empty map is no statement
        cached, reasoning = self.input_tokens_details, self.output_tokens_details
        return Usage(
            input_tokens=self.input_tokens or 0,
            output_tokens=self.output_tokens or 0,
            cached_tokens=(cached.cached_tokens or 0) if cached is not None else 0,
            reasoning_tokens=(reasoning.reasoning_tokens or 0) if reasoning is not None else 0,
        )


class Incomplete(Struct, frozen=True):
    """Why a response is incomplete."""

    reason: str | None = None


class Response(Struct, frozen=True):
    """The response that a terminal event carries."""

    id: str | None = None
    status: str | None = None
    model: str | None = None
    output: list[msgspec.Raw] | None = None
    usage: Counts | None = None
    incomplete_details: Incomplete | None = None
    error: ErrorBody | None = None


class Whole(Struct, frozen=True):
    """What a map without a type is looked at for: a response that was not streamed."""

    object: str | None = None
    status: str | None = None


class Terminal(Struct, frozen=True):
    """`response.completed`, `response.incomplete`, `response.failed`."""

    response: Response


read_frame = msgspec.json.Decoder(Frame).decode
read_created = msgspec.json.Decoder(Created).decode
read_item_added = msgspec.json.Decoder(ItemAdded).decode
read_text_done = msgspec.json.Decoder(TextDone).decode
read_refusal_done = msgspec.json.Decoder(RefusalDone).decode
read_terminal = msgspec.json.Decoder(Terminal).decode
read_whole = msgspec.json.Decoder(Whole).decode
read_response = msgspec.json.Decoder(Response).decode
read_item = msgspec.json.Decoder(Named).decode
read_message = msgspec.json.Decoder(Message).decode
read_error = msgspec.json.Decoder(ErrorFrame).decode


class Output(Struct, frozen=True, kw_only=True):
    """What a terminal's `output` holds."""

    text: str
    refusal: str
    calls: bool


def output_of(items: list[msgspec.Raw]) -> Output:
    """Look through a terminal's `output`; items of unknown types are skipped, whatever they hold."""
    text, refusal, calls = "", "", False
    for raw in items:
        kind = typed(read_item, memoryview(raw), "an output item").type or ""
        # A tool call is the bot's to answer, whichever tool it names.
        calls = calls or kind.endswith("_call")
        if kind == "message":
            for part in typed(read_message, memoryview(raw), "an output message").content or ():
                text += (part.text or "") if part.type == "output_text" else ""
                refusal += part.refusal or ""
    return Output(text=text, refusal=refusal, calls=calls)
