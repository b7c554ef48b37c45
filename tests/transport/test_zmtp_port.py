"""Our own bots' socket over real ipc: pyzmq is served as by libzmq, hostile peers lose their connection and no more."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq

from sidecar.client.dealer import OPENING, Dealer, frame
from sidecar.client.zmtp import ask
from sidecar.errors import EndpointError
from sidecar.service.frontend import is_automatic
from sidecar.transport import zmtp_peers, zmtp_port
from sidecar.transport.bot_port import Incoming, Sent
from sidecar.transport.zmtp import GREETING, LONG, LONG_HEADER, command, frames_before
from sidecar.transport.zmtp_port import ZmtpPort
from tests.fakes.zmq_bots import Bots, departed, receive, until

LIMIT = 4096
PING = command(b"PING", b"\0\0" + b"c" * 16)


@pytest.fixture
def path() -> Iterator[str]:
    """Of a socket, short."""
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as name:
        yield f"{name}/s"


@pytest.fixture
def port(path: str) -> Iterator[ZmtpPort]:
    """A bound port."""
    with ZmtpPort(max_message_bytes=LIMIT) as bound:
        bound.bind(f"ipc://{path}")
        yield bound


@pytest.fixture
def bots(path: str) -> Iterator[Bots]:
    """The bots of pyzmq."""
    made = Bots(f"ipc://{path}")
    yield made
    made.close()


class Raw:
    """A peer that sends what it likes."""

    def __init__(self, path: str, opening: bytes = OPENING) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.dealer = Dealer()
        self.ended = False
        self.send(opening)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> int:
        """As much of it as the kernel takes."""
        try:
            return self.socket.send(data) if data else 0
        except BlockingIOError:
            return 0
        except OSError:
            self.ended = True
            return 0

    def heard(self) -> bytes:
        """What has come."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.ended = self.ended or not data
        return data

    def read(self) -> list[bytes]:
        """The payloads that have come."""
        data = self.heard()
        return self.dealer.receive(data) if data else []


def inbox(bot: zmq.Socket[Any]) -> list[list[bytes]]:
    """Everything there."""
    got = []
    while bot.poll(0):
        got.append(bot.recv_multipart())
    return got


@asynccontextmanager
async def echoing(port: ZmtpPort) -> AsyncIterator[list[Incoming]]:
    """The port's owner in a task: sends every payload back, keeps what a full bot does not take yet."""
    seen: list[Incoming] = []
    kept: list[Incoming] = []

    async def own() -> None:
        while True:
            batch = await port.receive_batch(16)
            seen.extend(batch)
            kept.extend(batch)
            full = set()
            for one in tuple(kept):
                if one.routing_id not in full:
                    result = port.send(one.routing_id, one.payload or b"", one.envelope)
                    if result is Sent.FULL:
                        full.add(one.routing_id)
                    else:
                        kept.remove(one)
            port.settle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        yield seen
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------ the end of a drain


async def test_between_what_is_answered_and_what_fails_lies_nothing(port: ZmtpPort, path: str) -> None:
    """What was sent before the hush is received and answered; a send after it fails; the end comes at the close."""
    with Raw(path) as peer:
        async with echoing(port) as seen:
            await until(lambda: peer.read() or peer.dealer.ready)
            peer.send(frame(b"met"))
            await until(lambda: seen)
        for number in range(3):  # nobody receives now
            peer.send(frame(b"m%d" % number))
        assert not port.hush()
        assert not Path(path).exists()
        with pytest.raises(BrokenPipeError):
            peer.socket.send(frame(b"late"))
        async with echoing(port):
            await until(port.hush)
            got: list[bytes] = []
            await until(lambda: got.extend(peer.read()) or len(got) == 4)
        assert got == [b"met", b"m0", b"m1", b"m2"]
        assert not peer.ended
        port.close()
        await until(lambda: peer.read() or peer.ended)


