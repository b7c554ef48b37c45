"""What a response other than 200 says, in the shapes of services as they are, and what it means to a call."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.classifier import classify
from sidecar.core.outcome import Outcome
from sidecar.dialects.facts import MAX_ERROR_BYTES, NO_SUCH_PATH, ErrorFrame, http_error, upstream_error
from sidecar.errors import CODES, UpstreamError


def read(status: int, body: Any, **headers: str) -> UpstreamError:
    """The facts of a response whose body is this JSON, or these bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http_error(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def meaning(outcome: Outcome) -> tuple[str, str, bool]:
    """The bot's code, where the call may go on, and whether it counts."""
    return (outcome.code, outcome.retry, outcome.counts_against_breaker)


def nested(message: str, **fields: Any) -> dict[str, Any]:
    """OpenAI's shape."""
    return {"error": {"message": message, "type": None, "param": None, "code": None, **fields}}


def anthropic(type_: str, message: str) -> dict[str, Any]:
    """Anthropic's shape."""
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_011C"}


#: The code of the wire, where the call may go on, whether the breaker counts it.
FAILED = ("upstream_error", "backoff", True)
LIMITED = ("upstream_rate_limited", "backoff", False)
QUOTA = ("insufficient_quota", "next_target", False)
AUTH = ("upstream_auth", "next_target", False)
MODEL = ("model_not_found", "next_target", False)
REFUSED = ("upstream_refused", "never", False)
TOO_MUCH = ("upstream_refused", "next_target", False)
WRONG_DOOR = ("upstream_refused", "next_target", True)
CONTEXT = ("context_length_exceeded", "never", False)
FILTER = ("content_filter", "never", False)
BLOCKED = "Output blocked by content filtering policy"

#: What it is, status, body, meaning.
SHAPES: list[tuple[str, int, Any, tuple[str, str, bool]]] = [
    ("anthropic overloaded", 529, anthropic("overloaded_error", "Overloaded"), FAILED),
    (
        "anthropic rate",
        429,
        anthropic("rate_limit_error", "This request would exceed your organization's rate limit"),
        LIMITED,
    ),
    ("anthropic billing", 402, anthropic("billing_error", "Check your plan"), QUOTA),
    (
        "anthropic credit",
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the API."),
        QUOTA,
    ),
    (
        "anthropic spend limit",
        400,
        anthropic("invalid_request_error", "You have reached your specified API usage limits. You will regain access"),
        QUOTA,
    ),
    ("anthropic key", 401, anthropic("authentication_error", "invalid x-api-key"), AUTH),
    ("anthropic permission", 403, anthropic("permission_error", "Not allowed"), AUTH),
    ("anthropic model", 404, anthropic("not_found_error", "model: claude-9"), MODEL),
    ("anthropic not found", 404, anthropic("not_found_error", "Not Found"), REFUSED),
    (
        "anthropic size",
        413,
        anthropic("request_too_large", "Request exceeds the maximum allowed number of bytes."),
        REFUSED,
    ),
    (
        "anthropic context",
        400,
        anthropic("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
        CONTEXT,
    ),
    (
        "anthropic context and output",
        400,
        anthropic(
            "invalid_request_error", "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000"
        ),
        CONTEXT,
    ),
    ("anthropic filter", 400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), FILTER),
    ("anthropic invalid", 400, anthropic("invalid_request_error", "max_tokens: Field"), REFUSED),
    ("anthropic internal", 500, anthropic("api_error", "Internal server error"), FAILED),
    ("anthropic timeout", 504, anthropic("timeout_error", "Request timed out"), FAILED),
    (
        "openai rate",
        429,
        nested("Rate limit reached for gpt-x", type="requests", code="rate_limit_exceeded"),
        LIMITED,
    ),
    (
        "openai quota",
        429,
        nested("You exceeded your current quota", type="insufficient_quota", code="insufficient_quota"),
        QUOTA,
    ),
    (
        "openai model",
        404,
        nested("The model `gpt-9` does not exist", type="invalid_request_error", code="model_not_found"),
        MODEL,
    ),
    (
        "openai more than the rate",
        429,
        nested(
            "Request too large for gpt-x on tokens per min (TPM): Limit 10000, Requested 20000.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
        TOO_MUCH,
    ),
    ("openai internal", 500, nested("The server had an error", type="server_error"), FAILED),
    (
        "azure filter",
        400,
        nested(
            "The response was filtered",
            code="content_filter",
            status=400,
            innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
        ),
        FILTER,
    ),
    (
        "anthropic filter: only its words say so",
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": BLOCKED}, "request_id": "req_1"},
        FILTER,
    ),
    (
        "azure filter, inner word only",
        400,
        nested("filtered", innererror={"code": "ResponsibleAIPolicyViolation"}),
        FILTER,
    ),
    (
        "azure deployment",
        404,
        {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}},
        MODEL,
    ),
    (
        "azure rate",
        429,
        {"error": {"code": "429", "message": "Requests have exceeded call rate limit"}},
        LIMITED,
    ),
    ("azure key", 401, {"error": {"code": "401", "message": "Access denied"}}, AUTH),
    (
        "deepseek balance",
        402,
        nested("Insufficient Balance", type="unknown_error", code="invalid_request_error"),
        QUOTA,
    ),
    (
        "deepseek model",
        400,
        nested("Model Not Exist", type="invalid_request_error", code="invalid_request_error"),
        MODEL,
    ),
    (
        "groq more than the rate",
        413,
        nested(
            "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 7600",
            type="tokens",
            code="rate_limit_exceeded",
        ),
        TOO_MUCH,
    ),
    (
        "groq rate",
        429,
        nested("Rate limit reached for model `m`", type="tokens", code="rate_limit_exceeded"),
        LIMITED,
    ),
    ("groq flex", 498, nested("Flex tier capacity exceeded", code="capacity_exceeded"), FAILED),
    ("groq flex, status only", 498, b"", FAILED),
    (
        "groq over capacity",
        503,
        nested("m is currently over capacity", type="internal_server_error"),
        FAILED,
    ),
    (
        "groq retired model",
        400,
        nested("The model `m` has been decommissioned", type="invalid_request_error", code="model_decommissioned"),
        MODEL,
    ),
    (
        "llama.cpp loading",
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        FAILED,
    ),
    (
        "llama.cpp context",
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "n_ctx": 256,
                "type": "exceed_context_size_error",
            }
        },
        CONTEXT,
    ),
    (
        "vllm flat",
        400,
        {"object": "error", "message": "max_tokens must be at least 1", "type": "BadRequestError", "code": 400},
        REFUSED,
    ),
    (
        "vllm context",
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 16384",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        CONTEXT,
    ),
    (
        "vllm nested",
        400,
        nested("However, the model's context length is only 1024 tokens", type="BadRequestError", code=400),
        CONTEXT,
    ),
    (
        "vllm model",
        404,
        nested("The model `m` does not exist.", type="NotFoundError", code=404),
        MODEL,
    ),
    ("vllm key", 401, {"error": "Unauthorized"}, AUTH),
    (
        "litellm rate",
        429,
        nested("litellm.RateLimitError: RateLimitError", type="throttling_error", code="429"),
        LIMITED,
    ),
    (
        "litellm budget",
        400,
        nested("Budget has been exceeded!", type="budget_exceeded", code="400"),
        QUOTA,
    ),
    (
        "litellm model",
        400,
        nested("chat: Invalid model name passed in model=x", type="None", code="400"),
        MODEL,
    ),
    (
        "litellm key",
        401,
        nested("Authentication Error", type="auth_error", code="401"),
        AUTH,
    ),
    ("fastapi path", 404, {"detail": "Not Found"}, WRONG_DOOR),
    ("fastapi method", 405, {"detail": "Method Not Allowed"}, WRONG_DOOR),
    (
        "fastapi fields",
        422,
        {"detail": [{"loc": ["body", "model"], "msg": "Field required", "input": {}}]},
        REFUSED,
    ),
    ("fastapi key", 401, {"detail": "Invalid API key"}, AUTH),
    (
        "google list",
        429,
        [{"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}],
        LIMITED,
    ),
    ("a proxy's page", 502, b"<html><h1>502 Bad Gateway</h1></html>", FAILED),
    ("a proxy's page for too much", 503, b"<html>nginx</html>", FAILED),
    ("a web server's page", 404, b"<html>404 page not found</html>", WRONG_DOOR),
    ("plain text", 400, b"Bad Request", REFUSED),
    ("a redirect", 307, b"", WRONG_DOOR),
    ("a login page", 302, b"<html>", WRONG_DOOR),
    ("nothing", 500, b"", FAILED),
]


@pytest.mark.parametrize(("status", "body", "meant"), [row[1:] for row in SHAPES], ids=[row[0] for row in SHAPES])
def test_every_shape_means_what_it_should(status: int, body: Any, meant: tuple[str, str, bool]) -> None:
    """By the one classifier, and always with the status that it came with."""
    error = read(status, body)
    outcome = classify(error)
    assert meaning(outcome) == meant
    assert ("redirects are not followed" in outcome.message) == (300 <= status < 400)
    assert outcome.upstream_status == error.status == status
    assert outcome.message == error.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>secret page</html>", "HTTP 503"),
        (b"upstream connect error", "HTTP 503"),
        (b"", "HTTP 503"),
        (b"\xff\xfe", "HTTP 503"),
        (b'"text"', "HTTP 503"),
        (b"[]", "HTTP 503"),
        (b"[7]", "HTTP 503"),
        (b"{}", "HTTP 503"),
        (b'{"error":null}', "HTTP 503"),
        (b'{"error":{"message":["x"],"code":{},"type":true}}', "HTTP 503"),
        (b"[" * 100_000, "HTTP 503"),
        (b'{"error":' * 5000, "HTTP 503"),
        (b'{"error":"no room"}', "no room"),
        (b'{"message":"no room"}', "no room"),
        (b'{"detail":"no room"}', "no room"),
        (b'{"detail":[{"msg":"x"}]}', "HTTP 503"),
        (b'{"error":{"code":7},"message":"no room"}', "no room"),
    ],
)
def test_its_message_is_the_upstreams_own_or_the_status(body: bytes, message: str) -> None:
    """Never a page, and nothing of a kind that a message cannot be."""
    assert read(503, body).message == message


