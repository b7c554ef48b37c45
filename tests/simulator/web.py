"""Clients of HTTP/1.1 and HTTP/2 to see the relay with: h11 and h2 on the bare socket, and a reader of events."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h11
import trio

from tests.simulator.harness import opened

PATHS = {"responses": "/v1/responses", "chat": "/v1/chat/completions", "messages": "/v1/messages"}


def asked(dialect: str, prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    """A streaming request's body."""
    if dialect == "responses":
        return {"model": "m", "input": prompt, "stream": True, **fields}
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True}
    if dialect == "chat":
        return {**body, "stream_options": {"include_usage": True}, **fields}
    return {**body, "max_tokens": 100_000, **fields}


class Event(NamedTuple):
    """A server-sent event: its name (None: it had none), its data as text and, if it is JSON, as JSON."""

    name: str | None
    data: str

    @property
    def json(self) -> Any:
        """What `data` says."""
        return json.loads(self.data)


class Answer(NamedTuple):
    """An answer as far as it came; `lost` None: it came whole, else "eof" or "reset"."""

    status: int | None
    headers: dict[str, str]
    body: bytes
    lost: str | None

    @property
    def json(self) -> Any:
        """The body of an answer that is not a stream."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Event]:
        """Those that are whole; comments are skipped."""
        return events(self.body)

    @property
    def comments(self) -> int:
        """How many lines are comments."""
        return sum(line.startswith(b":") for line in self.body.split(b"\n"))


def events(body: bytes) -> list[Event]:
    """The whole events of a body."""
    found = []
    for block in body.decode(errors="replace").split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "data" in fields:
            found.append(Event(fields.get("event"), fields["data"]))
    return found


def content(found: list[Event]) -> str:
    """The text of an answer, in any dialect."""
    text = ""
    for event in found:
        try:
            said = event.json
        except ValueError:
            continue
        if said.get("type") == "response.output_text.delta":
            text += said["delta"]
        elif said.get("type") == "content_block_delta" and said["delta"]["type"] == "text_delta":
            text += said["delta"]["text"]
        elif "choices" in said:
            text += "".join(choice["delta"].get("content") or "" for choice in said["choices"])
    return text


class Browser:
    """One HTTP/1.1 connection."""

    def __init__(self, stream: trio.abc.Stream, headers: dict[str, str]) -> None:
        self.stream, self._headers = stream, headers
        self._peer = h11.Connection(h11.CLIENT)
        self.lost: str | None = None

    @classmethod
    async def open(cls, port: int, *, tls: ssl.SSLContext | None = None, key: str | None = None) -> Browser:
        """Connect."""
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)
        opened(stream)
        headers = {"host": "localhost", "content-type": "application/json", "anthropic-version": "2023-06-01"}
        return cls(stream, headers if key is None else {**headers, "authorization": f"Bearer {key}"})

    def wire(self, path: str, body: Any, method: str = "POST", **headers: str) -> bytes:
        """A request's bytes; a header given as ``x_api_key="k"`` is ``x-api-key``, given as "" left out."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        said = {**self._headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items() if value)]
        return "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode() + content

    async def send(self, path: str, body: Any, method: str = "POST", **headers: str) -> None:
        """A request."""
        await self.stream.send_all(self.wire(path, body, method, **headers))

    async def receive(self, *, until: bytes | None = None) -> Answer:
        """The next answer, up to its end, or the connection's, or `until` stands in its body."""
        if self._peer.our_state is h11.IDLE:  # the request went past it
            self._peer.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
            self._peer.send(h11.EndOfMessage())
        status, headers, body = None, {}, b""
        while True:
            try:
                event = self._peer.next_event()
                if event is h11.NEED_DATA:
                    self._peer.receive_data(await self._read())
                    continue
            except h11.RemoteProtocolError:
                return Answer(status, headers, body, self.lost or "nonsense")
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
                if until is not None and until in body:
                    return Answer(status, headers, body, None)
            elif isinstance(event, h11.EndOfMessage):
                if self._peer.our_state is h11.DONE and self._peer.their_state is h11.DONE:
                    self._peer.start_next_cycle()
                return Answer(status, headers, body, None)
            elif isinstance(event, h11.ConnectionClosed):
                return Answer(status, headers, body, self.lost)

    async def _read(self) -> bytes:
        if self.lost:
            return b""
        try:
            data = bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:
            self.lost = "reset"
            return b""
        if not data:
            self.lost = "eof"
        return data

    async def ask(self, path: str, body: Any, **headers: str) -> Answer:
        """A request and its answer."""
        await self.send(path, body, **headers)
        return await self.receive()

    async def gone(self) -> str:
        """Read on until the relay ends the connection; how it did."""
        while not self.lost:
            await self._read()
        return self.lost

    async def goodbye(self, *, rst: bool = False) -> None:
        """Go, without a word."""
        if rst:
            assert isinstance(self.stream, trio.SocketStream)
            self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)


