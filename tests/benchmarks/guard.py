"""What a token costs on its way through the daemon, in counts that are the same on every machine.

Python calls, C calls and bytes held per token, in memory and in virtual time (`tests/fakes/token_path.py` says what is
counted and how the bytes get in), beside the committed budget. The test suite holds the path to that budget; here it
is looked at, compared with another tree, and written anew. `--instructions` adds CPU instructions per token, counted
by valgrind's callgrind where that is installed: nearly, not exactly, the same from run to run, hence not in the suite.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from common import ROOT, Verdicts, finish, parser, table

import msgspec  # isort: skip

from tests.fakes import token_budget
from tests.fakes.token_path import DIALECTS, LARGE, SHAPES, STREAMS, WAYS, Counts, count_way

_PATH: Final = Path("tests/fakes/token_path.py")
#: Passes of the two replays whose difference is taken: bringing the daemon up cancels out.
_REPLAYS: Final = (100, 400)


def of_tree(tree: Path) -> dict[str, Counts]:
    """The same counts of another tree's product."""
    done = subprocess.run(
        [sys.executable, str(_path_of(tree))], capture_output=True, check=False, env=_environ(tree), cwd="/"
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-2000:]
        raise SystemExit(f"{tree}: {said}\nA tree without {_PATH} must take its bytes as this one does.")
    return msgspec.json.decode(done.stdout, type=dict[str, Counts])


def instructions(tree: Path, dialect: str, shape: str, *, tls: bool) -> float | None:
    """CPU instructions per token by callgrind; None without valgrind."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return None
    counted = []
    for passes in _REPLAYS:
        command = [
            valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, str(_path_of(tree)),
            "--replay", str(passes), "--dialect", dialect, "--shape", shape, *(["--tls"] if tls else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environ(tree), cwd="/")
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or found is None:
            raise SystemExit(f"callgrind: {done.stderr[-2000:]}")
        counted.append(int(found[1]))
    per_pass = {"one": 1, "sixteen": STREAMS, "large": LARGE}[shape]
    return (counted[1] - counted[0]) / (_REPLAYS[1] - _REPLAYS[0]) / per_pass


def _path_of(tree: Path) -> Path:
    """The tree's own, which knows its seam; ours where it has none."""
    return tree / _PATH if (tree / _PATH).exists() else ROOT / _PATH


def _environ(tree: Path) -> dict[str, str]:
    """Where the product comes from `tree`, and what `tree` lacks of tests from here."""
    return {**os.environ, "PYTHONPATH": f"{tree}:{ROOT}", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> int:
    """Returns 0 when the path costs what was agreed on."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--write", action="store_true", help="make what is found the budget")
    arguments.add_argument("--made-of", metavar="WAY", help="list the calls of one way, as 'responses one'")
    arguments.add_argument("--against", type=Path, metavar="TREE", help="count another tree's product, too")
    arguments.add_argument("--instructions", action="store_true", help="by callgrind: a minute for each way and tree")
    options = arguments.parse_args()
    ways = [way for way in WAYS if not options.quick or "responses" in way]
    found = {way: count_way(way) for way in ways}
    if options.write:
        token_budget.save({way: found.get(way) or count_way(way) for way in WAYS})
    budget = token_budget.load()
    other = of_tree(options.against.resolve()) if options.against else {}
    verdicts = Verdicts()
    said: list[str] = []
    for way in ways:
        complaints = token_budget.complaints(found[way], budget[way])
        said += [f"{way}: {complaint}" for complaint in complaints]
        verdicts.judge(f"{way}: as agreed on", not complaints)
    rows = [_row(way, found[way], other.get(way)) for way in ways]
    result: dict[str, Any] = {"counts": msgspec.to_builtins(found), "against": msgspec.to_builtins(other)}
    against = ["Python, other tree", "C, other tree", "bytes, other tree"] if other else []
    text = "per token\n" + table(rows, head=["way", "Python calls", "C calls", "bytes held", *against])
    if options.instructions:
        trees = {"here": ROOT, **({"other tree": options.against.resolve()} if options.against else {})}
        shapes = SHAPES[:1] if options.quick else SHAPES
        chosen = [(dialect, shape, tls) for dialect in DIALECTS for shape in shapes for tls in (False, True)]
        chosen = chosen[: 1 if options.quick else None]
        counted = {
            f"{dialect} {shape}{' tls' if tls else ''}": {
                name: instructions(tree, dialect, shape, tls=tls) for name, tree in trees.items()
            }
            for dialect, shape, tls in chosen
        }
        result["instructions"] = counted
        if shutil.which("valgrind") is None:
            text += "\n\ninstructions: valgrind is not installed"
        else:
            text += "\n\nCPU instructions per token\n" + table(
                [[way, *by_tree.values()] for way, by_tree in counted.items()], head=["way", *trees]
            )
    if options.made_of:
        calls = [[name, times] for name, times in found[options.made_of].made_of.items()]
        text += f"\n\n{options.made_of} is made of\n" + table(calls, head=["", "per token"])
    if said:
        text += "\n\n" + "\n".join(said)
    return finish({**result, "complaints": said}, verdicts, as_json=options.json, text=text)


def _row(way: str, here: Counts, other: Counts | None) -> list[object]:
    row: list[object] = [way]
    for counts in (here, other) if other is not None else (here,):
        held = "-" if counts.held_bytes is None else round(counts.held_bytes)
        row += [counts.python, counts.c, held]
    return row


if __name__ == "__main__":
    sys.exit(main())
