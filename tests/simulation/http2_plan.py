"""How an upstream's HTTP/2 server is: drawn with its schedule, plain data."""

from __future__ import annotations

import random

from msgspec import Struct, structs


class Http2Plan(Struct, frozen=True, kw_only=True):
    """How an upstream's HTTP/2 server is.

    Args:
        max_streams: at once on a connection; None for a hundred.
        changes: seconds after the beginning, and how many then.
        window: bytes of a request that may come ahead of its reading.
        opens_after: seconds after which it allows as many as it has taken; None: never.
        settings_after: seconds until its settings, of every third connection.
        deaf: pings are not answered.
        gathers: seconds for which it gathers what it says before it is sent.
        longest: bytes of a request that it takes.
        dumb_after: seconds after which every third connection answers pings and nothing else.
    """

    max_streams: int | None = None
    changes: tuple[tuple[float, int], ...] = ()
    window: int = 65_535
    opens_after: float | None = 0.0
    settings_after: float = 0.0
    deaf: bool = False
    gathers: float = 0.0
    longest: int = 1_000_000
    dumb_after: float | None = None


def draw_http2(dice: random.Random, *, peaceful: bool) -> Http2Plan:
    """Of one upstream. `peaceful`: with nothing that could be held against it."""
    plan = Http2Plan(
        max_streams=dice.choice([None, None, None, 1, 2, 0]),
        changes=dice.choice([(), (), ((0.3, 1),), ((0.05, 0), (0.6, 3)), ((0.2, 100), (0.7, 1)), ((0.4, 2),)]),
        gathers=dice.choice([0.0, 0.0, 0.0, 0.001, 0.01]),
    )
    if peaceful:
        return plan
    return structs.replace(
        plan,
        window=dice.choice([65_535, 65_535, 65_535, 0, 100, 10_000, 1 << 20]),
        opens_after=dice.choice([0.0, 0.0, 0.0, 0.0, 0.02, 0.3, None]),
        settings_after=dice.choice([0.0, 0.0, 0.1, 0.4]),
        deaf=dice.random() < 0.07,
        longest=dice.choice([1_000_000, 1_000_000, 50_000]),
        dumb_after=dice.choice([None, None, None, None, 0.0, 0.5]),
    )
