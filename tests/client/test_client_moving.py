"""What a client does by itself while its daemon is drained and restarted, and what it leaves to the bot."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.client import AsyncClient, Client
from sidecar.client.calls import OpenCall
from sidecar.client.session import Session
from sidecar.errors import CallFailed, DaemonGone, InternalFailure, NeverSent, RequestRefused, Stopped
from sidecar.wire import Failed
from tests.client.test_client_session import accepted, code, connected, delta, done, failed, hear, opened, sent
from tests.fakes.fake_daemon import FakeDaemon

SIDES = ["BUY", "SELL", "HOLD"]


def draining(call: OpenCall, retry_after_ms: int | None = 400, **fields: Any) -> dict[str, Any]:
    """The refusal."""
    hint = {"retryable": True, "retry_after_ms": retry_after_ms}
    return {"type": "failed", "id": call.id, "code": "draining", "message": "m", **hint, **fields}


def successor(session: Session) -> list[dict[str, Any]]:
    """The connection goes, another one comes; what is sent on it after the greeting."""
    session.connection_lost()
    assert session.next_payload() is None
    session.connection_made()
    greeting, *rest = sent(session)
    assert greeting["type"] == "hello"
    return rest


# ------------------------------------------------------------------------------------------------ the session


def test_a_refused_call_waits_for_the_next_connection() -> None:
    """It is not sent to the daemon that refused it, and to the next one as it was: same id, same instant of sending."""
    session = connected()
    call = opened(session, timeout_ms=2000)
    hear(session, draining(call), now=0.5)
    assert call.ended is None
    assert session.leaving
    assert sent(session) == []
    (again,) = successor(session)
    assert (again["id"], again["sent_mono_us"], again["timeout_ms"]) == (call.id, 0, 2000)
    assert "moves_on" not in again
    hear(session, accepted(call), done(call), now=1.5)
    assert call.ended is not None
    assert session.idle


def test_a_deadline_before_the_hint_is_told_at_once() -> None:
    """Nobody comes back sooner than `retry_after_ms`: 400 ms do not fit into 400, and the refusal is passed on."""
    session = connected()
    early, late = opened(session, timeout_ms=400), opened(session, timeout_ms=401)
    hear(session, draining(early), draining(late))
    assert isinstance(early.ended, Failed)
    assert (early.ended.code, early.ended.retry_after_ms, early.local) == ("draining", 400, False)
    assert late.ended is None


def test_at_the_deadline_it_is_draining_still() -> None:
    """Never sent, so it says so and may be retried; at the deadline and not after it."""
    for gone in (False, True):
        session = connected()
        call = opened(session, timeout_ms=2000)
        hear(session, draining(call))
        if gone:
            session.connection_lost()
        assert session.next_wakeup_at() == 2.0
        session.expire(now=1.999)
        assert call.ended is None
        session.expire(now=2.0)
        assert isinstance(call.ended, Failed)
        assert (call.ended.code, call.ended.retryable, call.local) == ("draining", True, True)
        assert session.idle
        if gone:
            session.connection_made()
            assert [message["type"] for message in sent(session)] == ["hello"]


def test_refused_twice_it_waits_twice() -> None:
    """Two daemons that drain one after the other, or one to which the connection broke: each is asked once."""
    session = connected()
    call = opened(session, timeout_ms=5000)
    for _ in range(2):
        hear(session, draining(call))
        assert [message["id"] for message in successor(session)] == [call.id]
    hear(session, accepted(call), done(call))
    assert call.text == ""
    assert call.ended is not None


@pytest.mark.parametrize("by_client", [False, True])
def test_who_does_not_move_on_is_told_at_once(by_client: bool) -> None:
    """By the call, or by the client; a call's own word counts."""
    session = connected(moves_on=not by_client)
    call = opened(session, timeout_ms=60_000, **({} if by_client else {"moves_on": False}))
    other = opened(session, timeout_ms=60_000, moves_on=True)
    hear(session, draining(call), draining(other))
    assert code(call) == "draining"
    assert other.ended is None


