"""How a server treats connections that nobody uses: what it says, what it does, and what is believed of it.

It is believed to keep one for so many seconds, its patience:

- A word is believed at once, whichever way it goes: `Keep-Alive: timeout` in an answer, a 408 that nobody asked for.
- A deed is not. A restart and a load balancer's deploy close connections, too, of every age in one moment. What is
  closed within a moment is one deed, which says something only where all were idle for about the same time, and is
  believed once the last few deeds agree. (One close believed at once had a whole pool dialled anew every few seconds,
  for ever: what is never left to grow old never shows that it may.)
- Whatever is believed is tried again by and by: one connection, the scout, is left to grow older than the others. What
  it outlives is outgrown. It is given to a call only where there is no other.

Connections are replaced when a share of that patience is over, before a request meets the closing half way.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

#: Share of a server's patience after which an idle connection is replaced.
_SHARE: Final = 0.75
#: Seconds of idleness below which a close says nothing of a server's patience, and a connection is not replaced for it.
_SHORTEST: Final = 2.0
#: Seconds within which what is closed is one deed.
_MOMENT: Final = 1.0
#: So many deeds in a row agree before they are believed ...
_ENOUGH: Final = 3
#: ... which is to say: the longest idle time is at most so many times the shortest.
_ALIKE: Final = 1.25
#: A scout that has been idle for so many times the believed patience has shown that there is more of it.
_OUTLIVED: Final = 1.5
#: Seconds from a scout's being closed to the next one.
_SCOUT_AGAIN: Final = 60.0
#: How often within an idle connection's life it is looked at: they become idle without a word.
_LOOKS: Final = 8
#: Times in a row that a server may go away from requests, or let them fall, before that is a failure of its own.
_BELIEVED: Final = 2


class _Deed(Struct):
    """Connections closed in one moment; seconds that they had been idle."""

    at: float
    shortest: float
    longest: float


class Habits:
    """Of one upstream's server.

    Attributes:
        scout: the connection that is left to grow older than the others; None while there is none.
    """

    __slots__ = (
        "_deeds", "_judged", "_left_at", "_said", "_scout_again_at", "_shown", "_untouched", "scout",
    )  # fmt: skip

    def __init__(self) -> None:
        self.scout: int | None = None
        self._said = self._shown = math.inf  # patience, by its words and by its deeds
        self._deeds: list[_Deed] = []
        self._judged = True  # the last deed is over, and was looked at
        self._scout_again_at = -math.inf
        self._untouched = 0
        self._left_at = -math.inf

    def __repr__(self) -> str:
        return f"<Habits idle_life={self.idle_life} scout={self.scout} untouched={self._untouched}>"

    @property
    def _patience(self) -> float:
        return min(self._said, self._shown)

    @property
    def idle_life(self) -> float | None:
        """Seconds for which a connection is kept without a call; None while nothing is known."""
        life = _SHARE * self._patience
        return None if math.isinf(life) else life

    # ---------------------------------------------------------------- what happened

    def closed_idle(self, key: int, after: float, now: float, *, in_words: bool = False) -> None:
        """It closed connection `key`, which had been idle for `after` seconds; or said, in words, that it does."""
        if key == self.scout:
            self.scout, self._scout_again_at = None, now + _SCOUT_AGAIN
        if in_words:
            self._shown = max(_SHORTEST, after)
        elif after >= _SHORTEST:
            self._judge(now)
            if self._judged:
                del self._deeds[: 1 - _ENOUGH]
                self._deeds.append(_Deed(now, after, after))
                self._judged = False
            else:
                deed = self._deeds[-1]
                deed.shortest, deed.longest = min(deed.shortest, after), max(deed.longest, after)

    def not_idle(self, key: int) -> None:
        """Connection `key` has got a call, or is over for whatever other reason."""
        if key == self.scout:
            self.scout = None

    def answered(self, keepalive_timeout: float | None) -> None:
        """It answered; perhaps it said for how many seconds it keeps an idle connection."""
        self._untouched = 0
        if keepalive_timeout is not None:
            self._said = max(_SHORTEST, keepalive_timeout)

    def untouched(self, opened_at: float, now: float) -> bool:
        """A request was not looked at, by its server's word or by its silence; whether that is believed.

        All requests of a connection, and all connections that stood when it was said, are of one and the same going:
        a server that is deployed anew leaves them all. One that does so with fresh connections, again and again, fails.

        Args:
            opened_at: when its connection was opened.
            now: instant.
        """
        if opened_at > self._left_at:
            self._untouched += 1
            self._left_at = now
        return self._untouched <= _BELIEVED

    # ---------------------------------------------------------------- decisions

    def keep_until(self, key: int, idle_since: float, now: float, *, said: float | None = None) -> float:
        """When idle connection `key` is to be replaced for that; inf for never. Asked about each, again and again.

        Args:
            key: its number.
            idle_since: instant.
            now: instant.
            said: the patience that was promised on this very connection, if any.
        """
        self._judge(now)
        idle, patience = now - idle_since, self._patience
        if said is not None:
            return idle_since + _SHARE * min(patience, max(_SHORTEST, said))
        if self.scout is None and now >= self._scout_again_at and idle >= _SHARE * patience:
            self.scout = key
        if key != self.scout:
            return idle_since + _SHARE * patience
        if idle >= _OUTLIVED * patience:
            self._outgrow(idle)
        return math.inf

    def next_wakeup_at(self, now: float) -> float:
        """When to ask about the idle connections again at the latest; inf when time alone changes nothing."""
        self._judge(now)  # there may be no idle connection to ask about
        at = now + _SHARE * self._patience / _LOOKS
        return at if self._judged else min(at, self._deeds[-1].at + _MOMENT)

    def _judge(self, now: float) -> None:
        """Once the moment of the last deed is over: do the last few agree?"""
        if self._judged or now - self._deeds[-1].at < _MOMENT:
            return
        self._judged = True
        shortest = min(deed.shortest for deed in self._deeds)
        if len(self._deeds) == _ENOUGH and max(deed.longest for deed in self._deeds) <= _ALIKE * shortest:
            self._shown = shortest

    def _outgrow(self, idle: float) -> None:
        """A connection was kept for so long: whatever was believed to be less was wrong, or is over."""
        self._said, self._shown = max(self._said, idle), max(self._shown, idle)
        self._deeds.clear()
        self._judged = True
