"""The frontend over a port in memory, in virtual time: framing, refusals, outboxes, readers of every speed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from sidecar import wire
from sidecar.service.bot_peer import MAX_NOTES
from sidecar.service.frontend import RECEIVE_LIMIT, Frontend, identity_of, is_automatic
from sidecar.service.ports import Peer, Reply
from sidecar.wire import Accepted, Call, Done, Failed, Restarted, Timing, Usage
from tests.fakes.bot_port import FakeBot, FakeBotPort

LIMIT = 2048


class Ticketed:
    """A call as the test's dispatcher holds it."""

    def __init__(self, call: Call, reply: Reply, peer: Peer, ignored: list[str]) -> None:
        self.call, self.reply, self.peer, self.ignored = call, reply, peer, ignored
        self.call_id = f"01-{call.id}"
        self.ended: list[str] = []
        self.abandoned = 0
        self.admitted: bool | None = True

    def end(self, code: str, message: str) -> None:
        """As the frontend ends it."""
        self.ended.append(code)
        self.fail(code)

    def abandon(self) -> None:
        """As the frontend gives it up."""
        self.abandoned += 1

    def fail(self, code: str) -> None:
        """The terminal of a failure."""
        self.reply.finish(Failed(id=self.call.id, code=code, message=code, retryable=False, call_id=self.call_id))

    def done(self) -> None:
        """The terminal of an answer."""
        self.reply.finish(
            Done(
                id=self.call.id, call_id=self.call_id, finish="stop", deltas=0, usage=Usage(), route="default",
                upstream="u", model="m", attempts=1, timing=Timing(), wall_us=1,
            )
        )  # fmt: skip


class Handler:
    """Accepts everything, unless told how to refuse."""

    def __init__(self) -> None:
        self.tickets: list[Ticketed] = []
        self.refuse: Callable[[Call], Failed] | None = None

    def submit(
        self, call: Call, reply: Reply, peer: Peer, *, recv_mono_us: int, ignored: list[str]
    ) -> Ticketed | Failed:
        """See `CallHandler`."""
        if self.refuse is not None:
            return self.refuse(call)
        ticket = Ticketed(call, reply, peer, ignored)
        self.tickets.append(ticket)
        reply.accept(
            Accepted(
                id=call.id, call_id=ticket.call_id, session="s", recv_mono_us=recv_mono_us, deadline_mono_us=9,
                route=call.route, ignored=ignored,
            )
        )  # fmt: skip
        return ticket


class House:
    """A frontend, its fake port and its handler."""

    def __init__(self, **changes: Any) -> None:
        self.port, self.handler = FakeBotPort(), Handler()
        self.frontend = Frontend(
            self.port, self.handler, session="s", version="0", routes=["default"], clock=trio.current_time,
            limits=wire.Limits(max_message_bytes=LIMIT, max_calls_in_flight=2, queue_max=2),
            mono_us=lambda: 7, wall_us=lambda: 8, report=self.report, jitter=lambda: 0.5,
            **{"max_message_bytes": LIMIT, "stall_timeout": 5.0, **changes},
        )  # fmt: skip

    def report(self) -> wire.Report:
        """A report of nothing."""
        return wire.Report(
            live=True, ready=False, degraded=False, draining=False, version="0", session="s", pid=1, uptime_us=1,
            in_flight=0, queued=0, loop_lag_us=0,
        )  # fmt: skip

    async def call(self, bot: FakeBot, name: str = "a", **fields: Any) -> Ticketed:
        """A call sent, accepted, and its `accepted` read."""
        send(bot, call(name, **fields))
        await settled()
        bot.take()
        return self.handler.tickets[-1]

    async def stuck(self) -> tuple[FakeBot, Ticketed]:
        """A bot with a call, whose pipe is full of text that it has not read."""
        bot = self.port.connect(capacity=1)
        ticket = await self.call(bot)
        for _ in range(3):
            ticket.reply.text("x")
            self.frontend.flush()
        return bot, ticket


def call(name: str = "a", **fields: Any) -> dict[str, Any]:
    """A good call, with these changes."""
    return {"type": "call", "id": name, "input": "x", **fields}


def send(bot: FakeBot, *messages: Any) -> None:
    """Each as one JSON message."""
    for message in messages:
        bot.send(msgspec.json.encode(message))


