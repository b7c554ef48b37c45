"""Two results side by side: when a difference is one, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import pytest

from sidecar.bench.compare import chance, compare, judge, render
from sidecar.bench.result import Unreadable, quartiles, read
from sidecar.bench.rig import Target
from sidecar.cli import bench
from tests.bench.made import LOAD, encoded, repetition, result

QUIET = [100.0, 101.0, 102.0, 103.0, 104.0]


@pytest.mark.parametrize(
    ("b", "word"),
    [
        ([value * 1.2 for value in QUIET], "slower"),
        ([value * 0.8 for value in QUIET], "faster"),
        (QUIET, "same"),
        ([value * 1.04 for value in QUIET], "same"),  # apart, but by less than 5 %
        ([60.0, 101.0, 130.0, 150.0, 200.0], "same"),  # 27 % more in the median, and much noise
        ([103.5, 120.0, 130.0, 150.0, 200.0], "same"),  # the quartiles are apart, which happens by chance too often
        ([value * 1.2 for value in QUIET[:4]], "undecided"),  # four repetitions cannot say it
        ([], None),
    ],
)
def test_a_difference_is_one_when_it_is_more_than_noise(b: list[float], word: str | None) -> None:
    """Ranks that chance does not make, and more than 5 %; else the same; with too few repetitions no verdict."""
    if word is not None:
        assert judge("x", QUIET, b).word == word
        if word in ("faster", "slower"):
            assert judge("x", b, QUIET).word == {"faster": "slower", "slower": "faster"}[word]


@pytest.mark.parametrize(
    ("a", "b", "likely"),
    [
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], 2 / 252),
        ([1, 2, 3, 4, 6], [5, 7, 8, 9, 10], 4 / 252),
        ([1, 2, 3, 4, 7], [5, 6, 8, 9, 10], 8 / 252),  # U = 2: of 252 arrangements 1 + 1 + 2 on either side
        ([1, 2, 3], [4, 5, 6, 7], 2 / 35),
        ([1, 4], [2, 3], 1.0),
        ([5, 5, 5], [5, 5, 5], 1.0),
    ],
)
def test_the_chance_of_ranks_is_counted(a: list[float], b: list[float], likely: float) -> None:
    """Every arrangement of small samples, both ways round."""
    assert chance(a, b) == pytest.approx(likely)
    assert chance(b, a) == pytest.approx(likely)


def test_many_repetitions_are_approximated_closely() -> None:
    """Where counting ends, the normal approximation gives nearly the same."""
    dice = random.Random(3)
    for shift in (0.0, 0.3, 0.6):
        a = [dice.gauss(0, 1) for _ in range(40)]
        b = [dice.gauss(shift, 1) for _ in range(40)]
        assert chance(a, b) == pytest.approx(chance([*a, 0.0], b), abs=0.05)


def test_noise_is_seldom_taken_for_a_difference() -> None:
    """Of two thousand comparisons of one kind with itself, five noisy repetitions each, about one in a hundred."""
    dice = random.Random(11)
    called = sum(
        judge("x", [dice.gauss(1, 0.2) for _ in range(5)], [dice.gauss(1, 0.2) for _ in range(5)]).word != "same"
        for _ in range(2000)
    )
    assert called <= 40


def test_a_figure_of_zero_divides_nothing() -> None:
    """0 and 0 are the same, 0 and more is slower."""
    zero = [0.0] * 5
    assert judge("x", zero, zero).word == "same"
    assert judge("x", zero, QUIET).word == "slower"
    assert judge("x", QUIET, zero).word == "faster"


def test_quartiles_are_the_inclusive_ones() -> None:
    """Of five values the second and the fourth; of one, itself."""
    assert quartiles(QUIET) == (101.0, 102.0, 103.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_every_cost_is_judged_and_what_the_schedule_decides_is_not() -> None:
    """Latency, CPU, memory; not calls per second, not the generator's lateness."""
    a = result([repetition(300 + nth) for nth in range(5)])
    b = result([repetition(600 + nth, cpu_s=2.0) for nth in range(5)])
    words = {figure.name: figure.word for figure in compare(a, b).figures}
    assert words["first_us.p50"] == words["total_us.p99"] == words["cpu_us_per_token.daemon"] == "slower"
    assert words["cpu_us_per_call.bots"] == words["rss_peak_mib.daemon"] == "same"
    assert not [
        name for name in words if name.startswith(("start_us", "ended", "tokens", "messages")) or "99.9" in name
    ]


def test_different_loads_are_named() -> None:
    """Every field but the seed, and what they went to."""
    a = result([repetition()])
    other = msgspec.structs.replace(LOAD, rate=50.0, seed=9)
    b = result([repetition()], load=other, target=Target(kind="endpoint", endpoint="ipc:///x"))
    assert compare(a, b).differences == ["rate: 100.0 and 50.0", "target: simulator and endpoint"]
    assert compare(a, a).differences == []


