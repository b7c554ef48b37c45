"""The border to bots: every byte string gives messages or refusals, and a refusal never repeats what was sent."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import wire
from sidecar.service import intake
from sidecar.wire import JSON, MSGPACK, Call, Cancel, Failed, Hello, Ping, Probe

LIMIT = 4096


def read(payload: bytes | None) -> intake.Intake:
    """The whole payload, read."""
    return intake.read(payload, max_message_bytes=LIMIT)


def one(payload: bytes | None) -> Any:
    """The one message or refusal of a payload."""
    (item,) = read(payload).items
    return item.message


def as_json(**fields: Any) -> bytes:
    """The fields as a JSON map."""
    return json.dumps(fields).encode()


def call(**fields: Any) -> dict[str, Any]:
    """A good call, with these changes."""
    return {"type": "call", "id": "a", "input": "x", **fields}


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_every_type_is_read_in_both_encodings(encode: Any) -> None:
    """A bot may speak JSON or MessagePack, told apart by the first byte."""
    expected = JSON if encode is msgspec.json.encode else MSGPACK
    for fields, kind in [
        (call(), Call),
        ({"type": "cancel", "id": "a"}, Cancel),
        ({"type": "hello"}, Hello),
        ({"type": "ping", "nonce": 1}, Ping),
        ({"type": "probe"}, Probe),
    ]:
        got = read(encode(fields))
        assert isinstance(got.items[0].message, kind)
        assert got.encoding is expected


def test_unknown_fields_are_named_and_harm_nothing() -> None:
    """A newer bot's fields are ignored and named back, bounded."""
    (item,) = read(as_json(**call(hedge=True, zebra=[1]))).items
    assert isinstance(item.message, Call)
    assert item.ignored == ["hedge", "zebra"]
    (item,) = read(as_json(**call(**{f"{n}{'k' * 70}": 1 for n in range(40)}))).items
    assert len(item.ignored) == intake.MAX_IGNORED
    assert max(map(len, item.ignored)) == intake.MAX_IGNORED_LENGTH


@pytest.mark.parametrize(
    ("fields", "code", "name", "part"),
    [
        (call(v=2), "unsupported_version", "a", "v:"),
        ({"type": "call", "id": "a", "v": 2, "prompt": {}}, "unsupported_version", "a", "v:"),
        (call(v="1"), "invalid_request", "a", "v:"),
        (call(messages=[{"role": "user", "content": "x"}]), "invalid_request", "a", "exactly one"),
        ({"type": "call", "id": "a"}, "invalid_request", "a", "exactly one"),
        ({"type": "call", "id": "a", "messages": []}, "invalid_request", "a", "messages:"),
        ({"type": "call", "input": "x"}, "invalid_request", None, "id"),
        (call(id=""), "invalid_request", None, "id:"),
        (call(id="i" * 65), "invalid_request", None, "id:"),
        (call(id=7), "invalid_request", None, "id:"),
        (call(lane="vip"), "invalid_request", "a", "lane: expected one of exit, entry, research"),
        (call(lane=None), "invalid_request", "a", "lane: expected `str`, got `null`"),
        (call(on_lost="stitch"), "invalid_request", "a", "on_lost: expected one of fail, restart"),
        (call(timeout_ms=0), "invalid_request", "a", "timeout_ms"),
        (call(timeout_ms="5"), "invalid_request", "a", "timeout_ms"),
        (call(timeout_ms=10**9), "invalid_request", "a", "timeout_ms"),
        (call(sent_mono_us=2**53), "invalid_request", "a", "sent_mono_us"),
        (call(options={"extra_body": {"seed": 2**53}}), "invalid_request", "a", "2^53"),
        (call(options=[]), "invalid_request", "a", "options"),
        ({"type": "order", "id": "a"}, "invalid_request", "a", "type: expected one of call"),
        ({"id": "a"}, "invalid_request", "a", "type"),
        ({"type": 5, "id": "a"}, "invalid_request", "a", "type"),
        ({"type": "cancel"}, "invalid_request", None, "id"),
        ({"type": "probe", "check": "deep"}, "invalid_request", None, "check: expected one of live, ready, full"),
    ],
)
def test_a_refusal_says_what_to_mend(fields: dict[str, Any], code: str, name: str | None, part: str) -> None:
    """Code, id where it can be read, and the field by name."""
    refused = one(as_json(**fields))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.id, refused.retryable, refused.call_id) == (code, name, False, None)
    assert part in refused.message


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 2**53, -(2**53), 2**64 - 1, {1: 2}, b"bytes", msgspec.msgpack.Ext(5, b"x")],
    ids=lambda value: repr(value).partition(" object at ")[0],  # the same in every process
)
def test_what_json_does_not_have_is_refused_however_deep(value: Any) -> None:
    """NaN, infinities, keys that are no strings and integers beyond 2^53 - 1, inside lists and maps of `options`."""
    for deep in (value, [value], {"a": [{"b": value}]}):
        refused = one(msgspec.msgpack.encode(call(options={"extra_body": deep})))
        assert isinstance(refused, Failed)
        assert (refused.code, refused.id) == ("invalid_request", "a")


