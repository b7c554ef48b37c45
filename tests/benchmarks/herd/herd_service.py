"""One simulated service that a thousand daemons share: its bytes are computed by hand, its clock is one task.

A connection is an object that bytes are pushed into, never a task: what the service has to say is put on one heap of
things due. Handshakes and calls are counted as they arrive, admitted or not; both have a rate that is admitted
(a token bucket), and what is beyond it is refused as services do it: 503 or 429.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import math
import random
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn

import trio

from sidecar.errors import ConnectFailed

State = Literal["up", "dark", "erring", "brown"]

#: Seconds one way: never exactly the same, as on a network.
LATENCY: Final = (0.005, 0.015)
#: Seconds to the first delta, and from there to the end of the answer.
FIRST_DELTA: Final = (0.1, 0.3)
REST: Final = (0.1, 0.3)

_KEY: Final = re.compile(rb"[Ss]ec-[Ww]eb[Ss]ocket-[Kk]ey: *([^\r]+)")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_REFUSED: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}",
)


def frame(opcode: int, payload: bytes) -> bytes:
    """A server's frame: whole and unmasked."""
    size = len(payload)
    head = bytes((0x80 | opcode, size)) if size < 126 else bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    return head + payload


def text(fields: dict[str, Any]) -> bytes:
    """A JSON object as a text frame."""
    return frame(_TEXT, json.dumps(fields).encode())


def error(status: int, code: str) -> bytes:
    """The service's own error in place of an answer."""
    return text({"type": "error", "status": status, "error": {"code": code, "message": "simulated"}})


class Bucket:
    """A rate that is admitted, and how much of it may come at once.

    Args:
        rate: per second; inf for no limit.
        burst: at once; a tenth of a second's worth, at least one, by default.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = max(1.0, rate / 10) if burst is None else burst
        self._level, self._at = self.burst, -math.inf

    def take(self, now: float) -> bool:
        """Whether one more is admitted."""
        if self.rate == math.inf:
            return True
        self._level = min(self.burst, self._level + self.rate * min(now - self._at, 3600.0))
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Line(trio.abc.Stream):
    """The client's end of one connection, and all that the service knows of it."""

    def __init__(self, service: Service, host: int) -> None:
        self.service, self.host = service, host
        self.upgraded = self.gone = False
        self.due_at = 0.0  # what was said last arrives then: nothing overtakes it
        self.buffer = b""
        self._inbox: list[bytes] = []
        self._ended: Literal["", "eof", "reset"] = ""
        self._news = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.Stream`."""
        await trio.lowlevel.checkpoint()
        if self.gone or self._ended:
            raise trio.BrokenResourceError("gone")
        self.service.take(self, bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.Stream`."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.Stream`."""
        await trio.lowlevel.checkpoint()
        while not self._inbox and not self._ended:
            if self.gone:
                raise trio.ClosedResourceError
            await self._news.wait()
            self._news = trio.Event()
        if self._inbox:
            data = b"".join(self._inbox)
            self._inbox.clear()
            return data
        if self._ended == "reset":
            raise trio.BrokenResourceError("reset")
        return b""

    async def aclose(self) -> None:
        """See `trio.abc.Stream`."""
        if not self.gone:
            self.service.left(self)
        self._news.set()
        await trio.lowlevel.checkpoint()

    def deliver(self, data: bytes) -> None:
        """Bytes arrive at the client."""
        if not self.gone and not self._ended:
            self._inbox.append(data)
            self._news.set()

    def end(self, how: Literal["eof", "reset"]) -> None:
        """The service ends TCP."""
        if not self._ended:
            self._ended = how
            self._news.set()


