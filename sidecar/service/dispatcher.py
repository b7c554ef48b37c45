"""Takes calls from the frontend and sees each to its one terminal: admission, parking, clocks, accounting.

The order a call passes through: deadline > admission > (parking) > breaker > budget > lease > stream. The dispatcher
is synchronous but for its clocks' task; `running_call` has the steps of one call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from functools import partial
from typing import Final

import trio

from sidecar.config import Frontend
from sidecar.core.admission import LANES, Admission, Admitted, Shed, Unreachable
from sidecar.core.call import Call as CallPolicy
from sidecar.core.outcome import Outcome
from sidecar.dialects.base import Finished
from sidecar.errors import CODES
from sidecar.service import terminals
from sidecar.service.accounting import Accounting
from sidecar.service.attempt import Attempt
from sidecar.service.calls import DispatcherStatistics
from sidecar.service.clients import Clients
from sidecar.service.clocks import Clocked, Clocks
from sidecar.service.examination import examine
from sidecar.service.judging import Judge
from sidecar.service.parking import Parking
from sidecar.service.pool import Pool
from sidecar.service.ports import Halted, Outbound, Peer, Reply
from sidecar.service.routes import RouteRuntime, TargetRuntime
from sidecar.service.running_call import RunningCall
from sidecar.wire import Accepted, Call, Failed, Lane, Terminal

#: A bot's own send time is believed when it is at most this far ahead, or behind (another time namespace else).
_SENT_AHEAD_US: Final = 1_000
_SENT_BEHIND_US: Final = 3_600_000_000


class Dispatcher:
    """See the module.

    Args:
        routes, frontend: routes by name; limits.
        clock, mono_us, wall_us: the loop's time in seconds; CLOCK_MONOTONIC and wall clock in microseconds.
        jitter: 0 <= x < 1.
        new_call_id: -> an id no other call of this or an earlier session had.
        session: of this daemon.
        outbound: flushed at the end of each sweep of the clocks.
        accounting, clients: what is counted and said; who may ask what.
    """

    def __init__(
        self,
        routes: dict[str, RouteRuntime],
        frontend: Frontend,
        *,
        clock: Callable[[], float],
        mono_us: Callable[[], int],
        wall_us: Callable[[], int],
        jitter: Callable[[], float],
        new_call_id: Callable[[], str],
        session: str,
        outbound: Outbound,
        accounting: Accounting,
        clients: Clients,
    ) -> None:
        self.routes = routes
        self.clock = clock
        self.clocks = Clocks(clock, outbound.flush, self.guarded)
        self.parking: Parking[RunningCall] = Parking(clock, lambda call, now: self.guarded(call, call.seek, now))
        self.draining = False
        self.calls: dict[str, RunningCall] = {}
        #: set when the last call ended while draining
        self.idle = trio.Event()
        self._admission = Admission(
            frontend.max_calls_in_flight,
            frontend.queue_max,
            jitter=jitter,
            exit_reserved=frontend.reserved_for_exit,
        )
        self._admitting: deque[Hashable] = deque()
        self._admits = False
        self._mono_us = mono_us
        self._wall_us = wall_us
        self._jitter = jitter
        self._new_call_id = new_call_id
        self._session = session
        self._outbound = outbound
        self._accounting = accounting
        self._clients = clients
        self._brakes: Halted
        self._judge = Judge(accounting)
        self._of_uid: dict[int, int] = {}  # calls in flight and queued
        self._log = accounting.log

    def attach(self, brakes: Halted) -> None:
        """Which lanes an operator has halted: asked for each call, from the first one on."""
        self._brakes = brakes

    # ------------------------------------------------------------------ a call comes in

    def submit(
        self, call: Call, reply: Reply, peer: Peer, *, recv_mono_us: int, ignored: list[str]
    ) -> RunningCall | Failed:
        """See `ports.CallHandler`."""
        now = self.clock()
        mono_now = self._mono_us()
        examined = examine(call, self.routes)
        if isinstance(examined, Failed):
            return self._refuse(call, peer, examined)
        route, options = examined
        config = route.config
        sent = call.sent_mono_us
        if sent is None or not recv_mono_us - _SENT_BEHIND_US <= sent <= recv_mono_us + _SENT_AHEAD_US:
            sent = recv_mono_us
        deadline_mono_us = sent + int(1000 * (call.timeout_ms or config.timeout_ms))
        if deadline_mono_us <= mono_now:
            problem = "the deadline had passed when the call was received"
            return self._refuse(call, peer, terminals.refusal(call, "deadline_exceeded", problem))
        if self.draining:
            return self._turn_away(call, peer, "draining", "the daemon is shutting down", 0.5 * (0.5 + self._jitter()))
        allowed = self._clients.examine(call, peer, now, self._brakes.halted)
        if isinstance(allowed, Failed):
            return self._refuse(call, peer, allowed)
        lane, own_limit = allowed
        if lane in self._brakes.halted:
            return self._refuse(call, peer, terminals.refusal(call, "halted", self._brakes.message))
        if own_limit is not None and self._of_uid.get(peer.uid, 0) >= own_limit:
            problem = f"{own_limit} calls of uid {peer.uid} are in flight and queued, its limit"
            return self._turn_away(call, peer, "overloaded", problem, self._admission.retry_after())
        policy = CallPolicy(
            order=route.order(now, lane),
            services=route.services,
            # One microsecond on the safe side of two roundings: a deadline is never early.
            deadline=now + (deadline_mono_us - mono_now + 1) / 1e6,
            first_delta_timeout=(call.first_delta_timeout_ms or config.first_delta_timeout_ms) / 1000,
            idle_timeout=(call.idle_timeout_ms or config.idle_timeout_ms) / 1000,
            restart=call.on_lost == "restart",
            jitter=self._jitter,
            max_attempts=config.max_attempts,
        )
        running = RunningCall(
            self, call, lane, reply, peer, route, options, policy,
            call_id=self._new_call_id(), received_at=now - (mono_now - recv_mono_us) / 1e6,
            deadline_mono_us=deadline_mono_us,
        )  # fmt: skip
        decision = self._admission.offer(
            running.call_id, lane, policy.deadline, now, holder=peer.holder, usual=route.at_best(now)
        )
        if isinstance(decision, Unreachable):
            problem = "the calls before it and its first token do not fit before its deadline, even at best"
            return self._turn_away(call, peer, "deadline_unreachable", problem, decision.retry_after)
        if isinstance(decision, Shed) and decision.key == running.call_id:
            return self._turn_away(call, peer, "overloaded", terminals.SHED[decision.reason], decision.retry_after)
        self.calls[running.call_id] = running
        self._of_uid[peer.uid] = self._of_uid.get(peer.uid, 0) + 1
        if isinstance(decision, Shed):
            self._shed(decision)
        if isinstance(decision, Admitted):
            # Nothing can come back before this step is over: what it decides on receipt is refused, not accepted.
            running.on_receipt = True
            self.guarded(running, running.admit, now)
            running.on_receipt = False
            if running.refusal is not None:
                return running.refusal
        self._accounting.accepted += 1
        reply.accept(
            Accepted(
                id=call.id,
                call_id=running.call_id,
                session=self._session,
                recv_mono_us=recv_mono_us,
                deadline_mono_us=deadline_mono_us,
                route=route.name,
                ignored=ignored,
            )
        )
        self.clocks.arm(running)
        return running

    def _refuse(self, call: Call, peer: Peer, refusal: Failed) -> Failed:
        self._accounting.call_refused(call.route, self._clients.lane_of(call, peer), refusal.code, peer)
        return refusal

    def _turn_away(self, call: Call, peer: Peer, code: str, problem: str, retry_after: float) -> Failed:
        """A refusal that says when to come again; `retry_after` in seconds, jittered."""
        wait_ms = max(1, int(1000 * retry_after))
        return self._refuse(call, peer, terminals.refusal(call, code, problem, retry_after_ms=wait_ms))

    # ------------------------------------------------------------------ waiting

    def park(self, call: RunningCall, targets: list[TargetRuntime], until: float, now: float) -> None:
        """Wait for a connection of one of `targets`, at most `until` before looking again anyway.

        `now` is the instant for which the call looked: what has fallen due since then must wake it, not be passed over.
        """
        call.policy.park(until, now)
        self.parking.park(call, [target.pool for target in targets])
        self.clocks.arm(call)

    # ------------------------------------------------------------------ terminals

    def finish_done(self, call: RunningCall, attempt: Attempt, event: Finished, now: float) -> None:
        """The call is answered; `now` is when its last frame came in."""
        timing = terminals.timing(call, attempt, step_began_at=now, now=self.clock())
        self._finish(call, terminals.done(call, attempt, event, timing=timing, wall_us=self._wall_us()))

    def finish_lost(self, call: RunningCall, outcome: Outcome, attempt: Attempt | None = None) -> None:
        """The upstream's failure becomes the call's."""
        # Whatever the upstream says of trying again: when something inside has tried, the bot is not to.
        self.finish_failed(
            call,
            outcome.code,
            outcome.message,
            retryable=outcome.retryable and call.policy.made <= 1,
            retry_after=outcome.retry_after,
            outcome=outcome,
            attempt=attempt,
        )

    def finish_failed(
        self,
        call: RunningCall,
        code: str,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        outcome: Outcome | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        """The call ends without an answer. `retry_after` in seconds, jittered here."""
        if call.ended:
            return
        attempt = attempt or call.winner
        now = self.clock()
        if retryable is None:
            retryable = CODES.get(code) == "never_sent"
        retry_after_ms = None
        if retryable and retry_after is not None:
            retry_after_ms = max(1, int(1000 * retry_after * (1 + 0.2 * self._jitter())))
        terminal = terminals.failed(
            call,
            code,
            message,
            attempt=attempt,
            retryable=retryable,
            retry_after_ms=retry_after_ms,
            outcome=outcome,
            timing=terminals.timing(call, attempt, step_began_at=now, now=now),
            wall_us=self._wall_us(),
        )
        self._finish(call, terminal)

    def _finish(self, call: RunningCall, terminal: Terminal) -> None:
        """The one place where a call ends."""
        code = terminal.code if isinstance(terminal, Failed) else "done"
        self.parking.unpark(call)
        del self.calls[call.call_id]
        if call.pieces:
            call.reply.text("".join(call.pieces))
        call.forget()
        self.clocks.tidy()
        if call.on_receipt:
            assert isinstance(terminal, Failed)
            call.refusal = terminals.as_refusal(terminal)
            self._accounting.call_refused(call.route.name, call.lane, code, call.peer)
        else:
            if not call.abandoned:
                call.reply.finish(terminal)
            overshoot = max(0, self._mono_us() - call.deadline_mono_us) if code == "deadline_exceeded" else None
            self._accounting.call_ended(call, terminal, code, overshoot_us=overshoot)
        uid = call.peer.uid
        if self._of_uid[uid] == 1:
            del self._of_uid[uid]
        else:
            self._of_uid[uid] -= 1
        if call.admitted:
            self._admit_next(self._admission.leave(call.call_id, self.clock()))
        elif call.admitted is False:
            self._admission.remove(call.call_id)
        if not self.calls:
            self.idle.set()

    def _admit_next(self, keys: list[Hashable]) -> None:
        """Calls whose turn it is. One that ends at once lets in the next: a loop, as no stack is that deep."""
        self._admitting.extend(keys)
        if self._admits or not self._admitting:
            return
        self._admits = True
        try:
            while self._admitting:
                admitted = self.calls[str(self._admitting.popleft())]
                self.guarded(admitted, admitted.admit, self.clock())
        finally:
            self._admits = False

    def _shed(self, decision: Shed) -> None:
        loser = self.calls.get(str(decision.key))
        if loser is not None:
            loser.admitted = None  # the admission has let go of it already
            self.finish_failed(loser, "overloaded", terminals.SHED["displaced"], retry_after=decision.retry_after)

    # ------------------------------------------------------------------ accounting and life

    def record(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """See `judging.Judge.record`."""
        self._judge.record(attempt, outcome, now)

    def on_turn(self, pool: Pool) -> None:
        """`pool` may be asked again, or no more: who waits looks again, whatever it waits for."""
        now = self.clock()
        self._judge.look_at(pool, self._targets(), now)  # a probe moves a breaker, too
        for call in sorted(self.calls.values(), key=_urgency):
            if call.policy.seeking and call.turned(pool, now):
                self.guarded(call, call.seek, now)

    def on_connect(self, pool: Pool, outcome: Outcome | None) -> None:
        """See `judging.Judge.on_connect`."""
        self._judge.on_connect(pool, self._targets(), outcome, self.clock())

    def _targets(self) -> Iterable[TargetRuntime]:
        return (target for route in self.routes.values() for target in route.targets)

    def end_lanes(self, lanes: Collection[Lane], message: str) -> int:
        """An operator has halted these lanes: every call in them ends, upstream too. Returns how many."""
        # Queued calls first: a place that comes free now must not start another.
        halted = [call for call in self.calls.values() if call.lane in lanes]
        for call in sorted(halted, key=lambda call: call.admitted is True):
            self.guarded(call, partial(_end, call, message), self.clock())
        self._outbound.flush()
        return len(halted)

    async def drained(self) -> None:
        """Wait until no call is in flight."""
        while self.calls:
            self.idle = trio.Event()
            await self.idle.wait()

    def fail_all(self) -> None:
        """End every call, the drain's time is over: `draining` if nothing of it was sent upstream, else `halted`."""
        # Queued calls first: a place that comes free now must not start another.
        for call in sorted(self.calls.values(), key=lambda call: (call.admitted is True, call.policy.made)):
            if call.policy.made:
                call.end("halted", "the daemon is shutting down and its drain time is over")
            else:
                self.finish_failed(
                    call, "draining", "the daemon is shutting down", retry_after=0.5 + 0.5 * self._jitter()
                )
        self._outbound.flush()

    def statistics(self) -> DispatcherStatistics:
        """A snapshot for health and metrics."""
        admission = self._admission.statistics()
        return DispatcherStatistics(
            in_flight=admission.in_flight,
            queued=admission.queued,
            parked=sum(1 for call in self.calls.values() if call.parked_in),
            accepted=self._accounting.accepted,
            refused=self._accounting.refused,
            done=self._accounting.done,
            failed=self._accounting.failed,
        )

    def guarded(self, call: Clocked, step: Callable[[float], None], now: float) -> None:
        """THE guard of one call: a bug in one call's step ends that call (`internal`) and no other."""
        try:
            step(now)
        except Exception as error:  # noqa: BLE001 - the guard that architecture.md speaks of
            self._log.error("call.internal_error", error=type(error).__name__, exc_info=True)
            assert isinstance(call, RunningCall)
            self._contain(call)

    def _contain(self, call: RunningCall) -> None:
        for attempt in call.attempts:
            attempt.connection.stop(attempt)
            self._judge.forget(attempt, self.clock())
        call.attempts.clear()
        self.finish_failed(call, "internal", "an error of the daemon's own; its log has the details")


def _urgency(call: RunningCall) -> tuple[int, float]:
    return LANES.index(call.lane), call.policy.deadline


def _end(call: RunningCall, message: str, _: float) -> None:
    call.end("halted", message)
