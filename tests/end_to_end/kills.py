"""kill -9 of the simulator, of the daemon, of a bot, each in the middle of 200 streams: what every bot saw.

`python tests/end_to_end/kills.py [--quick] [--json] [--markdown FILE]`. Each kill is a run of its own: a daemon, two
simulators as primary and secondary, and ten bots as processes, by turns our blocking and our asyncio client, with
twenty streams each. Every stream has words of its own, so that what came can be checked. Exit status 0 only if every
surviving bot was told the end of each of its streams, in time and truthfully, and all is well afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[2])

from sidecar import __version__
from tests.end_to_end.keeper import keep
from tests.end_to_end.processes import Processes, until
from tests.end_to_end.score_page import cell, machine, put_section

#: Seconds between two tokens of a stream.
CADENCE_S = 0.05
#: Seconds from the kill until the last surviving stream that was torn must have been told of.
TOLD_S = 1.0
#: Seconds within which the upstream work of a bot that is gone must stop (invariant 6 of the wire).
STOPPED_S = 0.1
PATIENCE = 60.0


# --------------------------------------------------------------------------------------------------------- a run


@dataclass
class Fall:
    """One kill, and what every bot saw."""

    killed: str
    promised: str
    bots: int
    streams: int
    #: of a stream, tokens
    words: int = 120
    #: what times may be multiplied by
    slack: float = 1.0
    outcomes: dict[str, int] = field(default_factory=dict)
    by_bot: list[dict[str, int]] = field(default_factory=list)
    untold: int = 0
    last_ms: float = 0.0
    upstream: str = ""
    afterwards: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """As promised."""
        return not self.problems

    def must(self, condition: bool, problem: str) -> None:
        """Note `problem` unless `condition`."""
        if not condition:
            self.problems.append(problem)


class Bot:
    """One bot's process."""

    def __init__(self, stage: Processes, number: int, streams: int, words: int) -> None:
        self.number = number
        self.names = [f"b{number}s{stream}" for stream in range(streams)]
        kind = ("blocking", "asyncio")[number % 2]
        program = Path(__file__).parent / "bots" / "kill_bot.py"
        argv = [sys.executable, str(program), kind, stage.endpoint, str(words), *self.names]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=stage.environ()
        )
        stage._running.append(self.process)  # type: ignore[arg-type]
        keep(self.process.pid, stage.folder)

    def hear(self, key: str) -> dict[str, Any]:
        """Its next message, which must have `key`; an empty one when it ended without."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {}
        return message if key in message else {}

    def go_on(self) -> None:
        """On to its streams, or to one more call."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


