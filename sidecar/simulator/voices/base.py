"""What the simulator's dialects have in common: a request as read, and the voice that answers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

#: Stands for a call's 32 hex digits in frames rendered ahead; replaced without changing any length.
PLACEHOLDER: Final = "f00dcafe" * 4

dumps = msgspec.json.Encoder().encode


class Fault(Struct, frozen=True, kw_only=True):
    """An error as an upstream words it; `shape` as in `Behaviour`."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    headers: dict[str, str] | None = None
    shape: str = "nested"

    @property
    def body(self) -> dict[str, Any]:
        """What stands under ``error``."""
        body: dict[str, Any] = {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
        if self.shape == "no_type":
            del body["type"]
        return body

    def shaped(self, extra: dict[str, Any]) -> dict[str, Any]:
        """The error frame in its shape; `extra` are the dialect's own fields."""
        if self.shape == "flat":
            return {"type": "error", "code": self.code, "message": self.message, "param": self.param, **extra}
        frame: dict[str, Any] = {"type": "error", "status": self.status, "error": self.body, **extra}
        if self.shape == "no_status":
            del frame["status"]
        if self.headers:
            (frame if self.shape == "headers_top" else frame["error"])["headers"] = self.headers
        return frame


class RequestRefused(Exception):
    """The request is not one; `fault` says why, `lane` whom to tell."""

    def __init__(self, fault: Fault, lane: str | None = None) -> None:
        self.fault, self.lane = fault, lane
        super().__init__(fault.message)


class Request(Struct, frozen=True, kw_only=True):
    """A request as read. `lane` is the ``stream_id``: calls of one lane are answered one after another."""

    body: dict[str, Any]
    model: str
    prompt: str
    lane: str | None = None
    name: str | None = None
    max_tokens: int | None = None
    wants_usage: bool = True
    obfuscate: bool = False
    generate: bool = True


class Voice(ABC):
    """One answer's frames, in order: `opening`, deltas, `closing` or an error. Payloads, not WebSocket frames.

    Args:
        request: what is answered.
        digits: 32 hex digits that every id of this answer is made of.
        born: the wall-clock second the answer says it was created in.
    """

    #: What the dialect is called in the configuration.
    name: str

    def __init__(self, request: Request, digits: str, born: int) -> None:
        self.request, self.digits, self.born = request, digits, born

    @abstractmethod
    def created(self) -> list[bytes]:
        """The request was taken; no content yet."""

    @abstractmethod
    def opening(self) -> list[bytes]:
        """What stands between `created` and the first delta."""

    @abstractmethod
    def reasoning(self, texts: Sequence[str]) -> list[bytes]:
        """Thinking aloud, before `opening`; must not be taken for content."""

    @abstractmethod
    def delta(self, text: bytes) -> bytes:
        """A piece of content; `text` is a JSON string, quotes included (so that half an escape can be sent)."""

    @abstractmethod
    def closing(self, text: str, usage: tuple[int, int] | None, reason: str) -> list[list[bytes]]:
        """The terminal in groups: the content's end, the terminal or usage, the ``[DONE]``.

        Args:
            text: the whole answer.
            usage: tokens in and out; None: not said.
            reason: stop, length or content_filter.
        """

    @abstractmethod
    def refusal(self, text: str, usage: tuple[int, int] | None) -> list[bytes]:
        """The model refuses, in its own words, in place of `opening`, deltas and `closing`."""

    @abstractmethod
    def failed(self, fault: Fault) -> list[bytes]:
        """A terminal of the response itself that says failed (chat: an error in place of a chunk)."""

    @abstractmethod
    def error(self, fault: Fault) -> bytes:
        """An error frame."""

    @abstractmethod
    def metadata(self) -> bytes:
        """A frame that keeps the connection busy and says nothing new."""

    @abstractmethod
    def unknown(self) -> list[bytes]:
        """Frames that nobody has documented."""

    @abstractmethod
    def stray(self) -> bytes:
        """Content of a call that this connection never made."""

    @abstractmethod
    def prefab(self) -> Voice:
        """A voice with `PLACEHOLDER` for its digits, for rendering deltas ahead of any call."""

    @abstractmethod
    def skip(self, number: int) -> None:
        """`number` deltas were sent that a `prefab` rendered."""

    @property
    @abstractmethod
    def key(self) -> tuple[object, ...]:
        """Two voices with the same key render the same deltas, but for the digits."""


def text_of(content: object) -> str:
    """The text in a ``content``: a string, or a list of parts that may have a ``text``."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return " ".join(text for text in texts if isinstance(text, str))
    return ""


def conversation(messages: object) -> str:
    """The last user's text of a list of messages: what may steer the relay (an earlier turn must not)."""
    if isinstance(messages, str):
        return messages
    if isinstance(messages, list):
        for message in reversed(messages):
            if isinstance(message, dict) and message.get("role", "user") == "user":
                return text_of(message.get("content"))
    return ""


def bad_request(
    message: str, *, code: str | None = None, param: str | None = None, lane: str | None = None
) -> RequestRefused:
    """A 400 in the upstream's words."""
    fault = Fault(status=400, type="invalid_request_error", code=code, message=message, param=param)
    return RequestRefused(fault, lane)


def read_object(payload: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestRefused: it is none.
    """
    try:
        body = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise bad_request("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise bad_request("The body of a request is a JSON object.")
    return body


def positive(body: dict[str, Any], *names: str) -> int | None:
    """The first of `names` in `body` that holds a positive integer."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise bad_request(f"Invalid value for {name}.", param=name)
        return value
    return None


def unknown(body: dict[str, Any], *names: str) -> None:
    """Refuse a body that has one of `names`, as the services do."""
    for name in names:
        if name in body:
            raise bad_request(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
