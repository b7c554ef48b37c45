"""The daemon as its own bot: one ping through the real socket, the loop and back. Feeds the watchdog, nothing else."""

from __future__ import annotations

from collections.abc import Callable

import trio
import zmq

_PING = b'{"type":"ping","nonce":"watchdog"}'


class Pinger:
    """A DEALER to the daemon's own endpoint.

    Resource handling: one socket and context of its own; `close` ends both without lingering.
    """

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.connect(endpoint)

    async def round_trip(self, timeout: float) -> bool:
        """Whether a ping was answered within `timeout` seconds."""
        with trio.move_on_after(timeout):
            while not self._try(lambda: self._socket.send(_PING, zmq.NOBLOCK)):
                await trio.sleep(0.01)
            # A short poll instead of the edge-triggered descriptor: this runs once every few seconds.
            while not self._try(lambda: self._socket.recv(zmq.NOBLOCK)):
                await trio.sleep(0.005)
            while self._try(lambda: self._socket.recv(zmq.NOBLOCK)):
                pass  # an answer that came too late the last time
            return True
        return False

    @staticmethod
    def _try(step: Callable[[], object]) -> bool:
        try:
            step()
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Let go of socket and context."""
        self._socket.close(0)
        self._context.term()
