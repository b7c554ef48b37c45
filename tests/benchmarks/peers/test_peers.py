"""What the comparison with peers computes and keeps: no peer is needed, nothing is measured."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).resolve().parent
for _folder in (_HERE.parent, _HERE):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import peer_plan  # noqa: E402
import peer_plot  # noqa: E402
import peer_text  # noqa: E402
import peering  # noqa: E402
import peers  # noqa: E402
from load_http import Unchunked  # noqa: E402
from load_worker import spread  # noqa: E402
from peer_ledger import Ledger  # noqa: E402
from peer_rows import Row, goals, quartiles, rows  # noqa: E402

LEVELS, MOST = (1, 16, 64), 256


def filled(path: Path, repetitions: int = 5) -> Ledger:
    """A run in which every measurement of the plan succeeded, with made-up figures."""
    ledger = Ledger(path, {"scale": "made up"})
    for repetition in range(repetitions):
        for group in peer_plan.cells(peer_plan.FULL):
            for place, cell in enumerate(group):
                figures: dict[str, Any] = {
                    "token_us": {"p50": 100 + place + repetition, "p99": 300 + place}, "first_us": {"p50": 200 + place},
                    "tokens": 1000, "bot_cpu_s": 0.2, "relay_cpu_s": 0.1, "rss_mib": 50.0, "requests": 10, "kib": 3.0,
                }  # fmt: skip
                ledger.note(cell.key, repetition, figures)
    return ledger


def test_every_row_of_the_goals_is_in_the_table(tmp_path: Path) -> None:
    """1 to 10; and with every measurement there, none of them is empty."""
    found = rows(filled(tmp_path / "raw.json"), LEVELS, MOST)
    assert {row.goal.row for row in found} == set(range(1, 11))
    assert [row.goal.what for row in found if not row.ratios] == []
    assert all(len(row.ratios) == 5 for row in found)


def test_what_the_goals_read_is_what_the_plan_measures(tmp_path: Path) -> None:
    """Each figure of each goal comes from a measurement of the full plan: a misspelt name would be «not measured»."""
    ledger = filled(tmp_path / "raw.json", 1)
    for goal in goals(LEVELS, MOST):
        assert goal.ours(ledger, 0) is not None, goal.what


def test_without_measurements_there_are_reasons_and_no_figures(tmp_path: Path) -> None:
    """A peer that is missing is named with why; every other row says that nothing was measured."""
    ledger = Ledger(tmp_path / "raw.json", {})
    ledger.data["missing"] = {"litellm": "no network"}
    found = rows(ledger, LEVELS, MOST)
    assert all(not row.ratios and row.verdict().startswith("not measured: ") for row in found)
    assert any(row.verdict() == "not measured: litellm: no network" for row in found)
    text = peer_text.whole(ledger, found)
    assert "nan" not in text
    assert "missing: litellm: no network" in text


def test_ratios_are_of_one_repetition(tmp_path: Path) -> None:
    """The machine drifts by two between repetitions, in both figures: the ratio stays; one that failed is left out."""
    ledger = Ledger(tmp_path / "raw.json", {})
    for repetition, drift in enumerate((1.0, 2.0, 4.0, 1.0)):
        for way, value in (("asyncio", 200.0), ("direct", 100.0)):
            ledger.note(f"latency 16/{way}", repetition, {"token_us": {"p50": value * drift}})
    ledger.note("latency 16/direct", 3, {"failed": "made up"})
    (row,) = [one for one in rows(ledger, LEVELS, MOST) if one.goal.row == 1 and one.ratios]
    assert row.ratios == [2.0, 2.0, 2.0]
    assert row.verdict() == "met"


def test_verdicts_follow_the_median_and_the_direction() -> None:
    """At the bar is met; where more is better, the bar is a floor."""
    less = next(goal for goal in goals(LEVELS, MOST) if goal.row == 1)
    more = next(goal for goal in goals(LEVELS, MOST) if goal.row == 7)
    assert less.goal is not None
    assert more.goal is not None
    assert Row(less, ratios=[0.1, less.goal, 99.0]).verdict() == "met"
    assert Row(less, ratios=[less.goal + 0.01]).verdict() == "missed"
    assert Row(less, ratios=[1.0]).verdict() == "met, moonshot too"
    assert Row(more, ratios=[more.goal]).verdict() == "met"
    assert Row(more, ratios=[more.goal - 0.01]).verdict() == "missed"
    assert Row(more, ratios=[1e9]).verdict() == "met, moonshot too"


def test_quartiles_of_few_values() -> None:
    """None, one, and five."""
    assert all(math.isnan(value) for value in quartiles([]))
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)


def test_an_added_time_of_nothing_divides_nothing(tmp_path: Path) -> None:
    """Who seems to add nothing, or less, gives no ratio: neither a peer, nor the sidecar, which it would flatter."""
    ledger = Ledger(tmp_path / "raw.json", {})
    for repetition, (mine, theirs) in enumerate(((300, 90), (300, 100), (100, 300), (90, 300))):
        for way, value in (("asyncio", mine), ("direct", 100), ("litellm", theirs), ("http-direct", 100)):
            ledger.note(f"first/{way}", repetition, {"first_us": {"p50": value}})
    assert all(not row.ratios for row in rows(ledger, LEVELS, MOST) if row.goal.row == 5)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was noted is there again; a failure counts as tried; other options are refused."""
    path = tmp_path / "raw.json"
    first = Ledger(path, {"scale": 1})
    first.note("flood/wire", 0, {"tokens": 5})
    first.note("flood/nginx", 0, {"failed": "made up"})
    second = Ledger(path, {"scale": 1})
    assert second.has("flood/wire", 0)
    assert second.has("flood/nginx", 0)
    assert not second.has("flood/wire", 1)
    assert second.figures("flood/wire", 0) == {"tokens": 5}
    assert second.figures("flood/nginx", 0) is None
    assert second.failure("flood/nginx") == "made up"
    with pytest.raises(SystemExit, match="other options"):
        Ledger(path, {"scale": 2})


