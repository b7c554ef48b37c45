"""The path of a token in memory, counted: Python calls, C calls and what is held, with no clock and no socket.

    bytes of one read -> [TLS records] -> frames -> Connection -> Attempt -> BotReply -> flush -> port.send

The daemon is the real one, brought up in virtual time with a fake port and upstreams in memory; once its calls run,
time stands still, and the bytes are pushed through by hand, in `Door`: THE place to change when the way in changes.

Counted is what the interpreter reports to a profile function (`sys.setprofile`): a call of a Python function, and a
call of a built-in function or method. Fakes are no part of the path: a call into one (the clock, the port) counts once,
under its own name, and nothing inside it does. Constructing an object is not reported; what it costs shows in bytes.

As a command: the counts as JSON, or, with --replay N, N passes and nothing counted (for callgrind).
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import ssl
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import msgspec
import trio
import trio.testing

from sidecar.config import Tls
from sidecar.daemon import Daemon
from sidecar.logs import capture
from sidecar.transport.bot_port import Envelope, Sent
from sidecar.transport.dial import make_tls_context
from sidecar.transport.frames import TEXT
from sidecar.transport.tls import TlsStream
from tests.fakes.bot_port import FakeBotPort
from tests.fakes.clockwork import MONO_US, WALL_US, configure, simulate
from tests.fakes.server_frames import encode_server_frame
from tests.fakes.upstream import Asked, FakeUpstream
from tests.fakes.websockets_server import Authority

Dialect = Literal["responses", "chat"]
#: `one`: a stream, a token a read. `sixteen`: streams, a token each in one pass. `large`: a stream, tokens by the read;
#: what one more token in it costs.
Shape = Literal["one", "sixteen", "large"]

DIALECTS: Final[tuple[Dialect, ...]] = ("responses", "chat")
SHAPES: Final[tuple[Shape, ...]] = ("one", "sixteen", "large")
STREAMS: Final = 16
#: Tokens in the two large reads that are compared; the longer has twice as many.
LARGE: Final = 64
_PASSES: Final = 12
_WARM_UP: Final = 100
_FAKES: Final = str(Path(__file__).parent)
_WORDS: Final = ("Mo", "mentum", " fades", " while", " the", " spread", " stays", " wide", ".", " Hold")


class Counts(msgspec.Struct, frozen=True):
    """Per token.

    Attributes:
        python: calls of Python functions.
        c: calls of built-in functions and methods.
        held_bytes: of memory that one more token in a large read needs at the worst moment; None for other shapes.
        left_blocks: of memory, still there when all is over; 0, but for a handful that Python keeps for itself.
        made_of: name -> how many.
    """

    python: float
    c: float
    held_bytes: float | None
    left_blocks: float
    made_of: dict[str, float]


# ------------------------------------------------------------------------------------------------ the way in


class Door:
    """How the bytes of one pass get in. THE ONE PLACE that knows the seam.

    A pass is what became readable together: for each connection the bytes of one read, then the end of the pass.

    Args:
        daemon: running.
        connections: `service.connection.Connection`, one per stream, each with a call on it.
        tls: per connection a client's `TlsStream` after its handshake; the bytes are its records then.
    """

    def __init__(self, daemon: Any, connections: Sequence[Any], tls: Sequence[TlsStream] | None) -> None:
        self._tls = tls
        self._feeds = [connection.link.feed for connection in connections]
        self._end_of_pass: Callable[[], None] = daemon.pump.flush

    def one_pass(self, reads: Sequence[bytes]) -> None:
        """One pass: a read for each connection, in order."""
        now = _now()
        for index, data in enumerate(reads):
            self._feeds[index](self._plain(index, data), now)
        self._end_of_pass()

    def _plain(self, index: int, data: bytes) -> bytes:
        if self._tls is None:
            return data
        state = self._tls[index].state
        state.give(data)
        return state.read()


# ------------------------------------------------------------------------------------------------ around it


class SinkPort(FakeBotPort):
    """Forgets what it is sent, but for the number of messages and the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.last = b""

    def send(self, routing_id: bytes, payload: bytes, envelope: Envelope = ()) -> Sent:
        """See `BotPort`."""
        self.sent += 1
        self.last = payload
        return Sent.SENT


def _now() -> float:
    """The clock that the daemon is given."""
    return trio.current_time()