def read(bot: FakeBot) -> list[Any]:
    """What the bot received, decoded; arrays stay arrays."""
    out = []
    for _, payload in bot.take():
        decode = msgspec.json.decode if payload[:1] in (b"{", b"[") else msgspec.msgpack.decode
        out.append(decode(payload))
    return out


async def settled() -> None:
    """Everything that could run has run."""
    await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def house(**changes: Any) -> AsyncIterator[House]:
    """A running frontend."""
    async with trio.open_nursery() as nursery:
        built = House(**changes)
        await nursery.start(built.frontend.run)
        yield built
        nursery.cancel_scope.cancel()


async def test_a_call_from_accepted_to_done() -> None:
    """accepted, deltas without a hole in seq, one terminal that counts them."""
    async with house() as h:
        bot = h.port.connect()
        send(bot, call(zebra=1))
        await settled()
        (ticket,) = h.handler.tickets
        assert ticket.peer == Peer(uid=1000, gid=1000, pid=4711)
        (accepted,) = read(bot)
        assert (accepted["type"], accepted["ignored"]) == ("accepted", ["zebra"])
        assert not ticket.reply.committed
        for piece in ("HO", "LD"):
            ticket.reply.text(piece)
            h.frontend.flush()
        assert ticket.reply.committed
        ticket.reply.text("!")
        ticket.reply.text("?")
        ticket.done()
        h.frontend.flush()
        got = read(bot)
        assert [(m["type"], m.get("seq"), m.get("text")) for m in got] == [
            ("delta", 0, "HO"), ("delta", 1, "LD"), ("delta", 2, "!?"), ("done", None, None),
        ]  # fmt: skip
        assert got[-1]["deltas"] == 3
        ticket.reply.text("late")
        ticket.fail("internal")
        h.frontend.flush()
        assert read(bot) == []  # nothing after the terminal
        assert h.frontend.statistics().in_flight == 0


async def test_answers_come_in_the_encoding_of_the_call() -> None:
    """A MessagePack call is answered in MessagePack while a JSON one of the same bot is answered in JSON."""
    async with house() as h:
        bot = h.port.connect()
        bot.send(msgspec.msgpack.encode(call("packed")))
        bot.send(msgspec.json.encode(call("plain")))
        await settled()
        for ticket in h.handler.tickets:
            ticket.reply.text("t")
            ticket.done()
        h.frontend.flush()
        for _, payload in bot.take():
            packed = payload[:1] != b"{"
            message = (msgspec.msgpack if packed else msgspec.json).decode(payload)
            assert message["id"] == ("packed" if packed else "plain")


@pytest.mark.parametrize("head", [(b"",), (b"\0\0\0\1", b"")], ids=["REQ", "REQ_CORRELATE"])
async def test_a_req_gets_exactly_one_reply_in_its_envelope(head: tuple[bytes, ...]) -> None:
    """Stream false: the terminal with the text and nothing before it; everything else: one answer each."""
    async with house() as h:
        bot = h.port.connect()
        bot.send(*head, msgspec.json.encode(call(stream=False)))
        await settled()
        ticket = h.handler.tickets[-1]
        ticket.reply.text("HO")
        ticket.reply.text("LD")
        h.frontend.flush()
        assert bot.take() == []
        assert not ticket.reply.committed
        ticket.done()
        h.frontend.flush()
        ((envelope, payload),) = bot.take()
        done = msgspec.json.decode(payload)
        assert (envelope, done["type"], done["text"], done["deltas"]) == (head, "done", "HOLD", 0)
        for request, code in [
            (msgspec.json.encode(call()), "invalid_request"),
            (b"garbage", "invalid_request"),
            (msgspec.json.encode([call(stream=False), call("b", stream=False)]), "invalid_request"),
            (msgspec.json.encode([]), "invalid_request"),
            (msgspec.json.encode({"type": "cancel", "id": "a"}), "invalid_request"),
            (msgspec.json.encode({"type": "ping"}), None),
            (msgspec.json.encode({"type": "hello", "batch": True}), None),
            (msgspec.json.encode({"type": "probe"}), None),
        ]:
            bot.send(*head, request)
            await settled()
            ((envelope, payload),) = bot.take()
            assert envelope == head
            decode = (msgspec.json if payload[:1] == b"{" else msgspec.msgpack).decode
            assert decode(payload).get("code") == code
        assert len(h.handler.tickets) == 1


