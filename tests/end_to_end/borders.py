"""What every row of the table of bad input needs: a bot that says anything, a bot that behaves, and the table."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import zmq

from tests.end_to_end.processes import Processes

#: How long a behaved bot's call may take beside anything else, seconds; above it that bot was harmed.
UNHARMED_S = 2.0
TERMINALS = ("done", "failed")


@dataclass
class Row:
    """One thing that was tried. `ok`: the answer is one of those documented, and nobody else was harmed."""

    border: str
    tried: str
    answered: str
    ms: float
    others: str
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing to complain of."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ok": self.ok}


class Bystander:
    """A bot that behaves: one call after another, and what became of each."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._calls: list[tuple[float, float, str]] = []
        self._pongs: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bystander", daemon=True)

    def __enter__(self) -> Bystander:
        self._thread.start()
        while len(self._calls) < 2 and not self._stop.wait(0.01):
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        with Bot(self._endpoint) as bot:
            number = 0
            while not self._stop.wait(0.01):
                number += 1
                began = time.monotonic()
                bot.send({"type": "ping", "nonce": number})
                while bot.next(10.0).get("type") not in ("pong", "nothing"):
                    pass
                self._pongs.append((began, time.monotonic()))
                began = time.monotonic()
                bot.send({"type": "call", "id": f"b{number}", "input": "HOLD?", "timeout_ms": 3000})
                answer: dict[str, Any] = {}
                while answer.get("type") not in (*TERMINALS, "nothing"):
                    answer = bot.next(10.0)
                end = answer.get("code") or answer["type"]
                self._calls.append((began, time.monotonic(), end))

    def between(self, began: float) -> tuple[str, list[str]]:
        """What became of its calls since `began`, one of which ends after now; and what is wrong with that."""
        now = time.monotonic()
        while self._thread.is_alive() and (not self._calls or self._calls[-1][0] < now):
            time.sleep(0.005)
        calls = [call for call in list(self._calls) if call[1] >= began]
        done = [call for call in calls if call[2] == "done"]
        worst = max((end - start for start, end, _ in calls), default=0.0)
        pong = max((end - start for start, end in list(self._pongs) if end >= began), default=0.0)
        problems = [f"another bot's call ended {end}" for _, _, end in calls if end != "done"]
        if worst > UNHARMED_S:
            problems.append(f"another bot's call took {worst:.1f} s")
        if not calls:
            problems.append("the other bot got no answer at all")
        return f"{len(done)} of {len(calls)} done, slowest {1000 * worst:.0f} ms, pong {1000 * pong:.0f} ms", problems


