"""Processes of a test or a benchmark: a short folder under /tmp, an endpoint in it, and all of it gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self


class Running:
    """The folder, and whatever was started and appended to `_running`; ended and removed on the way out."""

    def __init__(self, prefix: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp")
        self.folder = Path(self._folder.name)
        self.endpoint = f"ipc://{self.folder}/s.sock"
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def environ(self, **extra: str) -> dict[str, str]:
        """Ours without anything that could steer the product."""
        steering = ("SIDECAR_", "XDG_RUNTIME", "STATE_DIRECTORY")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
        return {**kept, "XDG_STATE_HOME": str(self.folder / "state"), **extra}
