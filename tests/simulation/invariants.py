"""What must hold in every run: proto/wire.md's invariants, and what an upstream and an operator may expect.

`Watch` is told of everything as it happens: what bots are told, what is written to upstreams, what the daemon logs.
It knows the daemon only by that, except `at_rest`, which looks for what is left inside when nothing runs.
"""

from __future__ import annotations

import math
import traceback
from typing import TYPE_CHECKING, Any

import trio
from msgspec import Struct

from sidecar.config.model import BudgetSettings
from sidecar.config.ways import FALLBACK_SUFFIX
from sidecar.core.retry import SECONDS_OF_LOAD
from sidecar.transport.http2_link import Http2Link
from tests.simulation.http2_session import Http2Session
from tests.simulation.network import SEND_BUFFER
from tests.simulation.websocket_session import WebSocketSession

if TYPE_CHECKING:
    from sidecar.service.routes import TargetRuntime
    from tests.simulation.bots import CallRecord, Connection
    from tests.simulation.request import Request
    from tests.simulation.schedule import BotPlan
    from tests.simulation.world import World

#: Seconds within which the upstream work of a call that ended is stopped (invariant 6).
STOPPED_WITHIN = 0.1
#: Microseconds by which a terminal may be late in virtual time, where code takes none: roundings.
LATE_US = 5
#: Microseconds before its deadline from which a call is not sent again: an answer usually takes longer to begin.
HOPELESS_US = 50_000
EPSILON = 1e-6
#: Seconds within which attempts may be written in another order than they were begun in.
AT_ONCE = 0.001


class Broken(Struct, frozen=True):
    """One invariant that did not hold; `at` in seconds since the run began."""

    invariant: str
    at: float
    what: str


#: What this book may be off by: it learns of attempts as they are written, a little later than they are begun.
ROUNDING = 0.1
#: Requests that an upstream may leave before who asks may have had enough of sending them again (`Pool.replays`).
REPLAYS = 10
#: Ends after which the next attempt stands in for one of which nothing was done.
NOT_TAKEN_UP = ("ignored", "auth", "rejected")


class _Bucket:
    """A retry budget as docs/decisions/0016 has it, kept from what is seen on the wire."""

    def __init__(self, settings: BudgetSettings, now: float) -> None:
        self.settings = settings
        self.balance, self.at = settings.attempts, now
        self.load, self.load_at = 0.0, now
        self.deposits = 0

    def most(self) -> float:
        """What it may hold."""
        return max(self.settings.attempts, SECONDS_OF_LOAD * self.load)

    def at_now(self, now: float) -> float:
        """-> balance."""
        self.balance = min(self.most(), self.balance + self.settings.per_second * (now - self.at))
        self.at = now
        return self.balance

    def deposit(self, now: float) -> None:
        """A call's first attempt, here or where this upstream is another target of the route."""
        self.deposits += 1
        self.load = self.load * math.exp((self.load_at - now) / 10.0) + 0.1
        self.load_at = now
        self.balance = min(self.most(), self.at_now(now) + self.settings.per_call)

    def slack(self, calls: int) -> float:
        """What it may hold beyond that, for first attempts whose connection was gone before they were written."""
        return calls * (self.settings.per_call + SECONDS_OF_LOAD * 0.1)


