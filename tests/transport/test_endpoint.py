"""Where the socket lies and who may open it: bad paths, other people's folders, a second daemon, leftovers."""

from __future__ import annotations

import grp
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.errors import ConfigurationError, EndpointError, EndpointHeld
from sidecar.transport import endpoint
from sidecar.transport.zmq_socket import RouterPort


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: socket paths have 107 bytes, pytest's own folders are long."""
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as name:
        yield Path(name)


def mode(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_order_in_which_an_endpoint_is_found() -> None:
    """Configured, $SIDECAR_ENDPOINT, $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, /tmp."""
    environ = {"SIDECAR_ENDPOINT": "ipc:///e/s", "RUNTIME_DIRECTORY": "/run/sc:/run/other", "XDG_RUNTIME_DIR": "/x"}
    found = [endpoint.resolve("ipc:///c/s", environ, uid=7)]
    for name in (None, *environ):
        environ.pop(name or "", None)
        found.append(endpoint.resolve(None, environ, uid=7))
    assert found == [
        "ipc:///c/s",
        "ipc:///e/s",
        "ipc:///run/sc/sidecar.sock",
        "ipc:///x/sidecar/sidecar.sock",
        "ipc:///tmp/sidecar-7/sidecar.sock",
    ]


def test_an_instance_has_a_folder_of_its_own() -> None:
    """The folder of systemd as it is (the unit names it after the instance); elsewhere the name is in the folder's."""
    environ = {"RUNTIME_DIRECTORY": "/run/sidecar-a", "XDG_RUNTIME_DIR": "/x"}
    found = []
    for name in (None, *environ):
        environ.pop(name or "", None)
        found.append(endpoint.resolve(None, environ, uid=7, instance="a"))
    assert found == [
        "ipc:///run/sidecar-a/sidecar.sock",
        "ipc:///x/sidecar-a/sidecar.sock",
        "ipc:///tmp/sidecar-7-a/sidecar.sock",
    ]
    assert endpoint.resolve("ipc:///c/s", {}, uid=7, instance="a") == "ipc:///c/s"


def test_advice_names_what_keeps_instances_together() -> None:
    """Only where there may be several, and only what lies outside the folder that systemd gives."""
    runtime = {"RUNTIME_DIRECTORY": "/run/sidecar-a"}
    here, there = "ipc:///run/sidecar-a/x.sock", "ipc:///run/sidecar/x.sock"
    assert endpoint.advice(there, there, {}, instance=None) == ""
    assert endpoint.advice(here, None, runtime, instance="a") == ""
    assert endpoint.advice(None, None, runtime, instance="a") == ""
    said = endpoint.advice(there, there, runtime, instance=None)
    assert "frontend.endpoint and frontend.control_endpoint" in said
    assert "/run/sidecar-a" in said
    assert "$SIDECAR_ENDPOINT" in endpoint.advice(None, None, {"SIDECAR_ENDPOINT": there}, instance="a")


def test_advice_is_given_with_the_refusal(folder: Path) -> None:
    """Held by another, or in a place that cannot be had: the kind of error stays what it was."""
    with (
        endpoint.held(f"ipc://{folder}/s.sock"),
        pytest.raises(EndpointHeld, match=r"another daemon holds it \(pid \d+\)\. Mend it$"),
        endpoint.held(f"ipc://{folder}/s.sock", advice=". Mend it"),
    ):
        pass
    with (
        pytest.raises(EndpointError, match=r"cannot be made.*\. Mend it$"),
        endpoint.held(f"ipc://{folder}/no/folder/s.sock", advice=". Mend it"),
    ):
        pass


@pytest.mark.parametrize(
    "bad",
    ["", "tcp://127.0.0.1:1", "/run/s.sock", "ipc://relative", "ipc://@abstract", "ipc://", "ipc:///a/", "ipc:///a/..",
     "ipc:///a\0b", "ipc:///a,ipc:///b", "ipc:///run/sidecar-*/s.sock", "ipc:///s?.sock",
     "ipc:///s[ab]", "ipc:///" + "x" * 107, "ipc:///" + "é" * 60],
)  # fmt: skip
def test_a_bad_endpoint_is_a_configuration_error(bad: str) -> None:
    """Not ipc, not absolute, not a file, too long (in bytes): named with the place it came from."""
    with pytest.raises(ConfigurationError) as caught:
        endpoint.resolve(bad, {}, uid=7)
    assert caught.value.where == "frontend.endpoint"


def test_107_bytes_are_taken_and_bound(folder: Path) -> None:
    """The longest path the system takes works; one byte more is refused before anything is made."""
    path = str(folder / ("s" * (107 - len(str(folder)) - 1)))
    address = endpoint.resolve(f"ipc://{path}", {}, uid=7)
    with RouterPort(max_message_bytes=1024) as port:
        port.bind(address)
        assert Path(path).is_socket()
    with pytest.raises(ConfigurationError, match="108 bytes"):
        endpoint.resolve(f"ipc://{path}s", {}, uid=7)


def test_the_operators_endpoint_lies_beside_it() -> None:
    """X.sock -> X.control.sock, or as configured; never the same, never too long."""
    assert endpoint.control_of("ipc:///r/x.sock") == "ipc:///r/x.control.sock"
    assert endpoint.control_of("ipc:///r/x") == "ipc:///r/x.control.sock"
    assert endpoint.control_of("ipc:///r/x.sock", "ipc:///c") == "ipc:///c"
    for bad in ("ipc:///r/x.sock", "tcp://x"):
        with pytest.raises(ConfigurationError, match="control_endpoint"):
            endpoint.control_of("ipc:///r/x.sock", bad)
    with pytest.raises(ConfigurationError, match="control_endpoint"):
        endpoint.control_of("ipc:///" + "x" * 101 + ".sock")


def test_folder_and_socket_are_for_the_own_user_only(folder: Path) -> None:
    """Without a group: folder 0700, socket 0600; both doors gone after the end."""
    path = folder / "run" / "s.sock"
    with endpoint.held(f"ipc://{path}"), RouterPort(max_message_bytes=1024) as port:
        with endpoint.closed_umask():
            port.bind(f"ipc://{path}")
        assert mode(path) == 0o600  # before anybody widened anything: there is no window
        endpoint.open_to_group(f"ipc://{path}", None)
        assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert list(path.parent.iterdir()) == []


def test_a_group_may_connect(folder: Path) -> None:
    """With a group: folder 0750, socket 0660, both the group's."""
    group = grp.getgrgid(os.getgid()).gr_name
    path = folder / "run" / "s.sock"
    with endpoint.held(f"ipc://{path}", group=group), RouterPort(max_message_bytes=1024) as port:
        with endpoint.closed_umask():
            port.bind(f"ipc://{path}")
        assert mode(path) & 0o077 == 0
        endpoint.open_to_group(f"ipc://{path}", group)
        assert (mode(path.parent), mode(path)) == (0o750, 0o660)
        assert {path.parent.stat().st_gid, path.stat().st_gid} == {os.getgid()}


def test_an_unknown_group_is_a_configuration_error(folder: Path) -> None:
    """It says so before the socket exists."""
    held = endpoint.held(f"ipc://{folder}/s", group="no-such-group-here")
    with pytest.raises(ConfigurationError, match=re.escape("frontend.group")), held:
        pass
    assert list(folder.iterdir()) == []


def test_the_umask_is_given_back() -> None:
    """Also when the bind fails."""
    before = os.umask(0o022)
    try:
        with pytest.raises(RuntimeError), endpoint.closed_umask():
            raise RuntimeError
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_second_daemon_is_refused_and_the_first_goes_on(folder: Path) -> None:
    """EndpointHeld, with the holder's pid; the first one's socket stays."""
    address = f"ipc://{folder}/s.sock"
    with endpoint.held(address), RouterPort(max_message_bytes=1024) as port:
        port.bind(address)
        with pytest.raises(EndpointHeld, match=f"pid {os.getpid()}"), endpoint.held(address):
            pass
        assert (folder / "s.sock").is_socket()
    with endpoint.held(address):
        pass


def test_what_a_killed_daemon_left_is_replaced(folder: Path) -> None:
    """A stale socket and a lock file without a holder are no obstacle."""
    script = (
        "import os, sys\n"
        "from sidecar.transport import endpoint\n"
        "from sidecar.transport.zmq_socket import RouterPort\n"
        "port = RouterPort(max_message_bytes=1024)\n"
        "with endpoint.held(sys.argv[1]):\n"
        "    port.bind(sys.argv[1])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    address = f"ipc://{folder}/s.sock"
    assert subprocess.run([sys.executable, "-c", script, address], check=False, timeout=30).returncode == -9
    assert sorted(path.name for path in folder.iterdir()) == ["s.sock", "s.sock.lock"]
    with endpoint.held(address), RouterPort(max_message_bytes=1024) as port:
        port.bind(address)
    assert list(folder.iterdir()) == []


def test_what_is_not_a_socket_is_not_removed(folder: Path) -> None:
    """A file, a folder or a symbolic link at the path: refused and untouched."""
    for name, make in [
        ("file", lambda p: p.write_text("precious")),
        ("folder", lambda p: p.mkdir()),
        ("link", lambda p: p.symlink_to(folder / "elsewhere")),
    ]:
        path = folder / name
        make(path)
        with pytest.raises(EndpointError, match="not a socket"), endpoint.held(f"ipc://{path}"):
            pass
        assert os.path.lexists(path)


def test_a_lock_that_is_a_trap_is_refused(folder: Path) -> None:
    """A symbolic link, a fifo or a folder in the lock's place is neither followed nor waited for."""
    victim = folder / "victim"
    victim.write_text("precious")
    lock = folder / "s.lock"
    for make in (lambda: lock.symlink_to(victim), lambda: os.mkfifo(lock), lambda: lock.mkdir()):
        make()
        with pytest.raises(EndpointError, match=r"s\.lock"), endpoint.held(f"ipc://{folder}/s"):
            pass
        lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    assert victim.read_text() == "precious"


def test_a_folder_that_is_a_link_is_refused(folder: Path) -> None:
    """Whoever made the link decides where it points tomorrow."""
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    with pytest.raises(EndpointError, match="symbolic link"), endpoint.held(f"ipc://{folder}/link/s"):
        pass


def test_a_folder_where_others_write_is_refused(folder: Path) -> None:
    """A shared folder that is not ours to tighten: a path of its own is asked for."""
    (folder / "something else").touch()
    folder.chmod(0o1777)
    with pytest.raises(EndpointError, match="others may write"), endpoint.held(f"ipc://{folder}/s"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_folder_of_somebody_else_is_refused(folder: Path) -> None:
    """In /tmp anybody may have made it first."""
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(EndpointError, match="12345"), endpoint.held(f"ipc://{theirs}/s"):
        pass


def test_a_missing_or_forbidden_parent_is_named(folder: Path) -> None:
    """Only the last folder is made; what is missing above it is an operator's mistake."""
    with pytest.raises(EndpointError, match="cannot be made"), endpoint.held(f"ipc://{folder}/a/b/s"):
        pass
    (folder / "file").touch()
    with pytest.raises(EndpointError), endpoint.held(f"ipc://{folder}/file/s"):
        pass


def test_a_socket_left_behind_without_a_lock_is_replaced(folder: Path) -> None:
    """A stale socket of our own user goes; the lock file alone says who is alive."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with endpoint.held(f"ipc://{path}"):
        assert not path.exists()
