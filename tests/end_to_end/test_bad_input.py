"""The table of bad input, in its shortened form: every answer is one of those documented, and nobody else is harmed."""

from __future__ import annotations

import pytest

from tests.end_to_end.bad_input import BORDERS, make, markdown


@pytest.mark.parametrize("border", BORDERS)
def test_bad_input_is_answered_as_documented(border: str) -> None:
    """What is tried at this border gets a documented answer; the bot beside it ends `done`; the daemon lives on."""
    rows = make(quick=True, borders=(border,), tell=lambda _: None)
    assert len(rows) >= 3
    assert {row.border for row in rows} == {border}
    assert not [(row.tried, row.answered, row.problems) for row in rows if not row.ok]
    table = markdown(rows, 1.0)
    assert "WRONG" not in table
    assert all(line.count(" | ") == 3 for line in table.splitlines() if line.startswith("| ") and "---" not in line)
