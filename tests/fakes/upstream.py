"""An upstream in memory: the server's end of a WebSocket (wsproto), scripted; for virtual time.

`FakeUpstream.dial` takes the place of TCP and TLS. What a connect meets is taken from `connects` (else it works), what
a request meets from `scripts` (else `default`). A script is a coroutine that is given the `Asked` and speaks by it.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from msgspec import Struct
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError

from sidecar.errors import ConnectFailed

Script = Callable[["Asked"], Awaitable[None]]

#: For `FakeUpstream.down`: nobody is there.
DOWN = ConnectFailed("tcp", "connection refused")


class Refuse(Struct, frozen=True):
    """A connect that is answered with an HTTP status."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b"{}"


class Delay(Struct, frozen=True):
    """A connect that works, after so many seconds."""

    seconds: float


class Link(trio.abc.Stream):
    """The client's end of a memory stream that can be reset."""

    def __init__(self, inner: trio.StapledStream[Any, Any]) -> None:
        self.inner = inner
        self.is_reset = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.Stream`."""
        if self.is_reset:
            raise trio.BrokenResourceError("reset")
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.Stream`."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.Stream`."""
        data = bytes(await self.inner.receive_some(max_bytes))
        if not data and self.is_reset:
            raise trio.BrokenResourceError("reset")
        return data

    async def aclose(self) -> None:
        """See `trio.abc.Stream`."""
        await self.inner.aclose()