@pytest.mark.parametrize(
    "payload",
    [
        None,
        b"",
        b"{",
        b"[",
        b"[[]]",
        b"[1]",
        b"{}x",
        b" {}",
        b"nonsense",
        b"\xc1",
        b"\xde\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b'{"type":"call","id":"\xff","input":"x"}',
        b'{"type":"call","id":"a","input":"\\ud800"}',
        b'{"type":"call","id":"a","input":"x","timeout_ms":NaN}',
        b'{"type":"call","id":"a","input":"x","timeout_ms":1e400}',
        b'{"type":"call","id":"a","input":"x","options":{"x":' + b"1" * 3900 + b"}}",
        b'{"type":"call","id":"a","input":"x","options":{"x":' + b"[" * 3000,
        b'{"type":"call","id":"a","input":"x","options":{"x":' + b"[" * 900 + b"]" * 900 + b"}}",
        b"\x83\xa4type\xa4call\xa2id\xa1a\xa7options\x81\xa1x" + b"\x91" * 3000 + b"\x01",
        b"\x84\xa4type\xa4call\xa2id\xa1a\xa5input\xa1x\x01\x02",
    ],
)
def test_garbage_is_refused(payload: bytes | None) -> None:
    """Bad bytes, bad text, bad depth: one `invalid_request`, nothing raised."""
    refused = one(payload)
    assert isinstance(refused, Failed)
    assert refused.code == "invalid_request"


def test_a_deep_unknown_field_harms_nobody() -> None:
    """How deep a field may be that nobody reads is the decoder's business: refused or ignored."""
    answer = one(b'{"type":"call","id":"a","input":"x","unknown":' + b"[" * 1500 + b"]" * 1500 + b"}")
    assert isinstance(answer, Failed | Call)


def test_too_large_names_the_call_where_its_id_can_be_read() -> None:
    """Over max_message_bytes: `too_large`, with the id when the payload is a readable map."""
    assert one(as_json(**call(input="x" * LIMIT))).id == "a"
    broken = one(as_json(**call(input="x" * LIMIT))[:-1])
    assert (broken.code, broken.id) == ("too_large", None)
    assert one(b"[" + b"1," * LIMIT).code == "too_large"


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_each_map_of_an_array_stands_alone(encode: Any) -> None:
    """A bad map in an array harms no other; an empty array is nothing; one over 256 maps is refused whole."""
    got = read(encode([call(), {"type": "nonsense", "id": "b"}, 7, call(id="c")]))
    assert got.batch
    assert [isinstance(item.message, Call) for item in got.items] == [True, False, False, True]
    assert [isinstance(item.message, Failed) for item in got.items] == [False, True, True, False]
    assert read(encode([])).items == []
    small = {"type": "ping"}
    assert len(intake.read(encode([small] * 256), max_message_bytes=1 << 20).items) == 256
    (over,) = intake.read(encode([small] * 257), max_message_bytes=1 << 20).items
    assert isinstance(over.message, Failed)


def test_refusals_never_repeat_content() -> None:
    """What a bot sent is its owner's property: no value of it comes back in a message."""
    canary = "CANARY7f3a"
    for fields in [
        call(lane=canary),
        call(timeout_ms=canary),
        call(v=canary),
        call(on_lost=canary),
        call(options=canary),
        {"type": canary},
        call(messages=[{"role": canary, "content": canary}], input=None),
        call(options={"extra_body": {canary: {canary: 2**60}}}),
    ]:
        for encode in (msgspec.json.encode, msgspec.msgpack.encode):
            refused = one(encode(fields))
            assert isinstance(refused, Failed)
            assert canary not in refused.message


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELD_NAMES = st.sampled_from(["type", "id", "v", "input", "messages", "options", "lane", "timeout_ms", "stream", "x"])
NEAR = st.dictionaries(FIELD_NAMES, JUNK | st.sampled_from(["call", "a", 1, "x", "cancel"]), max_size=8)


def well_behaved(payload: bytes) -> None:
    """Messages or refusals, all of which can be encoded again."""
    for message, ignored in read(payload).items:
        assert isinstance(message, Call | Cancel | Hello | Ping | Probe | Failed)
        # Whatever is let in can be passed on, in either encoding.
        assert msgspec.json.encode(message)
        assert msgspec.msgpack.encode(message)
        assert msgspec.json.encode(ignored)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"{" + tail))
def test_any_bytes_are_survived(payload: bytes) -> None:
    """Invariant 7: bad bytes end in values, never in an exception."""
    well_behaved(payload)


@settings(max_examples=300, deadline=None)
@given(NEAR | st.lists(NEAR, max_size=4), st.integers(0, 40), st.binary(max_size=2))
def test_almost_right_messages_are_survived(value: Any, position: int, splice: bytes) -> None:
    """The same for messages that are nearly right, whole and with a few bytes replaced."""
    encoded = msgspec.msgpack.encode(value)
    well_behaved(encoded)
    well_behaved(encoded[:position] + splice + encoded[position + 1 :])
    text = json.dumps(value, default=repr).encode()
    well_behaved(text)
    well_behaved(text[:position] + splice + text[position + 1 :])


@settings(max_examples=200, deadline=None)
@given(JUNK)
def test_let_in_means_portable(value: Any) -> None:
    """Options that pass are JSON: encoding and decoding them gives the same value."""
    message = one(msgspec.msgpack.encode(call(options={"extra_body": value})))
    if isinstance(message, Call):
        assert msgspec.json.decode(msgspec.json.encode(message.options)) == message.options


def test_limits_on_the_wire_are_those_of_the_schema() -> None:
    """The free-form walk uses the bound that the types use."""
    assert intake.unportable(wire.MAX_SAFE_INTEGER, "x") == ""
    assert intake.unportable(wire.MAX_SAFE_INTEGER + 1, "x") != ""


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_no_lane_is_told_from_the_default_one(encode: Any) -> None:
    """Which lane a call without one gets is the daemon's to say, by what its bot may use."""
    assert one(encode(call())).lane is msgspec.UNSET
    assert one(encode(call(novelty=1))).lane is msgspec.UNSET
    assert one(encode(call(lane="entry"))).lane == "entry"