def test_the_words_are_kept_as_they_came() -> None:
    """Code and type, for the bot's eyes; "error" is no type, and a number is a code."""
    error = read(429, {"error": {"message": "m", "type": "tokens", "code": "rate_limit_exceeded"}})
    assert (error.code, error.type) == ("rate_limit_exceeded", "tokens")
    error = read(529, anthropic("overloaded_error", "Overloaded"))
    assert (error.code, error.type) == (None, "overloaded_error")
    error = read(500, {"type": "error", "message": "m", "code": 500})
    assert (error.code, error.type) == ("500", None)
    assert read(404, b"<html>").code == NO_SUCH_PATH


def test_a_body_that_was_cut_says_its_status_only() -> None:
    """64 KiB are looked at; a FastAPI server that repeats a long prompt sends more."""
    long = {"error": {"message": "m", "pad": "x" * MAX_ERROR_BYTES}}
    assert read(422, long).message == "HTTP 422"
    assert read(400, json.dumps(anthropic("x", "y")).encode()[:-2]).message == "HTTP 400"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, 4.0),
        ({"retry_after": "3"}, 3.0),
        ({"retry_after_ms": "250", "retry_after": "3"}, 0.25),
        ({"retry_after": "soon"}, 4.0),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 4.0),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:27:30 GMT"}, 30.0),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], wait: float) -> None:
    """The headers first (a date needs the sender's own clock beside it), then the body."""
    body = {"error": {"message": "slow down", "retry_after": 4}}
    error = read(429, body, **headers)
    assert error.retry_after == wait
    assert classify(error).retry_after == wait
    assert read(429, {"error": {"retry_after": "x"}}).retry_after is None
    assert read(429, {"error": {"retry_after": True}}).retry_after is None


