"""The halt: one truth, the file; who writes it, halts; and what cannot be written is said."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import Config, Frontend, Route, Target, Upstream
from sidecar.core.halt import EVERY_LANE
from sidecar.logs import capture, get_logger
from sidecar.process import place_of_halts
from sidecar.service.brakes import INTERVAL, Brakes, StillHalted
from sidecar.transport import halt_file
from sidecar.wire import Lane

ENTRY: frozenset[Lane] = frozenset({"entry"})
RESEARCH: frozenset[Lane] = frozenset({"research"})
EXIT: frozenset[Lane] = frozenset({"exit"})


class Bench:
    """Brakes over a file, and what they ended: each time the lanes and the message."""

    def __init__(self, file: Path | None, *, counts: bool = True, problem: str = "") -> None:
        self.ended: list[tuple[frozenset[Lane], str]] = []
        self.counts = counts
        self.brakes = Brakes(file, end=self.end, log=get_logger(), problem=problem)

    def end(self, lanes: frozenset[Lane], message: str) -> int | None:
        """Three calls of each lane."""
        self.ended.append((lanes, message))
        return 3 * len(lanes) if self.counts else None


@asynccontextmanager
async def looking(brakes: Brakes) -> AsyncIterator[Callable[[], Any]]:
    """Brakes that look at their file; yields how to wait until they have looked."""
    async with trio.open_nursery() as nursery:
        await nursery.start(brakes.run)
        yield lambda: trio.sleep(2 * INTERVAL)
        nursery.cancel_scope.cancel()


def test_nothing_is_halted_at_first(tmp_path: Path) -> None:
    """No file, no halt."""
    bench = Bench(tmp_path / "halt")
    assert bench.brakes.halted == frozenset()
    assert bench.brakes.standing().problem == ""
    assert repr(bench.brakes) == "<Brakes released>"


def test_a_halt_ends_calls_is_written_and_outlives_the_daemon(tmp_path: Path) -> None:
    """The next daemon over the same file is halted before it took a call; resuming removes the file."""
    bench = Bench(tmp_path / "halt")
    said = bench.brakes.halt(ENTRY, "bad prices")
    assert bench.ended == [(ENTRY, "halted by the operator: bad prices")]
    assert (said.lanes, said.ended, said.problem, said.file) == (ENTRY, 3, "", str(tmp_path / "halt"))
    after = Bench(tmp_path / "halt")
    assert after.brakes.halted == ENTRY
    assert after.brakes.message == "halted by the operator: bad prices"
    assert repr(after.brakes) == "<Brakes entry>"
    assert after.brakes.resume().lanes == frozenset()
    assert not (tmp_path / "halt").exists()
    bench.brakes.look()
    assert bench.brakes.halted == frozenset()


def test_halts_add_up_and_are_released_one_by_one(tmp_path: Path) -> None:
    """What is halted already is not ended again; the reason stays until a new one comes."""
    bench = Bench(tmp_path / "halt")
    bench.brakes.halt(ENTRY, "bad prices")
    assert bench.brakes.halt(ENTRY | RESEARCH).ended == 3
    assert bench.ended[1] == (RESEARCH, "halted by the operator: bad prices")
    assert bench.brakes.halt(ENTRY).ended == 0
    assert bench.brakes.resume(ENTRY).lanes == RESEARCH
    assert Bench(tmp_path / "halt").brakes.halted == RESEARCH
    assert Bench(tmp_path / "halt").brakes.reason == "bad prices"
    assert bench.brakes.resume(EXIT).lanes == RESEARCH  # was not halted: nothing
    assert bench.brakes.resume(RESEARCH).lanes == frozenset()
    assert bench.brakes.resume().lanes == frozenset()
    assert bench.brakes.halt(EXIT).reason == ""


def test_a_reason_is_one_printable_line(tmp_path: Path) -> None:
    """It goes to every bot and into the log."""
    said = Bench(tmp_path / "halt").brakes.halt(ENTRY, "bad\nprices\x1b[2J" + "x" * 1000)
    assert said.reason.startswith("bad prices [2Jxxx")
    assert len(said.reason) == 200


@pytest.mark.parametrize(("content", "lanes"), [("", EVERY_LANE), ("entry", ENTRY), ("entri", EVERY_LANE)])
async def test_a_file_that_appears_halts_and_one_that_goes_resumes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, content: str, lanes: frozenset[Lane]
) -> None:
    """By hand, without the daemon's help; within two looks."""
    bench = Bench(tmp_path / "halt")
    async with looking(bench.brakes) as looked:
        (tmp_path / "halt").write_text(content)
        await looked()
        assert bench.brakes.halted == lanes
        (tmp_path / "halt").unlink()
        await looked()
        assert bench.brakes.halted == frozenset()
    assert [ended for ended, _ in bench.ended] == [lanes]