class Watch:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broken: list[Broken] = []
        self.last_at = trio.current_time()
        self.ended_ids: set[str] = set()
        self.by_tag: dict[str, list[Request]] = {}
        self._budgets: dict[str, _Bucket] = {}
        #: (upstream, model) -> when its breaker opened; while it is not closed
        self._open_since: dict[tuple[str, str], float] = {}
        self._trials: dict[tuple[str, str], list[Request]] = {}
        #: what an operator has stopped, and since when
        self.halted: dict[str, float] = {}
        self.disabled: dict[str, float] = {}

    # ------------------------------------------------------------------ saying so

    def break_(self, invariant: str, what: str) -> None:
        """An invariant does not hold."""
        at = trio.current_time() - self.world.started_at
        if self.world.tracing:
            self.world.note(f"BROKEN {invariant}: {what}")
        self.broken.append(Broken(invariant, at, what))

    def crashed(self, error: BaseException) -> None:
        """An exception left the daemon, or the simulation."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        frames = "".join(traceback.format_exception(error, limit=-4))
        self.broken.append(Broken("no crash", self.last_at - self.world.started_at, frames))

    def _check(self, holds: bool, invariant: str, what: object) -> None:
        if not holds:
            self.break_(invariant, str(what))

    # ------------------------------------------------------------------ the daemon

    def daemon_starts(self) -> None:
        """A new process: nothing is remembered."""
        now = trio.current_time()
        self._open_since.clear()
        self._trials.clear()
        self.halted.clear()
        self.disabled.clear()
        for upstream in self.world.config.upstream:
            self._budgets[upstream.name] = _Bucket(upstream.retry_budget, now)

    def ordered(self, what: str, names: list[str]) -> None:
        """An operator's order has been carried out: halt, resume (lanes), disable, enable (upstreams)."""
        now = trio.current_time()
        table = self.halted if what in ("halt", "resume") else self.disabled
        for name in names:
            if what in ("halt", "disable"):
                table.setdefault(name, now)
            else:
                table.pop(name, None)

    def halt_is_over(self, lanes: list[str]) -> None:
        """Milliseconds after a halt: no call of these lanes goes on."""
        for record in self.world.records.values():
            since = self.halted.get(record.lane)
            if record.state == "accepted" and since is not None and record.lane in lanes and record.sent_at < since:
                self._check(
                    record.connection.slow_at is not None, "halted", f"{record} goes on after a halt at {since}"
                )

    def daemon_ended(self, *, killed: bool) -> None:
        """No connection of its is left, and (unless it was killed) no call without a terminal."""
        self.last_at = trio.current_time()
        for service in self.world.services.values():
            for session in service.sessions:
                if session.link.closed_at is None:
                    session.link.closed_at = trio.current_time()
                    self.break_("nothing left", f"connection {session} is left open by a daemon that has ended")
        if not killed:
            for record in self.world.records.values():
                if record.state == "accepted" and record.connection.slow_at is None:
                    self.break_("one terminal", f"the daemon drained without a terminal for {record}")
                elif record.state == "sent" and record.connection.slow_at is None:
                    self.break_("one terminal", f"{record} was never answered")

    def logged(self, entry: dict[str, Any]) -> None:
        """The daemon's own word."""
        event = entry["event"]
        if event == "call.internal_error":
            self.break_("no crash", f"internal error: {entry}")
        elif event.startswith("breaker."):
            key = (entry["upstream"], entry["model"])
            if event == "breaker.closed":
                self._open_since.pop(key, None)
                self._trials.pop(key, None)
            elif event == "breaker.opened":
                self._check(not self._is_honest(entry["upstream"]), "no blame", f"{entry}, and nothing was wrong")
                # What was written in this very step belongs to the time before.
                self._open_since[key] = trio.current_time()
                self._trials[key] = [request for request in self._trials.get(key, ()) if self._runs(request)]

    def _is_honest(self, pool: str) -> bool:
        """Its upstream has answered everything as it should, and nothing on the way there was wrong.

        What a server may do in good order, such as closing idle connections, is no fault. Where the route's clocks are
        as short as a proper answer's pauses, nobody can say.
        """
        route = self.world.schedule.route
        if route["first_delta_timeout_ms"] < 150 or route["idle_timeout_ms"] < 120:
            return False
        return not self.world.services[pool.removesuffix(FALLBACK_SUFFIX)].at_fault

    # ------------------------------------------------------------------ upstreams

    def written(self, request: Request) -> None:
        """The daemon wrote a request to an upstream."""
        world, now = self.world, trio.current_time()
        service = request.session.service
        before = self.by_tag.setdefault(request.tag, [])
        record = world.records.get(request.tag)
        if world.tracing:
            world.note(f"{service.name} is sent {request.tag} #{len(before) + 1} on {request.session}")
        world.counts["attempts"] += 1
        world.counts[f"attempts by {request.session.spoken}"] += 1
        if request.session.pool != service.name:
            world.counts["attempts by the second way"] += 1
        if record is None:
            self.break_("route", f"a request of no call: {request.body}")
            return
        stood = request.session.link.was_full_at == now  # behind others, in what cannot be taken back
        self._check(
            record.ended_at is None or now <= record.ended_at + EPSILON or stood,
            "stopped upstream", f"{request} is sent for {record}, which ended at {record.ended_at}",
        )  # fmt: skip
        late_us = world.mono_us() - record.deadline_us
        late = f"{request} is sent {late_us} us after the deadline"
        self._check(late_us <= LATE_US or stood, "expired not sent", late)
        for table, name in ((self.halted, record.lane), (self.disabled, service.name)):
            since = table.get(name)
            self._check(
                since is None or request.written_at <= since, "halted", f"{request}: {name} was stopped at {since}"
            )
        route = next(
            (route for route in world.config.route if route.name == record.fields.get("route", "default")), None
        )
        models = [] if route is None else [t.model for t in route.targets if t.upstream == service.name]
        self._check(request.model in models, "route", f"{request}: {request.model} is not of the route: {models}")
        maximum = getattr(route, "max_attempts", 3)
        self._check(len(before) < maximum, "attempts", f"{request} is attempt {len(before) + 1} of {record}")
        bucket = self._budgets[service.name]
        if not before:
            for target in route.targets if route is not None else ():
                self._budgets[target.upstream].deposit(now)
        else:
            world.counts["extra attempts"] += 1
            self._spend(bucket, request, before, now)
        before.append(request)
        if record.ended_at is None:  # else it is stopped in the very bytes that say it
            self._trial(request, (request.session.pool, request.model), now)

    def _may_be_discarded(self, request: Request) -> bool:
        """Given up, perhaps, and nothing to be seen of it: others run on its WebSocket, so that stays."""
        session = request.session
        alone = sum(map(self._runs, session.requests)) == 1
        return isinstance(session, WebSocketSession) and not alone

    def _spend(self, bucket: _Bucket, request: Request, before: list[Request], now: float) -> None:
        """An attempt after the first is paid for, unless the one before it was never taken up by its upstream."""
        running = [other for other in before if self._runs(other)]
        running = [r for r in running if r.session.said_close_at is None and not self._may_be_discarded(r)]
        if not running and any((other.how or other.told or other.session.told) in NOT_TAKEN_UP for other in before):
            self.world.counts["replays"] += 1
            return
        if running:
            self.world.counts["attempts beside another"] += 1
        last = before[-1]
        if bucket.at_now(now) < 1 - 1e-6 and now - last.written_at <= AT_ONCE:
            bucket = self._budgets[last.session.service.name]  # which was begun first, thus not paid for, is not seen
        balance = bucket.at_now(now)
        slack = 0.0
        if balance < 1 - 1e-6:
            slack = bucket.slack(sum(map(self._may_be_unseen, self.world.records.values())))
        self._check(
            balance + slack >= 1 - ROUNDING,
            "budget",
            f"{request} is sent at a balance of {balance:.3f}, after {before}",
        )
        bucket.balance = max(0.0, balance - 1.0)

    def _may_be_unseen(self, record: CallRecord) -> bool:
        """Whether it may have had an attempt of which nothing was written."""
        seen = len(self.by_tag.get(record.tag, ()))
        if record.terminal is None:
            return record.accepted is not None and seen == 0
        attempts: int = record.terminal.get("attempts", 0)
        return attempts > seen

    def _runs(self, request: Request) -> bool:
        """Somebody still waits for it, as far as the upstream's side can tell."""
        if request.ended_at is not None or request.reset_at is not None or request.session.link.closed_at is not None:
            return False
        record = self.world.records.get(request.tag)
        if record is None or record.ended_at is not None:
            return False
        # Another attempt of the same call has brought content: this one has been stopped, its frames are dropped.
        return not any(
            other is not request and other.content_at is not None and request.content_at is None
            for other in self.by_tag[request.tag]
        )

    def _trial(self, request: Request, key: tuple[str, str], now: float) -> None:
        opened_at = self._open_since.get(key)
        if opened_at is None or request.written_at <= opened_at:
            return
        self.world.counts["trials"] += 1
        trials = self._trials.setdefault(key, [])
        # One that speaks in tongues may have ended, or answered for long enough, by any of its frames.
        trials[:] = [t for t in trials if self._runs(t) and now - t.written_at < 29.9 and not (t.junk and t.content_at)]
        self._check(not trials, "one trial", f"{request} is sent while {trials} runs; {key} opened at {opened_at}")
        trials.append(request)

    # ------------------------------------------------------------------ bots

    def told(self, connection: Connection, message: dict[str, Any]) -> None:
        """A bot is sent a message."""
        kind, name = message["type"], message.get("id")
        now = trio.current_time()
        if self.world.tracing:
            self.world.note(f"bot {connection.bot.plan.number} is told {_brief(message)}")
        if kind in ("welcome", "pong", "report"):
            return
        if kind == "accepted":
            self._accepted(connection, message, now)
        elif kind == "failed" and message.get("call_id") is None:
            self._refused(connection, message)
        else:
            record = connection.open.get(str(name))
            if record is None and connection.bot.plan.request:
                record = self._unannounced(connection, message)
            if record is None:
                self.break_("one terminal", f"{message} for a call that is not open")
            elif kind == "delta":
                self._check(message["seq"] == record.seq, "shape", f"{record}: seq {message['seq']}, not {record.seq}")
                self._check(bool(message["text"]), "shape", f"{record}: an empty delta")
                record.seq += 1
                record.text.append(message["text"])
            elif kind == "restarted":
                self.world.counts["restarts"] += 1
                self._check(record.fields.get("on_lost") == "restart", "no stitching", f"{record}: restarted unasked")
                record.seq = 0
                record.restarts += 1
                record.text.clear()
            else:
                self._ended(connection, record, message, now)

    def _accepted(self, connection: Connection, message: dict[str, Any], now: float) -> None:
        asked = connection.asked.get(message["id"])
        if not asked:
            self.break_("shape", f"accepted, and nobody asked: {message}")
            return
        record = asked.popleft()
        if not asked:
            del connection.asked[message["id"]]
        self._check(message["id"] not in connection.open, "shape", f"accepted twice: {message}")
        connection.open[message["id"]] = record
        record.state, record.accepted, record.accepted_at = "accepted", message, now
        record.call_id = message["call_id"]
        halted_at = self.halted.get(record.lane)
        self._check(halted_at is None or record.sent_at <= halted_at, "halted", f"{record} is accepted")
        told_us = message["deadline_mono_us"]
        self._check(abs(told_us - record.deadline_us) <= LATE_US, "by the deadline", f"{record}: {message}")
        record.deadline_us = told_us

    def _unannounced(self, connection: Connection, message: dict[str, Any]) -> CallRecord | None:
        """A REQ gets one reply, the terminal: it was accepted without a word."""
        asked = connection.asked.get(message["id"])
        if not asked:
            return None
        record = asked.popleft()
        if not asked:
            del connection.asked[message["id"]]
        connection.open[record.id] = record
        record.state, record.call_id = "accepted", message["call_id"]
        return record

    def _refused(self, connection: Connection, message: dict[str, Any]) -> None:
        self._check(message.get("phase") is None and not message.get("attempts"), "shape", message)
        self._check(isinstance(message["retryable"], bool), "shape", message)
        asked = connection.asked.get(str(message.get("id")))
        self.world.counts["end refused " + message["code"]] += 1
        if not asked:
            return  # garbage
        # Of two with one id, sent together, it is the second that comes too early; the other one's word comes later.
        record = asked.pop() if message["code"] == "duplicate_id" else asked.popleft()
        if not asked:
            del connection.asked[message["id"]]
        self._settled(record, message, "refused")
        self._check(message["code"] != "internal", "no crash", message)

    def _settled(self, record: CallRecord, message: dict[str, Any], state: str) -> None:
        record.state, record.terminal, record.ended_at = state, message, trio.current_time()
        self.world.settled.set()

    def lost(self, record: CallRecord) -> None:
        """Its connection is gone."""
        self.world.counts["end daemon_lost" if self.world.port is None else "end bot left"] += 1
        self.world.settled.set()

    def _ended(self, connection: Connection, record: CallRecord, message: dict[str, Any], now: float) -> None:
        """The terminal of an accepted call."""
        world = self.world
        del connection.open[record.id]
        code = message.get("code", "done")
        world.counts[f"end {code}"] += 1
        if message.get("backup_used"):
            world.counts["backup used"] += 1
        self._settled(record, message, "ended")
        self._check(message["call_id"] == record.call_id, "one terminal", f"{record}: {message}")
        self._check(record.call_id not in self.ended_ids, "one terminal", f"{record}: a second terminal: {message}")
        self.ended_ids.add(str(record.call_id))
        late_us = world.mono_us() - record.deadline_us
        if connection.slow_at is None:
            self._check(late_us <= LATE_US, "by the deadline", f"{record} ends {late_us} us late: {message}")
        if code == "deadline_exceeded":
            self._check(late_us >= -1, "never early", f"{record} ends {-late_us} us before its deadline: {message}")
            self._waited_in_vain(record, message, now)
        if code == "cancelled":
            self._check(record.cancelled_at is not None, "shape", f"{record} is cancelled, and nobody asked for it")
        self._check(message.get("deltas", 0) == record.seq, "shape", f"{record}: {record.seq} deltas, {message}")
        timing = message["timing"]
        self._check(0 <= timing["queued_us"] <= timing["total_us"], "shape", message)
        self._check(0 <= (timing["overhead_us"] or 0) < 2_000, "shape", f"overhead in virtual time: {message}")
        requests = self.by_tag.get(record.tag, [])
        self._check(message.get("attempts", 0) >= len(requests), "attempts", f"{len(requests)} were sent: {message}")
        text = message.get("text") if record.fields.get("stream") is False else "".join(record.text)
        if code == "done":
            self._answer(record, message, text or "", requests)
        else:
            self._check(code != "internal", "no crash", message)
            self._check(message.get("partial", False) == bool(record.seq), "shape", message)
            if code in ("upstream_lost", "upstream_error", "breaker_open") and message["upstream"] is not None:
                # One attempt may meet a connection that has just been closed; that is no reason to give up.
                alone = message.get("attempts", 0) >= self.world.schedule.route["max_attempts"]
                honest = self._is_honest(message["upstream"]) and not self._was_hurried(record)
                alone = alone or self._has_nowhere_to_go(message["upstream"])
                alone = alone or late_us > -HOPELESS_US
                self._check(alone or not honest, "no blame", f"{record}: {message}, and nothing was wrong")
            self._check(message["phase"] in ("queue", "connect", "first_delta", "stream"), "shape", message)
            tried = [r for r in requests if (r.how or r.told or r.session.told) not in NOT_TAKEN_UP]
            self._check(not message["retryable"] or len(tried) <= 1, "shape", message)
            if text:
                self._part(record, text, requests)

    def _was_hurried(self, record: CallRecord) -> bool:
        """Its own clocks are as short as a proper answer's pauses, or its time is."""
        fields = record.fields
        if fields.get("timeout_ms", 2000) < 150:
            return True
        return fields.get("first_delta_timeout_ms", 1000) < 150 or fields.get("idle_timeout_ms", 1000) < 120

    def _has_nowhere_to_go(self, upstream: str) -> bool:
        """It was taken out meanwhile; or it has left so many requests that no more may be sent in their place."""
        requests = self.world.services[upstream].requests
        return upstream in self.disabled or sum(request.how == "ignored" for request in requests) >= REPLAYS

    def _waited_in_vain(self, record: CallRecord, message: dict[str, Any], now: float) -> None:
        """A call that was never sent died waiting: then nothing that it could have had was free."""
        daemon = self.world.daemon
        if daemon is None or daemon.dispatcher.draining or message.get("attempts"):
            return
        if record.connection.slow_at is not None or now - max(record.accepted_at, record.sent_at) < 0.01:
            return  # it may have ended before it was told
        statistics = daemon.dispatcher.statistics()
        beside = sum(
            other is not record and other.state != "sent" and (other.ended_at is None or other.ended_at > now - 0.01)
            for other in self.world.records.values()
        )  # until this very moment
        if statistics.queued or beside + 2 > daemon.config.frontend.max_calls_in_flight // 2:
            return  # it may have waited for its admission
        for target in daemon.dispatcher.routes[message["route"]].targets:
            pool = target.pool
            free = any(
                c.free and c.opened_at is not None and c.opened_at < now - 0.01 for c in pool.connections.values()
            )
            may = (
                target.breaker.state(now) == "closed"
                and pool.gate.is_open(now)
                and pool.gate.limit.has_room(record.lane)
                and not self._is_barred(target, record.connection.bot.plan, now)
            )
            self._check(not (free and may), "in time", f"{record} died waiting beside a free connection of {pool}")

    @staticmethod
    def _is_barred(target: TargetRuntime, bot: BotPlan, now: float) -> bool:
        """Its own calls have failed there, and only they; or its user's."""
        return any(uid == bot.uid and pid in (None, bot.pid) for uid, pid, _ in target.blame.barred(now))

    def _answer(self, record: CallRecord, message: dict[str, Any], text: str, requests: list[Request]) -> None:
        """A `done` is the whole answer of one attempt, of the upstream it names."""
        if text:
            source = self._source(record, text, requests)
            if source is None:
                return  # said already
            sources = [source]
        else:
            sources = [request for request in requests if request.finished and (request.junk or not request.pieces)]
            if not sources and any(map(self._may_be_mixed_up, requests)):
                # The same without text: a beginning and an end of another answer, under a name that never changes.
                self.world.counts["end of a mad upstream's other answer"] += 1
                return
        self._check(bool(sources), "no false end", f"{record}: done, and no attempt ended so: {message}, {requests}")
        for source in sources[:1]:
            if source.junk and not source.finished and self._may_be_mixed_up(source):
                self.world.counts["end of a mad upstream's other answer"] += 1
                return
            whole = "".join(source.pieces)
            right = whole.startswith(text) if source.junk else whole == text
            self._check(
                source.finished and right, "no false end", f"{record}: done with {text!r}, {source} sent {whole!r}"
            )
            if text:
                told = (message["upstream"], message["model"])
                self._check(told == (source.session.service.name, source.model), "no stitching", f"{told}, {source}")

    def _may_be_mixed_up(self, request: Request) -> bool:
        """A mad upstream's late end of another answer on that connection may be taken for this one's."""
        if request.session.by_exchange:
            return False  # each answer has a body of its own, anybody can tell
        return any(other.junk and other.finished for other in request.session.requests)

    def _part(self, record: CallRecord, text: str, requests: list[Request]) -> None:
        """A partial text is the beginning of one attempt's."""
        source = self._source(record, text, requests)
        if source is not None:
            whole = "".join(source.pieces)
            self._check(
                whole.startswith(text) or source.junk, "no stitching", f"{record}: {text!r} is not of {whole!r}"
            )

    def _source(self, record: CallRecord, text: str, requests: list[Request]) -> Request | None:
        """The attempt whose text it is: every piece says so."""
        numbers = {piece.partition(":")[0] for piece in text.split()}
        sources = [request for request in requests if str(request.number) in numbers]
        if not sources and self._is_a_mad_upstream(numbers, requests):
            return None
        if len(numbers) != 1 or len(sources) != 1:
            self.break_("no stitching", f"{record}: text of {sorted(numbers)}, attempts {requests}: {text!r}")
            return None
        return sources[0]

    def _is_a_mad_upstream(self, numbers: set[str], requests: list[Request]) -> bool:
        """Text that an upstream sends for an answer after its end, under a name never heard: nobody can tell."""
        mad = {
            str(other.number)
            for request in requests
            if not request.session.by_exchange  # where each answer has a body of its own, anybody can tell
            for other in request.session.requests
            if other.junk
        }
        if numbers <= mad:
            self.world.counts["text of a mad upstream's other answer"] += 1
            return True
        return False

    # ------------------------------------------------------------------ afterwards

    def at_rest(self) -> None:
        """No call runs: nothing of one is left inside."""
        daemon = self.world.daemon
        self.last_at = trio.current_time()
        for record in self.world.records.values():
            if record.state in ("sent", "accepted"):
                self.break_("one terminal", f"{record} has none at rest: {record.fields}")
        if daemon is None or daemon.dispatcher.calls:
            return
        dispatcher = daemon.dispatcher
        statistics = dispatcher.statistics()
        rest = (statistics.in_flight, statistics.queued, statistics.parked)
        self._check(rest == (0, 0, 0), "nothing left", statistics)
        self._check(statistics.accepted == statistics.done + statistics.failed, "nothing left", statistics)
        for name, pool in daemon.pools.items():
            self._check(pool.waiting() == 0, "nothing left", f"{name}: calls wait")
            for connection in pool.connections.values():
                self._check(connection.active == 0, "nothing left", connection)
                if connection.state in ("READY", "CONNECTING"):
                    self._check(connection.taken == 0, "nothing left", connection)
                if connection.free:
                    self._check(connection.in_rotation, "nothing left", f"{connection} is free, and out of rotation")
                link = connection.link
                if isinstance(link, Http2Link) and link._lost is None:
                    self._check(
                        len(link._streams) == len(link._slot_of) == connection.taken,
                        "nothing left",
                        f"{connection}: {link._streams}",
                    )
            for connection in pool._free._queue:
                self._check(
                    connection in pool.connections.values(), "nothing left", f"{connection} is gone, and queued"
                )
            self._check(
                pool.gate.limit.in_flight == 0, "nothing left", f"{name}: {pool.gate.limit.in_flight} in flight"
            )
        for service in self.world.services.values():
            for session in service.standing:
                if isinstance(session, Http2Session) and not session.closing and session.link.closed_at is None:
                    self._check(not session.unfinished(), "nothing left", f"{session}: requests begun, and not stopped")
        for breaker in daemon.breakers.values():
            self._check(breaker._trial is None, "nothing left", breaker)
        for heap in dispatcher.parking._heaps.values():
            for entry in heap:
                self._check(not entry[4].parked_in, "nothing left", entry[4])
        for _, _, item in dispatcher.clocks._heap:
            self._check(item.ended, "nothing left", item)

    def at_the_end(self) -> None:
        """Looks back over the whole run: was upstream work of ended calls stopped in time?"""
        self.last_at = trio.current_time()
        for requests in self.by_tag.values():
            for request in requests:
                self._stopped(request)

    def _stopped(self, request: Request) -> None:
        """A call's end, or another attempt's content, stops an attempt; alone on its connection, by closing it."""
        record = self.world.records[request.tag]
        ends = [record.ended_at] if record.ended_at is not None else []
        # The first content of all is the winner's; what comes of a stopped attempt later stops nobody.
        came = [(other.content_at, other) for other in self.by_tag[request.tag] if other.content_at is not None]
        if came and request.content_at is None:
            first_at, first = min(came, key=lambda pair: pair[0])
            if first is not request and not first.junk and first_at > request.written_at:
                ends.append(first_at)
        if not ends:
            return
        end = min(ends)
        link = request.session.link
        over_at = min(
            at
            for at in (request.ended_at, request.reset_at, request.session.said_close_at, link.closed_at, float("inf"))
            if at is not None
        )
        over = request.finished or request.junk or record.connection.slow_at is not None
        over = over or link.to_server.backlog > SEND_BUFFER  # others may stand behind it, and were never written
        if over or over_at <= end + STOPPED_WITHIN:
            return
        others = [
            other
            for other in request.session.requests
            if other is not request
            and other.written_at <= end + EPSILON
            and self.world.records[other.tag].ended_at is not None
            and self.world.records[other.tag].ended_at > end  # type: ignore[operator]
            and (other.ended_at is None or other.ended_at > end - EPSILON)
        ]
        excused = bool(others) and not request.session.by_stream
        self._check(excused, "stopped upstream", f"{request} of {record} runs on after {end}, until {over_at}")


def _brief(message: dict[str, Any]) -> str:
    skipped = ("type", "id", "timing", "usage", "wall_us", "call_id", "session", "pid", "recv_mono_us")
    rest = " ".join(f"{key}={value}" for key, value in message.items() if key not in skipped and value is not None)
    return f"{message['type']} {message.get('id')} {rest}"[:400]
