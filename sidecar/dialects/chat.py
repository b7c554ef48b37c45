"""Chat Completions chunks, over a WebSocket or over HTTP.

Of a relay's frames over a WebSocket no public description exists, so they are an assumption, stated as one: up goes the
body of `POST /v1/chat/completions` as one text frame, with an `id` of ours beside it; down come
`chat.completion.chunk` objects, bare, or as `{id, data: {chunk}}`, or with the `data: ` of an event stream before them,
and perhaps `[DONE]`. Over HTTP every answer has a body of its own: an id is held against what comes in it only
once two chunks in a row had the same one.

`finish_reason` ends the answer. Its usage may come with it, or in a chunk after it, or never: so an answer is in
`Ending` first, and `conclude` ends it without. What then still comes of it (usage, `[DONE]`) is known by the id of
the completion, or by coming before anything of the next answer, and is dropped.

With several slots, frames are told apart by our `id`, echoed in the envelope or as the chunk's own id.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Final

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
from sidecar.dialects.chat_frames import (
    DONE,
    FINISHES,
    Choice,
    Chunk,
    Frame,
    Head,
    error_of,
    lines_of,
    looks_like_chat,
    opens,
    plain_content,
    raw_content,
    read_frame,
    read_head,
    says_error,
)
from sidecar.dialects.chat_request import request_bytes
from sidecar.dialects.chat_slot import Slot
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.facts import Owners, filtered
from sidecar.dialects.text import REPLACEMENT, UNREADABLE, join, reread, typed
from sidecar.errors import MalformedFrame, UpstreamError

# ---------------------------------------------------------------------------------------------- one connection


class ChatCodec:
    """One connection's conversation, or one answer over HTTP. See `base.Codec`."""

    __slots__ = ("_live", "_named", "_orphans", "_over_http", "_owners", "_serial", "_slots", "slots")

    def __init__(self, slots: int = 1, *, over_http: bool = False) -> None:
        if slots < 1:
            raise ValueError("a connection carries at least one call")
        self.slots, self._over_http = slots, over_http
        self._slots = [Slot(index) for index in range(slots)]
        #: The fast path: id of a frame -> the slot whose content needs no second look.
        self._live: dict[str | None, Slot] = {}
        self._named: dict[str, Slot] = {}
        #: Discarded after their end: nobody asks for their `conclude`, so any next frame brings it.
        self._orphans: list[Slot] = []
        self._owners = Owners()
        self._serial = 0

    def __repr__(self) -> str:
        return f"<ChatCodec {sum(slot.taken for slot in self._slots)}/{self.slots} taken>"

    def encode(self, slot: int, prompt: Prompt) -> bytes:
        """See `base.Codec.encode`."""
        place = self._slots[slot]
        if place.taken:
            raise ValueError(f"slot {slot} is taken")
        serial = self._serial + 1
        name = f"s{slot}-{serial}"
        frame = request_bytes(None if self._over_http else name, prompt)
        place.reset(taken=True)
        self._serial = place.serial = serial
        place.name = name
        self._named[name] = place
        self._owners.declare(name, serial)
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
            else:
                slot = self._live.get(frame.id)
                text = plain_content(frame) if slot is not None else None
                if slot is not None and text:
                    texts[slot.index].append(text)
                    continue
                events = self._frame(frame, payload, None)
            if events:
                return events
        return NOTHING

    def conclude(self, slot: int) -> Finished:
        """See `base.Codec.conclude`.

        Raises:
            ValueError: the slot is not in `Ending`.
        """
        place = self._slots[slot]
        if place.finish is None:
            raise ValueError(f"slot {slot} is not ending")
        return self._finished(place)

    def discard(self, slot: int) -> None:
        """See `base.Codec.discard`; of a free slot: nothing. One in `Ending` is finished with any next frame."""
        place = self._slots[slot]
        if place.taken:
            place.discarded, place.half = True, ""
            self._quiet(place)
            if place.finish is not None:
                self._orphans.append(place)

    # ------------------------------------------------------------------ frames off the fast path

    def _odd(self, payload: bytes | memoryview, *, line: bool = False) -> tuple[Event, ...]:
        """What the strict reader refused: `[DONE]`, an event stream's lines, half a pair, a field of the wrong kind."""
        if payload[:7] == b"data: {" and b"\n" not in bytes(payload).rstrip():
            return self.decode(payload[6:])  # at most once, for now it begins with a brace
        try:
            text = bytes(payload).decode().strip()
        except UnicodeDecodeError:
            raise MalformedFrame("not UTF-8", close_code=1007) from None
        if text == DONE:
            return self._done(self._slots[0] if self.slots == 1 else None)
        if not line and text.startswith(("data:", "event:", ":")):
            return self._lines(text)
        value, clean = reread(payload)
        try:
            frame = read_frame(clean)
        except UNREADABLE:
            if self._concerns_us(value):
                raise MalformedFrame("a chunk with a field of the wrong kind") from None
            return NOTHING
        return self._frame(frame, clean, raw_content(value))

    def _lines(self, text: str) -> tuple[Event, ...]:
        """An event stream's lines in one frame: `data:` counts, `event:`, `id:` and comments do not."""
        events: list[Event] = []
        frame: Frame | None
        for line in lines_of(text):
            name, _, value = line.partition(":")
            if name == "data":
                payload = value.strip().encode()
                try:
                    frame = read_frame(payload)
                except UNREADABLE:
                    frame = None
                events += self._odd(payload, line=True) if frame is None else self._frame(frame, payload, None)
            elif name.strip() not in ("", "event", "id", "retry"):
                raise MalformedFrame("a line that is not of an event stream")
        return tuple(events)

    def _concerns_us(self, value: JsonObject) -> bool:
        """Whether a map that does not fit is a chunk or an error gone wrong, not some event unknown to us."""
        name = value.get("id")
        return looks_like_chat(value) or (isinstance(name, str) and self._owners.of(name) is not None)

    def _frame(self, frame: Frame, payload: bytes | memoryview, content: str | None) -> tuple[Event, ...]:
        """One frame, the whole way. `content` is the frame's own, where halves of pairs were cleaned out of it."""
        events = self._route(frame, payload, content)
        if self._orphans:
            orphans, self._orphans = self._orphans, []
            events += tuple(self._finished(slot) for slot in orphans if slot.discarded and slot.finish is not None)
        return events

    def _route(self, frame: Frame, payload: bytes | memoryview, content: str | None) -> tuple[Event, ...]:
        data = frame.data
        slot, late = self._slot(frame)
        if isinstance(data, str):
            if data == DONE:
                return self._done(slot)
            if frame.id and self._owners.of(frame.id) is not None:
                raise MalformedFrame("an envelope that holds no chunk")
            return NOTHING
        chunk = data if data is not None else frame
        if frame.error is not None or chunk.error is not None:
            return self._error(frame, chunk, payload, slot, late=late)
        if chunk.choices is None and says_error(payload):
            return self._error(frame, chunk, payload, slot, late=late)
        choice = next((choice for choice in chunk.choices or () if choice.index == 0), None)
        if choice is None:
            return self._usage_alone(slot, chunk)
        piece = choice.piece()
        if slot is None or slot.finish is not None:
            if piece.content or piece.refusal:
                raise MalformedFrame("content for no call, or after its end")
            return self._usage_alone(slot, chunk)
        return self._choice(slot, frame, chunk, choice, payload, content)

    def _slot(self, frame: Frame) -> tuple[Slot | None, bool]:
        """The taken slot a frame belongs to (None: no call holds it), and whether it is late, of an ended call."""
        name = frame.id
        if self.slots > 1:
            slot = self._named.get(name) if name is not None else None
            return slot, slot is None and self._owners.of(name) is not None
        only = self._slots[0]
        if self._over_http:
            return (only, False) if only.taken else (None, True)
        owner = self._owners.of(name)
        if not only.taken:
            return None, owner is not None
        if not name or owner == only.serial:
            return only, False
        if owner is not None:
            if only.started or frame.data is not None or not opens(frame):
                return None, True
            # A role chunk says aloud that an answer begins: a relay whose ids never change is believed.
            return only, False
        return (only if only.completion is None else None), False

    def _choice(
        self,
        slot: Slot,
        frame: Frame,
        chunk: Chunk,
        choice: Choice,
        payload: bytes | memoryview,
        content: str | None,
    ) -> tuple[Event, ...]:
        events: list[Event] = []
        piece = choice.piece()
        if slot.request_id is None and chunk.id and chunk.id != slot.name:
            slot.request_id = chunk.id
        if not slot.started:
            bare_end = choice.finish_reason and not (piece.content or piece.refusal)
            # Of an id that is not ours nothing is known yet: it may be the last call's, which never got that far.
            if bare_end and slot.serial > 1 and (not frame.id or frame.id != slot.name):
                raise MalformedFrame("an end that may be the last answer's")
            self._start(slot, payload, events)
        if frame.id and self._over_http:
            self._hold(slot, frame.id)
        elif frame.id and slot.completion is None:
            slot.completion = frame.id
            self._owners.declare(frame.id, slot.serial)
        if chunk.usage is not None:
            slot.usage = chunk.usage.facts()
        if piece.refusal:
            slot.refusal += piece.refusal
        text = piece.content if content is None else content
        if text and not slot.discarded:
            slot.seen = True
            given, slot.half = join(slot.half, text)
            if given:
                events.append(Content(slot.index, given))
        if choice.finish_reason:
            self._end(slot, choice.finish_reason, events)
        elif not slot.discarded and not slot.half and slot.seen:
            if slot.held or not (frame.id and self._over_http):
                self._live[frame.id] = slot
        else:
            self._quiet(slot)
        return tuple(events)

    def _hold(self, slot: Slot, name: str) -> None:
        """Over HTTP: hold a chunk's id to be this answer's, or raise, once two chunks have agreed.

        An answer is alone on its stream, but what stands between may mix up two. Some gateways give every chunk an id
        of its own; they are believed.
        """
        if slot.held and name != slot.completion:
            raise MalformedFrame("a chunk of another answer")
        slot.held = name == slot.completion
        slot.completion = name
        self._owners.declare(name, slot.serial)

    def _start(self, slot: Slot, payload: bytes | memoryview, events: list[Event]) -> None:
        head = typed(read_head, payload, "a chunk")
        inner = head.data if isinstance(head.data, Head) else head
        slot.started, slot.model = True, inner.model
        if not slot.discarded:
            events.append(Started(slot.index, slot.request_id, slot.model))

    def _end(self, slot: Slot, reason: str, events: list[Event]) -> None:
        """`finish_reason` came."""
        if slot.half:
            events.append(Content(slot.index, REPLACEMENT))
            slot.half = ""
        error: UpstreamError | None = None
        if reason == "content_filter" or slot.refusal:
            error = filtered(slot.refusal or "the upstream's content filter stopped the answer")
        elif reason not in FINISHES:
            error = UpstreamError(f"the answer ended with finish_reason {reason[:64]}", code=reason[:64])
        if error is not None:
            usage, request_id = slot.usage, slot.request_id
            self._release(slot)
            events.append(Faulted(slot=slot.index, error=error, usage=usage, upstream_request_id=request_id))
            return
        slot.finish = FINISHES[reason]
        self._quiet(slot)
        # Nobody waits for the usage of a discarded answer: its slot is worth more.
        events.append(self._finished(slot) if slot.usage is not None or slot.discarded else Ending(slot.index))

    def _usage_alone(self, slot: Slot | None, chunk: Chunk) -> tuple[Event, ...]:
        """A chunk with usage, maybe, and nothing else of interest."""
        if slot is None or chunk.usage is None:
            return NOTHING
        if not slot.started:
            return NOTHING  # before anything of this answer: the last one's, too late
        slot.usage = chunk.usage.facts()
        return NOTHING if slot.finish is None else (self._finished(slot),)

    def _done(self, slot: Slot | None) -> tuple[Event, ...]:
        if slot is None or not slot.taken:
            return NOTHING
        if slot.finish is not None:
            return (self._finished(slot),)
        if slot.seen:
            raise MalformedFrame("[DONE] before finish_reason: the answer is cut")
        return NOTHING  # the last answer's, too late

    def _error(
        self, frame: Frame, chunk: Chunk, payload: bytes | memoryview, slot: Slot | None, *, late: bool
    ) -> tuple[Event, ...]:
        error = error_of(frame, chunk, payload)
        taken = [each for each in self._slots if each.taken]
        if slot is None and not late and len(taken) == 1:
            slot = taken[0]  # the only call in flight: an error that names none is taken to be its own
        if late and slot is None:
            return NOTHING
        if slot is not None:
            events: list[Event] = [Content(slot.index, REPLACEMENT)] if slot.half else []
            usage, request_id = slot.usage, slot.request_id
            self._release(slot)
            return (*events, Faulted(slot=slot.index, error=error, usage=usage, upstream_request_id=request_id))
        events = [Content(each.index, REPLACEMENT) for each in self._slots if each.half]
        for each in self._slots:
            self._release(each)
        return (*events, Faulted(slot=None, error=error))

    # ------------------------------------------------------------------ the end of a call

    def _finished(self, slot: Slot) -> Finished:
        assert slot.finish is not None
        finished = Finished(
            slot=slot.index,
            finish=slot.finish,
            usage=slot.usage,
            upstream_request_id=slot.request_id,
            model=slot.model,
        )
        self._release(slot)
        return finished

    def _release(self, slot: Slot) -> None:
        self._quiet(slot)
        self._named.pop(slot.name, None)
        slot.reset(taken=False)

    def _quiet(self, slot: Slot) -> None:
        """Take the slot off the fast path."""
        for name in [name for name, live in self._live.items() if live is slot]:
            del self._live[name]


CHAT: Final = Dialect("chat", ChatCodec, functools.partial(ChatCodec, over_http=True))
