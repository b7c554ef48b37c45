"""What one payload may cost: the work of reading it is bounded, and what is refused whole names its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sidecar.service import intake
from sidecar.wire import Call, Failed

LIMIT = 1 << 20
ENCODERS = pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
Encode = Callable[[Any], bytes]


def call(name: str = "a", **fields: Any) -> dict[str, Any]:
    """A call that would be taken, but for these."""
    return {"type": "call", "id": name, "input": "x", **fields}


def read(payload: bytes) -> list[Call | Failed]:
    """The messages and refusals of a payload."""
    return [item.message for item in intake.read(payload, max_message_bytes=LIMIT).items]  # type: ignore[misc]


@ENCODERS
def test_options_are_bounded_in_bytes_and_values(encode: Encode) -> None:
    """A million empty lists held the loop for seconds: over 20,000 values or 128 KiB they are refused, by name."""
    for much in ([[]] * 200_000, [0] * 100_000, [[]] * 20_001, {str(n): {} for n in range(20_001)}, "x" * (128 << 10)):
        (refused,) = read(encode(call(options={"extra_body": {"a": much}})))
        assert isinstance(refused, Failed)
        assert (refused.code, refused.id) == ("invalid_request", "a")
        assert "options" in refused.message
    for fine in ([[]] * 19_000, "x" * (127 << 10), {str(n): n for n in range(9_000)}):
        (taken,) = read(encode(call(options={"extra_body": {"a": fine}})))
        assert isinstance(taken, Call)


@ENCODERS
def test_a_long_prompt_is_no_matter_of_options(encode: Encode) -> None:
    """The bound is on `options`: a prompt may fill the message."""
    (taken,) = read(encode(call(input="x" * (LIMIT - 200), options={"temperature": 1})))
    assert isinstance(taken, Call)


@ENCODERS
def test_an_array_refused_whole_names_each_of_its_calls(encode: Encode) -> None:
    """Over 256 maps, or too large: one `failed` for each legal id among the first 256, and nothing runs."""
    over = read(encode([*[call(str(n)) for n in range(300)], {"type": "ping"}]))
    assert [(m.code, m.id) for m in over if isinstance(m, Failed)] == [("invalid_request", str(n)) for n in range(256)]
    large = read(encode([call("a", input="x" * LIMIT), {"type": "ping"}, call("", input="x"), call("b")]))
    assert [(m.code, m.id) for m in large if isinstance(m, Failed)] == [("too_large", "a"), ("too_large", "b")]


@ENCODERS
def test_an_array_without_names_is_refused_once(encode: Encode) -> None:
    """Nobody waits for an answer: one `failed` with no id, however many entries there are."""
    for entries in ([7] * 300, [{}] * 300, [7] * 120_000, ["x" * 5000] * 300):
        (refused,) = read(encode(entries))
        assert isinstance(refused, Failed)
        assert refused.id is None


def test_an_array_is_believed_to_be_as_long_as_it_says() -> None:
    """Four bytes claim four billion entries, or are followed by a million of them: refused unread."""
    for payload in (b"\xdd\xff\xff\xff\xff", b"\xdd" + (LIMIT - 8).to_bytes(4, "big") + b"\xc0" * (LIMIT - 8)):
        (refused,) = read(payload)
        assert isinstance(refused, Failed)
        assert (refused.code, refused.id) == ("invalid_request", None)


@pytest.mark.parametrize("bad", [7, None, [], "", "x" * 65])
@ENCODERS
def test_an_id_that_is_none_is_not_given_back(encode: Encode, bad: Any) -> None:
    """A refusal repeats an id only when it is one."""
    (refused,) = read(encode({"type": "call", "id": bad, "input": 3}))
    assert isinstance(refused, Failed)
    assert refused.id is None
