"""A request says the same whether the part that calls share was encoded before or not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dialects.base import Prompt
from sidecar.dialects.options import is_plain, lay
from sidecar.wire import ChatMessage, Options
from tests.dialects.transcript import WAYS, new_codec

options = st.builds(
    Options,
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    max_output_tokens=st.none() | st.integers(1, 1 << 50),
    reasoning_effort=st.none() | st.sampled_from(["low", 'h"igh']),
    service_tier=st.none() | st.sampled_from(["flex", "auto"]),
    prompt_cache_key=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    stop=st.none() | st.just("\n") | st.just(["a", "b"]),
    seed=st.none() | st.integers(-9, 9),
    response_format=st.none() | st.just({"type": "json_schema", "name": "n", "schema": {}}),
    extra_body=st.none() | st.sampled_from([{}, {"store": "over"}, {"input": 1, "stream_options": {"x": 1}, "id": 7}]),
)
turns = st.lists(
    st.builds(
        ChatMessage,
        role=st.sampled_from(["system", "user", "assistant"]),
        content=st.text(st.characters(codec="utf-8"), max_size=20),
    ),
    min_size=1,
    max_size=3,
)


def expected(dialect: str, slots: int, prompt: Prompt, sent: dict[str, Any]) -> dict[str, Any]:
    """The whole body as one map, with the names that the codec gave."""
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    if dialect == "responses":
        body: dict[str, Any] = {"type": "response.create"} if slots else {}
        body |= {"stream_id": sent["stream_id"]} if slots > 1 else {}
        body["model"] = prompt.model
        body |= {"instructions": prompt.instructions} if prompt.instructions is not None else {}
        body |= {"input": messages, "store": prompt.store} | ({} if slots else {"stream": True})
        body |= {"stream_options": {"include_obfuscation": False}}
    elif dialect == "messages":
        said = [] if prompt.instructions is None else [prompt.instructions]
        said += [turn.content for turn in prompt.messages if turn.role == "system"]
        system = "\n\n".join(said)
        body = {"model": prompt.model}
        body |= {"system": system} if system else {}
        body |= {"messages": [turn for turn in messages if turn["role"] != "system"]}
        body |= {"stream": True, "max_tokens": 4096}
    else:
        first = [] if prompt.instructions is None else [{"role": "system", "content": prompt.instructions}]
        body = {"id": sent["id"]} if slots else {}
        body |= {"model": prompt.model, "messages": first + messages, "stream": True}
        body |= {"stream_options": {"include_usage": True}} | ({"store": True} if prompt.store else {})
    found: dict[str, Any] = json.loads(msgspec.json.encode(lay(body, prompt.options, dialect)))
    return found


@pytest.mark.parametrize(("dialect", "slots"), WAYS)
@settings(deadline=None)
@given(options=options, messages=turns, instructions=st.none() | st.just("be brief"), store=st.booleans())
def test_every_field_is_there_once_and_in_its_order(
    dialect: str, slots: int, options: Options, messages: list[ChatMessage], instructions: str | None, store: bool
) -> None:
    """Of any call: with options of its own or the route's, a system text, several turns."""
    prompt = Prompt(model="m", messages=tuple(messages), instructions=instructions, options=options, store=store)
    for _ in range(2):  # the second time from what was kept
        frame = new_codec(dialect, slots).encode(0, prompt)
        names = json.loads(frame, object_pairs_hook=list)
        assert len({name for name, _ in names}) == len(names)
        sent = json.loads(frame)
        assert sent == expected(dialect, slots, prompt, sent)
        assert list(sent) == list(expected(dialect, slots, prompt, sent))


def test_what_can_be_kept() -> None:
    """Anything with a map or a list in it is not: it could be changed, and has no hash."""
    assert is_plain(Options(temperature=0.5, stop="x", seed=1))
    assert not is_plain(Options(stop=["x"]))
    assert not is_plain(Options(response_format={}))
    assert not is_plain(Options(extra_body={}))
