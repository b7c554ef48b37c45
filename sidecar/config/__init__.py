"""What an operator wrote: TOML in, frozen structs out, every mistake named with its file, key path and mend."""

from __future__ import annotations

from sidecar.config.load import load
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
from sidecar.config.source import DEFAULT_PATH, EXAMPLE, path_of

__all__ = [
    "DEFAULT_PATH",
    "EXAMPLE",
    "BreakerSettings",
    "BudgetSettings",
    "Client",
    "Config",
    "CredentialSource",
    "Frontend",
    "Log",
    "Route",
    "Target",
    "Tls",
    "Upstream",
    "load",
    "path_of",
]
