"""The portable options: one table says what each becomes in each dialect.

`TABLE` is what `encode` and `Dialect.unsupported` read, and what `proto/wire.md` is held to. An empty cell means that
the dialect has no field for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from sidecar.dialects.base import JsonObject
from sidecar.errors import SidecarError
from sidecar.wire import MAX_SAFE_INTEGER, Options

#: How deep `response_format` and `extra_body` may nest.
MAX_DEPTH: Final = 64


class OptionError(SidecarError, ValueError):
    """An option that cannot be sent.

    Args:
        name: the option.
        reason: for people; never holds the value.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"option {name[:64]!r}: {reason}")


class UnsupportedOption(OptionError):
    """No dialect, or not this one, has a field for it (`unsupported_option` on the wire)."""


class InvalidOption(OptionError):
    """A known option with a value it cannot have (`invalid_request` on the wire)."""


def _flat_format(given: JsonObject) -> JsonObject:
    """Chat's `{type, json_schema: {name, schema}}` -> Responses' `{type, name, schema}`; others as they are."""
    inner = given.get("json_schema")
    if not isinstance(inner, dict):
        return given
    return {"type": given.get("type", "json_schema")} | inner


def _nested_format(given: JsonObject) -> JsonObject:
    """Responses' flat json_schema -> chat's nested one; others as they are."""
    if given.get("type") != "json_schema" or "json_schema" in given:
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def _schema_of(given: JsonObject) -> Any:
    """The schema in a `response_format` of either shape; None where there is none."""
    inner = given.get("json_schema", given)
    return inner.get("schema") if given.get("type") == "json_schema" and isinstance(inner, dict) else None


def _schema_only(given: JsonObject) -> JsonObject:
    """Either shape -> Messages', which knows a schema, and no name for it."""
    return {"type": "json_schema", "schema": _schema_of(given)}


def _has_schema(given: JsonObject) -> bool:
    return isinstance(_schema_of(given), dict)


def _is_tier(given: str) -> bool:
    return given in ("auto", "standard_only")


def _as_list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


class Field(Struct, frozen=True):
    """Where an option goes in a request: a dotted path, what becomes of its value, and which values there are."""

    path: str
    convert: Callable[[Any], Any] | None = None
    takes: Callable[[Any], bool] | None = None


class Row(Struct, frozen=True, kw_only=True):
    """One portable option, and its place in each dialect."""

    option: str
    responses: Field | None
    chat: Field | None
    messages: Field | None

    def field(self, dialect: str, value: Any) -> Field | None:
        """Its place in `dialect`, None where that has no field for it, or none for this value."""
        field: Field | None = getattr(self, dialect)
        return None if field is None or (field.takes is not None and not field.takes(value)) else field


def _same(option: str, messages: Field | None) -> Row:
    return Row(option=option, responses=Field(option), chat=Field(option), messages=messages)


TABLE: Final[tuple[Row, ...]] = (
    _same("temperature", Field("temperature")),
    _same("top_p", Field("top_p")),
    Row(
        option="max_output_tokens",
        responses=Field("max_output_tokens"),
        chat=Field("max_completion_tokens"),
        messages=Field("max_tokens"),
    ),
    Row(
        option="reasoning_effort",
        responses=Field("reasoning.effort"),
        chat=Field("reasoning_effort"),
        messages=Field("output_config.effort"),
    ),
    Row(
        option="response_format",
        responses=Field("text.format", _flat_format),
        chat=Field("response_format", _nested_format),
        messages=Field("output_config.format", _schema_only, _has_schema),
    ),
    _same("service_tier", Field("service_tier", takes=_is_tier)),
    _same("prompt_cache_key", None),
    Row(option="stop", responses=None, chat=Field("stop"), messages=Field("stop_sequences", _as_list)),
    Row(option="seed", responses=None, chat=Field("seed"), messages=None),
)

#: What belongs to the protocol, and no `extra_body` may touch.
PROTOCOL_FIELDS: Final = frozenset({"type", "stream_id", "id", "stream", "background"})

#: What belongs to the operator: a bot's `extra_body` may not get round the route's model, its fuse or its privacy.
OPERATOR_FIELDS: Final = frozenset({"model", "store", "max_output_tokens", "max_tokens", "max_completion_tokens"})


