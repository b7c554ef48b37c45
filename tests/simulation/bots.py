"""Simulated bots over a port in memory, and what each call was told.

A bot plays its plan and keeps a record per call. What it is told goes to `invariants.Watch` as it is sent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from sidecar.transport.bot_port import Sent
from sidecar.wire import Lane
from tests.fakes.bot_port import FakeBot, FakeBotPort
from tests.simulation.engine import Process

if TYPE_CHECKING:
    from tests.simulation.schedule import BotPlan, Step
    from tests.simulation.world import World

_from_json = msgspec.json.Decoder().decode
_from_msgpack = msgspec.msgpack.Decoder().decode


class CallRecord:
    """One call, as its bot knows it.

    Attributes:
        tag: names it in its prompt, so that upstreams' requests can be told apart.
        state: "sent", "accepted", "refused", "ended", "lost" (its connection went first).
        terminal: what ended or refused it.
        text: since the last restart; texts: of all starts.
    """

    __slots__ = (
        "accepted", "accepted_at", "bot", "call_id", "cancelled_at", "connection", "deadline_us", "ended_at", "fields",
        "id", "restarts", "sent_at", "seq", "state", "tag", "terminal", "text",
    )  # fmt: skip

    def __init__(self, bot: Bot, connection: Connection, name: str, tag: str, fields: dict[str, Any]) -> None:
        self.bot, self.connection, self.id, self.tag, self.fields = bot, connection, name, tag, fields
        self.sent_at = trio.current_time()
        self.state = "sent"
        self.accepted: dict[str, Any] | None = None
        self.accepted_at = 0.0
        self.deadline_us = 0
        self.call_id: str | None = None
        self.text: list[str] = []
        self.seq = self.restarts = 0
        self.terminal: dict[str, Any] | None = None
        self.ended_at: float | None = None
        self.cancelled_at: float | None = None

    def __repr__(self) -> str:
        return f"<{self.tag} {self.state}>"

    @property
    def lane(self) -> Lane:
        """Whose turn it has."""
        lane: Lane = self.fields.get("lane", "entry")
        return lane


class Connection:
    """One connection of a bot to one daemon."""

    def __init__(self, bot: Bot, fake: FakeBot) -> None:
        self.bot, self.fake = bot, fake
        #: by id, the calls without an answer yet, and those accepted
        self.asked: dict[str, deque[CallRecord]] = {}
        self.open: dict[str, CallRecord] = {}
        #: when it last refused to take a message, and whether it ever left some unread
        self.slow_at: float | None = None
        self.gone = False


class SimPort(FakeBotPort):
    """Decodes what is sent and shows it to the watch."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.connections: dict[bytes, Connection] = {}

    def send(self, routing_id: bytes, payload: bytes, envelope: tuple[bytes, ...] = ()) -> Sent:
        """See `BotPort`."""
        fake = self._bots.get(routing_id)
        if fake is None:
            return Sent.GONE
        connection = self.connections[routing_id]
        if fake.capacity is not None:
            if len(fake.inbox) >= fake.capacity:
                connection.slow_at = trio.current_time()
                self._world.counts["bot was full"] += 1
                return Sent.FULL
            fake.inbox.append((envelope, payload))
        decoded = _from_json(payload) if payload[:1] in (b"{", b"[") else _from_msgpack(payload)
        if isinstance(decoded, list):
            for message in decoded:
                self._world.watch.told(connection, message)
        else:
            self._world.watch.told(connection, decoded)
        return Sent.SENT

    def unread_bytes(self, routing_id: bytes) -> int:
        """See `BotPort`."""
        fake = self._bots.get(routing_id)
        if fake is None or not fake.inbox:
            return 0
        self.connections[routing_id].slow_at = trio.current_time()
        return sum(len(payload) for _, payload in fake.inbox)


