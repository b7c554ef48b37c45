"""What one bot process is told, and the seam between it and the kinds of bot."""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec import Struct

from sidecar.bench.arrivals import schedule
from sidecar.bench.load import Load
from sidecar.client.calls import Wishes

#: Seconds after its deadline until a call without a terminal is given up as unfinished.
GRACE: float = 3.0


class Job(Struct, frozen=True, kw_only=True):
    """For one bot process.

    Args:
        load: of all bots together.
        index: which of them this is.
        endpoint: the daemon's.
        route: None: the daemon's default.
        prompt: of each call.
        ask_tokens: send `max_output_tokens`: for an upstream that is not steered otherwise.
        result: the file for what was seen.
    """

    load: Load
    index: int
    endpoint: str
    route: str | None
    prompt: str
    ask_tokens: bool
    result: str

    @property
    def wishes(self) -> Wishes:
        """What each call says beside its prompt."""
        wishes: Wishes = {"timeout_ms": self.load.timeout_ms, "route": self.route}
        if self.ask_tokens and self.load.tokens is not None:
            wishes["options"] = {"max_output_tokens": self.load.tokens}
        return wishes

    @property
    def max_open(self) -> int:
        """This bot's share of the fuse."""
        return max(1, self.load.max_open // self.load.clients)

    def dues(self, start_us: int) -> Iterator[int]:
        """The instants of its calls, in microseconds of CLOCK_MONOTONIC."""
        dice = random.Random(f"{self.load.seed}:{self.index}")
        for at in schedule(self.load, self.index, dice.random):
            yield start_us + int(at * 1e6)
