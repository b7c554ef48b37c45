"""The book of calls: each begins once and ends once, whichever way it came and whoever ended it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias

import trio
from msgspec import Struct, structs

from sidecar.simulator.act import Act, Line
from sidecar.simulator.behaviour import Behaviour
from sidecar.simulator.counters import Counters, Note, Stop, Way
from sidecar.simulator.metronome import Metronome
from sidecar.simulator.voices import ChatVoice, MessagesVoice, Request, ResponsesVoice, Voice

#: The second in which every answer was created: not the clock, for the same seed gives the same bytes.
BORN: Final = 1_790_000_000
End: TypeAlias = Literal["finished", "stopped", "cut"]


class Host(Protocol):
    """What a connection asks of the relay."""

    counters: Counters
    seed: int
    slots: int
    lanes: int
    mono_us: Callable[[], int]
    metronome: Metronome

    def next_call(self, group: str) -> int:
        """The number of a call that was just understood."""
        ...

    def next_fate(self, group: str) -> str:
        """What befalls it."""
        ...

    def digits(self, number: int) -> str:
        """32 hex digits, the same for the same seed and number."""
        ...


class Speaking(Protocol):
    """A connection past its door: a WebSocket or an HTTP one."""

    def serves(self, group: str) -> bool:
        """It came, or a request on it came, by that path."""
        ...

    def eof(self) -> None:
        """End it by FIN."""
        ...

    def reset(self) -> None:
        """End it by RST."""
        ...

    def close(self, code: int, reason: str = "") -> None:
        """End it as a service does that goes away."""
        ...


class Call(Struct, kw_only=True, eq=False):
    """One call from its request to its end. `over` once it was counted as ended; cancel `scope` to stop its answer."""

    name: str
    number: int
    group: str
    scenario: str
    way: Way
    started_us: int
    act: Act
    scope: trio.CancelScope
    over: bool = False


def begin(
    host: Host,
    line: Line,
    *,
    dialect: str,
    group: str,
    way: Way,
    request: Request,
    behaviour: Behaviour,
    named: str,
    request_id: str = "",
) -> Call:
    """Count and note a call that was understood; `named` is what befalls it."""
    counters, number = host.counters, host.next_call(group)
    name = behaviour.id or request.name or request.prompt[:80]
    counters.calls_started += 1
    counters.in_flight += 1
    counters.max_in_flight = max(counters.max_in_flight, counters.in_flight)
    counters.attempted(name)
    counters.scenarios[named] = counters.scenarios.get(named, 0) + 1
    if named == "no_usage":
        behaviour = structs.replace(behaviour, usage=False)
    elif named == "no_done":
        behaviour = structs.replace(behaviour, done=False)
    voice = _voice(dialect, request, host.digits(number), behaviour, request_id)
    dice = random.Random(host.seed * 1_000_003 + number)
    act = Act(line, request, voice, behaviour, dice, host.mono_us)
    now, scope = host.mono_us(), trio.CancelScope()
    call = Call(name=name, number=number, group=group, scenario=named, way=way, started_us=now, act=act, scope=scope)
    _note(host, call, "call", now)
    return call


def end(host: Host, call: Call, how: End, *, by_reset: bool = False) -> None:
    """Count and note its end; nothing when it had ended before. `by_reset`: the client stopped it by RST_STREAM."""
    if call.over:
        return
    call.over = True
    counters, now = host.counters, host.mono_us()
    counters.in_flight -= 1
    if how == "finished":
        counters.calls_finished += 1
    elif how == "cut":
        counters.calls_cut += 1
    else:
        counters.calls_stopped += 1
        counters.stream_resets += by_reset
        counters.stops.append(
            Stop(
                id=call.name,
                started_us=call.started_us,
                at_us=now,
                tokens=call.act.sent,
                way=call.way,
                by_reset=by_reset,
            )
        )
    _note(host, call, how, now)


def _note(host: Host, call: Call, event: Literal["call"] | End, now: int) -> None:
    host.counters.journal.append(Note(now, event, call.group, call.name, call.scenario, call.number, call.way))


def _voice(dialect: str, request: Request, digits: str, behaviour: Behaviour, request_id: str) -> Voice:
    if dialect == "responses":
        return ResponsesVoice(request, digits, BORN)
    if dialect == "messages":
        usage, done = behaviour.usage, behaviour.done
        return MessagesVoice(request, digits, BORN, usage=usage, done=done, request_id=request_id)
    return ChatVoice(request, digits, BORN, envelope=behaviour.envelope, done=behaviour.done)
