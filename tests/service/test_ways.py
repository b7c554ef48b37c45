"""What becomes of calls while a way to an upstream has no connections, and when it has them again."""

from __future__ import annotations

from typing import Any

import trio

from sidecar.config import Upstream
from sidecar.service.ways import Ways
from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.upstream import Refuse


class _Prober:
    """A breaker's wish, as it is set."""

    def __init__(self) -> None:
        self.trials = False

    def wants_trials(self, now: float) -> bool:
        return self.trials

    def newest(self) -> object:
        return None


class _Pool:
    """What `Ways` sees of a pool."""

    def __init__(self, name: str, url: str, warm: int) -> None:
        self.name, self.prober = name, _Prober()
        transport = "sse" if url.startswith("https") else "websocket"
        self.upstream = Upstream(name="a", url=url, dialect="responses", warm_connections=warm, transport=transport)  # type: ignore[arg-type]
        self.kept: list[int] = []

    def keep_warm(self, connections: int) -> None:
        self.kept.append(connections)

    def look_again(self) -> None:
        """Nobody waits here."""

    def waiting(self) -> int:
        return 0


class _Log:
    """What was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    info = warning


def test_going_over_and_coming_back_are_said_once_each() -> None:
    """With the way that is taken from there on; meanwhile the substitute keeps as many spares as this one did."""
    own, other, log = _Pool("a", "wss://a.example/v1", 8), _Pool("a/sse", "https://a.example/v1", 1), _Log()
    ways = Ways(own, log)  # type: ignore[arg-type]
    ways.substitute = other  # type: ignore[assignment]
    ways.look_at_substitute(0.0)
    assert not log.said
    ways.down = True
    ways.look_at_substitute(1.0)
    ways.look_at_substitute(2.0)
    assert other.kept == [1, 8, 8]
    assert log.said == [("upstream.fell_back", {"upstream": "a", "transport": "sse"})]
    own.prober.trials = True
    assert ways.stands()
    ways.look_at_substitute(3.0)
    assert len(log.said) == 1, "its breaker has not closed"
    own.prober.trials = False
    ways.look_at_substitute(4.0)
    assert log.said[1:] == [("upstream.returned", {"upstream": "a", "transport": "websocket"})]
    assert other.kept[-1] == 1


def test_one_way_has_nothing_to_say() -> None:
    """No substitute: nothing is kept, nothing is said."""
    log = _Log()
    ways = Ways(_Pool("a", "wss://a.example/v1", 8), log)  # type: ignore[arg-type]
    ways.down = True
    ways.look_at_substitute(0.0)
    assert not log.said


@virtual
async def test_calls_come_back_gradually_also_when_no_breaker_opened() -> None:
    """A second without connections: calls go to the next target meanwhile, and return over `return_ramp_s`."""
    async with clockwork({"a": {}, "b": {}}) as house:
        bot = house.bot()
        assert (await bot.ask())["upstream"] == "a"
        house["a"].down = Refuse(503)
        await house["a"].cut_all()
        await trio.sleep(1.0)
        assert (await bot.ask())["upstream"] == "b"
        house["a"].down = None
        while not house["a"].standing:
            assert (await bot.ask())["upstream"] == "b"
            await trio.sleep(0.05)
        soon = [(await bot.ask())["upstream"] for _ in range(50)]
        assert 0 < soon.count("a") < 25, soon
        await trio.sleep(12)
        assert {(await bot.ask())["upstream"] for _ in range(20)} == {"a"}
        assert house.breaker("a").statistics(trio.current_time()).trips == 0


def test_a_way_that_keeps_no_connection_ready_is_not_unreachable() -> None:
    """Only a call that wants one has a connection made there: behind others it would stay for ever."""
    for warm, unreachable in ((0, False), (1, True)):
        ways = Ways(_Pool("a", "wss://a.example/v1", warm), _Log())  # type: ignore[arg-type]
        ways.connect_failed()
        assert ways.unreachable == unreachable
        assert not ways.stands()
        assert not ways.unreachable