def test_a_finished_run_is_shown_again_without_a_stage(tmp_path: Path) -> None:
    """Also one in which somebody was missing; nothing is started, so nothing can be added."""
    path = tmp_path / "raw.json"
    ledger = filled(path, 2)
    for key in [key for key in ledger.data["cells"] if key.endswith("/bifrost")]:
        del ledger.data["cells"][key]
    ledger.data["missing"] = {"bifrost": "not to be had"}
    before = dict(ledger.data["cells"])
    peers.measure(ledger, peer_plan.FULL, 2, [], install=True)
    assert ledger.data["cells"] == before


def test_options_are_compared_as_they_are_written(tmp_path: Path) -> None:
    """Tuples become lists in the file and are the same options still."""
    path = tmp_path / "raw.json"
    Ledger(path, {"levels": (1, 16)}).save()
    Ledger(path, {"levels": (1, 16)})


def test_the_order_turns_within_each_group() -> None:
    """No way is first in every repetition, and every repetition has every measurement once."""
    plan = peers.plan(peer_plan.FULL, 5)
    keys = [[cell.key for repetition, cell in plan if repetition == wanted] for wanted in range(5)]
    assert len({frozenset(one) for one in keys}) == 1
    assert all(len(one) == len(set(one)) for one in keys)
    first = [next(key for key in one if key.startswith("flood/")) for one in keys]
    assert len(set(first)) == 5


def test_the_picture_is_well_formed(tmp_path: Path) -> None:
    """XML, with a line per goal, whether everything, nothing, or nonsense was measured."""
    for ledger in (filled(tmp_path / "full.json"), Ledger(tmp_path / "none.json", {})):
        found = rows(ledger, LEVELS, MOST)
        drawn = peer_plot.plot(found, ledger)
        assert ElementTree.fromstring(drawn).tag.endswith("svg")
        assert drawn.count("not measured") == sum(not row.ratios for row in found)
    for nonsense in (0.0, -5.0, 1e12):
        goal = goals(LEVELS, MOST)[0]
        drawn = peer_plot.plot([Row(goal, [1.0], [1.0], [nonsense])], ledger)
        assert "nan" not in ElementTree.tostring(ElementTree.fromstring(drawn), encoding="unicode")


def test_tables_stand_between_their_marks(tmp_path: Path) -> None:
    """What is around them stays; filled twice is filled once; a file without the marks is left alone."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{peers.BEGIN}\nold\n{peers.END}\nafter\n")
    peers.fill(page, "one")
    peers.fill(page, "two")
    assert page.read_text() == f"before\n{peers.BEGIN}\ntwo\n{peers.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="no place"):
        peers.fill(page, "three")
    assert page.read_text() == "no marks"


def test_chunked_coding_is_undone_however_it_is_cut() -> None:
    """The same payload whole, byte by byte, and cut at random; the end is seen exactly at the end."""
    payloads = [b"data: 1\n\n", b"x" * 300, b"data: [DONE]\n\n"]
    coded = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(one), one) for one in payloads) + b"0\r\n\r\n"
    dice = random.Random(7)
    for most in (len(coded), 1, 2, 3, 17, 50):
        body, got, at = Unchunked(), b"", 0
        while at < len(coded):
            assert not body.whole
            size = most if most < 4 else dice.randint(1, most)
            got += body.feed(coded[at : at + size])
            at += size
        assert body.whole
        assert got == b"".join(payloads)


def test_percentiles_by_nearest_rank() -> None:
    """Of a hundred, the fiftieth and the ninety-ninth; of none, none."""
    assert spread(list(range(100, 0, -1))) == {"n": 100, "p50": 50, "p99": 99, "max": 100}
    assert spread([5]) == {"n": 1, "p50": 5, "p99": 5, "max": 5}
    assert spread([]) == {"n": 0}


def test_reasons_are_short_and_name_no_server() -> None:
    """Colours and addresses go, the line that tells of the error stays."""
    said = "\x1b[31mLooking\x1b[0m\nERROR: could not fetch https://server.invalid/folder/x/ (404)\nhint: bye\n"
    assert peering.shortened(said) == "ERROR: could not fetch (address)/folder/x/ (404)"
    assert peering.shortened("") == ""


_PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from peering import start
started = start(["sh", "-c", "sleep 60 & echo $! && wait"], log=Path(sys.argv[2]), folder=Path("/"), environ={})
while not Path(sys.argv[2]).read_text().strip():
    pass
print(started.process.pid, flush=True)
sys.stdin.read()
"""


def test_grandchildren_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """The workers of nginx outlived their master, which had died with us."""
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(_HERE), str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    grandchild = int(log.read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in (child, grandchild) if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.stdout.close()
    parent.stdin.close()
    assert left == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_cpu_and_memory_of_what_is_gone_is_nothing() -> None:
    """A process that has ended costs nothing more; ours costs something."""
    import os

    assert peering.cpu_seconds([2**22 - 3]) == 0.0
    assert peering.rss_mib([2**22 - 3]) == 0.0
    assert peering.cpu_seconds([os.getpid()]) > 0
    assert peering.rss_mib([os.getpid()]) > 1
