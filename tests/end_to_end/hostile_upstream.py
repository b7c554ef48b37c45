"""A hostile or broken HTTP upstream at a running daemon: every attack, beside a bot that behaves and its own upstream.

`python tests/end_to_end/hostile_upstream.py [--markdown docs/hostile-upstreams.md] [--only WORD]`, fifteen minutes. One
daemon, a process; a server that plays one attack after the other (`hostile_server`), another one; bots call there all
the time, in each dialect. Meanwhile the bot that behaves calls another upstream, and nothing may happen to it. After
each attack the server behaves again: it must be served again, and no descriptor may be left. Exit status 0 only if all
of that held.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[2])

from sidecar import __version__
from tests.end_to_end import hostile_doors, hostile_http1, hostile_http2, hostile_windows  # noqa: F401 - ATTACKS
from tests.end_to_end.hostile_http1 import WAITS
from tests.end_to_end.hostile_server import ATTACKS, DIALECTS
from tests.end_to_end.hostile_stage import EVERY, SECONDS, Row, Server, Stage
from tests.end_to_end.processes import Processes, route, upstream

#: What the tests try: one of each kind that was not borne once.
QUICK: Final = (
    "http1: unknown lines for ever", "http1: one event of a MiB of lines `data:`", "http1: two answers to one request",
    "http1: ends of lines of all kinds, cut at every byte", "http2: empty DATA for ever",
    "http2: never reads, and lives", "http2: no stream at once, then some",
    "tls: closed without close_notify in a body", "upgrade: refused, with a body without an end",
)  # fmt: skip
#: Nothing stands between the attack and the daemon's transport: no breaker opens, no budget runs out.
BARE: Final = """adaptive_concurrency = false
upgrade_timeout_s = 1
tls_timeout_s = 1
ping_interval_s = 1
pong_timeout_s = 1
breaker = { consecutive_failures = 1000, minimum_calls = 100000, open_max_s = 1 }
retry_budget = { attempts = 2000, per_second = 1000 }
"""


def _configured(ports: dict[str, int], folder: Path) -> str:
    """The hostile upstreams, each with a route of its own."""
    more = {"http1": "", "http2": 'http_version = "2"\ncalls_per_connection = 8\n', "tls": ""}
    text = ""
    tls = f'[upstream.tls]\nca_file = "{folder}/ca.pem"\n'
    for door, extra in more.items():
        for dialect in DIALECTS:
            base = "https://localhost" if door == "tls" else "http://127.0.0.1"
            url, name = f"{base}:{ports[door]}/{dialect}", f"{door}-{dialect}"
            text += upstream(name, url, dialect, more=BARE + extra + (tls if door == "tls" else ""))
            text += _route(name, "max_output_tokens = 256")
    fallback = f'fallback_url = "http://127.0.0.1:{ports["http1"]}/responses"\n'
    url = f"ws://127.0.0.1:{ports['upgrade']}/responses"
    text += upstream("upgrade-responses", url, more=BARE + fallback)
    return text + _route("upgrade-responses")


def _route(name: str, more: str = "") -> str:
    return route(name, more=more).replace('name = "default"', f'name = "{name}"')


def make(
    *,
    quick: bool = False,
    only: str = "",
    every: int = EVERY,
    seconds: float = SECONDS,
    tell: Callable[[str], None],
) -> list[Row]:
    """All rows, or those whose name has `only` in it; a fresh daemon, which connects at once, after `every` attacks."""
    labels = {f"{door}: {name}": one for (door, name), one in ATTACKS.items() if door != "refusals"}
    chosen = [one for label, one in labels.items() if only in label and (label in QUICK or not quick)]
    rows: list[Row] = []
    usual = math.nan
    for at in range(0, len(chosen), every):
        with _staged(tell, _configured) as stage:
            stage.settle()
            if not at:
                usual = stage.measure(4 * seconds)
            stage.usual = usual
            for attack in chosen[at : at + every]:
                stage.attack(attack, seconds)
        rows += stage.rows
    if not quick and only in "refusals: times":
        with _staged(tell, _refusing) as stage:
            stage.settle()
            stage.usual = usual
            stage.waits()
        rows += stage.rows
    return rows


def _refusing(ports: dict[str, int], folder: Path) -> str:
    text = ""
    for case in range(3 * len(WAITS)):
        url = f"http://127.0.0.1:{ports['refusals']}/responses/{case}"
        text += upstream(f"w{case}", url, more=BARE).replace("= 2\n", "= 1\n", 1) + _route(f"w{case}")
    return text


@contextmanager
def _staged(tell: Callable[[str], None], configured: Callable[[dict[str, int], Path], str]) -> Iterator[Stage]:
    with Processes() as processes:
        server = Server(processes.folder)
        try:
            stage = Stage(processes, server, tell)
            with stage.serving(configured(server.ports, processes.folder)):
                yield stage
        finally:
            server.end()


def markdown(rows: list[Row], seconds: float) -> str:
    """The page for docs/."""
    lines = [
        "# Hostile upstreams",
        "",
        "Made by `python tests/end_to_end/hostile_upstream.py --markdown docs/hostile-upstreams.md`; do not edit. Bots",
        "call an HTTP upstream that plays one attack after the other, in each dialect, with breakers and budgets that",
        "never stop them. Beside them a bot that behaves calls another upstream of the same daemon: *others* says how",
        "its calls ended, *p99* how long one took, in all and as a multiple of what it does while the server behaves.",
        "*lag* is the worst lateness of the daemon's loop, *MiB* its most memory. Times are of one run on two cores",
        "that attacker and daemon share with others: they tell orders of magnitude.",
        f"Version {__version__}: {len(rows)} attacks in {seconds:.0f} s, {sum(not row.ok for row in rows)} not borne.",
        "",
    ]
    for door in dict.fromkeys(row.door for row in rows):
        lines += [f"## {_DOORS[door]}", "", "| attack | what bots were told | others | p99, ms | lag, ms | MiB |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_line(row) for row in rows if row.door == door] + [""]
    return "\n".join(lines)


_DOORS: Final = {
    "http1": "HTTP/1.1", "http2": "HTTP/2", "tls": "TLS", "upgrade": "Upgrades, with a `fallback_url`",
    "refusals": "Times to wait",
}  # fmt: skip


def _line(row: Row) -> str:
    wrong = "" if row.ok else f" **NOT BORNE: {'; '.join(row.problems)}**"
    p99 = f"{row.p99:.0f}" + ("" if math.isnan(row.ratio) else f" (x {row.ratio:.1f})")
    cells = (row.name, row.seen + wrong, row.others.split(", slowest")[0], p99, f"{row.lag:.0f}", f"{row.memory:.0f}")
    return f"| {' | '.join(cell.replace('|', '/').replace('<', '&lt;') for cell in cells)} |"


def main(argv: list[str]) -> int:
    """Exit status: 0 when all held, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--quick", action="store_true", help="the few that the tests run")
    parser.add_argument("--only", default="", metavar="WORD", help="attacks whose `door: name` has this in it")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each attack lasts")
    parser.add_argument("--every", type=int, default=EVERY, metavar="N", help="a fresh daemon after so many attacks")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    rows = make(
        quick=arguments.quick, only=arguments.only, every=arguments.every, seconds=arguments.seconds,
        tell=lambda line: print(line, flush=True),
    )  # fmt: skip
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows, time.monotonic() - began), encoding="utf-8")
    wrong = [row for row in rows if not row.ok]
    print(f"{len(rows)} attacks, {len(wrong)} not borne, {time.monotonic() - began:.0f} s")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
