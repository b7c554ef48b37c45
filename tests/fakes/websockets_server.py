"""A WebSocket server on the `websockets` package, in a thread with its own asyncio loop: somebody else's code.

    with websockets_server(handler) as server:          # ws
    with websockets_server(handler, tls=context) as server:  # wss
        server.url, server.port

`handler` is an async function of one `websockets.asyncio.server.ServerConnection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trustme
from websockets.asyncio.server import ServerConnection, serve

Handler = Callable[[ServerConnection], Awaitable[None]]


class WebsocketsServer:
    """What the tests know of a running server."""

    def __init__(self, *, secure: bool) -> None:
        self.secure = secure
        self.port = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.connections: list[ServerConnection] = []

    @property
    def url(self) -> str:
        """Where to connect, by name, as the certificate has it."""
        return f"{'wss' if self.secure else 'ws'}://localhost:{self.port}/v1/responses?a=b"


async def echo(connection: ServerConnection) -> None:
    """Say everything back."""
    async for message in connection:
        await connection.send(message)


@contextlib.contextmanager
def websockets_server(
    handler: Handler = echo, *, tls: ssl.SSLContext | None = None, **options: Any
) -> Iterator[WebsocketsServer]:
    """Run a server on a free loopback port for the length of the block; compression is off as in life."""
    server = WebsocketsServer(secure=tls is not None)
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        async def remember(connection: ServerConnection) -> None:
            server.connections.append(connection)
            await handler(connection)

        settings: dict[str, Any] = {"compression": None, "ping_interval": None, "close_timeout": 0.2, **options}
        async with serve(remember, "127.0.0.1", 0, ssl=tls, **settings) as listening:
            server.port = next(iter(listening.sockets)).getsockname()[1]
            server.loop = asyncio.get_running_loop()
            ready.set()
            await stop.wait()
            listening.close(close_connections=True)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True, name="websockets-server")
    thread.start()
    if not ready.wait(5):
        raise RuntimeError("the websockets server did not start")
    try:
        yield server
    finally:
        assert server.loop is not None
        server.loop.call_soon_threadsafe(stop.set)
        thread.join(5)


class Authority:
    """A private CA in a folder of the test, and contexts for servers it vouches for."""

    def __init__(self, folder: Any) -> None:
        self.ca = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.ca_file)

    def server_context(self, *names: str, **options: Any) -> ssl.SSLContext:
        """A server's context with a certificate for `names` (default localhost and 127.0.0.1)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("localhost", "127.0.0.1")), **options).configure_cert(context)
        return context
