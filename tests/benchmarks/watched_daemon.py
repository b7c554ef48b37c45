"""`sidecar`, watched from within by a task that the product knows nothing of: so any tree's daemon can be watched.

    python watched_daemon.py [--lag FILE] [--explain FILE] -- serve -c sidecar.toml

The product is whatever `import sidecar` finds: the caller sets PYTHONPATH.

--lag: how late Trio's timers are. A timer is due every 2 ms by a fixed schedule; those that fall due while the loop
does not come back to it all count, each with its own lateness, so a long stall weighs as much as it lasts. FILE gets
pairs of native int64: when it was due (CLOCK_MONOTONIC, microseconds) and how late it came (microseconds).

--explain: at each SIGUSR2 FILE gets a line of JSON: what the memory is, by type of object and by line of code.
The memory is traced (tracemalloc), so sizes in the process differ from an unwatched one.
"""

from __future__ import annotations

import argparse
import array
import gc
import json
import signal
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

INTERVAL: Final = 0.002
_WRITE_AFTER: Final = 500


async def watch_lag(file: Path) -> None:
    """For ever."""
    import trio

    samples = array.array("q")
    with file.open("wb", buffering=0) as output:
        due = trio.current_time() + INTERVAL
        offset = time.monotonic() - trio.current_time()
        try:
            while True:
                await trio.sleep_until(due)
                now = trio.current_time()
                while due <= now:
                    samples.append(int(1e6 * (due + offset)))
                    samples.append(int(1e6 * (now - due)))
                    due += INTERVAL
                if len(samples) > 2 * _WRITE_AFTER:
                    samples.tofile(output)
                    del samples[:]
        finally:
            samples.tofile(output)


async def explain(file: Path) -> None:
    """For ever: a line at each SIGUSR2."""
    import trio

    with trio.open_signal_receiver(signal.SIGUSR2) as signals:
        async for _ in signals:
            with file.open("a") as output:
                output.write(json.dumps(snapshot()) + "\n")


def snapshot() -> dict[str, Any]:
    """Bytes and counts by type, of what the collector knows and what hangs on it; bytes by line of code."""
    gc.collect()
    queue = gc.get_objects()  # before there is anything of ours
    ours = (tracemalloc.Filter(inclusive=False, filename_pattern=__file__),)
    traced = tracemalloc.take_snapshot().filter_traces(ours)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    here = {id(counts), id(sizes), id(seen), id(queue)}
    for found in queue:
        seen.add(id(found))
    while queue:
        found = queue.pop()
        if id(found) in here:
            continue
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        counts[kind] += 1
        sizes[kind] += sys.getsizeof(found, 0) + (16 if gc.is_tracked(found) else 0)
        if gc.is_tracked(found):
            for child in gc.get_referents(found):
                if id(child) not in seen and not gc.is_tracked(child):
                    seen.add(id(child))
                    queue.append(child)
    lines: Counter[str] = Counter()
    for line in traced.statistics("lineno"):
        frame = line.traceback[0]
        lines["/".join(frame.filename.split("/")[-3:]) + f":{frame.lineno}"] += line.size
    return {"types": {kind: [counts[kind], sizes[kind]] for kind in counts}, "lines": dict(lines)}


def main() -> int:
    """Returns the product's exit status."""
    cut = sys.argv.index("--")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lag", type=Path)
    parser.add_argument("--explain", type=Path)
    options = parser.parse_args(sys.argv[1:cut])
    if options.explain:
        tracemalloc.start()
    import trio

    original: Any = trio.run

    def run(function: Callable[..., Awaitable[Any]], *args: Any, **keywords: Any) -> Any:
        async def watched(*args: Any) -> Any:
            if options.lag:
                trio.lowlevel.spawn_system_task(watch_lag, options.lag)
            if options.explain:
                trio.lowlevel.spawn_system_task(explain, options.explain)
            return await function(*args)

        return original(watched, *args, **keywords)

    trio.run = run  # type: ignore[assignment]

    from sidecar.__main__ import main as product

    return product(sys.argv[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
