"""What the Responses codec knows of one call. Data only."""

from __future__ import annotations

from typing import Final

#: Equal to no `item_id`: sends a frame past the fast path, to where the slot's state is looked at.
CLOSED: Final = object()


class Slot:
    """The place of one call. `item` is the fast path's key: the item whose deltas need no second look."""

    __slots__ = (
        "announced", "declared", "discarded", "first", "half", "index", "item", "loose", "model", "name", "refusal",
        "response_id", "seen", "serial", "spare", "taken",
    )  # fmt: skip

    def __init__(self, index: int, name: str | None) -> None:
        self.index, self.name, self.serial = index, name, 0
        self.reset(taken=False)

    def reset(self, *, taken: bool) -> None:
        """Free, or with a call of which nothing is known yet."""
        self.taken, self.discarded, self.announced, self.seen = taken, False, False, False
        self.item: object = CLOSED
        #: Messages that `output_item.added` said to be this answer's.
        self.declared: frozenset[str] = frozenset()
        #: The item that text came under before it was said to be anybody's.
        self.first: str | None = None
        #: This server's deltas name other items than it added (a known fault of gateways that translate).
        self.loose = False
        self.response_id: str | None = None
        self.model: str | None = None
        self.half = self.refusal = self.spare = ""