async def test_an_empty_file_is_given_a_moment_to_be_filled(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """`echo research > halt` makes it first: the exits must not be ended for that."""
    bench = Bench(tmp_path / "halt")
    async with looking(bench.brakes) as looked:
        (tmp_path / "halt").touch()
        await trio.sleep(INTERVAL + 0.001)
        assert bench.brakes.halted == frozenset()
        (tmp_path / "halt").write_text("research\n")
        await looked()
        assert bench.brakes.halted == RESEARCH
    assert bench.ended == [(RESEARCH, "halted by the operator")]


async def test_a_file_that_is_changed_moves_the_halt(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """From lane to lane, and what is unreadable in between halts everything."""
    bench, file = Bench(tmp_path / "halt"), tmp_path / "halt"
    async with looking(bench.brakes) as looked:
        file.write_text("entry")
        await looked()
        file.write_bytes(b"\xff\xff")
        await looked()
        assert bench.brakes.halted == EVERY_LANE
        assert "UTF-8" in bench.brakes.message
        file.write_text("research\nreason: later")
        await looked()
        assert bench.brakes.halted == RESEARCH
        assert bench.brakes.message == "halted by the operator: later"


def test_a_file_written_just_before_an_order_is_heeded_by_it(tmp_path: Path) -> None:
    """The order does not undo what it has not seen."""
    bench = Bench(tmp_path / "halt")
    (tmp_path / "halt").write_text("entry")
    assert bench.brakes.halt(RESEARCH).lanes == ENTRY | RESEARCH
    (tmp_path / "halt").write_text("entry exit")
    assert bench.brakes.resume(EXIT).lanes == ENTRY


def test_a_halt_that_cannot_be_written_holds_and_says_that_it_will_be_forgotten(tmp_path: Path) -> None:
    """In memory, whatever the disk says; another order may still be kept."""
    (tmp_path / "state").write_text("not a folder yet")
    bench = Bench(None)
    said = bench.brakes.halt(ENTRY)
    assert (said.lanes, said.ended, said.file) == (ENTRY, 3, None)
    assert "no place" in said.problem
    assert bench.brakes.resume().problem == ""

    folder = tmp_path / "folder"
    bench = Bench(folder / "halt", problem="the folder is not there")
    said = bench.brakes.halt(ENTRY, "now")
    assert said.lanes == ENTRY
    assert "No such file or directory" in said.problem
    bench.brakes.look()
    assert bench.brakes.halted == ENTRY  # there is no file, which does not resume what no file halted
    folder.mkdir()
    assert bench.brakes.halt(RESEARCH).problem == ""
    assert Bench(folder / "halt").brakes.halted == ENTRY | RESEARCH
    assert bench.brakes.resume(ENTRY).lanes == RESEARCH


def test_a_halt_in_memory_is_resumed_without_a_file(tmp_path: Path) -> None:
    """Also in part."""
    bench = Bench(tmp_path / "nowhere" / "halt")
    bench.brakes.halt(ENTRY | RESEARCH)
    assert bench.brakes.resume(ENTRY).lanes == RESEARCH
    assert bench.brakes.resume().lanes == frozenset()


def test_a_file_that_cannot_be_removed_goes_on_to_halt(tmp_path: Path) -> None:
    """It is the truth: the order is refused, with what to do, and nothing has changed."""
    (tmp_path / "halt").mkdir()
    bench = Bench(tmp_path / "halt")
    assert bench.brakes.halted == EVERY_LANE
    with pytest.raises(StillHalted, match=r"exit, entry, research: still halted, .*halt cannot be changed"):
        bench.brakes.resume()
    with pytest.raises(StillHalted):
        bench.brakes.resume(ENTRY)
    assert bench.brakes.halted == EVERY_LANE
    assert "not a regular file" in bench.brakes.standing().reason
    assert bench.brakes.halt(ENTRY).problem == ""  # the file that cannot be written halts it already
    os.rmdir(tmp_path / "halt")
    assert bench.brakes.resume().lanes == frozenset()


def test_changes_are_logged_and_nothing_else() -> None:
    """One line for what is halted, with the count, and one for what goes on."""
    with capture() as lines:
        bench = Bench(None, counts=False)
        bench.brakes.halt(ENTRY, "why")
        bench.brakes.halt(ENTRY, "why")
        bench.brakes.resume()
    events = [(line["event"], line.get("lanes"), line.get("reason")) for line in lines]
    assert [event for event in events if event[0].startswith("lanes")] == [
        ("lanes.halted", "entry", "why"),
        ("lanes.resumed", "entry", None),
    ]
    assert bench.brakes.halt(ENTRY).ended is None


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_written_is_synced_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Once for each order, in a thread, so that the disk holds up nobody; a failure is a line in the log."""
    synced: list[Path] = []

    def sync(path: Path) -> None:
        synced.append(path)
        assert threading.current_thread() is not threading.main_thread()
        if fails:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(halt_file, "sync", sync)
    bench = Bench(tmp_path / "halt")
    with capture() as lines:
        async with looking(bench.brakes):
            for orders, order in enumerate((bench.brakes.halt, bench.brakes.resume), 1):
                order(ENTRY)
                with trio.fail_after(5):
                    while len(synced) < orders or (fails and lines[-1]["event"] != "halt.unsynced"):
                        await trio.sleep(0.001)
    assert synced == [tmp_path / "halt"] * 2
    assert [line["reason"] for line in lines if line["event"] == "halt.unsynced"] == ["Input/output error"] * 2 * fails


@pytest.mark.parametrize("configured", [False, True])
def test_a_place_that_cannot_be_looked_at_halts_only_if_it_was_chosen(tmp_path: Path, configured: bool) -> None:
    """A default nobody chose, in a home that the daemon may not enter, must not stop it; what is configured must."""
    (tmp_path / "home").write_text("not a folder")
    config = Config(
        frontend=Frontend(halt_file=str(tmp_path / "home" / "halt") if configured else None),
        upstream=[Upstream(name="a", url="wss://a.example", dialect="chat")],
        route=[Route(name="default", targets=[Target(upstream="a", model="m")])],
    )
    with capture() as lines:
        place = place_of_halts(config, {"HOME": str(tmp_path / "home")}, None, get_logger())
    assert [line["event"] for line in lines] == ["halt.not_kept"]
    assert Bench(place).brakes.halted == (EVERY_LANE if configured else frozenset())
    state = {"STATE_DIRECTORY": str(tmp_path / "state")}
    assert place_of_halts(config, state, None, get_logger()) == (place or tmp_path / "state" / "halt")


LANES_GIVEN = st.frozensets(st.sampled_from(sorted(EVERY_LANE)), min_size=1)
STEPS = st.lists(
    st.tuples(st.sampled_from(["halt", "resume", "write", "touch", "delete", "restart", "look"]), LANES_GIVEN),
    max_size=12,
)


@given(STEPS)
def test_the_file_and_the_daemon_say_the_same_after_every_order(steps: list[tuple[str, frozenset[Lane]]]) -> None:
    """Whoever wrote it, by whatever way, over restarts: what is halted is what a set of lanes would hold."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "halt"
        bench, model = Bench(file), frozenset[Lane]()
        for step, lanes in steps:
            before, ended = bench.brakes.halted, len(bench.ended)
            if step == "halt":
                model = bench.brakes.halt(lanes).lanes
                assert model >= lanes
            elif step == "resume":
                model = bench.brakes.resume(lanes).lanes
                assert not model & lanes
            elif step == "restart":
                bench, ended = Bench(file), 0
            elif step != "look":
                file.unlink(missing_ok=True)
                if step == "write":
                    file.write_text("\n".join(lanes))
                elif step == "touch":
                    file.touch()
            bench.brakes.look()
            found = halt_file.read(file)
            assert bench.brakes.halted == (frozenset() if found is None else found.lanes)
            if step in {"halt", "resume"}:
                assert bench.brakes.halted == model
            assert all(lanes <= bench.brakes.halted for lanes, _ in bench.ended[ended:])
            if step != "restart":
                new = bench.brakes.halted - before
                assert frozenset().union(*(lanes for lanes, _ in bench.ended[ended:])) >= new