class Service:
    """See the module.

    Args:
        name: of the upstream.
        seed: of its own dice; the network's noise, too.
        handshakes, calls: admitted per second while it is up.
    """

    def __init__(self, name: str, seed: int, *, handshakes: Bucket, calls: Bucket) -> None:
        self.name = name
        self.state: State = "up"
        #: what a call beyond the rate is told: status and code
        self.refusal = (429, "rate_limit_exceeded")
        self.handshakes, self.calls = handshakes, calls
        self.dice = random.Random(seed)
        #: instants: TCP connects, upgrade requests, those refused; calls that arrived, those refused
        self.dials: list[float] = []
        self.upgrades: list[float] = []
        self.upgrades_refused: list[float] = []
        self.attempts: list[float] = []
        self.attempts_refused: list[float] = []
        #: prompt -> how many attempts of it came here
        self.attempts_of: dict[str, int] = {}
        self.lines: dict[Line, None] = {}
        self.opened: Callable[[int, int], None] = lambda host, standing: None
        self._standing: dict[int, int] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._scope = trio.CancelScope()
        self._sleeping_until = math.inf

    # ------------------------------------------------------------------ time

    def later(self, delay: float, step: Callable[..., None], *arguments: Any) -> None:
        """Do something after `delay` seconds."""
        when = trio.current_time() + delay
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, step, arguments))
        if when < self._sleeping_until:
            self._sleeping_until = self._scope.deadline = when

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Do what falls due, for ever."""
        task_status.started()
        heap = self._heap
        while True:
            self._sleeping_until = heap[0][0] if heap else math.inf
            with trio.CancelScope(deadline=self._sleeping_until) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                _, _, step, arguments = heapq.heappop(heap)
                step(*arguments)

    def _say(self, line: Line, data: bytes, delay: float = 0.0) -> None:
        at = max(line.due_at, trio.current_time() + delay + self.dice.uniform(*LATENCY))
        line.due_at = at
        self.later(at - trio.current_time(), line.deliver, data)

    # ------------------------------------------------------------------ faults

    def cut_all(self) -> None:
        """Every standing connection is cut: half of them by a reset."""
        for line in list(self.lines):
            self.left(line, gone=False)
            self.later(self.dice.uniform(*LATENCY), line.end, self.dice.choice(("eof", "reset")))

    # ------------------------------------------------------------------ connections

    async def dial(self, host: int) -> trio.abc.Stream:
        """A connected stream of that host, or ConnectFailed."""
        self.dials.append(trio.current_time())
        await trio.sleep(self.dice.uniform(*LATENCY))
        if self.state == "dark":
            raise ConnectFailed("tcp", "connection refused")
        line = Line(self, host)
        self.lines[line] = None
        return line

    def left(self, line: Line, *, gone: bool = True) -> None:
        """The connection is over: the client closed it, or (`gone` false) we did."""
        line.gone = line.gone or gone
        if self.lines.pop(line, line) is None and line.upgraded:
            self._standing[line.host] -= 1

    def standing(self, host: int) -> int:
        """How many connections of a host stand."""
        return self._standing.get(host, 0)

    def take(self, line: Line, data: bytes) -> None:
        """Bytes of a client."""
        line.buffer += data
        if not line.upgraded:
            if b"\r\n\r\n" in line.buffer:
                request, _, line.buffer = line.buffer.partition(b"\r\n\r\n")
                self._upgrade(line, request)
            return
        while (found := _client_frame(line.buffer)) is not None:
            opcode, payload, size = found
            line.buffer = line.buffer[size:]
            if opcode == _TEXT:
                self._call(line, payload)
            elif opcode == _PING:
                self._say(line, frame(_PONG, payload))
            elif opcode == _CLOSE:
                self._say(line, frame(_CLOSE, payload[:2]))
                self.later(line.due_at - trio.current_time(), line.end, "eof")

    def _upgrade(self, line: Line, request: bytes) -> None:
        now = trio.current_time()
        self.upgrades.append(now)
        if self.state == "dark" or line not in self.lines:
            return
        if not self.handshakes.take(now):
            self.upgrades_refused.append(now)
            self._say(line, self.dice.choice(_REFUSED))
            return
        key = _KEY.search(request)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1].strip() + _GUID).digest())
        line.upgraded = True
        standing = self._standing[line.host] = self._standing.get(line.host, 0) + 1
        self._say(
            line,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n",
        )
        self.opened(line.host, standing)

    # ------------------------------------------------------------------ calls

    def _call(self, line: Line, payload: bytes) -> None:
        now = trio.current_time()
        self.attempts.append(now)
        prompt = json.loads(payload)["input"][-1]["content"]
        self.attempts_of[prompt] = self.attempts_of.get(prompt, 0) + 1
        if self.state == "erring":
            self.attempts_refused.append(now)
            self._say(line, error(503, "overloaded"))
        elif not self.calls.take(now):
            self.attempts_refused.append(now)
            self._say(line, error(*self.refusal))
        else:
            number = len(self.attempts)
            created = {"type": "response.created", "response": {"id": f"r{number}", "model": "m"}}
            first = {"type": "response.output_text.delta", "item_id": f"i{number}", "delta": "HO"}
            second = {"type": "response.output_text.delta", "item_id": f"i{number}", "delta": "LD"}
            usage = {"input_tokens": 3, "output_tokens": 2}
            response = {"id": f"r{number}", "status": "completed", "model": "m", "output": [], "usage": usage}
            delay = self.dice.uniform(*FIRST_DELTA)
            self._say(line, text(created) + text(first), delay)
            done = text({"type": "response.completed", "response": response})
            self._say(line, text(second) + done, delay + self.dice.uniform(*REST))


def _client_frame(buffer: bytes) -> tuple[int, bytes, int] | None:
    """The first masked frame in `buffer`: opcode, payload, its size in all; None while it is not whole."""
    if len(buffer) < 6:
        return None
    size, at = buffer[1] & 127, 2
    if size == 126:
        size, at = int.from_bytes(buffer[2:4], "big"), 4
    elif size == 127:
        size, at = int.from_bytes(buffer[2:10], "big"), 10
    whole = at + 4 + size
    if len(buffer) < whole:
        return None
    mask = (buffer[at : at + 4] * (size // 4 + 1))[:size]
    masked = int.from_bytes(buffer[at + 4 : whole], "big") ^ int.from_bytes(mask, "big")
    return buffer[0] & 15, masked.to_bytes(size, "big"), whole
