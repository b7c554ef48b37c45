"""The open calls and questions of one session: who they are, which changed, and when they are given up. Pure."""

from __future__ import annotations

from sidecar.client.alarms import Alarms
from sidecar.client.calls import OpenCall, Question, is_over
from sidecar.client.questions import Questions
from sidecar.client.verdicts import local_end
from sidecar.errors import CallFailed
from sidecar.wire import Terminal


class Ledger:
    """What a `Session` keeps its books in.

    Attributes:
        changed: calls and questions that changed since the shell last emptied this list.
    """

    def __init__(self, changed: list[OpenCall | Question] | None) -> None:
        self.changed: list[OpenCall | Question] = [] if changed is None else changed
        self._calls: dict[str, OpenCall] = {}
        self._questions = Questions()
        self._alarms = Alarms()

    @property
    def open_calls(self) -> int:
        """How many have not ended."""
        return len(self._calls)

    def next_wakeup_at(self) -> float | None:
        """When `expire()` wants to be called, None when nothing is under way."""
        return self._alarms.next_at(self._settled)

    @property
    def due_at(self) -> float:
        """No call for `expire()` before this instant; infinity for none. Cheap, for every pass."""
        return self._alarms.earliest

    def end(self, call: OpenCall, terminal: Terminal) -> None:
        """Give it this terminal."""
        call.ended = terminal
        self._calls.pop(call.id, None)
        self._touch(call)

    def _fail(self, item: OpenCall | Question, code: str, message: str) -> None:
        if isinstance(item, OpenCall):
            self._end_locally(item, code, message)
        elif not item.over:
            self._questions.fail(item, CallFailed.of(code, message, retryable=code == "daemon_unavailable"))
            self._touch(item)

    def _end_locally(self, call: OpenCall, code: str, message: str) -> None:
        call.local = True
        self.end(call, local_end(call, code, message))

    def _touch(self, item: OpenCall | Question) -> None:
        if not item.changed:
            item.changed = True
            self.changed.append(item)

    def _set_alarm(self, item: OpenCall | Question) -> None:
        self._alarms.set(item, alive=len(self._calls) + len(self._questions), over=self._settled)

    def _settled(self, item: OpenCall | Question) -> bool:
        """Over, or given to another session: this one's alarm is not for it."""
        return is_over(item) or (isinstance(item, OpenCall) and item.home is not self)
