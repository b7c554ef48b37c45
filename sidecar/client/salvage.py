"""Reading what can be read of a payload that is not, as a whole, what the wire says. The slow way, for liars only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.wire import MSGPACK

#: All that decoding untrusted bytes may raise.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError)
_ABOUT_A_CALL: Final = {"accepted", "delta", "restarted", "done", "failed"}


class Unreadable(NamedTuple):
    """A message about a call, by its type and id, whose other fields cannot be read."""

    type: str
    id: str


def pieces_of(payload: bytes) -> Iterator[Any]:
    """The messages that can be read, and an `Unreadable` for each that only names its call; the rest is left out."""
    module = msgspec.json if payload[:1] in (b"{", b"[") else msgspec.msgpack
    try:
        whole = module.decode(payload)
    except (*UNREADABLE, ValueError):
        return
    for item in whole if isinstance(whole, list) else [whole]:
        if not isinstance(item, dict) or not isinstance(item.get("type"), str):
            continue
        try:
            message = MSGPACK.decode_from_daemon(MSGPACK.encode(item))
        except (*UNREADABLE, TypeError, ValueError, OverflowError):
            if item["type"] in _ABOUT_A_CALL and isinstance(item.get("id"), str):
                yield Unreadable(item["type"], item["id"])
            continue
        yield message
