"""What a call knows of one attempt. Data only: `call.Call` moves it."""

from __future__ import annotations

import math


class AttemptState:
    """One try on one connection. `number` counts from 1; times are instants of the loop's clock."""

    __slots__ = (
        "backup_at",
        "conclude_at",
        "first_content_at",
        "first_delta_at",
        "last_content_at",
        "number",
        "overtaken",
        "sent_at",
        "target",
    )

    def __init__(self, number: int, target: int, sent_at: float, first_delta_at: float) -> None:
        self.number, self.target, self.sent_at = number, target, sent_at
        #: when its first-delta clock falls due; inf once it has fallen
        self.first_delta_at = first_delta_at
        #: when it gets a sibling for being slower than usual; inf for never, or once it has fallen
        self.backup_at = math.inf
        self.first_content_at: float | None = None
        self.last_content_at = sent_at
        #: when its answer is concluded without usage; inf while it has not ended
        self.conclude_at = math.inf
        #: its first-delta clock fell due: slow, whatever comes of it
        self.overtaken = False

    def __repr__(self) -> str:
        return f"<attempt {self.number} target={self.target} content={self.first_content_at is not None}>"
