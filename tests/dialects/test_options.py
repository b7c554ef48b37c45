"""The portable options: laid, refused, mapped, printed; and the estimate of usage."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sidecar.dialects.base import Prompt
from sidecar.dialects.facts import ErrorBody, ErrorFrame, estimate_usage, upstream_error
from sidecar.dialects.options import TABLE, InvalidOption, UnsupportedOption, lay, merge, unsupported
from sidecar.errors import SidecarError
from sidecar.wire import ChatMessage, Options


def test_the_table_has_every_option_once() -> None:
    """A new option cannot be forgotten."""
    assert [row.option for row in TABLE] == [name for name in Options.__struct_fields__ if name != "extra_body"]


def test_a_calls_options_lie_over_the_targets() -> None:
    """Field by field; `extra_body` key by key; null takes away; the fuse holds."""
    merged = merge(
        {"temperature": 0.1, "seed": 1, "extra_body": {"a": 1, "b": 1, "model": "ours to set"}},
        {"temperature": 0.9, "seed": None, "extra_body": {"b": 2}, "max_output_tokens": 10_000},
        256,
    )
    assert merged == Options(
        temperature=0.9, max_output_tokens=256, extra_body={"a": 1, "b": 2, "model": "ours to set"}
    )
    assert merge({}, {}, 256).max_output_tokens == 256
    assert merge({"max_output_tokens": 64}, {}, 256).max_output_tokens == 64
    assert merge({}, {"max_output_tokens": 16, "extra_body": {"x": None}}, 256) == Options(
        max_output_tokens=16, extra_body={"x": None}
    )


def test_an_unknown_name_is_unsupported() -> None:
    """And the error says which, in fields and in words, and is a ValueError as well as ours."""
    with pytest.raises(UnsupportedOption, match="top_k") as caught:
        merge({}, {"top_k": 3}, 256)
    assert caught.value.name == "top_k"
    assert isinstance(caught.value, SidecarError)
    assert isinstance(caught.value, ValueError)


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2**53}, "max_output_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"response_format": []}, "response_format"),
        ({"response_format": {"schema": {"maximum": math.inf}}}, "response_format"),
        ({"response_format": {1: 2}}, "response_format"),
        ({"extra_body": {"a": [{"b": 2**53}]}}, "extra_body"),
        ({"extra_body": {"a": -(2.0**60)}}, "extra_body"),
        ({"extra_body": {"a": b"bytes"}}, "extra_body"),
        ({"extra_body": {"a": "\ud83d"}}, "extra_body"),
        ({"extra_body": {"\ud83d": "a"}}, "extra_body"),
        ({"extra_body": deep(3)}, "extra_body"),
        ({"extra_body": {"a": deep(100_000)}}, "extra_body"),
        ({"extra_body": {"stream_id": "s1"}}, "extra_body"),
        ({"extra_body": {"type": "x"}}, "extra_body"),
        ({"extra_body": {"model": "dearer"}}, "extra_body"),
        ({"extra_body": {"store": True}}, "extra_body"),
        ({"extra_body": {"max_tokens": 10**6}}, "extra_body"),
    ],
)
def test_a_bad_value_is_invalid_and_not_repeated(options: dict[str, Any], name: str) -> None:
    """The error names the option."""
    with pytest.raises(InvalidOption) as caught:
        merge({}, options, 256)
    assert caught.value.name == name


def test_a_target_is_held_to_the_same_kinds() -> None:
    """An operator's mistake is not laid at the bot's door silently, nor may the protocol's fields be set."""
    with pytest.raises(InvalidOption):
        merge({"temperature": "hot"}, {"temperature": 1}, 256)
    with pytest.raises(InvalidOption):
        merge({"extra_body": {"stream": False}}, {}, 256)
    assert merge({"extra_body": {"max_tokens": 99}}, {}, 256).extra_body == {"max_tokens": 99}


@pytest.mark.parametrize(
    ("given", "responses", "chat"),
    [
        ({"type": "json_object"}, {"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "v", "schema": {}}},
            {"type": "json_schema", "name": "v", "schema": {}},
            {"type": "json_schema", "json_schema": {"name": "v", "schema": {}}},
        ),
        (
            {"type": "json_schema", "name": "v", "schema": {}},
            {"type": "json_schema", "name": "v", "schema": {}},
            {"type": "json_schema", "json_schema": {"name": "v", "schema": {}}},
        ),
    ],
)
def test_a_response_format_of_either_shape_suits_both(
    given: dict[str, Any], responses: dict[str, Any], chat: dict[str, Any]
) -> None:
    """A bot need not know which dialect answers."""
    options = Options(response_format=given)
    assert lay({}, options, "responses") == {"text": {"format": responses}}
    assert lay({}, options, "chat") == {"response_format": chat}


def test_extra_body_comes_last_and_touches_no_protocol_field() -> None:
    """Maps are joined; everything else is replaced."""
    options = Options(
        temperature=0.5,
        reasoning_effort="low",
        extra_body={"temperature": 0.7, "type": "x", "reasoning": {"summary": "auto"}},
    )
    body = lay({"type": "response.create"}, options, "responses")
    assert body == {"type": "response.create", "temperature": 0.7, "reasoning": {"effort": "low", "summary": "auto"}}
    assert lay({}, Options(stop="x"), "responses") == {}
    assert unsupported(Options(stop="x"), "responses") == ["stop"]


@pytest.mark.parametrize(
    ("frame", "status", "retry_after"),
    [
        (ErrorFrame(status="429"), 429, None),
        (ErrorFrame(status="many"), None, None),
        (ErrorFrame(status=7), None, None),
        (ErrorFrame(status_code=503), 503, None),
        (ErrorFrame(error=ErrorBody(code=529)), 529, None),
        (ErrorFrame(headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), None, None),
        (ErrorFrame(headers={"Retry-After": True}, error=ErrorBody(retry_after=3)), None, 3.0),
        (ErrorFrame(headers={"Retry-After": -1}, retry_after=4), None, 4.0),
        (ErrorFrame(headers={"Retry-After": "1e999"}), None, None),
        (ErrorFrame(headers={"Retry-After": 10**400}), None, None),
        (ErrorFrame(headers={"retry-after": 9}, error=ErrorBody(headers={"Retry-After-Ms": "20"})), None, 0.02),
    ],
)
def test_the_facts_of_an_error_are_read_where_they_can_be(
    frame: ErrorFrame, status: int | None, retry_after: float | None
) -> None:
    """Status and Retry-After come in many forms, and nonsense is no reason to lose the error."""
    error = upstream_error(frame)
    assert (error.status, error.retry_after) == (status, retry_after)
    assert error.message == "the upstream gave no reason"


def test_usage_is_estimated_from_characters_and_marked() -> None:
    """Four characters a token, rounded up, instructions included."""
    prompt = Prompt(model="m", messages=(ChatMessage(role="user", content="12345"),), instructions="1234")
    usage = estimate_usage(prompt, 9)
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (3, 3, True)
    assert estimate_usage(Prompt(model="m", messages=()), 0).output_tokens == 0