async def test_a_hushed_port_rests_and_hears_of_departures(port: ZmtpPort, path: str) -> None:
    """The end of what was heard wakes nobody again; that a bot goes does; one that is full is sent the rest."""
    with Raw(path) as full, Raw(path) as leaver:
        async with echoing(port) as seen:
            for count, peer in enumerate((full, leaver), start=1):
                await until(lambda peer=peer: peer.read() or peer.dealer.ready)
                peer.send(frame(b"hello"))
                await until(lambda count=count: len(seen) == count)
        blocked, gone = (incoming.routing_id for incoming in seen)
        while port.send(blocked, b"x" * 4000) is Sent.SENT:
            pass
        port.hush()
        with trio.move_on_after(0.1):
            while True:
                await port.receive_batch(10)
        assert port.hush()
        assert not select.select([port.fileno()], [], [], 0)[0]
        leaver.socket.close()
        assert await departed(port) == [gone]
        got: list[bytes] = []

        def sent() -> bool:
            got.extend(full.read())
            port.receive_now(10)
            return port.send(blocked, b"last") is Sent.SENT

        await until(sent)
        await until(lambda: got.extend(full.read()) or got[-1] == b"last")
        assert {len(payload) for payload in got[1:-1]} == {4000}


# ------------------------------------------------------------------------------------------------ who it is


async def test_a_message_brings_who_sent_it(port: ZmtpPort, bots: Bots) -> None:
    """The kernel's uid, gid and pid with the first message; the id looks like one that libzmq gives."""
    bot = bots.make()
    bot.send(b"one")
    bot.send(b"two")
    first, second = await receive(port, 2)
    assert first.peer_address == f"localhost:{os.getuid()}:{os.getgid()}:{os.getpid()}"
    assert (first.payload, first.envelope, second.payload, second.peer_address) == (b"one", (), b"two", None)
    assert is_automatic(first.routing_id)


async def test_two_peers_of_one_chosen_name_do_not_meet(port: ZmtpPort, bots: Bots) -> None:
    """Both are told from those that chose none, and each gets its own answers, whichever leaves."""
    one, two = bots.make(routing_id=b"bot-7"), bots.make(routing_id=b"bot-7")
    one.send(b"1")
    two.send(b"2")
    met = {message.payload: message for message in await receive(port, 2)}
    assert not any(is_automatic(message.routing_id) for message in met.values())
    port.send(met[b"1"].routing_id, b"for one")
    port.send(met[b"2"].routing_id, b"for two")
    assert (one.recv(), two.recv()) == (b"for one", b"for two")
    one.close(0)
    assert await departed(port) == [met[b"1"].routing_id]
    assert port.send(met[b"2"].routing_id, b"still") is Sent.SENT
    assert two.recv() == b"still"


@pytest.mark.parametrize("name", [b"\0abcd", b"\0\0\0\0\1"])
async def test_a_name_like_an_automatic_one_is_a_chosen_one(port: ZmtpPort, path: str, name: bytes) -> None:
    """To set it is refused by libzmq; who writes it by hand gains nothing."""
    body = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0" + bytes((len(name),)) + name
    with Raw(path, OPENING[:64] + command(b"READY", body)) as raw:
        raw.send(frame(b"x"))
        (message,) = await receive(port)
        assert not is_automatic(message.routing_id)


async def test_a_bot_that_comes_again_is_another_one(port: ZmtpPort, bots: Bots) -> None:
    """Descriptors are reused, routing ids are not, and nothing is left of who went."""
    seen: set[bytes] = set()
    for _ in range(30):
        bot = bots.make()
        bot.send(b"hello")
        (message,) = await receive(port)
        assert message.routing_id not in seen
        seen.add(message.routing_id)
        bot.close(0)
        assert await departed(port) == [message.routing_id]
    peers = port._peers
    assert not peers.named
    assert not peers.by_fd
    assert not peers._processes
    assert not peers._strangers


# ------------------------------------------------------------------------------------------------ libzmq is served


@pytest.mark.parametrize("options", [{}, {"req_correlate": 1}])
async def test_a_req_is_answered_through_its_envelope(port: ZmtpPort, bots: Bots, options: dict[str, int]) -> None:
    """Again and again, each answer to its question."""
    bot = bots.make(zmq.REQ, **options)
    async with echoing(port):
        for number in range(20):
            bot.send(b"%d" % number)
            assert await until(lambda: inbox(bot)) == [[b"%d" % number]]


