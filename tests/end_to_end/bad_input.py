"""What every border of the product answers to bad input, tried on the real thing.

`python tests/end_to_end/bad_input.py [--markdown docs/bad-input.md] [--json]`, two minutes and a half. A real daemon
and a real relay run as processes of their own; beside every row a bot that behaves goes on calling. The table says what
was tried, what was answered and how the other bot fared. Exit status 1 when an answer is not one of those documented,
another bot was harmed, or a daemon died.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[2])

from sidecar import __version__
from tests.end_to_end.bad_files import configuration, credentials, endpoints
from tests.end_to_end.bad_upstream import handshakes, upstream_frames
from tests.end_to_end.bad_wire import wire
from tests.end_to_end.borders import Row, Table
from tests.end_to_end.processes import Processes, route, upstream

BORDERS = ("wire", "configuration", "upstream frames", "handshake", "credentials", "endpoint path")


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def healthy(table: Table) -> Iterator[tuple[Processes, Callable[[], int]]]:
    """A relay that answers, a daemon before it, and the bot that behaves."""
    with Processes() as processes:
        port = processes.relay("--ttft-ms", "5", "--cadence-ms", "1", "--tokens", "6", "--for-s", "600")
        daemon = processes.daemon(upstream("good", f"ws://127.0.0.1:{port}/v1/responses") + route("good"))
        with table.beside(processes.endpoint, lambda: daemon.poll() is None and processes.report() is not None):
            yield processes, lambda: resident(daemon.pid)


def make(*, quick: bool = False, borders: tuple[str, ...] = BORDERS, tell: Callable[[str], None]) -> list[Row]:
    """All rows of these borders."""
    table = Table(quick=quick, tell=tell)
    if {"wire", "configuration", "endpoint path"} & set(borders):
        with healthy(table) as (processes, memory):
            if "wire" in borders:
                wire(table, processes.endpoint, memory)
            if "configuration" in borders:
                configuration(table, processes)
            if "endpoint path" in borders:
                endpoints(table, processes)
    if "upstream frames" in borders:
        upstream_frames(table)
    if "handshake" in borders:
        handshakes(table)
    if "credentials" in borders:
        credentials(table)
    return sorted(table.rows, key=lambda row: BORDERS.index(row.border))


def markdown(rows: list[Row], seconds: float) -> str:
    """The table for docs/."""
    lines = [
        "# Bad input at every border",
        "",
        "Made by `python tests/end_to_end/bad_input.py --markdown docs/bad-input.md`; do not edit. A real daemon, a",
        "real relay, and beside each row a bot that behaves and goes on calling: *others* says how its calls ended",
        "meanwhile, and how long a ping of it took. Times are of one run on a small shared machine.",
        f"Version {__version__}: {len(rows)} rows in {seconds:.0f} s, {sum(not row.ok for row in rows)} of them wrong.",
    ]
    for border in BORDERS:
        mine = [row for row in rows if row.border == border]
        if mine:
            lines += [
                "",
                f"## {border[0].upper()}{border[1:]}",
                "",
                "| tried | answered | ms | others |",
                "|---|---|---|---|",
            ]
            lines += map(_line, mine)
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    cells = (row.tried, row.answered + _wrong(row), f"{row.ms:.0f}", row.others)
    return f"| {' | '.join(map(_cell, cells))} |"


def _wrong(row: Row) -> str:
    return "" if row.ok else f" **WRONG: {'; '.join(row.problems)}**"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main(argv: list[str]) -> int:
    """Exit status: 0 when every answer is as documented, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on stdout")
    parser.add_argument("--quick", action="store_true", help="the shortened form that the tests run")
    parser.add_argument("--border", action="append", choices=BORDERS, help="only this one (may be repeated)")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    rows = make(
        quick=arguments.quick,
        borders=tuple(arguments.border or BORDERS),
        tell=lambda line: print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True),
    )
    seconds = time.monotonic() - began
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows, seconds), encoding="utf-8")
    wrong = [row for row in rows if not row.ok]
    if arguments.json:
        print(json.dumps({"ok": not wrong, "seconds": round(seconds, 1), "rows": [row.as_dict() for row in rows]}))
    else:
        print(f"{len(rows)} rows, {len(wrong)} wrong, {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
