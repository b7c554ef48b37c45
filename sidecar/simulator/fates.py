"""What may befall a call, by name: each fate is a short play on an `Act`.

A fate that returns has said a terminal (or an error), and the call counts as finished; one that ends the
connection is cut down with it; one that never returns waits for the client to go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from sidecar.simulator import frames
from sidecar.simulator.act import Act
from sidecar.simulator.voices import FAULTS
from sidecar.simulator.voices.faults import LIMIT_REACHED, PATIENT

_CHUNK: Final = 64 << 10
_FRAGMENT: Final = 1024
#: A delta in either dialect, its text not UTF-8: a client that judges UTF-8 by what it reads must look at it.
_BAD_UTF8: Final = (
    b'{"type":"response.output_text.delta","delta":"\xff\xfe\x80",'
    b'"choices":[{"index":0,"delta":{"content":"\xff\xfe\x80"},"finish_reason":null}]}'
)


async def ok(act: Act) -> None:
    """A healthy answer."""
    await act.open()
    await act.tokens()
    await act.end()


async def _reset(act: Act) -> None:
    act.line.reset()


async def _silent(act: Act) -> None:  # noqa: ARG001
    await trio.sleep_forever()


async def _silent_after_created(act: Act) -> None:
    act.say(*act.voice.created())
    await trio.sleep_forever()


async def _late(act: Act) -> None:
    act.later(act.behaviour.late_s)
    await ok(act)


async def some(act: Act) -> None:
    """A healthy answer up to the mishap."""
    await act.open()
    await act.tokens(act.after)


async def _cut(act: Act) -> None:
    await some(act)
    act.line.eof()


async def _cut_rst(act: Act) -> None:
    await some(act)
    await act.line.drained()
    act.line.reset()


async def _close(act: Act, code: int) -> None:
    if act.behaviour.after:
        await some(act)
    act.line.close(code, "simulated")


async def _stall(act: Act) -> None:
    await some(act)
    while True:
        await trio.sleep(act.behaviour.keepalive_s)
        act.line.raw(frames.frame(b"alive", frames.PING))
        act.say(act.voice.metadata())


async def _stall_silent(act: Act) -> None:
    await some(act)
    await trio.sleep_forever()


async def _inject(act: Act, make: Callable[[Act], bytes]) -> None:
    """Some tokens, bytes that no healthy server sends, and on as if nothing were."""
    await some(act)
    act.line.raw(make(act))
    await act.tokens()
    await act.end()


def _masked(act: Act) -> bytes:
    payload = act.voice.metadata()
    head = bytearray(frames.header(len(payload)))
    head[1] |= 0x80
    key = b"\x11\x22\x33\x44"
    return bytes(head) + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


async def _giant(act: Act) -> None:
    await some(act)
    size = act.behaviour.size_bytes
    marker = b"\x00GIANT"
    before, _, behind = act.voice.delta(marker).partition(marker)
    act.line.raw(frames.header(len(before) + size + len(behind) + 2) + before + b'"')
    for start in range(0, size, _CHUNK):
        await act.line.send_large(b"x" * min(_CHUNK, size - start))
    act.line.raw(b'"' + behind)
    await act.end()


async def _fragments(act: Act, payload: bytes) -> None:
    await some(act)
    act.line.raw(frames.frame(b'{"type":"', frames.TEXT, fin=False))
    one = frames.frame(payload, frames.CONTINUATION, fin=False)
    slab = one * (_CHUNK // len(one))
    for _ in range(max(1, act.behaviour.size_bytes // len(slab))):
        await act.line.send_large(slab)
    await trio.sleep_forever()


async def _flood(act: Act) -> None:
    await some(act)
    ping = frames.frame(bytes(125), frames.PING)
    for _ in range(max(1, act.behaviour.size_bytes // _CHUNK)):
        await act.line.send_large(ping * (_CHUNK // len(ping)))
    await act.tokens()
    await act.end()


async def _bomb(act: Act) -> None:
    await some(act)
    zeros, size = bytes(1 << 20), act.behaviour.size_bytes
    pieces = [act.line.deflate(zeros[: size - start]) for start in range(0, size, len(zeros))]
    act.line.raw(frames.frame(b"".join(pieces), frames.BINARY))
    await act.end()


async def _error(act: Act, name: str) -> None:
    await act.wait_first()
    act.say(act.voice.error(act.fault(FAULTS[name], patient=name in PATIENT)))


async def _error_after_created(act: Act) -> None:
    act.say(*act.voice.created())
    await _error(act, "error_500")


async def _error_midway(act: Act) -> None:
    await some(act)
    act.say(act.voice.error(act.fault(FAULTS["error_500"])))


async def _expired(act: Act) -> None:
    act.say(act.voice.error(LIMIT_REACHED))
    act.line.close(1000, "age limit")


async def _failed(act: Act) -> None:
    act.say(*act.voice.created())
    await act.wait_first()
    act.say(*act.voice.failed(act.fault(FAULTS["error_500"])))


async def _incomplete(act: Act, reason: str) -> None:
    await some(act)
    await act.end(reason)


async def _refusal(act: Act) -> None:
    act.say(*act.voice.created())
    await act.wait_first()
    act.say(*act.voice.refusal("I can't help with that.", act.usage))


async def _empty(act: Act) -> None:
    await act.open()
    await act.end("stop")


async def _usage_late(act: Act) -> None:
    await act.open()
    await act.tokens()
    await act.end(usage_late_s=act.behaviour.usage_late_s or 0.2)


async def _duplicate_terminal(act: Act) -> None:
    await act.open()
    await act.tokens()
    act.say(*await act.end())


async def _tokens_after_terminal(act: Act) -> None:
    await ok(act)
    act.say(act.voice.delta(b'" LATE"'), act.voice.delta(b'" TOKENS"'))


async def _interleave(act: Act, make: Callable[[Act], list[bytes]]) -> None:
    """Healthy, with other frames before, in the middle of and behind the tokens."""
    act.say(*act.voice.created(), *make(act), *act.voice.opening())
    await act.wait_first()
    await act.tokens(act.after)
    act.say(*make(act))
    await act.tokens()
    act.say(*make(act))
    await act.end()


async def _reasoning_first(act: Act) -> None:
    act.say(*act.voice.created())
    await act.wait_first()
    for frame in act.voice.reasoning(["The spread ", "is wide, ", "so BUY is out."]):
        act.say(frame)
        await trio.sleep(min(act.behaviour.cadence_s, act.behaviour.late_s))
    act.later(act.behaviour.late_s)
    act.say(*act.voice.opening())
    await act.wait_first()
    await act.tokens()
    await act.end()


async def _surrogate_split(act: Act) -> None:
    await act.open()
    await act.tokens()
    act.say(act.voice.delta(b'" \\ud83d"'), act.voice.delta(b'"\\ude80 to the moon"'))
    act.also(" \U0001f680 to the moon", 2)
    await act.end()


#: name -> play. `close_NNNN` is found by `fate`.
FATES: Final[dict[str, Callable[[Act], Awaitable[None]]]] = {
    "ok": ok,
    "reset": _reset,
    "silent": _silent,
    "silent_after_created": _silent_after_created,
    "slow_first": _late,
    "late": _late,
    "cut": _cut,
    "cut_rst": _cut_rst,
    "stall": _stall,
    "stall_silent": _stall_silent,
    "malformed": partial(_inject, make=lambda _: frames.frame(b'{"type":"response.output_text.delta","delta":oops')),
    "bad_utf8": partial(_inject, make=lambda _: frames.frame(_BAD_UTF8)),
    "masked_frame": partial(_inject, make=_masked),
    "binary_garbage": partial(_inject, make=lambda _: frames.frame(b"\x00garbage" * 8, frames.BINARY)),
    "giant_frame": _giant,
    "endless_fragments": partial(_fragments, payload=b"x" * _FRAGMENT),
    "empty_fragments": partial(_fragments, payload=b""),
    "zstd_bomb": _bomb,
    "flood": _flood,
    **{name: partial(_error, name=name) for name in FAULTS},
    "error_after_created": _error_after_created,
    "error_midway": _error_midway,
    "expired": _expired,
    "failed": _failed,
    "incomplete_length": partial(_incomplete, reason="length"),
    "incomplete_filter": partial(_incomplete, reason="content_filter"),
    "refusal": _refusal,
    "empty": _empty,
    "no_usage": ok,
    "no_done": ok,
    "usage_late": _usage_late,
    "duplicate_terminal": _duplicate_terminal,
    "tokens_after_terminal": _tokens_after_terminal,
    "unknown_events": partial(_interleave, make=lambda act: act.voice.unknown()),
    "stray": partial(_interleave, make=lambda act: [act.voice.stray()]),
    "empty_deltas": partial(_interleave, make=lambda act: [act.voice.delta(b'""')]),
    "reasoning_first": _reasoning_first,
    "surrogate_split": _surrogate_split,
    # what is of HTTP has its kin here
    "cut_clean": _cut,
    "goaway": ok,
    "goaway_now": _reset,
    "rst_stream": _cut_rst,
    "refused_stream": _reset,
    "json_error": partial(_error, name="error_500"),
    "packed": _reset,
    "endless_json": _reset,
    "endless_head": _reset,
    "linger": ok,
    "drip_head": _late,
}


def fate(name: str) -> Callable[[Act], Awaitable[None]]:
    """The play of that name.

    Raises:
        KeyError: no call scenario has that name.
    """
    if name.startswith("close_"):
        return partial(_close, code=int(name.removeprefix("close_")))
    return FATES[name]
