"""Policies broken on purpose, each a patch of the product for as long as a `with` lasts: the simulation must find them.

Every mutant is a plausible slip of a hand, not a crash: a check left out, an order of steps swapped, something not
given back. `find` plays seeds until one breaks an invariant, and says which.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from msgspec import Struct

from sidecar.core import call as call_policy
from sidecar.core.admission import Admission
from sidecar.core.breaker import Breaker
from sidecar.core.idle import Habits
from sidecar.core.outcome import CANCELLED
from sidecar.core.permit import Permit, Refusal
from sidecar.core.retry import RetryBudget
from sidecar.dialects.base import Finished
from sidecar.service.connection import Connection
from sidecar.service.dispatcher import Dispatcher
from sidecar.service.http_connection import HttpConnection
from sidecar.service.judging import Judge
from sidecar.service.parking import Parking
from sidecar.service.reply import BotReply
from sidecar.service.running_call import RunningCall
from sidecar.transport import http2_link
from sidecar.transport.http1_link import Http1Link
from sidecar.transport.http2_link import Http2Link
from tests.simulation.invariants import Broken
from tests.simulation.world import play

Patch = Callable[[Any], Any]


class Mutant(Struct, frozen=True):
    """A broken policy.

    Args:
        what: in words.
        owner, name: what is patched.
        broken: original -> replacement.
        caught_by: invariants, any of which counts as having found it.
    """

    what: str
    owner: Any
    name: str
    broken: Patch
    caught_by: frozenset[str]


class Found(Struct, frozen=True):
    """Where a mutant was caught."""

    seed: int
    tried: int
    broken: Broken


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The product is broken inside."""
    original = getattr(mutant.owner, mutant.name)
    with mock.patch.object(mutant.owner, mutant.name, mutant.broken(original)):
        yield


def find(mutant: Mutant, seeds: range) -> Found | None:
    """The first of `seeds` in which one of the mutant's invariants does not hold; None when they hold in all.

    A seed that fails without the mutant, too, finds nothing.
    """
    for tried, seed in enumerate(seeds, 1):
        with applied(mutant):
            found = [broken for broken in play(seed).broken if broken.invariant in mutant.caught_by]
        if found and not play(seed).broken:
            return Found(seed, tried, found[0])
    return None


# ---------------------------------------------------------------------------------------------- the patches


def _two_trials(admit: Any) -> Any:
    """Whoever asks a half-open breaker gets a trial."""

    @functools.wraps(admit)
    def broken(self: Breaker, now: float, *lane: Any) -> Permit | Refusal:
        permit: Permit | Refusal = admit(self, now, *lane)
        if isinstance(permit, Refusal) and self._state == "half_open" and self._trial is not None:
            return self._trial
        return permit

    return broken


def _deadline_after_the_read(next_wakeup_at: Any) -> Any:
    """The deadline is looked at when something comes in; its own clock is there as a last resort, a second later."""

    @functools.wraps(next_wakeup_at)
    def broken(self: Any) -> float:
        at: float = next_wakeup_at(self)
        return self.deadline + 1.0 if at == self.deadline and self.attempts else at

    return broken


def _double_terminal(finish: Any) -> Any:
    """A terminal is sent again when another attempt of the call was running."""

    @functools.wraps(finish)
    def broken(self: BotReply, terminal: Any) -> None:
        finish(self, terminal)
        if terminal.attempts > 1:
            self.peer.note(self.encoding, terminal, self.envelope)  # type: ignore[attr-defined]

    return broken


def _budget_ignored(withdraw: Any) -> Any:
    """Further attempts are free."""
    return lambda self, now, *price, **how: withdraw(self, now, *price, **how) or True


def _permit_leaked(record: Any) -> Any:
    """An attempt that the bot cancelled does not hand its permit back."""

    @functools.wraps(record)
    def broken(self: Breaker, permit: Permit, outcome: Any, now: float, **more: Any) -> None:
        if outcome is not CANCELLED:
            record(self, permit, outcome, now, **more)

    return broken


def _lost_wakeup(on_capacity: Any) -> Any:
    """Calls that wait are woken for a free connection only when there is exactly one of them."""

    @functools.wraps(on_capacity)
    def broken(self: Parking[Any], pool: Any) -> None:
        if self.waiting(pool.name) <= 1:
            on_capacity(self, pool)

    return broken


