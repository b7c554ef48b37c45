"""What may befall a call over HTTP, where that is not what befalls it over a WebSocket: plays, as in `fates`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import trio

from sidecar.simulator import fates
from sidecar.simulator.act import Act
from sidecar.simulator.voices import FAULTS
from sidecar.simulator.voices.faults import PATIENT
from sidecar.simulator.web.reply import Reply
from sidecar.simulator.web.sse import COMMENT

Play: TypeAlias = Callable[[Act, Reply], Awaitable[None]]


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
        await _some(act)
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


async def _cut(act: Act, reply: Reply) -> None:
    del reply
    await fates.FATES["cut"](act)


async def _some(act: Act) -> None:
    await act.open()
    await act.tokens(act.after)


async def _stall(act: Act, reply: Reply) -> None:
    await _some(act)
    while True:
        await trio.sleep(act.behaviour.keepalive_s)
        reply.data(COMMENT)
        if reply.dialect == "messages":
            act.say(act.voice.metadata())


_PLAYS: Final[dict[str, Play]] = {
    **{name: partial(_error, name=name) for name in FAULTS},
    "error_after_created": partial(_error_within, tokens=False),
    "error_midway": partial(_error_within, tokens=True),
    "failed": _failed,
    "stall": _stall,
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