async def test_a_router_is_served(port: ZmtpPort, bots: Bots) -> None:
    """By the name that it gives us."""
    bot = bots.make(zmq.ROUTER, connect_routing_id=b"daemon")
    async with echoing(port):
        bot.send_multipart([b"daemon", b"", b"question"])
        assert await until(lambda: inbox(bot)) == [[b"daemon", b"", b"question"]]


async def test_heartbeats_are_answered(port: ZmtpPort, bots: Bots) -> None:
    """A bot that would give up a silent daemon after 60 ms is still there after a second; so is one in a long pause."""
    bot = bots.make(heartbeat_ivl=20, heartbeat_timeout=60, heartbeat_ttl=5000)
    async with echoing(port) as seen:
        bot.send(b"1")
        await until(lambda: inbox(bot))
        await trio.sleep(1.0)
        bot.send(b"2")
        await until(lambda: inbox(bot))
    assert len({message.routing_id for message in seen}) == 1
    assert port.departures() == []


async def test_large_messages_pass_both_ways() -> None:
    """1 MiB, in many pieces, several of them, to a bot that reads when it likes."""
    payloads = [bytes([number]) * ((1 << 20) - number) for number in range(4)]
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as name, ZmtpPort(max_message_bytes=1 << 20) as port:
        port.bind(f"ipc://{name}/s")
        bots = Bots(f"ipc://{name}/s")
        try:
            bot = bots.make()
            async with echoing(port):
                for payload in payloads:
                    bot.send(payload)
                got: list[list[bytes]] = []
                while len(got) < 4:
                    got += await until(lambda: inbox(bot))
            assert got == [[payload] for payload in payloads]
        finally:
            bots.close()


async def test_two_hundred_bots_at_once(port: ZmtpPort, bots: Bots) -> None:
    """Everybody gets its own back."""
    many = [bots.make() for _ in range(200)]
    for number, bot in enumerate(many):
        bot.send_multipart([b"", b"%d" % number])
    async with echoing(port):
        for number, bot in enumerate(many):
            assert await until(lambda bot=bot: inbox(bot)) == [[b"", b"%d" % number]]


async def test_a_bot_finds_the_next_daemon(path: str, bots: Bots) -> None:
    """The port is closed, another one is bound at the same place: the same sockets go on."""
    dealer, req = bots.make(), bots.make(zmq.REQ, req_relaxed=1)
    ends = [bots.watch(bot) for bot in (dealer, req)]
    for number in range(3):
        with ZmtpPort(max_message_bytes=LIMIT) as port:
            port.bind(bots.address)
            async with echoing(port):
                for bot in (dealer, req):
                    bot.send(b"%d" % number)
                    assert await until(lambda bot=bot: inbox(bot)) == [[b"%d" % number]]
        for lost in ends:  # else the next question goes into the connection to this port
            assert len(await until(lambda lost=lost: inbox(lost))) == 1


async def test_a_command_that_asks_by_hand_is_answered(port: ZmtpPort, path: str) -> None:
    """`sidecar probe` and `show`: greeting, then READY and the question, then the answer."""
    async with echoing(port):
        assert await trio.to_thread.run_sync(lambda: ask(path, b"x" * 300, timeout=5)) == b"x" * 300


async def test_a_slow_reader_gets_everything_in_order(port: ZmtpPort, bots: Bots) -> None:
    """Through FULL and back, many times, also in the middle of a message; nothing torn, nothing twice."""
    bot = bots.make(rcvhwm=2)
    bot.send(b"hello")
    (message,) = await receive(port)
    wanted = [b"%06d" % number + b"x" * (number * 997 % 300_000) for number in range(300)]
    full = torn = 0

    async def own() -> None:
        nonlocal full, torn
        (peer,) = port._peers.by_fd.values()
        for payload in wanted:
            while port.send(message.routing_id, payload) is Sent.FULL:
                full += 1
                await port.receive_batch(8)
            if peer.rest:  # the kernel may have room again before we look
                torn += 1
                await trio.sleep(0.001)
        while True:
            await port.receive_batch(8)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        got: list[list[bytes]] = []
        with trio.fail_after(20):
            while len(got) < len(wanted):
                got += inbox(bot)
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert [payload for (payload,) in got] == wanted
    assert full > 10
    assert torn > 10


