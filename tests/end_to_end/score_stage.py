"""What a row of the scorecard is played on: two simulators, a daemon and a bystander, processes and sockets of life."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.end_to_end.processes import Processes, until
from tests.end_to_end.score_bot import Told, Trader, summary, unanswered

DIALECTS = {"responses": "/v1/responses", "chat": "/v1/chat"}
#: A call beside the fault may take so long, seconds.
UNHARMED_S = 2.0
BESIDE = "beside"
_SHOWN = 6
#: Rows that start their processes at the same moment.
_STARTING = threading.BoundedSemaphore(2)
_TRUSTING = ssl.create_default_context()
_TRUSTING.check_hostname = False
_TRUSTING.verify_mode = ssl.CERT_NONE  # a simulator of our own, whose certificate is wrong on purpose


@dataclass
class Score:
    """One line of the scorecard."""

    row: int
    fault: str
    variant: str
    expected: str
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
        return {**asdict(self), "ok": self.ok}


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

    def __init__(self, stage: Stage, score: Score, pair: Pair) -> None:
        self.stage, self.score, self.pair = stage, score, pair
        self.began = time.monotonic()
        self.since_us = int(1e6 * self.began)
        self.heal_within: float | None = None
        #: connections of the time of the fault end with it
        self.kills = False
        self._calls: list[Told] = []

    def must(self, condition: bool, problem: str) -> bool:
        """Note `problem` unless `condition`; returns the latter."""
        if not condition:
            self.score.problems.append(problem)
        return condition

    def saw(self, *calls: Told, told: str = "") -> None:
        """These calls were made: each must keep the wire's promises."""
        self._calls += calls
        for call in calls:
            for problem in call.problems(self.stage.slack):
                self.score.problems.append(f"{call.id}: {problem}")
        shown = told or (calls[0].line() if len(calls) == 1 else summary(calls))
        self.score.seen += f"{'; ' if self.score.seen else ''}{shown}"

    def outcome(self, call: Told, expected: str, *, by: str | None = None, attempts: int | None = None) -> None:
        """`call` must have ended so."""
        self.saw(call)
        self.must(call.outcome in expected.split("|"), f"{expected} expected, {call.outcome} came: {_message(call)}")
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
        """How many calls (of this one) an upstream has seen."""
        return sum(call is None or note["name"] == call.id for note in self.events(side, "call"))

    def connects(self, side: int) -> int:
        """How many upgrades an upstream has seen."""
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


