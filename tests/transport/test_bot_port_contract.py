"""What every bot port promises: libzmq's ROUTER, our own one, and the one in memory pass the same tests."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import trio
import trio.testing
import zmq

from sidecar.transport.bot_port import BotPort, Incoming, Sent
from sidecar.transport.zmq_socket import RouterPort
from sidecar.transport.zmtp_port import ZmtpPort
from tests.fakes.bot_port import FakeBotPort


class Bot(Protocol):
    """One connection, as the tests use it."""

    def send(self, *frames: bytes) -> None:
        """One message."""

    def read(self) -> list[bytes]:
        """The payloads received so far."""

    def leave(self) -> None:
        """Close."""


class Rig(Protocol):
    """A port and its bots."""

    port: BotPort

    def bot(self) -> Bot:
        """A bot that holds few messages unread."""


class RealBot:
    """A DEALER."""

    def __init__(self, made: zmq.Socket[Any]) -> None:
        self.socket = made

    def send(self, *frames: bytes) -> None:
        """One message."""
        self.socket.send_multipart(frames)

    def read(self) -> list[bytes]:
        """The payloads received so far."""
        got = []
        while self.socket.poll(0):
            got.append(self.socket.recv_multipart()[-1])
        return got

    def leave(self) -> None:
        """Close."""
        self.socket.close(0)


class RealRig:
    """Real ipc."""

    def __init__(self, folder: str, kind: type[RouterPort] | type[ZmtpPort]) -> None:
        self.port = kind(max_message_bytes=1 << 16)
        self.address = f"ipc://{folder}/s"
        self.port.bind(self.address)
        self.context = zmq.Context()
        self.bots: list[RealBot] = []

    def bot(self) -> RealBot:
        """A bot that holds few messages unread."""
        made = self.context.socket(zmq.DEALER)
        made.rcvhwm = 2
        made.connect(self.address)
        self.bots.append(RealBot(made))
        return self.bots[-1]

    def close(self) -> None:
        """Everything."""
        for bot in self.bots:
            bot.leave()
        self.context.term()
        self.port.close()


class MemoryBot:
    """A bot of the fake."""

    def __init__(self, port: FakeBotPort) -> None:
        self.bot = port.connect(capacity=50)

    def send(self, *frames: bytes) -> None:
        """One message."""
        self.bot.send(*frames)

    def read(self) -> list[bytes]:
        """The payloads received so far."""
        return [payload for _, payload in self.bot.take()]

    def leave(self) -> None:
        """Close."""
        self.bot.leave()


class MemoryRig:
    """No sockets."""

    def __init__(self) -> None:
        self.port = FakeBotPort()

    def bot(self) -> MemoryBot:
        """A bot that holds few messages unread."""
        return MemoryBot(self.port)


@pytest.fixture(params=["router", "zmtp", "memory"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Every port."""
    if request.param == "memory":
        yield MemoryRig()
        return
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as folder:
        real = RealRig(folder, ZmtpPort if request.param == "zmtp" else RouterPort)
        yield real
        real.close()


async def receive(port: BotPort, count: int, limit: int = 64) -> list[Incoming]:
    """The next `count` messages."""
    got: list[Incoming] = []
    with trio.fail_after(5):
        while len(got) < count:
            batch = await port.receive_batch(limit)
            assert len(batch) <= limit
            got += batch
    return got


async def until(check: Callable[[], Any]) -> Any:
    """Poll until `check` gives something true."""
    with trio.fail_after(5):
        while not (result := check()):
            await trio.sleep(0.002)
        return result


async def test_messages_come_in_order_with_the_sender_once(rig: Rig) -> None:
    """Routing id and address with the first, the id alone with the others, however small the batches."""
    one, two = rig.bot(), rig.bot()
    for number in range(10):
        one.send(b"%d" % number)
    got = await receive(rig.port, 10, limit=3)
    assert [message.payload for message in got] == [b"%d" % number for number in range(10)]
    assert len({message.routing_id for message in got}) == 1
    assert [message.peer_address is None for message in got] == [False] + [True] * 9
    two.send(b"x")
    (other,) = await receive(rig.port, 1)
    assert other.peer_address is not None
    assert other.routing_id != got[0].routing_id


async def test_envelopes_go_both_ways(rig: Rig) -> None:
    """What lies before the payload is given, and mirrored when it is given back."""
    bot = rig.bot()
    bot.send(b"c", b"", b"question")
    bot.send(b"a", b"b")
    first, odd = await receive(rig.port, 2)
    assert (first.envelope, first.payload) == ((b"c", b""), b"question")
    assert (odd.envelope, odd.payload) == ((), None)
    assert rig.port.send(first.routing_id, b"answer", first.envelope) is Sent.SENT
    assert await until(bot.read) == [b"answer"]


