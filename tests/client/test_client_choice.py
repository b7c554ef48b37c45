"""What counts as a choice, without a daemon."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.client.answers import Answer, Choice, Choices
from sidecar.errors import CallFailed, SidecarError
from sidecar.wire import Timing, Usage

SIDES = Choices(["BUY", "SELL", "HOLD"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("BUY", "BUY"),
        ("buy", "BUY"),
        ("BUY.", "BUY"),
        (" SELL\n", "SELL"),
        ('"Hold"', "HOLD"),
        ("'hold.'", "HOLD"),
        ('"hold".', "HOLD"),
        ("“BUY”", "BUY"),
        ("`sell`", "SELL"),
        ("\u00a0buy\t", "BUY"),
        ("", None),
        (".", None),
        ('""', None),
        ("BUY..", None),
        ("BUY!", None),
        ("I would BUY", None),
        ("BUY SELL", None),
        ("BUY\nSELL", None),
        ("NOT BUY", None),
        ("BUYS", None),
        ("В\u0423\u0423", None),
        ("ВUY", None),
        ("ＢＵＹ", None),
        ("\u017fELL", None),
        ("BU\u200bY", None),
        ("B\u0301UY", None),
        ("\x00BUY", None),
        ("**BUY**", None),
    ],
)
def test_only_exactly_a_choice_counts(text: str, word: str | None) -> None:
    """White space, quotes, one full stop and case are forgiven; look-alikes and sentences are not."""
    assert SIDES.match(text) == word


@given(st.text())
def test_any_text_is_a_choice_or_none(text: str) -> None:
    """What matches is, letter for letter, the choice inside the text."""
    word = SIDES.match(text)
    assert word is None or (word in SIDES.words and word.lower() in text.lower() and len(text.strip(" \t\r\n")) < 99)


@pytest.mark.parametrize(
    "choices",
    [[], "BUY", ["BUY", "buy"], ["BUY", "BUY"], ["BUY", "BUY."], ["BUY", ""], ["BUY", 3], ["."], b"BUY", [None]],
)
def test_choices_that_cannot_be_told_apart_are_refused(choices: object) -> None:
    """One string, nothing, doubles, what is no word."""
    with pytest.raises(ValueError, match=r"choice"):
        Choices(choices)  # type: ignore[arg-type]


def test_choices_of_other_scripts_work() -> None:
    """Case-folding in their own script."""
    words = Choices(["ПРОДАТЬ", "КУПИТЬ"])
    assert words.match("купить.") == "КУПИТЬ"


def answered(text: str, finish: str = "stop") -> Answer:
    """An answer."""
    fixed = {"call_id": "d", "deltas": 1, "route": "r", "upstream": "u", "model": "m", "attempts": 1, "wall_us": 1}
    return Answer(text=text, finish=finish, usage=Usage(), timing=Timing(), **fixed)  # type: ignore[arg-type]


@pytest.mark.parametrize("finish", ["length", "tool_calls"])
def test_an_incomplete_answer_is_the_default(finish: str) -> None:
    """Even when its text is a choice: BUY may have been the beginning of BUY NOTHING."""
    choice = SIDES.judge(answered("BUY", finish), "HOLD")
    assert (choice, choice.reason, choice.answered) == ("HOLD", "incomplete", False)
    assert choice.answer is not None
    assert not choice.answer.complete


def test_a_choice_is_a_string_that_says_why() -> None:
    """It compares as its word, prints its reason, and survives pickling."""
    choice = SIDES.judge(answered("buy."), "HOLD")
    assert (choice, choice.choice, choice.reason) == ("BUY", "BUY", "answered")
    assert "answered" in repr(choice)
    again = pickle.loads(pickle.dumps(Choice.make("HOLD", "not_a_choice", "because")))
    assert (again, again.reason, again.detail) == ("HOLD", "not_a_choice", "because")


def test_the_default_may_be_anything() -> None:
    """A default that is no string, or cannot even be shown, comes back as `choice`."""

    class Nasty:
        def __str__(self) -> str:
            raise RuntimeError

    nasty = Nasty()
    assert Choice.make(None, "x").choice is None
    assert Choice.make(nasty, "x").choice is nasty


def test_reasons_of_failures() -> None:
    """The code of a failure, or a word for what never was a call."""
    refused = CallFailed.of("invalid_request", "m")
    assert Choice.fallback("HOLD", refused, sent=False).reason == "invalid_arguments"
    assert Choice.fallback("HOLD", refused, sent=True).reason == "invalid_request"
    assert Choice.fallback("HOLD", SidecarError("closed"), sent=False).reason == "unusable_client"
    assert Choice.fallback("HOLD", TypeError("t"), sent=False).reason == "invalid_arguments"
    assert Choice.fallback("HOLD", OSError("t"), sent=True).reason == "internal"
