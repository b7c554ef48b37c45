"""The path of a token costs what was agreed on: a call more per token is a decision, and shows here."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from sidecar.service.attempt import Attempt
from sidecar.service.reply import BotReply
from tests.fakes import token_budget
from tests.fakes.token_path import WAYS, Counts, count, count_way

#: The counts are what the interpreter reports; others may report differently.
KNOWN = sys.implementation.name == "cpython" and (3, 11) <= sys.version_info < (3, 14)
pytestmark = pytest.mark.skipif(not KNOWN, reason="the budget was counted on CPython 3.11 to 3.13")


@pytest.mark.parametrize("way", WAYS)
def test_a_token_costs_what_was_agreed_on(way: str) -> None:
    """Python calls and C calls exactly, bytes held within 5 %, nothing kept, on this way."""
    complaints = token_budget.complaints(count_way(way), token_budget.load()[way])
    assert not complaints, "\n".join(complaints)


def test_the_budget_names_every_way_and_no_other() -> None:
    """A way that was added or renamed has its row."""
    assert set(token_budget.load()) == set(WAYS)


def test_one_python_call_more_per_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """And named, with how often it was and is called."""
    original = Attempt.on_content

    def longer(self: Attempt, text: str, now: float) -> None:
        original(self, text, now)

    monkeypatch.setattr(Attempt, "on_content", longer)
    budget = token_budget.load()["responses one"]
    complaints = token_budget.complaints(count("responses", "one", tls=False), budget)
    assert complaints[0] == f"{budget.python + 1:g} Python calls per token, {budget.python:g} were agreed on"
    assert any("longer: 1, was 0" in complaint for complaint in complaints)


def test_one_c_call_more_per_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Python call is."""
    original = BotReply.text

    def longer(self: BotReply, piece: str) -> None:
        original(self, str.upper(piece))

    monkeypatch.setattr(BotReply, "text", longer)
    budget = token_budget.load()["responses one"]
    complaints = token_budget.complaints(count("responses", "one", tls=False), budget)
    assert f"{budget.c + 1:g} C calls per token, {budget.c:g} were agreed on" in complaints


def test_what_a_token_leaves_behind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object kept per token is a leak, whatever it costs in calls."""
    original, kept = BotReply.text, []

    def keeping(self: BotReply, piece: str) -> None:
        kept.append((piece, [piece]))
        original(self, piece)

    monkeypatch.setattr(BotReply, "text", keeping)
    found = count("responses", "one", tls=False)
    assert any("not given back" in complaint for complaint in token_budget.complaints(found, found))


@pytest.mark.parametrize("kind", ["python", "c"])
def test_a_shorter_path_is_to_be_written_down(kind: str) -> None:
    """Else it could grow back unseen."""
    budget = Counts(python=3, c=5, held_bytes=300, left_blocks=0, made_of={})
    fields: dict[str, Any] = {kind: getattr(budget, kind) - 1}
    (complaint,) = token_budget.complaints(msgspec.structs.replace(budget, **fields), budget)
    assert "write it down" in complaint


def test_bytes_have_some_room_and_no_more() -> None:
    """Objects differ in size between versions; a field more per token is a finding."""
    budget = Counts(python=3, c=5, held_bytes=300, left_blocks=0, made_of={})
    assert not token_budget.complaints(msgspec.structs.replace(budget, held_bytes=310.0), budget)
    assert token_budget.complaints(msgspec.structs.replace(budget, held_bytes=330.0), budget)
