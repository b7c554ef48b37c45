"""Our daemon as it ships: accounting, metrics, deadlines and conflation have no switch and are on; so is the log line
of each call, written to a file. What is set: how many connections there are, and timeouts of a minute, armed as any,
so that a stall of the machine ends no call and opens no breaker in the middle of a measurement.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from common import Bench, route, upstream
from peering import Missing, rss_mib


class Sidecar(Bench):
    """A running daemon.

    Args:
        url: of the simulated upstream.
        connections: all of them warm.
        calls: write a log line per call, as it ships.
        authority: PEM file to trust, for ``wss://``.
    """

    def __init__(self, url: str, connections: int, *, calls: bool = True, authority: Path | None = None) -> None:
        super().__init__()
        tls = f"[upstream.tls]\nca_file = {json.dumps(str(authority))}\n" if authority else ""
        self.configuration.write_text(
            f'[frontend]\nendpoint = "{self.endpoint}"\n'
            + ("" if calls else "[log]\ncalls = false\n")
            + upstream("sim", url, warm=connections, maximum=connections) + tls
            + route("sim", timeout_ms=60_000, first_delta_timeout_ms=60_000, idle_timeout_ms=60_000)
        )  # fmt: skip
        self.pid = 0
        try:
            process = self.serve()
            self.pid = process.pid
            self.until(lambda: bool((self.report() or {}).get("ready")), process)
            self.until_connected(connections, "sim")
        except SystemExit as error:
            self.__exit__()
            raise Missing(str(error)[:300]) from error


def per_connection_kib(url: str, few: int, many: int, authority: Path | None) -> dict[str, float]:
    """Resident memory that each further warm connection costs: of two fresh daemons, with few and with many."""
    found = []
    for connections in (few, many):
        with Sidecar(url, connections, authority=authority) as daemon:
            found.append(_at_rest(daemon.pid))
    return {"few_mib": found[0], "many_mib": found[1], "kib": (found[1] - found[0]) * 1024 / (many - few)}


def _at_rest(pid: int) -> float:
    """Once it holds still: what handshakes needed goes back to the system a moment later."""
    before = rss_mib([pid])
    for _ in range(20):
        time.sleep(0.25)
        now = rss_mib([pid])
        if abs(now - before) < 0.02:
            break
        before = now
    return rss_mib([pid])
