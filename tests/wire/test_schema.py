"""The published JSON Schema: fresh, of the dialect it claims, and true to what the daemon decodes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
import pytest

from sidecar import wire
from tests.wire import generate_schema, vectors

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def _valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """A validator of just the keywords our schema uses; an unknown keyword is an error."""
    return all(_KEYWORDS[keyword](value, rule, schema, root) for keyword, rule in schema.items())


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    resolved: dict[str, Any] = found
    return resolved


def _true(*_: Any) -> bool:
    return True


_KEYWORDS: dict[str, Any] = {
    **dict.fromkeys(("$schema", "$defs", "title", "description", "default", "examples"), _true),
    "$ref": lambda v, r, s, root: _valid(v, _resolve(r, root), root),
    "type": lambda v, r, s, root: _is(v, r),
    "enum": lambda v, r, s, root: v in r,
    "const": lambda v, r, s, root: v == r and type(v) is type(r),
    "anyOf": lambda v, r, s, root: any(_valid(v, one, root) for one in r),
    "oneOf": lambda v, r, s, root: sum(_valid(v, one, root) for one in r) == 1,
    "required": lambda v, r, s, root: not isinstance(v, dict) or all(name in v for name in r),
    "properties": lambda v, r, s, root: (
        not isinstance(v, dict) or all(_valid(v[name], one, root) for name, one in r.items() if name in v)
    ),
    "additionalProperties": lambda v, r, s, root: (
        not isinstance(v, dict)
        or all(
            r if isinstance(r, bool) else _valid(one, r, root)
            for name, one in v.items()
            if name not in s.get("properties", {})
        )
    ),
    "items": lambda v, r, s, root: not isinstance(v, list) or all(_valid(one, r, root) for one in v),
    "minItems": lambda v, r, s, root: not isinstance(v, list) or len(v) >= r,
    "maxItems": lambda v, r, s, root: not isinstance(v, list) or len(v) <= r,
    "minLength": lambda v, r, s, root: not isinstance(v, str) or len(v) >= r,
    "maxLength": lambda v, r, s, root: not isinstance(v, str) or len(v) <= r,
    "minimum": lambda v, r, s, root: not _is(v, "number") or v >= r,
    "maximum": lambda v, r, s, root: not _is(v, "number") or v <= r,
    "exclusiveMinimum": lambda v, r, s, root: not _is(v, "number") or v > r,
}


def _published(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((generate_schema.FOLDER / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", generate_schema.NAMES)
def test_the_schema_is_fresh(name: str) -> None:
    """What is published is what the message types say now."""
    published = (generate_schema.FOLDER / name).read_text(encoding="utf-8")
    assert published == generate_schema.text_of(name), (
        f"proto/schema/{name} is stale; regenerate it: {generate_schema.COMMAND}"
    )


def test_nothing_else_lies_among_the_schemas() -> None:
    """A file that is not generated would never go stale, and so would always be."""
    assert {path.name for path in generate_schema.FOLDER.iterdir()} == set(generate_schema.NAMES)


@pytest.mark.parametrize("name", generate_schema.NAMES)
def test_every_reference_leads_somewhere(name: str) -> None:
    """The file stands alone: each `$ref` is found in its own `$defs`."""
    schema = _published(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema)):
        assert _resolve(reference, schema)


def _verdicts() -> list[Any]:
    """The inbound cases whose JSON is JSON, and whether their message by itself is a good one."""
    params = []
    for case in vectors.load("inbound")["cases"]:
        try:
            message = json.loads(case["json"])
        except (KeyError, ValueError):
            continue
        # What a schema cannot see: what else is in flight, how deep it is, which routes there are.
        beyond = {"extra_body with the operator's model", "extra_body with store"}
        beyond |= {"id in use", "options nested 65 deep", "unknown route", "33 unknown fields"}
        beyond |= {"JSON with half a pair of surrogates", "integer beyond 2^53 - 1 inside extra_body"}
        # An infinity that Python's json reads from 1e400, and 1.0, which JSON Schema calls an integer.
        beyond |= {"number too large for a double", "version is a float"}
        if case["name"] in beyond or case["json"][:1] not in {"{", "["}:
            continue
        codes = {answer.get("code") for answer in case["expect"]}
        good = not codes & {"invalid_request", "unsupported_version", "unsupported_option"}
        if case["name"].startswith("unknown route"):
            good = False
        params.append(pytest.param(message, good, id=case["name"]))
    return params


@pytest.mark.parametrize(("message", "good"), _verdicts())
def test_the_schema_agrees_with_the_vectors(message: Any, good: bool) -> None:
    """A bot author who validates against the schema hears what the daemon would say."""
    schema = _published("bot-to-daemon.json")
    assert _valid(message, schema, schema) is good


@pytest.mark.parametrize("case", vectors.load("outbound")["cases"], ids=lambda case: case["name"])
def test_what_the_daemon_sends_is_valid(case: dict[str, Any]) -> None:
    """Every example of the daemon's messages is valid, and so is one with a field of a later version."""
    schema = _published("daemon-to-bot.json")
    message = json.loads(case["json"])
    assert _valid(message, schema, schema)
    if isinstance(message, dict):
        assert _valid({**message, "tide": 1}, schema, schema)
        assert not _valid({**message, "type": "unheard"}, schema, schema)


def test_the_options_of_the_schema_are_those_the_types_take() -> None:
    """The options are published with their limits though a call's are decoded in a second step."""
    schema = _published("bot-to-daemon.json")
    options = schema["$defs"]["Call"]["properties"]["options"]
    assert options["$ref"] == "#/$defs/Options"
    assert set(schema["$defs"]["Options"]["properties"]) == set(wire.Options.__struct_fields__)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"temperature": math.pi}, wire.Options)
    assert not _valid({"temperature": math.pi}, schema["$defs"]["Options"], schema)
