"""Compiles a yardstick once: the binary stands in a cache folder under a name that holds the hash of its source.

These are measuring tools in C, no part of the product. They need `cc`; `upstream` speaks TLS when OpenSSL's headers are
there, `relay` needs libzmq's. What is missing is said by `Missing`, in words for the person at the keyboard.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
_TLS: Final = ("-DWITH_TLS", "-lssl", "-lcrypto")
#: Per yardstick: what it is linked with, and what to install where that fails.
_LINKED: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "upstream": (("-lm",), "a C library with its headers (Debian: libc6-dev)"),
    "relay": (("-lzmq",), "libzmq's headers (Debian: libzmq3-dev)"),
}


class Missing(RuntimeError):
    """A yardstick cannot be built here; the message says what to install."""


def cache() -> Path:
    """``$XDG_CACHE_HOME/sidecar-yardsticks``, or in ``~/.cache``; made if need be."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    folder = Path(home) / "sidecar-yardsticks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def compiler() -> list[str]:
    """``$CC``, or `cc`.

    Raises:
        Missing: there is none.
    """
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise Missing(f"no C compiler: {command[0]!r} is not on the PATH (Debian: apt-get install gcc libc6-dev)")
    return command


def build(name: str, *, tls: bool = False) -> Path:
    """The executable of `name`.c, compiled now or found in the cache.

    Args:
        name: `upstream` or `relay`.
        tls: it must speak TLS. Without, `upstream` does if it can.

    Raises:
        Missing: no compiler, or no headers; what the compiler said is in the message.
    """
    linked, needs = _LINKED[name]
    if name == "upstream":
        try:
            return _compiled(name, (*_TLS, *linked), "OpenSSL's headers (Debian: libssl-dev)")
        except Missing:
            if tls:
                raise
    elif tls:
        raise Missing(f"{name} has no TLS")
    return _compiled(name, linked, needs)


def _compiled(name: str, linked: Sequence[str], needs: str) -> Path:
    source = HERE / f"{name}.c"
    command = [*compiler(), *_FLAGS, *shlex.split(os.environ.get("CFLAGS", ""))]
    libraries = [*linked, *shlex.split(os.environ.get("LDFLAGS", ""))]
    named = "\0".join([*command, *libraries]).encode()
    found = cache() / f"{name}-{hashlib.sha256(source.read_bytes() + named).hexdigest()[:20]}"
    if found.exists():
        return found
    with tempfile.TemporaryDirectory(dir=found.parent) as folder:
        made = Path(folder) / name
        done = subprocess.run(
            [*command, "-o", str(made), str(source), *libraries], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Missing(f"{name}.c does not compile; it needs {needs}. The compiler said:\n{done.stderr[-2000:]}")
        made.replace(found)
    return found
