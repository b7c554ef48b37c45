"""The fault table, every row through the real daemon over real sockets: a scorecard.

`python tests/end_to_end/scorecard.py [--row N ...] [--way WAY ...] [--quick] [--json] [--markdown FILE]`. For each row,
over each of the ways (WebSocket, HTTP/1.1, HTTP/2), one daemon (`sidecar serve`), two simulators (`sidecar sim`) as
primary and secondary, a bot that makes the calls and judges what it is told (the text of a `done` word for word), and a
bystander that goes on calling by another route. Rescue where a second target exists, a bounded clean error where not,
never a truncated success, never a hammer, healthy afterwards.
Exit status 0 only if every line passes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[2])

from tests.end_to_end import score_answers, score_calls, score_doors, score_lines, score_outages
from tests.end_to_end.processes import Processes
from tests.end_to_end.score_case import WAYS, Score
from tests.end_to_end.score_page import put_section
from tests.end_to_end.score_stage import Stage
from tests.end_to_end.score_table import markdown, matrix

#: Each of these files enters its rows into the one table.
FILES = (score_calls, score_answers, score_outages, score_doors, score_lines)
ROWS = score_calls.ROWS
#: So many rows at once: most of their time they wait.
AT_ONCE = 5
#: Rows in which it matters how a connection ends: HTTP/2 by ALPN over TLS there, with prior knowledge elsewhere.
_OVER_TLS = (5, 8, 18, 21)


def play(
    numbers: Collection[int] = (),
    *,
    ways: Collection[str] = tuple(WAYS),
    quick: bool = False,
    at_once: int = AT_ONCE,
    tell: Callable[[Score], None],
) -> list[Score]:
    """All lines of these rows (default: of all), in their order.

    Args:
        numbers: of rows.
        ways: of `WAYS`.
        quick: shorter outages, and one pair of simulators for all rows: half of the time goes into their starts.
        at_once: rows.
        tell: given each line when it is there.
    """
    lock = threading.Lock()

    def safely(score: Score) -> None:
        with lock:
            tell(score)

    def one(chosen: tuple[int, str]) -> list[Score]:
        number, way = chosen
        fault, tls = ROWS[number].fault, way == "http2" and not quick and number in _OVER_TLS
        with Stage(number, fault, quick=quick, tell=safely, ports=ports, way=way, tls=tls) as stage:
            try:
                ROWS[number].play(stage)
            except Exception as error:
                lost = Score(number, fault, "could not be played", "to be played", way)
                lost.problems.append(f"{error!r:.2000}")
                stage.scores.append(lost)
                safely(lost)
        return stage.ended()

    # The long ones first: what is short fills the gaps.
    rows = sorted(numbers or ROWS, key=lambda number: (number not in (15, 24, 2, 14), number))
    chosen = [(number, way) for number in rows for way in WAYS if way in ways]
    ports: list[int] = []
    with contextlib.ExitStack() as ending:
        if quick and len(chosen) > 1:
            shared = ending.enter_context(Processes())
            ports += [shared.relay(*Stage.PACE, name=name) for name in ("primary", "secondary")]
        pool = ending.enter_context(ThreadPoolExecutor(at_once))
        found = dict(zip(chosen, pool.map(one, chosen), strict=True))
    shown = list(WAYS)
    return [score for key in sorted(found, key=lambda key: (key[0], shown.index(key[1]))) for score in found[key]]


def line(score: Score) -> str:
    """For the terminal."""
    variant = ", ".join(part for part in (WAYS[score.way].title, score.dialect, score.variant) if part)
    text = f"{'pass' if score.ok else 'FAIL'} {score.row:>2} {score.fault} [{variant}]: {score.seen}"
    text += f" | attempts {score.attempts} | {score.seconds:.2f} s"
    return text + "".join(f"\n        {problem}" for problem in score.problems)


def main(argv: list[str]) -> int:
    """Exit status: 0 when every line passes, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", action="append", type=int, choices=sorted(ROWS), help="only this (may be repeated)")
    parser.add_argument("--way", action="append", choices=tuple(WAYS), help="only this (may be repeated)")
    parser.add_argument(
        "--quick", action="store_true", help="shorter outages, fewer variants, one pair of simulators for all rows"
    )
    parser.add_argument("--json", action="store_true", help="all of it as JSON on stdout")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    told = sys.stderr if arguments.json else sys.stdout
    scores = play(
        arguments.row or (),
        ways=arguments.way or WAYS,
        quick=arguments.quick,
        tell=lambda score: print(line(score), file=told, flush=True),
    )
    seconds = time.monotonic() - began
    wrong = [score for score in scores if not score.ok]
    if arguments.markdown is not None:
        put_section(arguments.markdown, "The fault table", markdown(scores, seconds))
    if arguments.json:
        lines = [score.as_dict() for score in scores]
        rows_ok = {number: not any(one.row == number for one in wrong) for number in sorted({s.row for s in scores})}
        said = {"ok": bool(scores) and not wrong, "seconds": round(seconds, 1), "rows": rows_ok, "lines": lines}
        print(json.dumps(said))
    else:
        print("\n".join(matrix(scores)))
        rows = len({score.row for score in scores})
        print(f"{len(scores)} lines of {rows} rows, {len(wrong)} wrong, {seconds:.0f} s")
    return 1 if wrong or not scores else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