class Bot:
    """A DEALER that says anything."""

    def __init__(self, endpoint: str, *, kind: int = zmq.DEALER, **options: Any) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.maxmsgsize = -1
        for name, value in options.items():
            setattr(self.socket, name, value)
        self.socket.connect(endpoint)

    def __enter__(self) -> Bot:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def send(self, *frames: bytes | dict[str, Any] | list[Any]) -> None:
        """One message of these frames; maps as JSON."""
        self.socket.send_multipart([f if isinstance(f, bytes) else json.dumps(f).encode() for f in frames])

    def next(self, timeout: float = 3.0) -> dict[str, Any]:
        """The next message; `{"type": "nothing"}` after `timeout` seconds."""
        if not self.socket.poll(1000 * timeout):
            return {"type": "nothing"}
        return decode(self.socket.recv_multipart()[-1])

    def converse(self, *payloads: Any, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Send each payload, then a ping; all that comes until its pong, the last call's end and a second pong."""
        for payload in payloads:
            self.send(*payload) if isinstance(payload, tuple) else self.send(payload)
        self.send({"type": "ping", "nonce": "one"})
        missing = min(256, sum(map(_calls_in, payloads)))
        came: list[dict[str, Any]] = []
        awaited = "one"
        until = time.monotonic() + timeout
        while (message := self.next(max(0.0, until - time.monotonic())))["type"] != "nothing":
            if message["type"] == "pong":
                awaited = "two" if message["nonce"] == "one" else ""
                if not awaited:
                    return came
            else:
                came.append(message)
                if message["type"] in TERMINALS:
                    missing -= 1 if message["id"] is not None else missing
            if awaited == "two" and missing <= 0:
                awaited = "sent"
                self.send({"type": "ping", "nonce": "two"})
        came.append({"type": "NOT ALL ANSWERED"})
        return came


def _calls_in(payload: Any) -> int:
    """How many terminals or refusals are owed for it."""
    if isinstance(payload, list):
        return sum(map(_calls_in, payload))
    return int(isinstance(payload, dict) and payload.get("type") == "call")


def default_ready(processes: Processes) -> bool:
    """Whether the route of the bot that behaves is served, however bad the others are."""
    routes = (processes.report() or {"routes": []})["routes"]
    return any(route["name"] == "default" and route["ready"] for route in routes)


def decode(payload: bytes) -> Any:
    """JSON or MessagePack, as the wire tells them apart."""
    return json.loads(payload) if payload[:1] in (b"{", b"[") else msgspec.msgpack.decode(payload)


class Raw:
    """A peer of its own making: bytes on the socket file, ZMTP or not."""

    READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)

    def __init__(self, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(5.0)
        for _ in range(200):  # libzmq's backlog is short, and a full one is EAGAIN
            try:
                self.socket.connect(endpoint.removeprefix("ipc://"))
                break
            except BlockingIOError:
                time.sleep(0.01)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def greet(self) -> None:
        """The whole ZMTP handshake. libzmq drops a peer that sends messages before it has its READY."""
        self.socket.sendall(self.GREETING + self.frame(self.READY, command=True))
        received = b""
        while b"Identity" not in received:
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionResetError("closed in the ZMTP handshake")
            received += data

    @staticmethod
    def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
        """One ZMTP frame."""
        return bytes([2 | more | 4 * command]) + struct.pack(">Q", len(body)) + body

    def send(self, data: bytes) -> bool:
        """Whether it was taken."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def closed(self, timeout: float) -> str:
        """Wait for the end of the connection, and tell how it went."""
        began = time.monotonic()
        self.socket.settimeout(0.2)
        while time.monotonic() < began + timeout:
            try:
                if not self.socket.recv(65536):
                    return "connection closed"
            except TimeoutError:
                continue
            except OSError:
                return "connection closed"
        return "connection stays open, nothing is said"


class Table:
    """The rows, made one by one. `alive` tells whether the daemon lives."""

    def __init__(self, *, quick: bool = False, tell: Callable[[str], None] = lambda _: None) -> None:
        self.rows: list[Row] = []
        self.quick = quick
        self._tell = tell
        self._bystander: Bystander | None = None
        self._alive: Callable[[], bool] = lambda: True
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def beside(self, endpoint: str, alive: Callable[[], bool]) -> Iterator[None]:
        """Rows made inside have a bot that behaves beside them, at this daemon."""
        self._alive = alive
        with Bystander(endpoint) as self._bystander:
            yield
        self._bystander = None

    def try_(self, border: str, tried: str, act: Callable[[], str], expected: str) -> None:
        """One row: what `act` says was answered; `expected` is a pattern of the answers documented."""
        began = time.monotonic()
        try:
            answered = act()
        except (zmq.ZMQError, OSError, AssertionError, KeyError) as error:
            answered = f"could not be tried: {error!r}"
        self.note(border, tried, answered, expected, began)

    def note(
        self, border: str, tried: str, answered: str, expected: str, began: float, ms: float | None = None
    ) -> None:
        """As `try_`, for an answer that is known already."""
        took = 1000 * (time.monotonic() - began) if ms is None else ms
        problems = []
        if not re.search(expected, answered):
            problems.append(f"not a documented answer (expected: {expected})")
        if "Traceback" in answered or " internal" in answered:
            problems.append("a fault of the daemon's own")
        others = "no daemon involved"
        if self._bystander is not None:
            others, harmed = self._bystander.between(began)
            problems += harmed
        if not self._alive():
            problems.append("the daemon died")
        row = Row(border, tried, answered, round(took, 1), others, problems)
        with self._lock:
            self.rows.append(row)
        self._tell(f"{'ok ' if row.ok else 'BAD'} {border}: {tried} -> {answered} [{took:.0f} ms; {others}]"
                   + "".join(f"\n    {problem}" for problem in problems))  # fmt: skip


def told(messages: list[dict[str, Any]]) -> str:
    """What came, in a line."""
    said: list[str] = []
    deltas = 0
    for message in messages:
        kind = message["type"]
        if kind == "delta":
            deltas += 1
            continue
        if kind == "failed":
            name = "id null" if message["id"] is None else "with id"
            extra = "".join(
                f", {word}"
                for word, there in (
                    ("partial", message.get("partial")),
                    (f"{message.get('attempts')} attempts", message.get("attempts", 0) > 1),
                    (f"retry_after_ms {message.get('retry_after_ms')}", message.get("retry_after_ms") is not None),
                    (f"status {message.get('upstream_status')}", message.get("upstream_status")),
                )
                if there
            )
            said.append(f"failed {message['code']} ({name}{extra}): {message['message']}")
        elif kind == "done":
            said.append(f"done {message['finish']}, {message['deltas']} deltas")
        else:
            said.append(kind)
    if deltas and not any(word.startswith("done") for word in said):
        said.insert(max(0, len(said) - 1), f"{deltas} deltas")
    if len(said) > 4:
        return " · ".join([*dict.fromkeys(s.split(":")[0] for s in said)][:4]) + f" ({len(said)} messages)"
    return " · ".join(said) or "nothing, and the next message is answered"
