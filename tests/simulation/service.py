"""A simulated upstream: the server's end of WebSockets in either dialect, and what it keeps of every request.

What a connect meets and how a request is answered is the schedule's: a `Mood` is drawn from, per request and from dice
that depend on nothing but the seed and the request, so that a schedule with one bot less is the same for the others.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from sidecar.errors import ConnectFailed
from sidecar.transport.frames import CLOSE, PING, PONG, TEXT, encode_server_frame
from tests.simulation.network import GOOD, Link, Toxics

if TYPE_CHECKING:
    from tests.simulation.world import World

_decode = msgspec.json.Decoder().decode
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Request:
    """One request, from the client's writing it to its end, as the upstream's side sees it.

    Attributes:
        number: of all requests of the world; every piece of its text begins with it.
        tag: the call's, from its prompt.
        written_at, arrived_at: when the client wrote it; when it was here.
        pieces: the text sent before its end.
        finished: a proper end was sent.
        ended_at: its end, of whatever kind, has arrived at the client.
        how: what kind of end: "done", "failed", "ignored", "auth", "throttled", "rejected", "cut", or "" so far.
        content_at: its first content arrived at the client.
    """

    __slots__ = (
        "arrived_at", "body", "content_at", "ended_at", "finished", "how", "junk", "model", "name",
        "number", "pieces", "session", "tag", "trial", "written_at",
    )  # fmt: skip

    def __init__(self, session: Session, number: int, body: dict[str, Any], tag: str, now: float) -> None:
        self.session, self.number, self.body, self.tag, self.written_at = session, number, body, tag, now
        self.model: str = body["model"]
        self.arrived_at: float | None = None
        self.pieces: list[str] = []
        self.finished = self.junk = False
        self.ended_at: float | None = None
        self.content_at: float | None = None
        self.how = ""
        self.name = body.get("id", "")

    def __repr__(self) -> str:
        return f"<Request {self.number} of {self.tag} at {self.session} {self.how or 'open'}>"

    # ------------------------------------------------------------------ what arrived at the client

    def _content_came(self) -> None:
        if self.content_at is None and self.ended_at is None:  # what comes after a Close is nobody's
            self.content_at = trio.current_time()

    def _end_came(self, how: str) -> None:
        if self.ended_at is None:
            self.ended_at = trio.current_time()
            self.how = how

    # ------------------------------------------------------------------ frames

    def delta(self, text: str = "") -> bytes:
        """A piece of content, of this request and no other."""
        piece = text or f"{self.number}:{len(self.pieces)} "
        if not self.finished:
            self.pieces.append(piece)
        if self.session.service.responses:
            return self.frame(f'"type":"response.output_text.delta","item_id":"i{self.number}","delta":"{piece}"')
        return self._chunk(f'"content":"{piece}"')

    def created(self) -> bytes:
        """The answer begins; no content yet."""
        if self.session.service.responses:
            return self.frame(f'"type":"response.created","response":{{"id":"r{self.number}","model":"m-1"}}')
        return self._chunk('"role":"assistant","content":""')

    def finish(self, reason: str = "stop") -> bytes:
        """responses: the terminal with its usage. chat: finish_reason alone."""
        self.finished = True
        if self.session.service.responses:
            return self.frame(
                f'"type":"response.completed","response":{{"id":"r{self.number}","status":"completed","model":"m-1",'
                '"output":[],"usage":{"input_tokens":3,"output_tokens":2}}'
            )
        return self._chunk("", f'"{reason}"')

    def usage(self) -> bytes:
        """chat: the chunk after finish_reason."""
        return self.frame(
            f'"id":"{self.name}","model":"m-1","choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":2}}'
        )

    def error(self, status: int | None, code: str | None = None, retry_after: float | None = None) -> bytes:
        """The upstream's own error."""
        said = f'"error":{{"code":{msgspec.json.encode(code).decode()},"message":"simulated {status} {code}"}}'
        if status is not None:
            said += f',"status":{status}'
        if retry_after is not None:
            said += f',"headers":{{"retry-after":"{retry_after}"}}'
        return self.frame(said + (',"type":"error"' if self.session.service.responses else f',"id":"{self.name}"'))

    def frame(self, fields: str) -> bytes:
        """One text message of this request's stream."""
        stream = self.body.get("stream_id")
        if stream is not None:
            fields += f',"stream_id":"{stream}"'
        return encode_server_frame(TEXT, b"{" + fields.encode() + b"}")

    def _chunk(self, delta: str, reason: str = "null") -> bytes:
        return self.frame(
            f'"id":"{self.name}","model":"m-1","choices":[{{"index":0,"delta":{{{delta}}},"finish_reason":{reason}}}]'
        )

    # ------------------------------------------------------------------ sending

    def send(self, *frames: bytes) -> None:
        """Frames without content or end, in one segment."""
        self.session.send(b"".join(frames))

    def content(self, *frames: bytes) -> None:
        """Frames with content."""
        self.session.send(b"".join(frames), self._content_came if self.content_at is None else None)

    def ends(self, how: str, *frames: bytes) -> None:
        """Frames of which the last is an end."""
        if how in ("ignored", "auth"):
            self.session.told = how
        self.session.send(b"".join(frames), partial(self._end_came, how))

    def done(self, *before: bytes, usage: bool = True) -> None:
        """A proper end, after some frames."""
        last = [self.finish()]
        if usage and not self.session.service.responses:
            last.append(self.usage())
        self.session.send(b"".join((*before, *last)), self._all_came if before else partial(self._end_came, "done"))

    def _all_came(self) -> None:
        self._content_came()
        self._end_came("done")