async def test_a_bot_that_does_not_read_fills_and_empties(rig: Rig) -> None:
    """FULL after a bounded number, nothing lost, and the port wakes when it takes messages again."""
    bot = rig.bot()
    bot.send(b"hello")
    (message,) = await receive(rig.port, 1)
    sent = 0
    tried = 0
    while tried < 20:  # full for good: libzmq's own thread moves messages on for a while
        if rig.port.send(message.routing_id, b"%06d" % sent + b"x" * 4000) is Sent.SENT:
            sent, tried = sent + 1, 0
        else:
            tried += 1
            await trio.sleep(0.002)
        assert sent < 5000
    rig.port.settle()
    got: list[bytes] = []
    woken = trio.Event()

    async def own() -> None:
        while rig.port.send(message.routing_id, b"999999") is Sent.FULL:
            await rig.port.receive_batch(8)
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        with trio.fail_after(5):
            while not got or got[-1] != b"999999":
                got += bot.read()
                await trio.sleep(0.002)
            await woken.wait()
    assert [int(payload[:6]) for payload in got] == [*range(sent), 999999]


async def test_a_departure_is_told_once_and_sends_are_gone(rig: Rig) -> None:
    """The owner is woken by it; other bots go on; a send to an unknown routing id is GONE, too."""
    leaving, staying = rig.bot(), rig.bot()
    leaving.send(b"x")
    (gone,) = await receive(rig.port, 1)
    staying.send(b"y")
    (stays,) = await receive(rig.port, 1)
    leaving.leave()
    told: list[bytes] = []
    with trio.fail_after(5):
        while not told:
            await rig.port.receive_batch(8)
            told += rig.port.departures()
    assert told == [gone.routing_id]
    await until(lambda: rig.port.send(gone.routing_id, b"x") is Sent.GONE)
    assert rig.port.departures() == []
    assert rig.port.unread_bytes(gone.routing_id) == 0
    assert rig.port.send(b"\0none", b"x") is Sent.GONE
    assert rig.port.send(stays.routing_id, b"fine") is Sent.SENT
    assert await until(staying.read) == [b"fine"]


async def test_waiting_is_a_checkpoint_and_can_be_cancelled(rig: Rig) -> None:
    """Also when messages are there already; and cancelling loses none."""
    bot = rig.bot()
    for number in range(10):
        with trio.move_on_after(0.001) as scope:
            while True:
                await rig.port.receive_batch(8)
        assert scope.cancelled_caught
        bot.send(b"%d" % number)
        assert [message.payload for message in await receive(rig.port, 1)] == [b"%d" % number]


def glance(port: BotPort, limit: int = 4) -> list[Incoming]:
    """What is there, waited for without a turn for any other task."""
    give_up_at = time.monotonic() + 5
    while not (batch := port.receive_now(limit)):
        assert time.monotonic() < give_up_at
        time.sleep(0.001)  # libzmq's own thread
    return batch


@pytest.mark.parametrize("_time", range(6))  # whether the owner is met at its checkpoint is Trio's dice
async def test_a_glance_never_overtakes_the_owner(rig: Rig, _time: int) -> None:
    """What the owner was about to be given is not followed by what others took meanwhile: it would come before it."""
    bot = rig.bot()
    bot.send(b"1")
    time.sleep(0.02)  # it is there when the owner looks
    order: list[Incoming] = []
    looked = trio.Event()

    async def own() -> None:
        looked.set()
        while True:
            order.extend(await rig.port.receive_batch(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        while not looked.is_set():
            await trio.lowlevel.checkpoint()
        bot.send(b"2")
        time.sleep(0.02)
        order += rig.port.receive_now(1)
        rig.port.settle()
        with trio.fail_after(5):
            while len(order) < 2:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert [message.payload for message in order] == [b"1", b"2"]
    assert [message.peer_address is None for message in order] == [False, True]


async def test_a_departure_that_a_glance_comes_upon_is_told(rig: Rig) -> None:
    """The owner sleeps; a glance meets a new bot, and with it the news of another's departure: the owner is woken."""
    leaving, coming = rig.bot(), rig.bot()
    leaving.send(b"x")
    (gone,) = await receive(rig.port, 1)
    told: list[bytes] = []

    async def own() -> None:
        while not told:
            await rig.port.receive_batch(8)
            told.extend(rig.port.departures())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        await trio.testing.wait_all_tasks_blocked(0.05)
        leaving.leave()
        time.sleep(0.05)  # libzmq's own thread tells of it
        coming.send(b"y")
        assert [message.payload for message in glance(rig.port)] == [b"y"]
        rig.port.settle()
        with trio.fail_after(2):
            while not told:
                await trio.sleep(0.001)
    assert told == [gone.routing_id]


async def test_a_hushed_port_still_answers(rig: Rig) -> None:
    """The end of a drain: nothing is left to receive, and what was received can be answered, and read."""
    bot = rig.bot()
    bot.send(b"first")
    (first,) = await receive(rig.port, 1)

    async def own() -> None:
        while True:
            await rig.port.receive_batch(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(own)
        await until(rig.port.hush)
        assert rig.port.send(first.routing_id, b"answer") is Sent.SENT
        rig.port.settle()
        assert await until(bot.read) == [b"answer"]
        nursery.cancel_scope.cancel()
