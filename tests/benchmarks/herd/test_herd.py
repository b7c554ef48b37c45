"""The herd's own parts: the service in memory, the figures, and a small herd; nothing is judged by wall time."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
for _folder in (_HERE.parent, _HERE):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import herd_figures  # noqa: E402
import herd_plot  # noqa: E402
import herd_text  # noqa: E402
from herd_run import Scenario, Seen, run  # noqa: E402
from herd_service import Bucket, _client_frame, frame  # noqa: E402

from sidecar.transport.frames import TEXT, FrameSplitter, encode_client_frame  # noqa: E402


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Three hosts through a short outage."""
    return run(Scenario(name="dark", hosts=3, outage=8.0, recovery=30.0))


def test_the_same_scenario_gives_the_same_figures(seen: Seen) -> None:
    """Every instant that was noted, to the last bit."""
    again = run(Scenario(name="dark", hosts=3, outage=8.0, recovery=30.0))
    assert (seen.dials, seen.attempts, seen.connected) == (again.dials, again.attempts, again.connected)


def test_the_outage_is_one(seen: Seen) -> None:
    """Nothing is answered in it, connects are tried, every call has ended, and all come back."""
    found = herd_figures.figures(seen)
    assert found["served"] < 1
    assert found["connects"]["outage"]["mean"] > 0
    assert found["unended"] == 0
    assert found["connected"]["never"] == 0
    assert any(wish.code == "done" for wish in seen.wishes if wish.at > 30)


def test_a_picture_and_tables_come_of_it(seen: Seen) -> None:
    """The SVG is well-formed, each design has a line in it; the tables have a line per run."""
    rows = [{**herd_figures.figures(seen), "design": design} for design in ("no jitter", "this design", "budgets off")]
    root = ElementTree.fromstring(herd_plot.plot(rows))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 6
    assert len(herd_text.connect_rows(rows)) == len(herd_text.call_rows(rows)) == 3


def test_a_frame_of_a_client_is_read() -> None:
    """What the product writes, in pieces and of every length's form; and the product reads the answer."""
    for size in (0, 1, 125, 126, 70_000):
        payload = bytes(index % 251 for index in range(size))
        written = bytes(encode_client_frame(TEXT, payload, b"mask"))
        assert _client_frame(written[:-1]) is None
        assert _client_frame(written + b"more") == (TEXT, payload, len(written))
    assert FrameSplitter().feed(frame(TEXT, b"x" * 300)) == [b"x" * 300]


def test_a_bucket_admits_its_rate() -> None:
    """A burst, then as many per second as it says; inf is no limit."""
    bucket = Bucket(10.0, 2.0)
    assert sum(bucket.take(0.0) for _ in range(5)) == 2
    assert sum(bucket.take(1.0 + step / 100) for step in range(100)) == 11
    assert all(Bucket(math.inf).take(0.0) for _ in range(100))


def test_peaks_are_of_a_tenth_of_a_second() -> None:
    """Ten at once and one later: a hundred per second at the peak, a mean over the whole span."""
    assert herd_figures.peak([0.51] * 10 + [3.0], 0, 10) == 100
    assert herd_figures.mean([0.51] * 10 + [3.0, 11.0], 0, 10) == pytest.approx(1.1)
