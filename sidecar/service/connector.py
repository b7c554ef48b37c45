"""From a decision to a connection that stands: the credential of the moment, dial, and the way in of its transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from sidecar.compression import ZstdStream
from sidecar.config import Upstream
from sidecar.core.idle import Habits
from sidecar.dialects.dialect import Dialect
from sidecar.errors import ConnectFailed, CredentialError, MalformedFrame, UpgradeRefused, UpstreamFault
from sidecar.service.connection import Connection
from sidecar.service.current_credential import CurrentCredential
from sidecar.service.http_connection import HttpConnection
from sidecar.service.ports import Outbound
from sidecar.service.websocket_connection import WebSocketConnection
from sidecar.transport.http import open_http
from sidecar.transport.http2_link import Http2Link
from sidecar.transport.link import Ended, Link
from sidecar.transport.pump import Pump
from sidecar.transport.websocket import open_websocket


class Connector:
    """One upstream's way in.

    Args:
        upstream: its configuration.
        dialect: makes a codec for each connection.
        credential: what is shown at the door.
        dial: -> a connected byte stream (TCP, proxy and TLS done), or raises `ConnectFailed`.
        host, resource: for the request's head.
        pump, outbound: moves the connections' bytes; flushed between the steps of many connects.
        on_version: told how many calls a connection carries, where what HTTP was agreed on has changed that.

    Attributes:
        dialect, credential: see above.
        habits: how its server treats idle connections; for HTTP.
        compression: packed frames are asked for.
        http: the version of HTTP that the last connection speaks; None before, and for WebSockets.
        under_way, opened, failed: connects now, and those that worked and did not.
    """

    def __init__(
        self,
        upstream: Upstream,
        dialect: Dialect,
        credential: CurrentCredential,
        *,
        dial: Callable[[], Awaitable[trio.abc.Stream]],
        host: str,
        resource: str,
        pump: Pump,
        outbound: Outbound,
        on_version: Callable[[int], None],
    ) -> None:
        self.http: Literal["1.1", "2"] | None = None
        self._on_version = on_version
        self.habits = Habits()
        self.compression = upstream.compression == "zstd-stream"
        self.under_way = self.opened = self.failed = 0
        self.dialect, self.credential = dialect, credential
        self._upstream = upstream
        self._dial, self._host, self._resource = dial, host, resource
        self._pump, self._outbound = pump, outbound
        given = {**dict(dialect.headers), **upstream.headers}
        self._headers = [(name.encode(), value.encode()) for name, value in given.items()]

    def prepare(
        self,
        key: int,
        *,
        on_change: Callable[[Connection], None],
        on_freed: Callable[[Connection], None],
        on_spent: Callable[[float], None],
        born_at: float,
    ) -> Connection:
        """A connection that is yet to be made; `open` makes it. Arguments as `HttpConnection`'s."""
        slots = self._upstream.calls_per_connection
        if self._upstream.transport == "sse":
            return HttpConnection(
                key,
                self.dialect,
                slots,
                habits=self.habits,
                on_change=on_change,
                on_freed=on_freed,
                on_spent=on_spent,
                born_at=born_at,
            )
        inflate = ZstdStream() if self.compression else None
        codec = self.dialect.codec(slots=slots)
        return WebSocketConnection(key, codec, on_change=on_change, inflate=inflate, born_at=born_at)

    async def open(self, connection: Connection, ended: Ended) -> Link:
        """Connect. What is returned reads nothing before its `start`; `connection` knows its credential from here on.

        Raises:
            ConnectFailed, UpgradeRefused: as `open_websocket` and `open_http`; ConnectFailed too when there is no
                credential to be had.
        """
        self.under_way += 1
        try:
            link = await self._open(connection, ended)
        except (ConnectFailed, UpgradeRefused):
            self.failed += 1
            raise
        else:
            self.opened += 1
            return link
        finally:
            self.under_way -= 1

    async def _open(self, connection: Connection, ended: Ended) -> Link:
        try:
            secrets = await self.credential.headers()
        except CredentialError as error:
            raise ConnectFailed("credential", str(error).removeprefix("credential: ")) from None
        connection.credential = self.credential.secret
        if isinstance(connection, HttpConnection):
            link = await open_http(
                self._dialled,
                self._host,
                self._resource,
                connection,
                pump=self._pump,
                headers=self._headers,
                secrets=secrets,
                ended=ended,
                prior_knowledge=self._upstream.http_version == "2",
                opening_timeout=self._upstream.upgrade_timeout_s,
            )
            self._speaks("2" if isinstance(link, Http2Link) else "1.1")
            return link
        assert isinstance(connection, WebSocketConnection)
        websocket, _ = await open_websocket(
            self._dialled,
            self._host,
            self._resource,
            connection.receive,
            pump=self._pump,
            headers=[*self._headers, *secrets],
            ended=ended,
            upgrade_timeout=self._upstream.upgrade_timeout_s,
        )
        return websocket

    def _speaks(self, version: Literal["1.1", "2"]) -> None:
        if version != self.http:
            self.http = version
            self._on_version(self._upstream.calls_per_connection if version == "2" else 1)

    async def _dialled(self) -> trio.abc.Stream:
        stream = await self._dial()
        self._outbound.flush()  # many connects make a long round: those whose deadline is due do not wait for its end
        return stream

    def garbled(self, fault: UpstreamFault) -> bool:
        """A connection ended so; whether that is why compression is off from here on.

        A stream that cannot be decoded once will not be the next time: plain JSON is asked for then.
        """
        if self.compression and isinstance(fault, MalformedFrame) and fault.reason.startswith("zstd"):
            self.compression = False
            return True
        return False
