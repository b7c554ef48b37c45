"""The stage on which a hostile upstream is borne: its server, a daemon, bots that call it, and one that behaves."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.bad_input import resident
from tests.end_to_end.borders import Bot, Bystander, default_ready, told
from tests.end_to_end.hostile_http1 import WAITS
from tests.end_to_end.hostile_server import CROSSING, DIALECTS, DONE, FAILED, FOREIGN, TEXT, Attack
from tests.end_to_end.keeper import keep
from tests.end_to_end.processes import Processes, route, until, upstream

#: Bots that call the hostile upstream at once, and how long each attack lasts, seconds.
VICTIMS: Final = 6
SECONDS: Final = 1.0
#: Attacks that one daemon bears: who was thrown out often takes longer to connect again, and then little is attacked.
EVERY: Final = 4
CALL: Final = {"type": "call", "timeout_ms": 1200, "idle_timeout_ms": 300, "first_delta_timeout_ms": 1000}
#: Bounds against "never": a terminal so long after its deadline, the loop held for so long, seconds; memory that stays.
LATE: Final = 3.0
HELD: Final = 2.0
GROWTH: Final = 96 << 20
#: Seconds in which a server that behaves again is served again, and descriptors are closed.
RECOVERY: Final = 20.0
#: No Retry-After is taken for more, seconds, jitter included.
LONGEST_WAIT: Final = 3600 * 1.2


@dataclass
class Row:
    """One attack, and what came of it. `lag` and `p99` in ms, memory in MiB."""

    door: str
    name: str
    seen: str = ""
    calls: int = 0
    others: str = ""
    p99: float = 0.0
    ratio: float = math.nan
    lag: float = 0.0
    memory: float = 0.0
    grown: float = 0.0
    back: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Everything held."""
        return not self.problems


