"""The relay: listens, lets in, counts, and is steered, by its methods or by plain HTTP on its own port."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection
from typing import Final, NoReturn

import trio

from sidecar.simulator import reception
from sidecar.simulator.behaviour import Behaviour
from sidecar.simulator.calls import Speaking
from sidecar.simulator.counters import Counters
from sidecar.simulator.link import Link
from sidecar.simulator.metronome import Metronome
from sidecar.simulator.scenarios import Plan

_GROUPS: Final = 1000
_ALPN: Final = {"2": "h2", "1.1": "http/1.1"}


def monotonic_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same in every process of a host."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class Relay:
    """A server of WebSockets and of HTTP, on one port.

    WebSockets: `responses` at /v1/responses, `chat` at /v1/chat and /v1/ws/stream. HTTP, by POST: `responses` at
    /v1/responses, `chat` at /v1/chat/completions and /v1/chat, `messages` at /v1/messages.

    A path may begin with ``/s/<expression>`` (a scenario of its own, see `scenarios`) or ``/u/<label>`` (an upstream
    that `set_scenario` can steer by that label; until then it follows the relay), so that one relay plays several
    upstreams. The query may hold fields of `Behaviour`, and ``compress=zstd-stream``.

    Args:
        scenario: what befalls connections and calls whose path names no scenario.
        behaviour: of answers; URL and prompt may steer it.
        seed: every choice and every byte but the stamps depends on it and on the order of arrival.
        keys: those accepted, as Bearer or x-api-key; None: any, or none. May be replaced at run time.
        dialects: which are spoken; paths of the others are 404.
        tls: speak wss and https only; what ALPN offers is set here.
        compression: answer ``compress=zstd-stream`` with binary frames; else the parameter is ignored.
        max_age_s: each connection ends at this age, as the real ones do; None: never.
        slots: calls at once on a connection, each with a `stream_id` of its own.
        lanes: how many different `stream_id` a connection may use.
        http_versions: "1.1", "2" or both: what is spoken, by ALPN on TLS; over TCP the client's preface says which.
        max_streams: answers at once on an HTTP/2 connection; more are refused by themselves.
        keepalive_timeout_s: an HTTP connection on which nothing happens for so long is closed; None: never.
        mono_us: the clock of `counters.stops` and of stamps.
        wall_s: the wall clock; only rate limits that name an instant ask for it.

    Raises:
        ValueError: the scenario's expression is wrong, or there is no such version of HTTP.
    """

    def __init__(
        self,
        scenario: str = "ok",
        *,
        behaviour: Behaviour | None = None,
        seed: int = 0,
        keys: Collection[str] | None = None,
        dialects: Collection[str] = ("responses", "chat", "messages"),
        tls: ssl.SSLContext | None = None,
        compression: bool = True,
        max_age_s: float | None = None,
        slots: int = 16,
        lanes: int = 32,
        http_versions: Collection[str] = ("1.1", "2"),
        max_streams: int = 100,
        keepalive_timeout_s: float | None = None,
        mono_us: Callable[[], int] = monotonic_us,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.seed, self.slots, self.lanes, self.max_age_s = seed, slots, lanes, max_age_s
        self.keys: Collection[str] | None = keys
        self.counters = Counters()
        self.mono_us = mono_us
        self.metronome = Metronome()
        self.port = 0
        self.dialects: Collection[str] = frozenset(dialects)
        self.tls, self.compression = tls, compression
        self.keepalive_timeout_s, self.wall_s = keepalive_timeout_s, wall_s
        self.http_versions: Collection[str] = frozenset(http_versions)
        self.max_streams = max_streams
        if not http_versions or not set(http_versions) <= _ALPN.keys():
            raise ValueError(f"http_versions are 1.1, 2 or both, not {http_versions!r}")
        if tls is not None:
            tls.set_alpn_protocols([name for version, name in _ALPN.items() if version in http_versions])
        self._plans: dict[str, Plan] = {"": Plan(scenario, seed)}
        #: connections before their door, and what cancels them
        self.links: dict[Link, trio.CancelScope] = {}
        #: and those past it
        self.speaking: set[Speaking] = set()
        self._calls = 0
        self._listener: socket.socket | None = None

    def __repr__(self) -> str:
        counters = self.counters
        state = f"port {self.port}, {counters.open} open, {counters.in_flight} in flight"
        return f"<Relay {self.scenario!r} {state}>"

    # ------------------------------------------------------------------------------------------------- steering

    def set_scenario(self, expression: str, *, upstream: str | None = None) -> None:
        """From now on, for new connections and new calls: of the relay, or of ``/u/<upstream>``. Counts begin anew.

        Raises:
            ValueError: the expression is wrong; nothing changed.
        """
        self._plans["" if upstream is None else f"u/{upstream}"] = Plan(expression, self.seed)

    def kill_all(self, *, rst: bool = True, upstream: str | None = None) -> int:
        """End all open connections by RST or EOF; returns how many.

        Of one upstream: those that have named it. An HTTP connection does so with its first request.
        """
        chosen = self._chosen(upstream)
        for one in chosen:
            one.reset() if rst else one.eof()
        nameless = list(self.links.items()) if upstream is None else []
        for link, scope in nameless:
            if rst:
                link.reset()
            scope.cancel()  # which closes it
        return len(chosen) + len(nameless)

    def close_all(self, code: int = 1012, reason: str = "", *, upstream: str | None = None) -> int:
        """End all open connections (of one upstream) by a close frame, those of HTTP after the answers under way."""
        chosen = self._chosen(upstream)
        for one in chosen:
            one.close(code, reason)
        return len(chosen)

    def _chosen(self, upstream: str | None) -> list[Speaking]:
        return [one for one in self.speaking if upstream is None or one.serves(f"u/{upstream}")]

    @property
    def scenario(self) -> str:
        """The expression in force, of the relay as a whole."""
        return self._plans[""].expression

    # ------------------------------------------------------------------------------------ what connections ask for

    def check(self, group: str) -> None:
        """ValueError: the path's expression is wrong, or there are too many."""
        self._plan(group)

    def next_door(self, group: str) -> str:
        """What befalls the next upgrade or HTTP request by that path."""
        return self._plan(group).door()

    def refused(self, name: str) -> None:
        """A door scenario befell somebody."""
        self.counters.refused += 1
        self.counters.scenarios[name] = self.counters.scenarios.get(name, 0) + 1

    def remember(self, one: Speaking) -> None:
        """It is past the door: to be killed and closed."""
        self.speaking.add(one)

    def forget(self, one: Speaking) -> None:
        """It is not to be ended by a command that it brings."""
        self.speaking.discard(one)

    def next_call(self, group: str) -> int:
        """See `calls.Host`."""
        self.counters.groups[group] = self.counters.groups.get(group, 0) + 1
        self._calls += 1
        return self._calls - 1

    def next_fate(self, group: str) -> str:
        """See `calls.Host`."""
        return self._plan(group).fate()

    def digits(self, number: int) -> str:
        """See `calls.Host`."""
        return hashlib.blake2b(f"{self.seed}:{number}".encode(), digest_size=16).hexdigest()

    def _plan(self, group: str) -> Plan:
        """The plan of a path; ValueError: the path's expression is wrong."""
        plan = self._plans.get(group)
        if plan is None:
            if group.startswith("u/"):
                return self._plans[""]
            if len(self._plans) >= _GROUPS:
                raise ValueError("too many different scenarios")
            plan = self._plans[group] = Plan(group[2:], self.seed)
        return plan

    # -------------------------------------------------------------------------------------------------- serving

    def bind(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; who connects waits for `serve`. Returns the bound port.

        Raises:
            ValueError: `host` is not a loopback address, or `port` no port.
            OSError: the port is taken.
        """
        host = "127.0.0.1" if host == "localhost" else host
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"{host} is not a loopback address: a simulated relay is for this machine only")
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not 0 to 65535")
        self._listener = self._listen(host, port)
        self.port = self._listener.getsockname()[1]
        return self.port

    def unbind(self) -> None:
        """Undo `bind`, where `serve` never came."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def serve(
        self, host: str = "127.0.0.1", port: int = 0, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Serve until cancelled; `nursery.start` gives the bound port. `bind` is done here unless it was before.

        Raises:
            ValueError, OSError: as `bind`.

        Cancellation: connections are closed with 1001, at once, and calls in flight counted as cut.
        """
        if self._listener is None:
            self.bind(host, port)
        listener = self._listener
        assert listener is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.metronome.run)
                task_status.started(self.port)
                while True:
                    try:
                        await trio.lowlevel.wait_readable(listener)
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError:  # out of file descriptors, most likely: others will go
                        await trio.sleep(0.01)
                        continue
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    nursery.start_soon(reception.welcome, self, Link(sock, self.counters))
        finally:
            self.unbind()

    @staticmethod
    def _listen(host: str, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind((host, port))
            listener.listen(4096)
        except BaseException:
            listener.close()
            raise
        return listener