def _retry_after_commit(lost: Any) -> Any:
    """Nobody asks whether text was forwarded already."""

    @functools.wraps(lost)
    def broken(self: Any, attempt: Any, outcome: Any, now: float, *, committed: bool, **more: Any) -> Any:
        return lost(self, attempt, outcome, now, committed=False, **more)

    return broken


def _stitched_restart(restart: Any) -> Any:
    """A restart is not announced: the new text follows the old."""
    return lambda self, message: None


def _loser_runs_on(stop: Any) -> Any:
    """The attempt that lost the race is forgotten, and not stopped."""

    @functools.wraps(stop)
    def broken(self: RunningCall, attempt: Any, outcome: Any, now: float) -> None:
        if self.winner is not None and attempt is not self.winner:
            self.attempts.remove(attempt)
            self.desk.record(attempt, outcome, now)
        else:
            stop(self, attempt, outcome, now)

    return broken


def _place_leaked(leave: Any) -> Any:
    """A call that failed without an attempt keeps its place."""

    @functools.wraps(leave)
    def broken(self: Admission, key: Any, *now: Any) -> Any:
        return [] if self.in_flight > 3 else leave(self, key, *now)

    return broken


def _halt_for_new_calls_only(end_lanes: Any) -> Any:
    """A halt refuses what comes, and lets run what runs."""
    return lambda self, lanes, message: 0


def _limit_leaked(record: Any) -> Any:
    """An attempt that loses its connection does not give back its room under the concurrency limit."""

    @functools.wraps(record)
    def broken(self: Judge, attempt: Any, outcome: Any, now: float) -> None:
        gate = attempt.target.pool.gate
        record(self, attempt, outcome, now)
        if outcome.retire_connection:
            gate.limit.taken()

    return broken


def _cut_is_done(closed: Any) -> Any:
    """A stream that ends without an end marker is taken for an answer."""

    @functools.wraps(closed)
    def broken(self: Connection, fault: Any, now: float) -> None:
        for slot, attempt in enumerate(self._attempts):
            state = getattr(attempt, "state", None)
            if state is not None and state.first_content_at is not None and hasattr(self._codec, "_slots"):
                place = self._codec._slots[slot]
                if getattr(place, "finish", "") is None:  # chat: as if finish_reason had come
                    place.finish = "stop"
                    self._ending.add(slot)
        closed(self, fault, now)

    return broken


def _idle_close_blamed(end_of_input: Any) -> Any:
    """Nobody asks for how long a connection had been idle when it was closed under a request."""

    @functools.wraps(end_of_input)
    def broken(self: Http1Link, how: Any, reason: str) -> None:
        self._idle_for = 0.0
        end_of_input(self, how, reason)

    return broken


def _exchange_is_answer(on_over: Any) -> Any:
    """An exchange that is over after some text is taken for an answer, with an end or without."""

    @functools.wraps(on_over)
    def broken(self: HttpConnection, slot: int, fault: Any, now: float) -> None:
        state = getattr(self._attempts[slot], "state", None)
        if state is not None and state.first_content_at is not None:
            self._handle(slot, Finished(slot=slot, finish="stop"), now)
        on_over(self, slot, fault, now)

    return broken


def _each_left_counts(untouched: Any) -> Any:
    """A GOAWAY counts once for each request that it leaves."""

    @functools.wraps(untouched)
    def broken(self: Habits, opened_at: float, now: float) -> bool:
        self._left_at = -math.inf
        believed: bool = untouched(self, opened_at, now)
        return believed

    return broken


def _room_unheard_of(on_room: Any) -> Any:
    """A server that takes more calls than before has told nobody."""
    return lambda self: None


def _stream_runs_on(reset: Any) -> Any:
    """A stopped stream is forgotten, and not reset, unless its answer has begun."""

    @functools.wraps(reset)
    def broken(self: Http2Link, stream: Any) -> None:
        if stream.answer.headed:
            reset(self, stream)
        else:
            self._forget(stream)

    return broken


