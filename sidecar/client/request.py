"""A call as it goes to the daemon: what is wrong with it is said before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sidecar.client.calls import WISHES
from sidecar.client.salvage import UNREADABLE
from sidecar.errors import CallFailed
from sidecar.wire import MSGPACK

MAX_TIMEOUT_MS: Final = 86_400_000


def encoded(
    name: str, prompt: str | None, wishes: Mapping[str, Any], *, mono_us: int, stream: bool, limit: int | None
) -> bytes:
    """The payload of a `call`.

    Args:
        name: its id.
        prompt: the input; None when `messages` is among the wishes.
        wishes: as `Wishes`; None means not wished for.
        mono_us: CLOCK_MONOTONIC in microseconds.
        stream: False for the whole text in the terminal.
        limit: bytes that the daemon takes, None while it has not said.

    Raises:
        TypeError: a wish of that name does not exist.
        RequestRefused: it cannot be encoded, a timeout is no positive number, or it is too large.
    """
    if not wishes.keys() <= WISHES:
        raise TypeError(f"no such argument: {', '.join(sorted(wishes.keys() - WISHES))}")
    fields: dict[str, Any] = {key: value for key, value in wishes.items() if value is not None}
    if (prompt is None) == ("messages" not in fields):
        raise CallFailed.of("invalid_request", "give either a prompt or messages=, and not both")
    if "moves_on" in fields and type(fields.pop("moves_on")) is not bool:  # the client's own: not for the daemon
        raise CallFailed.of("invalid_request", "moves_on must be True or False")
    timeout_ms = fields.get("timeout_ms")
    if timeout_ms is not None and not (type(timeout_ms) in (int, float) and 0 < timeout_ms <= MAX_TIMEOUT_MS):
        raise CallFailed.of("invalid_request", f"timeout_ms must be above 0 and at most a day, not {timeout_ms!r}")
    if prompt is not None:
        fields["input"] = prompt
    fields["type"], fields["id"], fields["sent_mono_us"] = "call", name, mono_us
    if not stream:
        fields["stream"] = False
    try:
        payload: bytes = MSGPACK.encode(fields)
    except (*UNREADABLE, TypeError, ValueError, OverflowError) as problem:
        raise CallFailed.of("invalid_request", f"the call cannot be encoded: {problem}") from problem
    if limit is not None and len(payload) > limit:
        raise CallFailed.of("too_large", f"{len(payload)} bytes; the limit is {limit}")
    return payload
