"""The sidecar beside its peers on one simulated upstream: the ratio table of the goals, by one command.

Sets up what is to be had from PyPI, npm and Debian in a cache folder (`XDG_CACHE_HOME`, inference-sidecar-peers),
starts all of it on loopback, measures in turn, and prints ratios with quartiles. A peer that cannot be had is named
with the reason; no figure is made up for it. After every measurement the raw figures are written to a file, so that a
stopped run goes on with `--resume FILE`; that of a finished run prints its tables again. See docs/peers.md.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from common import Verdicts, finish, parser
from peer_ledger import Ledger
from peer_plan import FULL, QUICK, Cell, Scale, cells
from peer_plot import plot
from peer_rows import rows
from peer_stage import Stage, gateways, set_up
from peer_text import whole
from peering import cache_folder


def plan(scale: Scale, repetitions: int) -> list[tuple[int, Cell]]:
    """Every measurement in its order: groups one after another, the ways of each turned by the repetition."""
    found = []
    for repetition in range(repetitions):
        for group in cells(scale):
            turn = repetition * max(1, len(group) // repetitions) % len(group)
            found += [(repetition, cell) for cell in group[turn:] + group[:turn]]
    return found


def measure(ledger: Ledger, scale: Scale, repetitions: int, only: list[str], *, install: bool) -> None:
    """What the ledger does not have yet."""
    missing = ledger.data["missing"].keys()  # of a run that goes on: what was not there is not tried again
    left = [
        (repetition, cell) for repetition, cell in plan(scale, repetitions)
        if not ledger.has(cell.key, repetition) and not cell.needs & missing
    ]  # fmt: skip
    if not left:
        return
    with Stage(ledger, scale, only, install=install) as stage:
        wanted = [(repetition, cell) for repetition, cell in left if stage.has(cell)]
        began = time.monotonic()
        for number, (repetition, cell) in enumerate(wanted):
            if sys.stderr.isatty():
                took = time.monotonic() - began
                print(f"\r{took:5.0f} s  {number}/{len(wanted)}  {repetition}  {cell.key:40}", end="", file=sys.stderr)
            before = time.monotonic()
            figures = stage.measure(cell)
            ledger.note(cell.key, repetition, {**figures, "took_s": round(time.monotonic() - before, 2)})
        if sys.stderr.isatty():
            print(file=sys.stderr)


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return {
        "machine": f"{os.cpu_count()} cores, {model[0] if model else platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}", "Python": platform.python_version(),
        "begun with a load average of": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def main() -> int:
    """Returns 0 when everything that takes part was measured; goals that are missed are told, not punished."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--only", default="", metavar="NAME,...",
                           help="of: sdk, " + ", ".join(one.name for one in gateways()))  # fmt: skip
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--setup-only", action="store_true", help="set up what can be had, say what cannot, end")
    arguments.add_argument("--resume", type=Path, metavar="FILE", help="go on with this run's raw figures")
    arguments.add_argument("--raw", type=Path, metavar="FILE", help="raw figures; none: last-run.json in the cache")
    arguments.add_argument("--svg", type=Path, metavar="FILE", help="draw the ratios")
    arguments.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between this file's marks")
    options = arguments.parse_args()
    only = [name for name in options.only.split(",") if name]
    if options.setup_only:
        return set_up(only)
    scale, repetitions = (QUICK, 1) if options.quick else (FULL, options.repetitions)
    scratch = tempfile.TemporaryDirectory(prefix="sb-peers-")  # a smoke test leaves nothing, and may run twice at once
    home = Path(scratch.name) if options.quick else cache_folder()
    raw = options.resume or options.raw or home / "last-run.json"
    if options.resume is None:
        raw.unlink(missing_ok=True)
    elif not raw.exists():
        raise SystemExit(f"{raw} is not there")
    ledger = Ledger(raw, {"scale": dataclasses.asdict(scale)})
    ledger.data["about"] = ledger.data["about"] or machine()
    measure(ledger, scale, repetitions, only, install=not options.quick)
    found = rows(ledger, scale.levels, scale.most)
    text = whole(ledger, found)
    verdicts = Verdicts()
    failed = [key for key in ledger.data["cells"] if ledger.failure(key)]
    verdicts.judge(f"every measurement that was tried succeeded {failed or ''}".strip(), not failed)
    if options.svg:
        options.svg.write_text(plot(found, ledger))
    if options.markdown:
        fill(options.markdown, text)
    table = [
        {"row": row.goal.row, "what": row.goal.what, "unit": row.goal.unit, "ours": row.ours, "theirs": row.theirs,
         "ratios": row.ratios, "goal": row.goal.goal, "moonshot": row.goal.moonshot, "verdict": row.verdict()}
        for row in found
    ]  # fmt: skip
    return finish({"raw": str(raw), "rows": table, **ledger.data}, verdicts, as_json=options.json, text=text)


BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def fill(path: Path, text: str) -> None:
    """Replace what stands between the two marks; a file without them is refused, one that is not there is made."""
    old = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        raise SystemExit(f"{path} has no place for the tables: {BEGIN} and {END}")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
