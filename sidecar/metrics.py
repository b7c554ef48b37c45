"""Counters, gauges and log-scale histograms: plain ints in one registry. Pure: no clock, no I/O.

Recording is a dictionary look-up and an addition, well under a microsecond; nothing is computed before somebody asks.
Labels come from the configuration and from closed sets (codes, lanes, outcomes), never from a bot's words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

Labels: TypeAlias = tuple[str, ...]
Family: TypeAlias = dict[str, Any]

#: Beyond it a family counts under the label "other": a bug must not become a leak.
MAX_SERIES: Final = 1000

_SUB_BITS: Final = 4  # 16 steps per doubling: a percentile is at most 6.25 % above the truth
_SUB: Final = 1 << _SUB_BITS
_MAX_US: Final = (1 << 37) - 1  # 38 hours; a call lasts a day at most
_BUCKETS: Final = ((37 - _SUB_BITS) << _SUB_BITS) + _SUB
#: Upper bounds in Prometheus' text, microseconds: 64 us to 67 s by doublings, each an exact edge of ours.
_EXPORTED_US: Final = tuple(1 << power for power in range(6, 27))


def bucket_of(us: int) -> int:
    """The index of the bucket for a duration; buckets are (lower, upper], so that powers of two are edges.

    The scheme of HdrHistogram: the top `_SUB_BITS + 1` bits of the value, after their exponent.
    """
    value = us - 1 if us > 0 else 0
    if value < _SUB:
        return value
    if value > _MAX_US:
        value = _MAX_US
    exponent = value.bit_length() - _SUB_BITS - 1
    return (exponent << _SUB_BITS) + (value >> exponent)


def upper_bound_us(index: int) -> int:
    """The largest duration that falls into bucket `index`, microseconds."""
    if index < 2 * _SUB:
        return index + 1
    exponent = (index >> _SUB_BITS) - 1
    return ((index & (_SUB - 1)) + _SUB + 1) << exponent


class Counter:
    """A family of counts that only grow. `add` takes the label values in the order of `labels`."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, text, tuple(labels)
        self.values: dict[Labels, int | float] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        values = self.values
        if labels in values:
            values[labels] += by
        else:
            key = self._new(labels)
            values[key] = values.get(key, 0) + by

    def get(self, *labels: str) -> int | float:
        """The value now; 0 for what was never counted."""
        return self.values.get(labels, 0)

    def _new(self, labels: Labels) -> Labels:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} takes {len(self.labels)} labels, got {len(labels)}")
        return labels if len(self.values) < MAX_SERIES else ("other",) * len(self.labels)

    def collect(self) -> Family:
        """The family in the shape of `Registry.collect`."""
        samples = [
            {"labels": dict(zip(self.labels, labels, strict=True)), "value": value}
            for labels, value in sorted(self.values.items())
        ]
        return {"name": self.name, "help": self.help, "type": self.kind, "samples": samples}


class Gauge(Counter):
    """A family of values that go up and down; set when somebody asks, from `statistics()` of the parts."""

    kind = "gauge"

    def set(self, *labels: str, value: float) -> None:
        """The value now."""
        values = self.values
        values[labels if labels in values else self._new(labels)] = value

    def clear(self) -> None:
        """Forget all: before a fresh set of labels (states that no connection is in any more)."""
        self.values.clear()


