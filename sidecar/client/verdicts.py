"""What a terminal means for a call, and what the client says when it ends one by itself. Pure."""

from __future__ import annotations

import enum
from typing import Final

from sidecar.client.calls import OpenCall, Question
from sidecar.wire import Failed, Terminal

#: Codes of ours that say that nobody began the call.
_NOTHING_SENT: Final = frozenset({"daemon_unavailable", "draining"})


class Verdict(enum.Enum):
    """On a terminal that names a call."""

    ENDS = "ends"
    REFUSAL = "refusal"  # of another message with the same id: it ends no call in flight
    DRAINING = "draining"  # the daemon is going and has sent nothing of the call upstream
    FOREIGN = "a terminal of another call came"
    INCOMPLETE = "deltas are missing"


# Looking a member up in its class runs Python code, and a terminal ends every call.
ENDS: Final = Verdict.ENDS
_REFUSAL, _DRAINING, _FOREIGN, _INCOMPLETE = Verdict.REFUSAL, Verdict.DRAINING, Verdict.FOREIGN, Verdict.INCOMPLETE


def verdict_on(call: OpenCall, terminal: Terminal) -> Verdict:
    """What it means for the call."""
    accepted = call.accepted
    if accepted is not None and terminal.call_id != accepted.call_id:
        refusal = isinstance(terminal, Failed) and terminal.call_id is None
        return _REFUSAL if refusal else _FOREIGN
    if isinstance(terminal, Failed):
        return _DRAINING if terminal.code == "draining" else ENDS
    return _INCOMPLETE if call.stream and terminal.deltas != call.seq else ENDS


def may_move(call: OpenCall) -> bool:
    """Whether a call that its daemon would not begin may go to another one."""
    return call.moves_on and not call.unwanted and not call.begun


def local_end(call: OpenCall, code: str, message: str) -> Failed:
    """The client's own terminal."""
    retryable, partial = code in _NOTHING_SENT, bool(call.pieces)
    return Failed(id=call.id, code=code, message=message, retryable=retryable, partial=partial, deltas=call.seq)


def lateness_of(item: OpenCall | Question, *, connected: bool) -> tuple[str, str]:
    """Code and message of what is past its deadline and grace."""
    if isinstance(item, OpenCall) and item.refusal is not None and not item.handed_over:
        return item.refusal.code, "the daemon was drained, and no other one had the call by its deadline"
    if not item.handed_over and not connected:
        return "daemon_unavailable", "no connection to the daemon by the deadline"
    return "deadline_exceeded", "the deadline passed, and the daemon had not ended the call"
