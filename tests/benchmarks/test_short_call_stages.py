"""The path of a short call does not grow unseen: it is counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(__file__).with_name("short_call_stages.py")
#: dialect -> calls of Python functions, and of built-in ones, that one short call may take. Lower them with the path;
#: who raises them says in the commit what the call gets for it.
BUDGET = {"responses": (289, 207), "chat": (324, 223)}


def counted(dialect: str) -> dict[str, Any]:
    """In a process of its own: a profile function belongs to no test."""
    done = subprocess.run(
        [sys.executable, str(COMMAND), "--json", "--rounds", "1", "--dialect", dialect],
        capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("dialect", sorted(BUDGET))
def test_a_short_call_stays_within_its_budget(dialect: str) -> None:
    """From the prompt to the terminal, with its log line: so many calls in the interpreter, and no more."""
    found = counted(dialect)
    python, built_in = BUDGET[dialect]
    assert found["call"] <= python + 0.5
    assert found["c_call"] <= built_in + 0.5
    assert found["sum"] > 0


def test_the_count_is_the_same_in_every_run() -> None:
    """Else it could guard nothing."""
    one, other = counted("responses"), counted("responses")
    assert (one["call"], one["c_call"]) == (other["call"], other["c_call"])
