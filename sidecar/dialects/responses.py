"""The Responses API, over a WebSocket (OpenAI's mode; Azure, xAI, Vercel's gateway, LiteLLM and vLLM) or over HTTP.

Up: one `response.create` per call. Down: typed events; the ones that matter are `response.output_text.delta` and
exactly one of `response.completed`, `response.incomplete`, `response.failed` or `error`. There is no cancel.

With several slots a connection multiplexes by `stream_id`, from a fixed set of names (services allow 32 per socket in
its whole life). With one slot no `stream_id` is sent, and the call in flight owns every frame, except those that can
be told to belong to an ended call: text of an old call never reaches a new one.

Over HTTP every answer has a body of its own, so whatever comes in it is the answer's: no id is held against it (there
are gateways that make up new ones on the way). The request is the POST's body, with `stream`.
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
    Event,
    Expiring,
    Faulted,
    Finished,
    JsonObject,
    Prompt,
    Started,
    decode_one,
)
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.facts import ErrorBody, ErrorFrame, Owners, filtered, upstream_error
from sidecar.dialects.responses_frames import (
    Body,
    Frame,
    Incomplete,
    Named,
    Request,
    Response,
    output_of,
    read_created,
    read_error,
    read_frame,
    read_item_added,
    read_refusal_done,
    read_response,
    read_terminal,
    read_text_done,
    read_whole,
)
from sidecar.dialects.responses_slot import CLOSED, Slot
from sidecar.dialects.text import DONE, REPLACEMENT, UNREADABLE, join, reread, typed
from sidecar.errors import MalformedFrame, UpstreamError
from sidecar.wire import Finish, Options

#: `stream_id`s a service takes on one socket (OpenAI's limit).
MAX_SLOTS: Final = 32

_TEXT: Final = "response.output_text.delta"
_TERMINALS: Final = {f"response.{status}": status for status in ("completed", "incomplete", "failed")}
_CONNECTION_OVER: Final = "websocket_connection_limit_reached"
_EXPIRING: Final = "connection_expiring"

_encode = msgspec.json.Encoder().encode


def _constants(store: bool, over_http: bool) -> JsonObject:  # noqa: FBT001  (the key of a cache)
    streamed: JsonObject = {"stream": True} if over_http else {}
    return {"store": store, **streamed, "stream_options": {"include_obfuscation": False}}


@functools.lru_cache(maxsize=256)
def _rest(options: Options, store: bool, over_http: bool) -> bytes:  # noqa: FBT001
    """The part of a request that is the same for every call with these options, encoded."""
    return _encode(portable.lay(_constants(store, over_http), options, "responses"))


# ---------------------------------------------------------------------------------------------- one connection


class ResponsesCodec:
    """One connection's conversation, or one answer over HTTP. See `base.Codec`."""

    __slots__ = ("_announces", "_by_stream", "_over_http", "_owners", "_serial", "_slots", "slots")

    def __init__(self, slots: int = 1, *, over_http: bool = False) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise ValueError(f"a Responses connection carries 1 to {MAX_SLOTS} calls at once")
        self.slots, self._over_http = slots, over_http
        self._slots = [Slot(index, f"s{index}" if slots > 1 else None) for index in range(slots)]
        self._by_stream: dict[str | None, Slot] = {slot.name: slot for slot in self._slots}
        self._owners = Owners()
        self._serial = 0
        #: This server sends `response.created` before its text; learned from its first one.
        self._announces = False

    def __repr__(self) -> str:
        return f"<ResponsesCodec {sum(slot.taken for slot in self._slots)}/{self.slots} taken>"

    def encode(self, slot: int, prompt: Prompt) -> bytes:
        """See `base.Codec.encode`."""
        place = self._slots[slot]
        if place.taken:
            raise ValueError(f"slot {slot} is taken")
        request: Request | Body
        if self._over_http:
            request = Body(model=prompt.model, instructions=prompt.instructions, input=prompt.messages)
        else:
            request = Request(
                stream_id=place.name, model=prompt.model, instructions=prompt.instructions, input=prompt.messages
            )
        if portable.is_plain(prompt.options):
            frame = _encode(request)[:-1] + b"," + _rest(prompt.options, prompt.store, self._over_http)[1:]
        else:  # `extra_body` may reach into any field
            body: JsonObject = msgspec.to_builtins(request) | _constants(prompt.store, self._over_http)
            frame = _encode(portable.lay(body, prompt.options, "responses"))
        place.reset(taken=True)
        self._serial += 1
        place.serial = self._serial
        return frame

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
            elif frame.type == _TEXT:
                slot = self._by_stream.get(frame.stream_id)
                if slot is not None and frame.item_id == slot.item and frame.delta:
                    texts[slot.index].append(frame.delta)
                    continue
                events = self._text(frame, frame.delta)
            elif frame.type in _KNOWN:
                events = self._other(frame, payload)
            else:
                continue
            if events:
                return events
        return NOTHING

    def conclude(self, slot: int) -> Finished:
        """Never due: in this dialect an answer and its usage end in one frame."""
        raise ValueError(f"slot {slot} is not ending")

    def discard(self, slot: int) -> None:
        """See `base.Codec.discard`; of a free slot: nothing."""
        place = self._slots[slot]
        if place.taken:
            place.discarded, place.item, place.half = True, CLOSED, ""

    # ------------------------------------------------------------------ frames off the fast path

    def _odd(self, payload: bytes | memoryview) -> tuple[Event, ...]:
        """A frame the strict reader refused: half a pair somewhere, a field of the wrong kind, or no JSON."""
        if self._over_http and bytes(payload[:8]).strip() == DONE:  # of gateways that end every stream with it
            return NOTHING
        value, clean = reread(payload)
        kind = value.get("type", "")
        if not isinstance(kind, str):
            raise MalformedFrame("an event whose type is not a string")
        if kind not in _KNOWN:
            return NOTHING
        try:
            frame = read_frame(clean)
        except UNREADABLE:
            raise MalformedFrame(f"{kind or 'a frame'} with a field of the wrong kind") from None
        if kind == _TEXT:
            return self._text(frame, value.get("delta", ""))
        return self._other(frame, clean)

    def _other(self, frame: Frame, payload: bytes | memoryview) -> tuple[Event, ...]:
        kind = frame.type
        if kind in _TERMINALS:
            response = typed(read_terminal, payload, kind).response
            return self._terminal(_TERMINALS[kind], frame.stream_id, response)
        if kind in ("error", ""):
            return self._error(frame, payload) if kind else self._untyped(frame, payload)
        slot = self._slot(frame.stream_id)
        if kind == "response.created":
            created = typed(read_created, payload, kind)
            return NOTHING if slot is None else self._created(slot, created.response)
        if kind == "response.output_item.added":
            item = typed(read_item_added, payload, kind).item
            if slot is not None and item.type == "message" and item.id:
                # Said aloud to be this answer's: a server that counts its items from one each time is believed.
                slot.declared |= {item.id}
                self._owners.declare(item.id, slot.serial)
        elif kind == "response.output_text.done":
            text = typed(read_text_done, payload, kind).text
            if slot is not None and not slot.seen and not slot.discarded:
                slot.spare += text
        elif kind == "response.refusal.done":
            refusal = typed(read_refusal_done, payload, kind).refusal
            if slot is not None:
                slot.refusal = slot.refusal or refusal
        elif slot is not None:  # response.refusal.delta
            slot.refusal += frame.delta
        return NOTHING

    def _slot(self, stream_id: str | None) -> Slot | None:
        """The taken slot that a frame belongs to, None when no call holds it."""
        slot = self._by_stream.get(stream_id)
        if slot is None and self.slots == 1:
            only = self._slots[0]
            if only.taken and not only.announced and not only.seen and None in self._by_stream:
                # A server that labels its only stream unasked: its first frame says how, the others must agree.
                self._by_stream = {stream_id: only}
                slot = only
        return slot if slot is not None and slot.taken else None

    def _text(self, frame: Frame, delta: str) -> tuple[Event, ...]:
        """A delta that needs a look at its slot: the first of an item, one beside half a pair, one nobody wants."""
        if not delta:
            return NOTHING
        slot = self._slot(frame.stream_id)
        if slot is None:
            raise MalformedFrame("content for a slot that no call holds")
        if slot.discarded:
            return NOTHING
        if self._announces and not slot.announced:
            raise MalformedFrame("content before its response.created")
        item = frame.item_id
        if item:
            self._own(slot, item)
        slot.seen = True
        text, slot.half = join(slot.half, delta)
        slot.item = CLOSED if slot.half else item
        return (Content(slot.index, text),) if text else NOTHING

    def _own(self, slot: Slot, item: str) -> None:
        """Hold a delta's item to be this answer's, or raise.

        It is when it was added, or when it is the first and nobody else's. Once text has come, another item must have
        been added; and a server of which the first item was not among those added may not come back to them.
        Over HTTP an answer is alone on its stream: a server that has added no item may name each delta as it likes.
        """
        if item in slot.declared:
            if slot.first is not None and slot.first not in slot.declared:
                raise MalformedFrame("content of two answers")
            return
        owner = self._owners.of(item)
        if owner == slot.serial or (self._over_http and not slot.declared):
            return
        if owner is not None or (slot.seen and not slot.loose):
            raise MalformedFrame("content of another answer")
        slot.loose, slot.first = bool(slot.declared), item
        self._owners.declare(item, slot.serial)

    def _created(self, slot: Slot, response: Named) -> tuple[Event, ...]:
        if slot.announced and response.id == slot.response_id:
            return NOTHING
        if slot.seen:
            if self._over_http:
                return NOTHING
            raise MalformedFrame("a second response in the middle of one")
        self._announces = slot.announced = True
        slot.response_id, slot.model = response.id, response.model
        self._owners.declare(response.id, slot.serial)
        return NOTHING if slot.discarded else (Started(slot.index, response.id, response.model),)

    def _untyped(self, frame: Frame, payload: bytes | memoryview) -> tuple[Event, ...]:
        """An error that does not say so, or a whole response, of a server that was asked to stream and does not."""
        whole = typed(read_whole, payload, "a frame")
        if whole.object != "response":
            return self._error(frame, payload)
        if whole.status not in ("completed", "incomplete", "failed", "cancelled"):
            raise MalformedFrame("a response that has not ended")
        return self._terminal(whole.status, frame.stream_id, typed(read_response, payload, "a response"))

    def _terminal(self, kind: str, stream_id: str | None, response: Response) -> tuple[Event, ...]:
        output = output_of(response.output or [])
        slot = self._slot(stream_id)
        if slot is None or self._late(slot, response.id):
            return NOTHING
        self._owners.declare(response.id, slot.serial)
        # The answer is what `status` says, when the two disagree for the worse.
        status = response.status if response.status in ("incomplete", "failed", "cancelled") else kind
        usage = response.usage.facts() if response.usage is not None else None
        response_id = response.id or slot.response_id
        events: list[Event] = []
        text = "" if slot.seen or slot.discarded else output.text or slot.spare
        if text:
            events.append(Content(slot.index, text))
        error = _verdict(status, response, slot.refusal or output.refusal)
        finish: Finish = "length" if status == "incomplete" else "stop"
        if finish == "stop" and output.calls and not (slot.seen or output.text or slot.spare):
            finish = "tool_calls"
        model = response.model or slot.model
        self._release(slot, events)
        if error is not None:
            events.append(Faulted(slot=slot.index, error=error, usage=usage, upstream_request_id=response_id))
        else:
            events.append(
                Finished(slot=slot.index, finish=finish, usage=usage, upstream_request_id=response_id, model=model)
            )
        return tuple(events)

    def _late(self, slot: Slot, response_id: str | None) -> bool:
        """Whether a terminal is that of another answer. Raises when it can be neither that nor this one's."""
        if not response_id or self._over_http:
            return False
        if self._owners.of(response_id) not in (None, slot.serial):
            # Ids that repeat from a server that never announces them mean nothing once this answer has begun.
            return slot.announced or not slot.seen
        if slot.response_id and response_id != slot.response_id:
            raise MalformedFrame("the end of a response that never began")
        return False

    def _error(self, frame: Frame, payload: bytes | memoryview) -> tuple[Event, ...]:
        read = typed(read_error, payload, "an error")
        if not frame.type and read.error is None:
            raise MalformedFrame("an event without a type")
        error = upstream_error(read)
        if error.code == _EXPIRING:
            return (Expiring(),)
        slot = self._slot(frame.stream_id) or self._alone(frame.stream_id)
        ours = self.slots > 1 and frame.stream_id in self._by_stream
        if error.code == _CONNECTION_OVER or (slot is None and not ours):
            events: list[Event] = []
            for each in self._slots:
                self._release(each, events)
            return (*events, Faulted(slot=None, error=error))
        if slot is None:
            return NOTHING  # late, for a call that has ended
        response_id = slot.response_id
        events = []
        self._release(slot, events)
        return (*events, Faulted(slot=slot.index, error=error, upstream_request_id=response_id))

    def _alone(self, stream_id: str | None) -> Slot | None:
        """The only call in flight: an error that names no stream is taken to be its own."""
        taken = [slot for slot in self._slots if slot.taken]
        return taken[0] if stream_id is None and len(taken) == 1 else None

    def _release(self, slot: Slot, events: list[Event]) -> None:
        """Free the slot; half a pair still waiting is handed out as U+FFFD."""
        if slot.half:
            events.append(Content(slot.index, REPLACEMENT))
        slot.reset(taken=False)
        if self.slots == 1:
            self._by_stream = {None: slot}


_KNOWN: Final = frozenset(
    {
        _TEXT,
        *_TERMINALS,
        "error",
        "",  # an error that does not say so
        "response.created",
        "response.output_item.added",
        "response.output_text.done",
        "response.refusal.delta",
        "response.refusal.done",
    }
)


def _verdict(status: str, response: Response, refusal: str) -> UpstreamError | None:
    """What is wrong with an answer that ended so; None when it may be handed on."""
    if status in ("failed", "cancelled"):
        body = response.error if response.error is not None else ErrorBody(message=f"the response is {status}")
        return upstream_error(ErrorFrame(error=body))
    if status == "incomplete":
        details = response.incomplete_details or Incomplete()
        reason = details.reason or "incomplete"
        if reason == "content_filter":
            return filtered("the upstream's content filter stopped the answer")
        if reason != "max_output_tokens":
            return UpstreamError(f"the response ended incomplete: {reason}", code=reason)
    return filtered(refusal) if refusal else None


RESPONSES: Final = Dialect("responses", ResponsesCodec, functools.partial(ResponsesCodec, over_http=True))