class Stage(Processes):
    """Pairs are made first, then `playing` starts everything.

    Args:
        row, fault: of the fault table.
        quick: the short form.
        tell: given each line when it is there.
        ports: of simulators that play the first and the second target for others as well; none: it starts its own.
        way: how the daemon asks the targets, `websocket` or `sse`.
    """

    #: of a simulator's answers, and how long it stays at most
    PACE = ("--ttft-ms", "10", "--cadence-ms", "2", "--for-s", "280")

    def __init__(
        self,
        row: int,
        fault: str,
        *,
        quick: bool,
        tell: Callable[[Score], None],
        ports: Sequence[int] = (),
        way: str = "websocket",
    ) -> None:
        super().__init__()
        self.over_http = way == "sse"
        self.row, self.fault, self.quick = row, f"{fault}, HTTPS" if self.over_http else fault, quick
        #: what times may be multiplied by
        self.slack = 20.0 if quick else 1.0
        self.ports: dict[int, int] = dict(enumerate(ports))
        self.sims: dict[int, subprocess.Popen[bytes]] = {}
        self.scores: list[Score] = []
        self.serving: subprocess.Popen[bytes] | None = None
        #: simulators that speak TLS
        self.secured: set[int] = set()
        self._pairs: list[Pair] = []
        self._tell = tell
        self._beside: list[Told] = []

    # ------------------------------------------------------------------------------------------------ making

    def simulators(self, *argv: str, count: int = 2) -> None:
        """Start them where there are none; called by `playing` if nobody did."""
        for side in range(count):
            if side not in self.ports:
                self.simulator(side, *argv)

    def simulator(self, side: int, *argv: str, port: int = 0) -> None:
        """Start one (again)."""
        name = f"sim{side}-{len(self._running)}"
        found = self.relay(*self.PACE, "--port", str(port), *argv, name=name)
        self.ports[side] = found
        self.sims[side] = self._running[-1]

    def pair(
        self, name: str, dialect: str = "responses", *, targets: int = 2, one: str = "ok", two: str = "ok",
        query: str = "", query_two: str = "", more: str = "", more_two: str = "", route_more: str = "",
        sides: tuple[int, int] = (0, 1),
    ) -> Pair:  # fmt: skip
        """A route named `name`: its first upstream plays the scenario `one`, its second `two`."""
        pair = Pair(
            name,
            dialect,
            targets,
            (one, two),
            (query, query_two),
            (more, more_two),
            route_more,
            sides,
            f"{'h' if self.over_http else 'r'}{self.row}-{name}",
        )
        self._pairs.append(pair)
        return pair

    def _configuration(self) -> str:
        text = ""
        for pair in self._pairs:
            path = f"/u/{pair.label}{DIALECTS[pair.dialect]}"
            listed = []
            for side, name in list(enumerate((pair.primary, pair.secondary)))[: pair.targets]:
                query = f"?{pair.queries[side]}" if pair.queries[side] else ""
                at = pair.sides[side]
                scheme, host = ("wss", "localhost") if at in self.secured else ("ws", "127.0.0.1")
                if self.over_http:
                    scheme = {"ws": "http", "wss": "https"}[scheme]
                url = f"{scheme}://{host}:{self.ports[at]}{path}{query}"
                text += f'[[upstream]]\nname = "{name}"\nurl = "{url}"\ndialect = "{pair.dialect}"\n'
                text += f"warm_connections = 2\nmax_connections = 8\n{pair.more[side]}\n"
                listed.append(f'{{ upstream = "{name}", model = "model-{side + 1}" }}')
            text += f'[[route]]\nname = "{pair.name}"\ntargets = [ {", ".join(listed)} ]\n{pair.route_more}\n'
        return text

    @contextlib.contextmanager
    def playing(self, *, ready: bool = True) -> Iterator[Trader]:
        """Simulators, daemon and bystander run; at the end the daemon must live and the bystander be unharmed."""
        self.pair(BESIDE)
        with _STARTING:
            self.simulators()
            for pair in self._pairs:
                for side in range(pair.targets):
                    if pair.scenarios[side] != "ok":
                        self.steer(pair, pair.scenarios[side], side=side)
            self.serving = self.daemon(self._configuration(), ready=False)
            names = {pair.name for pair in self._pairs if ready or pair.name == BESIDE}
            until(lambda: self._ready(names), self.serving, self.folder / "daemon.log")
        stop = threading.Event()
        thread = threading.Thread(target=self._stand_by, args=(stop,), daemon=True)
        thread.start()
        try:
            with Trader(self.endpoint) as trader:
                yield trader
        finally:
            stop.set()
            thread.join(10)
        self._judge_bystander()

    def ended(self) -> list[Score]:
        """The lines, with no more problems each than one wants to read."""
        for score in self.scores:
            if len(score.problems) > _SHOWN:
                score.problems[_SHOWN:] = [f"and {len(score.problems) - _SHOWN} more"]
        return self.scores

    def _ready(self, names: set[str]) -> bool:
        routes = (self.report(timeout=0.5) or {"routes": []})["routes"]
        return names <= {one["name"] for one in routes if one["ready"]}

    def _stand_by(self, stop: threading.Event) -> None:
        with Trader(self.endpoint) as trader:
            while not stop.wait(0.05):
                trader.ask(BESIDE, words=8, timeout_s=5.0)
            trader.ping()
            self._beside = trader.all

    def _judge_bystander(self) -> None:
        harmed = [f"beside: {call.outcome}" for call in self._beside if call.outcome != "done"]
        harmed += [f"beside: {problem}" for call in self._beside for problem in call.problems(self.slack)]
        slowest = max((call.seconds for call in self._beside), default=0.0)
        if slowest > UNHARMED_S * self.slack:
            harmed.append(f"beside: a call took {slowest:.1f} s")
        if not self._beside:
            harmed.append("beside: no call at all was answered")
        if self.serving is not None and self.serving.poll() is not None:
            harmed.append(f"the daemon ended with {self.serving.returncode}")
        if "Traceback" in self.log():
            harmed.append("a traceback in the daemon's log")
        if harmed and self.scores:
            self.scores[-1].problems += harmed[:5]

    # ------------------------------------------------------------------------------------------------ playing

    @contextlib.contextmanager
    def case(self, trader: Trader, variant: str, expected: str, pair: Pair) -> Iterator[Case]:
        """One line: what is done inside is judged; afterwards the fault is taken away and a fresh call must be done."""
        score = Score(self.row, self.fault, variant, expected)
        case = Case(self, score, pair)
        try:
            yield case
            trader.ping()  # nothing may come after a terminal
            for call in case._calls:
                score.problems += [f"{call.id}: {said}" for said in call.broken if "after the terminal" in said]
            calls, connects = [case.asked(0)], [case.connects(0)]
            if pair.targets > 1:
                calls.append(case.asked(1))
                connects.append(case.connects(1))
            score.attempts = f"{' + '.join(map(str, calls))}"
            if sum(connects):
                score.attempts += f" ({' + '.join(map(str, connects))} connects)"
            score.seconds = time.monotonic() - case.began
            self._heal(trader, case)
        except (AssertionError, OSError, KeyError) as error:
            score.problems.append(f"could not be played: {error!r:.300}")
        score.seconds = score.seconds or time.monotonic() - case.began
        self.scores.append(score)
        self.ended()
        self._tell(score)

    def _heal(self, trader: Trader, case: Case) -> None:
        pair = case.pair
        for side in range(pair.targets):
            self.steer(pair, "ok", side=side)
            if case.kills:
                self.control(pair.sides[side], "_kill", upstream=pair.label)
        patience = case.heal_within
        if patience is None:
            patience = 0.0 if pair.targets > 1 else 12.0
        began = time.monotonic()
        while True:
            fresh = trader.ask(pair.name, timeout_s=3.0)
            case.score.problems += [f"afterwards: {problem}" for problem in fresh.problems(self.slack)]
            waited = time.monotonic() - began
            if fresh.outcome == "done":
                break
            if waited > patience:
                case.must(False, f"not healthy afterwards: {fresh.line()}: {_message(fresh)}")
                return
            trader.listen(0.2)
        if waited > 1.0:
            case.score.seen += f"; answered again {waited:.1f} s after the fault was gone"

    # ------------------------------------------------------------------------------------------------ steering

    def control(self, side: int, path: str, **query: str | int) -> dict[str, Any]:
        """Ask a simulator something."""
        scheme = "https" if side in self.secured else "http"
        url = f"{scheme}://127.0.0.1:{self.ports[side]}/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10, context=_TRUSTING if side in self.secured else None) as answer:
            said: dict[str, Any] = json.load(answer)
        return said

    def steer(self, pair: Pair, scenario: str, *, side: int = 0) -> None:
        """From now on this befalls the calls and connections of a pair's first or second upstream."""
        self.control(pair.sides[side], "_scenario", name=scenario, upstream=pair.label)

    def journal(self, side: int, pair: Pair, since_us: int) -> list[dict[str, Any]]:
        """What a simulator noted of a pair's first or second upstream; of a secured one: of all it plays."""
        at = pair.sides[side]
        label = {} if at in self.secured else {"upstream": pair.label}
        said: list[dict[str, Any]] = self.control(at, "_journal", since_us=since_us, **label)["journal"]
        return said
