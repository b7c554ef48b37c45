"""inference-sidecar: prompts in over a local ZeroMQ socket, tokens back from warm WebSockets, by the deadline.

Reading order: `wire` (what a bot may rely on) and `errors`; `core` (pure policy) and `dialects` (pure codecs);
`transport` (ZeroMQ, WebSocket, systemd: one door each); `service` (every loop); `daemon` (builds it all, drains it
all). Beside the daemon: `client` (for bots), `simulator` (the relay that misbehaves on demand), `cli`.

`Client` and `AsyncClient` are loaded on first use, so that importing this package costs a bot nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.version import __version__

__all__ = ["AsyncClient", "Client", "__version__"]

if TYPE_CHECKING:
    from sidecar.client import AsyncClient, Client


def __getattr__(name: str) -> Any:
    if name in {"AsyncClient", "Client"}:
        from sidecar import client  # noqa: PLC0415 - on first use

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
