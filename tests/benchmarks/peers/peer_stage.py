"""Everything that runs during the measurements: upstreams, our daemons, the peers, and the processes that make load."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from common import Bench
from peer_bifrost import Bifrost
from peer_c_relay import start_relay
from peer_ledger import Ledger
from peer_litellm import LiteLLM
from peer_nginx import Nginx, NginxAuto
from peer_plan import OURS, QUICK, Cell, Scale
from peer_portkey import Portkey
from peer_sidecar import Sidecar, per_connection_kib
from peer_tensorzero import TensorZero
from peering import (
    Gateway,
    Missing,
    Started,
    Target,
    answers,
    free_port,
    python_environment,
    python_version,
    rss_mib,
    until,
)

from tests.benchmarks.yardsticks import build
from tests.benchmarks.yardsticks.upstream import CUpstream

_HERE: Final = Path(__file__).resolve().parent
#: Seconds for one measurement, beyond which its worker is ended.
PATIENCE: Final = 150.0
SDK: Final = ("openai[realtime,aiohttp]>=3.54", "pydantic>=2")
SDK_SETTINGS: Final = (
    "AsyncOpenAI as its README makes it, one client for all streams, warm connections, max_retries=0",
    "sdk-chat-aiohttp: its aiohttp transport, which the README names for concurrency",
)


def gateways() -> list[Gateway]:
    """All of them, in no order that matters."""
    return [Nginx(), NginxAuto(), Portkey(), TensorZero(), LiteLLM(), Bifrost()]


def set_up(only: Sequence[str]) -> int:
    """Install what can be had and say so; 0 when nothing that was named is missing."""
    missing = 0
    for gateway in gateways():
        if only and gateway.name not in only:
            continue
        try:
            print(f"{gateway.name} {gateway.setup()}", flush=True)
        except Missing as error:
            missing += 1
            print(f"{gateway.name} missing: {error}", flush=True)
    if not only or "sdk" in only:
        try:
            print(f"sdk {python_version(python_environment('openai', SDK), 'openai')}", flush=True)
        except Missing as error:
            missing += 1
            print(f"sdk missing: {error}", flush=True)
    return min(1, missing) if only else 0


class Worker:
    """A `load_worker.py` with the given interpreter."""

    def __init__(self, python: str | Path, folder: Path, name: str, **environ: str) -> None:
        self._argv: list[str | Path] = [python, _HERE / "load_worker.py"]
        self._folder, self._name, self._environ = folder, name, environ
        self._process: subprocess.Popen[bytes] | None = None

    def do(self, order: dict[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """One measurement; ``failed`` says why there is none."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            return {"failed": "the load's process had ended"}
        ready, _, _ = select.select([process.stdout], [], [], patience)
        line = process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            log = self._folder / f"{self._name}.log"
            said = log.read_text(errors="replace")[-200:]
            return {"failed": f"not done after {patience:.0f} s" if not ready else f"the load's process ended: {said}"}
        found: dict[str, Any] = json.loads(line)
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._folder / f"{self._name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in self._argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, "NO_PROXY": "*", **self._environ},
            )  # fmt: skip
        return self._process

    def stop(self) -> None:
        """End it; the next order starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Stage:
    """All that runs: ``with Stage(...) as stage: stage.measure(cell)``. What is not to be had goes into the ledger.

    Args:
        ledger: takes versions, settings and what is missing.
        scale: how many connections our daemons keep.
        only: names of peers; none of them: all.
        setup: also set up what can be installed.
    """

    def __init__(self, ledger: Ledger, scale: Scale, only: Sequence[str], *, install: bool) -> None:
        self._ledger, self._scale, self._only, self._install = ledger, scale, only, install
        self._stack = contextlib.ExitStack()
        self._daemons: dict[str, Sidecar] = {}
        self._peers: dict[str, tuple[Gateway, Started, int]] = {}
        self._sdk: Worker | None = None
        self._authority: Path | None = None

    def __enter__(self) -> Stage:
        try:
            self._raise_curtain()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ask(self, name: str) -> None:
        if name in self._ledger.data["missing"]:
            raise Missing(self._ledger.data["missing"][name])
        if not self._install or (self._only and name not in self._only):
            raise Missing("not asked for")

    def _lacks(self, name: str, why: object) -> None:
        self._ledger.data["missing"][name] = str(why)
        self._ledger.save()
        print(f"missing: {name}: {why}", file=sys.stderr, flush=True)

    def _raise_curtain(self) -> None:
        self._bench = self._stack.enter_context(Bench())
        folder = self._bench.folder
        flags: dict[str, Any] = {
            "tokens": self._scale.tokens,
            "cadence_us": 16667,
            "jitter": 0.3,
            "ttft_us": 0,
            "stamp": 1,
        }
        self._upstream = CUpstream(self._bench, for_s=7200, **flags)
        launched = self._launch_gateways(folder)  # the slowest start, so they start first
        self._secure = self._make_secure(folder, flags)
        connections = self._scale.most + 16 if self._scale is not QUICK else self._scale.most
        self._start_daemon("shipped", self._upstream, connections, calls=True)
        self._start_daemon("quiet", self._upstream, connections, calls=False)
        if self._secure is not None:
            self._start_daemon("tls", self._secure, connections, calls=True)
        self._start_relay()
        environ = {"SSL_CERT_FILE": str(self._authority)} if self._authority else {}
        self._ours = Worker(sys.executable, folder, "ours", **environ)
        self._stack.callback(self._ours.stop)
        self._set_up_sdk(folder, environ)
        for gateway, started, port in launched:
            self._await_gateway(gateway, started, port)

    def _make_secure(self, folder: Path, flags: dict[str, Any]) -> CUpstream | None:
        try:
            import trustme

            authority = trustme.CA()
            issued = authority.issue_cert("127.0.0.1", "localhost")
            issued.private_key_pem.write_to_path(folder / "key.pem")
            for place, blob in enumerate(issued.cert_chain_pems):
                blob.write_to_path(folder / "cert.pem", append=place > 0)
            authority.cert_pem.write_to_path(folder / "ca.pem")
            found = CUpstream(
                self._bench, name="secure", for_s=7200, cert=folder / "cert.pem", key=folder / "key.pem", **flags
            )
        except (ImportError, build.Missing) as error:
            self._lacks("wss", f"no upstream with TLS: {str(error).splitlines()[0]}")
            return None
        self._authority = folder / "ca.pem"
        return found

    def _start_daemon(self, name: str, upstream: CUpstream, connections: int, *, calls: bool) -> None:
        authority = self._authority if upstream.secure else None
        self._daemons[name] = self._stack.enter_context(
            Sidecar(upstream.url(stamp=1), connections, calls=calls, authority=authority)
        )

    def _start_relay(self) -> None:
        self._relay: tuple[str, int] | None = None
        try:
            self._relay = start_relay(self._bench, self._upstream, 32)
        except (Missing, build.Missing) as error:
            self._lacks("c-relay", str(error).splitlines()[0])

    def _set_up_sdk(self, folder: Path, environ: dict[str, str]) -> None:
        try:
            self._ask("sdk")
            python = python_environment("openai", SDK)
            self._ledger.data["versions"]["sdk"] = python_version(python, "openai")
            self._ledger.data["settings"]["sdk"] = list(SDK_SETTINGS)
        except Missing as error:
            self._lacks("sdk", error)
            return
        self._sdk = Worker(python, folder, "sdk", **environ)
        self._stack.callback(self._sdk.stop)

    def _launch_gateways(self, folder: Path) -> list[tuple[Gateway, Started, int]]:
        launched = []
        for gateway in gateways():
            try:
                self._ask(gateway.name)
                self._ledger.data["versions"][gateway.name] = gateway.setup()
                self._ledger.data["settings"][gateway.name] = list(gateway.settings)
                port = free_port()
                started = gateway.launch(folder, port, self._upstream.port)
            except Missing as error:
                self._lacks(gateway.name, error)
                continue
            self._stack.callback(started.stop)
            launched.append((gateway, started, port))
        return launched

    def _await_gateway(self, gateway: Gateway, started: Started, port: int) -> None:
        try:
            until(lambda: answers(gateway.target(port, self._upstream.port)), started)
        except Missing as error:
            self._lacks(gateway.name, error)
        else:
            self._peers[gateway.name] = (gateway, started, port)

    # -------------------------------------------------------------------------------------------- measuring

    def has(self, cell: Cell) -> bool:
        """Whether who is to be measured is here."""
        if cell.group == "memory":
            return cell.way == "ws" or self._secure is not None
        if cell.way.startswith("sdk") and self._sdk is None:
            return False
        return self._place(cell.way) is not None

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Its figures, or why there are none, as ``failed``."""
        if cell.group == "memory":
            return self._memory(cell)
        order = self._order(cell)
        worker = self._sdk if order["way"].startswith("sdk") else self._ours
        assert worker is not None
        sampler = Sampler(order["pids"])
        with sampler:
            found = worker.do(order)
        if order["kind"] == "latency" and "failed" not in found:
            expected = order["streams"] * order["tokens"]
            if found["tokens"] != expected or found["first_us"].get("n") != order["streams"]:
                return {"failed": f"{found['tokens']} tokens of {expected}"}
        return {**found, "rss_mib": sampler.peak}

    def _memory(self, cell: Cell) -> dict[str, Any]:
        upstream = self._upstream if cell.way == "ws" else self._secure
        assert upstream is not None
        asked = dict(cell.figures)
        authority = self._authority if upstream.secure else None
        try:
            return dict(per_connection_kib(upstream.url(), asked["few"], asked["many"], authority))
        except Missing as error:
            return {"failed": str(error)}

    def _order(self, cell: Cell) -> dict[str, Any]:
        kind = {"flood": "many", "short": "many", "first": "first"}.get(cell.group, "latency")
        asked: dict[str, Any] = {"kind": kind, "pids": [], **dict(cell.figures)}
        asked.update(self._place(cell.way) or {})
        if kind == "many":
            asked.update(self._amount(cell))
        return asked

    def _place(self, way: str) -> dict[str, Any] | None:
        """Who is asked, and where: the fields of an order."""
        name, _, variant = way.partition("-")
        if way in self._peers:
            gateway, started, port = self._peers[way]
            target = gateway.target(port, self._upstream.port)
            return {"way": "http", "target": target.known(), "pids": started.pids()}
        if way == "http-direct":
            return {"way": "http", "target": Target(self._upstream.port).known()}
        if way == "c-relay":
            return None if self._relay is None else {"way": "wire", "url": self._relay[0], "pids": [self._relay[1]]}
        if name in ("asyncio", "blocking", "wire"):
            daemon = self._daemons.get(variant or "shipped")
            return None if daemon is None else {"way": name, "url": daemon.endpoint, "pids": [daemon.pid]}
        upstream = self._secure if variant == "tls" or way.endswith("-tls") else self._upstream
        if upstream is None:
            return None
        if name == "direct":
            return {"way": "direct", "url": upstream.url(stamp=1)}
        if name == "sdk":
            return {"way": way.removesuffix("-tls"), "url": upstream.http()}
        return None

    def _amount(self, cell: Cell) -> dict[str, Any]:
        if cell.way in OURS:
            tokens, requests = OURS[cell.way]
        else:
            gateway = self._peers[cell.way][0]
            tokens, requests = gateway.flood_tokens, gateway.short_requests
        asked = dict(cell.figures)
        if cell.group == "short":
            return {"tokens": 2, "requests": max(asked["at_once"], int(requests * self._scale.floods))}
        answers_of = 4000 if tokens >= 100_000 else 250
        wanted = max(asked["at_once"], round(tokens * self._scale.floods / answers_of))
        return {"tokens": answers_of, "requests": wanted}


class Sampler:
    """The most resident memory that processes had together, looked at ten times a second."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, rss_mib(self._pids))
            if self._over.wait(0.1):
                return

    def __enter__(self) -> Sampler:
        if self._pids:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._pids:
            self._thread.join()
