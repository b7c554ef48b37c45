"""The pings and probes of one session. Pongs carry the nonce; reports answer probes in their order. Pure."""

from __future__ import annotations

from collections import deque

from sidecar.client.calls import Question
from sidecar.errors import CallFailed
from sidecar.wire import Pong, Report


class Questions:
    """Those that are not over, and the probes whose report is still due though they are."""

    __slots__ = ("_pings", "_probes")

    def __init__(self) -> None:
        self._pings: dict[int, Question] = {}
        self._probes: deque[Question] = deque()

    def __len__(self) -> int:
        return len(self._pings) + len(self._probes)

    def ping(self, number: int, *, until: float) -> Question:
        """A ping that waits for its pong."""
        question = self._pings[number] = Question("ping", number, until)
        return question

    def handed_over(self, question: Question) -> None:
        """From here a report is due."""
        if question.kind == "probe":
            self._probes.append(question)

    def answered(self, message: Pong | Report) -> Question | None:
        """The question that this answers, None for none that is open."""
        if isinstance(message, Pong):
            question = self._pings.pop(message.nonce, None) if isinstance(message.nonce, int) else None
        else:
            question = self._probes.popleft() if self._probes else None
        if question is None or question.over:
            return None
        question.answer = message
        return question

    def fail(self, question: Question, failure: CallFailed) -> None:
        """It will not be answered. The report of a probe may still come, and is then for nobody."""
        question.failure = failure
        self._pings.pop(question.id, None)

    def all(self) -> list[Question]:
        """Those that are not over."""
        return [question for question in (*self._pings.values(), *self._probes) if not question.over]

    def connection_lost(self) -> list[Question]:
        """Those that were handed over and are not over; no report is due any more."""
        lost = [question for question in self.all() if question.handed_over]
        self._probes.clear()
        return lost