def test_who_does_not_move_on_does_not_wait_for_a_handshake_either() -> None:
    """The connection goes before the call was handed over: nobody has it."""
    session = Session(moves_on=False)
    session.connection_made()
    call = session.open("p", {"timeout_ms": 60_000}, now=0, mono_us=0)
    session.connection_lost()
    assert code(call) == "daemon_unavailable"


def test_a_call_that_was_accepted_and_never_sent_upstream_moves_too() -> None:
    """The end of the drain found it in the queue: `draining` says that nothing of it was sent."""
    session = connected()
    call = opened(session, timeout_ms=5000)
    hear(session, accepted(call), draining(call, call_id=f"d-{call.id}"))
    assert call.ended is None
    (again,) = successor(session)
    assert again["id"] == call.id
    hear(session, accepted(call, call_id="new", session="t"), done(call, call_id="new"))
    assert call.ended is not None
    assert not call.local


def test_a_call_with_text_never_moves() -> None:
    """Whatever the daemon says of it: the bot has seen a piece of an answer."""
    session = connected()
    call = opened(session, timeout_ms=5000)
    hear(session, accepted(call), delta(call, 0), draining(call, call_id=f"d-{call.id}", deltas=1))
    assert code(call) == "draining"


def test_no_other_refusal_is_tried_again() -> None:
    """What is overloaded, or failing, is not asked a second time behind the bot's back."""
    session = connected()
    for reason in ("overloaded", "breaker_open", "no_connection", "deadline_unreachable", "halted", "a_newer_one"):
        call = opened(session, timeout_ms=5000)
        hear(session, failed(call, reason, call_id=None, retryable=True, retry_after_ms=1))
        assert code(call) == reason
    assert successor(session) == []


def test_a_call_that_may_have_begun_is_lost() -> None:
    """Handed over and not refused: `daemon_lost`, and nothing of it on the next connection."""
    session = connected()
    calls = [opened(session, timeout_ms=5000) for _ in range(2)]
    hear(session, accepted(calls[0]))
    assert successor(session) == []
    assert [code(call) for call in calls] == ["daemon_lost", "daemon_lost"]


@pytest.mark.parametrize("way", ["cancel", "abandon"])
def test_a_waiting_call_can_be_ended(way: str) -> None:
    """At once, and it is not offered to anybody."""
    session = connected()
    call = opened(session, timeout_ms=5000)
    hear(session, draining(call))
    getattr(session, way)(call)
    assert code(call) == "cancelled"
    assert successor(session) == []
    assert session.idle


def test_closing_ends_it() -> None:
    """As everything else."""
    session = connected()
    call = opened(session, timeout_ms=5000)
    hear(session, draining(call))
    session.close()
    assert code(call) == "cancelled"


def test_a_cancelled_call_is_not_kept() -> None:
    """The refusal crosses the cancel: nobody wants the call any more."""
    session = connected()
    call = opened(session, timeout_ms=5000)
    session.cancel(call)
    hear(session, draining(call))
    assert code(call) == "draining"


