"""Secrets: where they lie, how they are read, and a type that never shows them.

Read from `$CREDENTIALS_DIRECTORY` (systemd), a file, the environment or a command; refused when anybody else could
have written or read them. What is wrong is said without a character of the secret.
"""

from __future__ import annotations

import hmac
import os
import re
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

import trio

from sidecar.config import CredentialSource
from sidecar.errors import CredentialError

MAX_BYTES: Final = 64 << 10
COMMAND_TIMEOUT: Final = 10.0
#: How often `changed` looks at a file, and how often it runs a command again, seconds.
FILE_INTERVAL: Final = 1.0
COMMAND_INTERVAL: Final = 300.0

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]+")


class Secret:
    """A string that is not shown: not by `repr`, `str`, `format`, msgspec, pickle or a comparison's timing."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself; call it where the header is written, and keep no copy."""
        return self._value

    def cut_from(self, text: str) -> str:
        """`text` without it: there are services that repeat the key that they refuse."""
        return text.replace(self._value, "[redacted]") if self._value else text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash in a dict's repr or order is one more place to leak from

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


class CredentialReader:
    """Reads one credential, as often as asked.

    Args:
        source: a name (a file `NAME` or `sidecar.NAME` in `$CREDENTIALS_DIRECTORY`) or a `CredentialSource`.
        environ: the process's environment.

    Resource handling: holds nothing open between reads.
    """

    def __init__(self, source: str | CredentialSource, *, environ: Mapping[str, str]) -> None:
        self._source, self._environ = source, environ

    def __repr__(self) -> str:
        return f"<CredentialReader {self._place()}>"

    def read(self) -> Secret:
        """The credential as it lies there now.

        A read of at most 64 KiB from a local file; not for a command, which takes time: `fetch` does both.

        Raises:
            CredentialError: missing, unreadable, readable or writable by others, not one printable line.
        """
        source = self._source
        if isinstance(source, str):
            return _from_file(self._named_file(source), self._place())
        if source.file is not None:
            return _from_file(Path(source.file), self._place())
        if source.env is not None:
            if source.env not in self._environ:
                raise CredentialError(f"{self._place()}: is not set")
            return _checked(self._environ[source.env].encode("utf-8", "surrogateescape"), self._place())
        raise CredentialError(f"{self._place()}: a command is run by fetch()")

    async def fetch(self) -> Secret:
        """As `read`, and a command is run: at most 10 s and 64 KiB, the first line of its output counts.

        Cancellation: a running command is killed with all that it started in its session.

        Raises:
            CredentialError: as `read`; or the command failed, was late or said too much.
        """
        if isinstance(self._source, CredentialSource) and self._source.command is not None:
            output = await _output_of(self._source.command, self._environ, self._place())
            return _checked(output.partition(b"\n")[0], self._place())
        await trio.lowlevel.checkpoint()
        return self.read()

    async def changed(self, known: Secret) -> Secret:
        """Wait until the source gives another secret than `known`, and return that.

        A file is looked at once a second by `stat` and read when that differs; a command is run every five minutes;
        the environment of a process does not change. What cannot be read is no new credential: waiting goes on, and
        whoever needs the reason calls `fetch`.
        """
        source = self._source
        if isinstance(source, CredentialSource) and source.env is not None:
            await trio.sleep_forever()
        command = isinstance(source, CredentialSource) and source.command is not None
        seen = None
        while True:
            status = self._status()
            if command or status != seen:
                seen = status
                try:
                    secret = await self.fetch()
                except CredentialError:
                    pass
                else:
                    if secret != known:
                        return secret
            await trio.sleep(COMMAND_INTERVAL if command else FILE_INTERVAL)

    def _place(self) -> str:
        source = self._source
        if isinstance(source, str):
            return f"credential {source!r}" if _NAME.fullmatch(source) else "credential"
        if source.file is not None:
            return f"credential file {source.file}"
        if source.env is not None:
            return f"credential in ${source.env}"
        return f"credential command {(source.command or ['?'])[0]}"

    def _named_file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise CredentialError("credential: not a name (letters, digits, _ . -)")
        folder = self._environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder:
            raise CredentialError(
                f"{self._place()}: $CREDENTIALS_DIRECTORY is not set (not started by systemd?). "
                'Write credential = { file = "..." } or { env = "..." } instead'
            )
        paths = [Path(folder, name), Path(folder, f"sidecar.{name}")]
        for path in paths:
            if os.path.lexists(path):
                return path
        raise CredentialError(f"{self._place()}: neither {paths[0]} nor {paths[1].name} beside it exists")

    def _status(self) -> tuple[int, ...] | None:
        """What changes when the file does; None when there is none."""
        try:
            source = self._source
            path = self._named_file(source) if isinstance(source, str) else Path(source.file or "")
            status = path.lstat()
        except (OSError, CredentialError):
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _from_file(path: Path, place: str) -> Secret:
    try:
        # O_NONBLOCK: a FIFO put there must not hang the daemon.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(path, flags)
    except ValueError:
        raise CredentialError(f"{place}: not a path") from None
    except OSError as error:
        symlink = " (a symbolic link is not followed: name the file itself)" if path.is_symlink() else ""
        raise CredentialError(f"{place}: cannot be opened: {error.strerror}{symlink}") from None
    try:
        status = os.fstat(descriptor)
        _refuse_exposed(status, place)
        payload = os.read(descriptor, MAX_BYTES + 1)
    except OSError as error:
        raise CredentialError(f"{place}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return _checked(payload, place)


def _refuse_exposed(status: os.stat_result, place: str) -> None:
    """Somebody else could have written it, or anybody could read it.

    Files of systemd pass: root's or our own, 0400 or 0440 (the group bits are the mask of their access list).
    """
    if not stat.S_ISREG(status.st_mode):
        raise CredentialError(f"{place}: is not a regular file")
    if status.st_uid not in {0, os.geteuid()}:
        raise CredentialError(f"{place}: belongs to uid {status.st_uid}, neither root nor this user. chown it")
    if status.st_mode & 0o022:
        raise CredentialError(f"{place}: others can write it (mode {stat.S_IMODE(status.st_mode):04o}). chmod 0600")
    if status.st_mode & 0o004:
        raise CredentialError(f"{place}: everybody can read it (mode {stat.S_IMODE(status.st_mode):04o}). chmod 0600")


def _checked(payload: bytes, place: str) -> Secret:
    if len(payload) > MAX_BYTES:
        raise CredentialError(f"{place}: larger than {MAX_BYTES >> 10} KiB")
    payload = payload.strip()
    if not payload:
        raise CredentialError(f"{place}: is empty")
    if not _PRINTABLE.fullmatch(payload):
        raise CredentialError(f"{place}: is not one line of printable ASCII without blanks")
    return Secret(payload.decode("ascii"))


async def _output_of(argv: list[str], environ: Mapping[str, str], place: str) -> bytes:
    try:
        process = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a failing program says may hold the secret
            env=dict(environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a command"
        raise CredentialError(f"{place}: cannot be run: {reason}") from None
    assert process.stdout is not None
    output = b""
    try:
        with trio.fail_after(COMMAND_TIMEOUT):
            while len(output) <= MAX_BYTES and (piece := await process.stdout.receive_some(MAX_BYTES)):
                output += piece
            if len(output) <= MAX_BYTES:
                await process.wait()
    except trio.TooSlowError:
        raise CredentialError(f"{place}: took longer than {COMMAND_TIMEOUT:g} s") from None
    finally:
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        with trio.CancelScope(shield=True):  # a killed process is reaped at once
            await process.wait()
            await process.stdout.aclose()
    if len(output) > MAX_BYTES:
        raise CredentialError(f"{place}: said more than {MAX_BYTES >> 10} KiB")
    if process.returncode != 0:
        raise CredentialError(f"{place}: ended with status {process.returncode}")
    return output
