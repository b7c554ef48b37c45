"""The seams between the loops: what the frontend asks of the dispatcher, and what the dispatcher tells a bot.

Everything here is synchronous and never blocks. Nothing leaves the process before `Outbound.flush()`: whoever
starts a pass (a read from an upstream, a batch from bots, a sweep of the clocks) ends it with one flush, so that
the deltas of a pass travel together.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from sidecar.wire import Accepted, Call, Failed, Lane, Restarted, Terminal


class Peer(Struct, frozen=True, kw_only=True):
    """Who is calling, as the kernel tells it; `label` is what the bot said of itself, for people only."""

    uid: int
    gid: int
    pid: int
    label: str = ""

    @property
    def holder(self) -> tuple[int, int]:
        """Whose calls are counted together: one process of one user, however many connections it makes."""
        return self.uid, self.pid


class Reply(Protocol):
    """The way back to the bot for one call. The frontend implements it; `accept` comes first, one `finish` last."""

    def accept(self, message: Accepted) -> None:
        """Queue `accepted` (not for a REQ bot, which gets its terminal only)."""
        ...

    def text(self, piece: str) -> None:
        """Append a piece of the answer (never empty). THE HOT PATH: no allocation beyond the append."""
        ...

    def restart(self, message: Restarted) -> None:
        """Forget the text so far, sent or not; `seq` starts at 0 again."""
        ...

    def finish(self, terminal: Terminal) -> None:
        """Queue the terminal after all text. The frontend fills in `deltas`, `partial`, and `text` if nothing streamed.

        After it the reply takes nothing more, and the bot may use the id again.
        """
        ...

    @property
    def committed(self) -> bool:
        """Text was handed over that the bot may see (never with `stream: false`)."""
        ...


class Ticket(Protocol):
    """The frontend's hold on a call in flight. The dispatcher implements it."""

    call_id: str
    #: it has a place in flight; False, None: it waits for one, or had to go
    admitted: bool | None

    def end(self, code: str, message: str) -> None:
        """End the call for the bot's sake (`cancelled`, `slow_reader`): upstream work stops, `Reply.finish` follows."""
        ...

    def abandon(self) -> None:
        """The bot is gone: stop the upstream work, say nothing more."""
        ...


class CallHandler(Protocol):
    """What the frontend gives calls to. The dispatcher implements it."""

    def submit(self, call: Call, reply: Reply, peer: Peer, *, recv_mono_us: int, ignored: list[str]) -> Ticket | Failed:
        """Take a well-formed call, or refuse it on receipt.

        Returns:
            a refusal (a `Failed` without `call_id`; `reply` was not touched), or the ticket of an accepted call
            (`reply.accept` was called; `reply.finish` may have been, too).
        """
        ...


class Outbound(Protocol):
    """The end of a pass: `turn.Turn`."""

    def flush(self) -> None:
        """Send what the replies have gathered; what a slow bot cannot take stays and is merged."""
        ...


class Halted(Protocol):
    """`brakes.Brakes`, as asked on receipt."""

    halted: frozenset[Lane]

    #: for the bot
    message: str
