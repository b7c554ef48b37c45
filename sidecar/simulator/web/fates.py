"""What may befall a call over HTTP, where that is not what befalls it over a WebSocket: plays, as in `fates`."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import trio

from sidecar.simulator import fates
from sidecar.simulator.act import Act
from sidecar.simulator.fates import ok, some
from sidecar.simulator.voices import FAULTS
from sidecar.simulator.voices.faults import PATIENT
from sidecar.simulator.web.reply import Reply
from sidecar.simulator.web.sse import COMMENT, FRAMED

Play: TypeAlias = Callable[[Act, Reply], Awaitable[None]]

_SLAB: Final = 64 << 10
_EARLY: Final = b"HTTP/1.1 103 Early Hints\r\n\r\n"
#: What no server says, in place of a chunk and of a frame: a size that is none, or a WINDOW_UPDATE of a wrong length;
#: bytes without rhyme, in HTTP/2 as SETTINGS; a negative size, in HTTP/2 content for stream 0, which has none.
_GARBAGE: Final = {
    "masked_frame": (b"sixteen\r\nnonsense\r\n", b"\x00\x00\x07\x08\x00\x00\x00\x00\x00garbage"),
    "binary_garbage": (b"\x00\xff\xfe\x80" * 16, b"\x00\x00\x05\x04\x00\x00\x00\x00\x00" + b"\x00\xff\xfe\x80\x00"),
    "zstd_bomb": (b"-1\r\n\r\n", b"\x00\x00\x04\x00\x00\x00\x00\x00\x00oops"),
}


async def _error(act: Act, reply: Reply, name: str) -> None:
    """Before a stream has begun an error is a status."""
    await act.wait_first()
    reply.refuse(FAULTS[name], patient=name in PATIENT)


async def _error_within(act: Act, reply: Reply, *, tokens: bool) -> None:
    """An error event; what is not streamed has not begun, and fails by status."""
    fault = act.fault(FAULTS["error_529" if reply.dialect == "messages" else "error_500"])
    if not reply.stream:
        await act.wait_first()
        reply.refuse(fault)
    elif tokens:
        await some(act)
        act.say(act.voice.error(fault))
    else:
        act.say(*act.voice.created())
        await act.wait_first()
        act.say(act.voice.error(fault))


async def _failed(act: Act, reply: Reply) -> None:
    """Only `responses` has an answer that says of itself that it failed."""
    if reply.dialect == "responses":
        await fates.FATES["failed"](act)
    else:
        await _error_within(act, reply, tokens=False)


async def _json_error(act: Act, reply: Reply) -> None:
    await act.wait_first()
    reply.refuse(FAULTS["error_500"], status=200)


async def _packed(act: Act, reply: Reply) -> None:
    await act.wait_first()
    reply.packed(gzip.compress(bytes(act.behaviour.size_bytes), mtime=0))


async def _endless_json(act: Act, reply: Reply) -> None:
    await act.wait_first()
    await reply.endless_json(b" " * _SLAB, act.behaviour.size_bytes)
    await trio.sleep_forever()


async def _cut(act: Act, reply: Reply) -> None:
    await some(act)
    reply.eof()


async def _cut_clean(act: Act, reply: Reply) -> None:
    await some(act)
    reply.end_early()


async def _rst_stream(act: Act, reply: Reply) -> None:
    await some(act)
    await reply.drained()
    reply.pipe.abort()


async def _goaway(act: Act, reply: Reply) -> None:
    reply.pipe.last()
    await ok(act)


async def _unprocessed(act: Act, reply: Reply, *, stream: bool) -> None:
    del act
    reply.pipe.unprocessed(stream=stream)


async def _stall(act: Act, reply: Reply) -> None:
    await some(act)
    while True:
        await trio.sleep(act.behaviour.keepalive_s)
        reply.data(COMMENT)
        if reply.dialect == "messages":
            act.say(act.voice.metadata())


async def _linger(act: Act, reply: Reply) -> None:
    await ok(act)
    if reply.stream:
        await trio.sleep(act.behaviour.late_s)


async def _drip_head(act: Act, reply: Reply) -> None:
    await reply.begin_slowly(act.behaviour.late_s)
    await ok(act)


async def _inject(act: Act, reply: Reply, make: Callable[[Act], bytes]) -> None:
    """Some tokens, an event that no healthy server sends, and on as if nothing were."""
    await some(act)
    if reply.stream:
        act.say(make(act))
    await act.tokens()
    await act.end()


async def _garbage(act: Act, reply: Reply, name: str) -> None:
    await some(act)
    reply.raw(_GARBAGE[name][0 if reply.pipe.chunked else 1])
    await act.tokens()
    await act.end()


async def _giant(act: Act, reply: Reply) -> None:
    await some(act)
    marker = b"\x00GIANT"
    before, _, behind = act.voice.delta(marker).partition(marker)
    reply.data(reply.unended(before) + b'"')
    await _pour(act, reply, b"x")
    reply.data(b'"' + behind + b"\n\n")
    await act.end()


async def _endless(act: Act, reply: Reply, *, head: bytes, piece: bytes) -> None:
    """A line, or comments, without end; after size_bytes nothing."""
    await some(act)
    reply.data(head)
    await _pour(act, reply, piece)
    await trio.sleep_forever()


async def _pour(act: Act, reply: Reply, piece: bytes) -> None:
    slab, left = piece * (_SLAB // len(piece)), act.behaviour.size_bytes
    while left > 0:
        await reply.data_large(slab[:left])
        left -= len(slab)


async def _flood(act: Act, reply: Reply) -> None:
    """Heads that announce another head, before the answer; HTTP/2's pings, in the middle of it."""
    if not reply.pipe.chunked:
        await some(act)
    await _pour_raw(act, reply, _EARLY if reply.pipe.chunked else _frame(6, 0, b"flooding"))
    await act.open()
    await act.tokens()
    await act.end()


