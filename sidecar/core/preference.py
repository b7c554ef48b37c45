"""In which order a route's targets are asked: as configured, the unfit last, and who returns comes back gradually.

    | target | event | target after |
    |---|---|---|
    | settled | seen unfit | unfit |
    | unfit | seen fit | ramping |
    | ramping | seen unfit | unfit |
    | ramping | its ramp is over | settled |

A target that ramps is found at its place by a growing share of the calls; the others find it behind the next fit
target that has settled. Without that, the first second after an outage would bring it everybody at once.

Sources: Envoy's slow start and its panic threshold (when nobody is fit, all are asked), Finagle's ramp after
mark-dead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

#: Share of the calls that find a target at its place at the begin of its ramp.
FIRST_SHARE: Final = 0.1


class PreferenceStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot, by place in the configuration; `returns`: ramps begun since the start."""

    unfit: tuple[int, ...]
    ramping: tuple[int, ...]
    returns: int


class Preference:
    """The order of one route. It learns what is fit when it is asked, so it sees what its calls see.

    Args:
        targets: how many the route has; 1 or more.
        ramp: seconds until who was unfit has its place back; 0: at once.
        jitter: U(0, 1).
    """

    __slots__ = ("_as_configured", "_calm", "_jitter", "_ramp", "_returns", "_since", "_unfit")

    def __init__(self, targets: int, *, ramp: float = 10.0, jitter: Callable[[], float]) -> None:
        if targets < 1 or ramp < 0:
            raise ValueError("targets is at least 1, ramp at least 0")
        self._as_configured = tuple(range(targets))
        self._ramp, self._jitter = ramp, jitter
        self._unfit = [False] * targets
        self._since = [-math.inf] * targets  # when it was seen fit again; -inf: it has settled
        self._calm = True  # all were fit, and nobody ramps
        self._returns = 0

    def order(self, fit: Sequence[bool], cost: Sequence[float], now: float) -> Sequence[int]:
        """The targets, best first; each is named once.

        Args:
            fit: by place; may it be asked as far as is known? (breaker, credential, enabled, connections)
            cost: by place, `FirstDeltaTimes.cost`: who of the unfit comes first.
            now: instant.

        Returns:
            places. The same tuple each time while all are fit and settled.
        """
        if self._calm and all(fit):
            return self._as_configured
        return self._order(fit, cost, now)

    def _order(self, fit: Sequence[bool], cost: Sequence[float], now: float) -> Sequence[int]:
        order: list[int] = []
        behind: list[int] = []  # ramping, and not at their place for this call
        unfit: list[int] = []
        calm = True
        for index in self._as_configured:
            if not fit[index]:
                self._unfit[index] = True
                self._since[index] = -math.inf
                unfit.append(index)
                calm = False
                continue
            if self._unfit[index]:
                self._unfit[index] = False
                self._since[index] = now
                self._returns += 1
            passed = now - self._since[index]
            if passed < self._ramp:
                calm = False
                at_its_place = self._jitter() < max(FIRST_SHARE, passed / self._ramp)
                (order if at_its_place else behind).append(index)
            else:
                self._since[index] = -math.inf
                order.append(index)
                order += behind
                behind.clear()
        self._calm = calm
        unfit.sort(key=cost.__getitem__)
        return (*order, *behind, *unfit)

    def statistics(self, now: float) -> PreferenceStatistics:
        """A snapshot."""
        return PreferenceStatistics(
            unfit=tuple(index for index in self._as_configured if self._unfit[index]),
            ramping=tuple(index for index in self._as_configured if now - self._since[index] < self._ramp),
            returns=self._returns,
        )

    def __repr__(self) -> str:
        unfit = [index for index, unfit in enumerate(self._unfit) if unfit]
        returning = [index for index, since in enumerate(self._since) if since > -math.inf]
        return f"<Preference targets={len(self._unfit)} unfit={unfit} returning={returning}>"
