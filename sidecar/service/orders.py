"""What operators may order at the control endpoint: halt and resume lanes, take upstreams out and in, drain.

Each is a table of handlers for `control.Control`. `halt` and `resume` are kept in the halt file; what `upstream` and
`drain` say is forgotten when the daemon ends.

    {"type": "halt", "lanes": ["entry"], "reason": "..."}      -> {"type": "halted", "lanes": [...], "ended": 3, ...}
    {"type": "resume", "lanes": ["entry"]}                     -> {"type": "halted", ...}: what is halted still
    {"type": "upstream", "name": "openai", "enabled": false}   -> {"type": "upstream", "name", "enabled", "without": []}
    {"type": "drain"}                                          -> {"type": "draining", "in_flight": 12, "timeout_s": 30}

Without `lanes`, `halt` and `resume` are for every lane.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sidecar.config import Route
from sidecar.core.admission import LANES
from sidecar.core.halt import EVERY_LANE, MAX_BYTES, in_order
from sidecar.service.brakes import Brakes, Standing
from sidecar.service.control import Handler
from sidecar.wire import Lane


class Switchable(Protocol):
    """An upstream's pool: disabled, it takes no call, and its connections are closed as they become idle."""

    @property
    def enabled(self) -> bool:
        """It takes calls."""
        ...

    def set_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - it is the whole message
        """Take it out or in, from the next call on."""
        ...


def halting(brakes: Brakes) -> dict[str, Handler]:
    """`halt` and `resume`."""

    def halt(request: dict[str, Any]) -> dict[str, Any]:
        reason = request.get("reason", "")
        if not (isinstance(reason, str) and len(reason) <= MAX_BYTES):
            raise ValueError("reason: text")
        return _stand(brakes.halt(_lanes(request), reason))

    def resume(request: dict[str, Any]) -> dict[str, Any]:
        return _stand(brakes.resume(_lanes(request)))

    return {"halt": halt, "resume": resume}


def switching(pools: Mapping[str, Switchable], routes: Sequence[Route], log: Any) -> dict[str, Handler]:
    """`upstream`. The answer's `without` are the routes that have no enabled upstream now."""

    def switch(request: dict[str, Any]) -> dict[str, Any]:
        name, enabled = request.get("name"), request.get("enabled")
        if enabled is not True and enabled is not False:
            raise ValueError("enabled: true or false")
        if not isinstance(name, str) or name not in pools:
            raise ValueError(f"name: {_nearest(name, list(pools))}")
        pool = pools[name]
        if pool.enabled != enabled:
            pool.set_enabled(enabled)
            log.warning("upstream.enabled" if enabled else "upstream.disabled", upstream=name)
        without = [route.name for route in routes if not any(pools[each.upstream].enabled for each in route.targets)]
        return {"type": "upstream", "name": name, "enabled": enabled, "without": without}

    return {"upstream": switch}


def draining(request_drain: Callable[[], None], in_flight: Callable[[], int], timeout: float) -> dict[str, Handler]:
    """`drain`. `timeout`: seconds that calls in flight have."""

    def drain(_: dict[str, Any]) -> dict[str, Any]:
        request_drain()
        return {"type": "draining", "in_flight": in_flight(), "timeout_s": timeout}

    return {"drain": drain}


def _stand(standing: Standing) -> dict[str, Any]:
    return {
        "type": "halted",
        "lanes": in_order(standing.lanes),
        "reason": standing.reason,
        "ended": standing.ended,
        "sticky": not standing.problem,
        "file": standing.file,
        "problem": standing.problem,
    }


def _lanes(request: dict[str, Any]) -> frozenset[Lane]:
    named = request.get("lanes")
    if named is None:
        return EVERY_LANE
    if not isinstance(named, list) or not named or not all(each in LANES for each in named):
        raise ValueError(f"lanes: a list of some of {', '.join(LANES)}, or nothing for all of them")
    return frozenset(named)


def _nearest(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:80], known, n=1, cutoff=0.5) if isinstance(name, str) else []
    return f"no upstream of that name; did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