class Bot:
    """Plays a plan."""

    def __init__(self, world: World, plan: BotPlan) -> None:
        self.world, self.plan = world, plan
        self.connection: Connection | None = None
        self.records: list[CallRecord] = []
        self.reads = True
        self.done = False
        self._encode = (msgspec.json if plan.encoding == "json" else msgspec.msgpack).Encoder().encode

    def life(self) -> Process:
        """The plan, step by step."""
        yield self.plan.starts_at
        if self.plan.capacity is not None:
            self.world.engine.start(self._read())
        for step in self.plan.steps:
            if step.after:
                yield step.after
            if self.connection is None and not self.connect():
                yield 0.05
                if not self.connect():
                    self.world.counts["step without a daemon"] += 1
                    continue
            self._do(step)
        self.done = True
        self.world.settled.set()

    def connect(self) -> bool:
        """Connect; False when nobody is there."""
        port = self.world.port
        if port is None:
            return False
        fake = port.connect(uid=self.plan.uid, pid=self.plan.pid, capacity=self.plan.capacity)
        self.connection = port.connections[fake.routing_id] = Connection(self, fake)
        if trio.current_time() >= self.world.calm_at:
            fake.capacity = None
        if self.plan.batch:
            self.send({"type": "hello", "name": f"bot {self.plan.number}", "batch": True})
        return True

    def disconnect(self) -> None:
        """The connection is gone: the daemon, or the bot itself, went away."""
        connection = self.connection
        if connection is None:
            return
        self.connection = None
        connection.gone = True
        for record in [*connection.open.values(), *(r for asked in connection.asked.values() for r in asked)]:
            record.state = "lost"
            record.ended_at = trio.current_time()
            self.world.watch.lost(record)
        connection.open.clear()
        connection.asked.clear()

    def send(self, message: Any) -> None:
        """One message."""
        assert self.connection is not None
        payload = message if isinstance(message, bytes) else self._encode(message)
        if self.plan.request:
            self.connection.fake.send(b"", payload)
        else:
            self.connection.fake.send(payload)

    def call(self, name: str, fields: dict[str, Any]) -> CallRecord:
        """Send a call."""
        connection = self.connection
        assert connection is not None
        tag = f"b{self.plan.number}.{len(self.records)}"
        fields = dict(fields)
        prompt = tag + " " + "x" * fields.pop("long", 0)
        late = fields.pop("late", None)
        if late is not None:
            fields["sent_mono_us"] = self.world.mono_us() - int(late * 1e6)
        record = CallRecord(self, connection, name, tag, fields)
        record.deadline_us = fields.get("sent_mono_us", self.world.mono_us()) + 1000 * fields.get("timeout_ms", 2000)
        self.records.append(record)
        self.world.records[tag] = record
        connection.asked.setdefault(name, deque()).append(record)
        if self.world.tracing:
            self.world.note(f"{tag} calls {name} {fields}")
        if getattr(self.world.port, "hushed", False):
            # The daemon is about to end: the bot's own system says that nobody has the message.
            connection.asked[name].pop()
            record.state, record.ended_at = "lost", record.sent_at
            self.world.counts["end never sent"] += 1
            return record
        self.send({"type": "call", "id": name, "input": prompt, **fields})
        return record

    def _do(self, step: Step) -> None:
        kind = step.do
        world = self.world
        world.counts["bot " + kind] += 1
        if kind == "call":
            self.call(f"c{len(self.records)}", step.call)
        elif kind == "leave":
            if world.tracing:
                world.note(f"bot {self.plan.number} leaves")
            assert self.connection is not None
            self.connection.fake.leave()
            self.disconnect()
        elif kind == "ping":
            self.send({"type": "ping", "nonce": self.plan.number})
        elif kind == "probe":
            self.send({"type": "probe"})
        elif kind == "garbage":
            self.send([b"{", b"\xc1", b"{}", b'{"type":"call","id":"g","input":1}', b"[]"][step.which % 5])
        elif kind in ("stop", "read"):
            self.reads = kind == "read"
        elif self.records:
            record = self.records[-1 - step.which % len(self.records)]
            if kind == "cancel" and self.plan.request:
                self.send({"type": "ping"})  # a REQ cannot cancel: that would ask for a reply of its own
            elif kind == "cancel":
                for other in self.records:  # an id may have been used again
                    if other.id == record.id and other.cancelled_at is None:
                        other.cancelled_at = trio.current_time()
                self.send({"type": "cancel", "id": record.id})
            elif record.state != "sent":  # duplicate, or an id used again
                self.call(
                    record.id, {"timeout_ms": 300, "lane": "entry", **({"stream": False} if self.plan.request else {})}
                )

    def _read(self) -> Process:
        while True:
            calm = trio.current_time() >= self.world.calm_at
            if (self.reads or calm) and self.connection is not None:
                self.connection.fake.take()
            if calm and self.done and not any(record.state in ("sent", "accepted") for record in self.records):
                return
            yield min(self.plan.reads_every, 0.02) if calm else self.plan.reads_every