async def _endless_head(act: Act, reply: Reply) -> None:
    await act.wait_first()
    field = b"x-filler: and so on\r\n"
    if reply.pipe.chunked:
        reply.pipe.raw(b"HTTP/1.1 200 OK\r\n")
        await _pour_raw(act, reply, field)
    else:
        reply.pipe.raw(_frame(1, reply.pipe.number, b"\x88", flags=0))
        await _pour_raw(act, reply, _frame(9, reply.pipe.number, b"\x00\x08x-filler\x09and so on" * 64))
    await trio.sleep_forever()


async def _stray(act: Act, reply: Reply) -> None:
    """HTTP/2: the second answer of a connection has content for the first, which is over; later ones for nobody."""
    if reply.pipe.chunked:
        await fates.FATES["stray"](act)
        return
    await some(act)
    number = reply.pipe.number
    if number > 1:
        event = FRAMED[reply.dialect, False](act.voice.delta(b'" STRAY"'))
        reply.raw(_frame(0, 1 if number == 3 else number + 1, event))
    await act.tokens()
    await act.end()


def _frame(kind: int, number: int, payload: bytes, *, flags: int = 0) -> bytes:
    """HTTP/2's."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


async def _pour_raw(act: Act, reply: Reply, piece: bytes) -> None:
    slab = piece * max(1, _SLAB // len(piece))
    for _ in range(max(1, act.behaviour.size_bytes // len(slab))):
        reply.pipe.raw(slab)
        await reply.drained()


_PLAYS: Final[dict[str, Play]] = {
    **{name: partial(_error, name=name) for name in FAULTS},
    **{name: partial(_garbage, name=name) for name in _GARBAGE},
    "error_after_created": partial(_error_within, tokens=False),
    "error_midway": partial(_error_within, tokens=True),
    "failed": _failed,
    "json_error": _json_error,
    "packed": _packed,
    "endless_json": _endless_json,
    "endless_head": _endless_head,
    "flood": _flood,
    "stray": _stray,
    "cut_clean": _cut_clean,
    "rst_stream": _rst_stream,
    "goaway": _goaway,
    "goaway_now": partial(_unprocessed, stream=False),
    "expired": partial(_unprocessed, stream=False),
    "refused_stream": partial(_unprocessed, stream=True),
    "stall": _stall,
    "linger": _linger,
    "drip_head": _drip_head,
    "malformed": partial(_inject, make=lambda _: b'{"type":"response.output_text.delta","delta":oops'),
    "bad_utf8": partial(_inject, make=lambda act: act.voice.delta(b'"\xff\xfe\x80"')),
    "giant_frame": _giant,
    "endless_fragments": partial(_endless, head=b'data: {"type":"', piece=b"x"),
    "empty_fragments": partial(_endless, head=b":\n", piece=b":\n\n"),
}


async def play(name: str, act: Act, reply: Reply) -> None:
    """The fate of that name, as it is over HTTP.

    Raises:
        KeyError: no call scenario has that name.
    """
    if name.startswith("close_"):
        await _cut(act, reply)
    elif name in _PLAYS:
        await _PLAYS[name](act, reply)
    else:
        await fates.fate(name)(act)
