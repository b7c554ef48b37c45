"""The operator's halt: which lanes are stopped now. There is one truth, the halt file; whatever writes it, halts.

`sidecar halt` asks the daemon, which acts first and then writes the file; anybody else's file (`touch` is enough) is
found by looking ten times a second. A halt outlives the daemon because the file does. When it cannot be written the
halt holds in memory, and the answer says that a restart would forget it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import trio
from msgspec import Struct

from sidecar.core.halt import EVERY_LANE, Halt, in_order, reason_of
from sidecar.errors import SidecarError
from sidecar.transport import halt_file
from sidecar.wire import Lane

#: Seconds between two looks at the file.
INTERVAL: Final = 0.1
#: Seconds that a new, empty file may take to be filled: `echo research > halt` makes it first and writes it then.
SETTLE: Final = 0.01

_NOTHING: Final[frozenset[Lane]] = frozenset()


class StillHalted(SidecarError):
    """The halt file can be neither changed nor removed: what it says goes on to hold."""


class Standing(Struct, frozen=True, kw_only=True):
    """How things stand after an order.

    Attributes:
        lanes: all that are halted now.
        reason: as given, one line.
        ended: calls that this order ended; None when whoever ends them does not count.
        file: the halt file, None when there is none.
        problem: why this halt would be forgotten by a restart; "" when it would not.
    """

    lanes: frozenset[Lane]
    reason: str
    ended: int | None
    file: str | None
    problem: str


class Brakes:
    """What is halted. Asked for each call: `lane in brakes.halted`, then `brakes.message` for the bot.

    Args:
        file: the halt file; None: halts are kept in memory only, and nothing is looked at.
        end: ends the calls of these lanes that are in flight or wait, with this message (`halted`); returns how many.
        log: for changes.
        problem: why there is no file, or none that can be written.

    Resource handling: the file is opened for each reading. Error handling: a file that is there and cannot be read
    halts every lane. Cancellation: `run` ends at once.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        end: Callable[[frozenset[Lane], str], int | None],
        log: Any,
        problem: str = "",
    ) -> None:
        self.halted: frozenset[Lane] = _NOTHING
        self.reason = ""
        self.message = ""
        self._file = file
        self._end = end
        self._log = log
        self._problem = problem or ("there is no place for a halt file" if file is None else "")
        self._filed: Halt | None = None
        #: lanes halted by an order that could not be written
        self._unfiled = _NOTHING
        self._mark: halt_file.Mark | int | None = None
        self._unsynced = False
        self.look()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Look at the file for ever."""
        task_status.started()
        if self._file is None:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(INTERVAL)
                mark = halt_file.look(self._file)
                if mark != self._mark:
                    if isinstance(mark, tuple) and mark[0] == 0:
                        await trio.sleep(SETTLE)
                    self.look()
                if self._unsynced:
                    self._unsynced = False
                    nursery.start_soon(self._sync, self._file)

    def look(self) -> None:
        """Heed what the file says now."""
        if self._file is None:
            return
        # Marked before it is read: what is written in between is seen at the next look.
        mark = halt_file.look(self._file)
        if mark != self._mark:
            self._mark = mark
            self._filed = None if mark is None else halt_file.read(self._file)
            self._settle("" if self._filed is None else self._filed.reason)

    def halt(self, lanes: frozenset[Lane], reason: str = "") -> Standing:
        """Stop these lanes, with those that are stopped already: at once, then in the file."""
        self.look()
        reason = reason_of(reason) or self.reason
        self._unfiled |= lanes
        ended = self._settle(reason)
        problem = self._problem
        if self._file is not None:
            try:
                halt_file.write(self._file, Halt(self.halted, reason))
            except OSError as error:
                problem = f"{self._file} could not be written: {error.strerror}"
            else:
                self._unfiled, problem = _NOTHING, ""
                self._written(Halt(self.halted, reason))
        self._problem = problem
        if problem:
            self._log.warning("halt.unfiled", reason=problem)
        return self._standing(ended)

    def resume(self, lanes: frozenset[Lane] = EVERY_LANE) -> Standing:
        """Let these lanes go on.

        Raises:
            StillHalted: the file says otherwise and cannot be changed. Nothing has changed.
        """
        self.look()
        filed = self._kept()
        if self._file is not None and filed & lanes:
            left = Halt(filed - lanes, self.reason)
            try:
                if left.lanes:
                    halt_file.write(self._file, left)
                else:
                    halt_file.remove(self._file)
            except OSError as error:
                raise StillHalted(
                    f"{', '.join(in_order(filed & lanes))}: still halted, {self._file} cannot be changed: "
                    f"{error.strerror}. Remove it yourself, as root: that is all it takes"
                ) from error
            self._written(left if left.lanes else None)
        self._unfiled -= lanes
        self._settle(self.reason)
        return self._standing(0)

    def standing(self) -> Standing:
        """How things stand."""
        return self._standing(0)

    def _standing(self, ended: int | None) -> Standing:
        return Standing(
            lanes=self.halted,
            reason=self.reason,
            ended=ended,
            file=None if self._file is None else str(self._file),
            problem=self._problem if self._unfiled - self._kept() else "",
        )

    def _kept(self) -> frozenset[Lane]:
        """What the file says."""
        return _NOTHING if self._filed is None else self._filed.lanes

    def _written(self, halt: Halt | None) -> None:
        assert self._file is not None
        self._filed, self._mark, self._unsynced = halt, halt_file.look(self._file), True

    def _settle(self, reason: str) -> int | None:
        """Make `halted` what file and orders say together; end the calls of what is newly halted."""
        before = self.halted
        self.halted = self._unfiled | self._kept()
        self.reason = reason if self.halted else ""
        self.message = "halted by the operator" + (f": {self.reason}" if self.reason else "")
        new, gone = self.halted - before, before - self.halted
        if gone:
            self._log.warning("lanes.resumed", lanes=", ".join(in_order(gone)))
        if not new:
            return 0
        ended = self._end(new, self.message)
        self._log.warning("lanes.halted", lanes=", ".join(in_order(new)), reason=self.reason, count=ended)
        return ended

    async def _sync(self, file: Path) -> None:
        """What was written survives a power cut, too; a disk that takes its time holds up nobody."""
        try:
            await trio.to_thread.run_sync(halt_file.sync, file, abandon_on_cancel=True)
        except OSError as error:
            self._log.warning("halt.unsynced", reason=error.strerror)

    def __repr__(self) -> str:
        return f"<Brakes {', '.join(in_order(self.halted)) or 'released'}>"
