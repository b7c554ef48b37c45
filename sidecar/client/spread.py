"""Which of several daemons on this host gets the next call. Pure: plain values in, a decision out.

The one with the fewest open calls of this client; ties take turns. All loads are known exactly, so nothing is gained by
looking at two at random ("power of two choices" is for loads that are guessed). A daemon that lost its connection, said
``overloaded``, or let a call pass its deadline without a word, is left aside: the last until it says something again,
the others for a moment; one that said ``draining`` until it has gone and come again, and for a moment then. When only
such are left one of them is taken still: a pause is no reason to fail a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

#: Seconds for which a daemon is left aside: it is going, and its successor needs longer than this to be warm.
_DRAINING_PAUSE: Final = 1.0
#: After a lost connection, counted from the loss; and after ``overloaded`` without a `retry_after_ms`.
_SHORT_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0


class Standing(NamedTuple):
    """What is known of one daemon.

    Attributes:
        open_calls: of this client.
        connected: it shook hands, and the connection stands.
        silent: it let a call pass its deadline without a word.
        aside_until: see `pause`; an instant.
        leaving: it begins no further call.
    """

    open_calls: int
    connected: bool
    silent: bool = False
    aside_until: float = 0.0
    leaving: bool = False


def pick(standings: Sequence[Standing], *, turn: int, now: float, strict: bool = False) -> int | None:
    """The index of the daemon for the next call, None when none is connected.

    Args:
        standings: of all of them.
        turn: counts up from call to call: among equals it decides.
        now: seconds, the clock of `aside_until`.
        strict: None, too, when all that are connected are silent or leaving.
    """
    best: int | None = None
    best_rank: tuple[bool, bool, bool, int, int] = (False, False, False, 0, 0)
    number = len(standings)
    for index, standing in enumerate(standings):
        if not standing.connected:
            continue
        if strict and (standing.leaving or standing.silent):
            continue
        aside = standing.aside_until > now
        rank = (standing.leaving, standing.silent, aside, standing.open_calls, (index - turn) % number)
        if best is None or rank < best_rank:
            best, best_rank = index, rank
    return best


def pause(code: str, retry_after_ms: int | None) -> float:
    """Seconds for which a daemon is left aside after it said, or suffered, this code."""
    if code == "draining":
        return _DRAINING_PAUSE
    if code == "overloaded" and retry_after_ms is not None:
        return min(retry_after_ms / 1000, _LONGEST_PAUSE)
    return _SHORT_PAUSE
