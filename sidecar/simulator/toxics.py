"""What a bad line does to bytes on their way to the client: Toxiproxy's eight toxics, alone or together.

They change when bytes arrive, in which pieces, and how far; never which. What the client sends is not touched, but
nothing that would answer it comes through a line that is silent.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import trio
from msgspec import Struct

from sidecar.simulator.behaviour import Behaviour

#: name -> what it does, in the words of `sidecar sim --list`.
TOXICS: Final = {
    "latency": "every byte comes link_latency_s later",
    "jitter": "every write comes up to link_jitter_s later, never out of order",
    "bandwidth": "at most link_bytes_per_s",
    "slow_close": "the end of the connection comes link_slow_close_s later",
    "silence": "after link_after_bytes nothing comes any more, and the connection stays open",
    "reset": "after link_after_bytes a TCP RST",
    "slicer": "in pieces of about link_slice_bytes, each a write of its own",
    "limit": "after link_after_bytes EOF, wherever that is",
}
#: Between two slices, seconds: else the kernel would join them again.
_SLICE_PAUSE: Final = 0.0002

End = Literal["silence", "reset", "limit"]


class Line(Struct, frozen=True, kw_only=True):
    """How bad it is. A field that is 0 (None for `after_bytes`) changes nothing.

    Args:
        latency_s, jitter_s, slow_close_s: seconds.
        bytes_per_s: of the bandwidth.
        slice_bytes: of the average piece.
        after_bytes: how many bytes come before `end`.
        end: what happens then.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    slow_close_s: float = 0.0
    slice_bytes: int = 0
    after_bytes: int | None = None
    end: End = "silence"


def line_of(scenario: str, behaviour: Behaviour) -> Line | None:
    """The line of a ``toxic_NAME-NAME...`` scenario, None for any other. Of two ends the harder one counts.

    Its numbers are the behaviour's ``link_...`` fields.
    """
    if not scenario.startswith("toxic_"):
        return None
    names = scenario.removeprefix("toxic_").split("-")
    ends: tuple[End, ...] = ("reset", "limit", "silence")
    chosen = next((end for end in ends if end in names), None)
    return Line(
        latency_s=behaviour.link_latency_s if "latency" in names else 0.0,
        jitter_s=behaviour.link_jitter_s if "jitter" in names else 0.0,
        bytes_per_s=behaviour.link_bytes_per_s if "bandwidth" in names else 0.0,
        slow_close_s=behaviour.link_slow_close_s if "slow_close" in names else 0.0,
        slice_bytes=behaviour.link_slice_bytes if "slicer" in names else 0,
        after_bytes=behaviour.link_after_bytes if chosen is not None else None,
        end=chosen or "silence",
    )


class _Piece(NamedTuple):
    due: float
    data: bytes


class Toxic:
    """One bad line: what is put in comes out later, in its order.

    Args:
        line: how bad it is.
        dice: of jitter and of the sizes of slices.
        clock: seconds.
        deliver: given what comes out.
        end: called once when `line.after_bytes` have come out and `line.end` is not silence.
    """

    def __init__(
        self,
        line: Line,
        *,
        dice: random.Random,
        clock: Callable[[], float],
        deliver: Callable[[bytes], None],
        end: Callable[[End], None],
    ) -> None:
        self.line = line
        self._dice, self._clock, self._deliver, self._end = dice, clock, deliver, end
        self._pieces: deque[_Piece] = deque()
        self._last_due = self._free_at = 0.0
        self._left = line.after_bytes
        self._more = trio.Event()
        self._empty = trio.Event()
        self._empty.set()
        #: bytes that have not come out yet
        self.size = 0

    def put(self, data: bytes | memoryview) -> None:
        """`data` was said now."""
        line, dice, now = self.line, self._dice, self._clock()
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        due = max(self._last_due, now + line.latency_s + line.jitter_s * dice.random())
        start = 0
        while start < len(data):
            size = dice.randint(1, 2 * line.slice_bytes - 1) if line.slice_bytes else len(data)
            piece = bytes(data[start : start + size])
            start += len(piece)
            if line.bytes_per_s:
                due = self._free_at = max(self._free_at, due) + len(piece) / line.bytes_per_s
            self._pieces.append(_Piece(due, piece))
            self.size += len(piece)
            if line.slice_bytes:
                due += _SLICE_PAUSE
        self._last_due = due
        if self._pieces:
            self._empty = trio.Event() if self._empty.is_set() else self._empty
            self._more.set()

    @property
    def silent(self) -> bool:
        """Nothing will come out any more, not even the end."""
        return self._left == 0 and self.line.end == "silence"

    async def emptied(self) -> None:
        """Wait until all that was put in has come out."""
        await self._empty.wait()

    async def run(self) -> None:
        """Let it out; returns when the line was reset or cut, never for one that is silent."""
        while True:
            while self._pieces:
                due, data = self._pieces[0]
                if due > self._clock():
                    await trio.sleep_until(due)
                else:
                    await trio.lowlevel.checkpoint()  # nobody is to wait for a thousand slices
                self._pieces.popleft()
                self.size -= len(data)
                self._deliver(data)
            self._empty.set()
            if self._left == 0 and self.line.end != "silence":
                self._end(self.line.end)
                return
            self._more = trio.Event()
            await self._more.wait()
