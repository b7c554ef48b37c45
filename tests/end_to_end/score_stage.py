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
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.processes import Processes, until
from tests.end_to_end.score_bot import Told, Trader
from tests.end_to_end.score_case import WAYS, Case, Pair, Score, message

_PATHS: Final = {"responses": "/v1/responses", "chat": "/v1/chat", "messages": "/v1/messages"}
#: A call beside the fault may take so long, seconds.
UNHARMED_S = 2.0
BESIDE = "beside"
_SHOWN = 6
#: Rows that start their processes at the same moment.
_STARTING = threading.BoundedSemaphore(2)
_TRUSTING = ssl.create_default_context()
_TRUSTING.check_hostname = False
_TRUSTING.verify_mode = ssl.CERT_NONE  # a simulator of our own, whose certificate is wrong on purpose


class Stage(Processes):
    """Pairs are made first, then `playing` starts everything.

    Args:
        row, fault: of the fault table.
        quick: the short form.
        tell: given each line when it is there.
        ports: of simulators that play the first and the second target for others as well; none: it starts its own.
        way: of `WAYS`: how the daemon asks the targets.
        tls: the simulators speak TLS, so that HTTP/2 is agreed on by ALPN; they are then its own.
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
        tls: bool = False,
    ) -> None:
        super().__init__()
        self.way_name, self.way = way, WAYS[way]
        self.row, self.fault, self.quick = row, fault, quick
        #: what times may be multiplied by
        self.slack = 20.0 if quick else 1.0
        self.ports: dict[int, int] = {} if tls else dict(enumerate(ports))
        self.sims: dict[int, subprocess.Popen[bytes]] = {}
        self.scores: list[Score] = []
        self.serving: subprocess.Popen[bytes] | None = None
        #: simulators that speak TLS, and those of them whose journal does not know whose connections failed
        self.secured: set[int] = set()
        self.unlabelled: set[int] = set()
        self._certificate = self._issued() if tls else None
        self._pairs: list[Pair] = []
        self._tell = tell
        self._beside: list[Told] = []

    # ------------------------------------------------------------------------------------------------ making

    @property
    def dialects(self) -> tuple[str, ...]:
        """What is spoken this way: for the rows in which dialects differ."""
        return self.way.dialects

    @property
    def usual(self) -> str:
        """The dialect of what is played in one only: over HTTP another from row to row, so that each has its share."""
        return self.dialects[(self.row + self.way.shared) % 3] if self.way.over_http else "responses"

    @property
    def some_dialects(self) -> tuple[str, ...]:
        """For the rows in which dialects do not differ: both, or over HTTP/2 the usual one."""
        return (self.usual,) if self.way.shared else self.dialects[:2]

    def _issued(self) -> Path:
        """A certificate, and the authority that the daemon is told to trust."""
        import trustme

        authority, pem = trustme.CA(), self.folder / "stage.pem"
        authority.cert_pem.write_to_path(str(self.folder / "stage-ca.pem"))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
        return pem

    def simulators(self, *argv: str, count: int = 2) -> None:
        """Start them where there are none; called by `playing` if nobody did."""
        for side in range(count):
            if side not in self.ports:
                self.simulator(side, *argv)

    def simulator(self, side: int, *argv: str, port: int = 0) -> None:
        """Start one (again)."""
        name = f"sim{side}-{len(self._running)}"
        if self._certificate is not None and "--tls-cert" not in argv:
            argv = ("--tls-cert", str(self._certificate), "--tls-key", str(self._certificate), *argv)
        if "--tls-cert" in argv:
            self.secured.add(side)
        found = self.relay(*self.PACE, "--port", str(port), *argv, name=name)
        self.ports[side] = found
        self.sims[side] = self._running[-1]

    def pair(
        self, name: str, dialect: str | None = None, *, targets: int = 2, one: str = "ok", two: str = "ok",
        query: str = "", query_two: str = "", more: str = "", more_two: str = "", route_more: str = "",
        sides: tuple[int, int] = (0, 1), url: str | None = None,
    ) -> Pair:  # fmt: skip
        """A route named `name`: its first upstream plays the scenario `one`, its second `two`."""
        pair = Pair(
            name,
            dialect or self.usual,
            targets,
            (one, two),
            (query, query_two),
            (more, more_two),
            route_more,
            sides,
            f"{self.way_name}-{self.row}-{name}",
            url,
        )
        self._pairs.append(pair)
        return pair

    def _configuration(self) -> str:
        text = ""
        for pair in self._pairs:
            path = f"/u/{pair.label}{_PATHS[pair.dialect]}"
            listed = []
            for side, name in list(enumerate((pair.primary, pair.secondary)))[: pair.targets]:
                query = f"?{pair.queries[side]}" if pair.queries[side] else ""
                at = pair.sides[side]
                host = "localhost" if at in self.secured else "127.0.0.1"
                url = f"{self.scheme(tls=at in self.secured)}://{host}:{self.ports[at]}{path}{query}"
                url = pair.url if pair.url is not None and not side else url
                text += f'[[upstream]]\nname = "{name}"\nurl = "{url}"\ndialect = "{pair.dialect}"\n'
                text += f"warm_connections = 2\nmax_connections = 8\n{self.way.lines}{pair.more[side]}\n"
                if self._certificate is not None and at in self.secured:
                    text += f'[upstream.tls]\nca_file = "{self.folder / "stage-ca.pem"}"\n'
                listed.append(f'{{ upstream = "{name}", model = "model-{side + 1}" }}')
            text += f'[[route]]\nname = "{pair.name}"\ntargets = [ {", ".join(listed)} ]\n{pair.route_more}\n'
        return text

    def scheme(self, *, tls: bool) -> str:
        """Of an upstream's URL."""
        return ("http" if self.way.over_http else "ws") + ("s" if tls else "")

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
        score = Score(self.row, self.fault, variant, expected, self.way_name, pair.dialect)
        case = Case(self, score, pair, trader)
        try:
            yield case
            trader.ping()  # nothing may come after a terminal
            for call in case.calls:
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
                case.must(False, f"not healthy afterwards: {fresh.line()}: {message(fresh)}")
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
        """What a simulator noted of a pair's first or second upstream; of an unlabelled one: of all it plays."""
        at = pair.sides[side]
        label = {} if at in self.unlabelled else {"upstream": pair.label}
        said: list[dict[str, Any]] = self.control(at, "_journal", since_us=since_us, **label)["journal"]
        return said

    def stops(self, side: int, pair: Pair) -> list[dict[str, Any]]:
        """The calls that the daemon has ended at the simulator of a pair's first or second upstream."""
        said: list[dict[str, Any]] = self.control(pair.sides[side], "_stats")["stops"]
        return said
