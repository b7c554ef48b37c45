"""Write `proto/schema/*.json` from the message types of `sidecar.wire`.

Run it from the root of the repository after every change of a message::

    python tests/wire/generate_schema.py

The output depends on nothing but the types, so that a schema is stale exactly when a message changed.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from sidecar import wire
from sidecar.errors import CODES

COMMAND: Final = "python tests/wire/generate_schema.py"
FOLDER: Final = Path(__file__).parents[2] / "proto" / "schema"
_REF: Final = "#/$defs/{name}"

#: file -> title, what it describes, the union of its messages, further types that are published with them.
_FILES: Final[dict[str, tuple[str, str, Any, tuple[type, ...]]]] = {
    "bot-to-daemon.json": (
        "What a bot may send",
        "One message, or an array of messages.",
        wire.ToDaemon,
        (wire.Options,),
    ),
    "daemon-to-bot.json": (
        "What the daemon may send",
        "One message, or an array of them after hello with batch: true. Accept fields and codes not listed here.",
        wire.FromDaemon,
        (),
    ),
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one file of `proto/schema`, as plain maps and lists."""
    title, description, union, further = _FILES[name]
    _, components = msgspec.json.schema_components([*get_args(union), *further], ref_template=_REF)
    for component in components.values():
        if "description" in component:
            component["description"] = inspect.cleandoc(component["description"])
    if name == "bot-to-daemon.json":
        _tighten(components)
    else:
        # An open set: examples, not an enum.
        components["Failed"]["properties"]["code"]["examples"] = [c for c, group in CODES.items() if group != "client"]
    components["Message"] = {
        "title": "Message",
        "oneOf": [{"$ref": _REF.format(name=kind.__name__)} for kind in get_args(union)],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{title} (local wire, version {wire.WIRE_VERSION})",
        "description": f"{description} Generated: {COMMAND}. The meaning of each field stands in proto/wire.md.",
        "oneOf": [
            {"$ref": _REF.format(name="Message")},
            {"type": "array", "items": {"$ref": _REF.format(name="Message")}, "maxItems": wire.MAX_BATCH},
        ],
        "$defs": dict(sorted(components.items())),
    }


def _tighten(components: dict[str, Any]) -> None:
    """Add what the Python types leave to the daemon."""
    call = components["Call"]
    # The daemon reads the options in a second step, to tell an unknown name from a wrong value.
    call["properties"]["options"] = {"$ref": _REF.format(name="Options"), "default": {}}
    call["properties"]["v"] = {"const": wire.WIRE_VERSION, "default": wire.WIRE_VERSION}
    # A call without one is an entry, unless its bot may not use that lane.
    call["properties"]["lane"]["default"] = "entry"
    call["oneOf"] = [
        {"required": ["input"], "properties": {"input": {"type": "string"}, "messages": {"type": "null"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}, "input": {"type": "null"}}},
    ]


def text_of(name: str) -> str:
    """The file's content, byte for byte."""
    return json.dumps(schema_of(name), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")
        print(f"wrote proto/schema/{name}")


NAMES: Final = tuple(_FILES)

if __name__ == "__main__":
    main()
