"""Where the CPU of a short call goes inside the daemon: microseconds per stage, in one process, without sockets.

The daemon's own objects, from the bots' port to the connections, are driven by hand on the real clock: 32 calls in,
their answers frame by frame, terminals out. A stage is a function (`STAGES`) that is timed from outside; what another
stage does inside it is that one's. What the timing itself costs is measured and taken off. What is left over, the code
between the stages, is `glue`; `whole` is the CPU time of the same run without any timing.

Not in it: Trio, ZeroMQ, TCP, WebSocket frames, the kernel, the write of the log line. `short_call.py` has all of it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import itertools
import json
import math
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

#: Calls in flight at once.
CALLS: Final = 32
#: Sockets that are found readable together, of so many.
READS_IN_A_PASS: Final = 4
PROMPT: Final = "Answer with one word, buy, sell or hold. " + "The central bank left its rate unchanged. " * 6

#: stage -> the functions that are it, `module:attribute` under `sidecar`
STAGES: Final[dict[str, tuple[str, ...]]] = {
    "intake: read a call": ("service.intake:read",),
    "frontend: peers, reply": ("service.frontend:Frontend._take",),
    "submit: deadline, policy, accepted": ("service.dispatcher:Dispatcher.submit",),
    "examine: route, options": ("service.dispatcher:examine",),
    "admission": ("core.admission:Admission.offer", "core.admission:Admission.leave"),
    "running call: made": ("service.running_call:RunningCall.__init__",),
    "call policy": tuple(
        f"core.call:Call.{name}"
        for name in ("__init__", "admitted", "candidates", "started", "content", "finished", "next_wakeup_at", "end")
    ),
    "call id": ("service.dispatcher:Dispatcher._new_call_id",),
    "seek: candidates, lease, permit": ("service.running_call:seek",),
    "start: attempt, budget": ("service.running_call:RunningCall.start",),
    "connection: slots": ("service.connection:Connection.start",),
    "codec: encode": ("dialects.responses:ResponsesCodec.encode", "dialects.chat:ChatCodec.encode"),
    "pool: lease, free slots, poke": (
        "service.pool:Pool.lease",
        "service.pool:Pool.leased",
        "service.pool:Pool._changed",
        "service.pool:Pool.poke",
    ),
    "parking": ("service.parking:Parking.on_capacity", "service.parking:Parking.unpark"),
    "clocks: arm": ("service.clocks:Clocks.arm",),
    "receive: hand on": ("service.websocket_connection:WebSocketConnection.receive",),
    "codec: decode": ("dialects.responses:ResponsesCodec.decode_pass", "dialects.chat:ChatCodec.decode_pass"),
    "first content": ("service.running_call:RunningCall.first_content",),
    "record: breaker": ("service.dispatcher:Dispatcher.record",),
    "finish: terminal, timing": ("service.dispatcher:Dispatcher.finish_done", "service.dispatcher:Dispatcher._finish"),
    "accounting: metrics": (
        "service.accounting:Accounting.call_ended",
        "service.accounting:Accounting.attempt_ended",
    ),
    "log line": ("logs:Sink.write", "service.accounting:log_call", "service.accounting:CallLine", "LOG"),
    "flush: encode, array": ("service.frontend:Frontend.flush",),
}  # fmt: skip


class _Port:
    """A bot port that takes from a queue and throws away."""

    def __init__(self) -> None:
        self.inbox: deque[Any] = deque()
        self.sent = 0

    def receive_now(self, limit: int) -> list[Any]:
        return [self.inbox.popleft() for _ in range(min(limit, len(self.inbox)))]

    def departures(self) -> list[bytes]:
        return []

    def send(self, routing_id: bytes, payload: bytes, envelope: tuple[bytes, ...] = ()) -> Any:
        from sidecar.transport.bot_port import Sent

        self.sent += 1
        return Sent.SENT

    def settle(self) -> None:
        pass


class _Socket:
    """A WebSocket that is always ready."""

    parting = False

    def __init__(self) -> None:
        self.frame = b""

    def send(self, slot: int, frame: bytes) -> None:
        self.frame = frame

    def abort(self) -> None:
        raise AssertionError("a connection was given up")


def frames_of(dialect: str, number: int, name: str) -> list[list[bytes]]:
    """The answer in four reads: what comes before the text, the two tokens, the end."""
    if dialect == "chat":
        base: dict[str, Any] = {"id": name, "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return {**base, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

        usage = {"prompt_tokens": 80, "completion_tokens": 2, "total_tokens": 82}
        events = [
            [chunk({"role": "assistant", "content": ""})],
            [chunk({"content": "sell"})],
            [chunk({"content": "."})],
            [chunk({}, "stop"), {**base, "choices": [], "usage": usage}],
        ]
        return [[json.dumps(event).encode() for event in read] for read in events]
    item, response = f"msg_{number}", {"id": f"resp_{number}", "model": "gpt-5-mini", "status": "in_progress"}
    usage = {"input_tokens": 80, "output_tokens": 2, "total_tokens": 82}
    delta = {"type": "response.output_text.delta", "item_id": item, "output_index": 0, "content_index": 0}
    events = [
        [
            {"type": "response.created", "response": response},
            {"type": "response.in_progress", "response": response},
            {"type": "response.output_item.added", "output_index": 0, "item": {"id": item, "type": "message"}},
            {"type": "response.content_part.added", "item_id": item, "part": {"type": "output_text", "text": ""}},
        ],
        [{**delta, "delta": "sell"}],
        [{**delta, "delta": "."}],
        [
            {"type": "response.output_text.done", "item_id": item, "text": "sell."},
            {"type": "response.content_part.done", "item_id": item},
            {"type": "response.output_item.done", "item": {"id": item, "type": "message", "status": "completed"}},
            {"type": "response.completed", "response": {**response, "status": "completed", "usage": usage}},
        ],
    ]
    return [[json.dumps(event).encode() for event in read] for read in events]


class House:
    """A daemon whose sockets are replaced; `round()` takes 32 calls from their prompt to their terminal."""

    def __init__(
        self, dialect: str, *, log_calls: bool = True, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        from sidecar import logs
        from sidecar.config import Config, Log, Route, Target, Upstream
        from sidecar.daemon import Daemon

        logs.configure(Log(calls=log_calls, format="json"), environ={}, descriptor=os.open(os.devnull, os.O_WRONLY))
        self.port = _Port()
        connections: dict[str, Any] = {"warm_connections": CALLS, "max_connections": CALLS}
        self.daemon = Daemon(
            Config(
                upstream=[Upstream(name="sim", url="wss://sim.test/v1", dialect=dialect, **connections)],  # type: ignore[arg-type]
                route=[Route(name="default", targets=[Target(upstream="sim", model="gpt-5-mini")])],
            ),
            self.port,  # type: ignore[arg-type]
            environ={},
            dial=lambda _: None,  # type: ignore[arg-type,return-value]
            clock=lambda: clock_ns() / 1e9,
            mono_us=lambda: clock_ns() // 1000,
            wall_us=lambda: clock_ns() // 1000,
            dice=random.Random(1),
            session="stages",
        )
        pool = self.daemon.pools["sim"]
        now = clock_ns() / 1e9
        self._clock_ns = clock_ns
        self.connections: list[Any] = []
        for _ in range(CALLS):
            connection = pool._new_connection(now)
            connection.opened(_Socket(), now)  # type: ignore[arg-type]
            self.connections.append(connection)
        self._by_pump = "binary" in inspect.signature(self.connections[0].receive).parameters
        self._flush = pool._outbound.flush
        self._dialect = dialect
        self._number = 0
        self._say({"type": "hello", "batch": True}, met=False)
        self.daemon.frontend.glance()

    def _say(self, message: dict[str, Any], *, met: bool = True) -> None:
        import msgspec

        from sidecar.transport.bot_port import Incoming

        address = None if met else "localhost:1000:1000:4711"
        self.port.inbox.append(Incoming(b"\0bot1", (), msgspec.msgpack.encode(message), address))

    def prepare(self) -> list[list[tuple[Any, list[Any]]]]:
        """Queue the prompts of a round; returns the reads that will answer them, wave by wave."""
        waves: list[list[tuple[Any, list[Any]]]] = [[], [], [], []]
        for connection in self.connections:
            self._number += 1
            self._say({
                "type": "call", "id": f"c{self._number}", "input": PROMPT, "timeout_ms": 20_000,
                "sent_mono_us": self._clock_ns() // 1000,
            })  # fmt: skip
            for wave, read in zip(waves, frames_of(self._dialect, self._number, f"x{self._number}"), strict=True):
                wave.append((connection, list(read) if self._by_pump else [(1, frame) for frame in read]))
        return waves

    def round(self, waves: list[list[tuple[Any, list[Any]]]]) -> None:
        """Prompts in, answers in, terminals out."""
        frontend, port = self.daemon.frontend, self.port
        while port.inbox:
            frontend.glance()
        for wave in waves:
            for number, (connection, read) in enumerate(wave, 1):
                if not self._by_pump:
                    connection.receive(read)
                    continue
                connection.receive(read, [], self._clock_ns() / 1e9)
                if number % READS_IN_A_PASS == 0:
                    self._flush()


class _Timer:
    """Own time of the stage on top of a stack; entering one stops the one below."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.entered: dict[str, int] = {}
        self._stack: list[str] = []
        self._since = 0

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent, entered, stack, clock = self.spent, self.entered, self._stack, time.perf_counter_ns
        spent.setdefault(stage, 0)
        entered.setdefault(stage, 0)

        @functools.wraps(function)
        def timed(*args: Any, **fields: Any) -> Any:
            now = clock()
            if stack:
                spent[stack[-1]] += now - self._since
            stack.append(stage)
            entered[stage] += 1
            self._since = clock()
            try:
                return function(*args, **fields)
            finally:
                now = clock()
                spent[stack.pop()] += now - self._since
                self._since = clock()

        return timed

    def forget(self) -> None:
        """Start at nothing again."""
        for stage in self.spent:
            self.spent[stage] = self.entered[stage] = 0


