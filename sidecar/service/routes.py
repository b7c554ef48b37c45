"""What a route is at run time: its targets, what is known of each, and in which order a call asks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from msgspec import structs

from sidecar.config import Route
from sidecar.core.breaker import Breaker
from sidecar.core.jury import Jury
from sidecar.core.latency import FirstDeltaTimes
from sidecar.core.preference import Preference
from sidecar.core.retry import RetryBudget
from sidecar.core.throttle import Throttle
from sidecar.dialects.options import UnsupportedOption, merge
from sidecar.service.pool import Pool
from sidecar.wire import Lane, Options

#: Seconds for which the usual order of targets is believed without another look at their health.
_ORDER_STANDS: Final = 0.01
#: Seconds for which what is possible at best is believed.
_BEST_STANDS: Final = 0.1
#: A backup is a little later than its quantile: where all answers take about as long, it is not to come before most.
_MARGIN: Final = 1.1
#: Of calls that cannot make it even at best, one in so many seconds is made all the same: else nobody would ever
#: find out that the upstream has become quicker.
_MEASURED_EVERY: Final = 1.0


class TargetRuntime:
    """One upstream and model of a route.

    Breaker, times and blame are shared by every route that names the same upstream and model, the budget by all of an
    upstream.
    """

    __slots__ = (
        "base_options", "blame", "breaker", "budget", "cap", "default_options", "model", "pool", "refusals", "times",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool,
        model: str,
        breaker: Breaker,
        budget: RetryBudget,
        times: FirstDeltaTimes,
        blame: Jury,
        refusals: Throttle,
        base_options: dict[str, Any],
        cap: int,
    ) -> None:
        self.pool = pool
        self.model = model
        self.breaker = breaker
        self.budget = budget
        #: to first delta
        self.times = times
        self.blame = blame
        #: it said that it cannot serve anybody now, for want of credit or of the model
        self.refusals = refusals
        self.base_options = base_options
        self.cap = cap
        #: what a call without options of its own sends: merged once
        self.default_options = merge(base_options, {}, cap)

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
            raise UnsupportedOption(", ".join(unsupported), f"upstream {self.pool.upstream.name} cannot take it")
        return structs.replace(merged, **dict.fromkeys(unsupported)) if unsupported else merged

    def is_fit(self, now: float, patience: float) -> bool:
        """It is expected to answer, with its first delta within `patience` seconds.

        A throttle does not count: a call passes it over while it lasts, and what comes after it the concurrency limit
        lets in by and by.
        """
        pool = self.pool
        return (
            self.breaker.state(now) == "closed"
            and pool.enabled
            and pool.refusal is None
            and not pool.ways.unreachable
            and self.refusals.ready_at <= now
            and self.times.keeps_up(patience, now)
        )


class RouteRuntime:
    """A configured route and its targets.

    Args:
        config: of the route.
        targets: in order of preference.
        jitter: 0 <= x < 1.
    """

    __slots__ = (
        "_backup_lanes",
        "_best",
        "_best_until",
        "_default_options",
        "_jitter",
        "_measured_at",
        "_natural",
        "_order_until",
        "_patience",
        "_preference",
        "budgets",
        "config",
        "name",
        "services",
        "targets",
    )  # fmt: skip

    def __init__(self, config: Route, targets: list[TargetRuntime], *, jitter: Callable[[], float]) -> None:
        self.name = config.name
        self.config = config
        self.targets = targets
        #: of its targets' upstreams, each once
        self.budgets = tuple({id(target.budget): target.budget for target in targets}.values())
        self._default_options: list[Options] | None = None
        self._backup_lanes = frozenset(config.backup_lanes)
        self._natural = tuple(range(len(targets)))
        self._preference = Preference(len(targets), ramp=config.return_ramp_s, jitter=jitter)
        #: by target: the same number for each way to one upstream and model
        self.services = _services(targets)
        self._jitter = jitter
        self._patience = config.first_delta_timeout_ms / 1000
        self._order_until = self._best_until = self._measured_at = -math.inf
        self._best = 0.0

    def order(self, now: float, lane: Lane) -> Sequence[int]:
        """The targets (indices) in the order in which a call of `lane` asks them now: see `core.preference`.

        A target whose breaker wants a trial stands at its own place, as if it were fit: one call at a time finds out
        how it is. Before those that are preferred to it it stands for calls that have little to lose, never for exits.
        """
        natural = self._natural
        if len(natural) == 1 or now < self._order_until:
            return natural
        fit = [target.is_fit(now, self._patience) for target in self.targets]
        order = self._preference.order(fit, [target.times.cost(now) for target in self.targets], now)
        if all(fit):
            if tuple(order) == natural:
                self._order_until = now + _ORDER_STANDS
            return order
        trials = [i for i in natural if not fit[i] and self.targets[i].breaker.state(now) == "half_open"]
        if not trials:
            return order
        others = [i for i in order if i not in trials]
        if lane != "exit":
            return trials + others
        for trial in trials:
            others.insert(next((at for at, i in enumerate(others) if i > trial), len(others)), trial)
        return others

    def at_best(self, now: float) -> float:
        """Seconds that the quickest of the targets in question needs to its first delta at best; 0 while unknown."""
        if now >= self._best_until:
            self._best_until = now + _BEST_STANDS
            best = math.inf
            for target in self.targets:
                if target.breaker.state(now) != "open" and target.pool.takes_calls(now):
                    best = min(best, target.times.at_best(now))
            self._best = 0.0 if best == math.inf else best
        return self._best

    def is_unreachable(self, deadline: float, now: float) -> bool:
        """By what was seen of late, the first delta of a call begun now comes after its `deadline`, even at best.

        One such call a second is said to be reachable all the same: it may have changed.
        """
        if now >= deadline:
            return True
        if now + self.at_best(now) <= deadline:
            return False
        if now - self._measured_at >= _MEASURED_EVERY:
            self._measured_at = now
            return False
        return True

    def measured_again_after(self) -> float:
        """Seconds, jittered, after which a call that is unreachable now may be the one that is made all the same."""
        return _MEASURED_EVERY * (0.5 + self._jitter())

    def backup_after(self, lane: Lane, index: int, now: float) -> float:
        """Seconds after which a call of `lane`, asking target `index` first, gets a backup; inf for never."""
        config = self.config
        if lane not in self._backup_lanes:
            return math.inf
        after = self.targets[index].times.backup_after(
            now,
            quantile=config.backup_quantile,
            at_least=config.backup_min_ms / 1000,
            at_most=config.backup_max_ms / 1000,
        )
        return math.inf if after is None else min(_MARGIN * after, config.backup_max_ms / 1000)

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


def _services(targets: Sequence[TargetRuntime]) -> tuple[int, ...]:
    names = [(target.pool.upstream.name, target.model) for target in targets]
    return tuple(names.index(name) for name in names)
