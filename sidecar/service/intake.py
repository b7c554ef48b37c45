"""What a bot sent, turned into messages and refusals. Pure: bytes in, values out, nothing raised, whatever comes.

Refusals name the field and what it should be, and never repeat what was in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from sidecar import wire
from sidecar.wire import JSON, MAX_BATCH, MAX_SAFE_INTEGER, MSGPACK, Call, Encoding, Failed, ToDaemon

#: How deep `options` may nest. msgspec alone stops near 1,000, where re-encoding would fail instead of reading.
MAX_DEPTH: Final = 64
#: How much `options` may hold: each value costs the loop a microsecond and more, and 1 MiB has room for a million.
MAX_OPTIONS_BYTES: Final = 128 << 10
MAX_VALUES: Final = 20_000
#: An array that is refused whole is looked through for the ids of its calls, unless that itself would take long.
MAX_SEARCHED: Final = 100_000
#: Names of unknown fields given back at most, and how long each may be.
MAX_IGNORED: Final = 32
MAX_IGNORED_LENGTH: Final = 64

T = TypeVar("T")


class Item(NamedTuple):
    """One map of a payload: a message, or why it is refused. `ignored` are the names of its unknown fields."""

    message: ToDaemon | Failed
    ignored: list[str]


class Intake(NamedTuple):
    """One payload. `batch`: it was an array, each map of which stands alone."""

    encoding: Encoding
    items: list[Item]
    batch: bool


_KNOWN: Final = {field.encode_name for field in msgspec.structs.fields(Call)} | {"type"}
_TYPES: Final = "call, cancel, hello, ping, probe"
_ONE_OF: Final = {
    "$.type": _TYPES,
    "$.lane": "exit, entry, research",
    "$.on_lost": "fail, restart",
    "$.check": "live, ready, full",
}
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
#: Messages of msgspec that hold no content of the input. Anything else is reworded.
_CLEAN: Final = ("Expected `", "Object missing required field", "JSON is malformed", "MessagePack data is malformed",
                 "Input data was truncated", "Number out of range", "Integer value out of range")  # fmt: skip

_READ_LIST: Final[dict[Encoding, Callable[[bytes], list[msgspec.Raw]]]] = {
    JSON: msgspec.json.Decoder(list[msgspec.Raw]).decode,
    MSGPACK: msgspec.msgpack.Decoder(list[msgspec.Raw]).decode,
}
_READ_ANY: Final[dict[Encoding, Callable[[Any], Any]]] = {
    JSON: msgspec.json.Decoder().decode,
    MSGPACK: msgspec.msgpack.Decoder().decode,
}


class _Head(msgspec.Struct, frozen=True):
    """What can be read of a map without making anything of the rest; raw, so that a wrong kind hides nothing else."""

    id: msgspec.Raw = msgspec.Raw()
    v: msgspec.Raw = msgspec.Raw()
    options: msgspec.Raw = msgspec.Raw()


_READ_HEAD: Final[dict[Encoding, Callable[[Any], _Head]]] = {
    JSON: msgspec.json.Decoder(_Head).decode,
    MSGPACK: msgspec.msgpack.Decoder(_Head).decode,
}
_READ_FIELDS: Final[dict[Encoding, Callable[[Any], dict[str, Any]]]] = {
    JSON: msgspec.json.Decoder(dict[str, Any]).decode,
    MSGPACK: msgspec.msgpack.Decoder(dict[str, Any]).decode,
}


class _KnownCall(Call, frozen=True, kw_only=True, tag=False, forbid_unknown_fields=True):
    """A call that has no field but those of `Call`, as nearly all have; a `Call` for everybody else."""

    type: Literal["call"]  # a tag outside of a union may be missing; a field may not


_READ_KNOWN: Final[dict[Encoding, Callable[[Any], Call]]] = {
    JSON: msgspec.json.Decoder(_KnownCall).decode,
    MSGPACK: msgspec.msgpack.Decoder(_KnownCall).decode,
}


class _Undecodable(NamedTuple):
    """Why bytes could not be read: in our words, or in msgspec's, which are put into ours when somebody asks."""

    ours: str = ""
    theirs: str = ""

    @property
    def problem(self) -> str:
        return self.ours or describe(self.theirs)


def _decode(decoder: Callable[[Any], T], data: object) -> T | _Undecodable:
    """The one boundary to untrusted bytes: msgspec raises more than its own errors."""
    try:
        return decoder(data)
    except msgspec.MsgspecError as error:
        return _Undecodable(theirs=str(error))
    except UnicodeDecodeError:
        return _Undecodable("text that is not UTF-8")
    except RecursionError:
        return _Undecodable("nested too deeply")
    except MemoryError:
        return _Undecodable("too large to read")


