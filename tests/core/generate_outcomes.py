"""Write the table of docs/outcomes.md from `core.classifier.RULES` and `core.outcome.OWN`.

Run it from the root of the repository after every change of a rule::

    python tests/core/generate_outcomes.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sidecar.core.classifier import RULES, Rule
from sidecar.core.outcome import OWN, Outcome

COMMAND: Final = "python tests/core/generate_outcomes.py"
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "outcomes.md"
HEADINGS: Final = (
    "what is seen",
    "by",
    "kind",
    "code",
    "while nothing is committed",
    "counted",
    "overload",
    "paces",
    "bot may retry",
    "connection",
)


def outcome_table() -> str:
    """The table as Markdown: a line for each rule, and for each outcome that is no fault of an upstream."""
    lines = [
        f"| {' | '.join(HEADINGS)} |",
        "|---" * len(HEADINGS) + "|",
    ]
    for rule in RULES:
        keys = [f"HTTP {', '.join(map(str, rule.statuses))}"] if rule.statuses else []
        keys += [f"close {', '.join(map(str, rule.closes))}"] if rule.closes else []
        keys += [f"`{code}`" for code in (*rule.codes, *rule.generic)]
        lines.append(_line(rule.seen, "; ".join(keys), rule, counted=rule.counted, retired=rule.retire))
    lines += [
        _line(seen, "", outcome, counted=outcome.counts_against_breaker, retired=outcome.retire_connection)
        for seen, outcome in OWN
    ]
    return "\n".join(lines) + "\n"


def _line(seen: str, by: str, meaning: Rule | Outcome, *, counted: bool, retired: bool) -> str:
    yes = {True: "yes", False: ""}
    return (
        f"| {seen} | {by} | {meaning.kind.value} | {meaning.code} | {meaning.retry} | {yes[counted]} "
        f"| {yes[meaning.overload]} | {yes[meaning.throttles]} | {yes[meaning.retryable]} "
        f"| {'retired' if retired else 'stays'} |"
    )


def main() -> None:
    """Replace the table at the end of the document."""
    prose, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("\n| ")
    DOCUMENT.write_text(f"{prose}\n{outcome_table()}", encoding="utf-8")
    print("wrote docs/outcomes.md")


if __name__ == "__main__":
    main()