async def test_unread_bytes_rise_and_fall(port: ZmtpPort, path: str) -> None:
    """0 for a bot that has read everything; what it has not read counts, what the kernel did not take, too."""
    with Raw(path) as raw:
        raw.send(frame(b"hello"))
        (message,) = await receive(port)
        raw.read()
        assert port.unread_bytes(message.routing_id) == 0
        seen = [0]
        number = 0
        while port.send(message.routing_id, b"x" * 5000) is Sent.SENT:
            seen.append(port.unread_bytes(message.routing_id))
            number += 1
        assert seen == sorted(set(seen))
        assert seen[-1] >= number * 5000
        falling = [seen[-1]]
        got: list[bytes] = []
        while len(got) < number:
            got += raw.read()
            port.receive_now(8)
            falling.append(port.unread_bytes(message.routing_id))
        assert falling[-1] == 0
        assert got == [b"x" * 5000] * number


# ------------------------------------------------------------------------------------------------ coming and going


async def test_a_bot_gone_before_it_was_read_is_never_met(port: ZmtpPort, path: str) -> None:
    """Its message is dropped: nobody is there to answer."""
    with Raw(path) as raw:
        raw.send(frame(b"hello"))
    with trio.move_on_after(0.05):
        while True:
            assert await port.receive_batch(64) == []
    assert not port._peers.by_fd
    assert port.departures() == []


SCRIPT = """
import os, sys, time, zmq
bot = zmq.Context().socket(zmq.DEALER)
bot.connect(sys.argv[1])
bot.send(b'hello')
if len(sys.argv) > 2:
    time.sleep(0.2)
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""


@pytest.mark.parametrize("inherited", [False, True])
async def test_a_killed_bot_is_noticed(port: ZmtpPort, bots: Bots, inherited: bool) -> None:
    """At once, also though a child lives on with its connection."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, bots.address, *["fork"][: int(inherited)]],
        stdout=subprocess.PIPE,
    )
    child = 0
    assert process.stdout is not None
    try:
        (message,) = await receive(port)
        if inherited:
            child = int(await trio.to_thread.run_sync(process.stdout.readline))
        process.send_signal(signal.SIGKILL)
        assert await departed(port) == [message.routing_id]
    finally:
        process.kill()
        process.communicate() if not child else process.wait()
        if child:
            os.kill(child, signal.SIGKILL)
        process.stdout.close()


async def test_half_a_close_is_a_close(port: ZmtpPort, path: str) -> None:
    """As with libzmq."""
    with Raw(path) as raw:
        raw.send(frame(b"hello"))
        (message,) = await receive(port)
        raw.socket.shutdown(socket.SHUT_WR)
        assert await departed(port) == [message.routing_id]


async def test_a_send_to_who_has_just_gone_is_gone(port: ZmtpPort, path: str) -> None:
    """Before the port has looked; the departure is told all the same, once."""
    with Raw(path) as raw:
        raw.send(frame(b"hello"))
        (message,) = await receive(port)
    assert port.send(message.routing_id, b"x") is Sent.GONE
    assert port.send(message.routing_id, b"x") is Sent.GONE
    assert await departed(port) == [message.routing_id]
    assert port.departures() == []


async def test_a_ttl_that_passes_in_silence_ends_the_connection(port: ZmtpPort, path: str) -> None:
    """The peer asked for it; one without a TTL stays."""
    with Raw(path) as mortal, Raw(path) as other:
        for raw in (mortal, other):
            raw.send(frame(b"hello"))
            await receive(port)
        mortal.send(command(b"PING", b"\0\x01"))
        other.send(command(b"PING", b"\0\0"))
        assert len(await departed(port)) == 1
        assert await until(lambda: (mortal.heard(), mortal.ended)[1])
        other.send(frame(b"here"))
        assert (await receive(port))[0].payload == b"here"


