"""One WebSocket connection: requests are read, queued by lane as the real ones do, and answered side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio
import zstandard

from sidecar.simulator import calls, frames
from sidecar.simulator.behaviour import Behaviour, steer, steering_of
from sidecar.simulator.calls import Call, Host
from sidecar.simulator.fates import fate
from sidecar.simulator.link import Link
from sidecar.simulator.scenarios import scenario
from sidecar.simulator.voices import Fault, RequestRefused, ResponsesVoice, read_chat, read_responses
from sidecar.simulator.voices.base import bad_request, dumps
from sidecar.simulator.voices.faults import EXPIRING, LIMIT_REACHED

_LINGER: Final = 2.0
_QUEUE: Final = 1000


class Session:
    """One connection after its handshake; see `act.Line` for what a call may do with it.

    Cancellation: leaves the link open and the counters right; whoever cancels closes the link.
    """

    shape = "nested"

    def __init__(
        self, host: Host, link: Link, *, dialect: str, group: str, behaviour: Behaviour, compressed: bool
    ) -> None:
        self.host, self.link, self.counters, self.metronome = host, link, host.counters, host.metronome
        self.dialect, self.group, self.behaviour, self.compressed = dialect, group, behaviour, compressed
        self._zstd: zstandard.ZstdCompressionObj | None = None
        self._scope = trio.CancelScope()
        self._running: dict[str | None, Call] = {}
        self._waiting: deque[Call] = deque()
        self._lanes: set[str] = set()
        self._answered: set[str] = set()
        self._over = False

    # ------------------------------------------------------------------------------------------------ its life

    async def run(
        self, early: bytes, *, max_age_s: float | None = None, warn: bool = False, deaf: bool = False
    ) -> None:
        """Until either side ends it. `early` came with the upgrade request."""
        left = False
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if max_age_s is not None:
                        nursery.start_soon(self._age, max_age_s, warn)
                    await (self._ignore() if deaf else self._read(nursery, early))
                    nursery.cancel_scope.cancel()
            left = True
        finally:
            if left:
                self._stopped()
            else:
                self.close(1001, "the relay stops")

    async def _read(self, nursery: trio.Nursery, data: bytes) -> None:
        reader = frames.Reader()
        while True:
            try:
                for opcode, payload in reader.feed(data):
                    if opcode == frames.CLOSE:
                        if not self._over:
                            self.link.send(frames.frame(payload[:2], frames.CLOSE))
                        return
                    if not self._over:
                        self._message(nursery, opcode, payload)
                data = await self.link.receive()
            except frames.Violation as broken:
                self.close(broken.code, broken.reason)
                return
            except (OSError, trio.ClosedResourceError):
                return
            if not data:
                return

    async def _ignore(self) -> None:
        while not self.link.abandoned:
            await trio.sleep(0.05)

    async def _age(self, limit: float, warn: bool) -> None:  # noqa: FBT001 -- a task's arguments
        await trio.sleep(limit / 2)
        if warn:
            self._complain(EXPIRING, None)
        await trio.sleep(limit / 2)
        self._complain(LIMIT_REACHED, None)
        self.close(1000, "age limit")

    def _stopped(self) -> None:
        """The client went first."""
        for call in (*self._running.values(), *self._waiting):
            calls.end(self.host, call, "stopped")
        self._running.clear()
        self._waiting.clear()

    def _end(self) -> None:
        """The relay goes first: calls are cut; reading goes on for a while, so that the farewell arrives."""
        if not self._over:
            self._over = True
            for call in (*self._running.values(), *self._waiting):
                calls.end(self.host, call, "cut")
                call.scope.cancel()
            self._running.clear()
            self._waiting.clear()
            self._scope.deadline = trio.current_time() + _LINGER

    # ------------------------------------------------------------------------------------------- what it is told

    def _message(self, nursery: trio.Nursery, opcode: int, payload: bytes) -> None:
        if opcode == frames.PING:
            self.counters.pings += 1
            self.link.send(frames.frame(payload, frames.PONG))
        elif opcode == frames.PONG:
            self.counters.pongs += 1
        else:
            try:
                if opcode == frames.BINARY:
                    raise bad_request("Send text frames.")
                self._admit(payload)
            except RequestRefused as refused:
                self.counters.bad_requests += 1
                self._complain(refused.fault, refused.lane)
            self._advance(nursery)

    def _complain(self, fault: Fault, lane: str | None) -> None:
        self.say(dumps(fault.shaped({} if lane is None else {"stream_id": lane})))

    def _admit(self, payload: bytes) -> None:
        self.counters.requested("websocket")
        request = (read_responses if self.dialect == "responses" else read_chat)(payload)
        lane = request.lane
        if lane is not None and lane not in self._lanes and len(self._lanes) >= self.host.lanes:
            message = f"At most {self.host.lanes} streams on one WebSocket."
            raise bad_request(message, code="websocket_stream_limit_reached", param="stream_id", lane=lane)
        previous = request.body.get("previous_response_id")
        if previous is not None and previous not in self._answered:
            message = f"Previous response with id {previous!r:.80} not found."
            raise bad_request(message, code="previous_response_not_found", param="previous_response_id", lane=lane)
        if len(self._waiting) >= _QUEUE:
            raise bad_request("Too many requests are waiting.", code="concurrent_request", lane=lane)
        try:
            named, given = steering_of(request.prompt)
            behaviour = steer(self.behaviour, given)
            if named is not None and scenario(named).kind != "call":
                raise ValueError(f"{named!r} does not befall a call")
        except ValueError as problem:
            raise bad_request(f"Steering: {problem}", param="input", lane=lane) from None
        if lane is not None:
            self._lanes.add(lane)
        named = named or self.host.next_fate(self.group)
        self._waiting.append(
            calls.begin(
                self.host,
                self,
                dialect=self.dialect,
                group=self.group,
                way="websocket",
                request=request,
                behaviour=behaviour,
                named=named,
            )
        )

    def _advance(self, nursery: trio.Nursery) -> None:
        """Start what may start: a lane's calls one after another, so many lanes at once."""
        if len(self._waiting) == 0:
            return
        later: deque[Call] = deque()
        while self._waiting:
            call = self._waiting.popleft()
            if call.act.request.lane in self._running or len(self._running) >= self.host.slots:
                later.append(call)
            else:
                self._running[call.act.request.lane] = call
                nursery.start_soon(self._answer, nursery, call)
        self._waiting = later

    async def _answer(self, nursery: trio.Nursery, call: Call) -> None:
        with call.scope:
            call.act.begin()
            if isinstance(call.act.voice, ResponsesVoice) and not call.act.request.generate:
                call.act.say(*call.act.voice.created(), *call.act.voice.bare())
            else:
                await fate(call.scenario)(call.act)
        if not call.over:  # else it was cut or stopped, and counted
            del self._running[call.act.request.lane]
            calls.end(self.host, call, "finished")
            if len(self._answered) < _QUEUE:
                self._answered.add(f"resp_{call.act.voice.digits}")
            self._advance(nursery)

    # ------------------------------------------------------------------------------------------ what it may say

    def say(self, payload: bytes) -> None:
        """One message, compressed if that was agreed."""
        if self._over:
            return
        if self.compressed:
            self.link.send(frames.frame(self.deflate(payload), frames.BINARY))
        else:
            self.link.send(frames.frame(payload))

    @property
    def framed(self) -> Callable[[bytes], bytes] | None:
        """See `act.Line`."""
        return None if self.compressed else frames.frame

    def serves(self, group: str) -> bool:
        """It came by that path."""
        return self.group == group

    @property
    def backlog(self) -> int:
        """Bytes that the client's kernel has not taken yet."""
        return self.link.backlog

    def raw(self, data: bytes) -> None:
        """Bytes below the WebSocket."""
        if not self._over:
            self.link.send(data)

    async def send_large(self, data: bytes) -> None:
        """Whole frames, waiting while the client does not read."""
        await self.link.send_large(data)

    async def drained(self) -> None:
        """Wait while the client does not read."""
        await self.link.drained()

    def deflate(self, data: bytes) -> bytes:
        """The next slice of the connection's zstd stream, flushed."""
        if self._zstd is None:
            self._zstd = zstandard.ZstdCompressor(level=1).compressobj()
        return self._zstd.compress(data) + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def eof(self) -> None:
        """End the connection without a farewell: FIN, after what was said."""
        self._end()
        self._scope.deadline = trio.current_time() + _LINGER
        self.link.finish()

    def reset(self) -> None:
        """End the connection by RST."""
        self._end()
        self.link.reset()

    def close(self, code: int, reason: str = "") -> None:
        """End the connection by a close frame; the client's answer is awaited for two seconds."""
        if not self._over:
            self.link.send(frames.close_frame(code, reason))
        self._end()
