"""Anthropic's Messages as the relay speaks them: events and their order, errors, heads, what a request must have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.simulator.harness import QUICK, Talk, relaying
from tests.simulator.web import PATHS, Browser, asked, content, once

PATH = PATHS["messages"]


def _kinds(answer: Any) -> list[str]:
    return [event.json["type"] for event in answer.events]


async def test_the_order_of_events() -> None:
    """message_start with usage, a block with a ping, deltas, the reason and the usage, message_stop; names as types."""
    async with relaying() as relay:
        answer = await once(relay.port, "messages", '[[text="BUY at open" tokens=3]]')
    kinds = _kinds(answer)
    assert [event.name for event in answer.events] == kinds
    assert kinds == [
        *("message_start", "content_block_start", "ping"),
        *["content_block_delta"] * 3,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    start = answer.events[0].json["message"]
    assert (start["role"], start["model"], start["content"], start["stop_reason"]) == ("assistant", "m", [], None)
    assert start["usage"]["input_tokens"] == len('[[text="BUY at open" tokens=3]]') // 4
    assert content(answer.events) == "BUY at open"
    last = answer.events[-2].json
    assert last["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert last["usage"]["output_tokens"] == 3


@pytest.mark.parametrize(
    ("steering", "reason"),
    [
        ("scenario=incomplete_length", "max_tokens"),
        ("scenario=incomplete_filter", "refusal"),
        ("scenario=refusal", "refusal"),
        ("finish=tool_use", "tool_use"),
        ("finish=stop_sequence", "stop_sequence"),
    ],
)
async def test_stop_reasons(steering: str, reason: str) -> None:
    """Each in the service's own word; a stop sequence says which, a refusal has details."""
    async with relaying() as relay:
        answer = await once(relay.port, "messages", f"[[{steering}]]", stop_sequences=["END"])
    delta = next(event.json["delta"] for event in answer.events if event.json["type"] == "message_delta")
    assert delta["stop_reason"] == reason
    assert delta["stop_sequence"] == ("END" if reason == "stop_sequence" else None)
    assert ("stop_details" in delta) == (reason == "refusal")
    assert _kinds(answer)[-1] == "message_stop"


async def test_max_tokens_are_obeyed() -> None:
    """The limit of the request ends the answer, and is the reason."""
    async with relaying() as relay:
        answer = await once(relay.port, "messages", "[[tokens=20]]", max_tokens=4)
    assert len(content(answer.events).split()) == 4
    assert answer.events[-2].json["delta"]["stop_reason"] == "max_tokens"


