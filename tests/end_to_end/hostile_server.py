"""The hostile upstream itself, a process of its own: doors that play an attack until they are told another.

`python tests/end_to_end/hostile_server.py FOLDER` prints its ports as JSON, then does what its stdin says, a line each:
`DOOR ATTACK` ends all connections of that door and plays this from here on; it answers `ok`. `good` behaves.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[2])

DIALECTS: Final = ("responses", "chat", "messages")
#: What a proper answer says. A bot that is told other words in a `done` was told another's.
WORDS: Final = ("SELL", " half", " \u00e9\u20ac", " and", " HOLD")
TEXT: Final = "".join(WORDS)
FOREIGN: Final = "NOBODY'S"
#: The same of an answer that may cross the request it is taken for on the way, which nobody can tell from one to it.
CROSSING: Final = "CROSSED"
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED: Final = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LAST: Final = b"0\r\n\r\n"

#: Answered. Who is not yet connected again after what came before, or has a busy machine, may not be; somebody is.
DONE: Final = r"^done stop|^failed (no_connection|deadline_exceeded|idle_timeout)"
LOST: Final = r"^(\d+ deltas · )?failed (upstream_lost|deadline_exceeded|idle_timeout|no_connection)"
#: No answer, whatever is said instead; never `done`.
FAILED: Final = (
    r"^(\d+ deltas · )?failed (upstream_\w+|deadline_exceeded|idle_timeout|no_connection|overloaded|model_not_found"
    r"|breaker_open|deadline_unreachable|insufficient_quota)"
)
EITHER: Final = f"{DONE}|{FAILED}"


class Gone(Exception):
    """The other side has gone, or this one is to end."""


@dataclass(frozen=True)
class Attack:
    """What a door does with each connection, and what bots may be told; `dialects` are those it is tried in."""

    door: str
    name: str
    expected: str
    play: Callable[[Peer], None]
    dialects: tuple[str, ...] = DIALECTS
    prompt: int = 20  # bytes that a call asks with


ATTACKS: dict[tuple[str, str], Attack] = {}


def connected(door: str, name: str, expected: str, **more: Any) -> Callable[[Callable[[Peer], None]], Any]:
    """An attack that has the connection from its beginning."""

    def note(play: Callable[[Peer], None]) -> Callable[[Peer], None]:
        ATTACKS[door, name] = Attack(door, name, expected, play, **more)
        return play

    return note


def asked(door: str, name: str, expected: str, **more: Any) -> Callable[[Callable[[Peer, str], None]], Any]:
    """An attack on each request (HTTP/1.1), told its dialect; the connection is kept unless it closes that."""

    def note(answer: Callable[[Peer, str], None]) -> Callable[[Peer, str], None]:
        def play(peer: Peer) -> None:
            while True:
                answer(peer, peer.request())

        connected(door, name, expected, **more)(play)
        return answer

    return note


# ---------------------------------------------------------------------------------------------- what answers say


def events(dialect: str, words: tuple[str, ...] = WORDS) -> list[dict[str, Any]]:
    """The events of a whole answer."""
    if dialect == "responses":
        return [
            {"type": "response.created", "response": {"id": "r1", "model": "m"}},
            *({"type": "response.output_text.delta", "delta": word} for word in words),
            {"type": "response.completed", "response": {"id": "r1", "model": "m", "status": "completed"}},
        ]
    if dialect == "chat":
        head = {"id": "c1", "object": "chat.completion.chunk", "model": "m"}
        pieces: list[dict[str, Any]] = [{"delta": {"content": word}, "finish_reason": None} for word in words]
        pieces.append({"delta": {}, "finish_reason": "stop"})
        return [{**head, "choices": [{"index": 0, **piece}]} for piece in pieces]
    return [
        {"type": "message_start", "message": {"id": "m1", "model": "m", "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


def sse(*parts: dict[str, Any] | bytes, end: bytes = b"\n") -> bytes:
    """Events as a stream; bytes stand for themselves."""
    said = b""
    for part in parts:
        if isinstance(part, bytes):
            said += part
            continue
        name = b"event: %b%b" % (part["type"].encode(), end) if "type" in part else b""
        said += b"%bdata: %b%b%b" % (name, json.dumps(part, ensure_ascii=False).encode(), end, end)
    return said


def body(dialect: str, words: tuple[str, ...] = WORDS, end: bytes = b"\n") -> bytes:
    """A whole answer's event stream."""
    done = b"data: [DONE]" + end + end if dialect == "chat" else b""
    return sse(*events(dialect, words), end=end) + done