def test_closing_twice_is_closing_once(path: str) -> None:
    """The file goes with it, and no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        port = ZmtpPort(max_message_bytes=LIMIT)
        port.bind(f"ipc://{path}")
        with Raw(path):
            port.receive_now(8)
            port.close(linger=0.1)
            port.close()
        assert not os.path.exists(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("bad", ["/nonexistent-folder/s", "/tmp/" + "x" * 200])
def test_a_bind_that_the_system_refuses_is_told(bad: str) -> None:
    """As an EndpointError."""
    with ZmtpPort(max_message_bytes=LIMIT) as port, pytest.raises(EndpointError, match="cannot bind"):
        port.bind(f"ipc://{bad}")


async def test_closing_gives_what_is_left_its_time(port: ZmtpPort, path: str) -> None:
    """To who reads all of it; who does not read costs the time given and no more."""
    with Raw(path) as reading, Raw(path) as deaf:
        ids = {}
        for raw, name in ((reading, b"r"), (deaf, b"d")):
            raw.send(frame(name))
            (message,) = await receive(port)
            ids[name] = message.routing_id
            assert port.send(message.routing_id, name * 400_000) is Sent.SENT
        got: list[bytes] = []

        async def read() -> None:
            while not reading.ended:
                got.extend(reading.read())
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(lambda: port.close(linger=0.5))
    assert got == [b"r" * 400_000]


# ------------------------------------------------------------------------------------------------ hostile peers


NOISE = [
    b"",
    b"\xff",
    GREETING[:30],
    b"GET / HTTP/1.1\r\n\r\n",
    GREETING + LONG_HEADER(6, 1 << 60),
    OPENING + LONG_HEADER(LONG, 1 << 62),
    OPENING + LONG_HEADER(LONG, 2 * LIMIT + 1),
    OPENING + b"\xff" * 100,
    OPENING[:64] + PING * 1000,
    OPENING + os.urandom(3000),
    os.urandom(3000),
]


async def test_noise_ends_its_own_connection_alone(
    port: ZmtpPort, path: str, bots: Bots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence and half a greeting by the time of a handshake, the rest at once; a bot beside them is served."""
    monkeypatch.setattr(zmtp_peers, "HANDSHAKE_TICKS", 2)
    bot = bots.make()
    raws = [Raw(path, noise) for noise in NOISE]
    async with echoing(port):
        for raw in raws:
            bot.send(b"x")
            assert await until(lambda: inbox(bot)) == [[b"x"]]
            await until(lambda raw=raw: (raw.heard(), raw.ended)[1])
            raw.socket.close()
    assert len(port._peers.by_fd) == 1


async def test_every_cut_of_a_handshake_is_survived(port: ZmtpPort, path: str) -> None:
    """Closed after each byte of it."""
    whole = OPENING + frame(b"hello")
    for cut in range(len(whole)):
        with Raw(path, whole[:cut]):
            port.receive_now(4)
    with trio.fail_after(5):
        while port._peers.by_fd:
            await port.receive_batch(4)
    assert port.departures() == []


async def test_between_the_limits_a_message_is_given_and_beyond_them_the_connection_ends(
    port: ZmtpPort, bots: Bots
) -> None:
    """So that the frontend can refuse it in words."""
    bot = bots.make(reconnect_ivl=-1)
    bot.send(b"x" * (2 * LIMIT))
    (message,) = await receive(port)
    assert message.payload == b"x" * (2 * LIMIT)
    bot.send(b"x" * (2 * LIMIT + 1))
    assert await departed(port) == [message.routing_id]


