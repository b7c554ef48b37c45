"""docs/configuration.md cannot go stale: its tables are compared with the structs and the presets."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.config import (
    BreakerSettings,
    BudgetSettings,
    Client,
    CredentialSource,
    Frontend,
    Log,
    Route,
    Target,
    Tls,
    Upstream,
    load,
)
from sidecar.config.presets import PRESETS

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
SECTIONS = {
    "## `[frontend]`": Frontend,
    "## `[[upstream]]`": Upstream,
    "### `credential`": CredentialSource,
    "### `breaker`": BreakerSettings,
    "### `retry_budget`": BudgetSettings,
    "### `[upstream.tls]`": Tls,
    "## `[[route]]`": Route,
    "### A target": Target,
    "## `[[client]]`": Client,
    "## `[log]`": Log,
}


def section(heading: str) -> str:
    """The text from one heading to the next."""
    start = TEXT.index(heading + "\n") + len(heading)
    following = re.search(r"^#+ ", TEXT[start:], re.MULTILINE)
    return TEXT[start : start + following.start() if following else None]


def shown(field: msgspec.structs.FieldInfo) -> str:
    """A default as the table writes it."""
    if field.required:
        return "required"
    default: Any = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if default is None:
        return "none"
    if isinstance(default, msgspec.Struct):
        return "table"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return f"[{', '.join(map(words, default))}]"
    return "{}" if default == {} else words(default)


def words(default: str | float) -> str:
    """A scalar in TOML."""
    return (
        f'"{default}"' if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else str(default)
    )


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_with_its_default(heading: str) -> None:
    """Each table has the struct's keys, in its order, with the defaults it has."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.+) \|$", section(heading), re.MULTILINE)
    fields = msgspec.structs.fields(SECTIONS[heading])
    assert [name for name, _, _ in rows] == [field.encode_name for field in fields]
    assert [default for _, default, _ in rows] == [shown(field) for field in fields]


def test_presets_are_documented() -> None:
    """Each preset's values and what the service does itself."""
    rows = re.findall(
        r"^\| (\w+) \| (\d+) \| (.*?)\| ends a connection after (\d+) s; runs (\d+) at once on a connection(.*) \|$",
        section("### Presets"),
        re.MULTILINE,
    )
    over_https = re.findall(
        r"^\| (\w+) \| \| `dialect` = (\w+) \| over HTTPS only", section("### Presets"), re.MULTILINE
    )
    assert [row[0] for row in rows] + [row[0] for row in over_https] == list(PRESETS)
    for name, dialect in over_https:
        assert PRESETS[name].values == {"dialect": dialect}
    for name, age, other, limit, calls, more in rows:
        preset = PRESETS[name]
        assert preset.values["max_age_s"] == int(age) < int(limit) == preset.age_limit_s
        assert int(calls) == preset.calls_limit
        assert ("of one model" in more) is preset.one_model
        rest = {key: value for key, value in preset.values.items() if key not in {"max_age_s", "calls_per_connection"}}
        assert dict(re.findall(r"`(\w+)` = (\d+)", other)) == {key: str(value) for key, value in rest.items()}


def test_the_example_loads(tmp_path: Path) -> None:
    """The page's own configuration is right."""
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    path = tmp_path / "sidecar.toml"
    path.write_text(example[1])
    assert [route.name for route in load(path, environ={}).route] == ["default"]
