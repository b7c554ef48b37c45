"""How many frames of one HTTP/2 connection are borne that bring nothing, or little: floods of them are an old weapon.

h2 takes 20 to 60 us for a frame, and 4 us for each field of a head, which may be one byte. So a read full of pings,
settings, empty frames or packed heads would hold up everybody for half a second, and one read after another for as long
as the peer likes. A hundred answers side by side need a tenth of what is allowed here.
"""

from __future__ import annotations

from typing import Final

from sidecar.errors import MalformedFrame

#: Frames at once, and a second.
FRAMES_AT_ONCE: Final = 4096
FRAMES_PER_S: Final = 16_384
#: As so many counts a frame that is not DATA; and as one more so many bytes of a head.
COSTLY: Final = 4
HEAD_BYTES: Final = 16
#: DATA that brings fewer bytes is a crumb, and costly: a token takes more. Where h2 does not see them they are cheap,
#: and so many in one read are nothing.
CRUMB_BYTES: Final = 16
CRUMBS: Final = 64

_DATA: Final = 0
_HEAD: Final = (1, 5, 9)  # HEADERS, PUSH_PROMISE, CONTINUATION


class Patience:
    """With one peer.

    Args:
        now: instant from which it is counted.
    """

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._at = now
        self._left = float(FRAMES_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Patience {self._left:.0f} of {FRAMES_AT_ONCE} left>"

    def bear(self, kind: int, length: int, now: float) -> None:
        """One more frame: its type (RFC 9113, 6), and the bytes of its payload without padding.

        Raises:
            MalformedFrame: too many came.
        """
        if kind != _DATA:
            self._pay(COSTLY + (length // HEAD_BYTES if kind in _HEAD else 0), now)
        else:
            self._pay(1 if length >= CRUMB_BYTES else COSTLY, now)

    def bear_crumbs(self, frames: int, length: int, now: float) -> None:
        """So many frames of DATA in one read that h2 did not see, and the bytes in all of them.

        Raises:
            MalformedFrame: too many came.
        """
        if frames > CRUMBS and length < frames * CRUMB_BYTES:
            self._pay(frames, now)

    def _pay(self, price: int, now: float) -> None:
        if now > self._at:
            self._left = min(FRAMES_AT_ONCE, self._left + FRAMES_PER_S * (now - self._at))
            self._at = now
        self._left -= price
        if self._left < 0:
            raise MalformedFrame("HTTP/2: a flood of frames")