@pytest.mark.parametrize("frames", [(b"x", b"y"), (b"",), (b"", b"x", b"y"), (b"x", b""), (b"z" * 600, b"", b"{}")])
async def test_odd_framing_is_refused_once(frames: tuple[bytes, ...]) -> None:
    """Not one payload frame after at most a delimiter: `failed invalid_request` without an id."""
    async with house() as h:
        bot = h.port.connect()
        bot.send(*frames)
        await settled()
        ((_, payload),) = bot.take()
        refused = msgspec.json.decode(payload)
        assert (refused["type"], refused["code"], refused["id"]) == ("failed", "invalid_request", None)


async def test_hello_ping_and_probe_are_answered() -> None:
    """Welcome with limits and routes, pong with the nonce, a report."""
    async with house() as h:
        bot = h.port.connect()
        send(bot, {"type": "hello", "name": "bo\x00t"}, {"type": "ping", "nonce": "n"}, {"type": "probe"})
        await settled()
        welcome, pong, report = read(bot)
        assert (welcome["routes"], welcome["limits"]["max_message_bytes"]) == (["default"], LIMIT)
        assert (pong["nonce"], pong["mono_us"], pong["wall_us"]) == ("n", 7, 8)
        assert report["type"] == "report"
        assert (await h.call(bot)).peer.label == "bot"


async def test_an_id_in_flight_is_refused_and_free_after_its_terminal() -> None:
    """duplicate_id names the call, carries no call_id, and the old call goes on."""
    async with house() as h:
        bot = h.port.connect()
        first = await h.call(bot)
        send(bot, call())
        await settled()
        (refused,) = read(bot)
        assert (refused["code"], refused["id"], refused["call_id"]) == ("duplicate_id", "a", None)
        assert first.ended == []
        first.done()
        send(bot, call())
        await settled()
        assert [m["type"] for m in read(bot)] == ["done", "accepted"]
        other = h.port.connect()
        await h.call(other)  # ids are scoped to the connection


async def test_a_refusal_of_the_dispatcher_is_passed_on() -> None:
    """`submit` may return a `failed`; the id is free at once."""
    async with house() as h:
        bot = h.port.connect()
        h.handler.refuse = lambda c: Failed(id=c.id, code="unknown_route", message="m", retryable=False)
        send(bot, call(), call())
        await settled()
        assert [m["code"] for m in read(bot)] == ["unknown_route", "unknown_route"]


async def test_cancel_ends_the_call_and_is_silent_otherwise() -> None:
    """By id, guarded by call_id; unknown and ended ids get nothing."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        send(bot, {"type": "cancel", "id": "zz"}, {"type": "cancel", "id": "a", "call_id": "other"})
        await settled()
        assert (ticket.ended, read(bot)) == ([], [])
        send(bot, {"type": "cancel", "id": "a", "call_id": ticket.call_id}, {"type": "cancel", "id": "a"})
        await settled()
        assert ticket.ended == ["cancelled"]
        assert [m["code"] for m in read(bot)] == ["cancelled"]


async def test_a_restart_drops_what_was_not_sent_and_counts_anew() -> None:
    """After `restarted` seq starts at 0, and `deltas` counts only what follows it."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot, on_lost="restart")
        ticket.reply.text("old")
        h.frontend.flush()
        ticket.reply.text("unsent")
        for attempt in (2, 3):
            ticket.reply.restart(Restarted(id="a", attempt=attempt, upstream="u", model="m"))
        assert not ticket.reply.committed
        ticket.reply.text("new")
        ticket.done()
        h.frontend.flush()
        got = read(bot)
        assert [m["type"] for m in got] == ["delta", "restarted", "delta", "done"]  # of two unsent the last is enough
        assert (got[-2]["seq"], got[-2]["text"], got[-1]["deltas"]) == (0, "new", 1)