@contextmanager
def _timed(timer: _Timer, house: House) -> Iterator[None]:
    """Every stage's functions, timed; those that this tree does not have are left out."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for stage, places in STAGES.items():
            for place in places:
                if place == "LOG":
                    owner, name = house.daemon.dispatcher._accounting.log, "info"
                else:
                    module, _, path = place.partition(":")
                    owner = importlib.import_module(f"sidecar.{module}")
                    *outer, name = path.split(".")
                    for part in outer:
                        owner = getattr(owner, part, None)
                    if path.endswith("_new_call_id"):
                        owner = house.daemon.dispatcher
                if not hasattr(owner, name):
                    continue
                found = getattr(owner, name)
                undo.append((owner, name, found if name in vars(owner) else None))
                setattr(owner, name, timer.wrap(stage, found))
        yield
    finally:
        for owner, name, before in undo:
            delattr(owner, name) if before is None else setattr(owner, name, before)


def measure_stages(rounds: int, *, dialect: str = "responses", log_calls: bool = True) -> dict[str, float]:
    """Microseconds per call by stage, `glue`, `sum`, and `whole` measured without any timing of stages."""
    house = House(dialect, log_calls=log_calls)
    for _ in range(5):
        house.round(house.prepare())
    whole: list[float] = []
    for _ in range(rounds):
        waves = house.prepare()
        began = time.thread_time_ns()
        house.round(waves)
        whole.append(time.thread_time_ns() - began)
    timer = _Timer()
    overhead = _overhead()
    timed_house = House(dialect, log_calls=log_calls)
    glue = timer.wrap("glue", timed_house.round)
    with _timed(timer, timed_house):
        for connection in timed_house.connections if not timed_house._by_pump else ():
            connection._decode = timer.wrap("codec: decode", connection._decode)  # a tree of before the pump
        seen: dict[str, list[float]] = {}
        for _ in range(rounds):
            glue(timed_house.prepare())
            for stage, times in timer.entered.items():
                seen.setdefault(stage, []).append(max(0.0, timer.spent[stage] - overhead * times))
            timer.forget()
    assert house.port.sent > 0
    stages = {stage: _undisturbed(several) for stage, several in seen.items() if any(several)}
    return {**stages, "sum": sum(stages.values()), "whole": _undisturbed(whole)}


def _undisturbed(of_rounds: list[float]) -> float:
    """Nanoseconds of whole rounds -> microseconds of one call, of the tenth's quickest: others use the machine, too."""
    return sorted(of_rounds)[len(of_rounds) // 10] / 1000 / CALLS


def count_calls(*, dialect: str = "responses", rounds: int = 3) -> dict[str, float]:
    """What the interpreter reports of one short call: calls of Python functions, and of built-in ones.

    The clock is a counter here, so that the figures are the same in every run; the fakes' own few calls are in them.
    """
    instants = itertools.count(1_000_000_000_000, 1_000)
    house = House(dialect, clock_ns=lambda: next(instants))
    house.round(house.prepare())
    counts = {"call": 0, "c_call": 0}

    def count(_: object, event: str, __: object) -> None:
        if event in counts:
            counts[event] += 1

    for _ in range(rounds):
        waves = house.prepare()
        sys.setprofile(count)
        house.round(waves)
        sys.setprofile(None)
    return {kind: number / rounds / CALLS for kind, number in counts.items()}


def _overhead() -> float:
    """Nanoseconds that the timing adds to a stage's own time: the least seen."""
    least = math.inf
    for _ in range(20):
        timer = _Timer()
        nothing = timer.wrap("nothing", lambda *_: None)
        for _ in range(1_000):
            nothing(1, 2)
        least = min(least, timer.spent["nothing"] / timer.entered["nothing"])
    return least


def main() -> int:
    """For another tree: `short_call_stages.py --root PATH --json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the tree to measure")
    parser.add_argument("--rounds", type=int, default=200, help="of 32 calls each")
    parser.add_argument("--dialect", choices=("responses", "chat"), default="responses")
    parser.add_argument("--no-log", action="store_true", help="as with [log] calls = false")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(options.root.resolve()))
    counts = count_calls(dialect=options.dialect)
    stages = measure_stages(options.rounds, dialect=options.dialect, log_calls=not options.no_log)
    if options.json:
        print(json.dumps({**stages, **counts}))
    else:
        print(f"calls of Python functions {counts['call']:.1f}, of built-in ones {counts['c_call']:.1f}")
        print("\n".join(f"{stage:<40} {us:8.2f}" for stage, us in stages.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