class Run(Processes):
    """Daemon, simulators and bots of one kill."""

    def __init__(self, fall: Fall) -> None:
        super().__init__()
        self.fall = fall
        self.ports: list[int] = []
        self.bots: list[Bot] = []
        self.killed_at = 0.0

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for bot in self.bots:
            for pipe in (bot.process.stdin, bot.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def begin(self) -> None:
        """All streams of all bots have begun, and go on."""
        fall = self.fall
        for name in ("primary", "secondary"):
            self.ports.append(
                self.relay("--ttft-ms", "10", "--cadence-ms", str(1000 * CADENCE_S), "--for-s", "200", name=name)
            )
        total = fall.streams * fall.bots
        upstreams = "".join(
            f'[[upstream]]\nname = "{name}"\nurl = "ws://127.0.0.1:{port}/v1/responses"\ndialect = "responses"\n'
            f"warm_connections = {warm}\nmax_connections = {total + 56}\n"
            for name, port, warm in zip(("primary", "secondary"), self.ports, (total, 8), strict=True)
        )
        one, two = (f'{{ upstream = "{name}", model = "m" }}' for name in ("primary", "secondary"))
        routes = f'[[route]]\nname = "streams"\ntargets = [ {one} ]\n'
        routes += f'[[route]]\nname = "default"\ntargets = [ {one}, {two} ]\n'
        serving = self.serving = self.daemon(upstreams + routes)

        def warm() -> bool:
            found = (self.report() or {"upstreams": []})["upstreams"]
            return any(one["name"] == "primary" and one["connections"].get("READY", 0) >= total for one in found)

        until(warm, serving, self.folder / "daemon.log")
        self.bots = [Bot(self, number, fall.streams, fall.words) for number in range(fall.bots)]
        for bot in self.bots:
            fall.must(bool(bot.hear("ready")), f"bot {bot.number} did not stand up")
        for bot in self.bots:
            bot.go_on()
        for bot in self.bots:
            said = bot.hear("streaming")
            fall.must(said.get("streaming") == fall.streams, f"bot {bot.number} did not begin its streams")
        time.sleep(0.3)

    def kill(self, process: subprocess.Popen[Any]) -> None:
        """SIGKILL, and when."""
        self.killed_at = time.monotonic()
        process.kill()
        process.wait()

    def hear_all(self, *, but: Bot | None = None, torn_by: float | None) -> None:
        """What each surviving bot was told of each of its streams."""
        fall, outcomes = self.fall, Counter[str]()
        for bot in self.bots:
            if bot is but:
                continue
            told = bot.hear("told").get("told", [])
            fall.untold += fall.streams - sum(one["outcome"] != "none" for one in told)
            mine = Counter(one["outcome"] for one in told)
            fall.by_bot.append(dict(mine))
            outcomes += mine
            for one in told:
                fall.must(one["truthful"], f"{one['name']}: {one['outcome']} with a text that is not its own")
                late = 1000 * (one["at"] - self.killed_at)
                fall.last_ms = max(fall.last_ms, late)
                if torn_by is not None:
                    fall.must(0 < one["words"] < fall.words, f"{one['name']}: {one['words']} words came")
        fall.outcomes = dict(outcomes)
        fall.must(fall.untold == 0, f"{fall.untold} streams of surviving bots saw no terminal")
        if torn_by is not None:
            fall.must(
                fall.last_ms <= 1000 * torn_by * fall.slack,
                f"the last terminal came {fall.last_ms:.0f} ms after the kill",
            )

    def fresh(self, expected: str | None, *, but: Bot | None = None) -> None:
        """Every surviving bot makes one more call, by the client it has."""
        fall, began, slowest = self.fall, time.monotonic(), 0.0
        chosen = [bot for bot in self.bots if bot is not but]
        for bot in chosen:
            bot.go_on()
        for bot in chosen:
            said = bot.hear("fresh")
            if said.get("fresh") != "done":
                fall.problems.insert(0, f"bot {bot.number} afterwards: {said.get('fresh')}")
            fall.must(expected in (None, said.get("upstream")), f"answered by {said.get('upstream')}")
            slowest = max(slowest, said.get("at", began) - began)
        fall.afterwards = f"a call of each bot done by {expected or 'either'} within {slowest:.2f} s"

    def stops(self, side: int) -> list[dict[str, Any]]:
        """What a simulator noted of calls that the daemon ended."""
        self.port = self.ports[side]
        return [note for note in self._journal() if note["event"] == "stopped"]

    def _journal(self) -> list[dict[str, Any]]:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_journal", timeout=10) as answer:
            said: list[dict[str, Any]] = json.load(answer)["journal"]
        return said


def _until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def simulator_falls(fall: Fall) -> None:
    """Every stream is told as lost, at once; calls after it are the secondary's; the primary is taken back."""
    with Run(fall) as run:
        run.begin()
        run.kill(run._running[0])
        run.hear_all(torn_by=TOLD_S)
        total = fall.bots * fall.streams
        fall.must(fall.outcomes == {"upstream_lost": total}, f"ended {fall.outcomes}")
        run.fresh("secondary")
        connections = {one["name"]: one["connections"] for one in (run.report() or {})["upstreams"]}
        fall.upstream = f"connections left: {connections}"
        fall.must(not connections["primary"].get("READY"), "connections to a dead process are READY")
        again = time.monotonic()
        run.relay("--port", str(run.ports[0]), "--for-s", "200", name="again")

        def back() -> bool:
            found = (run.report() or {"upstreams": []})["upstreams"]
            return any(one["name"] == "primary" and one["connections"].get("READY", 0) > 0 for one in found)

        fall.must(_until(back, 20.0), "no connection to the new process in 20 s")
        fall.afterwards += f"; connected to its successor after {time.monotonic() - again:.1f} s"


def daemon_falls(fall: Fall) -> None:
    """Every client says daemon_lost at once; upstream work stops; the next daemon takes the socket over."""
    with Run(fall) as run:
        run.begin()
        run.kill(run.serving)
        run.hear_all(torn_by=TOLD_S)
        total = fall.bots * fall.streams
        fall.must(fall.outcomes == {"daemon_lost": total}, f"ended {fall.outcomes}")
        run.port = run.ports[0]
        fall.must(
            _until(lambda: run.counters()["open"] == 0, 5.0), f"{run.counters()['open']} connections left upstream"
        )
        last = max((note["at_us"] for note in run.stops(0)), default=0) / 1e6 - run.killed_at
        fall.upstream = (
            f"{run.counters()['open']} connections left, {len(run.stops(0))} calls stopped in {1000 * last:.0f} ms"
        )
        fall.must(len(run.stops(0)) == total, f"{len(run.stops(0))} calls stopped upstream")
        fall.must((run.folder / "s.sock").exists(), "the socket's file went with it: nothing to take over")
        successor = run.start("serve", "-c", str(run.folder / "sidecar.toml"), log="successor.log")
        run.fresh(None)
        fall.must(successor.poll() is None, "the next daemon did not stay")


def bot_falls(fall: Fall) -> None:
    """Its upstream work stops within 100 ms; the streams of the others go on to their whole end."""
    with Run(fall) as run:
        run.begin()
        victim = run.bots[fall.bots // 2]
        run.kill(victim.process)
        gone = set(victim.names)
        _until(lambda: len(run.stops(0)) >= len(gone), 5.0)
        stopped = [note for note in run.stops(0) if note["name"] in gone]
        last = max((note["at_us"] for note in stopped), default=0) / 1e6 - run.killed_at
        fall.upstream = f"{len(stopped)} calls stopped within {1000 * last:.0f} ms"
        fall.must(len(stopped) == len(gone), f"{len(stopped)} of its {len(gone)} calls were stopped upstream")
        fall.must(
            last <= STOPPED_S * fall.slack, f"the last of its calls was stopped {1000 * last:.0f} ms after the kill"
        )
        run.hear_all(but=victim, torn_by=None)
        fall.must(fall.outcomes == {"done": (fall.bots - 1) * fall.streams}, f"ended {fall.outcomes}")
        others = [note["name"] for note in run.stops(0) if note["name"] not in gone]
        fall.must(not others, f"{len(others)} calls of other bots were stopped upstream")
        run.fresh(None, but=victim)
        report = run.report() or {}
        fall.must(report.get("in_flight") == 0, f"{report.get('in_flight')} calls in flight afterwards")


KILLS: dict[str, tuple[str, Callable[[Fall], None]]] = {
    "simulator": ("upstream_lost with what came, at once; then the secondary", simulator_falls),
    "daemon": ("daemon_lost with what came, at once; the next daemon takes over", daemon_falls),
    "bot": ("its upstream work stops within 100 ms; all others done and whole", bot_falls),
}


def play(*, quick: bool = False, kills: tuple[str, ...] = tuple(KILLS)) -> list[Fall]:
    """One run after another. `quick` is for machines that do other things as well: ten times as long is in time."""
    falls = []
    for killed in kills:
        promised, act = KILLS[killed]
        bots, streams = (4, 10) if quick else (10, 20)
        fall = Fall(killed, promised, bots, streams, words=50 if quick else 120, slack=10.0 if quick else 1.0)
        try:
            act(fall)
        except (AssertionError, OSError) as error:
            fall.problems.append(f"could not be played: {error!r:.1000}")
        fall.problems[6:] = [f"and {len(fall.problems) - 6} more"] if len(fall.problems) > 6 else []
        falls.append(fall)
    return falls


def line(fall: Fall) -> str:
    """For the terminal."""
    text = f"{'pass' if fall.ok else 'FAIL'} kill -9 of the {fall.killed}: {fall.bots} bots x {fall.streams} streams; "
    text += f"{_outcomes(fall)}; {fall.untold} saw none; {_last(fall)}; {fall.upstream}; {fall.afterwards}"
    return text + "".join(f"\n        {problem}" for problem in fall.problems)


def _outcomes(fall: Fall) -> str:
    each = {json.dumps(one, sort_keys=True) for one in fall.by_bot}
    alike = "each bot alike" if len(each) == 1 else f"bots differ: {'; '.join(sorted(each))}"
    return ", ".join(f"{number} {code}" for code, number in sorted(fall.outcomes.items())) + f" ({alike})"


def _last(fall: Fall) -> str:
    return f"last terminal {fall.last_ms:.0f} ms after the kill" + (" (its whole end)" if fall.killed == "bot" else "")


def markdown(falls: list[Fall], seconds: float) -> str:
    """The table for docs/."""
    lines = [
        "Made by `python tests/end_to_end/kills.py --markdown docs/scorecard.md`; do not edit. Each kill is a run of",
        "its own, in the middle of all streams. Bots are processes, by turns our blocking and our asyncio client; the",
        f"words of every stream are checked. Version {__version__}, {seconds:.0f} s. {machine()}",
        "",
        "| kill -9 of | bots x streams | promised | terminals | saw none | the last | upstream | afterwards | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for fall in falls:
        verdict = "pass" if fall.ok else f"**FAIL: {'; '.join(fall.problems)}**"
        cells = (fall.killed, f"{fall.bots} x {fall.streams}", fall.promised, _outcomes(fall), str(fall.untold),
                 _last(fall), fall.upstream, fall.afterwards, verdict)  # fmt: skip
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Exit status: 0 when all went as promised, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill", action="append", choices=list(KILLS), help="only this (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="4 bots with 10 streams each")
    parser.add_argument("--json", action="store_true", help="what was seen as JSON on stdout")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into its section there")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    falls = play(quick=arguments.quick, kills=tuple(arguments.kill or KILLS))
    seconds = time.monotonic() - began
    wrong = [fall for fall in falls if not fall.ok]
    if arguments.markdown is not None:
        put_section(arguments.markdown, "Killed in the middle", markdown(falls, seconds))
    if arguments.json:
        kills = [{**asdict(fall), "ok": fall.ok} for fall in falls]
        print(json.dumps({"ok": not wrong, "seconds": round(seconds, 1), "cores": os.cpu_count(), "kills": kills}))
    else:
        print("\n".join(map(line, falls)))
        print(f"{len(falls)} kills, {len(wrong)} wrong, {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
