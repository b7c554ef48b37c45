"""Headers that we send: refused before dialling where a library would refuse them with the value in its error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sidecar.errors import ConnectFailed

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Names and values are such as HTTP allows.

    Raises:
        ConnectFailed: stage upgrade; names the header, and shows nothing of its value, perhaps a credential.
    """
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ConnectFailed("upgrade", f"header {name[:64]!r} has characters that HTTP does not allow")
