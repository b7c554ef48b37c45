"""A line of the scorecard, and the judging of one fault: who was asked how often, what was said, what was promised."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.end_to_end.score_bot import Told, Trader, summary, unanswered

if TYPE_CHECKING:
    from tests.end_to_end.score_stage import Stage


@dataclass(frozen=True)
class Way:
    """How the daemon asks its targets, and in which dialects: `lines` stand under it in an `[[upstream]]`."""

    title: str
    dialects: tuple[str, ...]
    over_http: bool = False
    #: calls share a connection, and each can be stopped alone
    shared: bool = False
    lines: str = ""


#: In the order in which they are shown.
WAYS: Final = {
    "websocket": Way("WebSocket", ("responses", "chat")),
    "http1": Way("HTTP/1.1", ("responses", "chat", "messages"), over_http=True),
    "http2": Way(
        "HTTP/2",
        ("responses", "chat", "messages"),
        over_http=True,
        shared=True,
        lines='http_version = "2"\ncalls_per_connection = 4\n',
    ),
}


@dataclass
class Score:
    """One line of the scorecard."""

    row: int
    fault: str
    variant: str
    expected: str
    #: of `WAYS`
    way: str = "websocket"
    dialect: str = "responses"
    seen: str = ""
    attempts: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """As expected, in everything."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "way": WAYS[self.way].title, "ok": self.ok}


@dataclass
class Pair:
    """A route of the daemon over one or two upstreams, each a label of its own at one of the two simulators."""

    name: str
    dialect: str
    targets: int
    scenarios: tuple[str, str]
    queries: tuple[str, str]
    more: tuple[str, str]
    route_more: str
    #: which simulators play its upstreams, and as what
    sides: tuple[int, int]
    label: str
    #: of the first upstream, where it is no simulator
    url: str | None = None

    @property
    def primary(self) -> str:
        """The first upstream's name."""
        return f"{self.name}-one"

    @property
    def secondary(self) -> str:
        """The second upstream's name."""
        return f"{self.name}-two"


class Case:
    """One fault being played: what is seen goes in, what is wrong is kept."""

    def __init__(self, stage: Stage, score: Score, pair: Pair, bot: Trader) -> None:
        self.stage, self.score, self.pair = stage, score, pair
        self.began = time.monotonic()
        self.since_us = int(1e6 * self.began)
        self.heal_within: float | None = None
        #: connections of the time of the fault end with it
        self.kills = False
        self._bot = bot
        self.calls: list[Told] = []

    def must(self, condition: bool, problem: str) -> bool:
        """Note `problem` unless `condition`; returns the latter."""
        if not condition:
            self.score.problems.append(problem)
        return condition

    def within(self, condition: Callable[[], bool], patience: float) -> bool:
        """Listen until `condition`, at most so many seconds (many more where it may be slow)."""
        return self._bot.until(condition, patience * self.stage.slack)

    def saw(self, *calls: Told, told: str = "") -> None:
        """These calls were made: each must keep the wire's promises."""
        self.calls += calls
        for call in calls:
            for problem in call.problems(self.stage.slack):
                self.score.problems.append(f"{call.id}: {problem}")
        shown = told or (calls[0].line() if len(calls) == 1 else summary(calls))
        self.score.seen += f"{'; ' if self.score.seen else ''}{shown}"

    def outcome(self, call: Told, expected: str, *, by: str | None = None, attempts: int | None = None) -> None:
        """`call` must have ended so."""
        self.saw(call)
        self.must(call.outcome in expected.split("|"), f"{expected} expected, {call.outcome} came: {message(call)}")
        if by is not None:
            self.must(call.upstream == by, f"answered by {call.upstream}, not by {by}")
        if attempts is not None:
            self.must(call.attempts == attempts, f"{call.attempts} attempts said, not {attempts}")

    def answered(self, calls: Sequence[Told], *, since: float | None = None) -> None:
        """All of them must have ended done."""
        if any(call.outcome != "done" for call in calls):
            self.score.problems.append(unanswered(calls, self.began if since is None else since))

    def events(self, side: int, *events: str) -> list[dict[str, Any]]:
        """Of the journal of the simulator of the first (0) or the second target, since the case began."""
        return [note for note in self.stage.journal(side, self.pair, self.since_us) if note["event"] in events]

    def asked(self, side: int, call: Told | None = None) -> int:
        """How many calls (of this one) an upstream has seen; in all: with the requests that it refused at its door."""
        if call is not None:
            return sum(note["name"] == call.id for note in self.events(side, "call"))
        return len(self.events(side, "call", "refused"))

    def began_us(self, side: int, call: Told) -> list[int]:
        """When an upstream was asked this call, microseconds."""
        return [note["at_us"] for note in self.events(side, "call") if note["name"] == call.id]

    def stopped(self, side: int, call: Told) -> bool:
        """The daemon has stopped this call at an upstream: alone, where calls share a connection, else by closing it.

        There is nothing to be stopped where the upstream has ended the call itself.
        """
        alone = {stop["id"] for stop in self.stage.stops(side, self.pair) if stop["by_reset"]}
        stopped = [note["name"] for note in self.events(side, "stopped")]
        return call.id in (alone if self.stage.way.shared else stopped)

    def share(self) -> list[Told]:
        """Where calls share connections: four longer ones, so that some run on that of the call before."""
        return [self._bot.send(self.pair.name, words=250) for _ in range(4)] if self.stage.way.shared else []

    def unharmed(self, beside: Sequence[Told]) -> None:
        """These calls ran at the same upstream: answered, by it."""
        self._bot.gather(*beside)
        self.saw(*beside)
        self.must(all(one.outcome == "done" for one in beside), "another call of this upstream was harmed")
        by = {one.upstream for one in beside}
        self.must(self.pair.primary in by, f"the others were answered by {', '.join(sorted(by))} only")

    def connects(self, side: int) -> int:
        """How many connections an upstream has seen that asked it for something."""
        return len(self.events(side, "connect"))

    def bounded(self, *, one: int | None = None, two: int | None = None, connects: int | None = None) -> None:
        """At most so many calls at the targets, and connects at the first."""
        for name, number, limit in (
            ("calls to the primary", self.asked(0), one),
            ("calls to the secondary", self.asked(1) if self.pair.targets > 1 else 0, two),
            ("connects to the primary", self.connects(0), connects),
        ):
            if limit is not None:
                self.must(number <= limit, f"{number} {name}, more than {limit}")


def _message(call: Told) -> str:
    return str((call.terminal or {}).get("message", ""))[:160]


def message(call: Told) -> str:
    """What its failure says, for a problem's line."""
    return str((call.terminal or {}).get("message", ""))[:160]
