"""What a chat relay is sent."""

from __future__ import annotations

import functools

import msgspec
from msgspec import Struct

from sidecar.dialects import options as portable
from sidecar.dialects.base import JsonObject, Prompt
from sidecar.wire import ChatMessage, Options

_encode = msgspec.json.Encoder().encode


class Request(Struct, frozen=True, kw_only=True):
    """What differs from call to call in a request; the rest is said after it."""

    id: str
    model: str
    messages: tuple[ChatMessage, ...]


class Body(Struct, frozen=True, kw_only=True):
    """The same over HTTP: nothing to tell apart by an `id`."""

    model: str
    messages: tuple[ChatMessage, ...]


def request_bytes(name: str | None, prompt: Prompt) -> bytes:
    """The request, as JSON.

    Args:
        name: its `id`, by which frames are told apart; None over HTTP, where nothing is to be told apart.
        prompt: what is asked.
    """
    messages = prompt.messages
    if prompt.instructions is not None:
        messages = (ChatMessage(role="system", content=prompt.instructions), *messages)
    request: Request | Body = Body(model=prompt.model, messages=messages)
    if name is not None:
        request = Request(id=name, model=prompt.model, messages=messages)
    if portable.is_plain(prompt.options):
        return _encode(request)[:-1] + b"," + _rest(prompt.options, prompt.store)[1:]
    # `extra_body` may reach into any field
    body: JsonObject = msgspec.to_builtins(request) | _constants(prompt.store)
    return _encode(portable.lay(body, prompt.options, "chat"))


def _constants(store: bool) -> JsonObject:  # noqa: FBT001  (the key of a cache)
    # Never kept unless asked for; not said otherwise, as many relays know no such field.
    stored: JsonObject = {"store": True} if store else {}
    return {"stream": True, "stream_options": {"include_usage": True}, **stored}


@functools.lru_cache(maxsize=256)
def _rest(options: Options, store: bool) -> bytes:  # noqa: FBT001
    """The part of a request that is the same for every call with these options, encoded."""
    return _encode(portable.lay(_constants(store), options, "chat"))
