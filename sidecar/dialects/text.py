r"""JSON text as upstreams really send it: half surrogate pairs at the seam of two deltas.

A model's token may end in the middle of an emoji, and an upstream that escapes its JSON then sends ``"\ud83d"`` in
one frame and ``"\ude00"`` in the next. msgspec refuses a lone half, so such a frame is read again here, and the half
waits for its other half. None of this is on the usual path of a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from sidecar.dialects.base import JsonObject
from sidecar.errors import MalformedFrame

#: What reading untrusted JSON can raise: msgspec's own errors, bad UTF-8, nesting too deep, a size nobody can hold.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError)

#: The end of an event stream, with servers that say it.
DONE: Final = b"[DONE]"

#: What stands for a half that never got its other half.
REPLACEMENT: Final = "\ufffd"

_FIRST_HALF: Final = re.compile("[\ud800-\udbff]\\Z")
_T = TypeVar("_T")


def whole(text: str) -> str:
    """`text` with pairs of halves joined, and each lone half replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def join(held: str, text: str) -> tuple[str, str]:
    """Join a delta to the half held back before it.

    Args:
        held: "" or one first half of a pair.
        text: the next delta as it came.

    Returns:
        What can be handed on (valid Unicode, maybe ""), and what must now be held back ("" or one half).
    """
    if not held and text.isascii():
        return text, ""
    text = held + text
    if _FIRST_HALF.search(text):
        return whole(text[:-1]), text[-1]
    return whole(text), ""


def reread(payload: bytes | memoryview) -> tuple[JsonObject, bytes]:
    """Read a frame that the strict decoder refused.

    Returns:
        The map as it came, lone halves included, and the same as clean JSON (each lone half replaced), which a
        typed decoder takes or refuses for its fields' kinds alone.

    Raises:
        MalformedFrame: not UTF-8, not JSON, not a map.
    """
    try:
        value = _READER.decode(bytes(payload).decode())
        clean = whole(_WRITER.encode(value)).encode()
    except (ValueError, RecursionError, MemoryError):
        # The cause is dropped on purpose: it would carry the frame, and with it somebody's text.
        raise MalformedFrame("not JSON", close_code=1007) from None
    if not isinstance(value, dict):
        raise MalformedFrame("JSON, but not a map")
    return value, clean


def typed(read: Callable[[bytes | memoryview], _T], payload: bytes | memoryview, what: str) -> _T:
    """Read a known event with its typed decoder; one more try on clean JSON.

    Raises:
        MalformedFrame: a field of the wrong kind, or not JSON at all.
    """
    try:
        return read(payload)
    except UNREADABLE:
        pass
    clean = reread(payload)[1]
    try:
        return read(clean)
    except UNREADABLE:
        raise MalformedFrame(f"{what} with a field of the wrong kind") from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


#: Made once: that alone takes as long as a short frame's reading, and a hostile read is full of such frames.
_READER: Final = json.JSONDecoder(parse_constant=_refuse)
_WRITER: Final = json.JSONEncoder(ensure_ascii=False)
