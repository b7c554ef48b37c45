"""The frontend: owns the bots' port, turns what they send into calls, and what is said back into messages.

Everything a bot may do wrong ends here: bad bytes, giant frames, floods, silence. What is refused is cheap and
bounded, and concerns nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import trio
from msgspec import Struct, structs

from sidecar import wire
from sidecar.service import intake
from sidecar.service.bot_peer import BotPeer
from sidecar.service.ports import CallHandler, Peer
from sidecar.service.reader_watch import ReaderWatch
from sidecar.service.reply import DELTA_OVERHEAD, WORST_CHARACTER, BotReply, in_ending_order
from sidecar.transport.bot_port import BotPort, Envelope, Incoming, Sent
from sidecar.wire import Call, Cancel, Encoding, Failed, Hello, Ping, Pong, Probe, Report, Welcome

#: Messages read at once: whoever comes next waits for all of them, and each may be an array of 256 maps.
RECEIVE_LIMIT: Final = 16
#: Maps after which a glance from within another task's step takes no further message; an array is taken whole.
GLANCE_LIMIT: Final = 4
#: Seconds between two looks whether all is said.
FAREWELL_INTERVAL: Final = 0.01
#: Connections of one uid that are heard; calls of any further one are refused.
MAX_CONNECTIONS_PER_UID: Final = 1024


class FrontendStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot. `merged_deltas` carried more than one piece; `congested` peers take nothing now."""

    peers: int
    congested: int
    in_flight: int
    calls_per_peer: list[tuple[int, int, int]]  # uid, pid, calls in flight
    messages_in: int
    messages_out: int
    merged_deltas: int
    refused: int
    dropped: int
    stalled_calls: int
    departed: int


