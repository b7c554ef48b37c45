"""The life cycle of one call: a pure state machine that every event steps through, in whatever order they come.

    QUEUED ──admitted──▶ SEEKING ──started──▶ RUNNING ──content──▶ STREAMING ──ended──▶ ENDED
                            ▲                   │  │                  │
                            └──lost (retriable)─┘  └──────────────────┘  lost, committed: ENDED
                                                                         lost, not committed or restart: SEEKING

The dispatcher tells it what happened (`started`, `content`, `lost` ...) and acts on what comes back; it holds no
connection, no text and no clock. One deadline spans everything. The clocks of `proto/wire.md`:

* deadline: beats every other clock that falls in the same instant;
* first delta: per attempt, from the request being written; starts the next target, ends nothing;
* backup: where the route wants it, a lone attempt that is slower than usual gets a sibling on another target, or on
  another connection of the same one;
* idle: from the last content of the attempt that answers; that attempt is lost then;
* grace: how long a finished answer waits for its usage.

Sources: the commit point is gRPC A6's ("committed" once the response started), here the first delta forwarded;
"the attempt in hand runs on, first content wins" is The Tail at Scale's backup request.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Final

from sidecar.core.attempt_state import AttemptState
from sidecar.core.losses import Losses
from sidecar.core.outcome import DEADLINE, Kind, Outcome, deadline
from sidecar.core.transitions import IllegalTransition
from sidecar.core.verdict import Due, End, Seek, Verdict, Wait
from sidecar.wire import Phase

#: Wire attempts per call, the first included, unless the route says otherwise (Google SRE: at most three).
MAX_ATTEMPTS: Final = 3
#: While an untried target is left, the first-delta clock runs for at most this share of what remains.
FIRST_DELTA_SHARE: Final = 0.6


class State(enum.Enum):
    """Where a call stands."""

    QUEUED = "queued"
    SEEKING = "seeking"
    RUNNING = "running"
    STREAMING = "streaming"
    ENDED = "ended"

    # A member is hashed with every step of every call, and Enum's own way is one of Python, by its name.
    __hash__ = object.__hash__


#: state -> the states it may step to. Anything else raises and changes nothing.
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.SEEKING, State.ENDED}),
    State.SEEKING: frozenset({State.RUNNING, State.ENDED}),
    State.RUNNING: frozenset({State.SEEKING, State.STREAMING, State.ENDED}),
    State.STREAMING: frozenset({State.SEEKING, State.ENDED}),
    State.ENDED: frozenset(),
}


class Call:
    """One call's life.

    Args:
        order: the targets of its route (indices), those to be asked first first.
        services: by target: two with the same number are two ways to one service and model (`losses`).
        deadline: instant by which the terminal is sent.
        first_delta_timeout, idle_timeout: seconds.
        restart: `on_lost: "restart"` was asked for.
        jitter: 0 <= x < 1, for backoff.
        max_attempts: on the wire, the first included.
    """

    __slots__ = (
        "_first_delta_timeout",
        "_idle_timeout",
        "_jitter",
        "_losses",
        "_lost_in",
        "_max_attempts",
        "_order",
        "_restart",
        "_seek_at",
        "_services",
        "_twice",
        "attempts",
        "deadline",
        "first_outcome",
        "made",
        "seeking",
        "state",
        "winner",
    )

    def __init__(
        self,
        *,
        order: Sequence[int],
        services: Sequence[int],
        deadline: float,
        first_delta_timeout: float,
        idle_timeout: float,
        restart: bool,
        jitter: Callable[[], float],
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self.state = State.QUEUED
        self.deadline = deadline
        #: attempts that are running, in the order they were started
        self.attempts: list[AttemptState] = []
        #: how many were ever started
        self.made = 0
        #: the attempt whose content is the answer
        self.winner: AttemptState | None = None
        #: the outcome of the first attempt that was lost: what the bot is told when all fail
        self.first_outcome: Outcome | None = None
        #: an attempt is wanted (the first, a retry, or a backup while others run)
        self.seeking = False
        self._order, self._services = order, services
        self._max_attempts = max_attempts
        #: the backup that is wanted may go to a target that is being asked already, on another connection
        self._twice = False
        self._first_delta_timeout = first_delta_timeout
        self._idle_timeout = idle_timeout
        self._restart = restart
        self._jitter = jitter
        self._losses: Losses | None = None
        self._seek_at = math.inf
        #: the phase in which the last attempt was lost, until the call waits for something else
        self._lost_in: Phase | None = None

    def __repr__(self) -> str:
        winner = self.winner and self.winner.number
        return f"<Call {self.state.value} attempts={len(self.attempts)}/{self.made} winner={winner}>"

    # ------------------------------------------------------------------ steps

    def admitted(self) -> None:
        """Out of the queue: an attempt is wanted."""
        if self.state is not State.QUEUED:
            raise IllegalTransition(f"{self!r} is admitted already")
        self._to(State.SEEKING)
        self.seeking = True

    def started(self, target: int, now: float, *, backup_after: float = math.inf) -> AttemptState:
        """An attempt was handed to a connection of `target`.

        `backup_after`: seconds after which, alone and without content, it gets a sibling; inf for never.
        """
        if not self.seeking:
            raise IllegalTransition(f"{self!r} wants no attempt")
        if self.state is State.SEEKING:
            self._to(State.RUNNING)
        self.seeking = False
        self._seek_at = math.inf
        self._lost_in = None
        self.made += 1
        first = self._losses is None and not self.attempts
        wait = self._first_delta_timeout
        if len(self._order) > 1 and self.made < self._max_attempts and (first or self._untried(target)):
            wait = min(wait, FIRST_DELTA_SHARE * (self.deadline - now))
        attempt = AttemptState(self.made, target, now, now + wait)
        if not self.attempts:
            attempt.backup_at = now + backup_after
        self.attempts.append(attempt)
        return attempt

    def content(self, attempt: AttemptState, now: float) -> list[AttemptState]:
        """The first content of an attempt: it answers. Returns the attempts to stop.

        Later content needs no step: the dispatcher only moves `attempt.last_content_at`.
        """
        if attempt not in self.attempts or self.winner is not None:
            raise IllegalTransition(f"{self!r}: content of {attempt!r}")
        self._to(State.STREAMING)
        attempt.first_content_at = attempt.last_content_at = now
        self.winner = attempt
        self.seeking = False
        self._seek_at = math.inf
        return self._alone(attempt)

    def ending(self, attempt: AttemptState, now: float, grace: float) -> None:
        """The content of an attempt is over; without its usage it is concluded after `grace`.

        Sooner where the deadline is near: an answer that was complete in time must not become `deadline_exceeded`
        for want of its usage.
        """
        attempt.conclude_at = now + min(grace, (self.deadline - now) / 2)

    def finished(self, attempt: AttemptState) -> list[AttemptState]:
        """An attempt ended as it should: so does the call. Returns the attempts to stop."""
        if attempt not in self.attempts:
            raise IllegalTransition(f"{self!r}: end of {attempt!r}")
        losers = self._alone(attempt)
        self.end()
        self.winner = attempt
        return losers

    def lost(
        self,
        attempt: AttemptState,
        outcome: Outcome,
        now: float,
        *,
        committed: bool,
        usual: float = 0.0,
    ) -> Verdict:
        """An attempt failed.

        Args:
            attempt: the one; it is no longer running.
            outcome: why, classified.
            now: the instant.
            committed: a delta of this call was forwarded to the bot.
            usual: seconds that the target usually needs to its first delta: a retry that cannot make it is not tried.
        """
        if attempt not in self.attempts:
            raise IllegalTransition(f"{self!r}: loss of {attempt!r}")
        self._lost_in = self.phase()
        self.attempts.remove(attempt)
        if self.first_outcome is None or self.first_outcome.kind is Kind.IGNORED:
            self.first_outcome = outcome
        if attempt is self.winner:
            self.winner = None
            if committed and not self._restart:
                return End(outcome)
        losses = self._had_losses()
        losses.lost(attempt.target, outcome, now, usual)
        if outcome.retry == "never":
            return End(self.first_outcome) if not self.attempts else Wait()
        if self.made >= self._max_attempts or not (self._untried() or losses.may_be_asked_again()):
            return End(self.first_outcome) if not self.attempts else Wait()
        if self.attempts:
            # A backup is still running. Start another only if it is wanted by its own clock.
            return Wait()
        self._to(State.SEEKING)
        self.seeking = True
        return Seek()

    def want_backup(self, *, twice: bool = False) -> bool:
        """The first-delta clock fell due: is there an untried target to start beside the attempt in hand?

        Args:
            twice: it was the backup's clock: another connection of a target that is being asked will do, too.
        """
        if self.winner is not None or not self.attempts or self.made >= self._max_attempts:
            return False
        if self._untried() or (twice and len(self.attempts) == 1):
            self._twice = twice or (self.seeking and self._twice)
            self.seeking = True
            return True
        return False

    def give_up_backup(self) -> None:
        """No backup can be had (budget, breaker): the attempt in hand goes on alone."""
        if self.attempts:
            self.seeking = False
            self._seek_at = math.inf

    def end(self) -> None:
        """The terminal is sent: nothing follows."""
        self._to(State.ENDED)
        self.attempts = []
        self.seeking = False

    # ------------------------------------------------------------------ questions

    def candidates(self, now: float) -> Sequence[int]:
        """Targets that may be asked now: untried ones in order of preference, then lost ones whose time has come.

        Beside a running attempt: targets that this call has not tried; for a backup, then the running one's.
        """
        if self._losses is None and not self.attempts:
            return self._order
        return self._had_losses().candidates([attempt.target for attempt in self.attempts], now, twice=self._twice)

    def retry_is_due_later(self, now: float) -> bool:
        """A lost target's backoff ends before the deadline: worth waiting for."""
        return self._losses is not None and self._losses.is_due_later(now)

    def lift(self, target: int, now: float) -> None:
        """The credential of `target` need wait no longer: nor does this call, if that was why it waited."""
        if self._losses is not None:
            self._losses.lift(target, now)

    def price(self, target: int) -> float:
        """What a further attempt on `target` costs of its budget: more where it has said that it is overloaded."""
        return 1.0 if self._losses is None else self._losses.price(target)

    def park(self, until: float, now: float) -> None:
        """Nothing can be had before `until` unless somebody says so earlier: wake then to seek again."""
        # A retry whose time has come waits for a connection, not for time: it must not wake the call over and over.
        instants = [until, *(() if self._losses is None else self._losses.instants())]
        self._seek_at = min((at for at in instants if at > now), default=math.inf)
        self._lost_in = None

    def phase(self) -> Phase:
        """What the call waits for."""
        if self.winner is not None and self.winner.first_content_at is not None:
            return "stream"
        return "first_delta" if self.attempts else self._lost_in or "queue"

    def next_wakeup_at(self) -> float:
        """The earliest instant at which `due` has something to say."""
        earliest = min(self.deadline, self._seek_at)
        winner = self.winner
        for attempt in self.attempts:
            if attempt.conclude_at < math.inf:
                clock = attempt.conclude_at  # its content is over: no other clock of it runs
            elif attempt is winner:
                clock = attempt.last_content_at + self._idle_timeout
            else:
                clock = min(attempt.first_delta_at, attempt.backup_at)
            if clock < earliest:
                earliest = clock
        return earliest

    def due(self, now: float) -> Due | None:
        """The clock that has fallen due, the deadline before all others; call again until None."""
        if self.state is State.ENDED:
            return None
        if now >= self.deadline:
            return Due("deadline")
        for attempt in self.attempts:
            if attempt.conclude_at < math.inf:
                if now >= attempt.conclude_at:
                    attempt.conclude_at = math.inf
                    return Due("conclude", attempt)
            elif attempt is self.winner:
                if now >= attempt.last_content_at + self._idle_timeout:
                    return Due("idle", attempt)
            elif now >= attempt.backup_at:
                attempt.backup_at = math.inf
                return Due("backup", attempt)
            elif now >= attempt.first_delta_at:
                attempt.first_delta_at = math.inf
                attempt.overtaken = True
                self._had_losses().silent(attempt.target)
                return Due("first_delta", attempt)
        if now >= self._seek_at:
            self._seek_at = math.inf
            return Due("seek")
        return None

    def deadline_outcome(self, attempt: AttemptState, now: float, *, usual_worst: float = math.inf) -> Outcome:
        """How a deadline that ended `attempt` is judged: counted only if it waited long enough for that.

        Args:
            attempt: which one.
            now: instant.
            usual_worst: seconds, twice the 95th percentile of its target's time to first delta; long enough as well as
                the full first-delta timeout.
        """
        if attempt.first_content_at is not None:
            return DEADLINE
        return deadline(counted=now - attempt.sent_at >= min(self._first_delta_timeout, usual_worst))

    # ------------------------------------------------------------------ inside

    def _to(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"call: {self.state.value} -> {state.value}")
        self.state = state

    def _alone(self, attempt: AttemptState) -> list[AttemptState]:
        """From here only `attempt` runs. Returns those that are to be stopped."""
        losers = [other for other in self.attempts if other is not attempt] if len(self.attempts) > 1 else []
        self.attempts = [attempt]
        return losers

    def _had_losses(self) -> Losses:
        if self._losses is None:
            self._losses = Losses(self._order, self._services, self.deadline, self._jitter)
        return self._losses

    def _untried(self, *besides: int) -> bool:
        """Some target was not asked, `besides` and those that are being asked not counted."""
        return bool(self._had_losses().untried([*besides, *(attempt.target for attempt in self.attempts)]))
