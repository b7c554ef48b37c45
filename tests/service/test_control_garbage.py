"""The operators' socket and what is no operator: garbage, too much, too late, twice, never; the next one is served."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.client.dealer import OPENING, frame
from sidecar.client.zmtp import ask
from sidecar.logs import get_logger
from sidecar.service import orders
from sidecar.service.brakes import Brakes
from sidecar.service.control import Control
from sidecar.transport.zmq_socket import RouterPort
from tests.fakes.zmq_bots import Bots, until

LIMIT = 1 << 16
HALT = b'{"type":"halt","lanes":["entry"]}'


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one, as sockets want it."""
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as made:
        yield Path(made)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Brakes, str]]:
    """Orders behind a real socket; the brakes and its path."""
    brakes = Brakes(folder / "halt", end=lambda lanes, message: len(lanes), log=get_logger())
    port = RouterPort(max_message_bytes=LIMIT)
    path = f"{folder}/c.sock"
    port.bind(f"ipc://{path}")
    try:
        async with trio.open_nursery() as nursery:
            control = Control(port, orders.halting(brakes), session="s", mono_us=lambda: 7, wall_us=lambda: 8)
            await nursery.start(control.run)
            yield brakes, path
            nursery.cancel_scope.cancel()
    finally:
        port.close()


async def answered(path: str, payload: bytes = b'{"type":"ping"}') -> Any:
    """One question of an operator, asked as the commands do."""
    return json.loads(await trio.to_thread.run_sync(lambda: ask(path, payload, timeout=5)))


async def send(path: str, *pieces: bytes, wait: Callable[[], Any] | None = None) -> trio.SocketStream:
    """A connection that sends these bytes and is then left open."""
    stream = await trio.open_unix_socket(path)
    for piece in pieces:
        try:
            await stream.send_all(piece)
        except trio.BrokenResourceError:
            break  # libzmq has had enough
        if wait is not None:
            await wait()
    return stream


def noise(seed: int) -> list[bytes]:
    """What a mistaken or broken program writes to a socket."""
    dice = random.Random(seed)
    return [
        dice.randbytes(dice.randrange(1, 400)),
        OPENING + dice.randbytes(200),
        OPENING[:10] + dice.randbytes(100),
        b"GET / HTTP/1.1\r\nHost: sidecar\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        OPENING + frame(dice.randbytes(300)),
        OPENING + frame(HALT)[:-5],
        OPENING + frame(HALT[:-1]),
        OPENING + b"\x02" + (1 << 40).to_bytes(8, "big"),
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_halts_nothing_and_the_next_operator_is_served(folder: Path, seed: int) -> None:
    """Bytes of any kind, whole or cut, left open or closed at once."""
    async with served(folder) as (brakes, path):
        streams = [await send(path, each) for each in noise(seed)]
        for stream in streams[::2]:
            await stream.aclose()
        assert (await answered(path))["type"] == "pong"
        assert brakes.halted == frozenset()
        for stream in streams[1::2]:
            await stream.aclose()


async def test_too_much_is_refused_or_cut_off(folder: Path) -> None:
    """A payload over the limit of the control socket, a frame over libzmq's, and a thousand at once."""
    async with served(folder) as (brakes, path):
        bots = Bots(f"ipc://{path}")
        try:
            giant = bots.make()
            giant.send(b'{"type":"halt","reason":"' + b"x" * LIMIT + b'"}')
            refused = json.loads(await until(lambda: giant.poll(0) and giant.recv()))
            assert (refused["type"], refused["code"]) == ("failed", "too_large")
            giant.send(b"x" * (1 << 24))  # libzmq closes such a connection, and takes none of it
            large = bots.make()
            large.send(b'{"type":"halt","reason":"' + b"x" * (LIMIT - 100) + b'"}')
            refused = json.loads(await until(lambda: large.poll(0) and large.recv()))
            assert (refused["type"], refused["code"]) == ("failed", "invalid_request")
            many = bots.make(sndhwm=0, rcvhwm=0)
            for _ in range(1000):
                many.send(b'{"type":"ping"}')
            got = 0
            while got < 1000:
                await until(lambda: many.poll(0))
                many.recv()
                got += 1
            assert giant.poll(0) == 0
        finally:
            bots.close()
        assert brakes.halted == frozenset()
        assert (await answered(path))["type"] == "pong"


async def test_an_order_that_comes_in_pieces_and_late_is_taken_when_it_is_whole(folder: Path) -> None:
    """Byte by byte, others being served in between; a connection cut before the end has ordered nothing."""
    async with served(folder) as (brakes, path):

        async def others_are_served() -> None:
            assert (await answered(path))["type"] == "pong"

        whole = OPENING + frame(HALT)
        cut = await send(path, whole[:-1], wait=others_are_served)
        await cut.aclose()
        await others_are_served()
        assert brakes.halted == frozenset()
        pieces = [whole[at : at + 1] for at in range(len(whole))]
        slow = await send(path, *pieces[:-3])
        for piece in pieces[-3:]:
            await others_are_served()
            assert brakes.halted == frozenset()
            await slow.send_all(piece)
        await until(lambda: brakes.halted == {"entry"})
        await slow.aclose()


async def test_an_order_given_twice_is_done_once(folder: Path) -> None:
    """By one operator or by two: the second ends nothing, and is told how things stand."""
    async with served(folder) as (_, path):
        first, second = await answered(path, HALT), await answered(path, HALT)
        assert (first["ended"], second["ended"]) == (1, 0)
        assert first["lanes"] == second["lanes"] == ["entry"]
        resume = b'{"type":"resume"}'
        assert (await answered(path, resume))["lanes"] == (await answered(path, resume))["lanes"] == []


async def test_who_connects_and_never_speaks_is_in_nobodys_way(folder: Path) -> None:
    """Two hundred connections, a part with a greeting and no word after it; one that leaves before its answer."""
    async with served(folder) as (brakes, path):
        mute = [await send(path, OPENING if number % 2 else b"") for number in range(200)]
        for _ in range(5):
            hasty = await send(path, OPENING + frame(HALT))
            await hasty.aclose()
        assert (await answered(path))["type"] == "pong"
        assert (await answered(path, b'{"type":"resume"}'))["lanes"] == []
        for stream in mute:
            await stream.aclose()
        assert (await answered(path))["type"] == "pong"
        await until(lambda: brakes.halted == frozenset())


async def test_only_its_owner_may_open_it(folder: Path) -> None:
    """The mode that the daemon gives it; whoever may open it is trusted with everything behind it."""
    from sidecar.transport import endpoint

    async with served(folder) as (_, path):
        os.chmod(path, 0o777)
        endpoint.open_to_group(f"ipc://{path}", None)
        assert os.stat(path).st_mode & 0o777 == 0o600