class Frontend:
    """The loop that reads the bots, and the flush that answers them.

    Args:
        port: the bots' socket, or a fake.
        handler: takes the calls.
        session, version, limits, routes: what `welcome` says.
        clock: seconds, the loop's own (`trio.current_time`).
        mono_us, wall_us: CLOCK_MONOTONIC and wall clock in microseconds, for bots.
        report: the health snapshot; must not block.
        exit_reserved: places in flight that only exit calls may take.
        max_message_bytes: payloads over it are refused, deltas and arrays sent are cut to it.
        stall_timeout: seconds a bot may take nothing while something is in flight.
        jitter: uniform in [0, 1).

    Resource handling: owns no socket; whoever made the port closes it after `run` has ended.
    Cancellation: `run` ends at once; calls in flight are the dispatcher's to end.
    """

    def __init__(
        self,
        port: BotPort,
        handler: CallHandler,
        *,
        session: str,
        version: str,
        limits: wire.Limits,
        routes: Sequence[str],
        clock: Callable[[], float],
        mono_us: Callable[[], int],
        wall_us: Callable[[], int],
        report: Callable[[], Report],
        max_message_bytes: int,
        exit_reserved: int = 0,
        stall_timeout: float,
        jitter: Callable[[], float],
    ) -> None:
        self._port = port
        self._handler = handler
        self._session = session
        self._version = version
        self._limits = limits
        self._routes = list(routes)
        self._mono_us = mono_us
        self._wall_us = wall_us
        self._report = report
        self._max_message_bytes = max_message_bytes
        self._jitter = jitter
        self._cut = max(1, (max_message_bytes - DELTA_OVERHEAD) // WORST_CHARACTER)
        self._open_limit = limits.max_calls_in_flight + limits.queue_max
        # A bot that has filled everything with research is to have its exit call heard, which then takes a place of it.
        self._exit_limit = self._open_limit + max(1, exit_reserved)
        self._peers: dict[bytes, BotPeer] = {}
        self._connections: dict[int, int] = {}  # uid -> how many
        self._outbound: list[BotPeer] = []
        self._reported: Report | None = None
        self._watch = ReaderWatch(
            port, self._peers, clock=clock, stall_timeout=stall_timeout, depart=self._depart, flush=self.flush
        )
        self._taking = False  # a batch is under way, with a checkpoint in it
        self._messages_in = self._refused = self._departed = 0
        self._past_out = self._past_merged = self._past_dropped = 0

    def __repr__(self) -> str:
        return f"<Frontend peers={len(self._peers)} congested={self._watch.congested}>"

    # ------------------------------------------------------------------------------------------- loops

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.retry_loop)
            nursery.start_soon(self._watch.sample_loop)
            task_status.started()
            while True:
                # Always a checkpoint, so that a flood leaves every other task its turn.
                batch = await self._port.receive_batch(RECEIVE_LIMIT)
                self._messages_in += len(batch)
                self._taking = True
                taken = 0
                for incoming in batch:
                    taken += self._take(incoming)
                    if taken >= wire.MAX_BATCH:  # arrays: everybody else has a turn, and refusals leave
                        taken = 0
                        self.flush()
                        await trio.lowlevel.checkpoint()
                self._taking = False
                for routing_id in self._port.departures():
                    if peer := self._peers.get(routing_id):
                        self._depart(peer)
                self._watch.retry()
                self.flush()

    # ------------------------------------------------------------------------------------------- out

    def flush(self) -> None:
        """Send what the replies have gathered. See `ports.Outbound.flush`."""
        outbound = self._outbound
        if not outbound:
            return
        port = self._port
        for peer in outbound:  # grows while it is walked when a departure admits another call: that one is sent, too
            peer.touched = False
            if not peer.congested:
                result = peer.flush(port)
                if result is Sent.FULL:
                    self._watch.congest(peer)
                elif result is Sent.GONE:
                    self._depart(peer)
        outbound.clear()
        port.settle()

    async def farewell(self) -> None:
        """The end of a drain: hear bots out and answer, take nothing new, wait until what is said has left.

        So a bot's message is answered, or its send fails and it knows that nobody has it. Bounded by who calls.
        """
        self.flush()
        while not self._port.hush() or self._taking or self._watch.congested:
            await trio.sleep(FAREWELL_INTERVAL)

    # ------------------------------------------------------------------------------------------- in

    def glance(self) -> None:
        """Take a few messages from within another task's step, when the loop's round is long. See `turn`."""
        if self._taking:
            return  # some are being taken: what comes after them must stay after them
        taken = 0
        while taken < GLANCE_LIMIT and (batch := self._port.receive_now(1)):
            self._messages_in += 1
            taken += max(1, self._take(batch[0]))
        if taken:
            self.flush()
        self._port.settle()

    def _take(self, incoming: Incoming) -> int:
        """Serve one payload. Returns how many maps it had."""
        peer = self._peers.get(incoming.routing_id)
        if peer is None:
            if incoming.peer_address is None:
                return 0  # we saw it go before the port did
            peer = self._meet(incoming)
        self._reported = None
        envelope = incoming.envelope
        encoding, items, batch = intake.read(incoming.payload, max_message_bytes=self._max_message_bytes)
        if batch and envelope:
            items = [
                intake.Item(intake.refusal("invalid_request", "a REQ gets one reply: send one map, not an array"), [])
            ]
        for message, ignored in items:
            if isinstance(message, Call):
                self._call(peer, encoding, envelope, message, ignored)
            elif isinstance(message, Failed):
                self._refuse(peer, encoding, envelope, message)
            else:
                self._serve(peer, encoding, envelope, message)
        return len(items)

    def _serve(
        self, peer: BotPeer, encoding: Encoding, envelope: Envelope, message: Cancel | Hello | Ping | Probe
    ) -> None:
        if isinstance(message, Cancel):
            if envelope:  # the one reply it is owed, and cannot be the terminal of another request
                problem = (
                    "cancel: has no reply of its own, so a REQ cannot send it; use a DEALER, or a shorter timeout_ms"
                )
                self._refuse(peer, encoding, envelope, intake.refusal("invalid_request", problem, name=message.id))
            else:
                self._cancel(peer, message)
        elif isinstance(message, Hello):
            label = "".join(character for character in message.name if character.isprintable())
            peer.identity = structs.replace(peer.identity, label=label)
            peer.batch = message.batch
            welcome = Welcome(
                version=self._version,
                wire=wire.WIRE_VERSION,
                session=self._session,
                mono_us=self._mono_us(),
                wall_us=self._wall_us(),
                limits=self._limits,
                routes=self._routes,
            )
            peer.note(encoding, welcome, envelope)
        elif isinstance(message, Ping):
            pong = Pong(nonce=message.nonce, session=self._session, mono_us=self._mono_us(), wall_us=self._wall_us())
            peer.note(encoding, pong, envelope)
        else:
            if self._reported is None:  # one for all the probes of an array
                self._reported = self._report()
            peer.note(encoding, self._reported, envelope)

    def _call(self, peer: BotPeer, encoding: Encoding, envelope: Envelope, call: Call, ignored: list[str]) -> None:
        refused: Failed | None = None
        if peer.barred is not None:
            refused = self._overloaded(call.id, peer.barred[1])
            if peer.barred[0] != "overloaded":
                refused = intake.refusal(*peer.barred, name=call.id)
        elif envelope and call.stream:
            refused = intake.refusal(
                "invalid_request", "stream: a REQ gets one reply, so it must be false", name=call.id
            )
        elif call.id in peer.calls:
            refused = intake.refusal("duplicate_id", "id: a call of this id is in flight; it goes on", name=call.id)
        elif peer.open >= self._open_limit and (call.lane != "exit" or peer.open >= self._exit_limit):
            refused = self._overloaded(call.id, f"{peer.open} calls of this connection are in flight or unread")
        if refused is None:
            reply = BotReply(peer, call.id, encoding, envelope, stream=call.stream, cut=self._cut)
            peer.calls[call.id] = reply
            peer.open += 1
            result = self._handler.submit(call, reply, peer.identity, recv_mono_us=self._mono_us(), ignored=ignored)
            if not isinstance(result, Failed):
                if not reply.finished:
                    reply.ticket = result
                self._watch.attend()
                if peer.gone:  # found out while its `accepted` was sent
                    result.abandon()
                return
            peer.released(reply)
            peer.open -= 1
            refused = result
        self._refuse(peer, encoding, envelope, refused)

    def _overloaded(self, name: str, message: str) -> Failed:
        return intake.refusal("overloaded", message, name=name, retry_after_ms=50 + int(200 * self._jitter()))

    def _refuse(self, peer: BotPeer, encoding: Encoding, envelope: Envelope, refused: Failed) -> None:
        self._refused += 1
        peer.note(encoding, refused, envelope)

    def _cancel(self, peer: BotPeer, message: Cancel) -> None:
        reply = peer.calls.get(message.id)
        if reply is None or reply.ticket is None or reply.finished:
            return
        if message.call_id is None or message.call_id == reply.ticket.call_id:
            reply.ticket.end("cancelled", "cancelled by the bot")

    # ------------------------------------------------------------------------------------------- coming and going

    def _meet(self, incoming: Incoming) -> BotPeer:
        identity = identity_of(incoming.peer_address or "")
        barred: tuple[str, str] | None = None
        known = self._connections.get(identity.uid, 0)
        if not is_automatic(incoming.routing_id):
            barred = ("invalid_request", "a chosen routing id is not taken; connect with an empty one")
        elif known >= MAX_CONNECTIONS_PER_UID:
            barred = ("overloaded", f"{known} connections of this user are open")
        peer = BotPeer(
            incoming.routing_id, identity, self._outbound, max_message_bytes=self._max_message_bytes, barred=barred
        )
        self._peers[incoming.routing_id] = peer
        self._connections[identity.uid] = known + 1
        return peer

    def _depart(self, peer: BotPeer) -> None:
        if peer.gone:
            return
        del self._peers[peer.routing_id]
        self._watch.forget(peer)
        left = self._connections[peer.identity.uid] - 1
        if left:
            self._connections[peer.identity.uid] = left
        else:
            del self._connections[peer.identity.uid]
        self._departed += 1
        self._past_out += peer.sent
        self._past_merged += peer.merged
        self._past_dropped += peer.dropped_notes
        for reply in in_ending_order(peer.forget()):
            if reply.ticket is not None:
                reply.ticket.abandon()
                reply.ticket = None

    def statistics(self) -> FrontendStatistics:
        """A snapshot of the counters."""
        peers = self._peers.values()
        return FrontendStatistics(
            peers=len(self._peers),
            congested=self._watch.congested,
            in_flight=sum(len(peer.calls) for peer in peers),
            calls_per_peer=[(p.identity.uid, p.identity.pid, len(p.calls)) for p in peers if p.calls],
            messages_in=self._messages_in,
            messages_out=self._past_out + sum(peer.sent for peer in peers),
            merged_deltas=self._past_merged + sum(peer.merged for peer in peers),
            refused=self._refused,
            dropped=self._past_dropped + sum(peer.dropped_notes for peer in peers),
            stalled_calls=self._watch.stalled_calls,
            departed=self._departed,
        )


def is_automatic(routing_id: bytes) -> bool:
    """Whether the port chose the id for a bot that named none: 5 bytes, the first of them 0, as with libzmq."""
    return len(routing_id) == 5 and routing_id[0] == 0


def identity_of(address: str) -> Peer:
    """`localhost:uid:gid:pid` -> who that is; -1 and 0 where the kernel does not tell.

    >>> identity_of("localhost:1000:100:4711").uid
    1000
    """
    fields = address.rsplit(":", 3)[1:]
    if len(fields) == 3 and all(field.isdigit() for field in fields):
        uid, gid, pid = map(int, fields)
        return Peer(uid=uid, gid=gid, pid=pid)
    return Peer(uid=-1, gid=-1, pid=0)
