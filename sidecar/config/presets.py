"""What is known of the services that speak a dialect: laid under an upstream's own keys, which always win.

Source: vendors' documents and probes, 2026-11. `max_age_s` leaves the service's own limit a margin for the rotation
jitter and for the calls that are still running when a connection is told to drain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from sidecar.config.model import Route, Upstream
from sidecar.errors import ConfigurationError


class Preset(Struct, frozen=True, kw_only=True):
    """One service.

    Args:
        values: keys of `[[upstream]]` with the values that suit the service.
        age_limit_s: when the service itself ends a WebSocket, seconds.
        calls_limit: responses it runs at once on one connection; it queues or refuses more.
        one_model: a WebSocket is bound to the model of its first call. LiteLLM puts that one's name over any other's
            and says nothing of it.
    """

    values: dict[str, Any]
    age_limit_s: float = math.inf
    calls_limit: int = 1
    one_model: bool = False


PRESETS: Final[dict[str, Preset]] = {
    "openai": Preset(values={"max_age_s": 3300, "calls_per_connection": 1}, age_limit_s=3600, calls_limit=16),
    "azure": Preset(values={"max_age_s": 3300, "calls_per_connection": 1}, age_limit_s=3600),
    # Pongs come up to 9.6 s late while deltas flow.
    "xai": Preset(values={"max_age_s": 1380, "calls_per_connection": 1, "pong_timeout_s": 15}, age_limit_s=1500),
    "vercel": Preset(values={"max_age_s": 660, "calls_per_connection": 1}, age_limit_s=780, one_model=True),
    "litellm": Preset(values={"max_age_s": 3300, "calls_per_connection": 1}, age_limit_s=3600, one_model=True),
    # Over HTTPS alone, and as old as they please: rotated for the sake of their load balancers' addresses.
    "anthropic": Preset(values={"dialect": "messages"}),
    "deepseek": Preset(values={"dialect": "chat"}),
    "groq": Preset(values={"dialect": "chat"}),
    "vllm": Preset(values={"dialect": "chat"}),
    "llamacpp": Preset(values={"dialect": "chat"}),
}

_SCHEMES: Final = {"https": "sse", "http": "sse"}


def lay_under(raw: dict[str, Any]) -> None:
    """Fill in, in the raw tables, what presets and the other keys imply and the file does not say.

    `transport` follows the URL, and `warm_connections` a `max_connections` below its default: nobody should have to
    write such things twice.
    """
    upstreams = raw.get("upstream")
    for upstream in upstreams if isinstance(upstreams, list) else []:
        if not isinstance(upstream, dict):
            continue
        preset = upstream.get("preset")
        if isinstance(preset, str) and preset in PRESETS:
            for key, value in PRESETS[preset].values.items():
                upstream.setdefault(key, value)
        url = upstream.get("url")
        if isinstance(url, str):
            upstream.setdefault("transport", _SCHEMES.get(url.partition(":")[0].lower(), "websocket"))
        most = upstream.get("max_connections")
        if isinstance(most, int) and "warm_connections" not in upstream and 1 <= most < 8:
            upstream["warm_connections"] = most


def check_models(upstreams: Mapping[str, Upstream], routes: Sequence[Route], *, where: str) -> None:
    """Connections are shared by all routes to an upstream: where one is bound to a model, there may be one only.

    Raises:
        ConfigurationError: a second model would be answered by the first.
    """
    first: dict[str, str] = {}
    for index, route in enumerate(routes):
        for number, target in enumerate(route.targets):
            upstream = upstreams[target.upstream]
            preset = PRESETS.get(upstream.preset or "")
            if preset is None or not preset.one_model or upstream.transport != "websocket":
                continue
            model = first.setdefault(upstream.name, target.model)
            if model != target.model:
                raise ConfigurationError(
                    f"a WebSocket of {upstream.preset} serves the model of its first call, and {upstream.name} has "
                    f"{model!r} already",
                    where=f"{where}: route[{index}].targets[{number}].model",
                    mend="Give each model an [[upstream]] of its own, or use the https:// URL",
                )
