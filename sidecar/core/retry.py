"""The retry budget: how much extra load failures may cause. Jitter shapes a storm's peak, only a budget bounds it.

There is one per upstream. An attempt after a call's first withdraws from the budget of the upstream that receives it,
be it a retry, a backup request or a restart; every first attempt deposits a little at each upstream it may come to
fall to. It starts full.

What it may hold grows with the load: when an upstream goes down, the calls of a second or two fall to the next one in
one instant, and a healthy one is to take them all (`SECONDS_OF_LOAD`).

Sources: Finagle's RetryBudget (a share of the last seconds' requests) and gRPC A6's throttle. Figures:
docs/decisions/0016.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

#: The budget may hold as much as the first attempts of so many seconds, where that is more than its capacity.
SECONDS_OF_LOAD: Final = 2.0
#: Of what the budget may hold, what comforts leave (gRPC A6 stops at a half; a silent upstream needs most of it).
LEFT_BY_COMFORTS: Final = 0.2
#: Seconds, the time constant with which the load is learnt and forgotten.
_LOAD_DECAY: Final = 10.0


class BudgetStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot; `withdrawn` and `denied` count attempts since the start."""

    balance: float
    capacity: float
    deposits: int
    withdrawn: int
    denied: int


class RetryBudget:
    """A token bucket with two springs.

    Args:
        capacity: attempts, at any load. Not below twice the breaker's consecutive threshold, or failover starves
            beside a healthy secondary before the breaker trips (measured: 5 of 50 calls lost with a reserve of 3, none
            with 10).
        per_second: attempts per second that come back by themselves. Many daemons with little to do make much of this
            together: see docs/herd.md.
        per_first_attempt: attempts that each first attempt earns.
    """

    __slots__ = (
        "_at", "_balance", "_capacity", "_denied", "_deposits", "_load", "_load_at", "_per_first", "_per_second",
        "_withdrawn",
    )  # fmt: skip

    def __init__(self, *, capacity: float = 10.0, per_second: float = 0.1, per_first_attempt: float = 0.1) -> None:
        if capacity < 1 or per_second < 0 or per_first_attempt < 0:
            raise ValueError("capacity is at least 1, the springs at least 0")
        self._capacity = self._balance = float(capacity)
        self._per_second, self._per_first = per_second, per_first_attempt
        self._at: float | None = None
        self._load = 0.0  # first attempts per second
        self._load_at = -math.inf
        self._deposits = self._withdrawn = self._denied = 0

    def deposit(self, now: float) -> None:
        """A call's first attempt was made, on this upstream or on one that this one stands in for."""
        self._deposits += 1
        if now > self._load_at:
            self._load *= math.exp((self._load_at - now) / _LOAD_DECAY)
            self._load_at = now
        self._load += 1 / _LOAD_DECAY
        self._balance = min(self._most(), self.balance(now) + self._per_first)
        self._at = now

    def withdraw(self, now: float, price: float = 1.0, *, sparing: bool = False) -> bool:
        """May a further attempt be made here? If so, it has been paid for.

        Args:
            now: instant.
            price: attempts that it counts for.
            sparing: it stands beside one that runs on, for comfort: a fifth is left to those that replace a failure.
        """
        balance = self.balance(now)
        self._at = now
        if balance - price < (LEFT_BY_COMFORTS * self._most() if sparing else 0.0):
            self._balance = balance
            self._denied += 1
            return False
        self._balance = balance - price
        self._withdrawn += 1
        return True

    def give_back(self, price: float = 1.0) -> None:
        """An attempt that was paid for was never made: no connection was to be had after all."""
        self._balance = min(self._most(), self._balance + price)

    def balance(self, now: float) -> float:
        """Attempts that could be paid for now."""
        if self._at is None:
            return self._balance
        return min(self._most(), self._balance + self._per_second * max(0.0, now - self._at))

    def statistics(self, now: float) -> BudgetStatistics:
        """A snapshot."""
        return BudgetStatistics(
            balance=self.balance(now),
            capacity=self._most(),
            deposits=self._deposits,
            withdrawn=self._withdrawn,
            denied=self._denied,
        )

    def _most(self) -> float:
        """What it may hold; the load as of its last first attempt."""
        return max(self._capacity, SECONDS_OF_LOAD * self._load)

    def __repr__(self) -> str:
        return f"<RetryBudget {self._balance:.1f}/{self._capacity:g} denied={self._denied}>"
