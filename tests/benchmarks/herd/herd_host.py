"""One host of the herd: the real `Daemon` with its three seams taken, and a bot that asks at random instants.

Exchanged are the bots' port, the dial, clock and dice; and the pulse, whose ten looks a second at the loop's lag cost
more than all the rest in virtual time, where there is no lag.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal, NoReturn

import trio
from herd_service import Service
from msgspec import Struct
from msgspec import json as msgspec_json

from sidecar.config import Config, Frontend, Route, Target, Upstream
from sidecar.core.retry import RetryBudget
from sidecar.daemon import Daemon
from sidecar.service.pulse import Pulse
from sidecar.transport.bot_port import Sent
from tests.fakes.bot_port import FakeBotPort

Design = Literal["this design", "no jitter", "one seed", "budgets off"]
DESIGNS: Final[tuple[Design, ...]] = ("no jitter", "this design", "budgets off", "one seed")
Manners = Literal["once", "patient", "impatient"]

#: What CLOCK_MONOTONIC and the wall clock show at virtual 0, microseconds.
MONO_US: Final = 1_000_000_000
WALL_US: Final = 1_800_000_000_000_000
#: Seconds that a bot gives a call.
TIMEOUT: Final = (2.0, 5.0)
#: Seconds for which a bot that asks again goes on after its first try; how soon an impatient one does.
PATIENCE: Final = 15.0
IMPATIENCE: Final = 0.5
LANES: Final = ("exit", "entry", "entry", "research")

_decode: Final = msgspec_json.decode


class Level(random.Random):
    """Dice without chance: always the middle. Ids still differ."""

    def random(self) -> float:
        """The middle."""
        return 0.5


class Boundless(RetryBudget):
    """Budgets off: every further attempt is paid for."""

    __slots__ = ()

    def withdraw(self, now: float, price: float = 1.0, *, sparing: bool = False) -> bool:
        """Yes."""
        return True


class Still(Pulse):
    """A pulse that does not beat."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Nothing, for ever."""
        task_status.started()
        await trio.sleep_forever()
        raise AssertionError


class Wish(Struct):
    """What a bot wants once: one call, or several tries of it. Instants in virtual seconds."""

    at: float
    host: int
    tries: int = 0
    ended_at: float = math.nan
    #: "done", or the code of the last try
    code: str = ""
    streamed: bool = False


class _Port(FakeBotPort):
    """Hands each message on as it is sent."""

    def __init__(self, told: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._told = told

    def send(self, routing_id: bytes, payload: bytes, envelope: tuple[bytes, ...] = ()) -> Sent:
        """See `BotPort`."""
        said = _decode(payload)
        for message in said if isinstance(said, list) else (said,):
            self._told(message)
        return Sent.SENT


class Host:
    """A daemon and its bot.

    Args:
        number: of the host.
        services: in order of preference.
        design: see `DESIGNS`.
        seed: of the run; each host has its own dice made of it.
        rate: calls per second of its bot.
        manners: whether the bot asks again when it is refused.
        restart: streams are started over when an attempt is lost (`on_lost`).
        warm, maximum: connections per service.
    """

    def __init__(
        self,
        number: int,
        services: list[Service],
        *,
        design: Design,
        seed: int,
        rate: float,
        manners: Manners,
        restart: bool,
        warm: int,
        maximum: int,
    ) -> None:
        self.number = number
        self.wishes: list[Wish] = []
        self.open: dict[str, Wish] = {}
        self._rate, self._manners, self._restart = rate, manners, restart
        # Two dice: what is wanted, and when, does not depend on what became of what was wanted before.
        self._chance = random.Random(f"bot {seed} {number}")
        self._wanted = random.Random(f"wanted {seed} {number}")
        self._names = 0
        self._again: Callable[[float, Callable[[], None]], None] = lambda delay, step: services[0].later(delay, step)
        by_name = {service.name: service for service in services}
        port = _Port(self._told)
        self._bot = port.connect(uid=1000 + number)

        def dial(upstream: Upstream) -> Callable[[], Awaitable[trio.abc.Stream]]:
            return partial(by_name[upstream.name].dial, number)

        self.daemon = Daemon(
            configuration([service.name for service in services], warm=warm, maximum=maximum),
            port,
            environ={},
            dial=dial,
            clock=trio.current_time,
            mono_us=lambda: MONO_US + int(trio.current_time() * 1e6),
            wall_us=lambda: WALL_US + int(trio.current_time() * 1e6),
            dice=_dice(design, seed, number),
            session=f"host-{number}",
        )
        self.daemon.pulse = Still(trio.current_time)
        if design == "budgets off":
            boundless = Boundless()
            for route in self.daemon.dispatcher.routes.values():
                for target in route.targets:
                    target.budget = boundless

    async def ask(self, from_at: float, until: float) -> None:
        """Calls at random instants (exponential gaps)."""
        await trio.sleep_until(from_at)
        while (now := trio.current_time()) < until:
            await trio.sleep(self._wanted.expovariate(self._rate))
            now = trio.current_time()
            if now < until:
                wish = Wish(now, self.number, streamed=self._wanted.random() < 0.5)
                self.wishes.append(wish)
                self._try(wish)

    def _try(self, wish: Wish) -> None:
        self._names += 1
        name = f"{self.number}.{self._names}"
        wish.tries += 1
        self.open[name] = wish
        fields: dict[str, Any] = {
            "type": "call", "id": name, "input": f"{self.number}.{len(self.wishes)}", "stream": wish.streamed,
            "timeout_ms": self._chance.uniform(*TIMEOUT) * 1000, "lane": self._chance.choice(LANES),
        }  # fmt: skip
        if self._restart:
            fields["on_lost"] = "restart"
        self._bot.send(json.dumps(fields).encode())

    def _told(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind != "done" and kind != "failed":
            return
        wish = self.open.pop(message["id"])
        now = trio.current_time()
        wish.ended_at, wish.code = now, "done" if kind == "done" else message["code"]
        if kind == "done" or self._manners == "once" or not message["retryable"]:
            return
        delay = IMPATIENCE if self._manners == "impatient" else (message.get("retry_after_ms") or 0) / 1000
        if now + delay < wish.at + PATIENCE:
            wish.code = "again"
            self._again(delay, partial(self._try, wish))


def configuration(upstreams: list[str], *, warm: int, maximum: int) -> Config:
    """As shipped, but for few connections and the bots' patience; one route over all upstreams."""
    return Config(
        frontend=Frontend(),
        upstream=[
            Upstream(
                name=name, url=f"wss://{name}.test/v1", dialect="responses", warm_connections=warm,
                max_connections=maximum,
            )
            for name in upstreams
        ],
        route=[Route(name="default", targets=[Target(upstream=name, model="m") for name in upstreams])],
    )  # fmt: skip


def _dice(design: Design, seed: int, number: int) -> random.Random:
    if design == "no jitter":
        return Level(f"{seed} {number}")
    return random.Random(f"{seed}" if design == "one seed" else f"{seed} {number}")
