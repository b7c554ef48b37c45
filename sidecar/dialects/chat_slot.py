"""What the chat codec knows of one call. Data only."""

from __future__ import annotations

from sidecar.wire import Finish, Usage


class Slot:
    """The place of one call.

    `name` is the id we gave it, `completion` the one its frames go by, `request_id` the upstream's own. `held`: over
    HTTP, two chunks in a row went by the same id, so those that go by another are not this answer's.
    """

    __slots__ = (
        "completion", "discarded", "finish", "half", "held", "index", "model", "name", "refusal", "request_id",
        "seen", "serial", "started", "taken", "usage",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index, self.name, self.serial = index, "", 0
        self.reset(taken=False)

    def reset(self, *, taken: bool) -> None:
        """Free, or with a call of which nothing is known yet."""
        self.taken, self.discarded, self.started, self.seen = taken, False, False, False
        self.completion: str | None = None
        self.held = False
        self.request_id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        #: Set by finish_reason: from there the slot is ending.
        self.finish: Finish | None = None
        self.half = self.refusal = ""
