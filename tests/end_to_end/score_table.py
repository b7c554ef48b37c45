"""The fault table as a page: what was played and how it went at a glance, then a table for each row."""

from __future__ import annotations

from sidecar import __version__
from tests.end_to_end.score_calls import ROWS
from tests.end_to_end.score_case import WAYS, Score
from tests.end_to_end.score_page import cell, machine

_LETTERS = {"responses": "r", "chat": "c", "messages": "m"}


def markdown(scores: list[Score], seconds: float) -> str:
    """The whole section."""
    wrong = sum(not score.ok for score in scores)
    verdict = "all of them passed" if not wrong else f"**{wrong} of them FAILED**"
    lines = [
        "Made by `python tests/end_to_end/scorecard.py --markdown docs/scorecard.md`; do not edit. A daemon, two",
        "simulators and two bots, over real sockets; a bot that goes on calling by another route must never notice.",
        f"Version {__version__}: {len(scores)} faults played in {seconds:.0f} s, {verdict}. {machine()}",
        "",
        "How many were played, by the way in which the daemon asks its targets, and in which dialects: **r**esponses,",
        "**c**hat, **m**essages. A dialect that is missing has no part in that fault.",
        "",
        *matrix(scores),
    ]
    for number in sorted({score.row for score in scores}):
        lines += ["", *_row(number, [score for score in scores if score.row == number])]
    return "\n".join(lines)


def matrix(scores: list[Score]) -> list[str]:
    """Rows and ways."""
    lines = [
        f"| row | fault | {' | '.join(way.title for way in WAYS.values())} | |",
        f"|---|---|{'---|' * len(WAYS)}---|",
    ]
    for number in sorted({score.row for score in scores}):
        of_row = [score for score in scores if score.row == number]
        cells = [_played([score for score in of_row if score.way == way]) for way in WAYS]
        verdict = "pass" if all(score.ok for score in of_row) else "**FAIL**"
        lines.append(f"| {number} | {cell(ROWS[number].fault)} | {' | '.join(cells)} | {verdict} |")
    totals = [_count([score for score in scores if score.way == way]) for way in WAYS]
    verdict = "pass" if all(score.ok for score in scores) else "**FAIL**"
    lines.append(f"| | all | {' | '.join(totals)} | {verdict} |")
    return lines


def _played(scores: list[Score]) -> str:
    if not scores:
        return "-"
    dialects = " ".join(letter for name, letter in _LETTERS.items() if any(one.dialect == name for one in scores))
    return f"{_count(scores)} · {dialects}"


def _count(scores: list[Score]) -> str:
    wrong = sum(not score.ok for score in scores)
    return f"{len(scores)}" if not wrong else f"**{wrong} of {len(scores)} FAIL**"


def _row(number: int, scores: list[Score]) -> list[str]:
    lines = [
        f"### {number}. {cell(ROWS[number].fault)}",
        "",
        f"Right: {ROWS[number].right}. *Attempts* are what the first and the second upstream counted.",
        "",
        "| way | dialect | | expected | seen | attempts | s | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for score in scores:
        verdict = "pass" if score.ok else f"**FAIL: {'; '.join(score.problems)}**"
        cells = (WAYS[score.way].title, score.dialect, score.variant, score.expected, score.seen, score.attempts)
        lines.append("| " + " | ".join(cell(str(c)) for c in (*cells, f"{score.seconds:.2f}", verdict)) + " |")
    return lines