class _Server:
    """The server's half of a TLS connection in memory, and how it writes a record."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def handshake(self, stream: trio.abc.Stream) -> None:
        """With the client at the other end of `stream`."""
        done = False
        while not done:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            if self.outgoing.pending:
                await stream.send_all(self.outgoing.read())
            if not done:
                self.incoming.write(bytes(await stream.receive_some(65_536)))

    def records(self, frames: Sequence[bytes]) -> bytes:
        """A record for each."""
        for frame in frames:
            self.tls.write(frame)
        return self.outgoing.read()


async def _secured(count: int) -> tuple[list[TlsStream], list[_Server]]:
    clients: list[TlsStream] = []
    servers: list[_Server] = []
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        context, theirs = make_tls_context(Tls(ca_file=authority.ca_file)), authority.server_context()
        for _ in range(count):
            near, far = trio.testing.memory_stream_pair()
            client, server = TlsStream(near, context, "localhost"), _Server(theirs)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.handshake, far)
                nursery.start_soon(client.handshake)
            # The server's session tickets, which come behind its handshake, are not the first read's.
            client.state.give(bytes(await near.receive_some(65_536)))
            client.state.read()
            clients.append(client)
            servers.append(server)
    return clients, servers


def _frame(dialect: Dialect, name: str, number: int) -> bytes:
    """A token as the real services send it, fields that nobody reads included."""
    word = _WORDS[number % len(_WORDS)]
    fields: dict[str, Any]
    if dialect == "responses":
        fields = {
            "type": "response.output_text.delta", "sequence_number": 1000 + number % 1000, "logprobs": [],
            "item_id": "msg_67ccd3a9da748190baa7f1570fe91ac604becb25c45c1d41", "output_index": 0, "content_index": 0,
            "delta": word, "obfuscation": "q7Rf0VtKx2Zb9LmN"[len(word) :],
        }  # fmt: skip
    else:
        fields = {
            "id": name, "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "gpt-5-mini",
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
        }  # fmt: skip
    return encode_server_frame(TEXT, json.dumps(fields, separators=(",", ":")).encode())


class Tokens:
    """The bytes of passes to come, made anew each time: a TLS record decrypts once."""

    def __init__(self, door: Door, port: SinkPort, dialect: Dialect, names: list[str], servers: list[_Server]) -> None:
        self.door, self.port = door, port
        self._dialect, self._names, self._servers = dialect, names, servers
        self._number = 0

    def passes(self, number: int, *, tokens: int = 1) -> list[list[bytes]]:
        """So many passes: a read of `tokens` for each stream."""
        return [[self._read(index, tokens) for index in range(len(self._names))] for _ in range(number)]

    def _read(self, index: int, tokens: int) -> bytes:
        frames = []
        for _ in range(tokens):
            self._number += 1
            frames.append(_frame(self._dialect, self._names[index], self._number))
        return self._servers[index].records(frames) if self._servers else b"".join(frames)


def on_path(dialect: Dialect, *, tls: bool, streams: int, then: Callable[[Tokens], None]) -> None:
    """Bring a daemon up until `streams` calls of one bot stream, call `then`, and end."""

    async def quiet(asked: Asked) -> None:
        await asked.send(asked.created())
        await trio.sleep_forever()

    async def main() -> None:
        config = configure(
            {"a": {"dialect": dialect, "warm_connections": streams, "max_connections": streams}},
            route={"timeout_ms": 1e6, "first_delta_timeout_ms": 1e6, "idle_timeout_ms": 1e6},
        )
        port = SinkPort()
        clients, servers = await _secured(streams) if tls else ([], [])
        with capture():
            async with trio.open_nursery() as outside:
                upstream = FakeUpstream("a", outside)
                upstream.default = quiet
                daemon = Daemon(
                    config, port, environ={}, dial=lambda _: upstream.dial, clock=_now,
                    mono_us=lambda: MONO_US + int(trio.current_time() * 1e6),
                    wall_us=lambda: WALL_US + int(trio.current_time() * 1e6),
                    dice=random.Random(1), session="sim",
                )  # fmt: skip
                await outside.start(daemon.run, trio.Event())
                bot = port.connect()
                bot.send(msgspec.msgpack.encode({"type": "hello", "name": "guard", "batch": True}))
                for number in range(streams):
                    call = {"type": "call", "id": f"call-{number}", "input": "go", "timeout_ms": 1_000_000}
                    bot.send(msgspec.msgpack.encode(call))
                await upstream.until(lambda: len(upstream.asked) == streams)
                await trio.sleep(0.1)
                connections = list(daemon.pools["a"].connections.values())
                # The dialect's names count per connection: all of these are the first call of theirs.
                names = [str(asked.body.get("id", "")) for asked in upstream.asked]
                assert len(set(names)) == 1, names
                assert all(connection.active == 1 for connection in connections)
                then(Tokens(Door(daemon, connections, clients if tls else None), port, dialect, names, servers))
                outside.cancel_scope.cancel()

    simulate(main)


# ------------------------------------------------------------------------------------------------ counting


class _Count:
    """A profile function. Only what the path does is counted; inside a fake nothing is."""

    def __init__(self) -> None:
        self.made_of: Counter[str] = Counter()
        self.python = self.c = 0
        self._inside_fake = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        fake = (
            code is _NOW_CODE
            or code is _SEND_CODE
            or (code.co_filename != __file__ and code.co_filename.startswith(_FAKES))
        )
        ours = not fake and code.co_filename == __file__
        if event == "call":
            if fake:
                self._inside_fake += 1
                if self._inside_fake > 1:
                    return
            elif self._inside_fake or ours:
                return
            self.python += 1
            self.made_of[("fake " if fake else "") + _name(code)] += 1
        elif event == "return":
            self._inside_fake -= fake
        elif event == "c_call" and not self._inside_fake and not ours:
            self.c += 1
            self.made_of[f"{arg.__qualname__}() in {_name(code)}"] += 1


_NOW_CODE: Final = _now.__code__
_SEND_CODE: Final = SinkPort.send.__code__


def _name(code: Any) -> str:
    name: str = code.co_qualname
    return name.replace("<locals>.", "")


def _profile(door: Door, passes: list[list[bytes]]) -> _Count:
    count = _Count()
    push = door.one_pass
    before = sys.getprofile()
    sys.setprofile(count)
    for reads in passes:
        push(reads)
    sys.setprofile(before)
    return count


def _held(door: Door, passes: list[list[bytes]]) -> int:
    """Bytes at the worst moment of the last of these passes, beyond those before it."""
    gc.collect()
    tracemalloc.start()
    try:
        for reads in passes[:-1]:
            door.one_pass(reads)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        door.one_pass(passes[-1])
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _left(door: Door, passes: list[list[bytes]]) -> int:
    """Blocks that are there afterwards and were not before."""
    gc.collect()
    before = sys.getallocatedblocks()
    for reads in passes:
        door.one_pass(reads)
    gc.collect()
    return sys.getallocatedblocks() - before


def count(dialect: Dialect, shape: Shape, *, tls: bool) -> Counts:
    """What a token costs on this way."""
    found: list[Counts] = []

    def measure(tokens: Tokens) -> None:
        door = tokens.door
        for reads in tokens.passes(_WARM_UP):  # caches, free lists, and the adaptive interpreter's specialising
            door.one_pass(reads)
        large = shape == "large"
        sent = tokens.port.sent
        counted = _profile(door, tokens.passes(_PASSES, tokens=2 * LARGE if large else 1))
        assert tokens.port.sent > sent, "the tokens did not reach the port"
        made_of, python, c = counted.made_of, counted.python, counted.c
        share, held = _PASSES * (1 if large else streams), None
        if large:
            shorter = _profile(door, tokens.passes(_PASSES, tokens=LARGE))
            made_of.subtract(shorter.made_of)
            python, c, share = python - shorter.python, c - shorter.c, share * LARGE
            held = _held(door, tokens.passes(5, tokens=2 * LARGE)) - _held(door, tokens.passes(5, tokens=LARGE))
        left = _left(door, tokens.passes(_WARM_UP))
        found.append(
            Counts(
                python=python / share,
                c=c / share,
                held_bytes=None if held is None else held / LARGE,
                left_blocks=left / (_WARM_UP * streams),
                made_of={name: times / share for name, times in sorted(made_of.items()) if times},
            )
        )

    streams = STREAMS if shape == "sixteen" else 1
    on_path(dialect, tls=tls, streams=streams, then=measure)
    return found[0]


#: Every way: "responses one", "chat large tls" ... -> the arguments of `count`.
WAYS: Final[dict[str, tuple[Dialect, Shape, bool]]] = {
    f"{dialect} {shape}{' tls' if tls else ''}": (dialect, shape, tls)
    for dialect in DIALECTS
    for tls in (False, True)
    for shape in SHAPES
}


def count_way(way: str) -> Counts:
    """`count`, of one of `WAYS`."""
    dialect, shape, tls = WAYS[way]
    return count(dialect, shape, tls=tls)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replay", type=int, metavar="N", help="N passes and nothing counted")
    parser.add_argument("--dialect", choices=DIALECTS, default="responses")
    parser.add_argument("--shape", choices=SHAPES, default="one")
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    if options.replay is None:
        print(msgspec.json.encode({way: count_way(way) for way in WAYS}).decode())
        return 0

    def replay(tokens: Tokens) -> None:
        once = tokens.passes(options.replay, tokens=LARGE if options.shape == "large" else 1)
        for reads in once:
            tokens.door.one_pass(reads)

    on_path(options.dialect, tls=options.tls, streams=STREAMS if options.shape == "sixteen" else 1, then=replay)
    return 0


if __name__ == "__main__":
    sys.exit(main())
