"""Anthropic's Messages API over HTTP: a stream of typed events, or one whole message.

Up: the body of `POST /v1/messages`. Its system text is a field beside the conversation, so messages of the roles
`system` and `developer` go there, after the instructions, wherever in the conversation they stood. `max_tokens` has to
be said. `temperature` goes up to 1 there, and newer models take neither it nor `top_p`, nor a conversation that ends
with the assistant's own words: all of it is sent as it is, and may be refused. There is nothing to say of storing.
The version spoken is 2023-06-01, which compatible servers know, too; the one after it, 2026-10-21, differs in what is
used here only in that it refuses `temperature` and `top_p` for every model.

Down: `message_start`, content blocks (of which only text is content: no thinking, no tool input, no citations),
`message_delta` with the reason why it stopped and the usage, `message_stop`. From the reason on an answer is in
`Ending`, so that one without a `message_stop` ends all the same. `pause_turn`, with which a turn of the service's own
tools wants to be continued, is an answer cut short (`length`): nobody here continues it. `refusal` is a fault, never an
answer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from sidecar.dialects import options as portable
from sidecar.dialects.base import (
    NOTHING,
    Content,
    Ending,
    Event,
    Faulted,
    Finished,
    JsonObject,
    Prompt,
    Started,
    decode_one,
)
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.facts import ErrorBody, filtered, upstream_error
from sidecar.dialects.messages_frames import (
    FINISHES,
    STATUSES,
    Counts,
    Frame,
    Request,
    Stop,
    read_block_start,
    read_error,
    read_frame,
    read_message,
    read_message_delta,
    read_message_start,
)
from sidecar.dialects.text import DONE, REPLACEMENT, UNREADABLE, join, reread, typed
from sidecar.errors import MalformedFrame, UpstreamError
from sidecar.wire import ChatMessage, Finish, Options, Usage

#: `max_tokens` where no option says it. A route's cap always does; this is for whoever uses a codec without a route.
DEFAULT_MAX_TOKENS: Final = 4096

_VERSION: Final = ("anthropic-version", "2023-06-01")
_DELTA: Final = "content_block_delta"
_KNOWN: Final = frozenset(
    {
        _DELTA,
        "message_start",
        "content_block_start",
        "message_delta",
        "message_stop",
        "message",
        "error",
        "",  # an error that does not say so
    }
)

_encode = msgspec.json.Encoder().encode


def _constants() -> JsonObject:
    return {"stream": True, "max_tokens": DEFAULT_MAX_TOKENS}


@functools.lru_cache(maxsize=256)
def _rest(options: Options) -> bytes:
    """The part of a request that is the same for every call with these options, encoded."""
    return _encode(portable.lay(_constants(), options, "messages"))


def _request(prompt: Prompt) -> Request:
    system = [] if prompt.instructions is None else [prompt.instructions]
    turns: list[ChatMessage] = []
    for turn in prompt.messages:
        if turn.role in ("system", "developer"):
            system.append(turn.content)
        else:
            turns.append(turn)
    return Request(model=prompt.model, system="\n\n".join(system) or None, messages=tuple(turns))


class MessagesCodec:
    """One answer over HTTP. See `base.Codec`."""

    __slots__ = (
        "_begun", "_counted", "_counts", "_discarded", "_finish", "_flowing", "_half", "_model", "_request_id",
        "_taken", "slots",
    )  # fmt: skip

    def __init__(self) -> None:
        self.slots = 1
        self._reset(taken=False)

    def __repr__(self) -> str:
        return f"<MessagesCodec {int(self._taken)}/1 taken>"

    def _reset(self, *, taken: bool) -> None:
        self._taken, self._discarded, self._begun = taken, False, False
        #: The fast path: what comes is content of an answer that has begun, and nothing is held back.
        self._flowing = False
        #: Set by the reason why it stopped: from there the answer is ending.
        self._finish: Finish | None = None
        self._half = ""
        self._request_id: str | None = None
        self._model: str | None = None
        #: Of the output only the end says how much it was.
        self._counts, self._counted = Counts(), False

    def encode(self, slot: int, prompt: Prompt) -> bytes:
        """See `base.Codec.encode`."""
        if slot != 0 or self._taken:
            raise ValueError(f"slot {slot} is taken, or not there: an answer over HTTP has slot 0 alone")
        request = _request(prompt)
        if portable.is_plain(prompt.options):
            body = _encode(request)[:-1] + b"," + _rest(prompt.options)[1:]
        else:  # `extra_body` may reach into any field
            fields: JsonObject = msgspec.to_builtins(request) | _constants()
            body = _encode(portable.lay(fields, prompt.options, "messages"))
        self._reset(taken=True)
        return body

    def decode(self, payload: bytes | memoryview) -> tuple[Event, ...]:
        """See `base.Codec.decode`."""
        return decode_one(self, payload)

    def decode_pass(self, payloads: Iterator[bytes | memoryview], texts: Sequence[list[str]]) -> Sequence[Event]:
        """See `base.Codec.decode_pass`."""
        for payload in payloads:
            try:
                frame = read_frame(payload)
            except UNREADABLE:
                frame = None
            if frame is None:
                events = self._odd(payload)
            elif frame.type == _DELTA:
                delta = frame.delta
                if delta is None or delta.type != "text_delta" or not delta.text:
                    continue
                if self._flowing:
                    texts[0].append(delta.text)
                    continue
                events = self._text(delta.text)
            elif frame.type in _KNOWN:
                events = self._other(frame.type, payload)
            else:
                continue
            if events:
                return events
        return NOTHING

    def conclude(self, slot: int) -> Finished:
        """See `base.Codec.conclude`.

        Raises:
            ValueError: the slot is not in `Ending`.
        """
        if slot != 0 or self._finish is None:
            raise ValueError(f"slot {slot} is not ending")
        return self._finished(self._finish)

    def discard(self, slot: int) -> None:
        """See `base.Codec.discard`; of a free slot: nothing."""
        if slot == 0 and self._taken:
            self._discarded, self._flowing, self._half = True, False, ""

    # ------------------------------------------------------------------ frames off the fast path

    def _odd(self, payload: bytes | memoryview) -> tuple[Event, ...]:
        """A frame the strict reader refused: half a pair somewhere, a field of the wrong kind, or no JSON."""
        if bytes(payload[:8]).strip() == DONE:  # of gateways that end every stream with it
            return NOTHING if self._finish is None else self._stop()
        value, clean = reread(payload)
        kind = value.get("type", "")
        if not isinstance(kind, str):
            raise MalformedFrame("an event whose type is not a string")
        if kind not in _KNOWN:
            return NOTHING
        if kind != _DELTA:
            return self._other(kind, clean)
        frame: Frame = typed(read_frame, clean, kind)
        if frame.delta is None or frame.delta.type != "text_delta":
            return NOTHING
        return self._text(value["delta"].get("text"))

    def _other(self, kind: str, payload: bytes | memoryview) -> tuple[Event, ...]:
        if kind == "content_block_start":
            block = typed(read_block_start, payload, kind).content_block
            return self._text(block.text) if block.type == "text" else NOTHING
        if kind == "message_start":
            return self._start(payload)
        if kind == "message_delta":
            return self._delta(payload)
        if kind == "message_stop":
            return self._stop()
        return self._whole(payload) if kind == "message" else self._error(kind, payload)

    def _text(self, text: str | None) -> tuple[Event, ...]:
        """A piece that needs a look: the first, one beside half a pair, one nobody wants."""
        if not text:
            return NOTHING
        if not self._begun or self._finish is not None:
            raise MalformedFrame("content for no call, before its message_start, or after its end")
        if self._discarded:
            return NOTHING
        given, self._half = join(self._half, text)
        self._flowing = not self._half
        return (Content(0, given),) if given else NOTHING

    def _start(self, payload: bytes | memoryview) -> tuple[Event, ...]:
        message = typed(read_message_start, payload, "message_start").message
        if not self._taken:
            return NOTHING
        if self._begun:
            raise MalformedFrame("a second message in one answer")
        return self._begin(message.id, message.model, message.usage)

    def _begin(self, request_id: str | None, model: str | None, counts: Counts | None) -> tuple[Event, ...]:
        self._begun, self._request_id, self._model = True, request_id, model
        self._counts = counts or Counts()
        return NOTHING if self._discarded else (Started(0, request_id, model),)

    def _delta(self, payload: bytes | memoryview) -> tuple[Event, ...]:
        """`message_delta`: the usage so far, and at the end the reason for it."""
        message = typed(read_message_delta, payload, "message_delta")
        if not self._begun:
            return NOTHING
        self._count(message.usage)
        if message.delta.stop_reason is None or self._finish is not None:
            return NOTHING
        return self._end(message.delta.stop_reason, message.delta)

    def _count(self, counts: Counts | None) -> None:
        if counts is not None:
            self._counts = self._counts.later(counts)
            self._counted = self._counted or counts.output_tokens is not None

    def _end(self, reason: str, stop: Stop) -> tuple[Event, ...]:
        """It stopped, for this reason."""
        self._flowing = False
        half: tuple[Event, ...] = (Content(0, REPLACEMENT),) if self._half else NOTHING
        self._half = ""
        if reason not in FINISHES:
            return (*half, self._faulted(_unanswered(reason, stop)))
        self._finish = FINISHES[reason]
        # Nobody waits for the end of a discarded answer.
        return (*half, self._finished(self._finish) if self._discarded else Ending(0))

    def _stop(self) -> tuple[Event, ...]:
        """`message_stop`."""
        if self._finish is not None:
            return (self._finished(self._finish),)
        if self._begun:
            raise MalformedFrame("message_stop before a stop_reason: the answer is cut")
        return NOTHING

    def _whole(self, payload: bytes | memoryview) -> tuple[Event, ...]:
        """A message that was not streamed."""
        message = typed(read_message, payload, "a message")
        if not self._taken:
            return NOTHING
        if self._begun or message.stop_reason is None:
            raise MalformedFrame("a message in the middle of one, or one that has not ended")
        events = self._begin(message.id, message.model, None)
        self._count(message.usage)
        events += self._text("".join(block.text or "" for block in message.content or () if block.type == "text"))
        events += self._end(message.stop_reason, Stop(message.stop_reason, message.stop_details))
        return (*(event for event in events if type(event) is not Ending), *self._stop())

    def _error(self, kind: str, payload: bytes | memoryview) -> tuple[Event, ...]:
        read = typed(read_error, payload, "an error")
        if not kind and read.error is None:
            raise MalformedFrame("an event without a type")
        if not self._taken:
            return NOTHING
        if read.status is None and isinstance(read.error, ErrorBody):
            read = msgspec.structs.replace(read, status=STATUSES.get(read.error.type or ""))
        error = upstream_error(read)
        half: tuple[Event, ...] = (Content(0, REPLACEMENT),) if self._half else NOTHING
        return (*half, self._faulted(error))

    # ------------------------------------------------------------------ the end of a call

    def _usage(self) -> Usage | None:
        return self._counts.facts() if self._counted else None

    def _finished(self, finish: Finish) -> Finished:
        finished = Finished(
            slot=0, finish=finish, usage=self._usage(), upstream_request_id=self._request_id, model=self._model
        )
        self._reset(taken=False)
        return finished

    def _faulted(self, error: UpstreamError) -> Faulted:
        faulted = Faulted(slot=0, error=error, usage=self._usage(), upstream_request_id=self._request_id)
        self._reset(taken=False)
        return faulted


def _unanswered(reason: str, stop: Stop) -> UpstreamError:
    """What is wrong with an answer that stopped for a reason that is no end of one."""
    if reason == "refusal":
        why = stop.stop_details.explanation if stop.stop_details is not None else None
        return filtered(why or "the model, or a filter before it, refused")
    return UpstreamError(f"the answer ended with stop_reason {reason[:64]}", code=reason[:64])


MESSAGES: Final = Dialect("messages", None, MessagesCodec, headers=(_VERSION,), credential_header=("x-api-key", ""))
