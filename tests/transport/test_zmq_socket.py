"""The ROUTER on Trio over real ipc: no wake lost, nobody's silence or death unnoticed, no frame too odd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import zmq

from sidecar.errors import EndpointError
from sidecar.transport import zmq_socket
from sidecar.transport.bot_port import Sent, split_envelope
from sidecar.transport.zmq_socket import RouterPort
from tests.fakes.zmq_bots import Bots, departed, receive, until

LIMIT = 4096


@pytest.fixture
def address() -> Iterator[str]:
    """A short ipc address."""
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as name:
        yield f"ipc://{name}/s"


@pytest.fixture
def port(address: str) -> Iterator[RouterPort]:
    """A bound port."""
    with RouterPort(max_message_bytes=LIMIT) as bound:
        bound.bind(address)
        yield bound


@pytest.fixture
def context(address: str) -> Iterator[Bots]:
    """The bots' side."""
    made = Bots(address)
    yield made
    made.close()


def receive_nowait(bot: zmq.Socket[Any]) -> list[bytes]:
    """Everything there, payloads only."""
    got = []
    while bot.poll(0):
        got.append(bot.recv_multipart()[-1])
    return got


async def test_a_message_brings_who_sent_it(port: RouterPort, address: str, context: Bots) -> None:
    """The kernel's uid, gid and pid with the first message of a routing id; the id is libzmq's own kind."""
    bot = context.make()
    bot.send(b"one")
    bot.send(b"two")
    first, second = await receive(port, 2)
    assert first.peer_address == f"localhost:{os.getuid()}:{os.getgid()}:{os.getpid()}"
    assert (first.payload, first.envelope, second.payload, second.peer_address) == (b"one", (), b"two", None)
    assert len(first.routing_id) == 5
    assert first.routing_id[0] == 0
    assert port.send(first.routing_id, b"back") is Sent.SENT
    assert await until(lambda: receive_nowait(bot)) == [b"back"]


async def test_req_envelopes_are_told_from_payloads(port: RouterPort, address: str, context: Bots) -> None:
    """REQ and REQ_CORRELATE are answered through what they put before the payload."""
    for options in ({}, {"req_correlate": 1}):
        bot = context.make(zmq.REQ, **options)
        bot.send(b"question")
        (message,) = await receive(port)
        assert message.payload == b"question"
        assert message.envelope[-1] == b""
        assert len(message.envelope) == 1 + len(options)
        port.send(message.routing_id, b"answer", message.envelope)
        assert await until(lambda bot=bot: receive_nowait(bot)) == [b"answer"]


async def test_no_wake_is_lost_among_sends(port: RouterPort, address: str, context: Bots) -> None:
    """600 questions, each sent while the loop itself is sending: they eat the edge, it is woken all the same."""
    asking, listening = context.make(), context.make()
    asking.send(b"hello")
    listening.send(b"hello")
    met = await receive(port, 2)
    # Which is which is told by who gets what.
    port.send(met[0].routing_id, b"you")
    await until(lambda: asking.poll(0) or listening.poll(0))
    other = met[1] if asking.poll(0) else met[0]
    target = other.routing_id
    asking_id = next(m.routing_id for m in met if m is not other)
    receive_nowait(asking)
    seen: list[bytes] = []

    async def own() -> None:
        while True:
            for message in await port.receive_batch(64):
                assert message.payload is not None
                seen.append(message.payload)
                port.send(message.routing_id, message.payload)
            port.settle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        for number in range(600):
            asking.send(b"%d" % number)
            for _ in range(5):
                port.send(target, b"noise")
                port.settle()
            receive_nowait(listening)
            with trio.fail_after(2):
                while len(seen) <= number:
                    await trio.sleep(0)
            receive_nowait(asking)
        nursery.cancel_scope.cancel()
    assert seen == [b"%d" % number for number in range(600)]
    assert asking_id != target


async def test_a_bot_that_does_not_read_is_full_and_gets_everything_in_order_later(
    port: RouterPort, address: str, context: Bots
) -> None:
    """FULL, never a silent loss; unread bytes say so long before; when there is room again, it goes on."""
    bot = context.make(rcvhwm=4)
    bot.send(b"hello")
    (message,) = await receive(port)
    assert port.unread_bytes(message.routing_id) == 0
    number = 0
    # libzmq's I/O thread moves messages on while we fill: full for good is full in two looks.
    with trio.fail_after(5):
        while True:
            if port.send(message.routing_id, b"%06d" % number + b"x" * 1000) is Sent.SENT:
                number += 1
            else:
                before = number
                await trio.sleep(0.05)
                if port.send(message.routing_id, b"%06d" % number + b"x" * 1000) is Sent.FULL and number == before:
                    break
                number += 1
    assert port.unread_bytes(message.routing_id) > 0
    port.settle()
    got: list[bytes] = []
    while len(got) < 64:
        got += await until(lambda: receive_nowait(bot))
    with trio.fail_after(5):
        while port.send(message.routing_id, b"%06d last" % number) is Sent.FULL:
            # Woken by room, or, where a look of ours has eaten that wake, by the sweep that the frontend makes, too.
            with trio.move_on_after(0.05):
                await port.receive_batch(1)
    port.settle()
    while not got[-1].endswith(b"last"):
        got += await until(lambda: receive_nowait(bot))
    assert [int(payload[:6]) for payload in got] == list(range(number + 1))


