"""What every peer is: set up in a cache folder, started on loopback, measured from outside, ended.

A peer that cannot be set up or does not start raises `Missing` with the reason; nobody makes up a figure for it.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: Seconds for one step of a setup (an install downloads some 100 MB), and for a start.
SETUP_TIMEOUT: Final = 900.0
START_TIMEOUT: Final = 120.0
MODEL: Final = "gpt-5-mini"
KEY: Final = "made-up"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


class Missing(Exception):
    """A peer is not to be had here; the text says why."""


def cache_folder() -> Path:
    """Where the peers are installed: outside the repository, kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "inference-sidecar-peers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shortened(text: str) -> str:
    """The end of what a program said, on one line, without addresses of servers."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    told = [line for line in lines if re.search("error|fail|not found|denied|could not", line, re.IGNORECASE)] or lines
    return re.sub(r"\w+://[^/\s]+", "(address)", " / ".join(told[-2:]))[-300:]


def step(argv: Sequence[str | Path], *, folder: Path, timeout: float = SETUP_TIMEOUT, **environ: str) -> str:
    """Run one step of a setup; its output. Raises `Missing` when it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in argv], cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True,
            timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Missing(f"{Path(argv[0]).name} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{Path(argv[0]).name}: not done after {timeout:.0f} s") from error
    if done.returncode:
        raise Missing(f"{Path(argv[0]).name}: {shortened(done.stderr + done.stdout)}")
    return done.stdout


def python_environment(name: str, wanted: Sequence[str]) -> Path:
    """A virtual environment of its own with these requirements; its interpreter. Made once."""
    folder = cache_folder() / name
    python, ready = folder / "bin" / "python", folder / "peers-ready"
    if not (ready.exists() and ready.read_text() == repr(list(wanted))):
        step([sys.executable, "-m", "venv", folder], folder=cache_folder())
        step([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted], folder=folder)
        ready.write_text(repr(list(wanted)))
    return python


def python_version(python: Path, package: str) -> str:
    """Of an installed distribution."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return step([python, "-c", code], folder=cache_folder(), timeout=30).strip()


def npm_package(name: str, package: str, **held: str) -> Path:
    """A package of npm in a folder of its own; where it lies. Made once. `held`: versions of what it depends on."""
    folder = cache_folder() / name
    ready, wanted = folder / "peers-ready", json.dumps({"dependencies": {package: "latest"}, "overrides": held})
    if not (ready.exists() and ready.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)  # npm keeps what is there, also a version that is not wanted
        folder.mkdir()
        (folder / "package.json").write_text(wanted)
        step(["npm", "install", "--no-audit", "--no-fund"], folder=folder)
        ready.write_text(wanted)
    return folder / "node_modules" / package


def free_port() -> int:
    """A port of loopback that nobody has right now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


# ------------------------------------------------------------------------------------------------ processes


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


#: Reads process groups to end, one per line (negative: ended already), until its input ends: then we are gone,
#: however that came about.
_REAPER: Final = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    group = int(line)
    groups.add(group) if group > 0 else groups.discard(-group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Reaper:
    """Ends process groups after us, also when we are killed: the kernel's signal to children reaches no grandchild."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def promise(self, group: int) -> None:
        """This group ends with us; a negative one has ended, and its number may be another's soon."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _REAPER], stdin=subprocess.PIPE, start_new_session=True
            )
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % group)
        self._process.stdin.flush()


_reaper: Final = Reaper()


@dataclass
class Started:
    """A process in a session of its own, its log, and its descendants."""

    process: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> list[int]:
        """It and all that descend from it."""
        return [self.process.pid, *descendants(self.process.pid)]

    def stop(self) -> None:
        """End it, politely for 5 s, and then all that is left of its group."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _reaper.promise(-self.process.pid)


def start(argv: Sequence[str | Path], *, log: Path, folder: Path, environ: Mapping[str, str]) -> Started:
    """In the background, with this environment and no proxy settings of ours; killed when we are."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
            env={**kept, "NO_PROXY": "*", **environ}, preexec_fn=_die_with_parent, start_new_session=True,
        )  # fmt: skip
    _reaper.promise(process.pid)
    return Started(process, log)


def until(condition: Callable[[], bool], started: Started, timeout: float = START_TIMEOUT) -> None:
    """Wait until `condition`; raises `Missing` with the log when the process ends before, or time does."""
    deadline = time.monotonic() + timeout
    while not condition():
        if started.process.poll() is not None or time.monotonic() > deadline:
            started.stop()
            why = "ended" if started.process.returncode and time.monotonic() < deadline else "did not answer"
            raise Missing(f"{why}: {shortened(started.log.read_text(errors='replace'))}")
        time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    """Of a process, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes with all their threads, also ended ones, to the nanosecond.

    The kernel's per-process CPU clock (`clock_getcpuclockid`): /proc counts in ticks of 10 ms.
    """
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime(((~pid) << 3) | 2)
        except OSError:
            continue
    return total


def rss_mib(pids: Iterable[int]) -> float:
    """Resident memory of processes, shared pages counted in each."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE / (1 << 20)


# ------------------------------------------------------------------------------------------------ gateways


@dataclass(frozen=True)
class Target:
    """How the raw client asks a gateway for a chat stream."""

    port: int
    path: str = "/v1/chat/completions"
    model: str = MODEL
    headers: Mapping[str, str] = field(default_factory=dict)

    def known(self) -> dict[str, object]:
        """For the load worker."""
        return {"port": self.port, "path": self.path, "model": self.model, "headers": dict(self.headers)}


class Gateway:
    """A peer that relays chat completions over HTTP. Subclasses say how it is had and run."""

    name: str
    title: str
    #: What it was told, and who recommends that.
    settings: tuple[str, ...] = ()
    #: Tokens of one flood and requests of one round of short ones: about two seconds of its CPU.
    flood_tokens = 100_000
    short_requests = 1000

    def setup(self) -> str:
        """Install what is not yet installed; the version. Raises `Missing`."""
        raise NotImplementedError

    def launch(self, folder: Path, port: int, upstream: int) -> Started:
        """Start it on this port of loopback, with the simulated upstream at that one."""
        raise NotImplementedError

    def target(self, port: int, upstream: int) -> Target:
        """How it is asked."""
        return Target(port)


def answers(target: Target, timeout: float = 20.0) -> bool:
    """Whether a short stream comes through, to its end."""
    body = (
        f'{{"model":"{target.model}","stream":true,"messages":[{{"role":"user","content":"first [[tokens=2]]"}}]}}'
    ).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}", **target.headers}
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=timeout)
    try:
        connection.request("POST", target.path, body, headers)
        answer = connection.getresponse()
        return answer.status == 200 and b"[DONE]" in answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
