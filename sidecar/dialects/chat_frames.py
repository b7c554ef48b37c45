"""What a chat relay sends: each struct names the fields we read, all else is skipped."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from sidecar.dialects.base import JsonObject
from sidecar.dialects.facts import CachedTokens, ErrorBody, ErrorFrame, ReasoningTokens, Tokens, upstream_error
from sidecar.dialects.text import typed
from sidecar.errors import MalformedFrame, UpstreamError
from sidecar.wire import Finish, Usage

#: The end of an event stream, as text: it may stand in an envelope, too.
DONE: Final = "[DONE]"
#: `finish_reason` -> how an answer ended; any other reason is a fault.
FINISHES: Final[dict[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
#: Lines of an event stream in one frame: each may be a chunk that takes 20 us, and a mebibyte of them 0.3 s.
MAX_LINES: Final = 1024


class Counts(Struct, frozen=True):
    """The upstream's `usage`."""

    prompt_tokens: Tokens = None
    completion_tokens: Tokens = None
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None

    def facts(self) -> Usage | None:
        """In our words; None for a map that says nothing."""
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None  # an empty map in every chunk is no statement
        cached, reasoning = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            input_tokens=self.prompt_tokens or 0,
            output_tokens=self.completion_tokens or 0,
            cached_tokens=(cached.cached_tokens or 0) if cached is not None else 0,
            reasoning_tokens=(reasoning.reasoning_tokens or 0) if reasoning is not None else 0,
        )


class Delta(Struct, frozen=True, gc=False):
    """What a chunk adds, or the whole message."""

    content: str | None = None
    refusal: str | None = None


class Choice(Struct, frozen=True, gc=False):
    """One of `choices`; only the one with index 0 is ours."""

    delta: Delta | None = None
    finish_reason: str | None = None
    index: int = 0
    #: A relay that does not stream answers with the whole message here.
    message: Delta | None = None

    def piece(self) -> Delta:
        """What it brings; empty rather than None."""
        return self.delta or self.message or EMPTY


class Chunk(Struct, frozen=True, gc=False):
    """A `chat.completion.chunk`."""

    id: str | None = None
    choices: list[Choice] | None = None
    usage: Counts | None = None
    error: ErrorBody | str | None = None


class Frame(Chunk, frozen=True, gc=False):
    """The top of a frame: a bare chunk, an envelope when `data` is there, an error, or none of them."""

    data: Chunk | str | None = None


class Head(Struct, frozen=True):
    """What the first chunk of an answer is read for, once."""

    model: str | None = None
    data: Head | str | None = None


class Kind(Struct, frozen=True):
    """What a map without choices is looked at for: an error in its flat shape."""

    type: Any = None
    data: Kind | str | None = None


class ErrorEnvelope(ErrorFrame, frozen=True, kw_only=True):
    """An error, bare or in an envelope."""

    data: ErrorFrame | str | None = None


EMPTY: Final = Delta()
read_frame = msgspec.json.Decoder(Frame).decode
read_head = msgspec.json.Decoder(Head).decode
read_kind = msgspec.json.Decoder(Kind).decode
read_error = msgspec.json.Decoder(ErrorEnvelope).decode


def plain_content(frame: Frame) -> str | None:
    """The text of a frame that is content and nothing else: what most frames are. None, or "", for any other."""
    chunk = frame if frame.data is None else frame.data
    if isinstance(chunk, str) or not chunk.choices or chunk.usage is not None or chunk.error is not None:
        return None
    choice = chunk.choices[0]
    delta = choice.delta
    if delta is None or choice.finish_reason is not None or choice.index != 0 or delta.refusal is not None:
        return None
    return delta.content if frame.error is None else None


def opens(chunk: Chunk) -> bool:
    """A chunk that only opens an answer: no content, no end, no usage."""
    if not chunk.choices or chunk.usage is not None:
        return False
    first = chunk.choices[0]
    return first.delta is not None and not first.delta.content and not first.delta.refusal and not first.finish_reason


def error_of(frame: Frame, chunk: Chunk, payload: bytes | memoryview) -> UpstreamError:
    """The facts of an error frame, bare or in an envelope."""
    outer = typed(read_error, payload, "an error")
    read = outer.data if isinstance(outer.data, ErrorFrame) else outer
    inner = frame.error if frame.error is not None else chunk.error
    return upstream_error(msgspec.structs.replace(read, error=inner, status=read.status or outer.status))


def lines_of(text: str) -> list[str]:
    """The lines of a frame that is an event stream's.

    Raises:
        MalformedFrame: more than `MAX_LINES`.
    """
    lines = text.split("\n", MAX_LINES)
    if len(lines) > MAX_LINES:
        raise MalformedFrame("an event of too many lines", close_code=1009)
    return lines


def looks_like_chat(value: JsonObject) -> bool:
    """Whether a map that did not fit was meant to be a chunk or an error."""
    data = value.get("data")
    inner = data if isinstance(data, dict) else {}
    return any(key in value or key in inner for key in ("choices", "error")) or value.get("type") == "error"


def says_error(payload: bytes | memoryview) -> bool:
    """Whether a map without choices is an error in its flat shape: `{type: "error", code, message}`."""
    if b'"error"' not in bytes(payload):
        return False
    kind = typed(read_kind, payload, "a frame")
    return kind.type == "error" or (isinstance(kind.data, Kind) and kind.data.type == "error")


def raw_content(value: JsonObject) -> str | None:
    """The content of choice 0 as it came; the typed reader has found the map to be of the right kind."""
    chunk: Any = value["data"] if isinstance(value.get("data"), dict) else value
    for choice in chunk.get("choices") or ():
        if choice.get("index", 0) == 0:
            piece = choice.get("delta") or choice.get("message") or {}
            content: str | None = piece.get("content")
            return content
    return None