async def test_failed_tells_whether_deltas_were_forwarded() -> None:
    """Partial is filled in here, and with stream false the text that came is in the terminal."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        ticket.reply.text("some")
        ticket.fail("upstream_lost")
        whole = await h.call(bot, "b", stream=False)
        whole.reply.text("some")
        whole.fail("upstream_lost")
        h.frontend.flush()
        failed = [m for m in [*read(bot)] if m["type"] == "failed"]
        assert [(m["id"], m["partial"], m["text"], m["deltas"]) for m in failed] == [("b", False, "some", 0)]


async def test_arrays_go_only_to_bots_that_asked() -> None:
    """With hello {batch: true} a pass is one array for all calls; without it one map per message."""
    async with house() as h:
        plain, batch = h.port.connect(), h.port.connect()
        send(batch, {"type": "hello", "batch": True})
        tickets = [await h.call(bot, name) for bot in (plain, batch) for name in "ab"]
        for ticket in tickets:
            ticket.reply.text("t")
        h.frontend.flush()
        assert [m["id"] for m in read(plain)] == ["a", "b"]
        ((first, second),) = read(batch)
        assert (first["id"], second["id"]) == ("a", "b")
        tickets[2].done()
        h.frontend.flush()
        assert read(batch)[0]["type"] == "done"  # one message alone needs no array


async def test_arrays_hold_256_maps_and_max_message_bytes_at_most() -> None:
    """Also the array of a long pause is bounded, and nothing is lost between two of them."""
    async with house(max_message_bytes=LIMIT) as h:
        bot = h.port.connect()
        send(bot, {"type": "hello", "batch": True})
        ticket = await h.call(bot)
        ticket.reply.text("x" * 20_000)
        h.frontend.flush()
        payloads = [payload for _, payload in bot.take()]
        assert max(map(len, payloads)) <= LIMIT
        decoded = [msgspec.json.decode(payload) for payload in payloads]
        maps = [m for one in decoded for m in (one if isinstance(one, list) else [one])]
        assert [m["seq"] for m in maps] == list(range(len(maps)))
        assert sum(len(m["text"]) for m in maps) == 20_000


async def test_a_full_bot_gets_fewer_larger_deltas_in_order() -> None:
    """What is not taken stays and is merged; nothing is lost, doubled or out of order."""
    async with house() as h:
        bot = h.port.connect(capacity=2)
        ticket = await h.call(bot)
        for number in range(50):
            ticket.reply.text(f"{number},")
            h.frontend.flush()
        ticket.done()
        h.frontend.flush()
        assert h.frontend.statistics().congested == 1
        got: list[Any] = []
        while not got or got[-1]["type"] != "done":
            got += read(bot)
            await settled()
        deltas = got[:-1]
        assert "".join(m["text"] for m in deltas) == "".join(f"{n}," for n in range(50))
        assert [m["seq"] for m in deltas] == list(range(len(deltas)))
        assert len(deltas) <= 4
        assert got[-1]["deltas"] == len(deltas)
        assert h.frontend.statistics().congested == 0


async def test_a_sweep_finds_room_when_the_ports_wake_was_eaten(autojump_clock: trio.testing.MockClock) -> None:
    """A full bot that reads is served within 50 ms even without a wake."""
    async with house() as h:
        bot, _ = await h.stuck()
        bot.inbox.clear()  # read, and nobody is woken
        await trio.sleep(0.051)
        assert len(bot.inbox) == 1


async def test_the_delta_after_a_long_stall_is_cut_to_fit() -> None:
    """Merged text is sent in pieces whose messages fit max_message_bytes, whatever the characters."""
    async with house() as h:
        bot = h.port.connect(capacity=1)
        ticket = await h.call(bot)
        text = ("\x01" * 1000) + ("€" * 1000)
        ticket.reply.text("first")
        h.frontend.flush()
        ticket.reply.text("parked")
        h.frontend.flush()
        ticket.reply.text(text)
        ticket.done()
        h.frontend.flush()
        got: list[Any] = []
        while not got or got[-1]["type"] != "done":
            for _, payload in bot.take():
                assert len(payload) <= LIMIT
                got.append(msgspec.json.decode(payload))
            await settled()
        assert "".join(m["text"] for m in got[:-1]) == "firstparked" + text


async def test_a_bot_whose_pipe_is_full_too_long_is_stopped(autojump_clock: trio.testing.MockClock) -> None:
    """slow_reader after stall_timeout, not before; text and terminal are kept until it reads."""
    async with house() as h:
        bot, ticket = await h.stuck()
        started = trio.current_time()
        await trio.sleep(4.9)
        assert ticket.ended == []
        while not ticket.ended:
            await trio.sleep(0.01)
        assert trio.current_time() - started <= 5.3
        assert ticket.ended == ["slow_reader"]
        await trio.sleep(60)
        got: list[Any] = []
        for _ in range(4):
            got += read(bot)
            await settled()
        assert [m["type"] for m in got] == ["delta", "delta", "delta", "failed"] or got[-1]["partial"]
        assert "".join(m["text"] for m in got[:-1]) == "xxx"


async def test_a_stopped_bot_is_noticed_by_what_the_kernel_holds(autojump_clock: trio.testing.MockClock) -> None:
    """Unread bytes that do not become fewer: stopped long before the pipe is full, within a second of the timeout."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        ticket.reply.text("x")
        h.frontend.flush()
        bot.unread = 700
        await trio.sleep(4.9)
        assert ticket.ended == []
        await trio.sleep(1.1)
        assert ticket.ended == ["slow_reader"]


