"""Attacks of a hostile HTTP upstream at a running daemon, in their shortened form: all of them are borne."""

from __future__ import annotations

import re

from tests.end_to_end.hostile_server import ATTACKS
from tests.end_to_end.hostile_upstream import QUICK, make, markdown


def test_a_hostile_upstream_harms_nobody() -> None:
    """Each bot gets one terminal, in time, never another's; the bot at another upstream `done`; the daemon recovers."""
    rows = make(quick=True, every=len(QUICK), seconds=0.3, tell=lambda _: None)
    assert [f"{row.door}: {row.name}" for row in rows] == [name for name in _in_order() if name in QUICK]
    assert not [(row.name, row.seen, row.problems) for row in rows if not row.ok]
    page = markdown(rows, 1.0)
    assert "NOT BORNE" not in page
    assert all(line.count(" | ") == 5 for line in page.splitlines() if re.match(r"\| [^-]", line))


def _in_order() -> list[str]:
    return [f"{door}: {name}" for door, name in ATTACKS]