FLOODS = {
    "pings": PING * 2000,
    "commands": command(b"WHAT", b"x" * 200) * 200,
    "frames": frames_before((b"",)) * 20_000,
    "messages": frame(b"") * 20_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_that_does_not_read_holds_nobody_up(port: ZmtpPort, path: str, bots: Bots, flood: bytes) -> None:
    """Whole commands, frames and messages all the time, no byte read; what is kept of it is bounded."""
    bot = bots.make()
    raw = Raw(path)
    at = 0

    async def own() -> None:
        while True:
            for one in await port.receive_batch(16):
                if one.payload:
                    port.send(one.routing_id, one.payload, one.envelope)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        bot.send(b"hello")
        await until(lambda: inbox(bot))
        for number in range(30):
            for _ in range(5):
                at += raw.send(flood[at:])
                at = 0 if at == len(flood) else at
                await trio.lowlevel.checkpoint()
            bot.send(b"%d" % number)
            assert await until(lambda: inbox(bot)) == [[b"%d" % number]]
            for peer in port._peers.by_fd.values():
                assert len(peer.rest) + len(peer.owed) <= 20_000
                assert len(peer.zmtp._data) <= zmtp_port.READ_BYTES + 2 * LIMIT
                assert len(peer.zmtp._rest) <= 2 * LIMIT
        nursery.cancel_scope.cancel()
    raw.socket.close()


async def test_a_bot_whose_messages_are_not_taken_is_not_read(port: ZmtpPort, path: str) -> None:
    """Its own buffers fill; everything it had sent comes later, in order."""
    with Raw(path) as raw:
        sent = 0
        for number in range(100_000):
            data = frame(b"%06d" % number + b"x" * 500)
            if raw.send(data) < len(data):
                break
            sent += 1
            if number < 100:
                port.receive_now(0)
        assert raw.send(b"x") == 0
        for _ in range(50):
            assert port.receive_now(0) == []
        (peer,) = port._peers.by_fd.values()
        assert len(peer.zmtp._data) + len(peer.zmtp._rest) <= zmtp_port.READ_BYTES + LIMIT
        got = await receive(port, sent)
        assert [int((message.payload or b"")[:6]) for message in got] == list(range(sent))


async def test_everybody_has_a_turn(port: ZmtpPort, path: str) -> None:
    """One with thousands of messages and one with a single one: it waits for one of the others, not for all."""
    with Raw(path) as many, Raw(path) as single:
        many.send(frame(b"m") * 5000)
        single.send(frame(b"s"))
        got = []
        with trio.fail_after(5):
            while b"s" not in got:
                got += [message.payload for message in await port.receive_batch(1)]
        assert len(got) <= 4


async def test_a_batch_is_bounded_in_messages_and_bytes(
    port: ZmtpPort, bots: Bots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood is taken in small portions, and nothing of it is lost between them."""
    monkeypatch.setattr(zmtp_port, "BATCH_BYTES", 3 * LIMIT)
    bot = bots.make()
    for _ in range(12):
        bot.send(b"x" * LIMIT)
    sizes: list[int] = []
    with trio.fail_after(5):
        while sum(sizes) < 12:
            sizes.append(len(await port.receive_batch(64)))
    assert max(sizes) <= 3


async def test_strangers_are_bounded_and_newcomers_go_first(
    port: ZmtpPort, path: str, bots: Bots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands connect and say nothing: the oldest of them go, and a bot is served in between."""
    monkeypatch.setattr(zmtp_peers, "MAX_STRANGERS", 20)
    held: list[Raw] = []
    try:
        async with echoing(port):
            bot = bots.make()
            for number in range(1500):
                held.append(Raw(path, b""))
                if number % 100 == 50:
                    bot.send(b"%d" % number)
                    assert await until(lambda: inbox(bot)) == [[b"%d" % number]]
                if len(held) > 100:
                    held.pop(0).socket.close()
                await trio.lowlevel.checkpoint()
                assert len(port._peers.by_fd) <= 21
    finally:
        for raw in held:
            raw.socket.close()


async def test_descriptors_near_the_limit_are_closed(
    port: ZmtpPort, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted and closed again: the upstreams need descriptors, too."""
    monkeypatch.setattr(zmtp_peers, "fd_watermark", lambda: 3)
    with Raw(path) as raw:
        port.receive_now(8)
        assert await until(lambda: (raw.heard(), raw.ended)[1])
    assert not port._peers.by_fd


async def test_without_descriptors_they_wait_outside(port: ZmtpPort, path: str) -> None:
    """An accept fails: nobody spins, nobody ends, and those who waited are served when there are some again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Raw(path) as raw:
        raw.send(frame(b"hello"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            port.receive_now(8)
            assert port._peers._resting
            assert not select.select([port], [], [], 0)[0] or port.receive_now(8) == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [message.payload for message in await receive(port)] == [b"hello"]
        assert not port._peers._resting


async def test_a_hung_loop_ends_nobody(port: ZmtpPort, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent in time counts, though it is read late."""
    monkeypatch.setattr(zmtp_peers, "HANDSHAKE_TICKS", 1)
    with Raw(path, b"") as raw:
        port.receive_now(8)
        raw.send(OPENING + frame(b"hello"))
        time.sleep(0.7)
        assert [message.payload for message in await receive(port)] == [b"hello"]
