"""Ends what a program started when the program itself is killed, whichever way: nothing is to be left behind.

`PR_SET_PDEATHSIG` would not do: it counts the thread that started a process as its parent, and rows start theirs from
threads that end. So a keeper process is told of each, and acts when the pipe from the program breaks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

_lock = threading.Lock()
_pipe: int | None = None


def keep(pid: int, folder: Path) -> None:
    """From here on the process `pid`, and `folder`, do not outlive this program."""
    global _pipe
    with _lock:
        if _pipe is None:
            _pipe = _start()
        os.write(_pipe, f"{pid} {_born(pid)} {folder}\n".encode())


def _start() -> int:
    reading, writing = os.pipe()  # neither is inherited by what is started later
    actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
    argv = [sys.executable, "-S", "-E", __file__]
    # In a group of its own: what is sent to the program's whole group is not for it.
    os.posix_spawn(sys.executable, argv, dict(os.environ), file_actions=actions, setpgroup=0)
    os.close(reading)
    return writing


def _born(pid: int) -> str:
    """When it was started, in the kernel's ticks: a number is used again, this is not. "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def main() -> None:
    """Wait for the end of the program, then end what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept = [line.split(maxsplit=2) for line in sys.stdin]
    for pid, born, _ in kept:
        if born and _born(int(pid)) == born:
            os.kill(int(pid), signal.SIGKILL)
    for folder in {line[2].strip() for line in kept}:
        if folder.startswith("/tmp/"):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