def unsupported(options: Options, dialect: str) -> list[str]:
    """The names of the options given that `dialect` has no field for, or not for the value given."""
    given = ((row, getattr(options, row.option)) for row in TABLE)
    return [row.option for row, value in given if value is not None and row.field(dialect, value) is None]


def lay(body: JsonObject, options: Options, dialect: str) -> JsonObject:
    """Write `options` into a request's `body`, `extra_body` last; what the dialect has no field for is left out.

    A map of `extra_body` that meets a map of ours is joined with it, key by key, so that `{"text": {"verbosity":
    "low"}}` does not undo a `response_format`. Protocol fields are not touched, whatever it says.

    Returns:
        `body`, for convenience.
    """
    for row in TABLE:
        value = getattr(options, row.option)
        field = None if value is None else row.field(dialect, value)
        if field is None:
            continue
        head, _, tail = field.path.partition(".")
        value = value if field.convert is None else field.convert(value)
        if tail:
            body.setdefault(head, {})[tail] = value
        else:
            body[head] = value
    for name, value in (options.extra_body or {}).items():
        if name in PROTOCOL_FIELDS:
            continue
        ours = body.get(name)
        body[name] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    return body


def is_plain(options: Options) -> bool:
    """No value of them is a map or a list: they can be the key under which what became of them is kept."""
    return options.extra_body is None and options.response_format is None and type(options.stop) is not list


def merge(target_options: dict[str, Any], call_options: dict[str, Any], cap: int) -> Options:
    """A target's options with a call's laid over them. `extra_body` maps are joined, the call's keys winning.

    Args:
        target_options: the operator's.
        call_options: the bot's, as they came: not trusted. A null takes the target's option away.
        cap: the route's `max_output_tokens`; a call may ask for less, never for more.

    Raises:
        UnsupportedOption: a name that is none of the portable ones.
        InvalidOption: a value of the wrong kind or out of range; a number beyond 2^53 - 1, a NaN or an infinity
            anywhere; `extra_body` with a field that is not the bot's to set.
    """
    _check(target_options, PROTOCOL_FIELDS)
    _check(call_options, PROTOCOL_FIELDS | OPERATOR_FIELDS)
    merged = {**target_options, **call_options}
    theirs, ours = target_options.get("extra_body"), call_options.get("extra_body")
    if theirs and ours:
        merged["extra_body"] = {**theirs, **ours}
    asked = merged.get("max_output_tokens")
    options = _converted(merged)
    return msgspec.structs.replace(options, max_output_tokens=cap if asked is None else min(cap, asked))


def _check(options: dict[str, Any], reserved: Iterable[str]) -> None:
    for name, value in options.items():
        if name not in Options.__struct_fields__:
            raise UnsupportedOption(name, "not a portable option; what one vendor alone knows goes into extra_body")
        _check_value(name, value)
    _converted(options)
    for name in options.get("extra_body") or ():
        if name in reserved:
            raise InvalidOption("extra_body", f"{name} is not yours to set here")


def _converted(options: dict[str, Any]) -> Options:
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as problem:
        # msgspec names the kind and the place, never the value.
        place = str(problem).rpartition("$.")[2].rstrip("`")
        raise InvalidOption(place.partition(".")[0].partition("[")[0] or "options", str(problem)) from None


def _check_value(name: str, value: Any) -> None:
    """Everything inside must be JSON that any reader takes: without recursion, for depth is the sender's choice."""
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        one, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise InvalidOption(name, f"nested deeper than {MAX_DEPTH}")
        if one is None:
            continue
        if isinstance(one, str):
            _check_text(name, one)
        elif isinstance(one, int | float):
            _check_number(name, one)
        elif isinstance(one, dict):
            for key, inside in one.items():
                if not isinstance(key, str):
                    raise InvalidOption(name, "a key that is not a string")
                _check_text(name, key)
                todo.append((inside, depth + 1))
        elif isinstance(one, list | tuple):
            todo.extend((inside, depth + 1) for inside in one)
        else:
            raise InvalidOption(name, f"a value JSON does not have: {type(one).__name__}")


def _check_number(name: str, number: float) -> None:
    if not math.isfinite(number):
        raise InvalidOption(name, "NaN and infinities are not JSON")
    if abs(number) > MAX_SAFE_INTEGER:
        raise InvalidOption(name, "a number beyond 2^53 - 1")


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidOption(name, "half a surrogate pair") from None
