"""`relay.c` as a process of a benchmark, in the place of the daemon: `CRelay(bench, service.url(), connections=64)`.

It answers on `bench.endpoint` as far as `common.Bot` and the clients of this project need; what it leaves out stands at
the head of its source.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.benchmarks.yardsticks.build import build
from tests.benchmarks.yardsticks.upstream import Bench


class CRelay:
    """A running `relay`; it ends with `bench`, with this process, and after `for_s` at the latest.

    Args:
        bench: where it belongs; it binds `endpoint`.
        endpoint: ipc address, `bench.endpoint`.
        url: `ws://127.0.0.1:PORT/v1/responses...`, where all connections go; its query may steer the upstream.
        connections: how many, all of them standing when this returns.
        for_s: seconds.

    Raises:
        Missing: it cannot be compiled here.
    """

    def __init__(self, bench: Bench, endpoint: str, url: str, *, connections: int, for_s: float = 1800) -> None:
        parts = urlsplit(url)
        if parts.scheme != "ws" or parts.hostname != "127.0.0.1":
            raise ValueError(f"the yardstick knows ws://127.0.0.1 only, not {url}")
        ready = bench.folder / "c-relay.ready"
        ready.unlink(missing_ok=True)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        argv = [
            str(build("relay")), "--endpoint", endpoint, "--connect", f"{parts.hostname}:{parts.port}{path}",
            "--connections", str(connections), "--for-s", str(int(for_s)), "--ready-file", str(ready),
        ]  # fmt: skip
        self.process = bench.spawn(argv, log="c-relay.log")
        bench.until(lambda: ready.exists() and ready.read_text().strip() != "", self.process, "c-relay.log")
