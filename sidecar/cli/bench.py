"""`sidecar bench`: open-loop load against the daemon, with percentiles, costs, and a comparison of two results.

Exit status: 0 it ran and every call had its terminal (comparing: nothing is slower than allowed); 1 otherwise; 2 wrong
usage, or results that cannot be compared; 3 no daemon at --endpoint; 78 bad configuration; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sidecar.bench.flags import parser
from sidecar.errors import ConfigurationError, EndpointError

if TYPE_CHECKING:
    from sidecar.bench.load import Load
    from sidecar.bench.result import Result

EXIT_USAGE, EXIT_NO_DAEMON, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 2, 3, 78, 130


def run(argv: list[str]) -> int:
    """Run the load, or compare two results; the exit status is in this module's docstring."""
    given = vars(parser().parse_args(argv))
    try:
        return _run(given)
    except KeyboardInterrupt:
        print("sidecar bench: interrupted; everything that was started is ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(given: dict[str, Any]) -> int:
    from sidecar.bench.plan import Usage

    try:
        if "compare" in given:
            return _compare(given)
        for name in ("fail_above", "force"):
            if name in given:
                raise Usage(f"--{name.replace('_', '-')} belongs to --compare A.json B.json")
        return _bench(given)
    except (Usage, EndpointError) as problem:
        return _fail(problem, EXIT_USAGE)
    except ConfigurationError as problem:
        return _fail(problem, EXIT_CONFIGURATION)


def _bench(given: dict[str, Any]) -> int:
    from sidecar.bench.plan import Usage, ask_before_spending, earlier, load_of, target_of
    from sidecar.bench.processes import machine
    from sidecar.bench.result import finished
    from sidecar.bench.rig import BenchFailed, NobodyThere
    from sidecar.bench.run import repetition

    target = target_of(given)
    load = load_of(given, target)
    repetitions = given.get("repetitions", 1)
    if not 1 <= repetitions <= 1000:
        raise Usage(f"--repetitions: {repetitions} is not between 1 and 1000")
    ask_before_spending(given, target, load, repetitions)
    out: Path | None = given.get("out")
    if out is not None:
        _must_be_writable(out)
    before = earlier(out, load, target) if "append" in given else []
    signal.signal(signal.SIGTERM, _interrupt)
    show = _Progress(repetitions)
    runs = []
    facts = machine()
    try:
        for nth in range(repetitions):
            show.nth = nth
            runs.append(repetition(target, _with_seed(load, len(before) + nth), show))
    except NobodyThere as problem:
        return _fail(problem, EXIT_NO_DAEMON)
    except (BenchFailed, OSError) as problem:
        return _fail(problem, 1)
    finally:
        show.clear()
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result = finished(at=at, target=target, load=load, machine=facts, runs=[*before, *runs])
    return _tell(result, as_json="json" in given, out=out)


def _with_seed(load: Load, nth: int) -> Load:
    import msgspec

    return msgspec.structs.replace(load, seed=load.seed + nth)


def _must_be_writable(path: Path) -> None:
    """Before minutes are spent on a result that cannot be kept."""
    from sidecar.bench.plan import Usage

    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise Usage(f"--out {path}: cannot be written; name a file in a folder that exists and is yours")


def _tell(result: Result, *, as_json: bool, out: Path | None) -> int:
    import msgspec

    from sidecar.bench.picture import render

    encoded = msgspec.json.encode(result)
    if as_json:
        print(encoded.decode(), flush=True)
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print(render(result, width=min(width, 140), unicode=_speaks_unicode()), flush=True)
    if out is not None:
        try:
            out.write_bytes(encoded + b"\n")
        except OSError as problem:
            return _fail(f"--out {out}: {problem.strerror}", 1)
    return 0 if result.ok else 1


def _compare(given: dict[str, Any]) -> int:
    import msgspec

    from sidecar.bench.compare import ENOUGH, compare, render
    from sidecar.bench.plan import Usage
    from sidecar.bench.result import Unreadable, read

    allowed = {"compare", "fail_above", "force", "json"}
    strange = sorted(set(given) - allowed)
    if strange:
        raise Usage(f"--compare runs nothing: leave --{strange[0].replace('_', '-')} out")
    limit: float | None = given.get("fail_above")
    if limit is not None and not 1 <= limit < float("inf"):
        raise Usage(f"--fail-above {limit:g}: a ratio of 1 or more, 1.1 for ten per cent slower")
    try:
        a, b = (read(path) for path in given["compare"])
    except Unreadable as problem:
        raise Usage(str(problem)) from None
    found = compare(a, b)
    if found.differences and "force" not in given:
        raise Usage(f"the loads differ ({'; '.join(found.differences)}): their figures say nothing about each other. "
                     "Run the same load twice, or say --force")  # fmt: skip
    fewest = min(len(a.repetitions), len(b.repetitions))
    if limit is not None and fewest < ENOUGH:
        raise Usage(f"--fail-above needs to know the noise: {fewest} repetitions are too few, "
                     f"run both with --repetitions {ENOUGH}")  # fmt: skip
    if limit is not None and not found.figures:
        raise Usage("--fail-above: the two results have no figure in common")
    failed = limit is not None and bool(found.above(limit))
    if "json" in given:
        print(json.dumps({**msgspec.to_builtins(found), "fail_above": limit, "failed": failed}), flush=True)
    else:
        print(render(found, fail_above=limit), flush=True)
    return 1 if failed else 0


class _Progress:
    """One line on standard error while it runs, on a terminal only."""

    def __init__(self, repetitions: int) -> None:
        self.repetitions = repetitions
        self.nth = 0
        self.shown = False
        self.quiet = not sys.stderr.isatty()

    def __call__(self, at_s: float, of_s: float, share: float | None, mib: float | None) -> None:
        if self.quiet:
            return
        self.shown = True
        which = f"{self.nth + 1} of {self.repetitions}, " if self.repetitions > 1 else ""
        daemon = f", daemon {share:4.0%} of a core" if share is not None else ""
        memory = f", {mib:.0f} MiB" if mib is not None else ""
        print(
            f"\r\x1b[K  {which}{max(0.0, at_s):4.1f} of {of_s:g} s{daemon}{memory}", end="", file=sys.stderr, flush=True
        )

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _speaks_unicode() -> bool:
    try:
        "█".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(problem: object, status: int) -> int:
    print(f"sidecar bench: {problem}", file=sys.stderr)
    return status
