"""The relay steered by plain HTTP on its own port: GET /_stats, /_journal, /_scenario, /_kill, /_close, /_keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from sidecar.simulator import door
from sidecar.simulator.counters import Counters

_PATHS: Final = "/_stats, /_journal, /_scenario, /_kill, /_close, /_keys"


class Steered(Protocol):
    """What a command may do. `relay.Relay` implements it."""

    counters: Counters
    keys: Collection[str] | None

    @property
    def scenario(self) -> str:
        """The expression in force."""
        ...

    def mono_us(self) -> int:
        """The clock of the journal."""
        ...

    def set_scenario(self, expression: str, *, upstream: str | None = None) -> None:
        """What befalls connections and calls from now on."""
        ...

    def kill_all(self, *, rst: bool = True, upstream: str | None = None) -> int:
        """End connections without a farewell."""
        ...

    def close_all(self, code: int = 1012, reason: str = "", *, upstream: str | None = None) -> int:
        """End connections by a close frame."""
        ...


def answer_to(relay: Steered, path: str, query: Mapping[str, str]) -> bytes:
    """Do what is asked: the whole HTTP answer."""
    return door.answer(*done(relay, path, query))


def done(relay: Steered, path: str, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Do what is asked: status and what to say; 400 for what is not understood (nothing was changed then)."""
    try:
        return 200, _command(relay, path, query)
    except ValueError as problem:
        return 400, {"error": str(problem)}


def _command(relay: Steered, path: str, query: Mapping[str, str]) -> dict[str, Any]:
    upstream = query.get("upstream")
    if path == "/_stats":
        return {**relay.counters.snapshot(), "scenario": relay.scenario, "mono_us": relay.mono_us()}
    if path == "/_journal":
        group, since_us = None if upstream is None else f"u/{upstream}", int(query.get("since_us", "0"))
        chosen = [note for note in relay.counters.journal if note.at_us >= since_us and group in (None, note.group)]
        return {"mono_us": relay.mono_us(), "journal": [note._asdict() for note in chosen]}
    if path == "/_scenario":
        relay.set_scenario(query.get("name", "ok"), upstream=upstream)
        return {"scenario": query.get("name", "ok"), "upstream": upstream}
    if path == "/_kill":
        how = query.get("how", "rst")
        if how not in ("rst", "eof"):
            raise ValueError("how is rst or eof")
        return {"killed": relay.kill_all(rst=how == "rst", upstream=upstream)}
    if path == "/_close":
        code = int(query.get("code", "1012"))
        if not 1000 <= code <= 4999:
            raise ValueError("code is 1000 to 4999")
        return {"closed": relay.close_all(code, upstream=upstream)}
    if path == "/_keys":
        relay.keys = frozenset(query["accept"].split(",")) if query.get("accept") else None
        return {"keys": None if relay.keys is None else len(relay.keys)}
    raise ValueError(f"{path} is not one of {_PATHS}")
