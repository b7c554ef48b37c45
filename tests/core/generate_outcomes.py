"""Write the table of docs/outcomes.md from `core.outcome.RULES`.

Run it from the root of the repository after every change of a rule::

    python tests/core/generate_outcomes.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sidecar.core.outcome import CANCELLED, DEADLINE, FIRST_DELTA_TIMEOUT, IDLE_TIMEOUT, RULES, SUCCESS

COMMAND: Final = "python tests/core/generate_outcomes.py"
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "outcomes.md"


def outcome_table() -> str:
    """The table as Markdown: a line for each rule, and for each outcome that is no fault of an upstream."""
    yes = {True: "yes", False: ""}
    lines = [
        "| what is seen | by | kind | code | while nothing is committed | counted | bot may retry | connection |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        keys = [f"HTTP {', '.join(map(str, rule.statuses))}"] if rule.statuses else []
        keys += [f"close {', '.join(map(str, rule.closes))}"] if rule.closes else []
        keys += [f"`{code}`" for code in (*rule.codes, *rule.generic)]
        lines.append(
            f"| {rule.seen} | {'; '.join(keys)} | {rule.kind.value} | {rule.code} | {rule.retry} "
            f"| {yes[rule.counted]} | {yes[rule.retryable]} | {'retired' if rule.retire else 'stays'} |"
        )
    lines += [
        f"| {outcome.message} |  | {outcome.kind.value} | {outcome.code} | {outcome.retry} "
        f"| {yes[outcome.counts_against_breaker]} | {yes[outcome.retryable]} "
        f"| {'retired' if outcome.retire_connection else 'stays'} |"
        for outcome in (SUCCESS, FIRST_DELTA_TIMEOUT, IDLE_TIMEOUT, DEADLINE, CANCELLED)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table at the end of the document."""
    prose, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("\n| ")
    DOCUMENT.write_text(f"{prose}\n{outcome_table()}", encoding="utf-8")
    print("wrote docs/outcomes.md")


if __name__ == "__main__":
    main()