async def test_a_closed_bot_is_noticed_without_sending(port: RouterPort, address: str, context: Bots) -> None:
    """A socket closed in a process that lives on: told by the monitor; sends to it are GONE soon."""
    bot = context.make()
    bot.send(b"hello")
    (message,) = await receive(port)
    bot.close(0)
    assert await departed(port) == [message.routing_id]
    await until(lambda: port.send(message.routing_id, b"x") is Sent.GONE)


async def test_a_bot_that_comes_again_is_another_one(port: RouterPort, address: str, context: Bots) -> None:
    """Descriptors are reused; routing ids are not, and each departure is told once and of the right one."""
    seen: set[bytes] = set()
    for _ in range(30):
        bot = context.make()
        bot.send(b"hello")
        (message,) = await receive(port)
        assert message.routing_id not in seen
        seen.add(message.routing_id)
        bot.close(0)
        assert await departed(port) == [message.routing_id]
    assert port._known == {}
    assert port._by_fd == {}
    assert len(port._processes) == 0


async def test_a_bot_gone_before_it_was_read_is_never_met(port: RouterPort, address: str, context: Bots) -> None:
    """Its message is dropped: nobody is there to answer, and nothing upstream must start for it."""
    bot = context.make()
    bot.send(b"hello")
    await until(lambda: port._router.poll(0))
    bot.close(0)
    await until(lambda: port._monitor.poll(0) and _count_disconnects(port))
    assert port._router.poll(0)
    with trio.move_on_after(0.2):
        assert await port.receive_batch(64) == []
    assert port._known == {}


def _count_disconnects(port: RouterPort) -> bool:
    port._drain_monitor()
    return not port._live_fds


