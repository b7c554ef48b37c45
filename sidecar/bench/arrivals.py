"""When each call begins: an open loop, in which no call waits for an earlier one. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from sidecar.bench.load import Load


def schedule(load: Load, index: int, dice: Callable[[], float]) -> Iterator[float]:
    """The instants at which one of `load.clients` bots begins its calls, in seconds from the start of the warm-up.

    The bots' processes of rate R/K together are one of rate R: exactly so for Poisson, and for evenly spread instants
    because bot k of K begins k/R after the first.

    Args:
        load: its shape.
        index: which of the bots, from 0.
        dice: floats in [0, 1), seeded.
    """
    share = load.rate / load.clients
    end = load.warm_up_s + load.for_s
    if load.arrivals == "constant":
        nth = 0
        while (at := (nth * load.clients + index) / load.rate) < end:
            yield at
            nth += 1
        return
    at = 0.0
    while (at := at - math.log1p(-dice()) / share) < end:
        yield at