async def test_thinking_comes_in_a_block_of_its_own() -> None:
    """Thinking and its signature in block 0, the text in block 1; whole answers have both."""
    async with relaying("reasoning_first") as relay:
        answer = await once(relay.port, "messages")
        whole = await once(relay.port, "messages", stream=False)
    deltas = [event.json for event in answer.events if event.json["type"] == "content_block_delta"]
    assert [one["delta"]["type"] for one in deltas if one["index"] == 0] == [*["thinking_delta"] * 3, "signature_delta"]
    assert {one["delta"]["type"] for one in deltas if one["index"] == 1} == {"text_delta"}
    assert [block["type"] for block in whole.json["content"]] == ["thinking", "text"]
    assert whole.json["content"][0]["thinking"] == "The spread is wide, so BUY is out."


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("error_401", 401, "authentication_error"),
        ("error_403", 403, "permission_error"),
        ("error_404", 404, "not_found_error"),
        ("error_429", 429, "rate_limit_error"),
        ("error_quota", 402, "billing_error"),
        ("error_500", 500, "api_error"),
        ("error_503", 503, "api_error"),
        ("error_529", 529, "overloaded_error"),
        ("error_context_length", 400, "invalid_request_error"),
        ("http_529", 529, "overloaded_error"),
        ("http_429", 429, "rate_limit_error"),
        ("http_504", 504, "timeout_error"),
        ("http_413", 413, "request_too_large"),
    ],
)
async def test_errors(name: str, status: int, kind: str) -> None:
    """The status, the service's body with the request's id, and the head that says when to come back."""
    async with relaying(name) as relay:
        answer = await once(relay.port, "messages")
    assert answer.status == status
    assert answer.json["type"] == "error"
    assert (answer.json["error"]["type"], set(answer.json["error"])) == (kind, {"type", "message"})
    assert answer.json["request_id"] == answer.headers["request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert "retry-after-ms" not in answer.headers
    assert answer.headers["x-should-retry"] == ("true" if status in (429, 500, 503, 504, 529) else "false")


@pytest.mark.parametrize("name", ["error_midway", "error_after_created", "failed"])
async def test_an_error_within_the_stream(name: str) -> None:
    """overloaded_error as an event in a 200; what is not streamed fails by status."""
    async with relaying(name) as relay:
        answer = await once(relay.port, "messages")
        whole = await once(relay.port, "messages", stream=False)
    assert (answer.status, answer.events[-1].name) == (200, "error")
    assert answer.events[-1].json["error"]["type"] == "overloaded_error"
    assert answer.events[-1].json["request_id"] == answer.headers["request-id"]
    assert len(content(answer.events).split()) == (3 if name == "error_midway" else 0)
    assert (whole.status, whole.json["error"]["type"]) == (529, "overloaded_error")


async def test_rate_limits_name_instants() -> None:
    """Four kinds of limits; when they reset is an instant in UTC, by the wall clock."""
    async with relaying(wall_s=lambda: 1_800_000_000.2) as relay:
        browser = await Browser.open(relay.port)
        headers = (await browser.ask(PATH + "?rate_remaining_requests=7&rate_reset_s=30", asked("messages"))).headers
    reset = datetime.fromtimestamp(1_800_000_031, UTC)
    for what in ("requests", "tokens", "input-tokens", "output-tokens"):
        assert int(headers[f"anthropic-ratelimit-{what}-limit"]) > 0
        assert datetime.fromisoformat(headers[f"anthropic-ratelimit-{what}-reset"]) == reset
    assert headers["anthropic-ratelimit-requests-remaining"] == "7"
    assert headers["request-id"].startswith("req_")


async def test_a_version_is_required() -> None:
    """Without anthropic-version 400, in this service's shape; and 401 for a wrong key, `x-api-key` or Bearer."""
    async with relaying(keys={"right"}) as relay:
        browser = await Browser.open(relay.port)
        missing = await browser.ask(PATH, asked("messages"), anthropic_version="", x_api_key="right")
        assert (missing.status, missing.json["error"]["type"]) == (400, "invalid_request_error")
        wrong = await browser.ask(PATH, asked("messages"), x_api_key="wrong")
        assert (wrong.status, wrong.json["error"]["type"]) == (401, "authentication_error")
        assert (await browser.ask(PATH, asked("messages"), x_api_key="right")).status == 200
        assert (await browser.ask(PATH, asked("messages"), authorization="Bearer right")).status == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": None},
        {"max_tokens": 0},
        {"model": None},
        {"model": 7},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "system", "content": "x"}]},
        {"temperature": 1.5},
        {"id": "x"},
        {"type": "response.create"},
        {"stream_options": {"include_usage": True}},
    ],
)
async def test_what_a_request_must_not_be(wrong: dict[str, Any]) -> None:
    """400 with words, as an extra input or a missing field is there."""
    async with relaying() as relay:
        answer = await once(relay.port, "messages", **wrong)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(("shape", "has"), [("nested", {"type", "message"}), ("no_type", {"message"}), ("flat", None)])
async def test_shapes_of_errors(shape: str, has: set[str] | None) -> None:
    """As the service's own, without the error's type, or flat."""
    async with relaying("error_500") as relay:
        answer = await once(relay.port, "messages", f"[[shape={shape}]]")
    assert answer.json["type"] == "error"
    assert (set(answer.json["error"]) if "error" in answer.json else None) == has


async def test_without_usage_or_an_end() -> None:
    """no_usage: no event has any; no_done: the body ends without message_stop."""
    async with relaying() as relay:
        bare = await once(relay.port, "messages", "[[scenario=no_usage]]")
        open_ended = await once(relay.port, "messages", "[[scenario=no_done]]")
    assert b"usage" not in bare.body
    assert _kinds(bare)[-1] == "message_stop"
    assert (_kinds(open_ended)[-1], open_ended.lost) == ("message_delta", None)


async def test_it_exists_over_http_only() -> None:
    """An upgrade to WebSocket by its path is 404."""
    async with relaying(behaviour=QUICK) as relay:
        talk = await Talk.open(relay.port, PATH)
        assert talk.response is not None
        assert talk.response.status_code == 404
