"""Transition tables: which event leads from which state to which, and nothing else does.

Every policy with states keeps one `Table` at the head of its file. An event that the table does not know in that
state raises `IllegalTransition` before anything has changed. (h11, `_state.py`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

S = TypeVar("S", bound=str)


class IllegalTransition(RuntimeError):
    """A bug of ours: an event came in a state that does not know it. Nothing has changed."""


class Table(Generic[S]):
    """The transitions of one kind of thing.

    Args:
        name: what has these states, for messages.
        rows: (state, event) -> the state after it.
    """

    __slots__ = ("_name", "_rows")

    def __init__(self, name: str, rows: Mapping[tuple[S, str], S]) -> None:
        self._name = name
        self._rows = dict(rows)

    def after(self, state: S, event: str) -> S:
        """The state after `event` in `state`.

        Raises:
            IllegalTransition: the table has no such row.
        """
        try:
            return self._rows[state, event]
        except KeyError:
            raise IllegalTransition(f"{self._name}: {event!r} in state {state!r}") from None

    def markdown(self) -> str:
        """The table for the documentation."""
        lines = ["| state | event | state after |", "|---|---|---|"]
        lines += [f"| {state} | {event} | {after} |" for (state, event), after in self._rows.items()]
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        return f"<Table {self._name} rows={len(self._rows)}>"