@pytest.mark.parametrize("wish", ["yes", 1, 0.0])
def test_a_wish_that_is_no_bool_is_refused(wish: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(RequestRefused, match="moves_on"):
        Session().open("p", {"moves_on": wish}, now=0, mono_us=0)


# ------------------------------------------------------------------------------------------------ over real ipc


def test_one_daemon_drained_and_restarted_costs_time_and_no_call(daemon: FakeDaemon) -> None:
    """Blocking: refused calls and new ones are answered by the successor, each handed to it once."""
    with Client(daemon.endpoint) as client:
        client.ping()
        daemon.refuse("draining")
        handles = [client.submit(f"n{number}", timeout_ms=20_000) for number in range(20)]
        client.ping()
        assert not any(handle.ended for handle in handles)
        daemon.kill()
        daemon.refuse("")
        daemon.start()
        assert [handle.result().text for handle in handles] == [f"n{number}" for number in range(20)]
    received = [(call["id"], call["sent_mono_us"]) for call in daemon.received()]
    assert {received.count(one) for one in received} == {2}, "each once to the one that refused it, once to the next"


def test_an_asyncio_client_waits_for_the_successor_too(daemon: FakeDaemon) -> None:
    """The tasks that wait see one answer each."""

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client, asyncio.timeout(30):
            await client.ping()
            daemon.refuse("draining")
            asks = [asyncio.create_task(client.ask(f"n{number}", timeout_ms=20_000)) for number in range(20)]
            while len(daemon.received()) < 20:
                await asyncio.sleep(0.01)
            await client.ping()
            daemon.kill()
            daemon.refuse("")
            daemon.start()
            assert [answer.text for answer in await asyncio.gather(*asks)] == [f"n{number}" for number in range(20)]

    asyncio.run(main())


def test_choose_has_its_default_by_its_deadline(daemon: FakeDaemon) -> None:
    """The reason is `draining`; with ``moves_on=False``, at once."""
    with Client(daemon.endpoint) as client:
        client.ping()
        daemon.refuse("draining")
        for looks in (True, False):
            started = time.monotonic()
            choice = client.choose("BUY", SIDES, default="HOLD", timeout_ms=300 if looks else 60_000, moves_on=looks)
            assert time.monotonic() - started < 20
            assert (str(choice), choice.reason) == ("HOLD", "draining")
            if looks:
                assert time.monotonic() - started >= 0.3


def test_without_a_daemon_a_call_that_does_not_move_on_fails_at_once(daemon: FakeDaemon) -> None:
    """The daemon was killed: its socket file is there and nobody listens. Then the file is gone, too."""
    with Client(daemon.endpoint, moves_on=False) as client:
        client.ping()
        daemon.kill()
        for _ in range(2):
            # The first call may be handed to a daemon that is dying; from the second on it is known.
            with pytest.raises(DaemonGone):
                client.ask("p", timeout_ms=60_000)
        with pytest.raises(DaemonGone, match="nobody listens") as caught:
            client.ask("p", timeout_ms=60_000)
        assert (caught.value.code, caught.value.retryable) == ("daemon_unavailable", True)
        Path(daemon.endpoint.removeprefix("ipc://")).unlink()
        with pytest.raises(DaemonGone, match="ENOENT"):
            client.ask("p", timeout_ms=60_000)
        waiting = client.submit("there", timeout_ms=20_000, moves_on=True)
        daemon.start()
        assert waiting.result().text == "there"


def test_what_is_refused_for_other_reasons_is_the_bots_to_heed(daemon: FakeDaemon) -> None:
    """`overloaded` is told with its hint, asked once, however long the deadline."""
    with Client(daemon.endpoint) as client:
        daemon.refuse("overloaded")
        with pytest.raises(NeverSent) as caught:
            client.ask("p", timeout_ms=60_000)
        assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
        refused = json.dumps([{"failed": {"code": "draining", "call_id": None, "retry_after_ms": 70_000}}])
        daemon.refuse("")
        with pytest.raises(CallFailed) as caught:
            client.ask(refused, timeout_ms=60_000)
        assert (caught.value.code, caught.value.retry_after_ms) == ("draining", 70_000)
    assert len(daemon.received()) == 2


REFUSALS = [
    ("deadline_unreachable", True, NeverSent),
    ("overloaded", True, NeverSent),
    ("breaker_open", True, NeverSent),
    ("no_connection", True, NeverSent),
    ("halted", False, Stopped),
    ("budget_exceeded", False, Stopped),
    ("of_a_newer_daemon", False, InternalFailure),
]


@pytest.mark.parametrize(("reason", "again", "kind"), REFUSALS)
def test_each_refusal_is_told_as_it_came(daemon: FakeDaemon, reason: str, again: bool, kind: type[CallFailed]) -> None:
    """At once, by its class, with the daemon's own word on trying again; `choose()` has it as its reason."""
    prompt = json.dumps([{"failed": {"code": reason, "call_id": None, "retryable": again, "retry_after_ms": 40}}])
    with Client(daemon.endpoint) as client:
        with pytest.raises(kind) as caught:
            client.ask(prompt, timeout_ms=60_000, lane="research")
        failure = caught.value
        assert type(failure) is kind
        assert (failure.code, failure.retryable, failure.retry_after_ms, failure.phase) == (reason, again, 40, None)
        choice = client.choose(prompt, SIDES, default="HOLD", timeout_ms=60_000)
        assert (str(choice), choice.reason, choice.answered) == ("HOLD", reason, False)
    assert len(daemon.received()) == 2
