"""What a halt file says: which lanes are stopped, and why. Pure: bytes in, lanes out, and the reverse.

Somebody who writes it by hand, in a hurry, must not be misunderstood in the dangerous direction: whatever cannot be
read as some lanes stops every lane. These are the ways to write it:

    (nothing)                                        every lane
    {"lanes": ["entry"], "reason": "bad prices"}     those; what `sidecar halt` writes
    entry, research                                  those; with commas, blanks or line breaks between
    reason: bad prices                               with lanes on other lines, or every lane

Lines that start with # are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from sidecar.core.admission import LANES
from sidecar.wire import Lane

EVERY_LANE: Final[frozenset[Lane]] = frozenset(LANES)
#: A halt file beyond this is not read: it stops every lane.
MAX_BYTES: Final = 4096
#: Characters of a reason that are kept.
MAX_REASON: Final = 200

_BETWEEN: Final = re.compile(r"[\s,;]+")


class Halt(Struct, frozen=True):
    """What is stopped. `reason` is one printable line for people, "" when none was given."""

    lanes: frozenset[Lane]
    reason: str = ""


def in_order(lanes: Iterable[Lane]) -> list[Lane]:
    """Lanes as people read them: exit, entry, research."""
    given = set(lanes)
    return [lane for lane in LANES if lane in given]


def reason_of(text: str) -> str:
    """One printable line of at most `MAX_REASON` characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 3] + "..."


def parse(content: bytes) -> Halt:
    """What a halt file with this content stops; never nothing."""
    if len(content) > MAX_BYTES:
        return Halt(EVERY_LANE, f"the halt file is longer than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return Halt(EVERY_LANE, "the halt file is not UTF-8")
    return _of_json(text) if text.startswith("{") else _of_lines(text)


def render(halt: Halt) -> bytes:
    """What `parse` reads back as the same."""
    return json.dumps({"lanes": in_order(halt.lanes), "reason": reason_of(halt.reason)}).encode() + b"\n"


def _of_json(text: str) -> Halt:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return Halt(EVERY_LANE, "the halt file starts like JSON and is none")
    given = fields.get("reason")
    reason = reason_of(given) if isinstance(given, str) else ""
    named = fields.get("lanes", [])
    lanes = frozenset(lane for lane in LANES if isinstance(named, list) and lane in named)
    # A name that is no lane was meant to be one: which, nobody knows.
    return Halt(lanes if lanes and len(lanes) == len(named) else EVERY_LANE, reason)


def _of_lines(text: str) -> Halt:
    words: list[str] = []
    reason = ""
    for line in text.splitlines():
        head, colon, rest = line.strip().partition(":")
        if head.startswith("#"):
            continue
        if colon and head.strip().lower() == "reason":
            reason = reason_of(rest)
        else:
            words += [word for word in _BETWEEN.split(line.lower()) if word]
    lanes = frozenset(lane for lane in LANES if lane in words)
    if not all(word in LANES for word in words):
        return Halt(EVERY_LANE, reason or reason_of(text))
    return Halt(lanes or EVERY_LANE, reason)
