"""Keeps one upstream's connections warm: decides synchronously (`core.pool_policy`), acts in tasks.

A connect is a task; a connection that stands is none. The pool's own task asks the policy what to open and what to
retire, whenever something changed or the policy's clock falls due; `keepalive` pings all of them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import trio

from sidecar.config import Upstream
from sidecar.core.breaker import Breaker
from sidecar.core.classifier import classify, is_aged
from sidecar.core.outcome import CANCELLED, Kind, Outcome
from sidecar.core.pool_policy import Open, PoolPolicy, Retire
from sidecar.core.retry import RetryBudget
from sidecar.errors import ConnectFailed, ConnectionLost, UpgradeRefused, UpstreamError, UpstreamFault
from sidecar.service import partings
from sidecar.service.connection import Connection
from sidecar.service.connector import Connector
from sidecar.service.free_slots import FreeSlots
from sidecar.service.gate import Gate
from sidecar.service.keepalive import Keepalive
from sidecar.service.pool_statistics import PoolStatistics, statistics_of
from sidecar.service.ports import Outbound
from sidecar.service.probing import Prober
from sidecar.service.refusals import Refusals
from sidecar.service.ways import Ways
from sidecar.transport.link import Link
from sidecar.wire import Lane

#: Seconds a graceful close may take before the socket is dropped.
CLOSE_TIMEOUT = 2.0


class Pool:
    """One upstream's connections.

    Args:
        name: what it is called: its upstream's name, and the way where there are two (`config.ways`).
        upstream: its configuration.
        policy, connector: say what to open and what to retire; open it.
        gate, clock, jitter: may the upstream be asked now; the loop's time, 0 <= x < 1.
        outbound, waiting: flushed after every step of the tasks here; how many calls wait for a connection of it.
        on_capacity, on_connect, on_turn: told when a call could be started here; of each connect's outcome (None: it
            worked); when it may be asked again, or no more, for a reason other than its connections.
        log: a bound logger's methods: event, **fields.
    """

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        *,
        policy: PoolPolicy,
        connector: Connector,
        gate: Gate,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        outbound: Outbound,
        waiting: Callable[[], int],
        on_capacity: Callable[[Pool], None],
        on_connect: Callable[[Pool, Outcome | None], None],
        on_turn: Callable[[Pool], None],
        log: Any,
    ) -> None:
        self.name, self.upstream, self.dialect = name, upstream, connector.dialect
        self.connections: dict[int, Connection] = {}
        self.last_error: str | None = None
        self.gate = gate
        #: for attempts in place of those that were never taken up: of all connections at once, and a tenth of the calls
        self.replays = RetryBudget(capacity=max(10, upstream.max_connections * upstream.calls_per_connection))
        #: of its models
        self.breakers: list[Breaker] = []
        self.ways = Ways(self, log)
        self.waiting = waiting
        self._policy, self._connector = policy, connector
        self._clock, self._outbound, self._log = clock, outbound, log
        by_request = upstream.transport == "sse"
        self._refusals = Refusals(self, connector.credential, policy, clock, log, by_request=by_request)
        self._on_capacity, self._on_connect, self._on_turn = on_capacity, on_connect, on_turn
        self._free, self._next_key = FreeSlots(), 0
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._closing = False
        pong_timeout = upstream.pong_timeout_s
        self._keepalive = Keepalive(clock, jitter, interval=upstream.ping_interval_s, pong_timeout=pong_timeout)
        #: closed by our own wish: what that means for the pool is looked at in its own next step, not inside the wish
        self._parted: deque[tuple[Connection, UpstreamFault]] = deque()
        self._look_again = self._turned = False
        self.prober = Prober(self, clock, pong_timeout=pong_timeout)

    def __repr__(self) -> str:
        return f"<Pool {self.name} {self.counts()}>"

    # ------------------------------------------------------------------ leases: synchronous

    def takes_calls(self, now: float) -> bool:
        """Neither an operator nor the upstream itself has said that calls are not to come now."""
        return self.refusal is None and self.gate.is_open(now)

    def lease(self, *, avoid: frozenset[int] = frozenset(), not_on: frozenset[int] = frozenset()) -> Connection | None:
        """A connection that can take a call now: see `FreeSlots.take`. It is used in this step."""
        scout = self._connector.habits.scout
        return self._free.take(avoid if scout is None else avoid | {scout}, not_on)

    def leased(self, connection: Connection) -> None:
        """What `lease` gave was used, or was not needed: keep it in rotation while it has a free slot."""
        self._free.put(connection)
        self.poke()

    def can_take(self, lane: Lane, now: float) -> bool:
        """Whether a call of `lane` could be started here now."""
        return self._free.any() and not self.prober.is_shut(now) and self.gate.has_room(lane, now)

    def released(self, connection: Connection, outcome: Outcome, now: float, *, slow: bool) -> None:
        """An attempt is over: see `Gate.released`. Calls that wait look again with the pool's next step."""
        if outcome.kind is Kind.SUCCESS:
            self._refusals.answered(now)
        if outcome.throttles and self._refusals.is_outdated(connection):
            outcome = CANCELLED  # another key was told that
        if self.gate.released(outcome, now, slow=slow):
            self.turned()
            return
        for way in self.ways.every:
            if way.waiting():
                way.look_again()

    def look_again(self) -> None:
        """Something has changed: calls that wait for it look again with its next step."""
        self._look_again = True
        self._wake.set()

    def turned(self) -> None:
        """It may be asked again, or no more: every call that has it among its targets and waits, for it or another."""
        self._turned = True
        self.ways.look_at_substitute(self._clock())
        self.prober.wake()
        self._wake.set()

    @property
    def enabled(self) -> bool:
        """No operator took it out."""
        return self.gate.enabled

    def set_enabled(self, enabled: bool) -> None:  # noqa: FBT001  (the one thing there is to say)
        """An operator's word: without calls, and without connections once those that run are over; or as before."""
        self.gate.enabled = enabled
        if enabled:
            self._policy.told_to_try(self._clock())
            self.gate.throttle.credential_changed()
        else:
            for connection in [c for c in self.connections.values() if c.state != "CONNECTING"]:
                self.retire(connection, "disabled")
        self.turned()

    def credential_refused(self, connection: Connection, outcome: Outcome) -> Outcome:
        """An answer said that the key is bad. Returns how that is judged: see `Refusals.in_an_answer`."""
        self.retire(connection, "credential refused")
        outcome, recheck = self._refusals.in_an_answer(connection, outcome)
        if recheck and self._nursery is not None:
            self._nursery.start_soon(self._refusals.recheck, outcome)
        return outcome

    def slow_start(self) -> None:
        """It is back: what has been waiting is not to arrive as one. Where another way has served, nothing has."""
        if not self.ways.have_served():
            self.gate.limit.restart()

    def keep_warm(self, connections: int) -> None:
        """So many idle spares from now on."""
        self._policy.keep_warm(connections, self._clock())
        self._wake.set()

    @property
    def refusal(self) -> Outcome | None:
        """Why its credential is not used now."""
        return self._refusals.standing

    def may_connect_at(self) -> float:
        """The earliest instant at which a call parked now could get a connection; inf for never."""
        if any(c.state == "CONNECTING" or c.state == "BUSY" or c.stopped_by_us for c in self.connections.values()):
            return -math.inf  # one is coming, may come free, or is about to be replaced at once
        at = self.may_open_at()  # after a refusal a call may wait for the next try, not for one after it
        return math.inf if self.refusal is not None and at > self._clock() else at

    def may_open_at(self) -> float:
        """The earliest instant for a connect; inf while none is to be made."""
        return self._policy.may_connect_at if self.gate.enabled and not self._closing else math.inf

    def poke(self) -> None:
        """Something changed that the policy may want to act on."""
        # With one slot each, the queue of free ones counts the idle; with more, it holds half-taken ones, too.
        one_each = self.upstream.calls_per_connection == 1
        idle = len(self._free) if one_each else sum(c.state == "READY" for c in self.connections.values())
        total = len(self.connections)
        if self._policy.needs_decision(idle, self._connector.under_way, total, self.waiting(), self._clock()):
            self._wake.set()

    # ------------------------------------------------------------------ tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the pool as the policy wants it, until cancelled. Cancelling drops every connection."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            nursery.start_soon(self._connector.credential.watch, self._refusals.move_on)
            nursery.start_soon(self._keepalive.run)
            nursery.start_soon(self.prober.run)
            while True:
                self._wake = trio.Event()
                self._look_at_parted()
                if self._look_again or self._turned:
                    turned, self._look_again, self._turned = self._turned, False, False
                    (self._on_turn if turned else self._on_capacity)(self)
                    self._outbound.flush()
                now = self._clock()
                if self._closing:
                    await trio.sleep_forever()
                if not self.gate.enabled:
                    await self._wake.wait()
                    continue
                views = [connection.view(now) for connection in self.connections.values()]
                for decision in self._policy.decide(now, views, self.waiting()):
                    match decision:
                        case Open():
                            nursery.start_soon(self._connect, self._new_connection(now))
                        case Retire(key=key, reason=reason):
                            self.retire(self.connections[key], reason)
                with trio.move_on_at(self._look_at(now)):
                    await self._wake.wait()

    def _look_at(self, now: float) -> float:
        """When to ask the policy again at the latest: it learns only by then which connections have become idle."""
        return min(self._policy.next_wakeup_at(), self._connector.habits.next_wakeup_at(now))

    async def close(self, code: int = 1001, reason: str = "going away") -> None:
        """Close every connection gracefully, within `CLOSE_TIMEOUT`."""
        self._closing = True
        async with trio.open_nursery() as nursery:
            for connection in list(self.connections.values()):
                if connection.link is not None:
                    connection.drain()
                    nursery.start_soon(self._close, connection, code, reason)
        self._look_at_parted()

    async def _connect(self, connection: Connection) -> None:
        """From the decision to a connection, or to the reason why there is none."""
        try:
            link = await self._connector.open(connection, partial(self._parts, connection))
        except (ConnectFailed, UpgradeRefused) as error:
            fault: UpstreamFault = error.with_traceback(None)  # which would hold this frame
        else:
            self._stands(connection, link)
            return
        await self._connect_failed(connection, fault)
        self._ended(connection, fault)

    def _stands(self, connection: Connection, link: Link) -> None:
        if self.refusal is not None:
            self._refusals.standing = None
            self.turned()
        now = self._clock()
        connection.retire_at = self._policy.retire_at_for(now)
        if self._refusals.is_outdated(connection):
            connection.retire_at = now  # it was rotated while this one was being made
        self._policy.connected(now)
        if self.ways.stands():
            self.slow_start()
        self._on_connect(self, None)
        connection.opened(link, now)
        self.ways.look_at_substitute(now)
        self.prober.wake()
        self._keepalive.add(connection)
        link.start()
        if not self.gate.enabled:
            self.retire(connection, "disabled")
        self._outbound.flush()

    async def open_one(self) -> Connection:
        """One connect now, whatever the policy wants. An older spare beyond what is wanted goes for it."""
        self._policy.opened_beside(self._clock())
        connection = self._new_connection(self._clock())
        await self._connect(connection)
        spare = self._free.oldest()
        if connection.state == "READY" and len(self._free) > max(1, self.upstream.warm_connections) and spare:
            self.retire(spare, "surplus")  # never the new one: it stands last, and not alone
        return connection

    def _parts(self, connection: Connection, fault: UpstreamFault, ours: bool) -> None:  # noqa: FBT001
        """The transport says that a connection is of no use any more."""
        if ours:  # asked for by somebody in the middle of a step: it is not to be surprised by what follows from it
            self._parted.append((connection, fault))
            self._wake.set()
        else:
            self._ended(connection, fault)

    def _look_at_parted(self) -> None:
        while self._parted:
            self._ended(*self._parted.popleft())

    def _ended(self, connection: Connection, fault: UpstreamFault) -> None:
        if connection.state == "CLOSED":
            return
        now = self._clock()
        fault = connection.fault or fault
        if partings.tell(self._policy, connection, fault, now):
            said = self.last_error = fault.loggable
            self._log.info("connection.lost", upstream=self.name, reason=said)
            if self._connector.garbled(fault):
                self._log.warning("compression.off", upstream=self.name, reason=said)
        if is_aged(fault):
            self.expired(connection)
        del self.connections[connection.key]
        if not connection.stopped_by_us and all(c.opened_at is None for c in self.connections.values()):
            self.ways.down = True
        connection.closed(fault, now)
        connection.link = None
        self._free.remove(connection)
        self.ways.look_at_substitute(now)
        self._wake.set()
        self._on_capacity(self)  # parked calls look again: here, elsewhere, or give up
        self._outbound.flush()

    async def _connect_failed(self, connection: Connection, fault: UpstreamFault) -> None:
        outcome = classify(fault)
        self.last_error = outcome.message
        if self.prober.newest() is None:
            self.ways.connect_failed()
        await self._refusals.at_connect(connection, fault, outcome)
        self.prober.wake()
        self._on_connect(self, outcome)

    def _new_connection(self, now: float) -> Connection:
        self._next_key += 1
        connection = self._connector.prepare(
            self._next_key, on_change=self._changed, on_freed=self._freed, on_spent=self._spent, born_at=now
        )
        self.connections[connection.key] = connection
        return connection

    def _changed(self, connection: Connection) -> None:
        """A connection opened, got a slot back, expires soon, or was given up by its upstream's own word."""
        if isinstance(connection.fault, UpstreamError):
            self._ended(connection, connection.fault)
            return
        if connection.expiring:
            connection.expiring = False
            self._wake.set()
        if connection.free:
            self._free.put(connection)
            self._on_capacity(self)
        elif connection.state == "DRAINING" and connection.active == 0 and connection.fault is None:
            self.retire(connection, "drained")
        self.poke()

    def _freed(self, connection: Connection) -> None:
        """An attempt was stopped, and nothing else: it is done in the middle of a step, so who waits looks later."""
        if connection.free:
            self._free.put(connection)
            self.look_again()
        elif connection.state == "DRAINING" and connection.active == 0:
            self.retire(connection, "drained")

    def _spent(self, seconds: float) -> None:
        """Nothing is left of its rate limit for so long, by its own count."""
        if self.gate.spent(seconds, self._clock()):
            self.turned()

    def expired(self, connection: Connection) -> None:
        """Its upstream says that its time is over: so it is for those that are as old, before a call finds out."""
        for other in partings.as_old(connection, list(self.connections.values())):
            self.retire(other, "max_age")

    def retire(self, connection: Connection, reason: str) -> None:
        """Take it out of service: closed now, or when the last call on it is over."""
        if connection.drain() and self._nursery is not None:
            self._nursery.start_soon(self._close, connection, 1000, reason)
        self._wake.set()

    async def _close(self, connection: Connection, code: int, reason: str) -> None:
        if connection.link is None:
            return
        if connection.fault is None:
            connection.fault = ConnectionLost(code, reason, how="local")
        await connection.link.close(code, reason, timeout=CLOSE_TIMEOUT)

    def counts(self) -> dict[str, int]:
        """Connections by state."""
        return dict(Counter(connection.state for connection in self.connections.values()))

    def statistics(self) -> PoolStatistics:
        """A snapshot for health, metrics and `show upstreams`."""
        return statistics_of(self, self._policy, self._connector, self._clock())
