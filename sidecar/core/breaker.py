"""The circuit breaker of one upstream and model: stop asking who cannot answer, and find out gently when it can.

    | state | event | state after |
    |---|---|---|
    | closed | trip | open |
    | open | half_open (its time is over, and somebody asks; with `probed`, a probe succeeded) | half_open |
    | open | probe_failed (with `probed` only) | open |
    | half_open | close (enough trials succeeded) | closed |
    | half_open | trip (a trial failed, or was slow) | open |

Counted are outcomes with `counts_against_breaker`, successes, and whatever was slow (an attempt that its backup
overtook ends "cancelled", and still was slow); every other outcome says nothing about the upstream and gives a
half-open permit back. Half-open admits one trial at a time; of trials that their deadlines end it takes `UNANSWERED`
in a row for a failed one. Each state is a generation: an outcome that
belongs to a permit of an earlier one is ignored, so that calls begun before a trip cannot close or re-open it. A trial
that is never recorded expires.

With `probed`, a bot's call is risked only after a fresh connect and a ping have worked since the breaker's time was
over: most outages are such that this shows them, and it costs no bot its deadline. What the pool finds out is evidence
of its instant, whoever found it: probes carry no permit, and news of one that nobody waits for is ignored.

Trials are taken from those who have the least to lose (`core.trials`).

Sources: gobreaker (generations), Polly (lost trials), resilience4j (slow-call rate), Finagle (equal-jittered,
growing). Probes and lanes: docs/decisions/0013. The numbers: docs/decisions/0006.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Final

from sidecar.core.outcome import DEADLINE, Kind, Outcome
from sidecar.core.permit import BreakerStatistics, Permit, Refusal, State
from sidecar.core.transitions import Table
from sidecar.core.trials import Trials
from sidecar.core.window import Window, by_chance
from sidecar.wire import Lane

TRANSITIONS: Final[Table[State]] = Table(
    "breaker",
    {
        ("closed", "trip"): "open",
        ("open", "half_open"): "half_open",
        ("open", "probe_failed"): "open",
        ("half_open", "close"): "closed",
        ("half_open", "trip"): "open",
    },
)

#: Seconds, the longest open time after a failed probe, which cost no call: as long as connects wait at most.
PROBE_CAP: Final = 10.0
#: Trials in a row that ended by their deadlines: no single one need say anything (a bot in a hurry), but so many calls
#: were risked, and nothing came of it.
UNANSWERED: Final = 3
#: Seconds of an answer after which a trial is a success, whether or not it has ended: who waits for the last word of a
#: long one keeps everybody else waiting, too.
ANSWERING: Final = 10.0
#: Seconds added to a wait for a free trial, so that whoever waited does not come a rounding too early, and looks twice.
_LATER: Final = 0.01


class Breaker:
    """One breaker. Every method is synchronous and constant in time; `admit` while closed is one comparison.

    Args:
        name: upstream and model, for statistics.
        consecutive: counted failures in a row that trip it, unless chance brings such a run (`window.CHANCE`).
        rate, rate_minimum: share of counted failures that trips it, once there are so many outcomes in the window.
        window: seconds.
        slow_rate: share of slow outcomes that trips it, with the same minimum.
        open_base, open_cap: seconds; it stays open for an equal-jittered time in between, doubling with each trip
            until it was closed for a whole window. A Retry-After of what tripped it is a floor, believed up to
            `open_cap`, plus U(0, 20 %).
        trials: successful trials, one after the other, that close it.
        trial_timeout: seconds after which a trial that was not recorded is given up for lost, and so is a probe. More
            than the longest first-delta time to be expected; a trial still running then does no harm, its outcome is
            ignored.
        probed: once its time is over it waits for a probe (`probe_due_at`) before calls are risked. Whoever says so
            runs the probes: without them it stays open.
        jitter: U(0, 1).
    """

    __slots__ = (
        "_answers", "_closed_at", "_consecutive", "_consecutive_limit", "_free_at", "_growth", "_jitter", "_name",
        "_no_way_in", "_open_base", "_open_cap", "_open_until", "_permit", "_probe_until", "_probed", "_probes",
        "_rate", "_rate_minimum", "_refused", "_slow_rate", "_stale", "_state", "_successes", "_trial",
        "_trial_timeout", "_trial_until", "_trials", "_trials_needed", "_trips", "_turns", "_unanswered", "_window",
        "_window_width",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        consecutive: int = 5,
        rate: float = 0.5,
        rate_minimum: int = 10,
        window: float = 30.0,
        slow_rate: float = 0.8,
        open_base: float = 1.0,
        open_cap: float = 30.0,
        trials: int = 2,
        trial_timeout: float = 30.0,
        probed: bool = False,
        jitter: Callable[[], float],
    ) -> None:
        self._name = name
        self._consecutive_limit = consecutive
        self._rate, self._rate_minimum, self._slow_rate = rate, rate_minimum, slow_rate
        self._open_base, self._open_cap = open_base, open_cap
        self._trials_needed, self._trial_timeout = trials, trial_timeout
        self._probed = probed
        self._jitter = jitter
        self._window, self._window_width = Window(window), window
        self._state: State = "closed"
        self._permit = Permit(0)
        self._consecutive = 0
        self._growth = 0
        self._closed_at = -math.inf
        self._open_until = -math.inf
        self._trial: Permit | None = None
        self._trial_until = -math.inf
        self._answers = False  # the trial that is out has had its first content
        self._turns = Trials()
        self._free_at = -math.inf  # since when the next trial has been free
        self._probe_until: float | None = None  # a probe is out, and given up for lost then
        self._successes = self._unanswered = 0
        self._no_way_in = False  # it is open because of a failed connect
        self._trips = self._refused = self._trials = self._probes = self._stale = 0

    def admit(self, now: float, lane: Lane = "research", holder: Hashable = None) -> Permit | Refusal:
        """May an attempt be made? A permit is handed back once: to `record`, or unused to `give_back`.

        Args:
            now: instant.
            lane, holder: of the call, and whose it is. They matter to trials only: see `core.trials`.
        """
        if self._state == "closed":
            return self._permit
        self._turns.asks(holder, now)
        if self.state(now) == "open":
            self._refused += 1
            return Refusal(self.retry_after(now))
        self._half_open()
        if self._trial is not None:
            if now < self._trial_until:
                self._refused += 1
                return Refusal(self.retry_after(now), soon=True)
            if self.settle(now):
                return self._permit
        kept_until = self._turns.kept_until(lane, holder, free_at=self._free_at, now=now)
        if now < kept_until:
            self._refused += 1
            return Refusal(kept_until - now + _LATER * (1 + self._jitter()), soon=True)
        self._trials += 1
        self._turns.given(holder)
        # A new generation per trial: a trial given up for lost cannot speak for the one after it.
        self._trial = self._permit = Permit(self._permit.generation + 1, trial=True)
        self._trial_until = now + self._trial_timeout
        self._answers = False
        return self._trial

    def answering(self, permit: Permit, now: float) -> None:
        """First content of an attempt came. A trial that goes on for `ANSWERING` need not end to be a success."""
        if permit.trial and permit is self._trial:
            self._answers = True
            self._trial_until = now + ANSWERING

    def settles_at(self) -> float:
        """When the trial that is out will have answered for long enough; inf when none answers."""
        return self._trial_until if self._trial is not None and self._answers else math.inf

    def settle(self, now: float) -> bool:
        """A trial's time is over: an answer that goes on is a success, silence is a loss. Whether that closed it."""
        if self._trial is None or now < self._trial_until:
            return False
        self._free_at = self._trial_until
        self._trial = None
        if not self._answers:
            return False
        self._turns.ended(failed=False)
        return self._trial_answered(now)

    def retry_after(self, now: float) -> float:
        """Seconds, more than 0 and jittered, after which asking again makes sense for whoever is refused now."""
        if self._state == "open" and now < self._open_until:
            # The herd that waits for this instant must not arrive as one.
            return (self._open_until - now) + self._open_base * 0.2 * self._jitter()
        return self._open_base * (0.5 + 0.5 * self._jitter())

    def record(self, permit: Permit, outcome: Outcome, now: float, *, slow: bool = False) -> None:
        """Hand a permit back with what came of it.

        Args:
            permit: of `admit`. One of an earlier generation, or a trial handed back before, is ignored.
            outcome: classified.
            now: instant.
            slow: the attempt was ended or overtaken by its first-delta clock, and that clock had run its full
                first_delta_timeout (a call in a hurry must not make an upstream look slow).
        """
        if permit.generation != self._permit.generation or (permit.trial and self._trial is None):
            self._stale += 1
            return
        failed = outcome.counts_against_breaker
        if permit.trial:
            self._trial, self._free_at = None, now
            # Ended by its bot, or by its deadline, in the middle of an answer: it answered.
            answered = outcome.kind is Kind.SUCCESS or (self._answers and outcome.kind is Kind.IGNORED)
            if answered or outcome.kind is not Kind.IGNORED:
                self._unanswered = 0
            elif outcome.code == DEADLINE.code:
                self._unanswered += 1
            if failed or slow or self._unanswered >= UNANSWERED:
                self._turns.ended(failed=True)
                self._trip(now, outcome)
            elif answered:
                self._turns.ended(failed=False)
                self._trial_answered(now)
            return
        if failed:
            self._consecutive += 1
        elif outcome.kind is Kind.SUCCESS:
            self._consecutive = 0
        elif not slow:
            return
        self._window.add(now, failed, slow)
        if (failed or slow) and self._too_bad(now):
            self._trip(now, outcome)

    # ---------------------------------------------------------------- what the pool finds out

    def connect_failed(self, outcome: Outcome, now: float) -> None:
        """A connect to the upstream failed; no permit was needed for it.

        Closed, it counts like an attempt. Half-open, it is the trial that failed (unless a call's trial is out, which
        knows better). Open with its time over, it is the probe that failed (unless one is out: that one's end is told
        by `probe_ended`). Open before that, it says nothing new.
        """
        if not outcome.counts_against_breaker:
            return
        if self._state == "closed":
            self.record(self._permit, outcome, now)
            self._no_way_in = self._no_way_in or self._state != "closed"
        elif self.state(now) == "half_open":
            if self._trial is None or now >= self._trial_until:
                self._half_open()
                self._trip(now, outcome)
                self._no_way_in = True
        elif now >= self._open_until:
            if not self._probe_is_out(now):
                self._probe_failed(now, outcome.retry_after)
            self._no_way_in = True

    def connected(self, now: float) -> None:
        """A connect succeeded. If the breaker is open because none did, its reason is gone: its time is over.

        Then a trial may go at once; with `probed`, a probe is due at once, and no more. A breaker that calls have
        opened waits its time: an upstream in trouble mostly takes connections still.
        """
        if self._no_way_in and self._state == "open" and self._open_until > now:
            self._open_until = now
        self._no_way_in = False

    def probe_due_at(self) -> float:
        """From when on a probe is wanted: a fresh connect and a ping, by the pool; inf when none is.

        While one is out this is when it is given up for lost: the next one is wanted then.
        """
        if not self._probed or self._state != "open":
            return math.inf
        return self._open_until if self._probe_until is None else self._probe_until

    def probe_started(self, now: float) -> None:
        """A probe is out. One that was not due says nothing to this breaker, and its end will not either."""
        if now >= self.probe_due_at():
            self._probes += 1
            self._probe_until = now + self._trial_timeout

    def probe_ended(self, now: float, ok: bool) -> None:  # noqa: FBT001  (the one thing there is to say)
        """The probe ended. `ok`: half-open, trials may go; not `ok`: open again, for longer up to `PROBE_CAP`.

        Without a probe out (ended already, given up for lost, a trip or a close since) it says nothing.
        """
        if not self._probe_is_out(now):
            return
        if ok:
            self._half_open(now)
        else:
            self._probe_failed(now)

    # ---------------------------------------------------------------- unused permits, questions

    def give_back(self, permit: Permit) -> None:
        """Hand a permit back unused (no connection was to be had): as if it had never been asked for."""
        if permit.trial and permit is self._trial:
            self._trial = None

    def is_shut(self, now: float) -> bool:
        """Nobody would get a permit: it is open, or half-open with its trial out."""
        if self._state == "closed":
            return False
        return self.state(now) == "open" or (self._trial is not None and now < self._trial_until)

    def state(self, now: float) -> State:
        """The state that a call asking now would meet: an open breaker whose time is over is half-open, if unprobed."""
        if self._state == "open" and now >= self._open_until and not self._probed:
            return "half_open"
        return self._state

    def next_wakeup_at(self) -> float:
        """When time alone may change what is refused; inf when nobody waits for time.

        With `probed` a refusal then becomes a permit only after a probe: possibly an instant that is past.
        """
        if self._state == "open":
            return self._open_until if self._probe_until is None else self._probe_until
        return self._trial_until if self._trial is not None else math.inf

    def statistics(self, now: float) -> BreakerStatistics:
        """A snapshot."""
        total, failures, slow = self._window.sums(now)
        return BreakerStatistics(
            name=self._name,
            state=self.state(now),
            consecutive_failures=self._consecutive,
            total=total,
            failures=failures,
            slow=slow,
            trips=self._trips,
            refused=self._refused,
            trials=self._trials,
            probes=self._probes,
            stale=self._stale,
            next_wakeup_at=self.next_wakeup_at(),
        )

    def _too_bad(self, now: float) -> bool:
        total, failures, slow = self._window.sums(now)
        if self._consecutive >= self._consecutive_limit and not by_chance(
            self._consecutive, total, failures, known=self._rate_minimum
        ):
            return True
        return total >= self._rate_minimum and (failures >= self._rate * total or slow >= self._slow_rate * total)

    def _probe_is_out(self, now: float) -> bool:
        return self._probe_until is not None and now < self._probe_until

    def _half_open(self, now: float | None = None) -> None:
        """From open, if it still is: the first trial is free since `now`, else since its time was over."""
        if self._state == "open":
            self._step("half_open")
            self._free_at = self._open_until if now is None else now
            self._successes = self._unanswered = 0

    def _step(self, event: str) -> None:
        self._state = TRANSITIONS.after(self._state, event)
        self._permit = Permit(self._permit.generation + 1)
        self._trial = self._probe_until = None

    def _trip(self, now: float, outcome: Outcome) -> None:
        if self._state == "closed" and now - self._closed_at >= self._window_width:
            self._growth = 0
        self._step("trip")
        self._trips += 1
        self._no_way_in = False
        self._stay_open(now, outcome.retry_after, self._open_cap)

    def _probe_failed(self, now: float, retry_after: float | None = None) -> None:
        self._step("probe_failed")
        self._stay_open(now, retry_after, min(self._open_cap, PROBE_CAP))

    def _stay_open(self, now: float, retry_after: float | None, cap: float) -> None:
        # Equal jitter between half and the whole of 2, 4, 8 ... times the base: never below it, never above the cap.
        longest = min(cap, math.ldexp(2 * self._open_base, min(self._growth, 32)))
        wait = max(self._open_base, longest / 2 * (1 + self._jitter()))
        if retry_after is not None:
            # Jittered upwards: all who were told the same must not come back as one.
            wait = max(wait, min(self._open_cap, retry_after) * (1 + 0.2 * self._jitter()))
        self._open_until = now + wait
        self._growth += 1

    def _trial_answered(self, now: float) -> bool:
        """Whether that was enough: it is closed."""
        self._successes += 1
        if self._successes < self._trials_needed:
            return False
        self._close(now)
        return True

    def _close(self, now: float) -> None:
        self._step("close")
        self._closed_at = now
        self._consecutive = 0
        self._window.clear()

    def __repr__(self) -> str:
        out = " trial" if self._trial is not None else " probe" if self._probe_until is not None else ""
        return f"<Breaker {self._name} {self._state}{out} failures={self._consecutive} trips={self._trips}>"
