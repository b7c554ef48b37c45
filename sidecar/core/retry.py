"""The retry budget: how much extra load failures may cause. Jitter shapes a storm's peak, only a budget bounds it.

There is one per upstream. An attempt after a call's first withdraws from the budget of the upstream that receives it,
be it a retry, a backup request or a restart; every first attempt deposits a little. It starts full.

Sources: Finagle's RetryBudget and gRPC A6's throttle. Figures, of 500 simulated clients with at most 4 attempts in 30 s
of outage: 3.9 times the load without a budget, 1.14 times with one of 10 %.
"""

from __future__ import annotations

from msgspec import Struct


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
        capacity: attempts. Not below twice the breaker's consecutive threshold, or failover starves beside a healthy
            secondary before the breaker trips (measured: 5 of 50 calls lost with a reserve of 3, none with 10).
        per_second: attempts per second that come back by themselves.
        per_first_attempt: attempts that each first attempt earns.
    """

    __slots__ = ("_at", "_balance", "_capacity", "_denied", "_deposits", "_per_first", "_per_second", "_withdrawn")

    def __init__(self, *, capacity: float = 10.0, per_second: float = 1.0, per_first_attempt: float = 0.1) -> None:
        if capacity < 1 or per_second < 0 or per_first_attempt < 0:
            raise ValueError("capacity is at least 1, the springs at least 0")
        self._capacity = self._balance = float(capacity)
        self._per_second, self._per_first = per_second, per_first_attempt
        self._at: float | None = None
        self._deposits = self._withdrawn = self._denied = 0

    def deposit(self, now: float) -> None:
        """A call's first attempt was made on this upstream."""
        self._deposits += 1
        self._balance = min(self._capacity, self.balance(now) + self._per_first)
        self._at = now

    def withdraw(self, now: float) -> bool:
        """May a further attempt be made on this upstream? If so, it has been paid for."""
        balance = self.balance(now)
        self._at = now
        if balance < 1:
            self._balance = balance
            self._denied += 1
            return False
        self._balance = balance - 1
        self._withdrawn += 1
        return True

    def give_back(self) -> None:
        """An attempt that was paid for was never made: no connection was to be had after all."""
        self._balance = min(self._capacity, self._balance + 1)

    def balance(self, now: float) -> float:
        """Attempts that could be paid for now, 0 .. capacity."""
        if self._at is None:
            return self._balance
        return min(self._capacity, self._balance + self._per_second * max(0.0, now - self._at))

    def statistics(self, now: float) -> BudgetStatistics:
        """A snapshot."""
        return BudgetStatistics(
            balance=self.balance(now),
            capacity=self._capacity,
            deposits=self._deposits,
            withdrawn=self._withdrawn,
            denied=self._denied,
        )

    def __repr__(self) -> str:
        return f"<RetryBudget {self._balance:.1f}/{self._capacity:g} denied={self._denied}>"
