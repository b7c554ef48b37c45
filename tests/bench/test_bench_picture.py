"""What a terminal shows of a result, and what is judged about it."""

from __future__ import annotations

import re

import msgspec
import pytest

from sidecar.bench.histogram import Histogram
from sidecar.bench.picture import bars, render, shown_us
from sidecar.bench.recorder import Counted
from sidecar.bench.run import judged
from tests.bench.made import LOAD, cost, repetition, result


def of(*values: int) -> Histogram:
    """A histogram of these."""
    made = Histogram()
    for value in values:
        made.record(value)
    return made


@pytest.mark.parametrize(
    "values",
    [
        (0,),
        (1,),
        (0, 1, 2, 3),
        (100,) * 5,
        (1, 86_400_000_000),
        tuple(range(1, 5000, 7)),
        (50, 51, 52),
        (2047, 2048, 2049),
    ],
)
def test_every_value_is_in_one_bar(values: tuple[int, ...]) -> None:
    """The counts add up, the last share is 100 %, and no more rows than fit."""
    lines = bars(of(*values), width=80).split("\n")
    assert sum(int(re.findall(r"([\d,]+) +[\d.]+%$", line)[0].replace(",", "")) for line in lines) == len(values)
    assert lines[-1].endswith("100.00%")
    assert len(lines) <= 14


def test_nothing_is_drawn_of_nothing() -> None:
    """An empty histogram is said to be one."""
    assert bars(Histogram(), width=80) == "  (nothing)"


@pytest.mark.parametrize("width", [1, 60, 80, 100, 140])
def test_bars_keep_to_the_width(width: int) -> None:
    """Of the terminal, down to 60 columns."""
    text = bars(of(*range(1, 3000)), width=max(60, width))
    assert max(map(len, text.split("\n"))) <= max(60, width)


def test_plain_ascii_where_the_terminal_knows_no_more() -> None:
    """Bars of #, us for µs; every sentence keeps to the width."""
    text = render(result([repetition(problems=["x" * 30 + " " + "y" * 60])]), width=80, unicode=False)
    assert text.isascii()
    assert "####" in text
    assert "300us" in text
    assert all(len(line) <= 80 for line in text.split("\n") if not line.startswith("  "))


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0µs"), (1, "1µs"), (999, "999µs"), (1000, "1ms"), (1234, "1.23ms"), (999_900, "1s"), (1_500_000, "1.5s"),
     (3_600_000_000, "3600s"), (0.765, "0.765µs")],
)  # fmt: skip
def test_durations_are_readable(us: float, text: str) -> None:
    """Three digits and a unit."""
    assert shown_us(us) == text


def test_a_percentile_that_the_sample_cannot_carry_is_not_shown() -> None:
    """Of a thousand calls p99 is, p99.9 is not."""
    row = next(
        line
        for line in render(result([repetition(n=1000)]), width=100).split("\n")
        if "first text" in line and "µs" in line
    )
    assert row.split()[-6:] == ["1,000", "300µs", "300µs", "300µs", "-", "300µs"]


def test_the_whole_picture() -> None:
    """Load, bars, percentiles, processes, ends, verdict; several bots are one row."""
    text = render(result([repetition(), repetition(310)]), width=100)
    for part in (
        "100 calls/s", "bots (2)", "daemon", "simulator", "done stop", "100.00%", "2 times", "over the repetitions",
        "per second: 100.0 calls, 200 tokens", "OK: 2,000 calls, and every one had its terminal",
    ):  # fmt: skip
        assert part in text
    assert "NOT" not in text


def test_what_every_repetition_says_is_said_once() -> None:
    """With the numbers of the first, and how often."""
    runs = [repetition(problems=[f"p99 was {late}.5 ms late"]) for late in (11, 12)] + [repetition()]
    assert result(runs).problems == ["p99 was 11.5 ms late [in 2 of 3 repetitions]"]
    assert result(runs[:1]).problems == ["p99 was 11.5 ms late"]


def test_a_call_without_a_terminal_is_no_ok() -> None:
    """It says how many of how many."""
    one = repetition()
    lost = msgspec.structs.replace(one, counted=msgspec.structs.replace(one.counted, unfinished=3))
    found = result([lost])
    assert found.ok is False
    assert "NOT OK: 3 of 1,000 calls had no terminal" in render(found, width=100)


def test_no_call_at_all_is_no_ok() -> None:
    """An empty run passes nothing."""
    empty = msgspec.structs.replace(repetition(), counted=Counted())
    assert result([empty]).ok is False
    assert "no call was begun" in render(result([empty]), width=100)


def starts(us: int, n: int = 1000) -> Counted:
    """Calls that began so late."""
    histogram = Histogram()
    histogram.record(us, n)
    return Counted(scheduled=n, started=n, histograms={"start_us": histogram.encode()})


@pytest.mark.parametrize(
    ("counted", "bot_cpu", "others", "said"),
    [
        (starts(100), 1.0, 0.0, None),
        (starts(20_000), 1.0, 0.0, "could not keep up: p99 of its calls began 20"),
        (starts(20_000, 3), 1.0, 0.0, "could not keep up"),
        (msgspec.structs.replace(starts(100), fused=7), 1.0, 0.0, "7 calls were not begun"),
        (msgspec.structs.replace(starts(100), unlike=2), 1.0, 0.0, "2 tokens carried no stamp"),
        (msgspec.structs.replace(starts(100), early=1), 1.0, 0.0, "before their deadline"),
        (starts(100), 9.5, 0.0, "bot 0 used 95% of a core"),
        (starts(100), 1.0, 1.5, "other processes kept 1.5 of 2 cores busy"),
        (Counted(), 0.0, 0.0, "no call was begun"),
    ],
)
def test_what_makes_a_run_not_trustworthy(counted: Counted, bot_cpu: float, others: float, said: str | None) -> None:
    """A generator behind its schedule, a fuse, a bot that measured itself, a busy machine: each is said."""
    costs = [cost("daemon", 9.9), cost("simulator", 8.9), cost("bot 0", bot_cpu)]
    problems, _ = judged(LOAD, counted, costs, others=others, cores=2)
    if said is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert said in problems[0]


def test_some_work_of_others_is_a_note() -> None:
    """Between 5 and 25 % of the cores."""
    problems, notes = judged(LOAD, starts(100), [], others=0.2, cores=2)
    assert problems == []
    assert "0.2 of 2 cores" in notes[0]
