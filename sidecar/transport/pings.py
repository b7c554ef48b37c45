"""Pings in flight on one connection, and who waits for their answers: WebSocket and HTTP/2 both have such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from sidecar.errors import ConnectionLost


class Mortal(Protocol):
    """A connection that may be found dead."""

    last_inbound_at: float

    def retire(self, fault: ConnectionLost) -> None:
        """It is dead."""
        ...


class Pings:
    """See the module. Made for the first ping, let go of when none is in flight."""

    __slots__ = ("_number", "_waiting")

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[bytes, trio.Event] = {}

    async def ask(
        self, connection: Mortal, send: Callable[[bytes], None], timeout: float, *, payload_bytes: int = 4
    ) -> float:
        """Send a ping and wait for its answer, for as long as anything arrives.

        Args:
            connection: retired when it stays silent.
            send: a ping with this payload; what it raises passes through.
            timeout: seconds of silence that mean the peer is dead. While other bytes come, a late answer is waited for
                (there are services that hold pongs back while they stream).
            payload_bytes: how long a ping's payload is.

        Returns:
            the round trip in seconds; also of a connection that has ended meanwhile: the caller looks.

        Raises:
            ConnectionLost: nothing came for `timeout`.
        """
        started = trio.current_time()
        self._number += 1
        payload = self._number.to_bytes(payload_bytes, "big")
        answered = self._waiting[payload] = trio.Event()
        try:
            send(payload)
            while not answered.is_set():
                quiet_at = max(started, connection.last_inbound_at) + timeout
                if trio.current_time() >= quiet_at:
                    silence = ConnectionLost(1006, f"nothing came for {timeout:g} s", how="silence")
                    connection.retire(silence)
                    raise silence
                with trio.CancelScope(deadline=quiet_at):
                    await answered.wait()
        finally:
            self._waiting.pop(payload, None)
        return trio.current_time() - started

    def answered(self, payload: bytes) -> None:
        """A pong answers its ping and all before it (RFC 6455, 5.5.3); an unasked one is only a sign of life."""
        if payload in self._waiting:
            for sent in list(self._waiting):
                self._waiting.pop(sent).set()
                if sent == payload:
                    break

    def over(self) -> None:
        """The connection has ended: nobody is to wait any longer."""
        for event in self._waiting.values():
            event.set()
