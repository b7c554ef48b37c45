"""What every dialect turns its frames into, and what it is asked to send.

A dialect is a pure codec: one `Codec` object per connection, payloads in, events out, no clock, no dice, no I/O.
Errors of the upstream come out as facts (`errors.UpstreamError`); `core.classifier` judges them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

from msgspec import Struct

from sidecar.errors import UpstreamError
from sidecar.wire import ChatMessage, Finish, Options, Usage

#: Seconds that a finished answer waits for its usage (`Ending` to `Codec.conclude`).
ENDING_GRACE: Final = 0.050


class Prompt(Struct, frozen=True, kw_only=True):
    """One attempt's request, in no dialect yet. `options` are the target's with the call's laid over them.

    `messages` holds the conversation (a call's `input` is one user message), `instructions` the system text.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    instructions: str | None = None
    options: Options = Options()
    store: bool = False


class Started(Struct, frozen=True):
    """The upstream took the request (`response.created`, a role chunk). Not content: still retriable."""

    slot: int
    upstream_request_id: str | None = None
    model: str | None = None


class Content(Struct, frozen=True):
    """A piece of the answer; `text` is never empty."""

    slot: int
    text: str


class Ending(Struct, frozen=True):
    """The content is over; usage may still come. After `ENDING_GRACE` seconds ask `Codec.conclude`."""

    slot: int


class Finished(Struct, frozen=True, kw_only=True):
    """The answer ended as the dialect says it must. `usage` is None when the upstream gave none."""

    slot: int
    finish: Finish
    usage: Usage | None = None
    upstream_request_id: str | None = None
    model: str | None = None


class Faulted(Struct, frozen=True, kw_only=True):
    """The upstream said error. `slot` None: it concerns the connection, thus every call on it."""

    slot: int | None
    error: UpstreamError
    usage: Usage | None = None
    upstream_request_id: str | None = None


class Expiring(Struct, frozen=True):
    """The upstream will close this connection soon (vLLM's non-terminal `connection_expiring`)."""


Event: TypeAlias = Content | Started | Ending | Finished | Faulted | Expiring

#: What most frames give: nothing to act on.
NOTHING: Final[tuple[Event, ...]] = ()


class Codec(Protocol):
    """One connection's conversation in one dialect.

    A slot is a small integer, 0 .. slots-1: the place of one call on this connection. The caller says which slots
    are taken; frames that belong to no taken slot are told apart by the codec (see `decode`).
    """

    slots: int

    def encode(self, slot: int, prompt: Prompt) -> bytes:
        """The text frame that starts `prompt` in `slot`; from here the slot is taken.

        Raises:
            ValueError: the slot is taken already.
        """
        ...

    def decode(self, payload: bytes | memoryview) -> Sequence[Event]:
        """One text frame's payload -> its events, `NOTHING` for most metadata and unknown types.

        A slot is free again after its `Finished` or `Faulted`. Frames of a discarded slot give nothing, until its
        end, which gives `Finished` or `Faulted` as for any other (so that the slot can be used again).

        Raises:
            MalformedFrame: not JSON, not a map, a known type with fields of the wrong kind, content for a slot
                that no call holds. The connection cannot be trusted any more.
        """
        ...

    def decode_pass(self, payloads: Iterator[bytes | memoryview], texts: Sequence[list[str]]) -> Sequence[Event]:
        """THE HOT PATH: decode text frames up to the first that gives an event which is more than plain content.

        What plain content there is goes to the list of its slot, without an object per token. It came before the
        events that are returned, so it is handed on before them; after them `decode_pass` is called again with the
        same iterator, for the rest. Whatever is raised, the texts so far stand::

            payloads, texts = iter(frames), [[] for _ in range(codec.slots)]
            while events := codec.decode_pass(payloads, texts):
                ...  # hand on texts, clear them; then the events

        Args:
            payloads: what is left of a read.
            texts: a list per slot, appended to; none of the pieces is empty.

        Returns:
            the events, of which `Content` may be one; `NOTHING` when the payloads are exhausted.

        Raises:
            MalformedFrame: see `decode`.
        """
        ...

    def conclude(self, slot: int) -> Finished:
        """The `Finished` of a slot in `Ending` whose usage did not come in time. The slot is free again."""
        ...

    def discard(self, slot: int) -> None:
        """Nobody reads this slot any more: drop its content until its end. The slot stays taken till then."""
        ...


#: A JSON object as a Python value; used where a frame is built.
JsonObject: TypeAlias = dict[str, Any]


def decode_one(codec: Codec, payload: bytes | memoryview) -> tuple[Event, ...]:
    """`Codec.decode` by `Codec.decode_pass`: a read of one frame, its plain content as events."""
    texts: list[list[str]] = [[] for _ in range(codec.slots)]
    events = codec.decode_pass(iter((payload,)), texts)
    plain = (Content(slot, text) for slot, pieces in enumerate(texts) for text in pieces)
    return (*plain, *events)