def describe(error: str) -> str:
    """A msgspec message as one for the bot: the field's path first, no content.

    >>> describe("Expected `str` of length <= 64 - at `$.id`")
    'id: expected `str` of length <= 64'
    >>> describe("Invalid enum value 'whatever' - at `$.lane`")
    'lane: expected one of exit, entry, research'
    """
    match = _AT.match(error)
    if match is None:
        return "not a message"
    what, path = match["what"], match["path"] or ""
    field = path.removeprefix("$.") if path != "$" else ""
    if match["key"]:
        return f"{field or 'the message'}: the keys of a map must be strings"
    if not what.startswith(_CLEAN):
        what = f"expected one of {_ONE_OF[path]}" if path in _ONE_OF else "a value that is not allowed here"
    elif not field and what.startswith("Object missing required field `type`"):
        what = f"the field `type` is missing; one of {_TYPES}"
    what = what[0].lower() + what[1:] if what.startswith(("Expected", "Object", "Number", "Integer")) else what
    return f"{field}: {what}" if field else what


def refusal(code: str, message: str, *, name: str | None = None, retry_after_ms: int | None = None) -> Failed:
    """A `failed` on receipt; retryable exactly when it says after how long."""
    return Failed(
        id=name, code=code, message=message, retryable=retry_after_ms is not None, retry_after_ms=retry_after_ms
    )


_EMPTY: Final = refusal("invalid_request", "the payload is empty; send one map, JSON or MessagePack")


def read(payload: bytes | None, *, max_message_bytes: int) -> Intake:
    """Read one payload.

    Args:
        payload: as it came; None when the message did not have exactly one payload frame.
        max_message_bytes: over it, everything in it is refused as `too_large`.
    """
    encoding, problem = _outside(payload, max_message_bytes)
    if problem is not None or not payload:
        if payload and problem is not None and _is_list(encoding, payload):
            return _refused_whole(encoding, problem, _ids_in(encoding, payload))
        return Intake(encoding, [Item(problem or _EMPTY, [])], False)
    if not _is_list(encoding, payload):
        return Intake(encoding, [_read_map(encoding, payload)], False)
    if _said_to_hold(encoding, payload) > MAX_SEARCHED:
        return _refused(encoding, "invalid_request", f"an array holds at most {MAX_BATCH} messages")
    maps = _decode(_READ_LIST[encoding], payload)
    if isinstance(maps, _Undecodable):
        return _refused(encoding, "invalid_request", maps.problem)
    if len(maps) > MAX_BATCH:
        problem = refusal("invalid_request", f"an array holds at most {MAX_BATCH} messages")
        return _refused_whole(encoding, problem, _ids_of(encoding, maps))
    return Intake(encoding, [_read_map(encoding, bytes(memoryview(raw))) for raw in maps], True)


def read_map(payload: bytes | None, *, max_message_bytes: int) -> tuple[Encoding, dict[str, Any] | Failed]:
    """Read one payload as one map of whatever fields (the control socket's messages)."""
    encoding, problem = _outside(payload, max_message_bytes)
    if problem is not None:
        return encoding, problem
    fields = _decode(_READ_FIELDS[encoding], payload)
    if isinstance(fields, _Undecodable):
        return encoding, refusal("invalid_request", fields.problem)
    return encoding, fields


def _outside(payload: bytes | None, max_message_bytes: int) -> tuple[Encoding, Failed | None]:
    """What can be said without reading it."""
    if payload is None:
        return JSON, refusal("invalid_request", "a message is one payload frame, after at most an empty delimiter")
    if not payload:
        return JSON, _EMPTY
    encoding = wire.encoding_of(payload)
    if len(payload) <= max_message_bytes:
        return encoding, None
    problem = f"the payload has {len(payload)} bytes; max_message_bytes is {max_message_bytes}"
    return encoding, refusal("too_large", problem, name=_readable_id(encoding, payload))


def _refused(encoding: Encoding, code: str, message: str) -> Intake:
    return Intake(encoding, [Item(refusal(code, message), [])], False)


def _refused_whole(encoding: Encoding, problem: Failed, names: list[str]) -> Intake:
    """One refusal for each call that can be named, so that none of them waits for its deadline; or a single one."""
    refused: list[Failed] = [msgspec.structs.replace(problem, id=name) for name in names] or [problem]
    return Intake(encoding, [Item(each, []) for each in refused], True)


def _ids_of(encoding: Encoding, maps: list[msgspec.Raw]) -> list[str]:
    names = (_readable_id(encoding, bytes(memoryview(raw))) for raw in maps[:MAX_BATCH])
    return [name for name in names if name is not None]


def _ids_in(encoding: Encoding, payload: bytes) -> list[str]:
    if max(_said_to_hold(encoding, payload), payload.count(b",") if encoding is JSON else 0) > MAX_SEARCHED:
        return []
    maps = _decode(_READ_LIST[encoding], payload)
    return [] if isinstance(maps, _Undecodable) else _ids_of(encoding, maps)