async def test_a_slow_but_reading_bot_is_not_stopped(autojump_clock: trio.testing.MockClock) -> None:
    """As long as it takes something within stall_timeout it keeps its call, and gets everything."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        bot.unread = 100_000
        for _ in range(20):
            ticket.reply.text("x")
            h.frontend.flush()
            await trio.sleep(3)
            bot.unread -= 1000
        assert ticket.ended == []
        bot.unread = 0
        await trio.sleep(1)
        assert "".join(m["text"] for m in read(bot)) == "x" * 20


async def test_no_call_no_stall(autojump_clock: trio.testing.MockClock) -> None:
    """A bot with nothing in flight may leave its messages unread as long as it likes; no timer runs for it."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        ticket.done()
        h.frontend.flush()
        bot.unread = 500
        await trio.sleep(3600)
        assert h.frontend.statistics().stalled_calls == 0


async def test_too_much_waiting_text_ends_the_call_early(autojump_clock: trio.testing.MockClock) -> None:
    """Memory is bounded even when stall_timeout is long."""
    async with house(stall_timeout=3600.0) as h:
        bot = h.port.connect(capacity=1)
        ticket = await h.call(bot)
        for _ in range(10):
            ticket.reply.text("x" * (1 << 19))
            h.frontend.flush()
        await trio.sleep(1)
        assert ticket.ended == ["slow_reader"]


async def test_a_departed_bots_calls_are_abandoned_once() -> None:
    """Nothing is said to it any more, its outbox is dropped, and late text harms nobody."""
    async with house() as h:
        bot, ticket = await h.stuck()
        bot.leave()
        await settled()
        assert ticket.abandoned == 1
        ticket.reply.text("y")
        ticket.done()
        h.frontend.flush()
        stats = h.frontend.statistics()
        assert (stats.peers, stats.congested, stats.departed, ticket.abandoned) == (0, 0, 1, 1)


