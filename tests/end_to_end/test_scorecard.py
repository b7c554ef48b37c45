"""The scorecard of faults, a few of its rows in their quick form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.score_bot import Told, unanswered
from tests.end_to_end.score_case import Score
from tests.end_to_end.score_outages import most_at_once, spans
from tests.end_to_end.scorecard import ROWS, line, markdown, play

TABLE = Path(__file__).parents[2] / "docs" / "scorecard.md"


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("row", "ways"),
    [
        *[(row, ("websocket", "http1", "http2")) for row in (3, 8, 10, 21)],
        (14, ("websocket", "http2")),
        (16, ("http1", "http2")),
    ],
)
def test_a_fault_ends_as_promised(row: int, ways: tuple[str, ...]) -> None:
    """Rescued where a second target exists, a clean error where not, never a truncated success, no hammer."""
    scores = play([row], ways=ways, quick=True, tell=lambda _: None)
    assert {score.way for score in scores} == set(ways)
    assert not [line(score) for score in scores if not score.ok]
    assert all(score.seen and score.attempts for score in scores)


def test_all_rows_of_the_fault_table_are_played() -> None:
    """One to twenty-four, each with its fault's name; the table in docs/ has every one of them."""
    assert sorted(ROWS) == list(range(1, 25))
    assert len({row.fault for row in ROWS.values()}) == len({row.right for row in ROWS.values()}) == 24
    page = TABLE.read_text(encoding="utf-8")
    matrix = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    assert [int(number) for number, *_ in matrix] == sorted(ROWS)
    assert all(cell != "-" for _, *cells in matrix for cell in cells)
    assert [int(number) for number in re.findall(r"^### (\d+)\.", page, re.MULTILINE)] == sorted(ROWS)


def test_a_failure_shows() -> None:
    """What went wrong stands in the line for people and in the table, and a `|` in it breaks no column."""
    score = Score(8, "cut", "EOF", "failed", seen="done | stop", attempts="1 + 0", problems=["done with another text"])
    assert not score.ok
    assert line(score).startswith("FAIL  8 cut [WebSocket, responses, EOF]")
    assert "another text" in line(score)
    page = markdown([score, Score(8, "cut", "RST", "failed", way="http2", dialect="chat")], 1.0).splitlines()
    assert "| 8 | cut after 40 of 60 tokens | **1 of 1 FAIL** · r | - | 1 · c | **FAIL** |" in page
    row = page[-2]
    assert "**FAIL: done with another text**" in row
    assert len(re.split(r"(?<!\\)\|", row)) == 10


def told(*messages: dict[str, Any], stream: bool = True, at: float = 101.0) -> Told:
    """A call of three words, sent at 100 with 3 s, and what came."""
    call = Told("c", 3, 3.0, stream, 100.0)
    for message in messages:
        call.hear(message, at)
    return call


def delta(seq: int, text: str) -> dict[str, Any]:
    """A piece."""
    return {"type": "delta", "seq": seq, "text": text}


def done(**fields: Any) -> dict[str, Any]:
    """The end of a whole answer in two pieces."""
    return {"type": "done", "finish": "stop", "deltas": 2, "upstream": "one", "attempts": 1, **fields}


def failed(code: str = "upstream_lost", **fields: Any) -> dict[str, Any]:
    """The end of an accepted call that was lost."""
    said = {"code": code, "message": "lost", "partial": False, "retryable": True, "call_id": "1"}
    return {"type": "failed", **said, **fields}


WHOLE = (delta(0, "c.0 c.1"), delta(1, " c.2"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (told(), "no terminal"),
        (told(WHOLE[0], done(deltas=1)), "another text"),
        (told(delta(0, "c.0"), delta(1, " c.2"), done()), "another text"),
        (told(*WHOLE, delta(2, " d.0"), done(deltas=3)), "another text"),
        (told(delta(0, "c.0 c.1"), delta(2, " c.2"), done()), "delta 2 in place of 1"),
        (told(*WHOLE, done(deltas=3)), "3 deltas, 2 came"),
        (told(*WHOLE, done(), done()), "done after the terminal"),
        (told(*WHOLE, done(), delta(2, " c.3")), "delta after the terminal"),
        (told(*WHOLE, done(), at=103.3), "after the deadline"),
        (told(done(text="c.0 c.1"), stream=False), "another text"),
        (told(WHOLE[0], failed()), "partial is False after 1 deltas"),
        (told(failed(partial=True)), "partial is True after 0 deltas"),
        (told(delta(0, "d.0"), failed(partial=True)), "no beginning of the answer"),
        (told(failed("internal")), "internal"),
        (told(failed("deadline_exceeded"), at=102.9), "before the deadline"),
        (told(failed(retryable=None)), "retryable is not a bool"),
    ],
)
def test_what_breaks_a_promise_is_found(call: Told, words: str) -> None:
    """A truncated success, a hole, words of another call, a second terminal, lateness: each is a problem."""
    assert any(words in problem for problem in call.problems()), call.problems()


@pytest.mark.parametrize(
    "call",
    [
        told(*WHOLE, done()),
        told(delta(0, "c.0"), {"type": "restarted"}, *WHOLE, done()),
        told(done(text="c.0 c.1 c.2"), stream=False),
        told(WHOLE[0], failed(partial=True)),
        told(failed("deadline_exceeded"), at=103.1),
        told({"type": "failed", "code": "overloaded", "message": "", "retryable": True}),
    ],
)
def test_what_keeps_the_promises_is_no_problem(call: Told) -> None:
    """Whole answers, restarts, honest failures, refusals."""
    assert call.problems() == []


def test_trials_at_once_are_counted_by_what_the_upstream_saw() -> None:
    """Calls that overlap are two at once, those that follow one another are not; one that never ended goes on."""
    notes = [
        {"event": "call", "number": 1, "at_us": 0},
        {"event": "finished", "number": 1, "at_us": 10},
        {"event": "call", "number": 2, "at_us": 10},
        {"event": "cut", "number": 2, "at_us": 20},
    ]
    assert most_at_once(spans(notes)) == 1
    assert most_at_once(spans([*notes, {"event": "call", "number": 3, "at_us": 5}])) == 2
    assert spans(notes) == [(0, 10), (10, 20)]


def test_a_call_that_was_not_answered_is_shown() -> None:
    """When it was sent, what was said of it."""
    text = unanswered([told(*WHOLE, done()), told(failed(attempts=3, phase="queue"))], 99.0)
    assert text.startswith("1 calls were not answered: c sent at 1.00 s: upstream_lost")
    assert "phase queue, 3 attempts: lost" in text
