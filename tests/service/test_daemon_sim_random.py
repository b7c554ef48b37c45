"""Random schedules over random faults: the invariants of wire.md hold in each, and nothing is left behind.

A schedule is a seed: of the tasks' order, the daemon's dice, what the upstreams do and what the bots do. One that
fails prints its seed; `schedule(SEED)` plays it again.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from sidecar.errors import ConnectFailed
from tests.fakes.clockwork import House, SimBot, clockwork, simulate
from tests.fakes.upstream import Asked, Delay, Refuse, Script, answers, closing, erring, silent, slowly, stalling

SCHEDULES = 150
PER_TEST = 50


def _script(dice: random.Random) -> Script:
    """Something an upstream may do with a call."""
    pieces = dice.randrange(4)
    choices: list[Callable[[], Script]] = [
        lambda: answers,
        lambda: answers,
        lambda: slowly(dice.uniform(0, 0.6)),
        lambda: silent,
        lambda: stalling(pieces, keepalives=dice.random() < 0.5),
        lambda: erring(dice.choice([400, 401, 402, 429, 500, 503, 529]), after=dice.uniform(0, 0.1)),
        lambda: erring(429, headers={"retry-after": str(dice.choice([0, 0.2, 9]))}),
        lambda: closing(dice.choice([None, 1000, 1001, 1008, 1009, 1011, 1012, 1013, 4402]), pieces=pieces),
        lambda: closing(None, pieces=pieces, reset=True),
        lambda: functools.partial(_storm, seed=dice.getrandbits(32)),
    ]
    return dice.choice(choices)()


async def _storm(asked: Asked, *, seed: int) -> None:
    """Frames in any order, several in one read: duplicates, late ones, junk, no end."""
    dice = random.Random(seed)
    for _ in range(dice.randrange(1, 12)):
        frames = [
            dice.choice(
                [
                    asked.created, asked.finish, lambda: asked.delta("x"), lambda: asked.delta("y"), asked.usage,
                    lambda: asked.delta("z"), lambda: asked.finish("length"), lambda: asked.error(500),
                    lambda: asked.text('{"type":"error","error":{"message":"all"}}'),
                    lambda: asked.text('{"type":"unheard.of"}'),
                    lambda: asked.text("{" if dice.random() < 0.3 else "{}"),
                ]
            )()
            for _ in range(dice.randrange(1, 4))
        ]  # fmt: skip
        await asked.send(*frames)
        await trio.sleep(dice.choice([0, 0.001, 0.05, 0.2]))
    if dice.random() < 0.3:
        await asked.connection.cut()


def _connect(dice: random.Random) -> Any:
    return dice.choice(
        [
            Delay(dice.uniform(0, 0.3)), ConnectFailed("tcp", "refused"), Refuse(503), Refuse(401),
            Refuse(429, ((b"retry-after", b"1"),)), Delay(0),
        ]
    )  # fmt: skip


def _settings(dice: random.Random) -> dict[str, Any]:
    upstreams = {
        name: {
            "dialect": dice.choice(["responses", "chat"]),
            "warm_connections": dice.randrange(3),
            "max_connections": dice.randrange(1, 5),
            "calls_per_connection": dice.choice([1, 1, 3]),
            "max_age_s": dice.choice([1, 3300]),
        }
        for name in "abc"[: dice.randrange(1, 4)]
    }
    return {
        "upstreams": upstreams,
        "max_calls_in_flight": dice.choice([1, 3, 256]),
        "queue_max": dice.choice([0, 2, 512]),
        "drain_timeout_s": dice.choice([0, 0.3, 5]),
        "route": {"first_delta_timeout_ms": dice.choice([30, 150, 5000]), "idle_timeout_ms": dice.choice([20, 120])},
    }


async def _play(bot: SimBot, dice: random.Random) -> None:
    """One bot's life."""
    names: list[str] = []
    for _ in range(dice.randrange(1, 7)):
        action = dice.random()
        if action < 0.75 or not names:
            names.append(
                bot.call(
                    timeout_ms=dice.choice([1, 30, 200, 700, 1500]),
                    lane=dice.choice(["exit", "entry", "research"]),
                    stream=dice.random() < 0.8,
                    on_lost=dice.choice(["fail", "restart"]),
                )
            )
        elif action < 0.95:
            bot.send(type="cancel", id=dice.choice(names))
        else:
            bot.leave()
            return
        await trio.sleep(dice.choice([0, 0, 0.01, 0.05, 0.3]))


async def _disturb(house: House, dice: random.Random) -> None:
    """The world outside: outages, cuts, connects of every kind."""
    for _ in range(dice.randrange(3)):
        upstream = house[dice.choice(sorted(house.upstreams))]
        kind = dice.random()
        if kind < 0.4:
            await upstream.cut_all(reset=dice.random() < 0.5)
        elif kind < 0.7:
            upstream.connects.append(_connect(dice))
        else:
            upstream.down = ConnectFailed("tls", "bad record")
            await trio.sleep(dice.uniform(0, 0.5))
            upstream.down = None
        await trio.sleep(dice.uniform(0, 0.2))


async def schedule(seed: int) -> dict[str, int]:
    """Play one; returns how often each end came."""
    dice = random.Random(seed)

    def prepare(house: House) -> None:
        for upstream in house.upstreams.values():
            upstream.connects.extend(_connect(dice) for _ in range(dice.randrange(3)))
            upstream.scripts.extend(_script(dice) for _ in range(12))

    async with clockwork(seed=seed, warm=False, prepare=prepare, **_settings(dice)) as house:
        async with trio.open_nursery() as nursery:
            for _ in range(dice.randrange(1, 4)):
                nursery.start_soon(_play, house.bot(), random.Random(dice.getrandbits(32)))
            nursery.start_soon(_disturb, house, random.Random(dice.getrandbits(32)))
        early = dice.random() < 0.3  # some are drained in the middle
        if not early:
            with trio.fail_after(5):
                while house.daemon.dispatcher.calls:
                    await trio.sleep(0.01)
    ends: dict[str, int] = {}
    for bot in house.bots:
        if not bot.fake.gone:
            asked = sum(m["type"] == "accepted" for _, m in bot.log)
            ended = sum(m["type"] in ("done", "failed") and m.get("call_id") is not None for _, m in bot.log)
            assert asked == ended, bot.log
        for _, message in bot.log:
            if message["type"] in ("done", "failed"):
                key = message.get("code", "done")
                ends[key] = ends.get(key, 0) + 1
    return ends


@pytest.mark.parametrize("first", range(0, SCHEDULES, PER_TEST))
def test_random_schedules(first: int) -> None:
    """Exactly one terminal, by the deadline, never early; no leak; whatever comes in whatever order."""
    ends: dict[str, int] = {}

    async def play(seed: int) -> None:
        for key, count in (await schedule(seed)).items():
            ends[key] = ends.get(key, 0) + count

    for seed in range(first, first + PER_TEST):
        try:
            simulate(functools.partial(play, seed), seed=seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert ends.get("done", 0) > 20, ends
    assert len(ends) > 4, ends
