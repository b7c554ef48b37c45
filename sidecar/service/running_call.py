"""One call at work: acts out the verdicts of `core.call` on pools, breakers and the bot's reply.

Every method is one synchronous step, started by a bot's message, a pass of an upstream, a pool with room, or a due
clock; whoever starts it flushes afterwards. There is no task per call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sidecar.core.call import Call as CallPolicy
from sidecar.core.call import State
from sidecar.core.classifier import classify, is_aged, told_of_upstream
from sidecar.core.outcome import CANCELLED, FIRST_DELTA_TIMEOUT, IDLE_TIMEOUT, SUCCESS, Kind, Outcome
from sidecar.core.permit import Permit
from sidecar.core.verdict import End, Seek
from sidecar.dialects.base import ENDING_GRACE, Finished, Prompt
from sidecar.errors import ConnectionLost, UpstreamFault
from sidecar.service.attempt import Attempt
from sidecar.service.connection import Connection
from sidecar.service.desk import Desk
from sidecar.service.pool import Pool
from sidecar.service.ports import Peer, Reply
from sidecar.service.refusals import without_secret
from sidecar.service.routes import RouteRuntime, TargetRuntime
from sidecar.service.seeking import seek
from sidecar.wire import Call, ChatMessage, Failed, Lane, Options, Restarted


class RunningCall:
    """A call from its acceptance to its terminal; the frontend holds it as its `Ticket`."""

    __slots__ = (
        "_instructions", "_messages", "_options", "abandoned", "admitted", "armed_at", "attempts", "call_id",
        "deadline_mono_us", "desk", "emit", "ended", "first_delta_at", "first_lost", "id", "lane", "length",
        "lost_connections", "on_receipt", "overhead", "parked_as", "parked_in", "peer", "pieces", "policy",
        "queued_until", "received_at", "refusal", "replays", "reply", "route", "sparing", "stream", "waiting_since",
        "winner",
    )  # fmt: skip

    def __init__(
        self,
        desk: Desk,
        call: Call,
        lane: Lane,
        reply: Reply,
        peer: Peer,
        route: RouteRuntime,
        options: list[Options],
        policy: CallPolicy,
        *,
        call_id: str,
        received_at: float,
        deadline_mono_us: int,
    ) -> None:
        self.id = call.id
        self.call_id = call_id
        self.reply = reply
        self.peer = peer
        self.route = route
        self.lane = lane
        self.stream = call.stream
        self.policy = policy
        self.received_at = received_at
        self.deadline_mono_us = deadline_mono_us
        self.ended = False
        self.abandoned = False
        #: being received: what fails now is a refusal, `refusal`, and no terminal
        self.on_receipt = False
        self.refusal: Failed | None = None
        #: in flight (True), queued (False), or let go of by the admission itself (None)
        self.admitted: bool | None = False
        self.armed_at = math.inf
        #: targets' pools this call waits in for a connection
        self.parked_in: tuple[str, ...] = ()
        #: the number of its entry there: an older one is stale
        self.parked_as = 0
        self.attempts: list[Attempt] = []
        self.winner: Attempt | None = None
        #: `stream: false`: what came so far; nothing is committed before the terminal
        self.pieces: list[str] = []
        self.emit = reply.text if call.stream else self.pieces.append
        self.length = 0
        self.first_delta_at: float | None = None
        self.queued_until: float | None = None
        #: seconds the daemon itself spent, and since when it has been waiting for others
        self.overhead = 0.0
        self.waiting_since: float | None = None
        self.desk = desk
        self._messages = (
            tuple(call.messages) if call.messages is not None else (ChatMessage(role="user", content=call.input or ""),)
        )
        self._instructions = call.instructions
        self._options = options
        self.lost_connections: frozenset[tuple[str, int]] = frozenset()
        self.first_lost: Attempt | None = None
        #: the next attempt stands in for one that the upstream never took up (its connection's time was over, its
        #: credential had changed): no retry of a failure (gRPC A6 calls it transparent), so it is paid for by
        #: `Pool.replays`, not by the budget that bounds those.
        self.replays = False
        #: the next attempt is a comfort beside one that runs on: see `RetryBudget.withdraw`
        self.sparing = False

    def __repr__(self) -> str:
        return f"<RunningCall {self.call_id} {self.policy!r}>"

    # ------------------------------------------------------------------ Ticket: the frontend's side

    def end(self, code: str, message: str) -> None:
        """See `ports.Ticket`."""
        if self.ended:
            return
        now = self.desk.clock()
        if now >= self.policy.deadline:
            self._deadline(now)
        else:
            in_hand = self._stop_attempts(CANCELLED)
            self.desk.finish_failed(self, code, message, attempt=in_hand)

    def abandon(self) -> None:
        """See `ports.Ticket`."""
        if not self.ended:
            self.abandoned = True
            in_hand = self._stop_attempts(CANCELLED)
            self.desk.finish_failed(self, "cancelled", "the bot is gone", attempt=in_hand)

    # ------------------------------------------------------------------ Clocked: the clocks' side

    def next_wakeup_at(self) -> float:
        """See `clocks.Clocked`."""
        return self.policy.next_wakeup_at()

    def tick(self, now: float) -> None:
        """Act on every clock that has fallen due; the deadline comes first and leaves no other."""
        while not self.ended:
            due = self.policy.due(now)
            if due is None:
                return
            if due.clock == "deadline":
                self._deadline(now)
            elif due.clock == "seek":
                self.seek(now)
            elif due.clock == "first_delta":
                assert due.attempt is not None
                patience = self.route.config.first_delta_timeout_ms / 1000
                # Sooner than the route would: the bot's own haste.
                self.sparing = now - due.attempt.sent_at < 0.99 * patience
                if self.policy.want_backup():
                    self.seek(now)
            elif due.clock == "backup":
                self.sparing = True
                if self.policy.want_backup(twice=True):
                    self.seek(now)
            else:
                attempt = next((a for a in self.attempts if a.state is due.attempt), None)
                if attempt is None:
                    continue
                if due.clock == "conclude":
                    attempt.connection.conclude(attempt, now)
                else:
                    attempt.connection.stop(attempt)
                    attempt.target.pool.retire(attempt.connection, "idle_timeout")
                    self._lost(attempt, IDLE_TIMEOUT, now)

    # ------------------------------------------------------------------ attempts

    def admit(self, now: float) -> None:
        """It has a place in flight: an attempt is wanted."""
        self.admitted = True
        self.policy.admitted()
        if not self.on_receipt:
            self.waiting_since = self.received_at
        self.seek(now)

    def guarded(self, step: Callable[[float], None], now: float) -> None:
        """Take a step that an upstream brought about: a bug in it ends this call and no other."""
        self.desk.guarded(self, step, now)

    def seek(self, now: float) -> None:
        """Start the attempt that the policy wants, on the first candidate that can take it; else wait, else end."""
        if not self.ended and self.policy.seeking:
            self.desk.parking.unpark(self)
            seek(self, now)

    def turned(self, pool: Pool, now: float) -> bool:
        """`pool` may be asked again, or no more; whether that is a matter of this call's."""
        concerned = [index for index, target in enumerate(self.route.targets) if target.pool is pool]
        if concerned and pool.takes_calls(now):
            for index in concerned:
                self.policy.lift(index, now)
        return bool(concerned)

    def asked_on(self, pool: str) -> frozenset[int]:
        """See `seeking.Seeker`."""
        return frozenset(attempt.connection.key for attempt in self.attempts if attempt.target.pool.name == pool)

    def wait(self, targets: list[TargetRuntime], until: float, now: float) -> None:
        """See `seeking.Seeker`."""
        if self.waiting_since is None and not self.policy.attempts:
            self.waiting_since = now
        self.desk.park(self, targets, until, now)

    def fail(self, code: str, message: str, *, retry_after: float) -> None:
        """See `seeking.Seeker`."""
        # Whatever the code: nothing reached an upstream.
        self.desk.finish_failed(self, code, message, retryable=True, retry_after=retry_after)

    def fail_as(self, outcome: Outcome) -> None:
        """See `seeking.Seeker`."""
        self.desk.finish_lost(self, outcome, self.first_lost if outcome is self.policy.first_outcome else None)

    def start(self, index: int, target: TargetRuntime, connection: Connection, permit: Permit, now: float) -> bool:
        """Hand an attempt to `connection`. False: it is gone, nothing was written, the permit is still the caller's."""
        attempt = Attempt(self, target, connection, permit)
        prompt = self.prompt(index)
        desk = self.desk
        try:
            connection.start(attempt, prompt)
        except ConnectionLost:
            return False
        target.pool.leased(connection)
        target.pool.gate.limit.taken()
        if not self.policy.made:
            for other in self.route.budgets:
                other.deposit(now)
            target.pool.replays.deposit(now)
        sent_at = desk.clock()
        if self.waiting_since is not None:
            self.overhead += sent_at - now
            self.waiting_since = None
        else:
            self.overhead += sent_at - (now if self.policy.made else self.received_at)
        if self.queued_until is None:
            self.queued_until = now
        policy = self.policy
        backup_after = math.inf if policy.attempts else self.route.backup_after(self.lane, index, now)
        attempt.state = policy.started(index, sent_at, backup_after=backup_after)
        self.replays = False
        self.attempts.append(attempt)
        if self.policy.made > 1 and self.stream and self.reply.committed:
            self.reply.restart(
                Restarted(
                    id=self.id,
                    attempt=attempt.state.number,
                    upstream=target.pool.upstream.name,
                    model=target.model,
                )
            )
        if not self.on_receipt:  # armed when its receipt is over
            desk.clocks.arm(self)
        return True

    def prompt(self, index: int) -> Prompt:
        """What target `index` is asked."""
        return Prompt(
            model=self.route.targets[index].model,
            messages=self._messages,
            instructions=self._instructions,
            options=self._options[index],
            store=self.route.config.store,
        )

    def first_content(self, attempt: Attempt, now: float) -> bool:
        """Content of an attempt that does not answer yet: it does from here, unless another one does."""
        if self.ended or self.winner is not None or attempt not in self.attempts:
            return False
        losers = self.policy.content(attempt.state, now)
        self.winner = attempt
        self.desk.parking.unpark(self)
        for loser in losers:
            self._stop(next(a for a in self.attempts if a.state is loser), FIRST_DELTA_TIMEOUT, now)
        attempt.target.times.observe(now - attempt.state.sent_at, now)
        if attempt.permit.trial:
            attempt.target.breaker.answering(attempt.permit, now)
            attempt.target.pool.prober.wake()
        if self.first_delta_at is None:
            self.first_delta_at = now
        self.desk.clocks.arm(self)
        return True

    def ending(self, attempt: Attempt, now: float) -> None:
        """The content of an attempt is over; its usage may still come."""
        if attempt in self.attempts:
            self.policy.ending(attempt.state, now, ENDING_GRACE)
            self.desk.clocks.arm(self)

    def finished(self, attempt: Attempt, event: Finished, now: float) -> None:
        """An attempt ended as it should: the call is done."""
        if self.ended or attempt not in self.attempts:
            return
        self.attempts.remove(attempt)
        self.desk.record(attempt, SUCCESS, now)
        if now >= self.policy.deadline:
            self._deadline(now)  # it beats every other end, also where the loop was late to look
            return
        self.policy.finished(attempt.state)
        for loser in self.attempts.copy():
            self._stop(loser, FIRST_DELTA_TIMEOUT, now)
        self.winner = attempt
        self.desk.finish_done(self, attempt, event, now)

    def lost(self, attempt: Attempt, fault: UpstreamFault, now: float) -> None:
        """The upstream or the connection failed an attempt."""
        if not self.ended and attempt in self.attempts:
            outcome = without_secret(classify(fault), attempt.connection.credential)
            if said := told_of_upstream(fault, outcome):
                attempt.target.pool.last_error = said
            if outcome.retire_connection:
                attempt.target.pool.retire(attempt.connection, outcome.code)
            if is_aged(fault):
                attempt.target.pool.expired(attempt.connection)
            if outcome.credential_refused:
                outcome = attempt.target.pool.credential_refused(attempt.connection, outcome)
            if now >= self.policy.deadline:
                self.attempts.remove(attempt)
                self.desk.record(attempt, outcome, now)
                self._deadline(now)
            else:
                self._lost(attempt, outcome, now)

    def _lost(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        self.attempts.remove(attempt)
        self.lost_connections |= {(attempt.target.pool.name, attempt.connection.key)}
        self.desk.record(attempt, outcome, now)
        committed = self.stream and self.reply.committed
        usual = attempt.target.times.at_best(now)
        reason = self.policy.first_outcome
        verdict = self.policy.lost(attempt.state, outcome, now, committed=committed, usual=usual)
        if self.policy.first_outcome is not reason:
            self.first_lost = attempt
        if isinstance(verdict, End):
            self._stop_attempts(CANCELLED)
            # What is told is one attempt's story: the one whose failure becomes the call's.
            told = self.first_lost if verdict.outcome is self.policy.first_outcome else attempt
            self.desk.finish_lost(self, verdict.outcome, told)
            return
        if self.winner is attempt:
            self.winner = None
            self.length = 0
            self.first_delta_at = None
            self.pieces.clear()
        if isinstance(verdict, Seek):
            refused = outcome.kind is Kind.REJECTED  # for what the target is: nothing was done there
            self.replays = outcome.kind is Kind.IGNORED or outcome.credential_refused or refused
            self.sparing = False
            self.waiting_since = None
            self.seek(now)
            if not self.ended:
                self.desk.clocks.arm(self)

    def _deadline(self, now: float) -> None:
        in_hand = self.winner or (self.attempts[0] if self.attempts else None)
        attempts, desk = self.attempts, self.desk
        message, first = "the deadline passed", self.policy.first_outcome
        if first is not None:
            message += f"; an attempt before it failed: {first.code}: {first.message}"
        desk.finish_failed(self, "deadline_exceeded", message, attempt=in_hand)

        # Closing a connection takes longer than saying so: other calls whose deadline has passed are told first.
        for attempt in attempts:
            desk.clocks.afterwards(partial(desk.guarded, self, partial(self._stop_late, attempt), now))

    def _stop_late(self, attempt: Attempt, now: float) -> None:
        """Stop an attempt whose call has ended by its deadline."""
        attempt.connection.stop(attempt)
        late = 2 * (attempt.target.times.quantile(0.95, now) or math.inf)
        self.desk.record(attempt, self.policy.deadline_outcome(attempt.state, now, usual_worst=late), now)

    def _stop(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        self.attempts.remove(attempt)
        attempt.connection.stop(attempt)
        self.desk.record(attempt, outcome, now)

    def _stop_attempts(self, outcome: Outcome) -> Attempt | None:
        """Stop them all; returns the one that the terminal tells of."""
        now = self.desk.clock()
        in_hand = self.winner or (self.attempts[0] if self.attempts else None)
        for attempt in self.attempts.copy():
            self._stop(attempt, outcome, now)
        return in_hand

    def forget(self) -> None:
        """The terminal is queued: let go of prompt and text, so that a stale clock holds nothing big."""
        self.ended = True
        if self.policy.state is not State.ENDED:
            self.policy.end()
        self._messages = ()
        self._instructions = None
        self.pieces = []
        self.emit = _ignore
        # Call and attempts know each other: parted, they are freed at once and cost the collector nothing.
        self.attempts = []
        self.winner = self.first_lost = None


def _ignore(_: str) -> None:
    """Content after the terminal is nobody's."""
