"""The operator's configuration: TOML in, frozen structs out, every mistake named with its file, key path and mend.

Order of precedence: flags, environment (``SIDECAR_FRONTEND__ENDPOINT``; `[frontend]` and `[log]` only), file, preset,
default. Reading the bytes is `source`, the shape is `model`, what no type can say is `rules`, what it adds up
to is `summary`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from sidecar.config import presets, rules, source
from sidecar.config.model import (
    BreakerSettings,
    BudgetSettings,
    Client,
    Config,
    CredentialSource,
    Frontend,
    Log,
    Route,
    Target,
    Tls,
    Upstream,
)
from sidecar.config.source import DEFAULT_PATH, EXAMPLE
from sidecar.errors import ConfigurationError

_SCALAR_TABLES: Final[dict[str, type[Struct]]] = {"frontend": Frontend, "log": Log}
_TABLES_WITHIN: Final[dict[type[Struct], dict[str, type[Struct]]]] = {
    Config: {"frontend": Frontend, "upstream": Upstream, "route": Route, "client": Client, "log": Log},
    Upstream: {
        "tls": Tls,
        "credential": CredentialSource,
        "breaker": BreakerSettings,
        "retry_budget": BudgetSettings,
    },
    Route: {"targets": Target},
}
_ENVIRONMENT_NAME: Final = re.compile(r"SIDECAR_([A-Z0-9]+(?:_[A-Z0-9]+)*)__([A-Z0-9_]+)")


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration that `path`, the environment and the flags make together.

    Args:
        path: the file; None for `DEFAULT_PATH`.
        environ: read for `SIDECAR_<TABLE>__<KEY>`; an empty value counts as not set.
        overrides: from flags, ``{"frontend.endpoint": "ipc://..."}`` or nested tables; a None counts as not given.

    Raises:
        ConfigurationError: the file is missing or unreadable, or anything in it, the environment or a flag is wrong.
            No message holds a value that looks like a secret.
    """
    named = path if path is not None else DEFAULT_PATH
    raw = source.read(named)
    source.refuse_unfit_values(raw, where=str(named))
    refuse_unknown_keys(raw, Config, where=str(named))
    presets.lay_under(raw)
    source.anchor_paths(raw, named.absolute().parent)
    for table, key, value in [*_from_environment(environ), *_from_flags(overrides or {})]:
        section = raw.setdefault(table, {})
        if isinstance(section, dict):  # else the conversion below says what it should have been
            section[key] = value
    config = _convert(raw, str(named))
    rules.check(config, where=str(named))
    return rules.resolve_clients(config, where=str(named))


def refuse_unknown_keys(raw: Any, struct: type[Struct], *, where: str, at: str = "") -> None:
    """Name the first key that `struct` does not have, and the nearest that it has.

    Raises:
        ConfigurationError: there is one.
    """
    for item, path in _tables_of(raw, at):
        known = [field.encode_name for field in msgspec.structs.fields(struct)]
        for key, value in item.items():
            full = f"{path}.{key}" if path else key
            if key not in known:
                raise ConfigurationError("unknown key", where=f"{where}: {full}", mend=_mend_for_unknown(key, known))
            within = _TABLES_WITHIN.get(struct, {}).get(key)
            if within is not None:
                refuse_unknown_keys(value, within, where=where, at=full)


def _tables_of(raw: Any, at: str) -> Iterable[tuple[dict[str, Any], str]]:
    """The tables that `raw` is or holds; a value of another kind is left to the conversion, which names its type."""
    if isinstance(raw, dict):
        yield raw, at
    elif isinstance(raw, list):
        for index, item in enumerate(raw):
            if isinstance(item, dict):
                yield item, f"{at}[{index}]"


def _mend_for_unknown(key: str, known: list[str]) -> str:
    if re.search(r"key$|token|secret|password|credentials|authorization", key, re.IGNORECASE) and "credential" in known:
        return "A secret never stands in this file: `credential` names where it lies"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(known)}"


def _from_environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, Any]]:
    for name in sorted(environ):
        match = _ENVIRONMENT_NAME.fullmatch(name)
        if match is None or not environ[name]:
            continue
        table, key = match[1].lower(), match[2].lower()
        where = f"environment: {name}"
        if table in {"upstream", "route", "client"}:
            raise ConfigurationError(
                "upstreams, routes and clients are set in the file only", where=where, mend="Unset it"
            )
        yield table, key, _scalar(table, key, environ[name], where=where, strict=False)