class Server:
    """The hostile server's process."""

    def __init__(self, folder: Path) -> None:
        script = str(Path(__file__).with_name("hostile_server.py"))
        self._process = subprocess.Popen(
            ["nice", sys.executable, script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        keep(self._process.pid, folder)
        self.ports: dict[str, int] = json.loads(self._line())

    def play(self, door: str, attack: str) -> None:
        """From here on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{door} {attack}\n")
        self._process.stdin.flush()
        assert self._line() == "ok\n"

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class Stage:
    """Server, daemon, the bot that behaves; and rows, one by one."""

    def __init__(self, processes: Processes, server: Server, tell: Callable[[str], None]) -> None:
        self.processes, self.server, self._tell = processes, server, tell
        self.rows: list[Row] = []
        self.usual = math.nan  # p99 of the bot that behaves, ms, where nobody attacks
        self._daemon: subprocess.Popen[bytes]
        self._bystander: Bystander
        self._first = 0
        self._log_at = 0

    @contextmanager
    def serving(self, configuration: str) -> Iterator[None]:
        """A daemon, and the bot that behaves."""
        port = self.processes.relay("--ttft-ms", "5", "--cadence-ms", "1", "--tokens", "6", "--for-s", "3600")
        good = upstream("good", f"http://127.0.0.1:{port}/v1/responses") + route("good")
        self._daemon = self.processes.daemon(good + configuration, ready=False)
        until(lambda: default_ready(self.processes), self._daemon, self.processes.folder / "daemon.log")
        with Bystander(self.processes.endpoint) as self._bystander:
            yield

    def settle(self) -> None:
        """What was before the first attack."""
        self._first = resident(self._daemon.pid)

    def measure(self, seconds: float) -> float:
        """What is usual: the bot that behaves, while the server behaves and is asked as ever; p99 in ms."""
        began = time.monotonic()
        routes = [f"{door}-{dialect}" for door in ("http1", "http2") for dialect in DIALECTS]
        seen = self._ask(routes, "x" * 20, seconds)
        assert set(map(_kind, seen)) <= {"done stop", "no_connection"}, seen
        return self._p99(began)

    def attack(self, attack: Attack, seconds: float) -> None:
        """One row."""
        row = Row(attack.door, attack.name)
        routes = [f"{attack.door}-{dialect}" for dialect in attack.dialects]
        before = self._descriptors()
        self.server.play(attack.door, attack.name)
        began = time.monotonic()
        with self._watched(row):
            seen = self._ask(routes, "x" * attack.prompt, seconds)
        row.seen = "; ".join(f"{count} {words}" for words, count in Counter(map(_kind, seen)).most_common(4))
        row.calls = len(seen)
        row.problems += sorted({f"a bot saw: {one[:200]}" for one in seen if not re.search(attack.expected, one)})[:3]
        if attack.expected is DONE and not any(one.startswith("done") for one in seen):
            row.problems.append("nobody was answered")
        row.others, harmed = self._bystander.between(began)
        row.problems += harmed
        row.p99 = self._p99(began)
        self.server.play(attack.door, "good")
        self._recover(row, routes)
        limit = time.monotonic() + RECOVERY
        while (now := self._descriptors()) > before + 24 and time.monotonic() < limit:
            time.sleep(0.05)
        if now > before + 24:
            row.problems.append(f"{before} descriptors before, {now} after")
        self._note(row)

    def _note(self, row: Row) -> None:
        row.ratio = row.p99 / self.usual
        row.grown = row.memory - self._first / 2**20
        if row.grown * 2**20 > GROWTH:
            row.problems.append(f"{row.grown:.0f} MiB more than at first")
        log = self.processes.log()
        fresh, self._log_at = log[self._log_at :], len(log)
        if found := re.search(r".*(Traceback|internal_error|\"code\":\"internal\").*", fresh):
            row.problems.append(f"a fault of the daemon's own: {found[0][:400]}")
        if self._daemon.poll() is not None:
            row.problems.append("the daemon died")
        self.rows.append(row)
        self._tell(
            f"{'ok ' if row.ok else 'BAD'} {row.door}: {row.name} -> {row.seen} [lag {row.lag:.0f} ms, "
            f"p99 {row.p99:.0f} ({row.ratio:.1f} x), {row.memory:.0f} MiB, back in {row.back:.1f} s; {row.others}]"
            + "".join(f"\n    {problem}" for problem in row.problems)
        )

    @contextmanager
    def _watched(self, row: Row) -> Iterator[None]:
        """The loop's lag and the daemon's memory, meanwhile."""
        stop = threading.Event()

        def watch() -> None:
            with Bot(self.processes.endpoint) as bot:
                while not stop.wait(0.2):
                    bot.send({"type": "probe"})
                    row.lag = max(row.lag, bot.next(5.0).get("loop_lag_us", 5e6) / 1000)
                    row.memory = max(row.memory, resident(self._daemon.pid) / 2**20)

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        yield
        stop.set()
        watching.join()
        if row.lag > 1000 * HELD:
            row.problems.append(f"the loop was held for {row.lag:.0f} ms")

    def _ask(self, routes: list[str], prompt: str, seconds: float) -> list[str]:
        """Bots that call all the time -> what each call was told."""
        seen: list[str] = []
        until = time.monotonic() + seconds

        def victim(number: int) -> None:
            with Bot(self.processes.endpoint) as bot:
                while time.monotonic() < until and self._daemon.poll() is None:
                    seen.append(ask(bot, routes[number % len(routes)], prompt, stream=number % 6 < 4))
                    number += VICTIMS + 1

        victims = [threading.Thread(target=victim, args=(number,), daemon=True) for number in range(VICTIMS)]
        for one in victims:
            one.start()
        for one in victims:
            one.join()
        return seen

    def _recover(self, row: Row, routes: list[str]) -> None:
        """It behaves: how long until each route is served again?"""
        began = time.monotonic()
        for where in routes:
            told = ""
            while not told.startswith("done stop"):
                if time.monotonic() > began + RECOVERY or self._daemon.poll() is not None:
                    row.problems.append(f"{where} is not served again: {told}")
                    return
                with Bot(self.processes.endpoint) as bot:
                    told = ask(bot, where, "and now?")
        row.back = time.monotonic() - began

    def _descriptors(self) -> int:
        try:
            return len(list(Path(f"/proc/{self._daemon.pid}/fd").iterdir()))
        except OSError:
            return 0

    def _p99(self, began: float) -> float:
        took = sorted(end - start for start, end, _ in list(self._bystander._calls) if start >= began)
        return 1000 * took[min(len(took) - 1, int(0.99 * len(took)))] if took else math.nan

    def waits(self) -> None:
        """Hostile times to wait, a credential's each: told at most an hour, and nonsense holds nobody up."""
        row = Row("refusals", "times to wait of nonsense, in 429, 503 and 529")
        began = time.monotonic()
        self.server.play("refusals", "hostile times to wait")
        cases = range(3 * len(WAITS))
        heard: dict[int, list[dict[str, Any]]] = {}
        with self._watched(row), Bot(self.processes.endpoint) as bot:
            for _ in range(3):
                for case in cases:
                    call = {**CALL, "id": "w", "route": f"w{case}", "input": "?"}
                    heard.setdefault(case, []).extend(bot.converse(call))
        ends = {case: [one for one in came if one["type"] in ("done", "failed")] for case, came in heard.items()}
        row.calls = sum(map(len, ends.values()))
        codes = Counter(str(end.get("code", end["type"])) for came in ends.values() for end in came)
        longest = {case: max(end.get("retry_after_ms") or 0 for end in came) / 1000 for case, came in ends.items()}
        row.seen = "; ".join(f"{count} {code}" for code, count in codes.most_common())
        row.seen += f"; told to wait {max(longest.values()):.0f} s at most"
        if max(longest.values()) > LONGEST_WAIT:
            row.problems.append(f"a bot was told to wait {max(longest.values()):.0f} s")
        row.problems += [f"{case}: {len(came)} answers of 3" for case, came in ends.items() if len(came) != 3]
        row.problems += [f"{code}" for code in codes if not re.search(FAILED, f"failed {code}")]
        row.others, harmed = self._bystander.between(began)
        row.problems += harmed
        row.p99 = self._p99(began)
        self.server.play("refusals", "good")
        self._note(row)
        nonsense = [case for case in cases if longest[case] < 60]
        self._recover(row, [f"w{case}" for case in nonsense])
        row.seen += f"; {len(nonsense)} of {len(cases)} served again in {row.back:.0f} s"


def ask(bot: Bot, where: str, prompt: str, *, stream: bool = True) -> str:
    """One call -> how it ended, and what is wrong with that by the wire's rules."""
    began = time.monotonic()
    came = bot.converse({**CALL, "id": "v", "route": where, "input": prompt, "stream": stream}, timeout=10.0)
    took = time.monotonic() - began
    deltas = [one for one in came if one["type"] == "delta"]
    ends = [one for one in came if one["type"] in ("done", "failed")]
    wrong = ""
    if [one["seq"] for one in deltas] != list(range(len(deltas))):
        wrong += "A HOLE IN seq: "
    if len(ends) != 1:
        wrong += f"{len(ends)} TERMINALS: "
    if took > CALL["timeout_ms"] / 1000 + LATE:  # type: ignore[operator]
        wrong += f"LATE, {took:.1f} s: "
    text = "".join(one["text"] for one in deltas) or (ends[0].get("text") or "" if ends else "")
    if ends and ends[0]["type"] == "done" and text not in (TEXT, CROSSING) and not text.startswith("x" * 1000):
        wrong += f"NOT WHAT WAS SAID, {text[:80]!r}: "
    if FOREIGN in text:
        wrong += "ANOTHER'S TEXT: "
    return wrong + told(came).removeprefix("accepted · ")


def _kind(words: str) -> str:
    """`failed upstream_lost (with id, partial): reset` -> `upstream_lost partial`."""
    found = re.search(r"failed (\w+)( \([^)]*partial)?", words)
    if words.startswith("done stop"):
        return "done stop"
    return words[:60] if found is None else found[1] + (" partial" if found[2] else "")