class Session:
    """One connection, from the server's side."""

    def __init__(self, service: Service, number: int, toxics: Toxics, meets: str, dice: random.Random) -> None:
        self.service, self.number, self.meets = service, number, meets
        self.link = Link(
            service.world.engine, toxics, dice, on_written=self._written, on_data=self._data, on_end=self._ended
        )
        self.requests: list[Request] = []
        self.opened = self.gone = self.closing = False
        self.told = ""  # what one request of it was told of the whole connection
        self.opened_at: float | None = None
        #: when the server sent its Close: it reads nothing more of what comes
        self.said_close_at: float | None = None
        self.deaf = False
        self.key = ""
        self._head = bytearray()
        self._buffer = bytearray()
        self._seen = bytearray()  # what the client wrote, ahead of the network
        self._seen_head = False

    def __repr__(self) -> str:
        return f"{self.service.name}#{self.number}"

    # ------------------------------------------------------------------ what the client writes

    def _written(self, data: bytes) -> None:
        """Noted when it is written: an attempt counts even if the network swallows it."""
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
        """Bytes arrived."""
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
                request = next(r for r in self.requests if r.arrived_at is None)
                request.arrived_at = trio.current_time()
                self.service.arrived(request)
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

    def _ended(self, how: str) -> None:
        self.gone = True
        now = trio.current_time()
        # What one of them was told of the whole connection ends the others as well.
        shared = self.told or "cut"
        for request in self.requests:
            if request.ended_at is None:
                request.ended_at, request.how = now, request.how or shared
        self.service.lost(self)

    # ------------------------------------------------------------------ what the server does

    def send(self, data: bytes, mark: Callable[[], None] | None = None) -> None:
        """Bytes on their way."""
        if not self.gone and not self.closing:
            self.link.to_client.send(data, mark)

    def shut(self, how: str = "eof") -> None:
        """End of TCP."""
        if not self.closing and not self.gone:
            self.closing = True
            self.link.server_closes(how)

    def close(self, code: int, how: str) -> None:
        """A Close frame; every request ends by it. The client's answer, or a moment, ends TCP."""
        if self.gone or self.closing:
            return

        def came() -> None:
            for request in self.requests:
                request._end_came(how)

        self.send(encode_server_frame(CLOSE, code.to_bytes(2, "big")), came)
        self.said_close_at = trio.current_time()
        self.service.world.engine.after(0.5, self.shut)


