"""What a call may wish for, and what is known of one while it runs. Data only: `Session` moves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from sidecar.errors import CallFailed
from sidecar.wire import Accepted, ChatMessage, Done, Failed, Lane, Pong, Report, Terminal

if TYPE_CHECKING:
    from sidecar.client.session import Session


class ChoiceWishes(TypedDict, total=False):
    """What a call may ask for, beside its prompt; names, units and defaults as in `sidecar.wire.Call`.

    `moves_on` is the client's own and is not sent, see `Client`.
    """

    messages: Sequence[ChatMessage | Mapping[str, str]] | None
    route: str | None
    instructions: str | None
    options: Mapping[str, Any] | None
    first_delta_timeout_ms: float | None
    idle_timeout_ms: float | None
    lane: Lane | None
    on_lost: Literal["fail", "restart"] | None
    moves_on: bool | None


class Wishes(ChoiceWishes, total=False):
    """The same, and the timeout of the whole call."""

    timeout_ms: float | None


WISHES: Final = frozenset(Wishes.__annotations__)


class OpenCall:
    """A call as far as it is known. Read it; only the session writes it.

    Attributes:
        id: its name on the wire.
        pieces: the text so far, as it came.
        restarts: how often `pieces` began anew.
        accepted: the daemon's word, None before it.
        ended: the terminal, None before it.
        local: the terminal is the client's own.
        handed_over: given to the socket.
        deadline_at: the deadline, in the clock of `now`.
        home: the session of the daemon that has it, or will.
        payload: as it travels; a call that its daemon would not begin may be moved to another one.
        unwanted: it was cancelled here.
        moves_on: when its daemon goes before it began the call, another one may have it, or the next.
        refusal: the last `draining` it was refused with; it was offered again, or will be.
    """

    __slots__ = (
        "accepted",
        "changed",
        "deadline_at",
        "ended",
        "grace",
        "handed_over",
        "home",
        "id",
        "local",
        "moves_on",
        "payload",
        "pieces",
        "refusal",
        "restarts",
        "seq",
        "stream",
        "timed",
        "unwanted",
        "wake",
        "wake_at_end",
    )

    def __init__(
        self,
        home: Session,
        name: str,
        payload: bytes,
        *,
        stream: bool,
        timed: bool,
        deadline_at: float,
        grace: float,
        moves_on: bool = True,
    ) -> None:
        self.home, self.payload = home, payload
        self.id, self.stream, self.timed, self.grace = name, stream, timed, grace
        self.deadline_at = deadline_at
        self.pieces: list[str] = []
        self.seq = self.restarts = 0
        self.accepted: Accepted | None = None
        self.ended: Terminal | None = None
        self.local = self.handed_over = self.changed = self.unwanted = False
        self.moves_on = moves_on
        self.refusal: Failed | None = None
        #: whoever waits for a change, and for the end (the asyncio shell's futures)
        self.wake: list[Any] | None = None
        self.wake_at_end: list[Any] | None = None

    @property
    def expire_at(self) -> float:
        """When the client gives up: no grace for a call that the daemon never had."""
        return self.deadline_at + self.grace if self.handed_over else self.deadline_at

    @property
    def begun(self) -> bool:
        """The bot may have seen something of an answer."""
        return bool(self.pieces or self.seq or self.restarts)

    @property
    def text(self) -> str:
        """The text so far; of an ended `stream: false` call, all of it."""
        if self.ended is not None and self.ended.text is not None and not self.pieces:
            return self.ended.text
        return "".join(self.pieces)

    def __repr__(self) -> str:
        state = "open" if self.ended is None else "done" if isinstance(self.ended, Done) else self.ended.code
        return f"<OpenCall {self.id} {state} deltas={self.seq} restarts={self.restarts}>"


class Question:
    """A `ping` or a `probe` under way. `answer` or `failure` is set when it is over."""

    __slots__ = ("answer", "changed", "expire_at", "failure", "handed_over", "id", "kind", "wake", "wake_at_end")

    def __init__(self, kind: Literal["ping", "probe"], nonce: int, expire_at: float) -> None:
        self.kind, self.id, self.expire_at = kind, nonce, expire_at
        self.answer: Pong | Report | None = None
        self.failure: CallFailed | None = None
        self.handed_over = self.changed = False
        self.wake: list[Any] | None = None
        self.wake_at_end: list[Any] | None = None

    @property
    def over(self) -> bool:
        """Answered, or failed."""
        return self.answer is not None or self.failure is not None


def is_over(item: OpenCall | Question) -> bool:
    """Nothing more is to be expected of it."""
    return item.ended is not None if isinstance(item, OpenCall) else item.over
