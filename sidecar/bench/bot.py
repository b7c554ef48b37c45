"""One bot process: `python -m sidecar.bench.bot`. Its job comes as a line of JSON on standard input.

It says ``ready`` when it is connected, begins at the instant it is then told, writes what it saw to the job's file
and ends. Its cyclic collector is off while calls run: a pause of the one who measures would be taken for the daemon's.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from sidecar.bench.alarm import mono_us
from sidecar.bench.job import Job
from sidecar.bench.recorder import Recorder
from sidecar.errors import SidecarError

KINDS: Final = {"async": "by_asyncio", "blocking": "by_threads", "wire": "by_wire"}
_AFTER_US: Final = 150_000


def main() -> int:
    """Returns 0 when the result was written."""
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)

    def ready() -> tuple[int, Recorder]:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        word = sys.stdin.readline()
        if not word:  # whoever started us is gone
            raise SystemExit(1)
        start_us = int(word)
        begins_us = start_us + int(job.load.warm_up_s * 1e6)
        gc.collect()
        gc.freeze()
        gc.disable()
        return start_us, Recorder(begins_us, begins_us + int(job.load.for_s * 1e6), stamps=job.load.stamps)

    try:
        recorder = importlib.import_module(f"sidecar.bench.{KINDS[job.load.client]}").drive(job, ready)
    except SidecarError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    # What is counted below must not fall into the window in which this process is watched.
    time.sleep(max(0, recorder.ends_us + _AFTER_US - mono_us()) / 1e6)
    Path(job.result).write_bytes(msgspec.json.encode(recorder.result()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