def _from_flags(overrides: Mapping[str, Any]) -> Iterable[tuple[str, str, Any]]:
    for name, value in overrides.items():
        pairs = value.items() if isinstance(value, Mapping) else [(name.partition(".")[2], value)]
        table = name.partition(".")[0]
        for key, scalar in pairs:
            if scalar is not None:
                yield table, key, _scalar(table, key, scalar, where=f"flag for {table}.{key}", strict=False)


def _scalar(table: str, key: str, value: Any, *, where: str, strict: bool) -> Any:
    struct = _SCALAR_TABLES.get(table)
    if struct is None:
        raise ConfigurationError(
            f"no table [{table}] that can be set here", where=where, mend=f"One of {', '.join(_SCALAR_TABLES)}"
        )
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    if key not in fields:
        raise ConfigurationError("unknown key", where=where, mend=_mend_for_unknown(key, list(fields)))
    source.refuse_unfit_values(value, where=where)
    try:
        return msgspec.convert(value, fields[key].type, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            split_problem(error)[0], where=where, mend=_mend_for(str(error), f"{table}.{key}")
        ) from None


def _convert(raw: dict[str, Any], where: str) -> Config:
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        problem, key = split_problem(error)
        if "missing required field `upstream`" in problem or "missing required field `route`" in problem:
            mend = "At least one [[upstream]] and one [[route]] are needed, for example:\n\n" + EXAMPLE
        else:
            mend = _mend_for(str(error), key)
        raise ConfigurationError(problem, where=f"{where}: {key}" if key else where, mend=mend) from None


def split_problem(error: msgspec.ValidationError) -> tuple[str, str]:
    """What msgspec says, as (problem, key path), without the value it echoes (`Invalid enum value 'x'`)."""
    match = re.fullmatch(r"(.*) - at `\$\.?([^`]*)`", str(error), re.DOTALL)
    problem, at = (match[1], match[2]) if match else (str(error), "")
    if problem.startswith("Invalid enum value"):
        problem = "not one of the known words"
    for theirs, ours in (("Object missing", "missing"), ("`object", "`table"), ("| object", "| table")):
        problem = problem.replace(theirs, ours)
    return problem, at


def _mend_for(said: str, at: str) -> str:
    """What to write at a key path, given msgspec's words for what stands there."""
    keys = re.sub(r"\[\d+\]", "", at).split(".")
    kind: Any = Config
    for key in keys:
        struct = _struct_of(kind)
        fields = {} if struct is None else {field.encode_name: field for field in msgspec.structs.fields(struct)}
        if key not in fields:
            return _MENDS.get(keys[-1], "")
        kind = fields[key].type
    if keys[-1] in _MENDS:
        return _MENDS[keys[-1]]
    within = _struct_of(kind)
    if within is not None and len(keys) == 1 and "Expected `array" in said:
        return f"A list of tables: write [[{keys[0]}]], in two brackets"
    if within is not None:
        names = ", ".join(field.encode_name for field in msgspec.structs.fields(within))
        return f"A table, {keys[-1]} = {{ key = value, ... }}, with some of {names}"
    words = _words_of(kind)
    if not words:
        return ""
    given = re.match(r"Invalid enum value '(.*)'", said)
    near = difflib.get_close_matches(given[1].lower(), words, n=1, cutoff=0.6) if given else []
    quoted = [f'"{word}"' for word in words]
    mend = f"Write {', '.join(quoted[:-1])} or {quoted[-1]}" if len(quoted) > 1 else f"Write {quoted[0]}"
    if not fields[keys[-1]].required:
        mend += ", or leave it out"
    return f'Did you mean "{near[0]}"? {mend}' if near else mend


def _struct_of(kind: Any) -> type[Struct] | None:
    """The one struct in a type, whatever it is wrapped in."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind
    return next((struct for part in get_args(kind) if (struct := _struct_of(part)) is not None), None)


def _words_of(kind: Any) -> list[str]:
    """The words that a type allows, whatever it is wrapped in; none where it takes others, too."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [word for part in get_args(kind) for word in _words_of(part)]


_MENDS: Final[dict[str, str]] = {
    "lanes": 'Some of "exit", "entry", "research"',
    "backup_lanes": 'Some of "exit", "entry", "research"; [] for none',
    "transport": 'Leave it out: the scheme of `url` says it. Else "websocket" or "sse" (HTTPS)',
    "user": 'The name of a user, a uid, or "*"',
    "name": "Letters, digits, `_`, `.` and `-`, at most 64, a letter or digit first",
    "credential": 'A name, { file = "..." }, { env = "..." } or { command = [...] }',
    "targets": '[{ upstream = "...", model = "..." }], in order of preference',
}
