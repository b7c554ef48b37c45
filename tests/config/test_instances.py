"""Several daemons on one host: which file an instance reads, and what is said when two would collide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli import check
from sidecar.config import DEFAULT_PATH, path_of
from sidecar.errors import ConfigurationError
from sidecar.transport import endpoint

TABLES = """
[[upstream]]
name = "a"
url = "ws://127.0.0.1:9/v1"
dialect = "responses"

[[route]]
name = "default"
targets = [ { upstream = "a", model = "m" } ]
"""


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that instances share, and an environment without anything that steers."""
    for name in list(os.environ):
        if name.startswith(("SIDECAR_", "RUNTIME_DIRECTORY", "XDG_RUNTIME")):
            monkeypatch.delenv(name)
    path = tmp_path_factory.mktemp("i") / "sidecar.toml"
    path.write_text(TABLES)
    return path


def test_an_instance_reads_its_own_file_where_there_is_one(shared: Path) -> None:
    """NAME.toml beside the shared file, else the shared file; without a name always the shared file."""
    own = shared.with_name("a.toml")
    assert path_of(shared, "a") == shared
    own.write_text(TABLES)
    assert path_of(shared, "a") == own
    assert path_of(shared, "b") == shared
    assert path_of(shared, None) == shared
    assert path_of(None, None) == DEFAULT_PATH
    assert path_of(None, "no-such-instance") == DEFAULT_PATH


def test_a_file_of_its_own_that_cannot_be_read_is_no_reason_for_another(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dangling link is told by its name; the shared file is not taken silently."""
    shared.with_name("a.toml").symlink_to(shared.with_name("gone.toml"))
    assert check.run(["-c", str(shared), "--instance", "a"]) == 78
    assert "a.toml" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["", ".", "..", "../etc", "a/b", "-a", "a b", "ä", "a\0", "a\n", "x" * 33])
def test_what_cannot_name_an_instance(shared: Path, bad: str) -> None:
    """No path can be made of it that leads elsewhere."""
    with pytest.raises(ConfigurationError) as caught:
        path_of(shared, bad)
    assert caught.value.where == "--instance"


def test_check_says_which_file_and_where(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder follows the instance; nothing is wrong, so nothing is warned of."""
    assert check.run(["-c", str(shared), "--instance", "blue"]) == 0
    said = capsys.readouterr().out
    assert f"sidecar-{os.getuid()}-blue/sidecar.sock" in said
    assert f"instance blue reads {shared}" in said
    assert "75" not in said


@pytest.mark.parametrize("key", ["endpoint", "control_endpoint"])
def test_check_warns_of_a_path_that_instances_would_share(
    shared: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """Legal for one instance, so it is a note; in a file of its own it is nobody else's."""
    text = f'[frontend]\n{key} = "ipc:///run/sidecar/one.sock"\n{TABLES}'
    shared.write_text(text)
    assert check.run(["-c", str(shared), "--instance", "a"]) == 0
    assert f"would end with 75. Instances that share frontend.{key}" in capsys.readouterr().out
    shared.with_name("a.toml").write_text(text)
    assert check.run(["-c", str(shared), "--instance", "a"]) == 0
    assert "75" not in capsys.readouterr().out


def test_serve_ends_with_75_and_says_what_to_leave_out(shared: Path) -> None:
    """A second instance with the same configured endpoint: held, by whom, and why they collide."""
    path = f"/tmp/sidecar-t{os.getpid()}/s.sock"
    shared.write_text(f'[frontend]\nendpoint = "ipc://{path}"\n{TABLES}')
    with endpoint.held(f"ipc://{path}"):
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", "serve", "-c", str(shared), "--instance", "b"],
            env={**os.environ, "RUNTIME_DIRECTORY": "/run/sidecar-b"},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    Path(path).parent.rmdir()
    assert done.returncode == 75, done.stderr
    assert f"another daemon holds it (pid {os.getpid()})" in done.stderr
    assert "share frontend.endpoint" in done.stderr
    assert "/run/sidecar-b" in done.stderr