async def test_a_bot_found_gone_by_a_send_is_departed() -> None:
    """GONE ends its calls at once, without waiting for the port's own word."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        del h.port._bots[bot.routing_id]
        ticket.reply.text("x")
        h.frontend.flush()
        assert ticket.abandoned == 1
        assert h.frontend.statistics().peers == 0


async def test_a_bot_gone_before_its_accepted_is_abandoned() -> None:
    """Also when the departure is found while `submit` runs."""
    async with house() as h:
        bot = h.port.connect()
        inner = h.handler.submit

        def submit(*args: Any, **kwargs: Any) -> Any:
            ticket = inner(*args, **kwargs)
            del h.port._bots[bot.routing_id]
            h.frontend.flush()
            return ticket

        h.handler.submit = submit  # type: ignore[method-assign]
        send(bot, call())
        await settled()
        assert h.handler.tickets[0].abandoned == 1


async def test_calls_of_one_connection_are_bounded() -> None:
    """Beyond max_calls_in_flight + queue_max unfinished or unread: overloaded, retryable, jittered."""
    async with house() as h:
        bot = h.port.connect()
        send(bot, *(call(str(n)) for n in range(6)))
        await settled()
        refused = [m for m in read(bot) if m["type"] == "failed"]
        assert [(m["code"], m["id"], m["retryable"], m["retry_after_ms"]) for m in refused] == [
            ("overloaded", "4", True, 150), ("overloaded", "5", True, 150),
        ]  # fmt: skip
        for ticket in h.handler.tickets:
            ticket.done()
        h.frontend.flush()
        send(bot, call("again"))
        await settled()
        assert len(h.handler.tickets) == 5


async def test_unread_terminals_count_against_the_bound() -> None:
    """A bot that calls and never reads cannot pile up terminals."""
    async with house() as h:
        bot = h.port.connect(capacity=1)
        for number in range(20):
            send(bot, call(str(number)))
            await settled()
            if h.handler.tickets:
                h.handler.tickets[-1].done()
            h.frontend.flush()
        assert len(h.handler.tickets) <= 6


async def test_refusals_to_a_bot_that_does_not_read_are_bounded() -> None:
    """A flood of garbage costs a bounded outbox, and another bot is served meanwhile."""
    async with house() as h:
        flooder, other = h.port.connect(capacity=4), h.port.connect()
        for _ in range(5000):
            flooder.send(b"garbage")
        send(other, call())
        await settled()
        assert [m["type"] for m in read(other)] == ["accepted"]
        stats = h.frontend.statistics()
        assert (stats.refused, stats.dropped) == (5000, 5000 - 4 - MAX_NOTES)


async def test_a_refused_send_is_followed_by_a_look_at_what_came_in() -> None:
    """A send that finds the pipe full eats ZeroMQ's edge all the same: not looking lost other bots' messages."""
    async with house() as h:
        flooder = h.port.connect(capacity=1)
        for _ in range(3):
            flooder.send(b"garbage")
        await settled()
        before = h.port.settled
        assert not h.frontend._watch.retry()
        assert h.port.settled == before + 1


async def test_an_array_of_probes_costs_one_report() -> None:
    """Fifty probes at once are answered each, from one snapshot."""
    async with house() as h:
        made: list[wire.Report] = []
        h.frontend._report = lambda: made.append(h.report()) or made[-1]  # type: ignore[func-returns-value]
        bot = h.port.connect()
        bot.send(b"[" + b",".join([b'{"type":"probe"}'] * 50) + b"]")
        await settled()
        assert [message["type"] for message in read(bot)] == ["report"] * 50
        assert len(made) == 1


async def test_a_bot_that_reads_gets_every_refusal() -> None:
    """Sixty arrays of 256 bad maps in one pass: 15,360 refusals are owed, and none is dropped."""
    async with house() as h:
        bot = h.port.connect(capacity=100_000)
        for _ in range(60):
            bot.send(b"[" + b",".join([b"{}"] * 256) + b"]")
        await settled()
        assert len(read(bot)) == 60 * 256
        assert h.frontend.statistics().dropped == 0


async def test_a_flood_leaves_other_tasks_their_turn() -> None:
    """Between two batches every other task runs."""
    async with house() as h:
        flooder = h.port.connect()
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1
                if not h.port._messages:
                    return

        for _ in range(6400):
            flooder.send(b"garbage")
        await other()
        assert turns >= 6400 // RECEIVE_LIMIT - 2


async def test_a_chosen_routing_id_is_refused() -> None:
    """Only ids that the port gave unasked are taken: a chosen one could be another bot's tomorrow."""
    async with house() as h:
        bot = h.port.connect(routing_id=b"bot-7")
        send(bot, call())
        await settled()
        (refused,) = read(bot)
        assert (refused["code"], refused["id"]) == ("invalid_request", "a")
        assert "routing id" in refused["message"]
        assert h.handler.tickets == []


async def test_connections_per_user_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One uid cannot take every place: further connections get `overloaded`, another uid does not notice."""
    monkeypatch.setattr("sidecar.service.frontend.MAX_CONNECTIONS_PER_UID", 2)
    async with house() as h:
        bots = [h.port.connect() for _ in range(3)]
        for bot in bots:
            send(bot, call())
        other = h.port.connect(uid=2000)
        send(other, call())
        await settled()
        assert [read(bot)[0].get("code") for bot in (*bots, other)] == [None, None, "overloaded", None]
        bots[0].leave()
        bots[2].leave()
        await settled()
        late = h.port.connect()
        send(late, call())
        await settled()
        assert read(late)[0]["type"] == "accepted"


async def test_half_a_surrogate_pair_does_not_stop_the_frontend() -> None:
    """Whatever an upstream got through is sent as UTF-8."""
    async with house() as h:
        bot = h.port.connect()
        ticket = await h.call(bot)
        ticket.reply.text("a\ud83d")
        ticket.done()
        h.frontend.flush()
        assert [m.get("text") for m in read(bot)] == ["a?", None]


def test_who_is_calling_is_read_from_the_kernels_word() -> None:
    """Odd addresses give an unknown peer, never an exception."""
    assert identity_of("localhost:1:2:3") == Peer(uid=1, gid=2, pid=3)
    for odd in ("", "localhost", "::", "a:b:c:d", "localhost:-1:0:0"):
        assert identity_of(odd).uid == -1
    assert is_automatic(b"\0abcd")
    assert not is_automatic(b"\0abc")
    assert not is_automatic(b"abcde")
