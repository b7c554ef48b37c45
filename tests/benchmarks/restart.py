"""Daemons restarted under load, round after round: what became of each call, and for how long nobody answered.

A bot, a process of its own on the AsyncClient, begins `--rate` calls a second whatever became of the earlier ones; one
in eight is a stream of a fifth of a second, the others are answered at once. Beside it daemons are ended and started
anew: one alone, or two instances one after the other (the next is ended when the last is ready). Rows:

- *one, SIGTERM*: calls that the daemon would not begin wait for its successor, up to their deadline;
- *one, SIGTERM, told*: the same with ``moves_on=False``: they fail at once;
- *one, SIGKILL*: what it had is `daemon_lost`;
- *two, SIGTERM*: the other one answers;
- *two, SIGKILL*: what one had is `daemon_lost`.

A call is *without a terminal* when its `await` has not come back 5 s after its deadline. The gap is the longest time
between two answers anywhere in a row's run; beside it stands the same of a run without restarts. Exit 0 when no call
was without a terminal, none was asked upstream twice, a drained daemon lost none, and of two drained instances all are
`done`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from common import Bench, Relay, Verdicts, finish, median, parser, percentiles, route, table, upstream

from sidecar.client import AsyncClient
from sidecar.errors import CallFailed

SHORT: Final = "[[id={name}]]"
STREAM: Final = "[[id={name} tokens=20 cadence_ms=10]]"
#: Seconds after its deadline for which a call is waited for.
LENIENCE: Final = 5.0
#: A machine full of other work is not to fail calls.
CLOCKS: Final = ("timeout_ms", "first_delta_timeout_ms", "idle_timeout_ms")
#: row -> instances, the signal (None: no restarts), moves_on
ROWS: Final[dict[str, tuple[int, signal.Signals | None, bool]]] = {
    "one, left alone": (1, None, True),
    "one, SIGTERM": (1, signal.SIGTERM, True),
    "one, SIGTERM, told": (1, signal.SIGTERM, False),
    "one, SIGKILL": (1, signal.SIGKILL, True),
    "two, SIGTERM": (2, signal.SIGTERM, True),
    "two, SIGKILL": (2, signal.SIGKILL, True),
}
QUICK: Final = ("one, SIGTERM", "two, SIGTERM")


# ------------------------------------------------------------------------------------------------ the bot


class Bot:
    """Open loop: so many calls a second until the standard input ends."""

    def __init__(self, endpoint: str, label: str, rate: float, timeout_ms: float, moves_on: bool) -> None:
        self.endpoint, self.label, self.rate = endpoint, label, rate
        self.timeout_ms, self.moves_on = timeout_ms, moves_on
        self.begun = 0
        self.codes: Counter[str] = Counter()
        self.call_ids: set[str] = set()
        self.answered_at: list[float] = []
        self.took: list[float] = []

    async def main(self) -> None:
        """Begin calls, then wait for the last of them."""
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(0, over.set)
        async with AsyncClient(self.endpoint, name="restart", moves_on=self.moves_on) as client:
            await client.ping()
            print("ready", flush=True)
            async with asyncio.TaskGroup() as calls:
                first = loop.time()
                while not over.is_set():
                    calls.create_task(self._call(client, self.begun))
                    self.begun += 1
                    await asyncio.sleep(max(0.0, first + self.begun / self.rate - loop.time()))

    async def _call(self, client: AsyncClient, number: int) -> None:
        began = time.monotonic()
        streams = number % 8 == 0
        prompt = (STREAM if streams else SHORT).format(name=f"{self.label}-{number}")
        try:
            async with asyncio.timeout(self.timeout_ms / 1000 + LENIENCE):
                async with client.submit(prompt, stream=streams, timeout_ms=self.timeout_ms) as handle:
                    answer = await handle.result()
        except CallFailed as failure:
            self.codes[failure.code] += 1
            return
        except TimeoutError:
            self.codes["without a terminal"] += 1
            return
        now = time.monotonic()
        self.call_ids.add(answer.call_id)
        self.codes["done"] += 1
        self.answered_at.append(now)
        self.took.append(1000 * (now - began))

    def shown(self) -> str:
        """For the parent."""
        at = sorted(self.answered_at)
        return json.dumps({
            "offered": self.begun, "codes": self.codes, "answers": len(self.call_ids),
            "gap_ms": 1000 * max((b - a for a, b in itertools.pairwise(at)), default=0.0),
            "took_ms": percentiles(self.took),
        })  # fmt: skip


# ------------------------------------------------------------------------------------------------ the daemons


class Daemons:
    """One, or two instances, each with an endpoint of its own and one configuration."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench = bench
        self.endpoints = [f"ipc://{bench.folder}/sidecar-{name}/s.sock" for name in "ab"[:count]]
        for endpoint in self.endpoints:
            Path(endpoint.removeprefix("ipc://")).parent.mkdir(exist_ok=True)
        self.processes = [self._start(endpoint) for endpoint in self.endpoints]
        self.down_ms: list[float] = []
        self.ended_ms: list[float] = []
        for index in range(count):
            self._until_ready(index)

    def _start(self, endpoint: str) -> subprocess.Popen[bytes]:
        return self.bench.start(
            "-m", "sidecar", "serve", "-c", str(self.bench.configuration), "--endpoint", endpoint, log="daemon.log"
        )

    def _until_ready(self, index: int) -> None:
        self.bench.endpoint = self.endpoints[index]
        socket = Path(self.bench.endpoint.removeprefix("ipc://"))
        process = self.processes[index]
        self.bench.until(socket.exists, process, "daemon.log")
        self.bench.until(lambda: bool((self.bench.report() or {}).get("ready")), process, "daemon.log")

    def restart(self, index: int, number: signal.Signals) -> None:
        """End one, and start it anew."""
        began = time.monotonic()
        self.processes[index].send_signal(number)
        status = self.processes[index].wait(30)
        if status not in (0, -signal.SIGKILL):
            raise SystemExit(f"a daemon ended with {status}: {(self.bench.folder / 'daemon.log').read_text()[-2000:]}")
        ended = time.monotonic()
        self.processes[index] = self._start(self.endpoints[index])
        self._until_ready(index)
        self.ended_ms.append(1000 * (ended - began))
        self.down_ms.append(1000 * (time.monotonic() - ended))

    def end(self) -> None:
        """All of them."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)


def measure(bench: Bench, relay: Relay, row: str, options: Any) -> dict[str, Any]:
    """One row."""
    count, number, moves_on = ROWS[row]
    label = str(list(ROWS).index(row))
    bench.configuration.write_text(
        "[frontend]\nqueue_max = 8192\n[log]\ncalls = false\n"
        + upstream("sim", relay.url(), warm=8, maximum=64)
        + route("sim", **dict.fromkeys(CLOCKS, options.timeout_ms))
    )
    daemons = Daemons(bench, count)
    with subprocess.Popen(
        [
            sys.executable, __file__, "--bot", label, "--endpoint", ",".join(daemons.endpoints),
            "--rate", str(options.rate), "--timeout-ms", str(options.timeout_ms), *([] if moves_on else ["--told"]),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=bench.environ(),
    ) as bot:  # fmt: skip
        try:
            assert bot.stdout
            if bot.stdout.readline() != "ready\n":
                raise SystemExit("the bot did not begin")
            time.sleep(options.pause_s)
            for _ in range(options.rounds):
                for index in range(count):
                    if number is not None:
                        daemons.restart(index, number)
                    time.sleep(options.pause_s)
            said, _ = bot.communicate(timeout=options.timeout_ms / 1000 + 4 * LENIENCE)
        finally:
            bot.kill()
    daemons.end()
    found: dict[str, Any] = json.loads(said)
    codes = found["codes"]
    attempts = [times for name, times in relay.counters()["attempts"].items() if name.startswith(f"{label}-")]
    return {
        **found,
        "ended": sum(codes.values()) - codes.get("without a terminal", 0),
        "without_a_terminal": found["offered"] - sum(codes.values()) + codes.get("without a terminal", 0),
        "asked_upstream": len(attempts), "asked_twice": sum(times > 1 for times in attempts),
        "restarts": len(daemons.down_ms), "ended_ms": median(daemons.ended_ms), "ready_ms": median(daemons.down_ms),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ the command


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--rate", type=float, default=200.0, help="calls a second")
    arguments.add_argument("--timeout-ms", type=float, default=10_000)
    arguments.add_argument("--pause-s", type=float, default=0.5, help="of work between two restarts")
    arguments.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    arguments.add_argument("--bot", metavar="LABEL", help="be the bot (internal)")
    arguments.add_argument("--endpoint", help="of --bot (internal)")
    arguments.add_argument("--told", action="store_true", help="of --bot: moves_on=False (internal)")
    options = arguments.parse_args()
    if options.bot:
        bot = Bot(options.endpoint, options.bot, options.rate, options.timeout_ms, not options.told)
        asyncio.run(bot.main())
        print(bot.shown())
        return 0
    if options.quick:
        options.rounds, options.rate, options.pause_s, options.timeout_ms = 1, 30.0, 0.2, 40_000.0
        options.rows = [row for row in QUICK if row in options.rows] or options.rows[:1]
    rows: dict[str, Any] = {}
    verdicts = Verdicts()
    with Bench() as bench:
        relay = bench.relay("--ttft-ms", "3", "--cadence-ms", "0", "--tokens", "1")
        for row in options.rows:
            rows[row] = measure(bench, relay, row, options)
    verdicts.judge("every call has a terminal", all(not found["without_a_terminal"] for found in rows.values()))
    verdicts.judge(
        "the upstream was asked once for each answer, and for no call twice",
        all(
            found["answers"] == found["codes"].get("done", 0) <= found["asked_upstream"] and not found["asked_twice"]
            for found in rows.values()
        ),
    )
    drained = {row: found for row, found in rows.items() if ROWS[row][1] is signal.SIGTERM}
    verdicts.judge("a drained daemon loses none", all("daemon_lost" not in one["codes"] for one in drained.values()))
    verdicts.judge(
        "of two instances drained one after the other every call is answered",
        all(found["codes"] == {"done": found["offered"]} for row, found in drained.items() if ROWS[row][0] == 2),
    )
    result = {"load": os.getloadavg()[0], "rounds": options.rounds, "rate": options.rate, "rows": rows}
    return finish(result, verdicts, as_json=options.json, text=_text(rows, options))


def _text(rows: dict[str, Any], options: Any) -> str:
    head = ["", "restarts", "offered", "done", "failed", "without", "gap ms", "p50 ms", "p99 ms", "ends in", "ready in"]
    lines = [
        [
            row, found["restarts"], found["offered"], found["codes"].get("done", 0),
            found["ended"] - found["codes"].get("done", 0), found["without_a_terminal"], found["gap_ms"],
            found["took_ms"]["p50"], found["took_ms"]["p99"], found["ended_ms"], found["ready_ms"],
        ]
        for row, found in rows.items()
    ]  # fmt: skip
    failed = [
        f"  {row}: {', '.join(f'{code} {number}' for code, number in sorted(found['codes'].items()) if code != 'done')}"
        for row, found in rows.items()
        if set(found["codes"]) - {"done"}
    ]
    text = f"{options.rounds} rounds, {options.rate:g} calls a second, deadline {options.timeout_ms:g} ms; load "
    text += f"{os.getloadavg()[0]:.1f}\n{table(lines, head=head)}"
    return text + ("\n\nfailed, by code\n" + "\n".join(failed) if failed else "")


if __name__ == "__main__":
    sys.exit(main())
