"""The halt file's content: what stops which lanes, and that nothing unreadable stops fewer than all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.halt import EVERY_LANE, MAX_BYTES, MAX_REASON, Halt, in_order, parse, reason_of, render


@pytest.mark.parametrize(
    ("content", "lanes", "reason"),
    [
        (b"", "exit entry research", ""),
        (b" \n\n", "exit entry research", ""),
        (b"entry\n", "entry", ""),
        (b"entry, research", "entry research", ""),
        (b"\xef\xbb\xbfentry;Research", "entry research", ""),
        (b"research\r\nreason: bad prices\r\n", "research", "bad prices"),
        (b"# by hand\n  # again\nresearch\nentry\n", "entry research", ""),
        (b"reason: bad: prices", "exit entry research", "bad: prices"),
        (b'{"lanes": ["entry"], "reason": "bad prices"}', "entry", "bad prices"),
        (b'{"lanes": ["entry", "exit"]}\n', "exit entry", ""),
        (b'{"lanes": []}', "exit entry research", ""),
        (b'{"reason": "x"}', "exit entry research", "x"),
    ],
)
def test_ways_to_write_it(content: bytes, lanes: str, reason: str) -> None:
    """By hand, by `touch`, and as the command writes it."""
    assert parse(content) == Halt(frozenset(lanes.split()), reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        b"entri\n",
        b"entry\nreserch\n",
        b"everything, now",
        b"entry # but not exit",
        b"lanes: entry",
        b"\xff\xfe",
        b"entry\x00",
        b"{",
        b'{"lanes": ["entry", "entri"]}',
        b'{"lanes": ["entry", 7]}',
        b'{"lanes": ["entry", "entry"]}',
        b'{"lanes": "entry"}',
        b'{"lanes": {"entry": true}}',
        b'{"lanes": ["entry"]} x',
        b'{"lanes": ' + b"[" * 3000,
        b"entry\n" * MAX_BYTES,
    ],
)
def test_what_cannot_be_read_stops_every_lane(content: bytes) -> None:
    """A misspelt lane is a lane that was to be stopped, and nobody knows which."""
    assert parse(content).lanes == EVERY_LANE


@given(st.binary(max_size=300))
def test_anything_stops_something(content: bytes) -> None:
    """Never nothing, and the reason is a printable line."""
    halt = parse(content)
    assert halt.lanes
    assert halt.lanes <= EVERY_LANE
    assert halt.reason == "" or halt.reason.isprintable()
    assert len(halt.reason) <= MAX_REASON


@given(st.sets(st.sampled_from(sorted(EVERY_LANE)), min_size=1), st.text(max_size=400))
def test_what_is_written_is_read(lanes: set[str], reason: str) -> None:
    """The command's own form, whatever the reason holds."""
    halt = Halt(frozenset(lanes), reason_of(reason))  # type: ignore[arg-type]
    assert parse(render(halt)) == halt
    assert render(halt).endswith(b"}\n")
    assert json.loads(render(halt))["lanes"] == in_order(halt.lanes)