def _goaway_is_an_end(last_of: Any) -> Any:
    """GOAWAY is taken to mean that nothing was looked at."""
    return lambda payload: 0


def _streams_mixed_up(on_events: Any) -> Any:
    """What a read brings for one answer is given to another that runs beside it."""

    @functools.wraps(on_events)
    def broken(self: HttpConnection, slot: int, payloads: Any, now: float) -> None:
        others = [other for other, codec in enumerate(self._codecs) if codec is not None and other != slot]
        on_events(self, others[0] if others and len(payloads) == 1 else slot, payloads, now)

    return broken


MUTANTS: Final[dict[str, Mutant]] = {
    "two trials at half-open": Mutant(
        "two trials of a half-open breaker at once", Breaker, "admit", _two_trials, frozenset({"one trial"})
    ),
    "deadline after the read": Mutant(
        "a deadline that is looked at after the next read, not by a clock",
        call_policy.Call,
        "next_wakeup_at",
        _deadline_after_the_read,
        frozenset({"by the deadline"}),
    ),
    "double terminal": Mutant(
        "a terminal that is sent twice", BotReply, "finish", _double_terminal, frozenset({"one terminal"})
    ),
    "budget ignored": Mutant(
        "retries and backups without a budget", RetryBudget, "withdraw", _budget_ignored, frozenset({"budget"})
    ),
    "permit leaked": Mutant(
        "a trial that was cancelled is never handed back",
        Breaker,
        "record",
        _permit_leaked,
        frozenset({"nothing left", "liveness"}),
    ),
    "lost wake-up": Mutant(
        "calls that wait are not woken", Parking, "on_capacity", _lost_wakeup, frozenset({"liveness", "in time"})
    ),
    "retry after commit": Mutant(
        "an attempt after text was forwarded",
        call_policy.Call,
        "lost",
        _retry_after_commit,
        frozenset({"no stitching"}),
    ),
    "stitched restart": Mutant(
        "a restart that is not announced", BotReply, "restart", _stitched_restart, frozenset({"no stitching"})
    ),
    "loser runs on": Mutant(
        "the loser of a race is not stopped", RunningCall, "_stop", _loser_runs_on, frozenset({"stopped upstream"})
    ),
    "place leaked": Mutant(
        "a call's place in flight is not given back", Admission, "leave", _place_leaked, frozenset({"nothing left"})
    ),
    "halt for new calls only": Mutant(
        "a halt that ends nothing", Dispatcher, "end_lanes", _halt_for_new_calls_only, frozenset({"halted"})
    ),
    "limit leaked": Mutant(
        "room under the concurrency limit is not given back",
        Judge,
        "record",
        _limit_leaked,
        frozenset({"nothing left", "liveness"}),
    ),
    "cut is done": Mutant("a cut stream is an answer", Connection, "closed", _cut_is_done, frozenset({"no false end"})),
    "idle close is a failure": Mutant(
        "a server that closes idle connections is blamed for it",
        Http1Link,
        "end_of_input",
        _idle_close_blamed,
        frozenset({"no blame"}),
    ),
    "exchange is answer": Mutant(
        "the end of an HTTP exchange is an answer's end",
        HttpConnection,
        "on_over",
        _exchange_is_answer,
        frozenset({"no false end"}),
    ),
    "each request of a GOAWAY counts": Mutant(
        "a server is blamed for what one GOAWAY leaves", Habits, "untouched", _each_left_counts, frozenset({"no blame"})
    ),
    "room unheard of": Mutant(
        "more streams at once are told to nobody",
        HttpConnection,
        "on_room",
        _room_unheard_of,
        frozenset({"in time", "nothing left"}),
    ),
    "stream runs on": Mutant(
        "a stream is given up without a word", Http2Link, "_reset", _stream_runs_on, frozenset({"stopped upstream"})
    ),
    "GOAWAY is an end": Mutant(
        "what a server has looked at before its GOAWAY is given up",
        http2_link,
        "last_of",
        _goaway_is_an_end,
        frozenset({"no blame"}),
    ),
    "streams mixed up": Mutant(
        "an answer's events go to another's call",
        HttpConnection,
        "on_events",
        _streams_mixed_up,
        frozenset({"no stitching"}),
    ),
}
