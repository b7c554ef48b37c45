"""What the end of a connection means to its pool: an outage's beginning, or a matter of course."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from sidecar.core.classifier import is_aged
from sidecar.core.pool_policy import PoolPolicy
from sidecar.errors import ConnectionLost, UpstreamFault
from sidecar.service.connection import Connection

#: Seconds within which connections were opened together: what is over for one is over for the others.
TOGETHER: Final = 1.0


def tell(policy: PoolPolicy, connection: Connection, fault: UpstreamFault, now: float) -> bool:
    """Tell the policy that a connection has ended; whether that is a loss, to be said aloud."""
    if connection.stopped_by_us:
        policy.stopped_by_us(now)
        return False
    if connection.state == "DRAINING" and connection.fault is None and not is_turned_away(connection, fault, now):
        return False  # on its way out already: its replacement is no storm
    if connection.opened_at is None or (isinstance(fault, ConnectionLost) and fault.how == "local"):
        return False
    if is_kept_no_longer(connection, fault, now):
        policy.let_go(now)
        return False
    if is_aged(fault):
        return False  # its time was over, and the upstream is as well as before
    # One that carried a call was taken in for good, however young: the breaker judges what became of the call.
    policy.lost(now, fault, lived=math.inf if connection.used else now - connection.opened_at)
    return True


def is_kept_no_longer(connection: Connection, fault: UpstreamFault, now: float) -> bool:
    """A server has closed it for being idle, or as it had said it would: not one that closes what has just come."""
    if not isinstance(fault, ConnectionLost) or fault.how not in ("idle", "unprocessed"):
        return False
    return connection.opened_at is not None and not is_turned_away(connection, fault, now)


def is_turned_away(connection: Connection, fault: UpstreamFault, now: float) -> bool:
    """It was closed as it came, and served nothing: whoever does that, by whatever word, is not asked in a storm."""
    if connection.used or connection.opened_at is None or now - connection.opened_at >= TOGETHER:
        return False
    return isinstance(fault, ConnectionLost) and fault.how == "idle"


def as_old(connection: Connection, others: Iterable[Connection]) -> list[Connection]:
    """Those that are about as old as one whose time is over, or older: theirs is, too, in this very moment."""
    if connection.opened_at is None:
        return []
    latest = connection.opened_at + TOGETHER
    return [c for c in others if c is not connection and c.opened_at is not None and c.opened_at <= latest]
