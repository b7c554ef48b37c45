"""Where the daemon's socket lies, who may open it, and that there is one daemon behind it.

A socket's file may be left of a daemon that was killed, or belong to one that lives, and libzmq binds over either
without a word. So a file lock beside the socket is taken first, and only its holder removes the file. The socket is
made under a closed umask and opened to the group only afterwards: at no moment is it wider than it will be.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from sidecar.errors import ConfigurationError, EndpointError, EndpointHeld

#: `sockaddr_un.sun_path` without its closing zero.
MAX_PATH_BYTES: Final = 107
_SCHEME: Final = "ipc://"


def resolve(configured: str | None, environ: Mapping[str, str], *, uid: int, instance: str | None = None) -> str:
    """The endpoint the daemon binds, as the local wire's "Finding the socket" orders it.

    Args:
        configured: `frontend.endpoint`, None when not given.
        environ: the process environment.
        uid: the daemon's own, for the last resort under /tmp.
        instance: which of several daemons; without a runtime directory from systemd its folder is named after it.

    Raises:
        ConfigurationError: not an ``ipc://`` path, several of them, or over 107 bytes.
    """
    where = "frontend.endpoint"
    if configured is None and environ.get("SIDECAR_ENDPOINT"):
        configured, where = environ["SIDECAR_ENDPOINT"], "$SIDECAR_ENDPOINT"
    if configured is not None:
        return checked(configured, where=where)
    # systemd gives several runtime directories as a list with colons; the first is ours.
    if runtime := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return checked(f"{_SCHEME}{runtime}/sidecar.sock", where="$RUNTIME_DIRECTORY")
    suffix = f"-{instance}" if instance else ""
    if runtime := environ.get("XDG_RUNTIME_DIR", ""):
        return checked(f"{_SCHEME}{runtime}/sidecar{suffix}/sidecar.sock", where="$XDG_RUNTIME_DIR")
    return checked(f"{_SCHEME}/tmp/sidecar-{uid}{suffix}/sidecar.sock", where="the default endpoint")  # noqa: S108 (held() refuses a folder of others)


def advice(configured: str | None, control: str | None, environ: Mapping[str, str], *, instance: str | None) -> str:
    """What to add when a path is refused: which setting keeps it from following the instance. "" when none does.

    Several daemons may read one file and one environment; a path that is fixed there is the same for all of them.
    """
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not runtime and instance is None:
        return ""
    fixed = [
        (name, path)
        for name, path in (
            ("frontend.endpoint", configured),
            ("$SIDECAR_ENDPOINT", environ.get("SIDECAR_ENDPOINT") if configured is None else None),
            ("frontend.control_endpoint", control),
        )
        if path and not (runtime and path.startswith(f"{_SCHEME}{runtime}/"))
    ]
    if not fixed:
        return ""
    names = " and ".join(name for name, _ in fixed)
    folder = f" ({runtime})" if runtime else ""
    return f". Instances that share {names} have one path: leave it out, and each takes a folder of its own{folder}"


def control_of(endpoint: str, configured: str | None = None) -> str:
    """The operators' endpoint: the one configured, else ``X.sock`` -> ``X.control.sock``.

    Raises:
        ConfigurationError: as `resolve`, or the same path as the bots'.
    """
    where = "frontend.control_endpoint"
    control = checked(configured or f"{endpoint.removesuffix('.sock')}.control.sock", where=where)
    if control == endpoint:
        raise ConfigurationError("is the bots' endpoint too", where=where, mend="Give it a path of its own.")
    return control


def checked(endpoint: str, *, where: str) -> str:
    """The endpoint itself when it can be one; ConfigurationError with the mend when not."""
    path = endpoint.removeprefix(_SCHEME)
    if path == endpoint or not path.startswith("/"):
        raise ConfigurationError(
            f"{endpoint!r} is not an absolute ipc path", where=where, mend='Write "ipc:///run/sidecar/sidecar.sock".'
        )
    if any(sign in path for sign in ",*?["):
        raise ConfigurationError(
            f"{endpoint!r} names several sockets, as a client may; a daemon binds one", where=where, mend="Name one."
        )
    if "\0" in path or path.endswith("/") or Path(path).name in {".", ".."}:
        raise ConfigurationError(f"{endpoint!r} does not name a file", where=where)
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise ConfigurationError(
            f"the socket path has {length} bytes, the system takes {MAX_PATH_BYTES}",
            where=where,
            mend="Choose a shorter path, such as ipc:///run/sidecar/sidecar.sock (and frontend.control_endpoint).",
        )
    return endpoint


@contextlib.contextmanager
def held(endpoint: str, *, group: str | None = None, advice: str = "") -> Iterator[None]:
    """Hold the path for as long as the body runs: folder made or examined, lock taken, stale socket removed.

    The body binds inside `closed_umask()` and then calls `open_to_group`. On exit socket and lock file are removed.
    `advice` is added to what is said when the path cannot be had.

    Raises:
        EndpointHeld: another daemon holds it.
        EndpointError: the folder or the path is somebody else's, or not what it should be.
        ConfigurationError: no such group.
    """
    path = _path(endpoint)
    gid = _gid(group)
    try:
        _prepare_folder(path, gid)
        lock = _lock(path)
    except EndpointError as error:
        raise type(error)(f"{error}{advice}") from error
    try:
        _remove_stale(path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        # Unlinked before it is let go; whoever waits on the old file sees that it is not the one at the path.
        with contextlib.suppress(OSError):
            _lock_path(path).unlink()
        os.close(lock)


@contextlib.contextmanager
def closed_umask() -> Iterator[None]:
    """For the bind: whatever is made inside has mode 0600 at most. Nothing may await in it."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def open_to_group(endpoint: str, group: str | None) -> None:
    """After the bind: 0660 and the group's with a group, 0600 without.

    Raises:
        EndpointError: the daemon may not give the socket to that group (it must be a member of it).
        ConfigurationError: no such group.
    """
    path, gid = _path(endpoint), _gid(group)
    if gid is None:
        path.chmod(0o600)
        return
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except OSError as error:
        raise _not_a_member(path, error) from error
    path.chmod(0o660)


