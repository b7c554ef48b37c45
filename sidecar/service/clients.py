"""Who may ask what: the rules of `[[client]]`, by the uid that the kernel tells.

A call costs one dictionary lookup and, where its user has a limit of calls per minute, one look at that. What is
remembered of a user is forgotten when nothing was heard of it for `MEMORY` seconds, and of at most `MOST` at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Final

from msgspec import UNSET, Struct

from sidecar.config import Client, Config
from sidecar.core.rate import WINDOW, CallRate
from sidecar.service import terminals
from sidecar.service.ports import Peer
from sidecar.wire import Call, Failed, Lane

#: Users remembered at a time.
MOST: Final = 4096
#: Seconds of silence after which a user is forgotten: by then no limit remembers anything of it either.
MEMORY: Final = 3 * WINDOW
#: Users from which on it is worth looking for silent ones.
_FEW: Final = 64
#: Who goes first: the best lane of those a user may use, when a call names none and may not be an entry.
_BEST_FIRST: Final[tuple[Lane, ...]] = ("entry", "exit", "research")
_EVERYBODY: Final = Client(user="*")


class ClientStatistics(Struct, frozen=True, kw_only=True):
    """What is known of one user. None: no limit of its own.

    Attributes:
        uid: None for the rule of everybody else.
        lanes: it may use.
        calls_last_minute: that were not refused here; where there is no limit per minute, estimated from two minutes.
        refused: here, for a lane or the limit per minute, since the user was last forgotten.
        max_calls_in_flight, max_calls_per_minute: its limits.
    """

    uid: int | None
    lanes: tuple[Lane, ...]
    calls_last_minute: int
    refused: int
    max_calls_in_flight: int | None
    max_calls_per_minute: int | None


class _User:
    """One user, from its first call until it is forgotten."""

    __slots__ = ("before", "calls", "lane", "rate", "refused", "rule", "seen_at", "since")

    def __init__(self, rule: Client, per_minute: int | None, now: float) -> None:
        self.rule = rule
        self.lane: Lane = next(lane for lane in _BEST_FIRST if lane in rule.lanes)
        self.rate = None if per_minute is None else CallRate(per_minute)
        self.refused = 0
        self.seen_at = now
        #: calls since `since`, at most a minute ago, and in the minute before
        self.calls = self.before = 0
        self.since = now

    def turn(self, now: float) -> None:
        """A minute is over."""
        self.before = self.calls if now - self.since < 2 * WINDOW else 0
        self.calls = 0
        self.since = now

    def calls_last_minute(self, now: float) -> int:
        if self.rate is not None:
            return self.rate.counted(now)
        if now - self.since >= WINDOW:
            self.turn(now)
        return self.calls + round(self.before * (1 - (now - self.since) / WINDOW))


class Clients:
    """The rules, and what users have done of late.

    Args:
        config: `client` as loaded (uids, not names), and `frontend.max_calls_per_minute`.
        jitter: U(0, 1).
    """

    def __init__(self, config: Config, *, jitter: Callable[[], float]) -> None:
        self._rules = {client.user: client for client in config.client}
        self._otherwise = self._rules.get("*", _EVERYBODY)
        self._per_minute = config.frontend.max_calls_per_minute
        self._jitter = jitter
        self._users: dict[int, _User] = {}
        self._sweep_from = _FEW

    def examine(
        self, call: Call, peer: Peer, now: float, halted: Collection[Lane] = ()
    ) -> tuple[Lane, int | None] | Failed:
        """The lane a call runs in and its user's own limit of calls in flight and queued; or the refusal.

        Asked once per call, after everything that speaks against the call itself: what passes counts as a call, unless
        its lane is halted.
        """
        user = self._users.get(peer.uid) or self._meet(peer.uid, now)
        user.seen_at = now
        lane = call.lane
        if lane is UNSET:
            lane = user.lane
        elif lane not in user.rule.lanes:
            user.refused += 1
            allowed = ", ".join(user.rule.lanes)
            problem = f"lane: {lane} is not for the bots of uid {peer.uid}; they may use {allowed}"
            return terminals.refusal(call, "invalid_request", problem)
        if lane in halted:
            return lane, None  # it goes no further: bots that knock at a halted lane keep their calls for another one
        if user.rate is not None:
            wait = user.rate.take(now)
            if wait:
                user.refused += 1
                problem = f"the bots of uid {peer.uid} may start {user.rate.per_minute} calls in {WINDOW} s"
                # Many calls are told the same instant: they are not all to come back in it.
                wait_ms = math.ceil(1000 * (wait + self._jitter() * max(0.2 * wait, 0.1)))
                return terminals.refusal(call, "overloaded", problem, retry_after_ms=wait_ms)
        else:
            if now - user.since >= WINDOW:
                user.turn(now)
            user.calls += 1
        return lane, user.rule.max_calls_in_flight

    def lane_of(self, call: Call, peer: Peer) -> Lane:
        """The lane that a call claims, or would be given; for counting what is refused before it was examined."""
        if call.lane is not UNSET:
            return call.lane
        user = self._users.get(peer.uid)
        return "entry" if user is None else user.lane

    def statistics(self, now: float) -> list[ClientStatistics]:
        """Everybody with a rule, and everybody else who has called of late; the rule for everybody else last."""
        uids = [user for user in self._rules if isinstance(user, int)]
        uids += [uid for uid in self._users if uid not in self._rules]
        rows = [self._statistics(uid, self._users.get(uid), now) for uid in uids]
        return [*rows, self._statistics(None, None, now)]

    def _statistics(self, uid: int | None, user: _User | None, now: float) -> ClientStatistics:
        rule = self._otherwise if uid is None else self._rules.get(uid, self._otherwise)
        return ClientStatistics(
            uid=uid,
            lanes=rule.lanes,
            calls_last_minute=0 if user is None else user.calls_last_minute(now),
            refused=0 if user is None else user.refused,
            max_calls_in_flight=rule.max_calls_in_flight,
            max_calls_per_minute=self._limit(rule),
        )

    def _limit(self, rule: Client) -> int | None:
        return self._per_minute if rule.max_calls_per_minute is None else rule.max_calls_per_minute

    def _meet(self, uid: int, now: float) -> _User:
        if len(self._users) >= self._sweep_from:
            self._forget(now)
        rule = self._rules.get(uid, self._otherwise)
        user = self._users[uid] = _User(rule, self._limit(rule), now)
        return user

    def _forget(self, now: float) -> None:
        """Let go of who is silent; of who was silent longest, when there are too many all the same."""
        self._users = {uid: user for uid, user in self._users.items() if now - user.seen_at < MEMORY}
        excess = len(self._users) - (MOST - MOST // 8)
        if excess > 0:
            for uid in sorted(self._users, key=lambda uid: self._users[uid].seen_at)[:excess]:
                del self._users[uid]
        self._sweep_from = min(MOST, max(_FEW, 2 * len(self._users)))

    def __repr__(self) -> str:
        return f"<Clients {len(self._rules)} rules, {len(self._users)} users>"
