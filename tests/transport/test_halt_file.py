"""The halt file on a real disk: its place, and that whatever lies there is read as a halt."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from sidecar.core.halt import EVERY_LANE, MAX_BYTES, Halt
from sidecar.transport import halt_file

ENTRY = Halt(frozenset({"entry"}), "bad prices")


@pytest.mark.parametrize(
    ("configured", "environ", "instance", "place"),
    [
        ("/x/stop", {"STATE_DIRECTORY": "/s"}, None, "/x/stop"),
        (None, {"STATE_DIRECTORY": "/var/lib/sidecar-a", "HOME": "/h"}, "a", "/var/lib/sidecar-a/halt"),
        (None, {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, None, "/var/lib/a/halt"),
        (None, {"XDG_STATE_HOME": "/h/state", "HOME": "/h"}, None, "/h/state/sidecar/halt"),
        (None, {"XDG_STATE_HOME": "/h/state"}, "a", "/h/state/sidecar-a/halt"),
        (None, {"HOME": "/h"}, None, "/h/.local/state/sidecar/halt"),
        (None, {"HOME": "/h", "STATE_DIRECTORY": "", "XDG_STATE_HOME": ""}, "a", "/h/.local/state/sidecar-a/halt"),
        (None, {"XDG_STATE_HOME": "state"}, None, None),
        (None, {"HOME": ""}, None, None),
        (None, {}, None, None),
    ],
)
def test_its_place(configured: str | None, environ: dict[str, str], instance: str | None, place: str | None) -> None:
    """As configured, else in the state directory that systemd or the desktop gives; an instance has its own."""
    found = halt_file.place(configured, environ, instance=instance)
    assert found == (None if place is None else Path(place))


def test_written_read_and_removed(tmp_path: Path) -> None:
    """A round trip, readable by whoever may enter the folder, and nothing left beside it; removing twice is one."""
    file = tmp_path / "halt"
    assert halt_file.read(file) is None
    assert halt_file.look(file) is None
    before = os.umask(0o077)
    try:
        halt_file.write(file, ENTRY)
    finally:
        os.umask(before)
    assert halt_file.read(file) == ENTRY
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["halt"]
    halt_file.sync(file)
    halt_file.remove(file)
    halt_file.remove(file)
    halt_file.sync(file)
    assert halt_file.read(file) is None


def test_every_change_leaves_a_mark(tmp_path: Path) -> None:
    """Written anew, written into, emptied, removed: each look tells it from the one before."""
    file = tmp_path / "halt"
    marks = [halt_file.look(file)]
    halt_file.write(file, ENTRY)
    marks.append(halt_file.look(file))
    halt_file.write(file, ENTRY)
    marks.append(halt_file.look(file))
    file.write_text("research")
    marks.append(halt_file.look(file))
    file.write_text("")
    marks.append(halt_file.look(file))
    file.unlink()
    assert halt_file.look(file) is None
    assert len(set(marks)) == len(marks)


def test_what_is_left_of_a_killed_writer_is_in_nobodys_way(tmp_path: Path) -> None:
    """Also when it is a link to a file of somebody else, which is not written to."""
    file, foreign = tmp_path / "halt", tmp_path / "foreign"
    foreign.write_text("untouched")
    (tmp_path / f".halt.{os.getpid()}").symlink_to(foreign)
    halt_file.write(file, ENTRY)
    assert halt_file.read(file) == ENTRY
    assert foreign.read_text() == "untouched"


def test_a_link_in_its_place_is_replaced_not_followed(tmp_path: Path) -> None:
    """Root's command writes where the daemon's user may put anything."""
    file, foreign = tmp_path / "halt", tmp_path / "foreign"
    foreign.write_text("research")
    file.symlink_to(foreign)
    assert halt_file.read(file) == Halt(frozenset({"research"}))
    halt_file.write(file, ENTRY)
    assert foreign.read_text() == "research"
    assert not file.is_symlink()


def test_strange_files_stop_every_lane(tmp_path: Path) -> None:
    """A folder, a pipe that nobody writes, a device, a giant: none of them is waited for, and none is nothing."""
    folder, pipe, giant = tmp_path / "folder", tmp_path / "pipe", tmp_path / "giant"
    folder.mkdir()
    os.mkfifo(pipe)
    giant.write_text("entry\n" * MAX_BYTES)
    for each in (folder, pipe, giant, Path("/dev/zero"), tmp_path / "giant" / "halt"):
        found = halt_file.read(each)
        assert found is not None
        assert found.lanes == EVERY_LANE
        assert found.reason
        assert halt_file.look(each) is not None
    assert halt_file.look(tmp_path / "giant" / "halt") == errno.ENOTDIR


def test_a_folder_that_is_there_stays_as_it_is_and_one_that_is_not_is_made(tmp_path: Path) -> None:
    """For its owner only; a place that cannot be is told, not raised."""
    assert halt_file.prepare(tmp_path / "state" / "sidecar" / "halt") == ""
    assert stat.S_IMODE((tmp_path / "state" / "sidecar").stat().st_mode) == 0o700
    assert halt_file.prepare(tmp_path / "state" / "sidecar" / "halt") == ""
    (tmp_path / "file").write_text("")
    assert "file" in halt_file.prepare(tmp_path / "file" / "sidecar" / "halt")
    assert halt_file.prepare(Path("/proc/sidecar/halt"))


def test_a_place_that_cannot_be_written_raises_and_changes_nothing(tmp_path: Path) -> None:
    """The caller says what it means."""
    (tmp_path / "halt").mkdir()
    with pytest.raises(OSError, match="directory"):
        halt_file.write(tmp_path / "halt", ENTRY)
    with pytest.raises(OSError, match="directory"):
        halt_file.remove(tmp_path / "halt")
    with pytest.raises(FileNotFoundError):
        halt_file.write(tmp_path / "nowhere" / "halt", ENTRY)
    assert [each.name for each in tmp_path.iterdir()] == ["halt"]
