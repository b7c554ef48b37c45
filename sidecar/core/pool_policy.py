"""The pool's policy: which connections to open and which to retire. It decides synchronously and acts never.

A connection's life (`CONNECTION`; the pool and its connections step through it):

    | state | event | state after |
    |---|---|---|
    | CONNECTING | ready | READY |
    | READY | taken | BUSY |
    | BUSY | taken (a further slot) | BUSY |
    | BUSY | released, calls left | BUSY |
    | BUSY | idle (the last call ended) | READY |
    | READY, BUSY | retire | DRAINING |
    | DRAINING | released | DRAINING |
    | any but CLOSED | closed | CLOSED |

Rules, in the order of their weight:

1. Never more than `maximum` + `allowance` connections that are not CLOSED, and above `maximum` only to replace those
   that drain or are due for rotation. The allowance is an eighth of the maximum, at least one: a connection that
   drains a long call still counts, and with one place only, rotation could not keep up with an upstream's age limit.
2. `warm` idle spares (READY without a call, or CONNECTING), plus enough for the calls that wait, while there is room.
3. Replacement first: a connection due for rotation is retired once as many fresh idle spares stand as are wanted; at
   the maximum, once its replacement stands. If nothing can be opened, what works is kept, however old.
4. Never more connects than their rate allows (`core.connect_rate`), whatever they are for.
5. Connects wait for their backoff (`core.backoff`), and go out few at a time: `burst` at a healthy start, one after a
   failure or a loss, twice as many after each success. Losing one of many is no outage: while others still stand, the
   replacement waits a moment only (`ConnectBackoff.early_attempt_at`); what we closed ourselves is replaced at once.

Source: httpcore's `_assign_requests_to_connections` (decide synchronously, return what to close).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from sidecar.core.backoff import ConnectBackoff
from sidecar.core.connect_rate import ConnectRate
from sidecar.core.outcome import Outcome
from sidecar.core.transitions import Table
from sidecar.errors import UpstreamFault

ConnectionState: TypeAlias = Literal["CONNECTING", "READY", "BUSY", "DRAINING", "CLOSED"]

CONNECTION: Final[Table[ConnectionState]] = Table(
    "connection",
    {
        ("CONNECTING", "ready"): "READY",
        ("CONNECTING", "closed"): "CLOSED",
        ("READY", "taken"): "BUSY",
        ("READY", "retire"): "DRAINING",
        ("READY", "closed"): "CLOSED",
        ("BUSY", "taken"): "BUSY",
        ("BUSY", "released"): "BUSY",
        ("BUSY", "idle"): "READY",
        ("BUSY", "retire"): "DRAINING",
        ("BUSY", "closed"): "CLOSED",
        ("DRAINING", "released"): "DRAINING",
        ("DRAINING", "closed"): "CLOSED",
    },
)

#: Rotation falls into this last share of `max_age`.
ROTATION_SPREAD: Final = 0.2
#: Seconds over which spares that nobody is in need of are spread after an outage: a fleet's first connections are.
AFTERMATH: Final = 5.0
#: Seconds between two connects that nobody is in need of: each takes a millisecond of the loop, TLS two. Where many
#: spares are wanted it is less, so that the other half of them is there in `LEISURE_IN_ALL`.
LEISURE: Final = 0.020
LEISURE_IN_ALL: Final = 1.0
#: Successive connections are spread by the golden ratio: those opened together never fall due together.
_GOLDEN: Final = 0.6180339887498949


class ConnectionView(Struct, frozen=True):
    """A connection as the policy sees it. `taken`: slots in use; `retire_at`: of `retire_at_for`, None for never."""

    key: int
    state: ConnectionState
    opened_at: float
    taken: int = 0
    retire_at: float | None = None


class Open(Struct, frozen=True):
    """Start one connect now."""


class Retire(Struct, frozen=True):
    """DRAINING from now on: no new call; closed when idle."""

    key: int
    reason: str


Action: TypeAlias = Open | Retire

_OPEN: Final = Open()


class PolicyStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot; counts since the start, `connects_at_once` now."""

    opened: int
    retired: int
    failed: int
    lost: int
    stopped: int
    connects_at_once: int
    refused: bool
    may_connect_at: float


