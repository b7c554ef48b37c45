"""Run with the interpreter of the oracle's environment: ``check_http.py http://127.0.0.1:PORT``.

The openai and anthropic SDKs as clients of the simulator's HTTPS side: each streamed event is of their own types and
validated strictly by them, whole answers are, and each error comes as the class they have for it. Imports nothing of
ours. Prints one JSON object; raises at the first thing that is not as the SDKs want it.
"""

from __future__ import annotations

import collections
import json
import sys
from typing import Any

import anthropic
import openai
import pydantic
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

QUICK = "tokens=6 ttft_ms=1 cadence_ms=1 late_ms=30 usage_late_ms=20 after=3"
#: Of valid events from begin to end.
ANSWERED = (
    "ok",
    "reasoning_first",
    "empty",
    "usage_late",
    "empty_deltas",
    "slow_first",
    "incomplete_length",
    "refusal",
)
#: scenario -> the class of error that each SDK has for it
ERRORS = {
    "error_401": "AuthenticationError", "error_403": "PermissionDeniedError", "error_404": "NotFoundError",
    "error_429": "RateLimitError", "error_500": "InternalServerError", "error_context_length": "BadRequestError",
}  # fmt: skip

_CHUNK = pydantic.TypeAdapter(ChatCompletionChunk)
_EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
_MESSAGE = pydantic.TypeAdapter(RawMessageStreamEvent)


def prompt(scenario: str) -> str:
    """A prompt that steers."""
    return f"[[scenario={scenario} {QUICK}]] go"


def strictly(adapter: pydantic.TypeAdapter[Any], event: Any, seen: collections.Counter[str], name: str) -> None:
    """The SDKs build their events without validation: validate what they were given."""
    adapter.validate_python(event.to_dict(mode="json"))
    seen[name] += 1


def chat(client: openai.OpenAI, scenario: str, seen: collections.Counter[str]) -> str:
    """A streamed chat completion; its text."""
    text = ""
    messages: Any = [{"role": "user", "content": prompt(scenario)}]
    options: Any = {"include_usage": True}
    for chunk in client.chat.completions.create(model="m", messages=messages, stream=True, stream_options=options):
        strictly(_CHUNK, chunk, seen, "chat.completion.chunk")
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    return text


def responses(client: openai.OpenAI, scenario: str, seen: collections.Counter[str]) -> str:
    """A streamed response; its text."""
    text = ""
    for event in client.responses.create(model="m", input=prompt(scenario), stream=True):
        strictly(_EVENT, event, seen, event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    return text


def message(client: anthropic.Anthropic, scenario: str, seen: collections.Counter[str]) -> str:
    """A streamed message; its text."""
    text = ""
    messages: Any = [{"role": "user", "content": prompt(scenario)}]
    for event in client.messages.create(model="m", max_tokens=100, messages=messages, stream=True):
        strictly(_MESSAGE, event, seen, event.type)
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
    return text


def whole(one: openai.OpenAI, other: anthropic.Anthropic) -> None:
    """Answers that are not streamed."""
    messages: Any = [{"role": "user", "content": prompt("ok")}]
    completion = one.chat.completions.create(model="m", messages=messages)
    ChatCompletion.model_validate(completion.to_dict(mode="json"))
    response = one.responses.create(model="m", input=prompt("ok"))
    Response.model_validate(response.to_dict(mode="json"))
    answer = other.messages.create(model="m", max_tokens=100, messages=messages)
    Message.model_validate(answer.to_dict(mode="json"))
    texts = [completion.choices[0].message.content or "", response.output_text, answer.content[0].to_dict()["text"]]
    assert all(len(str(text).split()) == 6 for text in texts), texts


def main(url: str) -> None:
    """All of it."""
    one = openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0, timeout=10)
    other = anthropic.Anthropic(api_key="k", base_url=url, max_retries=0, timeout=10)
    seen: collections.Counter[str] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()
    for way, client in ((chat, one), (responses, one), (message, other)):
        for scenario in ANSWERED:
            text = way(client, scenario, seen)  # type: ignore[arg-type]
            if scenario in ("ok", "usage_late", "slow_first", "reasoning_first"):
                assert len(text.split()) == 6, (way.__name__, scenario, text)
        for scenario, wanted in ERRORS.items():
            try:
                way(client, scenario, seen)  # type: ignore[arg-type]
            except (openai.APIStatusError, anthropic.APIStatusError) as error:
                found = type(error).__name__
            else:
                found = "none"
            assert found == wanted, (way.__name__, scenario, found)
            errors[wanted] += 1
    status = 0
    try:
        message(other, "error_529", seen)
    except anthropic.APIStatusError as error:
        status = error.status_code
    assert status == 529, status
    errors["529"] += 1
    whole(one, other)
    print(json.dumps({"types": seen, "errors": errors}))


if __name__ == "__main__":
    main(sys.argv[1])
