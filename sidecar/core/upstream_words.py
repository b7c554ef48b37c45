"""An upstream's own words for what went wrong, spelled as the table of `core.classifier` has it. Any input will do."""

from __future__ import annotations

import re
from typing import Any

import msgspec


def key(code: str | None) -> str:
    """A code as the table spells it: `DeploymentNotFound` and `deployment-not-found` are `deployment_not_found`.

    An acronym is a word: `AIPolicy` is `ai_policy`.
    """
    if not code:
        return ""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", code[:128])
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def number(code: str | None) -> int | None:
    """The HTTP status that some gateways put into `code`, as a string ("401"); None when it is none."""
    return int(code) if code and len(code) == 3 and code.isascii() and code.isdecimal() else None


def body_words(body: bytes) -> tuple[str | None, str]:
    """The upstream's code (or type) and message in a refusal's body; (None, "") when it is not ours to read."""
    try:
        said: Any = msgspec.json.decode(body[:4096])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, ""
    if isinstance(said, dict) and isinstance(said.get("error"), dict):
        said = said["error"]
    if not isinstance(said, dict):
        return None, ""
    words = [said[name] for name in ("code", "type") if isinstance(said.get(name), str) and said[name]]
    message = said.get("message")
    return (words[0] if words else None), (message if isinstance(message, str) else "")