class PoolPolicy:
    """The policy of one upstream's pool.

    Args:
        warm: idle spares to keep; never more than `maximum` are.
        maximum: connections.
        slots: calls per connection.
        max_age: seconds; rotation falls into the last fifth of them.
        burst: connects at once, at most. Each takes a millisecond or two of the loop, in a round with all the others.
        backoff: of the connects; a default one if None.
        rate: of the connects; if None as many in a burst, and per second, as there may be connections, 16 at least: so
            all of them can be replaced at once when all of their calls were given up, and no more.
        jitter: U(0, 1).
    """

    def __init__(
        self,
        *,
        warm: int,
        maximum: int,
        slots: int = 1,
        max_age: float = 3300.0,
        burst: int = 8,
        backoff: ConnectBackoff | None = None,
        rate: ConnectRate | None = None,
        jitter: Callable[[], float],
    ) -> None:
        if warm < 0 or maximum < 1 or slots < 1 or burst < 1 or max_age <= 0:
            raise ValueError("warm is at least 0, maximum, slots and burst at least 1, max_age more than 0")
        self._warm, self._maximum, self._slots = min(warm, maximum), maximum, slots
        #: connections above the maximum while some are being replaced
        self.allowance = max(1, maximum // 8)
        self._max_age = max_age
        self._burst = self._at_once = burst
        self._backoff = backoff if backoff is not None else ConnectBackoff()
        at_once = max(16, maximum)
        self._rate = rate if rate is not None else ConnectRate(burst=at_once, per_second=at_once, jitter=jitter)
        self._jitter = jitter
        self._turn = jitter()
        self._restless = False  # something is due or drains: any event may matter
        self._wake_at = -math.inf  # decide() has something to say at once: it has never been asked
        self._leisure = min(LEISURE, 2 * LEISURE_IN_ALL / max(1, self._warm))
        self._leisurely_at = -math.inf  # when the next spare may be opened that nobody is in need of
        self._aftermath_until = -math.inf
        #: connections we closed ourselves and have not replaced yet
        self._owed = 0
        self._opened = self._retired = self._failed = self._lost = self._stopped = 0

    # ---------------------------------------------------------------- what happened

    def connected(self, now: float) -> None:
        """A connect succeeded."""
        if not self._backoff.only_lost:
            self._leisurely_at = max(self._leisurely_at, now + AFTERMATH * self._jitter())
            self._aftermath_until = now + AFTERMATH
        self._backoff.connected(now)
        self._at_once = min(self._burst, self._at_once * 2)
        self._wake_at = now

    def connect_failed(self, now: float, outcome: Outcome) -> None:
        """A connect failed: the next ones go alone, after their backoff."""
        self._failed += 1
        self._backoff.failed(outcome, now, self._jitter)
        self._at_once = 1
        self._wake_at = now

    def lost(self, now: float, fault: UpstreamFault, *, lived: float | None = None) -> None:
        """A connection that stood is gone, not by our doing. `lived`: seconds that it stood, when known."""
        self._lost += 1
        self._backoff.lost(fault, now, self._jitter, lived=lived)
        self._at_once = 1
        self._wake_at = now

    def stopped_by_us(self, now: float) -> None:
        """We closed a connection to stop an abandoned call: no delay, no failure, its replacement opens at once."""
        self._stopped += 1
        self._owed += 1
        self._wake_at = now

    def let_go(self, now: float) -> None:
        """The upstream closed a connection that it owed nothing to, in good order: no delay, no failure, no storm."""
        self._wake_at = now

    def carry(self, slots: int) -> None:
        """So many calls per connection from now on."""
        self._slots = slots

    def keep_warm(self, warm: int, now: float) -> None:
        """So many idle spares from now on; what is more stays until its time is over."""
        warm = min(warm, self._maximum)
        if warm != self._warm:
            self._warm, self._wake_at = warm, now
            self._leisure = min(LEISURE, 2 * LEISURE_IN_ALL / max(1, warm))

    def credential_changed(self, now: float) -> None:
        """Another credential is there: a refused upstream is tried at once."""
        self._backoff.credential_changed()
        self._wake_at = now

    def told_to_try(self, now: float) -> None:
        """An operator put the upstream in: it is tried at once."""
        self._backoff.told_to_try()
        self._wake_at = now

    # ---------------------------------------------------------------- decisions

    @property
    def refused(self) -> bool:
        """The credential is refused."""
        return self._backoff.refused

    @property
    def may_connect_at(self) -> float:
        """The earliest instant at which a connect may start; in the past means now."""
        at = -math.inf if self._owed and self._backoff.only_lost else self._backoff.next_attempt_at
        return max(at, self._rate.next_at)

    def opened_beside(self, now: float) -> None:
        """A connect was started that no decision of this policy asked for: it counts as one."""
        self._rate.started(now)
        self._opened += 1

    def retire_at_for(self, opened_at: float) -> float:
        """When a connection opened then falls due for rotation: jittered and staggered, never past `max_age`."""
        self._turn = (self._turn + _GOLDEN) % 1.0
        return opened_at + self._max_age * (1 - ROTATION_SPREAD * self._turn)

    def needs_decision(self, idle: int, connecting: int, total: int, waiting: int, now: float) -> bool:
        """Whether `decide` might say anything: constant in time, for the path of a short call.

        Args:
            idle: READY connections without a call.
            connecting: those CONNECTING.
            total: connections that are not CLOSED.
            waiting: calls that wait for a connection.
            now: instant.
        """
        if self._restless or now >= self._wake_at:
            return True
        if total >= self._maximum or (idle + connecting >= self._warm and not waiting):
            return False
        start_at = self._start_at(standing=total > connecting, waiting=waiting)
        if self._at_leisure(idle, waiting, now) and self._leisurely_at > start_at:
            start_at = self._leisurely_at
        # Before that there is nothing to open; but the policy must know that it is to look again then.
        return now >= start_at or self._wake_at > start_at

    def next_wakeup_at(self) -> float:
        """When `decide` is to be asked again if nothing happens before; inf when time alone changes nothing."""
        return self._wake_at

    def decide(self, now: float, connections: Sequence[ConnectionView], waiting: int) -> list[Action]:
        """What to open and what to retire now; the caller carries it out before it asks again.

        Args:
            now: instant.
            connections: all of them; CLOSED ones are passed over.
            waiting: calls for which no slot is free.
        """
        connecting = standing = draining = 0
        fresh: list[ConnectionView] = []  # idle, and not due
        due_idle: list[ConnectionView] = []
        due_busy: list[ConnectionView] = []
        next_due = math.inf
        for view in connections:
            if view.state == "CONNECTING":
                connecting += 1
            elif view.state == "DRAINING":
                draining += 1
            elif view.state != "CLOSED":
                standing += 1
                if view.retire_at is not None and view.retire_at <= now:
                    (due_busy if view.taken else due_idle).append(view)
                    continue
                if view.retire_at is not None and view.retire_at < next_due:
                    next_due = view.retire_at
                if not view.taken:
                    fresh.append(view)
        live, due = connecting + standing, len(due_idle) + len(due_busy)
        retire = self._to_retire(fresh, due_idle, due_busy, standing=standing, live=live, draining=draining)
        # Places, among all and among those that will take further calls.
        room = min(
            self._maximum + min(self.allowance, due + draining) - live - draining,
            self._maximum + min(self.allowance, due) - live,
        )
        missing = min(self._warm - (-waiting // self._slots) - len(fresh) - connecting, room)
        opens, start_at = 0, math.inf
        if missing > 0:
            opens, start_at = self._to_open(
                missing, now, idle=len(fresh), connecting=connecting, standing=standing, due=due, waiting=waiting
            )
        self._owed = max(0, self._owed - opens) if missing > 0 else 0
        self._wake_at = min(next_due, start_at)
        self._restless = due > 0 or draining > 0 or standing > self._maximum
        self._opened += opens
        self._retired += len(retire)
        return [*retire, *([_OPEN] * opens)]

    def _to_open(
        self, missing: int, now: float, *, idle: int, connecting: int, standing: int, due: int, waiting: int
    ) -> tuple[int, float]:
        """How many of the missing connections to open now, and when to look at the others."""
        opens, start_at = 0, self._start_at(standing=standing > 0, waiting=waiting)
        if now >= start_at:
            at_once, start_at = self._at_once, math.inf
            if not due and self._at_leisure(idle, waiting, now):
                at_once = 1 if now >= self._leisurely_at else 0
                start_at = self._leisurely_at if at_once == 0 else math.inf
            opens = max(0, min(missing, at_once - connecting))
            if opens:
                leisure = self._leisure
                if now < self._aftermath_until:
                    leisure = AFTERMATH / max(1, self._warm) * (0.5 + self._jitter())
                self._leisurely_at = now + leisure
        if opens < missing and self._owed and self._backoff.only_lost:
            opens = max(opens, min(missing, self._owed, self._burst - connecting))
        wanted, opens = opens, min(opens, self._rate.room(now))
        self._rate.started(now, opens)
        return opens, min(start_at, self._rate.next_at) if opens < wanted else start_at

    def _start_at(self, *, standing: bool, waiting: int) -> float:
        """The earliest instant for a connect that is missing: sooner where others stand, thus the upstream does."""
        if not standing:
            at = self._backoff.next_attempt_at
        else:
            at = self._backoff.early_attempt_at if waiting else self._backoff.early_spare_at
        return max(at, self._rate.next_at)

    def _at_leisure(self, idle: int, waiting: int, now: float) -> bool:
        """Half of the spares are there (after an outage: one), and nobody waits: the others follow one by one.

        A burst of calls is not to be held up by the connects that are to serve the next one; nor is another host's
        first connection by this one's fourth.
        """
        return not waiting and (2 * idle >= self._warm or (idle > 0 and now < self._aftermath_until))

    def _to_retire(
        self,
        fresh: list[ConnectionView],
        due_idle: list[ConnectionView],
        due_busy: list[ConnectionView],
        *,
        standing: int,
        live: int,
        draining: int,
    ) -> list[Retire]:
        if not (due_idle or due_busy or standing > self._maximum):
            return []
        # Idle ones go while the fresh spares and the due ones left are as many as wanted ...
        idle_out = min(len(due_idle), max(0, len(fresh) + len(due_idle) - self._warm))
        # ... busy ones are no spares: they go once the spares are complete, a few at a time when places are scarce.
        places = max(self.allowance, self._maximum - live) - draining
        busy_out = max(0, min(len(due_busy), places)) if len(fresh) >= self._warm else 0
        # Above the maximum a replacement stands already, even if a call took it at once.
        excess = max(0, standing - self._maximum - idle_out - busy_out)
        more_idle = min(excess, len(due_idle) - idle_out)
        more_busy = min(excess - more_idle, len(due_busy) - busy_out)
        # ... and if what it was to replace went by itself meanwhile, one spare is too many.
        surplus = excess - more_idle - more_busy
        due_out = _oldest(due_idle, idle_out + more_idle) + _oldest(due_busy, busy_out + more_busy)
        return [Retire(view.key, "max_age") for view in due_out] + [
            Retire(view.key, "surplus") for view in _oldest(fresh, surplus)
        ]

    def statistics(self) -> PolicyStatistics:
        """A snapshot."""
        return PolicyStatistics(
            opened=self._opened,
            retired=self._retired,
            failed=self._failed,
            lost=self._lost,
            stopped=self._stopped,
            connects_at_once=self._at_once,
            refused=self._backoff.refused,
            may_connect_at=self._backoff.next_attempt_at,
        )

    def __repr__(self) -> str:
        return f"<PoolPolicy warm={self._warm} maximum={self._maximum} at_once={self._at_once} {self._backoff!r}>"


def _oldest(views: list[ConnectionView], count: int) -> list[ConnectionView]:
    return sorted(views, key=lambda view: view.opened_at)[:count] if count else []
