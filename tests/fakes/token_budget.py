"""What the path of a token may cost: the committed counts, and what is to be said of others.

The counts are exact and the same on CPython 3.11 to 3.13, so they are compared exactly: with room to spare, a path
grows unseen, one call at a time. A shorter path is to be written down for the same reason.
`python tests/benchmarks/guard.py --write` writes what is measured; the difference goes through review.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from tests.fakes.token_path import Counts

FILE: Final = Path(__file__).with_name("token_budget.json")
#: Share by which held bytes may differ: objects have other sizes in other versions of Python.
BYTES_SLACK: Final = 0.05
#: Blocks per token that are no leak: one object in ten tokens is.
BLOCKS_SLACK: Final = 0.1


def load() -> dict[str, Counts]:
    """Way -> its budget."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Counts])


def save(found: dict[str, Counts]) -> None:
    """Make these the budget."""
    agreed = {
        way: msgspec.structs.replace(
            counts, held_bytes=counts.held_bytes and float(round(counts.held_bytes)), left_blocks=0.0
        )
        for way, counts in found.items()
    }
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(agreed), indent=1) + b"\n")


def complaints(found: Counts, budget: Counts) -> list[str]:
    """What to say of a path; nothing when it costs what was agreed on."""
    said = []
    for kind, now, then in (("Python", found.python, budget.python), ("C", found.c, budget.c)):
        if now > then:
            said.append(f"{now:g} {kind} calls per token, {then:g} were agreed on")
        elif now < then:
            said.append(
                f"{now:g} {kind} calls per token instead of {then:g}: shorter; write it down (guard.py --write)"
            )
    agreed = budget.held_bytes
    if found.held_bytes is not None and agreed is not None and found.held_bytes > agreed * (1 + BYTES_SLACK):
        said.append(f"{found.held_bytes:g} bytes held per token, {agreed:g} were agreed on")
    if found.left_blocks > BLOCKS_SLACK:
        said.append(f"{found.left_blocks:g} blocks of memory per token are not given back")
    if said:
        names = sorted(found.made_of.keys() | budget.made_of.keys())
        for name in names:
            now, then = found.made_of.get(name, 0), budget.made_of.get(name, 0)
            if now != then:
                said.append(f"  {name}: {now:g}, was {then:g}")
    return said
