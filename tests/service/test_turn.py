"""The end of a pass: when the clocks and the bots' socket are looked at from within, and when not."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import trio

from sidecar.service.frontend import GLANCE_LIMIT
from sidecar.service.turn import GLANCE_INTERVAL, GLANCE_PAUSE, Turn
from tests.fakes.clockwork import clockwork, virtual


class House:
    """Frontend and clocks in one, and the time: a glance takes as long as it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due_at = math.inf
        self.takes = 0.0
        self.steps: list[str] = []
        self.turn = Turn(lambda: self.now)
        self.turn.attach(cast("Any", self), cast("Any", self))

    def flush(self) -> None:
        """Of the frontend."""
        self.steps.append("flush")

    def glance(self) -> None:
        """Of the frontend; as the real one may, it brings about another end of a pass."""
        self.steps.append("glance")
        self.now += self.takes
        self.turn.flush()

    def sweep(self, now: float) -> None:
        """Of the clocks."""
        self.steps.append("sweep")
        self.due_at = math.inf
        self.turn.flush()


def test_a_pass_ends_with_whoever_is_due() -> None:
    """The flush always, the clocks when one is due, the socket every few milliseconds; never one within the other."""
    house = House()
    house.turn.flush()
    assert house.steps == ["flush", "glance", "flush"]
    house.steps.clear()
    house.now += GLANCE_INTERVAL / 2
    house.turn.flush()
    assert house.steps == ["flush"]
    house.steps.clear()
    house.due_at = house.now
    house.turn.flush()
    assert house.steps == ["flush", "sweep", "flush"]
    house.steps.clear()
    house.now += GLANCE_INTERVAL
    house.due_at = house.now
    house.turn.flush()
    assert house.steps == ["flush", "sweep", "flush", "glance", "flush"]


def test_a_long_glance_is_not_followed_by_another_one() -> None:
    """Bots that flood get a share of the loop by glances, however long each takes: the streams have the rest."""
    house = House()
    house.takes = 0.015
    passes = 0
    while house.now < 3:
        house.turn.flush()
        house.now += 0.0002
        passes += 1
    glances = house.steps.count("glance")
    assert 3 / 0.015 / (GLANCE_PAUSE + 1) * 0.9 < glances <= 3 / 0.015 / (GLANCE_PAUSE + 1) + 1
    assert passes > 10_000


@virtual
async def test_a_glance_takes_few_messages_and_one_array() -> None:
    """What a glance leaves is the frontend's own loop's, which gives everybody else a turn."""
    async with clockwork(max_calls_in_flight=1, queue_max=0) as house:
        bot = house.bot()
        array = json.dumps([{"type": "ping", "nonce": str(number)} for number in range(256)]).encode()
        for _ in range(3):
            bot.fake.send(array)
        house.daemon.frontend.glance()
        assert len(bot.log) == 256
        await bot.until(lambda: len(bot.log) == 768)
        await trio.sleep(0.001)  # the loop waits again
        for number in range(3 * GLANCE_LIMIT):
            bot.send(type="ping", nonce=str(number))
        house.daemon.frontend.glance()
        assert len(bot.log) == 768 + GLANCE_LIMIT
        await bot.until(lambda: len(bot.log) == 768 + 3 * GLANCE_LIMIT)
