"""How an attempt ended, and what that means for breaker, retry, metrics and the bot alike.

What a fault of an upstream means says `core.classifier`. What none brought about (success, our clocks, a bot's cancel)
stands here, in `OWN`.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

Retry: TypeAlias = Literal["never", "now", "backoff", "next_target"]


class Kind(enum.Enum):
    """What the end of an attempt says about the upstream."""

    SUCCESS = "success"
    #: it failed; usually counted against its breaker
    FAILURE = "failure"
    #: it asks for patience
    THROTTLED = "throttled"
    #: the call's own fault, or refused for good
    REJECTED = "rejected"
    #: nothing is learnt about the upstream
    IGNORED = "ignored"

    def __init__(self, label: str) -> None:
        #: `value`, which Python 3.11 looks up five times as slowly as an attribute
        self.label = label


class Outcome(Struct, frozen=True, kw_only=True):
    """How an attempt ended.

    Attributes:
        kind: what it says about the upstream.
        code: the wire's code, should this become the call's terminal.
        message: for people; names no credential and no prompt of ours.
        retry: while nothing is committed, may another attempt be made? ``now``: on another target or another
            connection at once; ``backoff``: another target at once, the same upstream only after a backoff;
            ``next_target``: only on another target of the route; ``never``.
        retry_after: seconds the upstream asked for; None when it did not.
        counts_against_breaker: a failure in the breaker's eyes.
        credential_refused: the credential, not the upstream, is at fault.
        overload: it has too much to do: give it fewer attempts at once.
        throttles: the credential asks too often (a 429): it is to wait, with all its calls, before it asks again. Not a
            1013 or a 503: those speak of the server, whoever asks; they are the breaker's.
        serves_nobody: the target can answer nobody now, whatever is asked: no credit is left, there is no such model.
        by_way: the connection, or the way to the service, has failed: another way may be as well as ever.
        retryable: what the bot is told when nothing inside tried again.
        upstream_status, upstream_code: the upstream's own, when given.
        retire_connection: the connection is gone or must not be used again.
    """

    kind: Kind
    code: str
    message: str
    retry: Retry = "never"
    retry_after: float | None = None
    counts_against_breaker: bool = False
    credential_refused: bool = False
    overload: bool = False
    throttles: bool = False
    serves_nobody: bool = False
    by_way: bool = False
    retryable: bool = False
    upstream_status: int | None = None
    upstream_code: str | None = None
    retire_connection: bool = False


SUCCESS: Final = Outcome(kind=Kind.SUCCESS, code="done", message="answered")

#: No content by the first-delta clock. The attempt may run on; `code` is for an attempt that was given up there.
FIRST_DELTA_TIMEOUT: Final = Outcome(
    kind=Kind.FAILURE, code="upstream_lost", message="no content within first_delta_timeout", retry="next_target",
    counts_against_breaker=True, retryable=True,
)  # fmt: skip

#: The stream stopped between two pieces of content.
IDLE_TIMEOUT: Final = Outcome(
    kind=Kind.FAILURE, code="idle_timeout", message="no content within idle_timeout", retry="backoff",
    counts_against_breaker=True, retire_connection=True,
)  # fmt: skip

DEADLINE: Final = Outcome(kind=Kind.IGNORED, code="deadline_exceeded", message="the deadline passed")
DEADLINE_COUNTED: Final = msgspec.structs.replace(DEADLINE, kind=Kind.FAILURE, counts_against_breaker=True)

#: The bot ended it, or another attempt of the same call won.
CANCELLED: Final = Outcome(kind=Kind.IGNORED, code="cancelled", message="ended by the bot, or by a sibling attempt")

#: The stream stopped for longer than the bot asked for, and not for as long as its route allows.
IDLE_TIMEOUT_UNCOUNTED: Final = msgspec.structs.replace(IDLE_TIMEOUT, kind=Kind.IGNORED, counts_against_breaker=False)

#: What no fault of an upstream brought about: what was seen, and what it means.
OWN: Final[tuple[tuple[str, Outcome], ...]] = (
    ("answered", SUCCESS),
    ("no content within first_delta_timeout", FIRST_DELTA_TIMEOUT),
    ("no content within idle_timeout", IDLE_TIMEOUT),
    ("no content within an idle_timeout of the bot's, shorter than its route's", IDLE_TIMEOUT_UNCOUNTED),
    ("the deadline passed before the attempt had had its route's first_delta_timeout or twice the usual p95", DEADLINE),
    ("the deadline passed, after the attempt had been silent for that long", DEADLINE_COUNTED),
    ("ended by the bot or the operator, overtaken by a sibling attempt, or given up in the bot's hurry", CANCELLED),
)  # fmt: skip


def deadline(counted: bool) -> Outcome:  # noqa: FBT001  (the one thing there is to say)
    """The call's deadline passed. `counted`: the attempt had waited long enough for it to be the upstream's doing.

    Long enough is a full first_delta_timeout, or twice the observed p95 of first-delta time.
    """
    return DEADLINE_COUNTED if counted else DEADLINE


def by_impatience(outcome: Outcome) -> Outcome:
    """What a clock of ours that ran for less than its route's time says of the upstream: nothing.

    Other outcomes stay as they are.
    """
    if outcome is FIRST_DELTA_TIMEOUT:
        return CANCELLED
    if outcome is DEADLINE_COUNTED:
        return DEADLINE
    return IDLE_TIMEOUT_UNCOUNTED if outcome is IDLE_TIMEOUT else outcome