def _said_to_hold(encoding: Encoding, payload: bytes) -> int:
    """How many entries a long MessagePack array claims; 0 for any other."""
    return int.from_bytes(payload[1:5], "big") if encoding is MSGPACK and payload[0] == 0xDD else 0


def _is_list(encoding: Encoding, payload: bytes) -> bool:
    first = payload[0]
    return first == 0x5B if encoding is JSON else 0x90 <= first <= 0x9F or first in {0xDC, 0xDD}


def _read_map(encoding: Encoding, data: bytes) -> Item:
    if len(data) > MAX_OPTIONS_BYTES:  # before anything is made of them
        head = _decode(_READ_HEAD[encoding], data)
        if not isinstance(head, _Undecodable) and len(memoryview(head.options)) > MAX_OPTIONS_BYTES:
            problem = f"options: at most {MAX_OPTIONS_BYTES >> 10} KiB"
            return Item(refusal("invalid_request", problem, name=_name(encoding, head)), [])
    # Strictly first, which is one look for nearly every call; whatever that refuses is looked at more patiently.
    call = _decode(_READ_KNOWN[encoding], data)
    return _read_patiently(encoding, data) if isinstance(call, _Undecodable) else _checked(call, [])


def _read_patiently(encoding: Encoding, data: bytes) -> Item:
    """Any message; of a call, the names of its unknown fields."""
    message = _decode(encoding.decode_to_daemon, data)
    if isinstance(message, _Undecodable):
        return Item(_explain(encoding, data, message.problem), [])
    if not isinstance(message, Call):
        return Item(message, [])
    keys = _decode(encoding.read_keys, data)
    if isinstance(keys, _Undecodable):
        return Item(refusal("invalid_request", keys.problem, name=message.id), [])
    ignored = [key for key in keys if key not in _KNOWN]
    return _checked(message, [key[:MAX_IGNORED_LENGTH] for key in ignored[:MAX_IGNORED]])


def _checked(call: Call, ignored: list[str]) -> Item:
    if call.v != wire.WIRE_VERSION:
        return Item(_other_version(call.id), [])
    problem = _problem(call)
    return Item(refusal("invalid_request", problem, name=call.id) if problem else call, [] if problem else ignored)


def _other_version(name: str | None) -> Failed:
    return refusal("unsupported_version", f"v: this daemon speaks version {wire.WIRE_VERSION}", name=name)


def _problem(call: Call) -> str:
    """What the types cannot say; "" when nothing."""
    if (call.input is None) == (call.messages is None):
        return "give exactly one of `input` and `messages`"
    if call.messages is not None and not call.messages:
        return "messages: at least one"
    return unportable(call.options, "options") if call.options else ""


def _explain(encoding: Encoding, data: bytes, problem: str) -> Failed:
    """A map that could not be read as a message: with its id where that can be read, its version first."""
    head = _decode(_READ_HEAD[encoding], data)
    if isinstance(head, _Undecodable):
        return refusal("invalid_request", problem)
    name = _name(encoding, head)
    if memoryview(head.v):
        version = _decode(_READ_ANY[encoding], head.v)
        if type(version) is int and version != wire.WIRE_VERSION:
            return _other_version(name)
    return refusal("invalid_request", problem, name=name)


def _readable_id(encoding: Encoding, payload: bytes) -> str | None:
    head = _decode(_READ_HEAD[encoding], payload)
    return None if isinstance(head, _Undecodable) else _name(encoding, head)


def _name(encoding: Encoding, head: _Head) -> str | None:
    name = _decode(_READ_ANY[encoding], head.id) if memoryview(head.id) else None
    return name if isinstance(name, str) and 1 <= len(name) <= 64 else None


def unportable(value: Any, path: str) -> str:
    """Why a free-form value cannot be passed on as JSON, "" when it can.

    Level by level and bounded, as depth and size are the bot's choice. A path names map keys no further than the
    first level (they are the bot's own).
    """
    level: list[Any] = [value]
    left = MAX_VALUES
    for depth in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if item is None or kind is bool or kind is str:
                continue
            if kind is int:
                if not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                    return f"{path}: an integer beyond 2^53 - 1"
            elif kind is float:
                if not math.isfinite(item):
                    return f"{path}: NaN and infinities are not allowed"
            elif kind is not dict and kind is not list:
                return f"{path}: a value that JSON does not have"
            elif depth == MAX_DEPTH:
                return f"{path}: nested deeper than {MAX_DEPTH}"
            else:
                left -= len(item)
                if left < 0:
                    return f"{path}: more than {MAX_VALUES} values"
                if kind is dict and not all(type(key) is str for key in item):
                    return f"{path}: the keys of a map must be strings"
                below.extend(item.values() if kind is dict else item)
        if not below:
            return ""
        level = below
    return ""