class Series:
    """One histogram of durations, in integer microseconds."""

    __slots__ = ("buckets", "count", "max_us", "sum_us")

    def __init__(self) -> None:
        self.buckets = [0] * _BUCKETS
        self.count = self.sum_us = self.max_us = 0

    def record(self, us: int) -> None:
        """Count one duration; a negative one counts as 0."""
        value = us - 1 if us > 0 else 0
        if value >= _SUB:
            if value > _MAX_US:
                value = _MAX_US
            exponent = value.bit_length() - _SUB_BITS - 1
            self.buckets[(exponent << _SUB_BITS) + (value >> exponent)] += 1
        else:
            self.buckets[value] += 1
        self.count += 1
        if us > 0:
            self.sum_us += us
            if us > self.max_us:
                self.max_us = us

    def percentile(self, fraction: float) -> int | None:
        """The duration that `fraction` (0 to 1) of all stay within, at most 6.25 % too high; None when empty."""
        if not self.count:
            return None
        rank, seen = max(1, -int(-fraction * self.count // 1)), 0
        for index, count in enumerate(self.buckets):
            seen += count
            if seen >= rank:
                return min(upper_bound_us(index), self.max_us)
        return self.max_us  # pragma: no cover  (the buckets add up to count)

    def summary(self) -> dict[str, int | None]:
        """For people: count, mean, p50, p90, p99, p99.9 and max, in microseconds."""
        return {
            "count": self.count,
            "mean_us": self.sum_us // self.count if self.count else None,
            "p50_us": self.percentile(0.50),
            "p90_us": self.percentile(0.90),
            "p99_us": self.percentile(0.99),
            "p999_us": self.percentile(0.999),
            "max_us": self.max_us if self.count else None,
        }


class Histogram:
    """A family of `Series` by labels. The name ends in `_seconds`; recording is in microseconds."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, text, tuple(labels)
        self.series: dict[Labels, Series] = {}

    def record(self, us: int, *labels: str) -> None:
        """Count one duration in microseconds."""
        series = self.series.get(labels)
        if series is None:
            series = self._new(labels)
        series.record(us)

    def _new(self, labels: Labels) -> Series:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} takes {len(self.labels)} labels, got {len(labels)}")
        key = labels if len(self.series) < MAX_SERIES else ("other",) * len(self.labels)
        return self.series.setdefault(key, Series())

    def summary(self) -> list[dict[str, Any]]:
        """`Series.summary` of each series, with its labels."""
        return [
            {"labels": dict(zip(self.labels, labels, strict=True)), **series.summary()}
            for labels, series in sorted(self.series.items())
        ]

    def collect(self) -> Family:
        """The family in the shape of `Registry.collect`: cumulative buckets, sum and count, in seconds."""
        samples: list[dict[str, Any]] = []
        for labels, series in sorted(self.series.items()):
            named = dict(zip(self.labels, labels, strict=True))
            seen, start = 0, 0
            for bound in _EXPORTED_US:
                end = bucket_of(bound) + 1
                seen += sum(series.buckets[start:end])
                start = end
                samples.append({"labels": {**named, "le": repr(bound / 1e6)}, "value": seen, "suffix": "_bucket"})
            samples.append({"labels": {**named, "le": "+Inf"}, "value": series.count, "suffix": "_bucket"})
            samples.append({"labels": named, "value": series.sum_us / 1e6, "suffix": "_sum"})
            samples.append({"labels": named, "value": series.count, "suffix": "_count"})
        return {"name": self.name, "help": self.help, "type": "histogram", "samples": samples}


class Metrics:
    """Everything the daemon counts: the one registry, built by the composition root and handed down."""

    def __init__(self) -> None:
        # Calls, as bots see them. `code` is "done" or a code of the wire.
        self.calls = Counter("sidecar_calls_total", "Calls ended or refused.", ("route", "lane", "code"))
        self.call_time = Histogram("sidecar_call_duration_seconds", "Receipt to terminal.", ("route",))
        self.queued_time = Histogram("sidecar_queued_seconds", "Receipt to the first attempt.", ("lane",))
        self.overhead = Histogram("sidecar_overhead_seconds", "Spent in the daemon itself, per call.")
        self.overshoot = Histogram("sidecar_deadline_overshoot_seconds", "Deadline to its terminal being sent.")
        # Attempts, as upstreams see them. `outcome` is the class of core.outcome.
        self.attempts = Counter("sidecar_attempts_total", "Attempts ended.", ("upstream", "outcome"))
        self.backups = Counter("sidecar_backups_total", "Attempts started beside one still running.", ("upstream",))
        self.first_delta = Histogram(
            "sidecar_first_delta_seconds", "Attempt sent to its first content.", ("upstream", "model")
        )
        self.tokens = Counter(
            "sidecar_tokens_total",
            "Model tokens; kind: input, output, cached, reasoning; unused: of overtaken attempts, estimated.",
            ("upstream", "model", "kind"),
        )
        self.tokens_estimated = Counter("sidecar_answers_without_usage_total", "Usage estimated.", ("upstream",))
        self.breaker_trips = Counter("sidecar_breaker_trips_total", "Breakers opened.", ("upstream", "model"))
        # Bots and the daemon itself: set when somebody asks.
        self.in_flight = Gauge("sidecar_calls_in_flight", "Calls admitted and not ended.")
        self.queued = Gauge("sidecar_calls_queued", "Calls waiting for admission or a connection.")
        self.bots = Gauge("sidecar_bots_connected", "Bots connected.")
        self.connections = Gauge("sidecar_connections", "Connections by state.", ("upstream", "state"))
        self.attempts_at_once = Gauge(
            "sidecar_attempts_at_once", "How many attempts an upstream is given at once, by what it could take.",
            ("upstream",),
        )  # fmt: skip
        self.throttled = Gauge(
            "sidecar_throttled_seconds", "Until an upstream's credential may be used again.", ("upstream",)
        )
        self.retry_budget = Gauge("sidecar_retry_budget", "Further attempts that could be paid for.", ("upstream",))
        self.breakers = Gauge("sidecar_breaker_open", "1 open, 0.5 half-open, 0 closed.", ("upstream", "model"))
        self.halted = Gauge("sidecar_lane_halted", "1 while an operator has halted the lane.", ("lane",))
        self.loop_lag = Gauge("sidecar_loop_lag_seconds", "The worst lateness of the loop in the last two seconds.")

    def families(self) -> Iterable[Counter | Histogram]:
        """All families, in the order above."""
        return vars(self).values()

    def collect(self) -> list[Family]:
        """A snapshot: ``{name, help, type, samples: [{labels, value, suffix?}]}`` per family that has samples."""
        return [family for family in (each.collect() for each in self.families()) if family["samples"]]

    def percentiles(self) -> Mapping[str, list[dict[str, Any]]]:
        """For people: name -> `Histogram.summary`, of the histograms that have counted anything."""
        return {each.name: each.summary() for each in self.families() if isinstance(each, Histogram) and each.series}
