"""docs/scorecard.md: one page, a section for each of the programs that write it."""

from __future__ import annotations

import os
from pathlib import Path

TITLES = ("The fault table", "Killed in the middle")
_HEAD = "# Scorecard: when things fail"


def put_section(page: Path, title: str, body: str) -> None:
    """Write `body` under ``## title``, leaving the other sections as they are."""
    sections: dict[str, str] = {}
    if page.exists():
        for part in page.read_text(encoding="utf-8").split("\n## ")[1:]:
            name, _, text = part.partition("\n")
            sections[name] = text.strip()
    sections[title] = body.strip()
    kept = [f"## {name}\n\n{sections[name]}" for name in TITLES if name in sections]
    page.write_text("\n\n".join([_HEAD, *kept]) + "\n", encoding="utf-8")


def cell(text: str) -> str:
    """One cell of a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def machine() -> str:
    """On what a table was made."""
    return f"A machine of {os.cpu_count()} cores, its load average {os.getloadavg()[1]:.1f} with all else that ran."
