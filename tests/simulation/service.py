"""A simulated upstream: what connects meet, what its server is like, and how it answers, by whatever way.

What a connect meets and how a request is answered is the schedule's: a `Mood` is drawn from, per request and from dice
that depend on nothing but the seed and the request, so that a schedule with one bot less is the same for the others.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from msgspec import structs

from sidecar.config.ways import FALLBACK_SUFFIX
from sidecar.errors import ConnectFailed
from tests.simulation import http_scripts
from tests.simulation.http2_session import WINDOW, Http2Session
from tests.simulation.http_session import HttpSession
from tests.simulation.moods import FINE
from tests.simulation.network import GOOD, Toxics
from tests.simulation.request import Request
from tests.simulation.session import Session
from tests.simulation.websocket_session import WebSocketSession
from tests.simulation.words import WORDS

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Scripts that nobody may hold against an upstream.
HONEST = frozenset(
    {
        "answers",
        "floods",
        "empty",
        "too_late",
        "parts",
        "spends",
        "whole",
        "leaves",
        "leaves_unlooked",
        "refuses_stream",
        "reset_behind",
        "half_said",
        "ponders",
    }
)

_decode = msgspec.json.Decoder().decode


class Service:
    """One upstream."""

    def __init__(self, world: World, name: str, plan: Any) -> None:
        self.world, self.name, self.plan = world, name, plan
        self.words = WORDS[plan.config.get("dialect", "responses")]
        self.keys: set[str] = {plan.key}
        self.sessions: list[Session] = []
        self.standing: list[Session] = []
        self.requests: list[Request] = []
        self.dials: dict[str, int] = {}
        self.mood = plan.phases[0].mood
        self.connects = plan.phases[0].connects
        self.toxics: tuple[Toxics, ...] = plan.phases[0].toxics
        self.fallback_connects = plan.phases[0].fallback_connects
        self.http2 = plan.http2
        #: the first thing here that a breaker may hold against it, in words; "" while there is none
        self.at_fault = ""
        #: the last request was left unread, on a connection that had been idle
        self.was_late = False
        self._counts: dict[str, int] = {}

    # ------------------------------------------------------------------ connects

    def dialler(self, transport: str) -> Callable[[], Awaitable[trio.abc.Stream]]:
        """What the daemon's dial is, for one way."""
        return partial(self._dial, transport)

    async def _dial(self, transport: str) -> trio.abc.Stream:
        """A connected stream, or `ConnectFailed`."""
        await trio.lowlevel.checkpoint()
        number = self.dials[transport] = self.dials.get(transport, -1) + 1
        pool = self.pool_of(transport)
        dice = random.Random(f"{self.world.seed}/{pool}/dial/{number}")
        meets = dice.choice(self.connects if pool == self.name else self.fallback_connects)
        world = self.world
        if meets != "fine":
            self.blame(f"a connect met {meets}")
        if world.tracing:
            world.note(f"{pool} dialled #{number}: {meets}")
        world.counts["connect " + meets] += 1
        await trio.sleep(self.plan.rtt * (0.5 + dice.random()))
        if meets == "refused":
            raise ConnectFailed("tcp", "connection refused")
        if meets == "tls":
            raise ConnectFailed("tls", "bad record")
        if meets == "black_hole":
            await trio.sleep(self.plan.config.get("connect_timeout_s", 2.0))
            raise ConnectFailed("tcp", "timed out", timed_out=True)
        toxics = dice.choice(self.toxics)
        if toxics is not GOOD:
            world.counts["toxic link"] += 1
            self.blame("a bad network")
        session = self._kind(transport)(self, number, pool, toxics, meets, dice)
        self.sessions.append(session)
        return session.link.client

    def _kind(self, transport: str) -> type[Session]:
        if transport != "sse":
            return WebSocketSession
        return Http2Session if self.plan.config.get("http_version") == "2" else HttpSession

    def pool_of(self, transport: str) -> str:
        """What the daemon calls that way."""
        own = self.plan.config.get("transport", "websocket") == transport
        return self.name if own else self.name + FALLBACK_SUFFIX

    def opened(self, session: Session) -> None:
        """It takes requests."""
        self.standing.append(session)

    def lost(self, session: Session) -> None:
        """A connection is gone, for us."""
        if session in self.standing:
            self.standing.remove(session)

    # ------------------------------------------------------------------ requests

    def noted(self, session: Session, payload: bytes, since: float | None = None) -> Request:
        """The client wrote a request, now or since then."""
        body = _decode(payload)
        tag = body[self.words.prompt][-1]["content"].split(" ", 1)[0]
        request = Request(session, len(self.world.requests), body, tag, since or trio.current_time())
        self.world.requests.append(request)
        self.requests.append(request)
        self.world.watch.written(request)
        return request

    def arrived(self, request: Request) -> None:
        """It is here: answer it as the mood has it."""
        count = self._counts[request.tag] = self._counts.get(request.tag, 0) + 1
        dice = self.dice_of(request, str(count))
        if self.plan.late and http_scripts.is_too_late(request):
            process = http_scripts.too_late(request, dice)
        else:
            process = self.mood.draw(request, dice)
        if process.__name__ not in HONEST:
            self.blame(process.__name__)
        world = self.world
        if world.tracing:
            world.note(f"{self.name} got {request}: {process.__name__}")
        world.counts["answer " + process.__name__] += 1
        world.engine.start(_guarded(process, request))

    def blame(self, what: str) -> None:
        """Something happens that a breaker may hold against it."""
        self.at_fault = self.at_fault or what

    def dice_of(self, request: Request, what: str) -> random.Random:
        """Dice that depend on nothing but the seed and this request."""
        return random.Random(f"{self.world.seed}/{self.name}/{request.tag}/{what}")

    def go_away(self, code: int, how: str) -> None:
        """Every connection is closed by the server."""
        for session in self.standing.copy():
            session.close(code, how)

    def calm(self) -> None:
        """Everything is well from here on."""
        self.mood, self.toxics = FINE, (GOOD,)
        self.connects = self.fallback_connects = ("fine",)
        self.http2 = structs.replace(
            self.http2,
            max_streams=self.http2.max_streams or None,
            changes=(),
            window=WINDOW,
            opens_after=0.0,
            settings_after=0.0,
            deaf=False,
            dumb_after=None,
        )
        for session in self.standing:
            session.calm()

    def cut_all(self, how: str) -> None:
        """Every connection ends."""
        for session in self.standing.copy():
            session.shut(how)

    def go_silent(self) -> None:
        """Every connection is half-open from now on."""
        for session in self.standing.copy():
            session.link.go_silent()


def _guarded(process: Any, request: Request) -> Any:
    """A script runs as long as its connection is there."""
    session = request.session
    for delay in process:
        yield delay
        if session.gone:
            return
    session.script_over(request)
