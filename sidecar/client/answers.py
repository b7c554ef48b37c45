"""What a call comes back with: `Answer`, `Choice`, and the judgement of whether a text is one of the choices. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from sidecar.client.calls import ChoiceWishes, Wishes
from sidecar.errors import CallFailed, SidecarError
from sidecar.wire import Done, Failed, Finish, Terminal, Timing, Usage


class Answer(Struct, frozen=True, kw_only=True):
    """A call that was answered. Look at `complete` before acting: only `finish == "stop"` is a whole answer.

    `cost_nano_usd` is in billionths of a dollar, `timing` and `wall_us` in microseconds, see `sidecar.wire`.
    """

    text: str
    finish: Finish
    call_id: str
    deltas: int
    usage: Usage
    route: str
    upstream: str
    model: str
    attempts: int
    timing: Timing
    wall_us: int
    cost_nano_usd: int | None = None
    model_reported: str | None = None
    backup_used: bool = False
    upstream_request_id: str | None = None

    @property
    def complete(self) -> bool:
        """The model ended by itself; False when it was cut by its token limit or asked for a tool."""
        return self.finish == "stop"

    def __str__(self) -> str:
        return self.text


def answer_of(done: Done, text: str) -> Answer:
    """The `Answer` of a `done` and the text gathered for it."""
    fields = {name: getattr(done, name) for name in Answer.__struct_fields__ if name != "text"}
    return Answer(text=text, **fields)


def failure_of(failed: Failed, text: str, *, local: bool) -> CallFailed:
    """The typed error of a `failed`; `local` says that the client itself gave up."""
    return CallFailed.of(
        failed.code,
        failed.message,
        text=text,
        retryable=failed.retryable,
        retry_after_ms=failed.retry_after_ms,
        phase=failed.phase,
        terminal=None if local else failed,
    )


def outcome_of(terminal: Terminal, text: str, *, local: bool) -> Answer:
    """The answer, or raise the failure."""
    if isinstance(terminal, Done):
        return answer_of(terminal, text)
    raise failure_of(terminal, text, local=local)


class Choice(str):
    """One of the choices, or the default: a string that also says why.

    Attributes:
        choice: the choice as the caller spelled it (the string itself), or the default as it was given.
        reason: ``answered``; ``not_a_choice``; ``incomplete`` (`finish` was not ``stop``); ``invalid_arguments``;
            ``unusable_client`` (closed, forked, in use by another thread);
            or the code of the failure (``deadline_exceeded``, ``daemon_unavailable``, ``daemon_lost``, ...).
        detail: a sentence for people, "" when answered.
        answered: the model chose; False means the default.
        answer: the whole `Answer`, also of one that was no choice; None after a failure.
    """

    choice: object
    reason: str
    detail: str
    answer: Answer | None

    @classmethod
    def make(cls, choice: object, reason: str, detail: str = "", answer: Answer | None = None) -> Choice:
        """Build one; a default that is not a string reads as its `str`."""
        text: str
        if isinstance(choice, str):
            text = choice
        else:
            try:
                text = str(choice)
            except Exception:  # noqa: BLE001 - a default whose __str__ raises must not make choose() raise
                text = ""
        self = cls(text)
        self.choice, self.reason, self.detail, self.answer = choice, reason, detail, answer
        return self

    @classmethod
    def fallback(cls, default: object, problem: Exception, *, sent: bool) -> Choice:
        """The default, after an exception; `sent` says that the call had been begun."""
        if isinstance(problem, CallFailed):
            wrong = not sent and problem.code in ("invalid_request", "too_large")
            return cls.make(default, "invalid_arguments" if wrong else problem.code, problem.message)
        if isinstance(problem, SidecarError):
            return cls.make(default, "unusable_client", str(problem))
        try:
            detail = f"{type(problem).__name__}: {problem}"
        except Exception:  # noqa: BLE001 - an exception whose __str__ raises must not make choose() raise
            detail = type(problem).__name__
        return cls.make(default, "internal" if sent else "invalid_arguments", detail)

    @property
    def answered(self) -> bool:
        """The model chose; False means the default."""
        return self.reason == "answered"

    def __repr__(self) -> str:
        return f"<Choice {str(self)!r} {self.reason}{': ' + self.detail if self.detail else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        return Choice.make, (self.choice, self.reason, self.detail, self.answer)


_QUOTES: Final = "\"'`“”„‘’‚«»‹›"


class Choices:
    """The words an answer may be, told apart strictly.

    An answer counts when it is exactly one of them after trimming white space, quotes and one trailing full stop, and
    case-folding. A text of ASCII letters only ever equals a choice of ASCII letters: case-folding alone would take
    ``ſELL`` for ``SELL``.

    Raises:
        ValueError: not a list of at least one distinct, non-empty string.
    """

    def __init__(self, words: Iterable[str]) -> None:
        if isinstance(words, (str, bytes)):
            raise ValueError('choices must be a list such as ["BUY", "SELL", "HOLD"], not one string')  # noqa: TRY004 - all one kind
        self.words: list[str] = list(words)
        self._by_key: dict[str, str] = {}
        for word in self.words:
            if not isinstance(word, str) or not _fold(word):
                raise ValueError(f"choice {word!r} is not a word")
            if self._by_key.setdefault(_fold(word), word) != word or self.words.count(word) > 1:
                raise ValueError(f"choice {word!r} cannot be told from another one")
        if not self.words:
            raise ValueError("no choices given")

    def match(self, text: str) -> str | None:
        """The choice that `text` is, as the caller spelled it, or None."""
        word = self._by_key.get(_fold(text))
        return word if word is not None and word.isascii() == _trim(text).isascii() else None

    @property
    def instructions(self) -> str:
        """What a model is told when the caller gives no instructions."""
        return f"Answer with exactly one of these, and nothing else: {', '.join(self.words)}"

    def wishes(self, wishes: ChoiceWishes, timeout_ms: float | None) -> Wishes:
        """The wishes of the call: with the timeout, a must here, and with instructions if there are none."""
        if timeout_ms is None:
            raise ValueError("choose() needs a timeout_ms")
        made: Wishes = {**wishes, "timeout_ms": timeout_ms}
        if made.get("instructions") is None:
            made["instructions"] = self.instructions
        return made

    def judge(self, answer: Answer, default: object) -> Choice:
        """The choice that an answer is, or the default with the reason."""
        if not answer.complete:
            return Choice.make(default, "incomplete", f"the answer ended with {answer.finish!r}", answer)
        word = self.match(answer.text)
        if word is None:
            return Choice.make(default, "not_a_choice", f"the answer was {answer.text[:80]!r}", answer)
        return Choice.make(word, "answered", "", answer)


def _trim(text: str) -> str:
    """Without white space and quotes at both ends, and without one full stop (inside or outside the quotes)."""
    text = text.strip().strip(_QUOTES).strip()
    if text.endswith("."):
        text = text[:-1].rstrip().strip(_QUOTES).strip()
    return text


def _fold(text: str) -> str:
    return _trim(text).casefold()