async def test_a_killed_bot_is_noticed(port: RouterPort, address: str) -> None:
    """SIGKILL, told by the kernel in milliseconds."""
    script = (
        "import sys, time, zmq\n"
        "bot = zmq.Context().socket(zmq.DEALER)\n"
        "bot.connect(sys.argv[1])\n"
        "bot.send(b'hello')\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, address])
    try:
        (message,) = await receive(port)
        started = trio.current_time()
        process.send_signal(signal.SIGKILL)
        assert await departed(port) == [message.routing_id]
        assert trio.current_time() - started < 1.0
    finally:
        process.kill()
        process.wait()


async def test_a_killed_bot_is_noticed_though_its_connection_is_inherited(port: RouterPort, address: str) -> None:
    """A child that lives on with the bot's descriptors hides the disconnect; the pidfd does not."""
    script = (
        "import os, sys, time, zmq\n"
        "bot = zmq.Context().socket(zmq.DEALER)\n"
        "bot.connect(sys.argv[1])\n"
        "bot.send(b'hello')\n"
        "time.sleep(0.2)\n"
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(20)\n"
        "    os._exit(0)\n"
        "time.sleep(20)\n"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, address], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = 0
    try:
        (message,) = await receive(port)
        child = int(await trio.to_thread.run_sync(process.stdout.readline))
        process.send_signal(signal.SIGKILL)
        assert await departed(port) == [message.routing_id]
    finally:
        process.kill()
        process.wait()
        if child:
            os.kill(child, signal.SIGKILL)
        process.stdout.close()


async def test_a_bind_that_the_system_refuses_is_told() -> None:
    """What the system says about a bind is told as an EndpointError (who holds the path is the lock's question)."""
    with RouterPort(max_message_bytes=LIMIT) as port, pytest.raises(EndpointError, match="cannot bind"):
        port.bind("ipc:///nonexistent-folder/s")


async def test_a_giant_frame_drops_that_bot_alone(port: RouterPort, address: str, context: Bots) -> None:
    """Over twice max_message_bytes libzmq closes the connection; between the limits the daemon can answer."""
    giant, other = context.make(reconnect_ivl=-1), context.make()
    giant.send(b"hello")
    (message,) = await receive(port)
    giant.send(b"x" * (2 * LIMIT))
    assert len((await receive(port))[0].payload or b"") == 2 * LIMIT
    giant.send(b"x" * (2 * LIMIT + 1))
    assert await departed(port) == [message.routing_id]
    other.send(b"fine")
    assert (await receive(port))[0].payload == b"fine"


async def test_a_silent_half_open_connection_is_closed(port: RouterPort, address: str) -> None:
    """Whoever connects and says nothing, or nonsense, is closed after HANDSHAKE_IVL, or at once."""
    path = address.removeprefix("ipc://")
    silent = socket.socket(socket.AF_UNIX)
    nonsense = socket.socket(socket.AF_UNIX)
    with silent, nonsense:
        silent.connect(path)
        nonsense.connect(path)
        nonsense.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00BOGUS" + bytes(47))
        for raw in (silent, nonsense):
            raw.settimeout(5)
            assert await trio.to_thread.run_sync(_read_to_end, raw)


def _read_to_end(raw: socket.socket) -> bool:
    try:
        while raw.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


async def test_a_chosen_routing_id_is_passed_on_as_it_is(port: RouterPort, address: str, context: Bots) -> None:
    """The frontend refuses it; a second bot announcing the same one does not get the first one's messages."""
    first = context.make(routing_id=b"bot-7")
    first.send(b"mine")
    (message,) = await receive(port)
    assert message.routing_id == b"bot-7"
    impostor = context.make(routing_id=b"bot-7")
    impostor.send(b"mine, too")
    other = context.make()
    other.send(b"other")
    assert [m.payload for m in await receive(port)] == [b"other"]
    port.send(b"bot-7", b"secret")
    assert await until(lambda: receive_nowait(first)) == [b"secret"]
    assert receive_nowait(impostor) == []


async def test_many_frames_in_one_message_are_one_malformed_message(
    port: RouterPort, address: str, context: Bots
) -> None:
    """10,000 frames are read, not kept, and given as a message without a payload."""
    bot = context.make()
    bot.send_multipart([b"x"] * 10_000)
    (message,) = await receive(port)
    assert (message.payload, message.envelope) == (None, ())


async def test_a_batch_is_bounded_in_messages_and_bytes(
    port: RouterPort, address: str, context: Bots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood is read in small portions, and nothing of it is lost between them."""
    monkeypatch.setattr(zmq_socket, "BATCH_BYTES", 3 * LIMIT)
    bot = context.make()
    for _ in range(12):
        bot.send(b"x" * LIMIT)
    sizes = []
    with trio.fail_after(5):
        while sum(sizes) < 12:
            sizes.append(len(await port.receive_batch(64)))
        bot.send(b"1")
        bot.send(b"2")
        await until(lambda: port._router.poll(0))
        assert len(await port.receive_batch(1)) == 1
    assert max(sizes) <= 3


async def test_cancelling_the_wait_loses_nothing(port: RouterPort, address: str, context: Bots) -> None:
    """A message that comes around a cancelled wait is given by the next one."""
    bot = context.make()
    for number in range(20):
        with trio.move_on_after(0.001):
            await port.receive_batch(64)
        bot.send(b"%d" % number)
        assert [m.payload for m in await receive(port)] == [b"%d" % number]


async def test_descriptors_near_the_limit_are_shut(
    port: RouterPort, address: str, context: Bots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before libzmq runs out of descriptors (and aborts) new connections are shut down again."""
    monkeypatch.setattr(zmq_socket, "fd_watermark", lambda: 3)
    bot = context.make(reconnect_ivl=-1)
    bot.send(b"hello")
    with trio.move_on_after(0.3):
        while True:
            assert await port.receive_batch(64) == []
    assert port._known == {}


def test_only_our_own_accepted_connections_are_shut(port: RouterPort) -> None:
    """A descriptor that was closed and reused for something else is left alone."""
    one, two = socket.socketpair()
    with one, two:
        port.drop(one.fileno())
        port.drop(10_000)
        one.send(b"x")
        assert two.recv(1) == b"x"


def test_closing_twice_is_closing_once(address: str) -> None:
    """Also after a bind; and the path can be bound again."""
    for _ in range(2):
        port = RouterPort(max_message_bytes=LIMIT)
        port.bind(address)
        port.close(linger=0.1)
        port.close()


@pytest.mark.parametrize(
    ("frames", "envelope", "payload"),
    [
        ([b"p"], (), b"p"),
        ([b""], (), b""),
        ([b"", b"p"], (b"",), b"p"),
        ([b"c", b"", b"p"], (b"c", b""), b"p"),
        ([b"", b""], (b"",), b""),
        ([b"c", b""], (b"c", b""), None),
        ([b"", b"p", b"q"], (b"",), None),
        ([b"p", b"q"], (), None),
        ([], (), None),
        ([b"a", b"b", b"c", b"d", b"", b"p"], (), None),
        ([b"a" * 600, b"", b"p"], (), None),
    ],
)
def test_envelopes_are_what_lies_before_the_first_empty_frame(
    frames: list[bytes], envelope: tuple[bytes, ...], payload: bytes | None
) -> None:
    """Mirrored up to and including it, within bounds; exactly one payload frame after it, or none is given."""
    assert split_envelope(frames) == (envelope, payload)
