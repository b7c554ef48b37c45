"""The halt file on disk: where it lies, and reading, writing and removing it. The daemon and the command share this.

It is one small file on a local disk: calls block for microseconds. Writing is atomic (a new file, renamed over the
old one), so that no reader sees half of it; what survives a power cut is `sync`'s, which may take long.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from sidecar.core.halt import EVERY_LANE, MAX_BYTES, Halt, parse, render

#: Its name in the folder of the daemon's state.
NAME: Final = "halt"

#: What changes when the file does; its size comes first.
Mark: TypeAlias = tuple[int, int, int, int, int]


def place(configured: str | None, environ: Mapping[str, str], *, instance: str | None = None) -> Path | None:
    """Where the halt file of a daemon lies that has this configuration and environment.

    `frontend.halt_file`, else `halt` in systemd's state directory, in ``$XDG_STATE_HOME/sidecar`` or in
    ``~/.local/state/sidecar``; of an instance, `sidecar-NAME`. None: there is no such place.
    """
    if configured is not None:
        return Path(configured)
    # systemd gives several state directories as a list with colons; the first is ours.
    if state := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(state) / NAME
    home = environ.get("HOME", "")
    base = Path(environ.get("XDG_STATE_HOME", "") or (f"{home}/.local/state" if home else ""))
    return base / (f"sidecar-{instance}" if instance else "sidecar") / NAME if base.is_absolute() else None


def prepare(path: Path) -> str:
    """Make the file's folder if it is not there, for its owner only; "" or why no halt can be kept there."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return "" if os.access(folder, os.W_OK | os.X_OK, effective_ids=True) else f"{folder} may not be written"


def look(path: Path) -> Mark | int | None:
    """What tells one state of the file from another; None: there is none; an errno: nobody can tell."""
    try:
        found = os.stat(path)  # noqa: PTH116 - ten times a second
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.errno or -1
    return found.st_size, found.st_ino, found.st_dev, found.st_mtime_ns, found.st_ctime_ns


def read(path: Path) -> Halt | None:
    """What the file stops; None when there is none. What cannot be read stops every lane."""
    try:
        # O_NONBLOCK: a FIFO must not hold up the daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Halt(EVERY_LANE, f"the halt file cannot be read: {error.strerror}")
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return Halt(EVERY_LANE, "the halt file is not a regular file")
        return parse(os.read(descriptor, MAX_BYTES + 1))
    except OSError as error:
        return Halt(EVERY_LANE, f"the halt file cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)


def write(path: Path, halt: Halt) -> None:
    """Put the halt in the place of whatever is there. Everybody who may enter the folder may read it.

    Raises:
        OSError: it cannot be; the old one stands.
    """
    # A folder of another user's may hold a link of any name: only a file of our own making is written to.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()  # of a process of this number that was killed
    descriptor = os.open(beside, flags, 0o600)
    try:
        try:
            payload = render(halt)
            if os.write(descriptor, payload) != len(payload):
                raise OSError(0, "the disk took half of it")
            os.fchmod(descriptor, 0o644)  # root's file is for the daemon to read, whatever the umask
        finally:
            os.close(descriptor)
        os.replace(beside, path)  # noqa: PTH105
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def remove(path: Path) -> None:
    """Nothing is halted any more. No file is as well.

    Raises:
        OSError: it cannot be removed.
    """
    path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """What was written or removed survives a power cut when this returns. May take long: not for a loop.

    Raises:
        OSError: nobody can tell.
    """
    for each, flags in ((path, os.O_RDONLY | os.O_NONBLOCK), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(each, flags | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
