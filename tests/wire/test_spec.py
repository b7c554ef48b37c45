"""`proto/wire.md` against the code: a spec that is not held to the program is a rumour."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from sidecar import wire
from sidecar.dialects.options import OPERATOR_FIELDS, PROTOCOL_FIELDS, TABLE
from sidecar.errors import CODES

PROTO = Path(__file__).parents[2] / "proto"
SPEC = (PROTO / "wire.md").read_text(encoding="utf-8")
_GROUPS = {
    "your request": "request",
    "never reached an upstream": "never_sent",
    "stopped by the operator": "operator",
    "time": "time",
    "bot": "bot",
    "upstream": "upstream",
    "ours": "ours",
}


def _section(title: str) -> str:
    """The text under a heading, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}$", SPEC, re.MULTILINE)
    assert match, f"no section {title!r}"
    end = re.search(rf"^#{{1,{len(match[1])}}} ", SPEC[match.end() :], re.MULTILINE)
    return SPEC[match.end() : match.end() + end.start() if end else None]


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]


@pytest.mark.parametrize("kind", [wire.Call, *get_args(wire.FromDaemon)], ids=lambda kind: kind.__name__)
def test_each_field_of_a_message_stands_in_its_table(kind: type[msgspec.Struct]) -> None:
    """The spec names every field of a message in the message's own table, and none that does not exist."""
    name = str(kind.__struct_config__.tag)
    rows = _rows(_section(f"`{name}`").split("**Options.**")[0])
    listed = {field for row in rows for field in re.findall(r"`(\w+)`", row[0])} - {"type"}
    assert listed == set(kind.__struct_fields__)


@pytest.mark.parametrize("kind", [wire.Cancel, wire.Hello, wire.Ping, wire.Probe], ids=lambda kind: kind.__name__)
def test_each_field_of_a_small_message_is_named(kind: type[msgspec.Struct]) -> None:
    """The short messages have no table; their fields stand in braces."""
    assert re.search(r"\{type[^}]*" + r"\??,\s*".join(kind.__struct_fields__) + r"\??\}", SPEC), (
        f"{kind.__name__} is not described with all its fields in order"
    )


@pytest.mark.parametrize(
    "kind",
    [wire.Usage, wire.Timing, wire.Limits, wire.RouteReport, wire.UpstreamReport, wire.ChatMessage],
    ids=lambda kind: kind.__name__,
)
def test_each_field_of_an_inner_map_is_named(kind: type[msgspec.Struct]) -> None:
    """Maps within messages are described down to their last field."""
    for field in kind.__struct_fields__:
        assert re.search(rf"[`{{ ]{field}[`,}}]", SPEC), f"{kind.__name__}.{field}"


def test_the_options_stand_in_their_table() -> None:
    """The table of options is that of the types and of the dialects, with the names that a bot may not set."""
    table = _section("`call`").split("**Options.**")[1]
    listed = {match[1]: row for row in _rows(table) if (match := re.match(r"`(\w+)`", row[0]))}
    assert set(listed) == set(wire.Options.__struct_fields__)
    for row in TABLE:
        paths = [f"`{field.path}`" if field else "-" for field in (row.responses, row.chat, row.messages)]
        assert listed[row.option][2:] == paths
    reserved = set(re.findall(r"`(\w+)`", table.split("Ten names")[1].split("### ")[0])) - {"invalid_request"}
    assert reserved == PROTOCOL_FIELDS | OPERATOR_FIELDS


def test_the_codes_are_those_of_the_error_tree() -> None:
    """Each code stands in the spec, in its group, with the retryable of its group; the clients' own are named."""
    group, seen = "", {}
    for row in _rows(_section("8 Codes")):
        group = row[0] or group
        if (match := re.match(r"`(\w+)`", row[1])) and group in _GROUPS:
            seen[match[1]] = _GROUPS[group]
            expected = {"never_sent": "yes", "upstream": "as said"}.get(_GROUPS[group], "no")
            assert row[-1] == expected, row
    assert seen == {code: group for code, group in CODES.items() if group != "client"}
    for code in (code for code, group in CODES.items() if group == "client"):
        assert f"`{code}`" in SPEC


def test_limits_and_values_are_those_of_the_types() -> None:
    """Numbers and words that the types fix are quoted rightly."""
    assert f"`v` | int | {wire.WIRE_VERSION} |" in SPEC
    assert f"at most {wire.MAX_BATCH} maps" in SPEC
    for alias in (wire.Lane, wire.Finish, wire.Phase):
        for value in get_args(alias):
            assert f'`"{value}"`' in SPEC
    for role in get_args(wire.Role):
        assert f"`{role}`" in SPEC
    assert SPEC.count("86,400,000") == 3


def _dialogues() -> list[tuple[str, str]]:
    blocks = re.findall(r"^```dialogue\n(.*?)^```$", SPEC, re.MULTILINE | re.DOTALL)
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize(("who", "line"), _dialogues())
def test_each_line_of_the_dialogues_is_a_message(who: str, line: str) -> None:
    """The examples decode as what they claim to be, without a field that the types do not know."""
    if who == "daemon":
        decoded = wire.JSON.decode_from_daemon(line.encode())
        messages: list[Any] = decoded if isinstance(decoded, list) else [decoded]
    else:
        assert who == "bot"
        maps = json.loads(line)
        maps = maps if isinstance(maps, list) else [maps]
        messages = [wire.JSON.decode_to_daemon(json.dumps(one).encode()) for one in maps]
    written = json.loads(line)
    for message, one in zip(messages, written if isinstance(written, list) else [written], strict=True):
        assert set(one) <= {"type", *message.__struct_fields__}


def test_the_streams_of_the_dialogues_keep_the_promises() -> None:
    """In each example seq has no hole, the terminal counts the deltas, and nothing follows it."""
    for block in re.findall(r"^```dialogue\n(.*?)^```$", SPEC, re.MULTILINE | re.DOTALL):
        seq: dict[str, int] = {}
        ended: set[str] = set()
        for line in block.splitlines():
            who, text = line.split(maxsplit=1)
            if who != "daemon":
                continue
            written = json.loads(text)
            for message in written if isinstance(written, list) else [written]:
                name = message.get("id")
                assert name is None or name not in ended
                if message["type"] == "delta":
                    assert message["seq"] == seq.get(name, message["seq"])
                    seq[name] = message["seq"] + 1
                elif message["type"] == "restarted":
                    seq[name] = 0
                elif "call_id" in message and message["type"] in {"done", "failed"}:
                    assert message["deltas"] == seq.get(name, 0)
                    ended.add(name)


def test_the_folder_holds_no_code() -> None:
    """`proto` is for every language; and it is another package's import name."""
    assert not list(PROTO.rglob("*.py"))


@pytest.mark.parametrize("name", ["wire.md", "README.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Relative links point at files, and anchors at headings."""
    text = (PROTO / name).read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (PROTO / target).exists()
