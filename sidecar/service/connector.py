"""From a decision to an open WebSocket: the credential of the moment, dial, upgrade."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from sidecar.config import Upstream
from sidecar.errors import ConnectFailed, CredentialError
from sidecar.service.connection import Connection
from sidecar.service.current_credential import CurrentCredential
from sidecar.service.ports import Outbound
from sidecar.transport.pump import Pump
from sidecar.transport.websocket import Ended, WebSocket, open_websocket


class Connector:
    """One upstream's way in. Arguments as `pool.Pool`'s."""

    def __init__(
        self,
        upstream: Upstream,
        credential: CurrentCredential,
        *,
        dial: Callable[[], Awaitable[trio.abc.Stream]],
        host: str,
        resource: str,
        pump: Pump,
        outbound: Outbound,
    ) -> None:
        self._upstream, self._credential = upstream, credential
        self._dial, self._host, self._resource = dial, host, resource
        self._pump, self._outbound = pump, outbound

    async def open(self, connection: Connection, ended: Ended) -> WebSocket:
        """Connect. What is returned reads nothing before its `start`; `connection` knows its credential from here on.

        Raises:
            ConnectFailed, UpgradeRefused: as `open_websocket`; ConnectFailed too when there is no credential to be had.
        """
        headers = [(name.encode(), value.encode()) for name, value in self._upstream.headers.items()]
        try:
            headers += await self._credential.headers()
        except CredentialError as error:
            raise ConnectFailed("credential", str(error).removeprefix("credential: ")) from None
        connection.credential = self._credential.secret
        websocket, _ = await open_websocket(
            self._dialled,
            self._host,
            self._resource,
            connection.receive,
            pump=self._pump,
            headers=headers,
            ended=ended,
            upgrade_timeout=self._upstream.upgrade_timeout_s,
        )
        return websocket

    async def _dialled(self) -> trio.abc.Stream:
        stream = await self._dial()
        self._outbound.flush()  # many connects make a long round: those whose deadline is due do not wait for its end
        return stream
