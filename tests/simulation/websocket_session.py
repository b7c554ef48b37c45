"""The server's end of a WebSocket."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from sidecar.transport.frames import CLOSE, PING, PONG, TEXT
from tests.fakes.server_frames import encode_server_frame
from tests.simulation.network import Toxics
from tests.simulation.request import Request
from tests.simulation.session import Session

if TYPE_CHECKING:
    from tests.simulation.service import Service

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocketSession(Session):
    """See `Session`."""

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        super().__init__(service, number, pool, toxics, meets, dice)
        self.opened = False
        self._head = bytearray()
        self._buffer = bytearray()
        self._seen = bytearray()  # what the client wrote, ahead of the network
        self._seen_head = False

    # ------------------------------------------------------------------ what the client writes

    def _written(self, data: bytes) -> None:
        """See `Session`."""
        self._seen += data
        if not self._seen_head:
            cut = self._seen.find(b"\r\n\r\n")
            if cut < 0:
                return
            del self._seen[: cut + 4]
            self._seen_head = True
        for opcode, payload in _frames(self._seen):
            if opcode == TEXT:
                self.requests.append(self.service.noted(self, payload))

    def _data(self, data: bytes) -> None:
        """See `Session`."""
        if self.gone:
            return
        if not self.opened:
            self._head += data
            cut = self._head.find(b"\r\n\r\n")
            if cut < 0 or self.closing:
                return
            head, rest = bytes(self._head[:cut]), bytes(self._head[cut + 4 :])
            if not self._upgrade(head):
                return
            data = rest
        self._buffer += data
        for opcode, payload in _frames(self._buffer):
            if opcode == TEXT and self.said_close_at is None:
                self.service.arrived(self._arrived())
            elif opcode == PING:
                if not self.deaf:
                    self.send(encode_server_frame(PONG, payload))
            elif opcode == CLOSE and not self.closing:
                if self.said_close_at is None:
                    self.send(encode_server_frame(CLOSE, payload[:2]))
                self.shut()

    def _upgrade(self, head: bytes) -> bool:
        """Answer the request for an upgrade. -> whether it is one."""
        lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
        headers = {name.lower(): value for name, _, value in lines}
        self.key = headers.get("authorization", "").removeprefix("Bearer ")
        meets = self.meets
        if meets == "fine" and self.key not in self.service.keys:
            meets = "401"
        if meets == "fine":
            accept = base64.b64encode(hashlib.sha1(headers["sec-websocket-key"].encode() + _GUID).digest())
            self.opened, self.opened_at = True, trio.current_time()
            answer = (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self.send(answer)
            self.service.opened(self)
            return True
        if meets.isdigit():
            after = b"Retry-After: 1\r\n" if meets == "429" else b""
            self.send(b"HTTP/1.1 " + meets.encode() + b" No\r\n" + after + b"Content-Length: 2\r\n\r\n{}")
            self.shut()
        elif meets == "garbage":
            self.send(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.shut()
        elif meets == "eof":
            self.shut()
        elif meets == "reset":
            self.shut("reset")
        return False  # "mute" takes the request and says nothing

    # ------------------------------------------------------------------ what the server does

    def framed(self, request: Request, message: bytes) -> bytes:
        """See `Session`."""
        return encode_server_frame(TEXT, message)

    def keep_alive(self, request: Request) -> bytes:
        """See `Session`."""
        return encode_server_frame(PING, b"")

    def put(self, request: Request, frames: bytes, mark: Callable[[], None] | None = None) -> None:
        """See `Session`."""
        self.send(frames, mark)

    def close(self, code: int, how: str) -> None:
        """A Close frame; every request ends by it. The client's answer, or a moment, ends TCP."""
        if self.gone or self.closing:
            return

        def came() -> None:
            for request in self.requests:
                request.came(how)

        self.send(encode_server_frame(CLOSE, code.to_bytes(2, "big")), came)
        self.said_close_at = trio.current_time()
        self.service.world.engine.after(0.5, self.shut)


def _frames(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Take whole client frames (masked, not fragmented) off `buffer`."""
    found = []
    while len(buffer) >= 6:
        length, start = buffer[1] & 0x7F, 2
        if length == 126:
            length, start = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(buffer[2:10], "big"), 10
        stop = start + 4 + length
        if len(buffer) < stop:
            break
        mask = bytes(buffer[start : start + 4])
        body = bytes(buffer[start + 4 : stop])
        repeated = (mask * ((length + 3) // 4))[:length]
        masked = int.from_bytes(body, "little") ^ int.from_bytes(repeated, "little")
        found.append((buffer[0] & 0x0F, masked.to_bytes(length, "little")))
        del buffer[:stop]
    return found
