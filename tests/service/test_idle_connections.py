"""What servers do to idle HTTP connections: learnt from where it is a habit, and no reason to dial for ever."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from sidecar.service import pulse
from tests.fakes.clockwork import House, clockwork, virtual
from tests.fakes.http_upstream import HttpUpstream

CHAT = {"url": "https://a.test/v1", "dialect": "chat", "transport": "sse", "warm_connections": 8, "max_connections": 8}


@pytest.fixture(autouse=True)
def slow_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time knows no lag to measure, and these tests take hours of it."""
    monkeypatch.setattr(pulse, "INTERVAL", 60.0)


def house_of(**fields: Any) -> Any:
    """A daemon with one upstream over HTTP."""
    return clockwork({"a": {**CHAT, **fields}}, service=HttpUpstream, warm=False)


def server_of(house: House) -> HttpUpstream:
    """Its service."""
    server: Any = house["a"]
    assert isinstance(server, HttpUpstream)
    return server


def idle_life(house: House) -> float | None:
    """As `show upstreams` says it."""
    return house.daemon.pools["a"].statistics().idle_life_s


@virtual
async def test_one_close_is_not_followed_by_connects_for_ever() -> None:
    """Two connections are closed, once: they are replaced, and nothing is dialled in the hour after that.

    (But for rotation, which has all of them anew within it.)
    """
    async with house_of(max_age_s=80_000) as house:
        server = server_of(house)
        await trio.sleep(5)
        assert (await house.bot().ask())["type"] == "done"
        await trio.sleep(5)
        before = len(server.dialled_at)
        await server.close(2)
        await trio.sleep(3600)
        assert len(server.dialled_at) - before == 2
        assert idle_life(house) is None


@virtual
async def test_a_restart_at_night_is_not_taken_for_a_habit() -> None:
    """It closes connections of every age, again and again: as many connects as it closed."""
    async with house_of(max_age_s=80_000) as house:
        server, bot = server_of(house), house.bot()
        await trio.sleep(5)
        for _ in range(10):
            for _ in range(6):
                await trio.sleep(20)
                await bot.ask()
            await trio.sleep(3)
            before = len(server.dialled_at)
            await server.close(8)
            await trio.sleep(50)
            assert len(server.dialled_at) - before <= 9
        assert idle_life(house) is None


@virtual
async def test_a_server_that_closes_after_five_seconds_is_known_soon() -> None:
    """As uvicorn and Node do: after half a minute calls go by connections that stand, after any pause.

    Now and then one of eight is still left for the server to close, to see whether it still does; no call gets that.
    """
    async with house_of() as house:
        server, bot = server_of(house), house.bot()
        server.patience = 5.0
        await trio.sleep(30)
        assert idle_life(house) == 3.75
        closed = server.closed_idle
        for number in range(80):
            await trio.sleep(0.37 * (number % 20))
            done = await bot.ask()
            assert (done["type"], done["attempts"]) == ("done", 1)
        spent = trio.current_time()
        assert spent > 300
        assert server.closed_idle - closed <= 1 + spent / 60
        assert house.daemon.pools["a"].statistics().lost == 0


@virtual
async def test_a_server_that_has_become_patient_is_known_again() -> None:
    """One connection outlives what was believed, and again: then all are kept for longer."""
    async with house_of() as house:
        server = server_of(house)
        server.patience = 5.0
        await trio.sleep(30)
        server.patience = 60.0
        await trio.sleep(600)
        life = idle_life(house)
        assert life is not None
        assert 30.0 <= life <= 45.0
        before = len(server.dialled_at)
        await trio.sleep(1200)
        assert len(server.dialled_at) - before <= 9 * 1200 / life


@virtual
async def test_what_it_says_is_known_at_once() -> None:
    """`Keep-Alive: timeout=5` in one answer."""
    async with house_of() as house:
        server = server_of(house)
        server.patience = 5.0
        server.answer = server.answer.replace(b"200 OK\r\n", b"200 OK\r\nKeep-Alive: timeout=5\r\n")
        await house.bot().ask()
        assert idle_life(house) == 3.75