async def once(port: int, dialect: str, prompt: str = "hello", *, before: str = "", **fields: Any) -> Answer:
    """One request on a connection of its own; `before` stands before its path."""
    browser = await Browser.open(port)
    answer = await browser.ask(before + PATHS[dialect], asked(dialect, prompt, **fields))
    await browser.goodbye()
    return answer


class Multiplex:
    """One HTTP/2 connection; every stream's answer grows in `answers` as it comes.

    Args:
        window: of each stream and of the connection, in bytes; None: as h2 has it, opened again at once.
    """

    def __init__(self, stream: trio.abc.Stream, window: int | None) -> None:
        self.stream = stream
        self.peer = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._window = window
        self.lost: str | None = None
        self.last_id: int | None = None
        self.broken: Exception | None = None
        self._frames = b""
        self._heads: dict[int, dict[str, str]] = {}
        self._bodies: dict[int, bytes] = {}
        self.ends: dict[int, str] = {}

    @classmethod
    async def open(
        cls, port: int, *, tls: ssl.SSLContext | None = None, window: int | None = None, greet: bool = True
    ) -> Multiplex:
        """Connect, and say the preface."""
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "h2"
        opened(stream)
        self = cls(stream, window)
        if window is not None:
            size = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            self.peer.local_settings = h2.settings.Settings(client=True, initial_values=size)
        self.peer.initiate_connection()
        if greet:
            await self.flush()
        return self

    async def flush(self) -> None:
        """Write what h2 wants written."""
        data = self.peer.data_to_send()
        try:
            if data:
                await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.lost = self.lost or "reset"

    async def send(self, path: str, body: Any, method: str = "POST", **headers: str) -> int:
        """A request; returns its stream's number."""
        number = self.peer.get_next_available_stream_id()
        said = {"anthropic-version": "2023-06-01", **{k.replace("_", "-"): v for k, v in headers.items()}}
        head = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost"), *said.items()]
        self.peer.send_headers(number, head)
        self.peer.send_data(number, body if isinstance(body, bytes) else json.dumps(body).encode(), end_stream=True)
        await self.flush()
        return number

    async def pump(self) -> None:
        """Read once."""
        try:
            data = bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:
            self.lost = "reset"
            return
        if not data:
            self.lost = self.lost or "eof"
            return
        try:
            for frame in self._but_goaway(data):
                for event in self.peer.receive_data(frame):
                    self._heed(event)
        except h2.exceptions.ProtocolError as problem:
            self.broken = problem
        await self.flush()

    def _but_goaway(self, data: bytes) -> Iterator[bytes]:
        """One frame after another; h2 would hear nothing after a GOAWAY, whichever streams are still to be answered."""
        self._frames += data
        while len(self._frames) >= 9:
            size = 9 + int.from_bytes(self._frames[:3], "big")
            if len(self._frames) < size:
                return
            frame, self._frames = self._frames[:size], self._frames[size:]
            if frame[3] == 7:
                self.last_id = int.from_bytes(frame[9:13], "big")
            else:
                yield frame

    def _heed(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self._heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self._bodies[event.stream_id] = self._bodies.get(event.stream_id, b"") + event.data
            if self._window is None:
                self.peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ends[event.stream_id] = "end"
        elif isinstance(event, h2.events.StreamReset):
            self.ends[event.stream_id] = event.error_code.name

    def answer(self, number: int) -> Answer:
        """A stream's answer as far as it came."""
        head = self._heads.get(number, {})
        status = int(head[":status"]) if head else None
        lost = None if self.ends.get(number) == "end" else self.ends.get(number) or self.lost or "open"
        return Answer(status, head, self._bodies.get(number, b""), lost)

    async def receive(self, number: int) -> Answer:
        """A stream's answer, up to its end or the connection's."""
        while number not in self.ends and not self.lost and not self.broken:
            await self.pump()
        return self.answer(number)

    async def ask(self, path: str, body: Any, **headers: str) -> Answer:
        """A request and its answer."""
        return await self.receive(await self.send(path, body, **headers))

    async def gone(self) -> str:
        """Read on until the relay ends the connection; how it did."""
        while not self.lost:
            await self.pump()
        return self.lost

    async def goodbye(self) -> None:
        """Go, without a word."""
        await trio.aclose_forcefully(self.stream)