class Service:
    """One upstream."""

    def __init__(self, world: World, name: str, plan: Any) -> None:
        self.world, self.name, self.plan = world, name, plan
        self.responses: bool = plan.config.get("dialect", "responses") == "responses"
        self.keys: set[str] = {plan.key}
        self.sessions: list[Session] = []
        self.standing: list[Session] = []
        self.requests: list[Request] = []
        self.dials: list[float] = []
        self.mood = plan.phases[0].mood
        self.connects = plan.phases[0].connects
        self.toxics: tuple[Toxics, ...] = plan.phases[0].toxics
        self._counts: dict[str, int] = {}

    # ------------------------------------------------------------------ connects

    async def dial(self) -> trio.abc.Stream:
        """A connected stream, or `ConnectFailed`: what the daemon's dial is."""
        await trio.lowlevel.checkpoint()
        number = len(self.dials)
        self.dials.append(trio.current_time())
        dice = random.Random(f"{self.world.seed}/{self.name}/dial/{number}")
        meets = dice.choice(self.connects)
        world = self.world
        if world.tracing:
            world.note(f"{self.name} dialled #{number}: {meets}")
        world.counts["connect " + meets] += 1
        await trio.sleep(self.plan.rtt * (0.5 + dice.random()))
        if meets == "refused":
            raise ConnectFailed("tcp", "connection refused")
        if meets == "tls":
            raise ConnectFailed("tls", "bad record")
        if meets == "black_hole":
            await trio.sleep(self.plan.config.get("connect_timeout_s", 2.0))
            raise ConnectFailed("tcp", "timed out", timed_out=True)
        toxics = dice.choice(self.toxics)
        if toxics is not GOOD:
            world.counts["toxic link"] += 1
        session = Session(self, number, toxics, meets, dice)
        self.sessions.append(session)
        return session.link.client

    def opened(self, session: Session) -> None:
        """An upgrade worked."""
        self.standing.append(session)

    def lost(self, session: Session) -> None:
        """A connection is gone, for us."""
        if session in self.standing:
            self.standing.remove(session)

    # ------------------------------------------------------------------ requests

    def noted(self, session: Session, payload: bytes) -> Request:
        """The client wrote a request."""
        body = _decode(payload)
        turns = body["input"] if self.responses else body["messages"]
        tag = turns[-1]["content"].split(" ", 1)[0]
        request = Request(session, len(self.world.requests), body, tag, trio.current_time())
        self.world.requests.append(request)
        self.requests.append(request)
        self.world.watch.written(request)
        return request

    def arrived(self, request: Request) -> None:
        """It is here: answer it as the mood has it."""
        count = self._counts[request.tag] = self._counts.get(request.tag, 0) + 1
        dice = random.Random(f"{self.world.seed}/{self.name}/{request.tag}/{count}")
        process = self.mood.draw(request, dice)
        world = self.world
        if world.tracing:
            world.note(f"{self.name} got {request}: {process.__name__}")
        world.counts["answer " + process.__name__] += 1
        world.engine.start(_guarded(process, request.session))

    def go_away(self, code: int, how: str) -> None:
        """Every connection is closed by the server."""
        for session in self.standing.copy():
            session.close(code, how)

    def cut_all(self, how: str) -> None:
        """Every connection ends."""
        for session in self.standing.copy():
            session.shut(how)

    def go_silent(self) -> None:
        """Every connection is half-open from now on."""
        for session in self.standing.copy():
            session.link.go_silent()


def _guarded(process: Any, session: Session) -> Any:
    """A script runs as long as its connection is there."""
    for delay in process:
        yield delay
        if session.gone:
            return


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