def _path(endpoint: str) -> Path:
    return Path(endpoint.removeprefix(_SCHEME))


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _gid(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(
            f"no group {group!r} on this machine", where="frontend.group", mend=f"Try: groupadd --system {group}"
        ) from None


def _not_a_member(path: Path, error: OSError) -> EndpointError:
    return EndpointError(
        f"{path}: cannot be given to the group of frontend.group ({error.strerror}); "
        "the daemon's user must be a member of it"
    )


def _prepare_folder(path: Path, gid: int | None) -> None:
    folder = path.parent
    mode = 0o700 if gid is None else 0o750
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise EndpointError(f"{folder}: cannot be made: {error.strerror}") from error
    # Through a descriptor from here: what is examined is what is changed.
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise EndpointError(f"{folder}: not a folder that can be used (a symbolic link?): {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in {os.geteuid(), 0}:
            raise EndpointError(f"{folder}: belongs to uid {found.st_uid}, not to the daemon's own {os.geteuid()}")
        ours = found.st_uid == os.geteuid() and _only_ours(descriptor, path)
        if ours:
            if gid is not None and found.st_gid != gid:
                try:
                    os.fchown(descriptor, -1, gid)
                except OSError as error:
                    raise _not_a_member(folder, error) from error
            os.fchmod(descriptor, mode)
        elif found.st_mode & 0o022:
            raise EndpointError(
                f"{folder}: others may write there (mode {stat.S_IMODE(found.st_mode):04o}); "
                "give the socket a folder of its own"
            )
    finally:
        os.close(descriptor)


def _only_ours(descriptor: int, path: Path) -> bool:
    """Whether the folder holds nothing but a sidecar's files: only then are its mode and group ours to set."""
    stem = path.name.removesuffix(".sock")
    return all(name == stem or name.startswith(f"{stem}.") for name in os.listdir(descriptor))


def _lock(path: Path) -> int:
    lock_path = _lock_path(path)
    while True:
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise EndpointError(f"{lock_path}: cannot be opened: {error.strerror}") from error
        kept = False
        try:
            found = os.fstat(lock)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in {os.geteuid(), 0}:
                raise EndpointError(f"{lock_path}: not a file of the daemon's own user; remove it")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
                known = f" (pid {holder})" if holder.isdigit() else ""
                raise EndpointHeld(f"{path}: another daemon holds it{known}") from error
            # The holder before us removes the file when it goes: a lock on a removed file locks nothing.
            try:
                current = lock_path.lstat()
            except FileNotFoundError:
                continue
            if (current.st_dev, current.st_ino) != (found.st_dev, found.st_ino):
                continue
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            kept = True
            return lock
        finally:
            if not kept:
                os.close(lock)


def _remove_stale(path: Path) -> None:
    """Nobody holds the lock: a socket of ours that is left over goes; anything else is not ours to remove."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise EndpointError(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise EndpointError(f"{path}: something that is not a socket lies there; remove it, or choose another path")
    if found.st_uid not in {os.geteuid(), 0}:
        raise EndpointError(f"{path}: a socket of uid {found.st_uid} lies there")
    path.unlink()
