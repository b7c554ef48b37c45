"""`upstream.c` as a process of a benchmark: `service = CUpstream(bench, tokens=60)`; `bench` is a `common.Bench`.

It takes the place of `bench.relay()` where nothing is to go wrong: the same `port`, `process`, `url(...)` and
`counters()`, whose names are those of `sidecar sim`.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks.yardsticks.build import build


class Bench(Protocol):
    """What is needed of a `common.Bench`."""

    folder: Path

    def spawn(self, argv: Sequence[str], *, log: str) -> subprocess.Popen[bytes]:
        """Start a program that ends with the bench and with this process."""
        ...

    def until(
        self, condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, log: str = "daemon.log"
    ) -> None:
        """Wait."""
        ...


class CUpstream:
    """A running `upstream`; it ends with `bench`, with this process, and after `for_s` at the latest.

    Args:
        bench: where it belongs.
        name: of its files in the bench's folder.
        for_s: seconds.
        cert: PEM file of a certificate, for wss and https.
        key: PEM file of its key.
        flags: how it answers unless the URL or the prompt says otherwise: tokens, cadence_us, jitter, ttft_us, stamp.

    Raises:
        Missing: it cannot be compiled here.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        name: str = "upstream",
        for_s: float = 1800,
        cert: Path | None = None,
        key: Path | None = None,
        **flags: float,
    ) -> None:
        port_file = bench.folder / f"{name}.port"
        argv = [str(build("upstream", tls=cert is not None)), "--port-file", str(port_file), "--for-s", str(for_s)]
        self.secure = cert is not None and key is not None
        if self.secure:
            argv += ["--cert", str(cert), "--key", str(key)]
        for flag, value in flags.items():
            argv += ["--" + flag.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(int(value))]
        self.process = bench.spawn(argv, log=f"{name}.log")
        bench.until(lambda: port_file.exists() and port_file.read_text().strip() != "", self.process, f"{name}.log")
        self.port = int(port_file.read_text())

    def url(self, path: str = "/v1/responses", **query: object) -> str:
        """Its WebSocket address (``/v1/chat``: the other dialect), steered by `query`."""
        return f"{'wss' if self.secure else 'ws'}://127.0.0.1:{self.port}{path}{_asked(query)}"

    def http(self, path: str = "/v1", **query: object) -> str:
        """Its HTTP address; as a base URL of an SDK without `query`."""
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}{path}{_asked(query)}"

    def counters(self) -> dict[str, Any]:
        """What it counted. Over TLS nothing is verified: it is our own child."""
        context = ssl._create_unverified_context() if self.secure else None
        with urllib.request.urlopen(self.http("/_stats"), timeout=10, context=context) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def _asked(query: dict[str, object]) -> str:
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    return f"?{asked}" if asked else ""
