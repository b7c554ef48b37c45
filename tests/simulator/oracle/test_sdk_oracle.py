"""The simulator before foreign judges: the SDKs of openai and anthropic, in an environment of their own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]


def _environment() -> Path:
    """The oracle's interpreter: made once in $SIDECAR_ORACLE_VENV, or else in the temporary folder."""
    chosen = os.environ.get("SIDECAR_ORACLE_VENV")
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"sidecar-oracle-{os.getuid()}"
    python, ready = folder / "bin" / "python", folder / "sidecar-oracle-ready"
    wanted = tomllib.loads((_ROOT / "pyproject.toml").read_text())["dependency-groups"]["oracle"]
    lock = folder.with_name(f"{folder.name}.lock")
    if not chosen and any(path.exists() and path.stat().st_uid != os.getuid() for path in (folder, lock)):
        pytest.skip(f"{folder} or {lock} belongs to somebody else; set SIDECAR_ORACLE_VENV")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # of several workers one makes it, the others wait
        if ready.exists() and ready.read_text() == repr(wanted):
            return python
        steps = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "-q", *wanted]]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                pytest.skip(f"the oracle's packages cannot be installed: {done.stderr.strip()[-300:]}")
        ready.write_text(repr(wanted))
    return python


@pytest.mark.oracle
@pytest.mark.timeout(300)
def test_every_frame_is_the_sdks_and_the_sdk_converses() -> None:
    """Each frame of each honest scenario validates as a `ResponsesServerEvent`; the SDK's clients read the answers."""
    python = _environment()
    relay = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "sim", "--json", "--for-s", "120", "--max-age-s", "3"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert relay.stdout is not None
        url = json.loads(relay.stdout.readline())["url"]
        check = Path(__file__).with_name("check.py")
        done = subprocess.run([str(python), str(check), url], capture_output=True, text=True, timeout=100, check=False)
    finally:
        relay.terminate()
        relay.communicate(timeout=10)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["types"]["response.output_text.delta"] > 100
    assert {"error", "response.failed", "response.incomplete", "response.refusal.delta"} <= set(seen["types"])
    assert relay.returncode == 0


@pytest.mark.oracle
@pytest.mark.timeout(300)
def test_both_sdks_converse_over_http() -> None:
    """Chat, Responses, Messages: every event is of the SDKs' types, whole answers are, errors are of their classes."""
    python = _environment()
    relay = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "sim", "--json", "--for-s", "120"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert relay.stdout is not None
        url = json.loads(relay.stdout.readline())["url"].replace("ws://", "http://")
        check = Path(__file__).with_name("check_http.py")
        done = subprocess.run([str(python), str(check), url], capture_output=True, text=True, timeout=100, check=False)
    finally:
        relay.terminate()
        relay.communicate(timeout=10)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert {"chat.completion.chunk", "response.completed", "message_stop"} <= set(seen["types"])
    assert seen["errors"] == {
        "AuthenticationError": 3, "PermissionDeniedError": 3, "NotFoundError": 3, "RateLimitError": 3,
        "InternalServerError": 3, "BadRequestError": 3, "529": 1,
    }  # fmt: skip