def test_another_machine_and_an_untrustworthy_run_are_said() -> None:
    """A slower machine is not a slower daemon."""
    a = result([repetition() for _ in range(5)])
    slow = [msgspec.structs.replace(repetition(problems=["busy"]), speed_us=1000.0) for _ in range(5)]
    b = msgspec.structs.replace(result(slow), machine={**a.machine, "cores": 8})
    notes = "\n".join(compare(a, b).notes)
    assert "B is not trustworthy: busy" in notes
    assert "1.25 times as long" in notes
    assert "cores 2 and 8" in notes


def test_the_picture_of_a_comparison_names_what_failed() -> None:
    """The rule's words, the ratio, and which figures are over the limit."""
    a = result([repetition(300 + nth) for nth in range(5)])
    b = result([repetition(600 + nth) for nth in range(5)])
    text = render(compare(a, b), fail_above=1.5)
    assert "FAILED: slower by more than 1.5: first_us.p50" in text
    assert "nothing is slower by more than 1.5" in render(compare(b, a), fail_above=1.5)


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, str]:
    """Results on disk: base, the same again, one twice as slow, one of another load, one of a single repetition."""
    made = {
        "base": result([repetition(300 + nth) for nth in range(5)]),
        "again": result([repetition(301 + nth) for nth in range(5)]),
        "slow": result([repetition(600 + nth) for nth in range(5)]),
        "other": result([repetition(300) for _ in range(5)], load=msgspec.structs.replace(LOAD, rate=7.0)),
        "once": result([repetition(900)]),
    }
    for name, one in made.items():
        (tmp_path / name).write_bytes(encoded(one))
    return {name: str(tmp_path / name) for name in made}


@pytest.mark.parametrize(
    ("a", "b", "more", "status"),
    [
        ("base", "again", ["--fail-above", "1.1"], 0),
        ("base", "slow", [], 0),
        ("base", "slow", ["--fail-above", "1.5"], 1),
        ("base", "slow", ["--fail-above", "2.5"], 0),
        ("slow", "base", ["--fail-above", "1.1"], 0),
        ("base", "other", [], 2),
        ("base", "other", ["--force"], 0),
        ("base", "once", [], 0),
        ("base", "once", ["--fail-above", "1.1"], 2),  # its one repetition is three times as slow: never a silent pass
        ("base", "again", ["--fail-above", "0.5"], 2),
        ("base", "again", ["--fail-above", "nan"], 2),
        ("base", "again", ["--rate", "5"], 2),
    ],
)
def test_the_exit_status_of_a_comparison(saved: dict[str, str], a: str, b: str, more: list[str], status: int) -> None:
    """0 compared, 1 slower than allowed, 2 not to be compared."""
    assert bench.run(["--compare", saved[a], saved[b], *more]) == status


def test_a_comparison_in_json(saved: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """One object, with every figure, its quartiles and its word."""
    assert bench.run(["--compare", saved["base"], saved["slow"], "--json", "--fail-above", "1.5"]) == 1
    found = json.loads(capsys.readouterr().out)
    first = next(figure for figure in found["figures"] if figure["name"] == "first_us.p50")
    assert first["word"] == "slower"
    assert first["ratio"] == pytest.approx(2.0, rel=0.01)
    assert found["failed"] is True


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[1]" * 5, "{}", '{"format": "sidecar-bench/2"}', "\xff\xfe", "[" * 100_000, "1e999",
    ],
)  # fmt: skip
def test_garbage_is_refused_with_its_name(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not JSON, not ours, of another version, nested without end: status 2, the file's name, no traceback."""
    path = tmp_path / "garbage.json"
    path.write_bytes(text.encode("latin-1"))
    assert bench.run(["--compare", str(path), str(path)]) == 2
    said = capsys.readouterr().err
    assert "garbage.json" in said
    assert "--out FILE" in said


def test_a_spoilt_result_is_refused(tmp_path: Path) -> None:
    """A histogram that is none, no repetitions, a window of no length, a missing file, a folder."""
    good = json.loads(encoded(result([repetition()])))
    spoilt = tmp_path / "spoilt"
    for change in ("histogram", "repetitions", "window"):
        bad = json.loads(json.dumps(good))
        if change == "histogram":
            bad["repetitions"][0]["counted"]["histograms"]["first_us"] = "AAAA"
        elif change == "repetitions":
            bad["repetitions"] = []
        else:
            bad["repetitions"][0]["window_s"] = 0
        spoilt.write_text(json.dumps(bad))
        with pytest.raises(Unreadable):
            read(spoilt)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(Unreadable):
            read(missing)


def test_figures_that_were_edited_count_for_nothing(tmp_path: Path) -> None:
    """They are drawn anew from the histograms."""
    edited = json.loads(encoded(result([repetition(300)])))
    edited["figures"]["first_us.p50"] = [1.0]
    path = tmp_path / "edited"
    path.write_text(json.dumps(edited))
    assert read(path).figures["first_us.p50"] == [300.0]
