"""Transition tables: known rows step, anything else raises and changes nothing."""

import re
from pathlib import Path

import pytest

from sidecar.core import backoff, breaker, pool_policy
from sidecar.core.transitions import IllegalTransition, Table

TABLE = Table("door", {("shut", "open"): "ajar", ("ajar", "close"): "shut"})


def test_a_known_row_steps():
    """(state, event) gives the state after it."""
    assert TABLE.after("shut", "open") == "ajar"


def test_an_unknown_row_raises():
    """The message names what, the event and the state."""
    with pytest.raises(IllegalTransition, match="door: 'open' in state 'ajar'"):
        TABLE.after("ajar", "open")


def test_it_prints_as_markdown():
    """One line per row, for the documentation."""
    assert TABLE.markdown().splitlines()[2:] == ["| shut | open | ajar |", "| ajar | close | shut |"]
    assert repr(TABLE) == "<Table door rows=2>"


@pytest.mark.parametrize(
    ("module", "table"),
    [
        (breaker, breaker.TRANSITIONS),
        (backoff, backoff.TRANSITIONS),
        (pool_policy, pool_policy.CONNECTION),
    ],
)
def test_the_table_stands_at_the_head_of_the_file(module, table):
    """Every event and state of a table is named in its module's docstring."""
    head = Path(module.__file__).read_text().split('"""')[1]
    for line in table.markdown().splitlines()[2:]:
        for word in re.findall(r"\w+", line):
            assert word in head, word
