"""Finding the socket, and saying why it cannot be reached."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.client import endpoint as module
from sidecar.client.endpoint import Places, absent, control_endpoint, find_endpoint, find_places, look
from sidecar.errors import EndpointError


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: socket paths are."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def bound(path: Path) -> str:
    """A socket file, of nobody."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return f"ipc://{path}"


def test_the_order_of_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, environment, system, XDG, /tmp; never the bot's own $RUNTIME_DIRECTORY."""
    monkeypatch.setattr(module, "SYSTEM_SOCKET", str(folder / "system.sock"))
    environ = {"SIDECAR_ENDPOINT": "ipc:///e.sock", "XDG_RUNTIME_DIR": "/x", "RUNTIME_DIRECTORY": "/bot"}
    assert find_endpoint("/given.sock", environ=environ) == "ipc:///given.sock"
    assert find_endpoint(environ=environ) == "ipc:///e.sock"
    del environ["SIDECAR_ENDPOINT"]
    assert find_endpoint(environ=environ) == "ipc:///x/sidecar/sidecar.sock"
    del environ["XDG_RUNTIME_DIR"]
    assert find_endpoint(environ=environ) == f"ipc:///tmp/sidecar-{os.getuid()}/sidecar.sock"
    bound(folder / "system.sock")
    assert find_endpoint(environ={"XDG_RUNTIME_DIR": "/x"}) == f"ipc://{folder}/system.sock"


@pytest.mark.parametrize("given", ["tcp://127.0.0.1:5", "ipc://relative", "x.sock", "ipc:///" + "a" * 107, "/a\0b"])
def test_an_unusable_endpoint_is_refused(given: str) -> None:
    """Not ipc, not absolute, too long, with a zero in it."""
    with pytest.raises(EndpointError):
        find_endpoint(given)


def test_the_control_endpoint_stands_beside() -> None:
    """X.sock -> X.control.sock."""
    assert control_endpoint("ipc:///run/a.sock") == "ipc:///run/a.control.sock"


def test_looking_names_what_is_in_the_way(folder: Path) -> None:
    """Missing, no socket, a file in place of a folder; nothing for a socket we may write."""
    missing = look(f"ipc://{folder}/none.sock")
    assert missing is not None
    assert missing.errno == errno.ENOENT
    assert missing.may_pass
    (folder / "file").write_text("")
    plain = look(f"ipc://{folder}/file")
    assert plain is not None
    assert plain.errno == errno.ENOTSOCK
    below = look(f"ipc://{folder}/file/x.sock")
    assert below is not None
    assert below.errno == errno.ENOTDIR
    assert look(bound(folder / "good.sock")) is None


def test_a_forbidden_socket_names_the_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EACCES says who may connect and what to do. (Access is faked: root may do everything.)"""
    where = bound(folder / "s.sock")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    os.chmod(folder / "s.sock", 0o660)
    obstacle = look(where)
    assert obstacle is not None
    assert obstacle.errno == errno.EACCES
    assert not obstacle.may_pass
    assert "usermod -aG" in obstacle.message
    os.chmod(folder / "s.sock", 0o600)
    obstacle = look(where)
    assert obstacle is not None
    assert "Only that user" in obstacle.message


def test_a_forbidden_folder_is_told_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may not be entered hides the socket: EACCES, not ENOENT, and it counts as existing."""
    real = os.stat

    def stat(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if str(path).endswith(".sock"):
            raise PermissionError(errno.EACCES, "no")
        return real(path)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "SYSTEM_SOCKET", str(folder / "s.sock"))
    monkeypatch.setattr(os, "stat", stat)
    assert find_endpoint(environ={}) == f"ipc://{folder}/s.sock"
    obstacle = look(f"ipc://{folder}/s.sock")
    assert obstacle is not None
    assert obstacle.errno == errno.EACCES
    assert str(folder) in obstacle.message


def test_a_folder_of_somebody_else_under_tmp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """/tmp/sidecar-UID made by another user, or a link, may hold an impostor."""
    with tempfile.TemporaryDirectory(prefix="sidecar-", dir="/tmp") as name:
        where = bound(Path(name) / "sidecar.sock")
        assert look(where) is None
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        owned_by_root = os.stat(name).st_uid == 0
        obstacle = look(where)
        assert owned_by_root or (obstacle is not None and obstacle.errno == errno.EPERM)
        link = Path(f"{name}-link")
        link.symlink_to(name)
        try:
            obstacle = look(f"ipc://{link}/sidecar.sock")
        finally:
            link.unlink()
        assert obstacle is not None
        assert "symbolic link" in obstacle.message


