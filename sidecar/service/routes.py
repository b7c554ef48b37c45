"""What a route is at run time: its targets with their pool, breaker and budget, in order of preference."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import structs

from sidecar.config import Route
from sidecar.core.breaker import Breaker
from sidecar.core.retry import RetryBudget
from sidecar.dialects.options import UnsupportedOption, merge
from sidecar.service.pool import Pool
from sidecar.wire import Options

#: Weight of the newest time to first delta in a target's moving average.
_EWMA_WEIGHT = 0.2


class TargetRuntime:
    """One upstream and model of a route.

    The breaker is shared by every route that names the same upstream and model, the budget by all of an upstream.
    """

    __slots__ = ("base_options", "breaker", "budget", "cap", "default_options", "first_delta", "model", "pool")

    def __init__(
        self, pool: Pool, model: str, breaker: Breaker, budget: RetryBudget, base_options: dict[str, Any], cap: int
    ) -> None:
        self.pool = pool
        self.model = model
        self.breaker = breaker
        self.budget = budget
        self.base_options = base_options
        self.cap = cap
        #: what a call without options of its own sends: merged once
        self.default_options = merge(base_options, {}, cap)
        #: moving average of the time to first delta, seconds; 0 while unknown
        self.first_delta = 0.0

    def options(self, of_call: dict[str, Any]) -> Options:
        """The target's options with the call's laid over them.

        Raises:
            UnsupportedOption, InvalidOption: the call's options are not of the table.
        """
        return merge(self.base_options, of_call, self.cap) if of_call else self.default_options

    def carried(self, of_call: dict[str, Any], unsupported_options: Literal["fail", "drop"]) -> Options:
        """`options`, without those that the target's dialect has no field for.

        Raises:
            UnsupportedOption: there are some, and the route says `fail`; or see `options`.
        """
        merged = self.options(of_call)
        unsupported = self.pool.dialect.unsupported(merged)
        if unsupported and unsupported_options == "fail":
            raise UnsupportedOption(", ".join(unsupported), f"upstream {self.pool.name} cannot take it")
        return structs.replace(merged, **dict.fromkeys(unsupported)) if unsupported else merged

    def observed_first_delta(self, seconds: float) -> None:
        """Learn from an answer."""
        self.first_delta += (_EWMA_WEIGHT if self.first_delta else 1.0) * (seconds - self.first_delta)


class RouteRuntime:
    """A configured route and its targets."""

    __slots__ = ("_default_options", "config", "name", "targets")

    def __init__(self, config: Route, targets: list[TargetRuntime]) -> None:
        self.name = config.name
        self.config = config
        self.targets = targets
        self._default_options: list[Options] | None = None

    def options(self, of_call: dict[str, Any]) -> list[Options]:
        """What each target would be given. Most calls have no options of their own: theirs are made once.

        Raises:
            UnsupportedOption, InvalidOption: one of the targets cannot take them.
        """
        if not of_call and self._default_options is not None:
            return self._default_options
        options = [target.carried(of_call, self.config.unsupported_options) for target in self.targets]
        if not of_call:
            self._default_options = options
        return options
