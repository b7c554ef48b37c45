"""The relay: listens, lets in, counts, and is steered, by its methods or by plain HTTP on its own port."""

from __future__ import annotations

import hashlib
import ipaddress
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final, Literal, NoReturn

import trio

from sidecar.simulator import control, door
from sidecar.simulator.behaviour import Behaviour, known, steer
from sidecar.simulator.counters import Counters, Note
from sidecar.simulator.link import Link
from sidecar.simulator.metronome import Metronome
from sidecar.simulator.scenarios import Plan
from sidecar.simulator.session import Session
from sidecar.simulator.toxics import Line, Toxic, line_of

_DOOR_TIMEOUT: Final = 15.0
_GROUPS: Final = 1000
_EXPIRY: Final = 10.0
_OPEN: Final = ("ok", "deaf", "expiry", "expiring")  # what comes after a handshake that went well


def monotonic_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same in every process of a host."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


class Relay:
    """A WebSocket server that speaks `responses` at /v1/responses and `chat` at /v1/chat and /v1/ws/stream.

    A path may begin with ``/s/<expression>`` (a scenario of its own, see `scenarios`) or ``/u/<label>`` (an upstream
    that `set_scenario` can steer by that label; until then it follows the relay), so that one relay plays several
    upstreams. The query may hold fields of `Behaviour`, and ``compress=zstd-stream``.

    Args:
        scenario: what befalls connections and calls whose path names no scenario.
        behaviour: of answers; URL and prompt may steer it.
        seed: every choice and every byte but the stamps depends on it and on the order of arrival.
        keys: the bearer keys accepted; None: any, or none. May be replaced at run time.
        dialects: which of the two are spoken; paths of the other are 404.
        tls: speak wss (and https) only.
        compression: answer ``compress=zstd-stream`` with binary frames; else the parameter is ignored.
        max_age_s: each connection ends at this age, as the real ones do; None: never.
        slots: calls at once on a connection, each with a `stream_id` of its own.
        lanes: how many different `stream_id` a connection may use.
        mono_us: the clock of `counters.stops` and of stamps.

    Raises:
        ValueError: the scenario's expression is wrong.
    """

    def __init__(
        self,
        scenario: str = "ok",
        *,
        behaviour: Behaviour | None = None,
        seed: int = 0,
        keys: Collection[str] | None = None,
        dialects: Collection[str] = ("responses", "chat"),
        tls: ssl.SSLContext | None = None,
        compression: bool = True,
        max_age_s: float | None = None,
        slots: int = 16,
        lanes: int = 32,
        mono_us: Callable[[], int] = monotonic_us,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.seed, self.slots, self.lanes, self.max_age_s = seed, slots, lanes, max_age_s
        self.keys: Collection[str] | None = keys
        self.counters = Counters()
        self.mono_us = mono_us
        self.metronome = Metronome()
        self.port = 0
        self._host = ""
        self._dialects, self._tls, self._compression = frozenset(dialects), tls, compression
        self._plans: dict[str, Plan] = {"": Plan(scenario, seed)}
        self._links: dict[Link, trio.CancelScope] = {}
        self._sessions: set[Session] = set()
        self._calls = 0
        self._listener: socket.socket | None = None
        self._resumed = trio.Event()

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
        """End all open connections (of one upstream) by RST or EOF; returns how many."""
        chosen = self._chosen(upstream)
        for session in chosen:
            session.reset() if rst else session.eof()
        if upstream is None:
            for link, scope in list(self._links.items()):
                link.reset()
                scope.cancel()
        return len(chosen)

    def close_all(self, code: int = 1012, reason: str = "", *, upstream: str | None = None) -> int:
        """End all open connections (of one upstream) by a close frame; returns how many."""
        chosen = self._chosen(upstream)
        for session in chosen:
            session.close(code, reason)
        return len(chosen)

    def _chosen(self, upstream: str | None) -> list[Session]:
        return [one for one in self._sessions if upstream is None or one.group == f"u/{upstream}"]

    def stop_listening(self) -> None:
        """Connects are refused by the kernel (ECONNREFUSED) until `resume_listening`; open connections stay."""
        if self._listener is not None:
            trio.lowlevel.notify_closing(self._listener)
            self._listener.close()
            self._listener = None
            self._resumed = trio.Event()

    def resume_listening(self) -> None:
        """Listen again, on the same port."""
        self._resumed.set()

    @property
    def scenario(self) -> str:
        """The expression in force, of the relay as a whole."""
        return self._plans[""].expression

    # --------------------------------------------------------------------------------------- what sessions ask for

    def next_call(self, group: str) -> int:
        """See `session.Host`."""
        self.counters.groups[group] = self.counters.groups.get(group, 0) + 1
        self._calls += 1
        return self._calls - 1

    def next_fate(self, group: str) -> str:
        """See `session.Host`."""
        return self._plan(group).fate()

    def digits(self, number: int) -> str:
        """See `session.Host`."""
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
        self._host = host
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
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.metronome.run)
                task_status.started(self.port)
                while True:
                    listener = await self._listening()
                    try:
                        await trio.lowlevel.wait_readable(listener)
                        sock, _ = listener.accept()
                    except (trio.ClosedResourceError, BlockingIOError):
                        continue
                    except OSError:  # out of file descriptors, most likely: others will go
                        await trio.sleep(0.01)
                        continue
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    nursery.start_soon(self._welcome, Link(sock, self.counters))
        finally:
            self.unbind()

    async def _listening(self) -> socket.socket:
        if self._listener is None:
            await self._resumed.wait()
            self._listener = self._listen(self._host, self.port)
        return self._listener

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

    async def _welcome(self, link: Link) -> None:
        self.counters.accepted += 1
        link.number = self.counters.accepted
        plan = self._plans[""]
        scope = trio.CancelScope()
        self._links[link] = scope
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.run)
                    if plan.expression == "refuse":
                        self._refused("refuse")
                        self._note("connect", link, None, "refuse")
                    else:
                        await self._handshake(link)
                    with trio.move_on_after(1.0):
                        await link.drained(below=1)
                    nursery.cancel_scope.cancel()
        finally:
            self._links.pop(link, None)
            link.close()

    def _refused(self, name: str) -> None:
        self.counters.refused += 1
        self.counters.scenarios[name] = self.counters.scenarios.get(name, 0) + 1

    async def _handshake(self, link: Link) -> None:
        """From the first byte to the last; OSError is the client's going."""
        knock, name = None, None
        try:
            with trio.move_on_after(_DOOR_TIMEOUT):
                if self._tls is not None:
                    began = self.mono_us()
                    try:
                        await link.secure(self._tls)
                    except OSError:
                        self._note("connect", link, None, "tls_failed", at_us=began)
                        self._note("gone", link, None, "tls_failed")
                        return
                knock = await door.listen_at_door(link)
            if knock is None:
                return
            if knock.path.startswith("/_"):
                self._links.pop(link, None)  # `_kill` is to be answered
                link.send(control.answer_to(self, knock.path, knock.query))
                return
            name = self._judge(link, knock)
            self._note("connect", link, knock, name)
            if name is not None and (name in _OPEN or name.startswith("toxic_")):
                await self._converse(link, knock, name)
            elif name is not None:
                self._refused(name)
                await door.misbehave(name, link, knock, self.behaviour.retry_after_s)
        except (OSError, trio.ClosedResourceError):
            pass
        if knock is not None:
            self._note("gone", link, knock, name)

    def _note(
        self,
        event: Literal["connect", "gone"],
        link: Link,
        knock: door.Knock | None,
        name: str | None,
        *,
        at_us: int | None = None,
    ) -> None:
        """A line of a connection's in the journal."""
        group = "" if knock is None else knock.group
        at_us = self.mono_us() if at_us is None else at_us
        self.counters.journal.append(Note(at_us, event, group, "", name or "", link.number))

    def _judge(self, link: Link, knock: door.Knock) -> str | None:
        """What befalls this connection; None: it was answered already."""
        try:
            plan = self._plan(knock.group)
        except ValueError as problem:
            link.send(door.answer(404, {"error": {"message": str(problem)}}))
            return None
        if knock.dialect not in self._dialects:
            link.send(door.answer(404, {"error": {"message": "no such path"}}))
            return None
        if knock.websocket_key is None:
            link.send(door.answer(426, {"error": {"message": "upgrade to WebSocket"}}, {"Upgrade": "websocket"}))
            return None
        name = plan.door()
        if name == "ok" and self.keys is not None and knock.key not in self.keys:
            return "http_401"
        return name

    async def _converse(self, link: Link, knock: door.Knock, name: str) -> None:
        try:
            behaviour = steer(self.behaviour, known(knock.query))
        except ValueError as problem:
            link.send(door.answer(400, {"error": {"message": str(problem)}}))
            return
        assert knock.dialect is not None
        assert knock.websocket_key is not None
        counters = self.counters
        compressed = self._compression and knock.query.get("compress") == "zstd-stream"
        session = Session(
            self, link, dialect=knock.dialect, group=knock.group, behaviour=behaviour, compressed=compressed
        )
        counters.handshakes += 1
        counters.open += 1
        counters.max_open = max(counters.max_open, counters.open)
        if name != "ok":
            counters.scenarios[name] = counters.scenarios.get(name, 0) + 1
        yes = door.switching(knock.websocket_key, f"req_{self.digits(counters.handshakes)}")
        self._sessions.add(session)
        self._links.pop(link, None)  # from here the session ends it
        max_age_s = self.max_age_s
        if name in ("expiry", "expiring"):
            max_age_s = _EXPIRY if max_age_s is None else max_age_s
        run = partial(session.run, knock.early, max_age_s=max_age_s, warn=name == "expiring", deaf=name == "deaf")
        line = line_of(name, behaviour)
        try:
            if line is None:
                link.send(yes)
                await run()
            else:
                await self._converse_badly(line, link, session, yes, run)
        finally:
            self._sessions.discard(session)
            counters.open -= 1

    async def _converse_badly(
        self, line: Line, link: Link, session: Session, yes: bytes, run: Callable[[], Awaitable[None]]
    ) -> None:
        """As `run`, all that is said, from the answer to the upgrade on, going over a bad line."""

        def end(how: str) -> None:
            session.reset() if how == "reset" else session.eof()

        dice = random.Random(self.seed * 1_000_003 + self.counters.handshakes)
        link.poison(Toxic(line, dice=dice, clock=trio.current_time, deliver=link.deliver, end=end))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.worsen)
            link.send(yes)
            await run()
            await trio.sleep(line.slow_close_s)
            nursery.cancel_scope.cancel()
