"""Counters and histograms: exact counts, bounded error, bounded size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.metrics import MAX_SERIES, Counter, Gauge, Histogram, Metrics, Series, bucket_of, upper_bound_us

durations = st.integers(0, 1 << 36)


@given(durations)
def test_a_bucket_holds_what_falls_into_it(us: int) -> None:
    """Lower < value <= upper, and the upper bound is at most 6.25 % too high."""
    index = bucket_of(us)
    assert us <= upper_bound_us(index) <= max(1, us * 1.0625 + 1)
    assert index == 0 or upper_bound_us(index - 1) < us


@given(st.integers(0, 36))
def test_powers_of_two_are_edges(power: int) -> None:
    """So that exported buckets are exact."""
    assert upper_bound_us(bucket_of(1 << power)) == 1 << power


@given(st.lists(durations, min_size=1, max_size=50), st.floats(0, 1))
def test_percentiles_are_close_and_ordered(values: list[int], fraction: float) -> None:
    """Never below the true one, at most 6.25 % above; the last is the maximum itself."""
    series = Series()
    for us in values:
        series.record(us)
    values.sort()
    rank = max(1, -int(-fraction * len(values) // 1))
    found = series.percentile(fraction)
    assert found is not None
    assert values[rank - 1] <= found <= max(1, values[rank - 1] * 1.0625 + 1)
    assert series.percentile(1) == values[-1]
    assert series.summary()["count"] == len(values)
    assert sum(series.buckets) == len(values)


def test_nothing_counted_has_no_percentile() -> None:
    """None, not zero."""
    assert Series().percentile(0.5) is None
    assert set(Series().summary().values()) == {0, None}


@pytest.mark.parametrize("us", [-1, -(10**12), 1 << 60])
def test_absurd_durations_are_counted_at_the_edges(us: int) -> None:
    """A clock's jump breaks nothing."""
    series = Series()
    series.record(us)
    assert series.count == 1
    assert series.buckets[0 if us < 0 else -1] == 1
    assert series.percentile(0.5) == max(0, us) or us < 0 or series.percentile(0.5) is not None


def test_a_counter_counts_by_labels() -> None:
    """In the order they were declared."""
    counter = Counter("c_total", "Help.", ("a", "b"))
    counter.add("x", "y")
    counter.add("x", "y", by=2)
    assert counter.get("x", "y") == 3
    assert counter.get("x", "z") == 0
    assert counter.collect() == {
        "name": "c_total",
        "help": "Help.",
        "type": "counter",
        "samples": [{"labels": {"a": "x", "b": "y"}, "value": 3}],
    }
    with pytest.raises(ValueError, match="takes 2 labels"):
        counter.add("x")
    with pytest.raises(ValueError, match="takes 1 labels"):
        Histogram("h", "Help.", ("a",)).record(5)


def test_series_are_bounded() -> None:
    """Labels that should not be there end up under "other", and nothing is lost."""
    counter = Counter("c_total", "Help.", ("a",))
    histogram = Histogram("h_seconds", "Help.", ("a",))
    for number in range(MAX_SERIES + 100):
        counter.add(str(number))
        histogram.record(1, str(number))
    assert len(counter.values) == len(histogram.series) == MAX_SERIES + 1
    assert counter.get("other") == 100
    assert sum(counter.values.values()) == MAX_SERIES + 100


def test_a_gauge_is_set_and_cleared() -> None:
    """The last value counts; `clear` forgets states that nobody is in any more."""
    gauge = Gauge("g", "Help.", ("state",))
    gauge.set("READY", value=3)
    gauge.set("READY", value=2.5)
    assert gauge.get("READY") == 2.5
    gauge.clear()
    assert gauge.collect()["samples"] == []


def test_a_histogram_is_exported_cumulative_and_in_seconds() -> None:
    """Buckets never fall, +Inf equals the count, an edge value lies inside its own bucket."""
    histogram = Histogram("h_seconds", "Help.", ("r",))
    for us in (0, 64, 65, 1 << 20, 10**9):
        histogram.record(us, "x")
    samples = histogram.collect()["samples"]
    buckets = [sample for sample in samples if sample["suffix"] == "_bucket"]
    counts = [sample["value"] for sample in buckets]
    assert counts == sorted(counts)
    by_bound = {sample["labels"]["le"]: sample["value"] for sample in buckets}
    assert (by_bound["6.4e-05"], by_bound["0.000128"], by_bound["1.048576"], by_bound["+Inf"]) == (2, 3, 4, 5)
    assert samples[-2] == {"labels": {"r": "x"}, "value": (64 + 65 + (1 << 20) + 10**9) / 1e6, "suffix": "_sum"}
    assert samples[-1] == {"labels": {"r": "x"}, "value": 5, "suffix": "_count"}


def test_the_registry_has_one_family_per_name() -> None:
    """Names are unique, start with sidecar_, and say their unit; what was never counted is left out."""
    metrics = Metrics()
    names = [family.name for family in metrics.families()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("sidecar_") for name in names)
    for family in metrics.families():
        ending = {"counter": "_total", "gauge": ""}.get(getattr(family, "kind", ""), "_seconds")
        assert family.name.endswith(ending), family.name
        assert family.help
    assert metrics.collect() == []
    assert metrics.percentiles() == {}
    metrics.calls.add("default", "exit", "done")
    metrics.overhead.record(211)
    assert [family["name"] for family in metrics.collect()] == ["sidecar_calls_total", "sidecar_overhead_seconds"]
    assert metrics.percentiles()["sidecar_overhead_seconds"][0]["p50_us"] == 211