class Served:
    """One connection, from the server's side."""

    def __init__(self, upstream: FakeUpstream, number: int, stream: trio.StapledStream[Any, Any], link: Link) -> None:
        self.upstream, self.number, self.stream, self.link = upstream, number, stream, link
        self.websocket = WSConnection(ConnectionType.SERVER)
        self.asked: list[Asked] = []
        self.authorization = ""
        self.opened_at: float | None = None
        #: when the client was found gone, or we closed; None while it stands
        self.gone_at: float | None = None
        self.close_code: int | None = None
        self.deaf = upstream.deaf
        self._sending = trio.Lock()

    @property
    def standing(self) -> bool:
        """Opened, and not gone."""
        return self.opened_at is not None and self.gone_at is None

    async def run(self, nursery: trio.Nursery, refuse: Refuse | None) -> None:
        """Serve until either end is gone."""
        while self.gone_at is None:
            try:
                data = bytes(await self.stream.receive_some(65_536))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._end()
                return
            self.websocket.receive_data(data)
            for event in self.websocket.events():
                await self._event(event, nursery, refuse)

    async def _event(self, event: Any, nursery: trio.Nursery, refuse: Refuse | None) -> None:
        if isinstance(event, Request):
            headers = {name.lower(): value for name, value in event.extra_headers}
            self.authorization = headers.get(b"authorization", b"").decode()
            key = self.upstream.key
            if refuse is None and key is not None and self.authorization != f"Bearer {key}":
                refuse = Refuse(401)
            if refuse is not None:
                await self.send(
                    self.websocket.send(
                        RejectConnection(
                            status_code=refuse.status,
                            headers=[*refuse.headers, (b"content-length", b"2")],
                            has_body=True,
                        )
                    ),
                    self.websocket.send(RejectData(data=refuse.body[:2])),
                )
            else:
                await self.send(self.websocket.send(AcceptConnection()))
                self.opened_at = trio.current_time()
                self.upstream.changed()
        elif isinstance(event, TextMessage):
            assert event.message_finished
            asked = Asked(self, json.loads(event.data))
            self.asked.append(asked)
            self.upstream.asked.append(asked)
            self.upstream.changed()
            script = self.upstream.scripts.popleft() if self.upstream.scripts else self.upstream.default
            nursery.start_soon(self._play, script, asked)
        elif isinstance(event, Ping):
            if not self.deaf:
                await self.send(self.websocket.send(Pong(payload=event.payload)))
        elif isinstance(event, CloseConnection):
            self.close_code = int(event.code)
            try:
                await self.send(self.websocket.send(event.response()))
            except LocalProtocolError:
                pass
            await self.cut()

    async def _play(self, script: Script, asked: Asked) -> None:
        with asked.scope:
            try:
                await script(asked)
            except (trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
                pass  # the client went away: nobody listens

    async def send(self, *pieces: bytes) -> None:
        """Bytes, all in one segment."""
        async with self._sending:
            await self.stream.send_all(b"".join(pieces))

    async def cut(self, *, reset: bool = False) -> None:
        """End of TCP."""
        self.link.is_reset = reset
        self._end()
        await self.stream.aclose()

    async def close(self, code: int, reason: str = "") -> None:
        """A Close frame; the client's answer ends it."""
        await self.send(self.websocket.send(CloseConnection(code=code, reason=reason)))

    def _end(self) -> None:
        if self.gone_at is None:
            self.gone_at = trio.current_time()
            for asked in self.asked:
                asked.scope.cancel()
            self.upstream.changed()


class Asked:
    """One request, and the way to answer it in its dialect."""

    _numbers = itertools.count(1)

    def __init__(self, connection: Served, body: dict[str, Any]) -> None:
        self.connection, self.body = connection, body
        self.at = trio.current_time()
        self.scope = trio.CancelScope()
        self.number = next(self._numbers)
        self.responses = body.get("type") == "response.create"

    @property
    def prompt(self) -> str:
        """The last message's text."""
        turns: list[dict[str, str]] = self.body["input"] if self.responses else self.body["messages"]
        return turns[-1]["content"]

    @property
    def model(self) -> str:
        """What was asked for."""
        model: str = self.body["model"]
        return model

    def frame(self, fields: dict[str, Any]) -> bytes:
        """One text message of this call's stream."""
        if self.responses and "stream_id" in self.body:
            fields = {**fields, "stream_id": self.body["stream_id"]}
        return self.text(json.dumps(fields))

    def text(self, payload: str) -> bytes:
        """One text message."""
        return self.connection.websocket.send(TextMessage(data=payload))

    def binary(self, payload: bytes) -> bytes:
        """One binary message."""
        return self.connection.websocket.send(BytesMessage(data=payload))

    async def send(self, *frames: bytes) -> None:
        """Frames, all in one segment."""
        await self.connection.send(*frames)

    def created(self) -> bytes:
        """The answer begins; no content yet."""
        if self.responses:
            return self.frame({"type": "response.created", "response": {"id": f"r{self.number}", "model": "m-1"}})
        return self.frame(self._chunk({"role": "assistant", "content": ""}))

    def delta(self, text: str) -> bytes:
        """A piece of content."""
        if self.responses:
            return self.frame({"type": "response.output_text.delta", "item_id": f"i{self.number}", "delta": text})
        return self.frame(self._chunk({"content": text}))

    def finish(self, reason: str = "stop") -> bytes:
        """responses: the terminal with its usage. chat: finish_reason alone."""
        if self.responses:
            usage = {"input_tokens": 3, "output_tokens": 2}
            response = {"id": f"r{self.number}", "status": "completed", "model": "m-1", "output": [], "usage": usage}
            return self.frame({"type": "response.completed", "response": response})
        return self.frame(self._chunk({}, reason))

    def usage(self) -> bytes:
        """chat: the chunk after finish_reason."""
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return self.frame({"id": self._name(), "model": "m-1", "choices": [], "usage": usage})

    def error(self, status: int | None = None, code: str | None = None, **more: Any) -> bytes:
        """The upstream's own error."""
        fields: dict[str, Any] = {"error": {"code": code, "message": f"fake {status} {code}"}, **more}
        if status is not None:
            fields["status"] = status
        if self.responses:
            fields["type"] = "error"
        else:
            fields["id"] = self._name()
        return self.frame(fields)

    def _name(self) -> str:
        return str(self.body.get("id", ""))

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"id": self._name(), "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


async def answers(asked: Asked) -> None:
    """The default script: two pieces and an end, 10 ms apart."""
    await trio.sleep(0.01)
    await asked.send(asked.created(), asked.delta("HO"))
    await trio.sleep(0.01)
    await asked.send(asked.delta("LD"), asked.finish(), *(() if asked.responses else (asked.usage(),)))


async def silent(asked: Asked) -> None:
    """Takes the request and never says a word."""
    await trio.sleep_forever()


def erring(status: int | None = None, code: str | None = None, *, after: float = 0.005, **more: Any) -> Script:
    """A script that ends in the upstream's own error."""

    async def script(asked: Asked) -> None:
        await trio.sleep(after)
        await asked.send(asked.error(status, code, **more))

    return script


def closing(code: int | None, *, pieces: int = 0, after: float = 0.005, reset: bool = False) -> Script:
    """A script that ends in a Close frame, or (None) in the end of TCP, after some pieces of content."""

    async def script(asked: Asked) -> None:
        for number in range(pieces):
            await trio.sleep(after)
            await asked.send(asked.delta(f"p{number} "))
        await trio.sleep(after)
        if code is None:
            await asked.connection.cut(reset=reset)
        else:
            await asked.connection.close(code)

    return script


def stalling(pieces: int = 2, *, keepalives: bool = True) -> Script:
    """A script that stops in the middle, with keep-alives and metadata flowing."""

    async def script(asked: Asked) -> None:
        for number in range(pieces):
            await trio.sleep(0.005)
            await asked.send(asked.delta(f"p{number} "))
        while keepalives:
            await trio.sleep(0.05)
            ping = asked.connection.websocket.send(Ping())
            if asked.responses:
                await asked.send(ping, asked.frame({"type": "response.in_progress"}))
            else:
                await asked.send(ping)
        await trio.sleep_forever()

    return script


def slowly(after: float, text: str = "late") -> Script:
    """A script that answers after so many seconds."""

    async def script(asked: Asked) -> None:
        await trio.sleep(after)
        await asked.send(asked.delta(text), asked.finish(), *(() if asked.responses else (asked.usage(),)))

    return script


class FakeUpstream:
    """One service; any number of connections."""

    def __init__(self, name: str, nursery: trio.Nursery) -> None:
        self.name, self.nursery = name, nursery
        self.connects: deque[Refuse | Delay | ConnectFailed] = deque()
        self.scripts: deque[Script] = deque()
        self.default: Script = answers
        #: every connect while it is down fails
        self.down: ConnectFailed | Refuse | None = None
        #: connections answer no ping from now on
        self.deaf = False
        #: the only credential taken, when given
        self.key: str | None = None
        self.dialled_at: list[float] = []
        self.served: list[Served] = []
        self.asked: list[Asked] = []
        self._change = trio.Event()

    def changed(self) -> None:
        """Wake who waits in `until`."""
        self._change.set()
        self._change = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on this upstream."""
        while not condition():
            await self._change.wait()

    @property
    def standing(self) -> list[Served]:
        """The connections that stand."""
        return [served for served in self.served if served.standing]

    async def dial(self) -> trio.abc.Stream:
        """A connected stream, or ConnectFailed."""
        await trio.lowlevel.checkpoint()
        self.dialled_at.append(trio.current_time())
        meets: Any = self.connects.popleft() if self.connects else self.down
        if isinstance(meets, ConnectFailed):
            raise ConnectFailed(meets.stage, meets.reason, timed_out=meets.timed_out)
        if isinstance(meets, Delay):
            await trio.sleep(meets.seconds)
            meets = self.down
        client, server = trio.testing.memory_stream_pair()
        served = Served(self, len(self.served), server, link := Link(client))
        self.served.append(served)
        self.nursery.start_soon(served.run, self.nursery, meets if isinstance(meets, Refuse) else None)
        return link

    async def cut_all(self, *, reset: bool = False) -> None:
        """Every connection ends."""
        for served in self.standing:
            await served.cut(reset=reset)
