"""A relay under test, and a client of other people's making (`websockets`, sans-I/O) to see it with."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri
from zstandard import ZstdDecompressor

from sidecar.simulator import Behaviour, Relay

QUICK = Behaviour(tokens=6, ttft_s=0.001, cadence_s=0.0005, late_s=0.05, keepalive_s=0.005, after=3, size_bytes=1 << 20)
ENDS = {"response.completed", "response.failed", "response.incomplete", "error"}

#: What `relaying` closes at its end.
_OPENED: list[trio.abc.Stream] = []


@asynccontextmanager
async def relaying(scenario: str = "ok", **settings: Any) -> AsyncIterator[Relay]:
    """A relay that serves until the block is left."""
    relay = Relay(scenario, **{"behaviour": QUICK, **settings})
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.serve)
            try:
                yield relay
            finally:
                nursery.cancel_scope.cancel()  # and await nothing here: Cancelled would hide a test's own failure
    finally:
        while _OPENED:
            await trio.aclose_forcefully(_OPENED.pop())


def opened(stream: trio.abc.Stream) -> None:
    """Have it closed with the relay."""
    _OPENED.append(stream)


def request(prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    """A `response.create`."""
    return {"type": "response.create", "model": "m", "input": prompt, **fields}


def chat(prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat completion's body that asks for usage."""
    options = {"stream_options": {"include_usage": True}, "stream": True}
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **options, **fields}


class Talk:
    """One connection. `lost` says how it ended: "eof", "reset", or None while it stands; `code` the close code."""

    def __init__(self, stream: trio.abc.Stream, protocol: ClientProtocol) -> None:
        self.stream, self.protocol = stream, protocol
        self.frames: list[Frame] = []
        self.lost: str | None = None
        self.response: Response | None = None
        self.pings = 0
        self.texts: list[str] = []
        self._parts = b""
        self._zstd = ZstdDecompressor().decompressobj()

    @classmethod
    async def open(
        cls, port: int, path: str = "/v1/responses", *, key: str | None = None, tls: ssl.SSLContext | None = None
    ) -> Talk:
        """Connect and shake hands; look at `response` for how that went."""
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_hostname="localhost")
        talk = cls(stream, ClientProtocol(parse_uri(f"ws://localhost:{port}{path}"), max_size=None))
        opened(stream)
        upgrade = talk.protocol.connect()
        if key is not None:
            upgrade.headers["Authorization"] = f"Bearer {key}"
        talk.protocol.send_request(upgrade)
        await talk.flush()
        while talk.response is None and talk.lost is None:
            await talk.pump()
        return talk

    async def flush(self) -> None:
        """Write what the protocol wants written."""
        for data in self.protocol.data_to_send():
            try:
                if data:
                    await self.stream.send_all(data)
            except trio.BrokenResourceError:
                self.lost = self.lost or "reset"

    async def pump(self) -> None:
        """Read once."""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data, self.lost = b"", "reset"
        if data:
            self.protocol.receive_data(data)
        else:
            self.lost = self.lost or "eof"
            self.protocol.receive_eof()
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                self.response = event
            else:
                self.pings += event.opcode is Opcode.PING
                self.frames.append(event)
        await self.flush()

    async def send(self, body: Any) -> None:
        """One text message."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.protocol.send_text(payload)
        await self.flush()

    async def text(self) -> str | None:
        """The next message; None at the end of the connection. Binary ones are unpacked."""
        while True:
            while self.frames:
                frame = self.frames.pop(0)
                if frame.opcode is Opcode.TEXT:
                    text = frame.data.decode()
                elif frame.opcode is Opcode.BINARY:
                    text = self._zstd.decompress(frame.data).decode()
                else:
                    continue
                self.texts.append(text)
                return text
            if self.lost:
                return None
            await self.pump()

    async def event(self) -> dict[str, Any] | None:
        """The next message as JSON."""
        text = await self.text()
        return None if text is None else json.loads(text)

    async def answer(self, body: Any) -> list[dict[str, Any]]:
        """Send, and read events until a terminal or the end of the connection."""
        await self.send(body)
        events = []
        while (event := await self.event()) is not None:
            events.append(event)
            if event.get("type") in ENDS:
                break
        return events

    async def chunks(self, body: Any, last: str = "[DONE]") -> list[str]:
        """Send, and read texts until `last` or the end of the connection."""
        await self.send(body)
        texts = []
        while (text := await self.text()) is not None:
            texts.append(text)
            if text == last:
                break
        return texts

    @property
    def code(self) -> int | None:
        """What the relay closed with."""
        return self.protocol.close_rcvd.code if self.protocol.close_rcvd else None

    async def goodbye(self, *, rst: bool = False) -> None:
        """Go, without a word."""
        if rst:
            assert isinstance(self.stream, trio.SocketStream)
            self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)


def said(events: list[dict[str, Any]]) -> str:
    """The content of an answer."""
    return "".join(event["delta"] for event in events if event.get("type") == "response.output_text.delta")


async def until(condition: Any) -> None:
    """Wait for something that the relay is about to notice."""
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.001)


async def http_get(port: int, path: str) -> tuple[int, Any]:
    """A plain HTTP request."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        data = b"".join([part async for part in stream])
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