def begun(dialect: str) -> bytes:
    """An answer's beginning: two words of content."""
    return sse(*events(dialect)[: 3 if dialect == "responses" else 2 if dialect == "chat" else 4])


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# ---------------------------------------------------------------------------------------------- one connection


class Peer:
    """A connection to the daemon, blocking. `number` counts its requests, from 1."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.number = 0
        self.over = False  # another attack is on
        self._held = b""

    def send(self, *pieces: bytes) -> None:
        """All of it."""
        self._do(self.sock.sendall, b"".join(pieces))

    def drip(self, data: bytes, pause: float = 0.01, size: int = 1) -> None:
        """Slowly."""
        for at in range(0, len(data), size):
            self.send(data[at : at + size])
            time.sleep(pause)

    def flood(self, data: bytes) -> None:
        """For ever."""
        data *= max(1, 65_536 // len(data))
        while True:
            self.send(data)

    def read(self, size: int = 65_536) -> bytes:
        """What comes next."""
        data = self._held or self._do(self.sock.recv, size)
        self._held = b""
        if not data:
            raise Gone
        return bytes(data)

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        data, self._held = bytearray(self._held), b""
        while len(data) < size:
            data += self.read()
        self._held = bytes(data[size:])
        return bytes(data[:size])

    def head(self) -> bytes:
        """A request's head."""
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self.read()
        data, self._held = data[: end + 4], data[end + 4 :]
        return data

    def request(self) -> str:
        """A whole request -> its dialect."""
        head = self.head()
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        self.exactly(int(length[1]) if length else 0)
        self.number += 1
        return head.split(b" ", 2)[1].decode().strip("/").split("/")[0]

    def answer(self, dialect: str, *, head: bytes = CHUNKED, words: tuple[str, ...] = WORDS) -> None:
        """As a good server does."""
        self.send(head, chunk(body(dialect, words)), LAST)

    def close(self, *, reset: bool = False) -> None:
        """Close TCP, by RST if so."""
        if reset:
            self._do(self.sock.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._do(self.sock.close)
        raise Gone

    def wait(self, seconds: float = 60.0) -> None:
        """Do nothing, but read what comes."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.read()

    def _do(self, act: Callable[..., Any], *arguments: Any) -> Any:
        try:
            if not self.over:
                return act(*arguments)
            raise Gone
        except (OSError, ValueError) as error:
            raise Gone from error


class Door:
    """A listening port. Each connection has a thread of its own, which plays the attack that was on when it came."""

    def __init__(self, name: str, good: Callable[[Peer], None]) -> None:
        self.name, self._good = name, good
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        self._attack = good
        self._open: set[Peer] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def play(self, attack: str) -> None:
        """Play this from here on."""
        self._attack = self._good if attack == "good" else ATTACKS[self.name, attack].play
        with self._lock:
            for peer in self._open:
                peer.over = True
                with contextlib.suppress(OSError):
                    peer.sock.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(sock)
            with self._lock:
                self._open.add(peer)
            threading.Thread(target=self._talk, args=(peer, self._attack), daemon=True).start()

    def _talk(self, peer: Peer, play: Callable[[Peer], None]) -> None:
        try:
            play(peer)
        except Gone:
            pass
        finally:
            with self._lock:
                self._open.discard(peer)
            with contextlib.suppress(OSError):
                peer.sock.close()


def main(folder: str) -> None:
    """See the module."""
    from tests.end_to_end import hostile_doors, hostile_http1, hostile_http2, hostile_windows

    assert hostile_windows  # its attacks are among ATTACKS
    doors = {
        "http1": Door("http1", hostile_http1.good),
        "http2": Door("http2", hostile_http2.good),
        "tls": Door("tls", hostile_doors.secure(Path(folder))),
        "upgrade": Door("upgrade", hostile_doors.good),
        "refusals": Door("refusals", hostile_http1.good),
    }
    print(json.dumps({name: door.port for name, door in doors.items()}), flush=True)
    for line in sys.stdin:
        name, _, attack = line.strip().partition(" ")
        doors[name].play(attack)
        print("ok", flush=True)


if __name__ == "__main__":
    sys.modules["tests.end_to_end.hostile_server"] = sys.modules["__main__"]
    main(sys.argv[1])
