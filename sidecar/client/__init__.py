"""The Python clients of a bot, over one sans-I/O `Session`.

- `Client`: blocking, no thread of its own.
- `AsyncClient`: asyncio, no thread hop; one wake-up for all the deltas of a pass.
- `Answer`, `Choice`: what comes back. The errors are in `sidecar.errors` (`CallFailed` and its subclasses).

Everything is loaded on first use: a user of `Client` never imports asyncio for us, and nobody here imports the
daemon, Trio or structlog.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

__all__ = ["Answer", "AsyncClient", "AsyncHandle", "Choice", "Client", "Handle"]

if TYPE_CHECKING:
    from sidecar.client.answers import Answer, Choice
    from sidecar.client.asynchronous import AsyncClient, AsyncHandle
    from sidecar.client.blocking import Client, Handle

_HOMES: Final = {
    "Answer": "answers",
    "Choice": "answers",
    "AsyncClient": "asynchronous",
    "AsyncHandle": "asynchronous",
    "Client": "blocking",
    "Handle": "blocking",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
