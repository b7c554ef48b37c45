"""kill -9 in the middle of streams, in the small: every surviving bot is told the end of each of its streams."""

from __future__ import annotations

import pytest

from tests.end_to_end.kills import KILLS, line, markdown, play
from tests.end_to_end.score_page import put_section


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", list(KILLS))
def test_nobody_is_left_without_a_terminal(killed: str) -> None:
    """Torn streams are told as torn, with the words that came; the others are whole; afterwards all is well."""
    (fall,) = play(quick=True, kills=(killed,))
    assert fall.ok, line(fall)
    assert sum(fall.outcomes.values()) == fall.streams * (fall.bots - (killed == "bot"))
    assert f"| {killed} |" in markdown([fall], 1.0)


def test_a_page_keeps_the_sections_of_others(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Each program replaces its own section, in the order of the page, and no other's."""
    page = tmp_path / "page.md"
    put_section(page, "Killed in the middle", "old")
    put_section(page, "The fault table", "| a |")
    put_section(page, "Killed in the middle", "new")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "old" not in text
    assert text.index("| a |") < text.index("new")
