"""From a path to the raw tables of the configuration: bytes, TOML, and the values that no table may hold."""

from __future__ import annotations

import math
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from sidecar.errors import ConfigurationError

#: Where the file lies when no flag says otherwise.
DEFAULT_PATH: Final = Path("/etc/sidecar/sidecar.toml")

#: The least that works; shown when there is no file.
EXAMPLE: Final = """\
[[upstream]]
name = "openai"
url = "wss://api.openai.com/v1/responses"
dialect = "responses"
preset = "openai"
credential = "openai"     # a file `openai` in $CREDENTIALS_DIRECTORY; or { file = "..." }, { env = "..." }

[[route]]
name = "default"
targets = [ { upstream = "openai", model = "gpt-5-mini" } ]
"""

#: A configuration beyond this is a mistake (a log, a core, /dev/zero), not a configuration.
MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32

#: What vendors' keys look like, and bearer tokens. Long enough that no model's or group's name is taken for one.
_SECRET: Final = re.compile(
    r"\b(?:sk|rk|pk|xai|gsk|vck|ghp|hf)[-_](?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{16,}|\bAIza[0-9A-Za-z_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}|-----BEGIN [A-Z ]*PRIVATE KEY|\bBearer\s+\S{8,}",
    re.IGNORECASE,
)
_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def looks_like_secret(text: str) -> bool:
    """`text` holds something of the shape of an API key, a bearer token or a private key."""
    return _SECRET.search(text) is not None


def scrub(text: str) -> str:
    """`text` with everything of the shape of a secret replaced; for words of others that go into a log."""
    return _SECRET.sub("[redacted]", text)


def path_of(path: Path | None, instance: str | None) -> Path:
    """The file of one daemon: INSTANCE.toml beside the shared file if there is one, else the shared file.

    Args:
        path: the shared file; None for `DEFAULT_PATH`.
        instance: which of several daemons; None where there is one.

    Raises:
        ConfigurationError: not a name for an instance.
    """
    shared = path if path is not None else DEFAULT_PATH
    if instance is None:
        return shared
    if not _INSTANCE.fullmatch(instance):
        raise ConfigurationError(
            f"{instance[:40]!r} cannot name an instance",
            where="--instance",
            mend="Letters, digits, `_`, `.` and `-`, at most 32, a letter or digit first",
        )
    own = shared.with_name(f"{instance}.toml")
    # lexists: a dangling link or a file that may not be read is a mistake to be told, not a reason for another file.
    return own if os.path.lexists(own) else shared


def read(path: Path) -> dict[str, Any]:
    """The tables of the file.

    Raises:
        ConfigurationError: no file, not a regular file, not readable, too large, not UTF-8, not TOML.
    """
    text = _text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        mend = "A key or table is written twice?" if "overwrite" in str(error) or "twice" in str(error) else ""
        raise ConfigurationError(f"not valid TOML: {_quietly(error)}", where=str(path), mend=mend) from None
    except RecursionError:
        raise ConfigurationError("nested too deeply", where=str(path)) from None
    except ValueError as error:  # a number of 5,000 digits
        raise ConfigurationError(f"not valid TOML: {_quietly(error)}", where=str(path)) from None


def _quietly(error: Exception) -> str:
    return scrub(str(error))[:200]


def _text(path: Path) -> str:
    try:
        # O_NONBLOCK: a FIFO must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise ConfigurationError(
            "no configuration file",
            where=str(path),
            mend=f"Write this to {DEFAULT_PATH} (or name another file with -c), then put the key where `credential` "
            f"says:\n\n{EXAMPLE}",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot be opened: {_reason(error)}", where=str(path)) from None
    try:
        _refuse_unfit_file(os.fstat(descriptor), path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            payload = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {_reason(error)}", where=str(path)) from None
    finally:
        os.close(descriptor)
    if len(payload) > MAX_BYTES:
        raise ConfigurationError(f"larger than {MAX_BYTES >> 20} MiB", where=str(path), mend="Is it the right file?")
    if payload.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ConfigurationError("starts with a byte order mark", where=str(path), mend="Save it as UTF-8 without BOM")
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"not UTF-8 (line {line})", where=str(path), mend="Save it as UTF-8") from None


def _refuse_unfit_file(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ConfigurationError("is a directory", where=str(path), mend=f"Name the file: {path / 'sidecar.toml'}")
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError("is not a regular file", where=str(path))
    if status.st_mode & 0o002:  # it can name commands to run
        raise ConfigurationError("everybody can write it", where=str(path), mend=f"chmod o-w {path}")


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "not a path"


def refuse_unfit_values(raw: Any, *, where: str) -> None:
    """Refuse what no key may hold: secrets, control characters, dates, infinities, bottomless nesting.

    Control characters are allowed in a target's `options`, which go to the upstream as JSON.

    Raises:
        ConfigurationError: names the key path, and shows nothing of a secret.
    """
    stack: list[tuple[str, Any, int]] = [("", raw, 0)]
    while stack:
        at, value, depth = stack.pop()
        place = f"{where}: {at}" if at else where
        if depth > MAX_DEPTH:
            raise ConfigurationError("nested too deeply", where=f"{where}: {at[:80]}")
        if isinstance(value, dict):
            for key, item in value.items():
                if looks_like_secret(key):
                    raise _secret_found(place)
                stack.append((f"{at}.{key}" if at else key, item, depth + 1))
        elif isinstance(value, list):
            stack.extend((f"{at}[{index}]", item, depth + 1) for index, item in enumerate(value))
        elif isinstance(value, str):
            if looks_like_secret(value):
                raise _secret_found(place)
            if _CONTROL.search(value) and ".options." not in at:
                raise ConfigurationError("holds a control character or line break", where=place)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ConfigurationError("is not a finite number", where=place)
        elif not isinstance(value, (int, bool)):
            raise ConfigurationError("dates and times mean nothing here", where=place, mend="Write it in quotes")


def _secret_found(place: str) -> ConfigurationError:
    return ConfigurationError(
        "looks like a secret, and secrets never stand in this file",
        where=place,
        mend="Put it into a file of its own that only the daemon's user can read, name that with `credential`, "
        "and replace the key: it has been written down",
    )


def anchor_paths(raw: dict[str, Any], folder: Path) -> None:
    """Make relative file names absolute, as seen from the configuration's own folder.

    The working directory of a daemon is nobody's choice, so it decides nothing.
    """
    frontend = raw.get("frontend")
    if isinstance(frontend, dict) and isinstance(halt := frontend.get("halt_file"), str) and halt:
        frontend["halt_file"] = str(folder / halt) + ("/" if halt.endswith("/") else "")
    upstreams = raw.get("upstream")
    for upstream in upstreams if isinstance(upstreams, list) else []:
        if not isinstance(upstream, dict):
            continue
        for table, keys in (("tls", ("ca_file", "certificate_file", "key_file")), ("credential", ("file",))):
            section: Any = upstream.get(table)
            if isinstance(section, dict):
                named = {key: section[key] for key in keys if isinstance(section.get(key), str) and section[key]}
                section.update({key: str(folder / value) for key, value in named.items()})