def test_several_daemons_may_be_named(folder: Path) -> None:
    """By commas, by patterns, by both; by argument or environment; each once, and each checked."""
    for name in "ba":
        (folder / f"sidecar-{name}").mkdir()
        bound(folder / f"sidecar-{name}" / "sidecar.sock")
    pattern = f"ipc://{folder}/sidecar-*/sidecar.sock"
    first, second = (f"ipc://{folder}/sidecar-{name}/sidecar.sock" for name in "ab")
    assert find_places(pattern, environ={}) == Places((), (pattern,))
    assert find_places(pattern).look() == [first, second]
    assert find_places(f"{folder}/sidecar-[b]/sidecar.sock").look() == [second]
    mixed = find_places(environ={"SIDECAR_ENDPOINT": f" /x.sock, {pattern},/x.sock,"})
    assert mixed == Places(("ipc:///x.sock",), (pattern,))
    assert mixed.look() == ["ipc:///x.sock", first, second]
    assert mixed.single is None
    assert str(mixed) == f"ipc:///x.sock,{pattern}"
    assert find_places("/x.sock,").single == "ipc:///x.sock"
    assert find_places(f"{folder}/nobody-*/sidecar.sock").look() == []


@pytest.mark.parametrize("given", [",", " , ", "/a.sock,tcp://b", "/a.sock,relative/*.sock", "*", "/a\0*"])
def test_one_bad_name_spoils_the_list(given: str) -> None:
    """It is refused, not passed over: a misspelt daemon would be missed in the hour of need."""
    with pytest.raises(EndpointError):
        find_places(given, environ={})


def test_instances_are_found_where_no_plain_daemon_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's plain one, the system's instances, the user's plain one, the user's instances, the old defaults."""
    for path in ("run", "user"):
        (folder / path).mkdir()
    monkeypatch.setattr(module, "SYSTEM_SOCKET", str(folder / "run" / "sidecar" / "sidecar.sock"))
    environ = {"XDG_RUNTIME_DIR": str(folder / "user")}

    def place(name: str) -> str:
        where = folder / name
        where.mkdir()
        return bound(where / "sidecar.sock")

    assert find_places(environ=environ).single == f"ipc://{folder}/user/sidecar/sidecar.sock"
    users = [place("user/sidecar-1"), place("user/sidecar-2")]
    assert find_places(environ=environ).look() == users
    plain = place("user/sidecar")
    assert find_places(environ=environ).single == plain
    instances = [place("run/sidecar-1")]
    assert find_places(environ=environ).patterns == (f"ipc://{folder}/run/sidecar-*/sidecar.sock",)
    assert find_places(environ=environ).look() == instances
    system = place("run/sidecar")
    assert find_places(environ=environ).single == system
    assert find_places(environ={}).single == system


def test_a_command_that_asks_one_daemon_wants_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list or pattern that finds one is as good as its name; several, or none, are told."""
    monkeypatch.setattr(module, "SYSTEM_SOCKET", str(folder / "none" / "sidecar.sock"))
    pattern = f"ipc://{folder}/sidecar-*/sidecar.sock"
    with pytest.raises(EndpointError, match="none that is there"):
        find_endpoint(pattern)
    (folder / "sidecar-1").mkdir()
    one = bound(folder / "sidecar-1" / "sidecar.sock")
    assert find_endpoint(pattern) == one
    assert find_endpoint(environ={"XDG_RUNTIME_DIR": str(folder)}) == one
    (folder / "sidecar-2").mkdir()
    bound(folder / "sidecar-2" / "sidecar.sock")
    with pytest.raises(EndpointError, match=r"sidecar-2/sidecar\.sock: this asks one daemon"):
        find_endpoint(pattern)


def test_a_pattern_without_a_socket_is_an_obstacle_that_may_pass() -> None:
    """ENOENT, as for a missing socket."""
    obstacle = absent(Places((), ("ipc:///run/sidecar-*/sidecar.sock",)))
    assert obstacle.may_pass
    assert "/run/sidecar-*/sidecar.sock" in obstacle.message