def test_x_should_retry_is_believed_when_it_says_no() -> None:
    """As at the door: what would be tried again here is tried elsewhere only, and the bot is told not to."""
    error = read(503, {"error": {"message": "m"}}, x_should_retry=" False")
    assert error.should_retry is False
    outcome = classify(error)
    assert (outcome.retry, outcome.retryable, outcome.counts_against_breaker) == ("next_target", False, True)
    assert classify(read(400, b"", x_should_retry="false")).retry == "never"
    for said in ("true", "maybe", ""):
        outcome = classify(read(503, b"", x_should_retry=said))
        assert (outcome.retry, outcome.retryable) == ("backoff", True)
    assert read(503, b"", x_should_retry="true").should_retry is True
    assert read(503, b"", x_should_retry="maybe").should_retry is None


def test_a_frame_may_have_azures_inner_word_too() -> None:
    """The same in an answer that had begun."""
    frame = {"error": {"message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}
    assert classify(upstream_error(msgspec.convert(frame, ErrorFrame))).code == "content_filter"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "detail", "innererror", "retry_after", "msg"]), inner
        )
    ),
    max_leaves=8,
)


@given(
    status=st.integers(100, 999),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date", "x-should-retry"]), st.text(max_size=20)
    ),
    body=st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()),
)
def test_no_response_breaks_it(status: int, headers: dict[str, str], body: bytes) -> None:
    """Total: whatever came is an error with its status, a message, and a meaning."""
    error = http_error(status, headers, body)
    assert error.status == status
    assert error.message
    assert error.retry_after is None or 0 <= error.retry_after <= 3600
    assert classify(error).code in CODES


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("wait", ["86400", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_is_sent_away_for_a_day(status: int, wait: str) -> None:
    """What a header asks for is told to the bot, too, which may obey."""
    headers = {"retry-after": wait, "date": "Mon, 30 Nov 2026 08:00:00 GMT"}
    assert http_error(status, headers, b"").retry_after == 3600
