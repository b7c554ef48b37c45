"""The histogram against golden vectors that HdrHistogram_py 0.10.8 made, and against values that it never saw."""

from __future__ import annotations

import base64
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.bench.histogram import HIGHEST, Histogram

#: (value, count) -> encoded by HdrHistogram_py(1, 86_400_000_000, 3), percentiles 50, 90, 99, 100, mean
GOLDEN: list[tuple[list[tuple[int, int]], str, list[int], float]] = [
    ([], "HISTFAAAAB14nJNpmSzMgADMUJoRiEVkrycw2H+ACAAASXYD4g==", [0, 0, 0, 0], 0.0),
    (
        [(0, 1), (1, 2), (2047, 1), (2048, 1), (2049, 3), (1_000_000, 7), (86_399_999_999, 1)],
        "HISTFAAAAC94nJNpmSzMwMDAxwABzFCaEYhFZK8nMNh/gAgwsfyUZ+LY38fId7KViQkAnvAHxg==",
        [2049, 1_000_447, 86_436_216_831, 86_436_216_831],
        5400604624.3125,
    ),
    (
        [(5, 1 << 20), (123_456, 1 << 40)],
        "HISTFAAAACt4nJNpmSzMwMDAywABzFCaEYhFZK8nMNh/gAhwNjQ0MLbWNYCAAwChHgk8",
        [123_519] * 4,
        123487.8822375467,
    ),
]


def of(values: list[tuple[int, int]]) -> Histogram:
    """A histogram of (value, count)."""
    made = Histogram()
    for value, count in values:
        made.record(value, count)
    return made


def unpacked(text: str) -> bytes:
    """The payload, whatever zlib made of it."""
    return zlib.decompress(base64.b64decode(text)[8:])


@pytest.mark.parametrize(("values", "encoded", "percentiles", "mean"), GOLDEN)
def test_it_is_an_hdr_histogram(
    values: list[tuple[int, int]], encoded: str, percentiles: list[int], mean: float
) -> None:
    """Buckets, percentiles, mean and encoding are those of HdrHistogram_py, in both directions."""
    histogram = of(values)
    assert unpacked(histogram.encode()) == unpacked(encoded)
    assert [histogram.percentile(p) for p in (50, 90, 99, 100)] == percentiles
    assert histogram.mean == pytest.approx(mean, rel=1e-9)
    assert Histogram.decode(encoded) == histogram
    assert Histogram.decode(encoded).n == sum(count for _, count in values)


def test_percentiles_over_the_whole_range_are_those_of_the_library() -> None:
    """Three thousand values from a microsecond to half an hour."""
    histogram, x = Histogram(), 1
    for nth in range(3000):
        x = (x * 1103515245 + 12345) % (1 << 31)
        histogram.record(x >> (nth % 24), 1 + nth % 3)
    found = {p: histogram.percentile(p) for p in (25, 50, 75, 90, 99, 99.9, 100)}
    assert found == {
        25: 3367, 50: 222463, 75: 14098431, 90: 165543935, 99: 1083179007, 99.9: 2083520511, 100: 2147483647,
    }  # fmt: skip
    assert histogram.mean == pytest.approx(67275496.42716667, rel=1e-6)


@given(st.lists(st.integers(0, HIGHEST), min_size=1, max_size=200))
def test_a_value_comes_back_within_a_thousandth(values: list[int]) -> None:
    """Never below what was recorded, at most 0.1 % above; and encoding loses nothing."""
    histogram = of([(value, 1) for value in values])
    assert max(values) <= histogram.max <= max(values) * 1.001
    assert min(values) * 0.999 <= histogram.min <= min(values)
    middle = sorted(values)[max(0, int(len(values) / 2 + 0.5) - 1)]
    assert middle <= histogram.percentile(50) <= middle * 1.001
    assert Histogram.decode(histogram.encode()) == histogram


@given(st.lists(st.integers(0, 1 << 40)), st.lists(st.integers(0, 1 << 40)))
def test_two_added_are_one_that_saw_both(left: list[int], right: list[int]) -> None:
    """Merging loses nothing, in either order."""
    a, b, both = (of([(value, 1) for value in values]) for values in (left, right, left + right))
    a.add(b)
    assert a == both
    assert a.n == len(left) + len(right)


def test_values_outside_the_range_are_its_ends() -> None:
    """A negative one counts as 0, one over a day as a day."""
    histogram = of([(-5, 1), (HIGHEST * 9, 1)])
    assert histogram.min == 0
    assert HIGHEST <= histogram.max <= HIGHEST * 1.001


def test_a_percentile_needs_a_sample_that_carries_it() -> None:
    """At least five values lie beyond it."""
    carried = {n: [p for p in (50.0, 90.0, 99.0, 99.9) if of([(1, n)]).carries(p)] for n in (9, 10, 50, 499, 500, 5000)}
    assert carried == {
        9: [], 10: [50.0], 50: [50.0, 90.0], 499: [50.0, 90.0], 500: [50.0, 90.0, 99.0],
        5000: [50.0, 90.0, 99.0, 99.9],
    }  # fmt: skip


def other_range() -> str:
    """A valid one up to an hour, made by HdrHistogram_py."""
    return "HISTFAAAACJ4nJNpmSzMwMDAxAABzFCaEURcm7yEwf4DRICTCQBaQgSU"


def wrapped(payload: bytes) -> str:
    """An encoded histogram with this payload."""
    squeezed = zlib.compress(payload)
    return base64.b64encode(struct.pack(">II", 0x1C849314, len(squeezed)) + squeezed).decode()


def payload(counts: bytes) -> bytes:
    """A payload of our range with these bytes as counts."""
    return struct.pack(">IIIIQQd", 0x1C849313, len(counts), 0, 3, 1, HIGHEST, 1.0) + counts


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "no base64 at all!", "AAAA", "SElTVA==", GOLDEN[1][1][:-8], other_range(),
        wrapped(b""), wrapped(b"\0" * 40), wrapped(payload(b"\x80")), wrapped(payload(b"\0" * (1 << 19))),
        wrapped(payload(b"\xff" * 9 + b"\x02")), wrapped(payload(b"") + b"more"),
    ],
)  # fmt: skip
def test_what_is_no_histogram_is_refused(text: str) -> None:
    """Garbage, cut, of another range, too long: a ValueError and nothing else."""
    with pytest.raises(ValueError, match=r"."):
        Histogram.decode(text)


def test_a_bomb_is_not_unpacked() -> None:
    """64 MiB behind 64 KiB: refused once it is longer than any histogram is."""
    with pytest.raises(ValueError, match="too long"):
        Histogram.decode(wrapped(bytes(64 << 20)))


def test_random_bytes_never_do_more_than_raise_value_error() -> None:
    """A thousand spoilt histograms."""
    dice = random.Random(5)
    good = base64.b64decode(GOLDEN[1][1])
    for _ in range(1000):
        spoilt = bytearray(unpacked(GOLDEN[1][1]))
        spoilt[dice.randrange(len(spoilt))] ^= 1 << dice.randrange(8)
        outside = bytearray(good)
        outside[dice.randrange(len(outside))] ^= 1 << dice.randrange(8)
        for text in (wrapped(bytes(spoilt)), base64.b64encode(bytes(outside)).decode()):
            try:
                Histogram.decode(text)
            except ValueError:
                pass
