"""What a program started does not outlive it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import subprocess, sys, threading, time
from pathlib import Path
from tests.end_to_end.keeper import keep
folder = Path(sys.argv[1])
def start():
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        keep(child.pid, folder)
        print(child.pid, flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_started_ends_with_its_program(number: signal.Signals) -> None:
    """Killed or terminated: its processes, started from a thread long gone, are ended and its folder is removed."""
    folder = tempfile.mkdtemp(prefix="sk-", dir="/tmp")
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
    )
    assert program.stdout is not None
    with program.stdout as told:
        lines = [told.readline().strip() for _ in range(3)]
        assert lines[2] == "ready"
        assert all(alive(int(pid)) for pid in lines[:2])
        program.send_signal(number)
        program.wait(10)
    deadline = time.monotonic() + 20
    while (any(alive(int(pid)) for pid in lines[:2]) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(int(pid)) for pid in lines[:2])
    assert not Path(folder).exists()


def alive(pid: int) -> bool:
    """It runs: a dead one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
