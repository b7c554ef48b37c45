"""Where the daemon's socket is, and, when nobody can be reached there, why.

A refused `connect` does not tell what to mend, and a folder of somebody else must not be connected to: clients look
first. No zmq and no msgspec here: `sidecar probe` uses it too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import Final, NamedTuple

from sidecar.errors import EndpointError

SYSTEM_SOCKET: Final = "/run/sidecar/sidecar.sock"
MAX_PATH_BYTES: Final = 107  # sun_path holds 108 with its closing zero


class Obstacle(NamedTuple):
    """Why nobody can be reached: `errno`, a sentence with the mend, and whether waiting might help."""

    errno: int
    message: str
    may_pass: bool


class Places(NamedTuple):
    """Where the daemons of a client may be: addresses, and patterns of addresses as the shell writes them."""

    fixed: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def single(self) -> str | None:
        """The one address, None when there are, or may be, several."""
        return self.fixed[0] if len(self.fixed) == 1 and not self.patterns else None

    def look(self) -> list[str]:
        """The addresses of now: the fixed ones, and the sockets that a pattern finds, each once."""
        found = list(self.fixed)
        for pattern in self.patterns:
            found += sorted(f"ipc://{path}" for path in _matching(socket_path(pattern)))
        return list(dict.fromkeys(found))

    def __str__(self) -> str:
        return ",".join((*self.fixed, *self.patterns))


def find_places(given: str | None = None, *, environ: Mapping[str, str] | None = None) -> Places:
    """The daemons a client spreads its calls over; mostly one.

    What is given, or ``$SIDECAR_ENDPOINT``, may name several: separated by commas, or by a pattern with ``*``, ``?`` or
    ``[]``, such as ``ipc:///run/sidecar-*/sidecar.sock``, which finds those that come later, too. With nothing named,
    the order of `find_endpoint` holds, and in each of its first two places the sockets of instances
    (``/run/sidecar-NAME/sidecar.sock``, ``$XDG_RUNTIME_DIR/sidecar-NAME/sidecar.sock``) are taken where there is no
    plain one.

    Raises:
        EndpointError: one of them is not an ipc path, or longer than 107 bytes.
    """
    environ = os.environ if environ is None else environ
    chosen = given or environ.get("SIDECAR_ENDPOINT")
    if chosen:
        named = [_checked(one.strip()) for one in chosen.split(",") if one.strip()]
        if not named:
            raise EndpointError(f"endpoint {chosen!r} names nothing")
        named = list(dict.fromkeys(named))
        return Places(
            tuple(one for one in named if not _is_pattern(one)), tuple(one for one in named if _is_pattern(one))
        )
    runtime = environ.get("XDG_RUNTIME_DIR")
    for plain in (SYSTEM_SOCKET, *([f"{runtime}/sidecar/sidecar.sock"] if runtime else [])):
        if _may_exist(plain):
            return Places((_checked(plain),))
        folder, _, name = plain.rpartition("/")
        pattern = f"{folder}-*/{name}"
        if not _is_pattern(plain) and _matching(pattern):
            return Places((), (f"ipc://{pattern}",))
    return Places((_checked(f"ipc://{runtime}/sidecar/sidecar.sock" if runtime else _last_resort()),))


def absent(places: Places) -> Obstacle:
    """What to say when a pattern finds nothing."""
    return Obstacle(
        errno.ENOENT,
        f"no daemon at {places}: no such socket (ENOENT). "
        "Start it with `sidecar serve`, or name its endpoint in $SIDECAR_ENDPOINT",
        may_pass=True,
    )


def find_endpoint(given: str | None = None, *, environ: Mapping[str, str] | None = None) -> str:
    """The endpoint of a command that asks one daemon; clients use `find_places`, which knows of several.

    In this order: the one given, ``$SIDECAR_ENDPOINT``, ``/run/sidecar/sidecar.sock`` if it exists,
    ``$XDG_RUNTIME_DIR/sidecar/sidecar.sock``, ``/tmp/sidecar-$UID/sidecar.sock``. Never ``$RUNTIME_DIRECTORY``: in a
    bot's unit that is the bot's own.

    Args:
        given: ``ipc:///path`` or ``/path``.
        environ: `os.environ` by default.

    Raises:
        EndpointError: the endpoint is not an ipc path, longer than 107 bytes, or names several daemons.
    """
    environ = os.environ if environ is None else environ
    places = find_places(given, environ=environ)
    if places.single is not None:
        return places.single
    found = places.look()
    if len(found) != 1:
        several = ", ".join(found) or "none that is there"
        raise EndpointError(f"{places} names {several}: this asks one daemon, so name one")
    return found[0]


def control_endpoint(endpoint: str) -> str:
    """The operators' endpoint beside a bots' one: ``X.sock`` -> ``X.control.sock``."""
    path = socket_path(endpoint)
    return _checked(f"ipc://{path.removesuffix('.sock')}.control.sock")


def socket_path(endpoint: str) -> str:
    """The path of a checked endpoint."""
    return endpoint.removeprefix("ipc://")


def look(endpoint: str) -> Obstacle | None:
    """Look at the socket without connecting; None when nothing speaks against it.

    Two system calls where all is well. A missing socket may still appear (the daemon is starting); a forbidden one, a
    file that is no socket, or a folder under /tmp that belongs to somebody else will not mend itself.
    """
    path = socket_path(endpoint)
    folder = os.path.dirname(path)  # noqa: PTH120 - on the way of every call: no Path objects
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return Obstacle(
            errno.ENOENT,
            f"no daemon at {path}: no such socket (ENOENT). "
            "Start it with `sidecar serve`, or name its endpoint in $SIDECAR_ENDPOINT",
            may_pass=True,
        )
    except NotADirectoryError:
        return Obstacle(errno.ENOTDIR, f"{folder} is not a folder (ENOTDIR); mend the endpoint", may_pass=False)
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EPERM):
            return Obstacle(errno.EACCES, _forbidden(folder, f"folder {folder} may not be entered"), may_pass=False)
        return Obstacle(problem.errno or errno.EIO, f"cannot look at {path}: {problem.strerror}", may_pass=False)
    if not stat.S_ISSOCK(found.st_mode):
        return Obstacle(errno.ENOTSOCK, f"{path} is not a socket (ENOTSOCK); mend the endpoint", may_pass=False)
    if folder.startswith("/tmp/sidecar-"):  # noqa: S108 - the rule is about /tmp
        try:
            obstacle = _foreign(folder)
        except OSError as problem:  # it went since we looked
            return Obstacle(problem.errno or errno.EIO, f"cannot look at {folder}: {problem.strerror}", may_pass=True)
        if obstacle is not None:
            return obstacle
    if not os.access(path, os.W_OK, effective_ids=True):
        return Obstacle(errno.EACCES, _forbidden(path, f"socket {path} may not be written"), may_pass=False)
    return None


def _checked(endpoint: str) -> str:
    if endpoint.startswith("/"):
        endpoint = f"ipc://{endpoint}"
    path = endpoint.removeprefix("ipc://")
    if not endpoint.startswith("ipc:///") or "\0" in path:
        raise EndpointError(f"endpoint {endpoint!r} is not ipc:///PATH: the daemon is behind a socket file")
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise EndpointError(f"endpoint {endpoint!r}: the path is over {MAX_PATH_BYTES} bytes, the kernel's limit")
    return endpoint


def _last_resort() -> str:
    return f"ipc:///tmp/sidecar-{os.getuid()}/sidecar.sock"


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _matching(pattern: str) -> list[str]:
    """Paths that can be addresses. A folder that may not be read hides what is in it."""
    import glob  # noqa: PLC0415 - not for those who have one daemon

    found = glob.glob(pattern)  # noqa: PTH207 - a folder that may not be read is passed over, as glob does
    return [path for path in found if len(os.fsencode(path)) <= MAX_PATH_BYTES]


def _may_exist(path: str) -> bool:
    """False only when it is surely not there: a folder we may not enter is an answer for `look`, not a miss."""
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _foreign(folder: str) -> Obstacle | None:
    """The folder /tmp is everybody's: a folder made there by another user may hold an impostor."""
    found = os.lstat(folder)
    if stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), 0):
        return None
    what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else f"owned by uid {found.st_uid}"
    return Obstacle(
        errno.EPERM,
        f"folder {folder} is {what}, neither yours (uid {os.geteuid()}) nor root's: "
        "whoever made it could read your prompts. Remove it, or name the right endpoint",
        may_pass=False,
    )


def _forbidden(path: str, what: str) -> str:
    """EACCES in full: who may connect, who you are, what to do."""
    import grp  # noqa: PLC0415 - only for a message that is hardly ever written
    import pwd  # noqa: PLC0415

    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # it lies in a folder that may not be entered either, or went since we looked
        return f"{what} (EACCES), or one above it; you are uid {os.geteuid()}"
    owner: str = str(found.st_uid)
    group: str = str(found.st_gid)
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        pass
    mode = stat.filemode(found.st_mode)
    text = f"{what} (EACCES): it is {mode} of user {owner}, group {group}; you are uid {os.geteuid()}. "
    if found.st_mode & (stat.S_IWGRP | stat.S_IXGRP):
        return text + f"Join the group (`usermod -aG {group} USER`, then log in again)"
    return text + "Only that user may connect: set `group` under [frontend] in the daemon's configuration"
