"""The golden vectors of `proto/vectors` against `sidecar.wire` alone: what decoding and encoding can decide."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from sidecar import wire
from sidecar.errors import CODES
from tests.wire import vectors

#: What decoding bytes of a stranger may raise, and nothing else.
REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError)
ANSWER_TO: dict[str, type[Any]] = {
    "accepted": wire.Call,
    "welcome": wire.Hello,
    "pong": wire.Ping,
    "report": wire.Probe,
}


def _inbound() -> list[Any]:
    return [
        pytest.param(case, encoding, payload, id=f"{case['name']}-{encoding}")
        for case in vectors.load("inbound")["cases"]
        for encoding, payload in vectors.payloads(case)
    ]


def _legible_id(payload: bytes) -> str | None:
    """The id of a refused message, as `wire.md` says it is to be read: legal, or none."""
    encoding = wire.encoding_of(payload)
    try:
        raw = encoding.read_keys(payload)["id"]
        module = msgspec.json if encoding is wire.JSON else msgspec.msgpack
        name: str = module.decode(raw, type=wire.CallName)
        return name
    except (*REFUSED, KeyError):
        return None


@pytest.mark.parametrize(("case", "encoding", "payload"), _inbound())
def test_decoding_alone_takes_what_must_be_taken_and_refuses_what_must_be_refused(
    case: dict[str, Any], encoding: str, payload: bytes
) -> None:
    """A message that the types can judge is judged as the vector says, with its id read back, in each encoding."""
    decode = wire.encoding_of(payload).decode_to_daemon
    if case["decided_by"] != "wire":
        try:
            decode(payload)
        except REFUSED:
            assert case["expect"][0]["code"] in {"unsupported_version", "invalid_request"}
        return
    (answer,) = case["expect"]
    if answer["type"] == "failed":
        with pytest.raises(REFUSED):
            decode(payload)
        if "id" in answer:
            assert _legible_id(payload) == answer["id"]
        return
    message = decode(payload)
    assert type(message) is ANSWER_TO[answer["type"]]
    if isinstance(message, wire.Call):
        assert message.id == answer["id"]
        known = {"type", *wire.Call.__struct_fields__}
        unknown = [name for name in wire.encoding_of(payload).read_keys(payload) if name not in known]
        assert unknown == answer.get("ignored", unknown)
    if isinstance(message, wire.Ping):
        assert message.nonce == answer["nonce"]


@pytest.mark.parametrize("case", vectors.load("inbound")["cases"], ids=lambda case: case["name"])
def test_both_encodings_of_a_message_mean_the_same(case: dict[str, Any]) -> None:
    """Where a case has both encodings, they decode to equal messages or are both refused."""
    if not {"json", "msgpack"} <= case.keys():
        assert case.keys() & {"json", "msgpack"}
        return
    outcomes = []
    for _, payload in vectors.payloads(case):
        try:
            outcomes.append(wire.encoding_of(payload).decode_to_daemon(payload))
        except REFUSED:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("case", vectors.load("limits")["cases"], ids=lambda case: case["name"])
def test_a_payload_at_the_limits_raises_nothing_unexpected(case: dict[str, Any]) -> None:
    """Depth and length never raise more than the one boundary catches; sizes stand as their names say."""
    payload = vectors.assembled(case)
    encoding = wire.encoding_of(payload)
    assert encoding.name == case["encoding"]
    limit = vectors.load("limits")["settings"]["max_message_bytes"]
    too_large = case["expect"][0].get("code") == "too_large"
    assert (len(payload) > limit) is too_large
    assert len(payload) <= 2 * limit
    if case["name"].startswith("exactly"):
        assert len(payload) == limit
        assert encoding.decode_to_daemon(payload)
    elif case["decided_by"] == "wire":
        with pytest.raises(REFUSED):
            encoding.decode_to_daemon(payload)


@pytest.mark.parametrize("case", vectors.load("outbound")["cases"], ids=lambda case: case["name"])
def test_what_the_daemon_sends_is_byte_exact(case: dict[str, Any]) -> None:
    """Both encodings decode to the same message, and encoding that message gives those very bytes."""
    decoded = {}
    for name, payload in vectors.payloads(case):
        encoding = wire.encoding_of(payload)
        assert repr(encoding) == f"<Encoding {name}>"
        decoded[name] = encoding.decode_from_daemon(payload)
        assert encoding.encode(decoded[name]) == payload
    assert decoded["json"] == decoded["msgpack"]


def test_every_message_of_the_daemon_has_a_vector() -> None:
    """No type of message is published without an example."""
    seen = {json.loads(case["json"])["type"] for case in vectors.load("outbound")["cases"] if case["json"][0] == "{"}
    assert seen == {"accepted", "delta", "restarted", "done", "failed", "welcome", "pong", "report"}


@pytest.mark.parametrize("name", ["inbound", "arrays", "framing", "limits", "outbound"])
def test_the_vectors_are_well_formed(name: str) -> None:
    """Names are unique, expected codes exist, and whoever decides is one of the three that can."""
    loaded = vectors.load(name)
    names = [case["name"] for case in loaded["cases"]]
    assert len(names) == len(set(names))
    for case in loaded["cases"]:
        assert case.get("decided_by", "intake") in {"wire", "intake", "handler"}
        assert all(answer.get("code", "internal") in CODES for answer in case.get("expect", []))


def test_newer_daemons_are_understood() -> None:
    """A client of this version reads a message with fields and a code that it does not know."""
    newer = b'{"type":"failed","id":"a","code":"moon_phase","message":"","retryable":false,"tide":{"h":1}}'
    message = wire.JSON.decode_from_daemon(newer)
    assert isinstance(message, wire.Failed)
    assert message.code == "moon_phase"
