"""The session, without a socket: every promise of its docstring, with plain floats as time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.client.calls import OpenCall
from sidecar.client.session import UNACCEPTED_TIMEOUT, Session
from sidecar.errors import CallFailed
from sidecar.wire import Done, Failed, Pong, Report

DONE = {"finish": "stop", "usage": {}, "timing": {}, "route": "default", "upstream": "u", "model": "m", "attempts": 1}
HEALTH = {
    "live": True,
    "ready": True,
    "degraded": False,
    "draining": False,
    "version": "0",
    "session": "s",
    "pid": 1,
    "uptime_us": 1,
    "in_flight": 0,
    "queued": 0,
    "loop_lag_us": 0,
}


def connected(**fields: Any) -> Session:
    """A session whose greeting was taken and answered."""
    session = Session(**fields)
    session.connection_made()
    assert sent(session)[0]["type"] == "hello"
    return session


def sent(session: Session) -> list[dict[str, Any]]:
    """Everything it wants to send, taken by the socket."""
    payloads = []
    while (payload := session.next_payload()) is not None:
        payloads.append(msgspec.msgpack.decode(payload))
        session.handed_over()
    return payloads


def hear(session: Session, *messages: dict[str, Any], now: float = 0.0) -> None:
    """One message of the daemon each."""
    for message in messages:
        session.receive(msgspec.msgpack.encode(message), now=now)


def opened(session: Session, *, now: float = 0.0, stream: bool = True, **wishes: Any) -> OpenCall:
    """A call that was handed over."""
    call = session.open("p", wishes, now=now, mono_us=int(now * 1e6), stream=stream)
    sent(session)
    return call


def accepted(call: OpenCall, **fields: Any) -> dict[str, Any]:
    """The daemon's `accepted`."""
    times = {"recv_mono_us": 0, "deadline_mono_us": 5_000_000}
    named = {"id": call.id, "call_id": f"d-{call.id}", "session": "s", "route": "default"}
    return {"type": "accepted", **named, **times, **fields}


def delta(call: OpenCall, seq: int, text: str = "x") -> dict[str, Any]:
    """A piece."""
    return {"type": "delta", "id": call.id, "seq": seq, "text": text}


def done(call: OpenCall, deltas: int = 0, **fields: Any) -> dict[str, Any]:
    """An answered terminal."""
    return {"type": "done", "id": call.id, "call_id": f"d-{call.id}", "deltas": deltas, "wall_us": 1, **DONE, **fields}


def failed(call: OpenCall, code: str = "upstream_lost", **fields: Any) -> dict[str, Any]:
    """A failed terminal."""
    named = {"id": call.id, "code": code, "message": "m", "retryable": False}
    return {"type": "failed", "call_id": f"d-{call.id}", **named, **fields}


def code(call: OpenCall) -> str:
    """The code it failed with."""
    assert isinstance(call.ended, Failed)
    return call.ended.code


def test_a_greeting_comes_first_and_allows_batches() -> None:
    """The first message of a connection is `hello {batch: true}`, then the calls in their order."""
    session = Session(name="bot")
    session.open("one", {}, now=0, mono_us=7)
    assert session.next_payload() is None
    session.connection_made()
    messages = sent(session)
    assert messages[0] == {"type": "hello", "name": "bot", "batch": True}
    assert messages[1] == {"type": "call", "id": "c1", "input": "one", "sent_mono_us": 7}


def test_a_call_streams_to_its_done() -> None:
    """Deltas gather as pieces, the terminal ends the call, and nothing after it changes it."""
    session = connected()
    call = opened(session)
    hear(session, accepted(call), delta(call, 0, "HO"), delta(call, 1, "LD"), done(call, 2))
    assert (call.text, type(call.ended), call.local) == ("HOLD", Done, False)
    hear(session, delta(call, 2), failed(call), accepted(call), done(call, 9))
    assert call.text == "HOLD"
    assert isinstance(call.ended, Done)
    assert sent(session) == []
    assert session.next_wakeup_at() is None


def test_a_batch_is_many_messages_in_order() -> None:
    """An array for several calls goes to each, and each is named once among the changed."""
    session = connected()
    one, two = opened(session), opened(session)
    messages = [accepted(one), delta(one, 0, "a"), accepted(two), delta(two, 0, "b"), delta(one, 1, "c"), done(one, 2)]
    session.receive(msgspec.msgpack.encode(messages), now=0)
    assert (one.text, two.text, type(one.ended), two.ended) == ("ac", "b", Done, None)
    assert session.changed == [one, two]


def test_json_is_understood_too() -> None:
    """The daemon answers in the encoding it was asked in; the session reads both."""
    session = connected()
    call = opened(session)
    session.receive(msgspec.json.encode([accepted(call), delta(call, 0)]), now=0)
    assert call.text == "x"


@pytest.mark.parametrize("seqs", [(1,), (0, 2), (0, 0), (0, 1, 1), (0, 1, 0)])
def test_a_hole_or_a_repetition_is_internal(seqs: tuple[int, ...]) -> None:
    """`seq` out of order fails that call `internal`, keeps the text, cancels it, harms no other."""
    session = connected()
    call, other = opened(session), opened(session)
    hear(session, accepted(call), *(delta(call, seq) for seq in seqs))
    assert code(call) == "internal"
    assert call.local
    assert call.text == "x" * (len(seqs) - 1)
    assert sent(session) == [{"type": "cancel", "id": call.id, "call_id": f"d-{call.id}"}]
    assert other.ended is None


def test_a_done_that_counts_otherwise_is_internal() -> None:
    """A stream with lost deltas is never an answer."""
    session = connected()
    call = opened(session)
    hear(session, accepted(call), delta(call, 0), done(call, 2))
    assert code(call) == "internal"


def test_without_stream_the_text_comes_in_the_terminal() -> None:
    """`stream: false`: the text of `done`, and the partial text of `failed`."""
    session = connected()
    good, bad = opened(session, stream=False), opened(session, stream=False)
    hear(session, accepted(good), done(good, 0, text="BUY"), accepted(bad), failed(bad, text="BU", partial=True))
    assert (good.text, bad.text) == ("BUY", "BU")


def test_a_restart_begins_the_text_anew() -> None:
    """`restarted` forgets the text, and `seq` starts at 0 again."""
    session = connected()
    call = opened(session, on_lost="restart")
    restarted = {"type": "restarted", "id": call.id, "attempt": 2, "upstream": "v", "model": "m"}
    hear(session, accepted(call), delta(call, 0, "BU"), restarted, delta(call, 0, "SELL"), done(call, 1))
    assert (call.text, call.restarts, type(call.ended)) == ("SELL", 1, Done)


def test_a_refusal_ends_only_a_call_that_was_not_accepted() -> None:
    """A `failed` without `call_id` ends no call in flight (duplicate_id and the like)."""
    session = connected()
    call = opened(session)
    hear(session, accepted(call), failed(call, "duplicate_id", call_id=None))
    assert call.ended is None
    refused = opened(session)
    hear(session, failed(refused, "unknown_route", call_id=None))
    assert code(refused) == "unknown_route"
    assert not refused.local


def test_a_terminal_of_another_call_is_internal() -> None:
    """Same id, other `call_id`: the text may be another bot's. Not taken."""
    session = connected()
    call = opened(session)
    hear(session, accepted(call), done(call, 0, call_id="d-other"))
    assert code(call) == "internal"


def test_the_deadline_holds_here_with_a_grace() -> None:
    """Not before the deadline plus the grace; then `deadline_exceeded`, and a cancel to the daemon."""
    session = connected()
    call = opened(session, now=10.0, timeout_ms=500)
    assert session.next_wakeup_at() == pytest.approx(10.52)
    session.expire(now=10.51)
    assert call.ended is None
    session.expire(now=10.53)
    assert code(call) == "deadline_exceeded"
    assert [message["type"] for message in sent(session)] == ["cancel"]


def test_without_a_timeout_the_accepted_deadline_holds() -> None:
    """2,000 ms until accepted, then what `accepted` says, as a difference in the daemon's own clock."""
    session = connected()
    silent, heard = opened(session, now=0.0), opened(session, now=0.0)
    hear(session, accepted(heard, recv_mono_us=9_000_000, deadline_mono_us=17_000_000), now=0.5)
    session.expire(now=UNACCEPTED_TIMEOUT + 0.1)
    assert code(silent) == "deadline_exceeded"
    assert heard.ended is None
    assert session.next_wakeup_at() == pytest.approx(8.52)


def test_a_call_that_was_never_handed_over_has_no_grace() -> None:
    """The daemon cannot answer what it does not have: the client is back at the deadline itself."""
    session = Session()
    call = session.open("p", {"timeout_ms": 100}, now=5.0, mono_us=0)
    assert session.next_wakeup_at() == pytest.approx(5.1)
    session.connection_made()
    sent(session)
    assert session.next_wakeup_at() == pytest.approx(5.12)
    session.expire(now=5.11)
    assert call.ended is None


def test_what_was_not_sent_by_its_deadline_is_never_sent() -> None:
    """Without a connection a call ends `daemon_unavailable`, retryable, and its payload is gone."""
    session = Session()
    call = session.open("p", {"timeout_ms": 100}, now=0.0, mono_us=0)
    session.expire(now=1.0)
    assert code(call) == "daemon_unavailable"
    assert isinstance(call.ended, Failed)
    assert call.ended.retryable
    session.connection_made()
    assert [message["type"] for message in sent(session)] == ["hello"]


def test_a_disconnect_ends_what_was_sent_and_keeps_what_was_not() -> None:
    """Handed over: `daemon_lost`, never again on the wire. Not handed over: goes to the next connection, once."""
    session = connected()
    lost, raced = opened(session), opened(session)
    hear(session, accepted(lost), delta(lost, 0, "BU"))
    waiting = session.open("later", {}, now=0.0, mono_us=0)
    session.connection_lost()
    assert (code(lost), code(raced), waiting.ended, lost.text) == ("daemon_lost", "daemon_lost", None, "BU")
    assert session.next_payload() is None
    session.connection_made()
    messages = sent(session)
    assert [message["type"] for message in messages] == ["hello", "call"]
    assert messages[1]["id"] == waiting.id
    assert sent(session) == []


def test_a_new_session_in_welcome_ends_what_the_old_one_accepted() -> None:
    """A restart that nobody noticed is noticed by the greeting."""
    session = connected()
    call = opened(session)
    limits = {"max_message_bytes": 1000, "max_calls_in_flight": 1, "queue_max": 1}
    welcome = {"type": "welcome", "version": "0", "wire": 1, "mono_us": 1, "wall_us": 1, "limits": limits, "routes": []}
    hear(session, {**welcome, "session": "s"}, accepted(call), {**welcome, "session": "t"})
    assert code(call) == "daemon_lost"


def test_cancel_and_abandon() -> None:
    """Cancel waits for the daemon's terminal; abandon does not, and hears nothing more; unsent calls end at once."""
    session = connected()
    call, left = opened(session), opened(session)
    unsent = session.open("p", {}, now=0.0, mono_us=0)
    session.cancel(call)
    session.abandon(left)
    session.cancel(unsent)
    assert (call.ended, code(left), code(unsent)) == (None, "cancelled", "cancelled")
    assert [message["id"] for message in sent(session)] == [call.id, left.id]
    hear(session, failed(call, "cancelled", call_id=None), accepted(left), done(left))
    assert code(call) == "cancelled"
    assert not call.local
    session.cancel(call)
    assert sent(session) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e12, "5", True, [1]])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    """The client keeps the deadline itself, so it must be one."""
    with pytest.raises(CallFailed, match="timeout_ms") as caught:
        Session().open("p", {"timeout_ms": timeout}, now=0.0, mono_us=0)
    assert caught.value.code == "invalid_request"


def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    """No prompt, two prompts, what cannot be encoded, an unknown wish, too large a prompt."""
    session = connected()
    limits = {"max_message_bytes": 1000, "max_calls_in_flight": 1, "queue_max": 1}
    clock = {"session": "s", "mono_us": 1, "wall_us": 1}
    hear(session, {"type": "welcome", "version": "0", "wire": 1, "limits": limits, "routes": [], **clock})
    for prompt, wishes, expected in (
        (None, {}, "invalid_request"),
        ("p", {"messages": []}, "invalid_request"),
        ("p", {"options": {"x": object()}}, "invalid_request"),
        ("p", {"options": {"x": 2**70}}, "invalid_request"),
        ("\ud800", {}, "invalid_request"),
        ("p" * 2000, {}, "too_large"),
    ):
        with pytest.raises(CallFailed) as caught:
            session.open(prompt, wishes, now=0.0, mono_us=0)
        assert caught.value.code == expected
    with pytest.raises(TypeError, match="timeout"):
        session.open("p", {"timeout": 5}, now=0.0, mono_us=0)
    assert sent(session) == []
    assert session.next_wakeup_at() is None


def test_questions_are_answered_or_late() -> None:
    """Pongs by their nonce, reports in order; a late report does not answer the next probe."""
    session = connected()
    ping, late = session.ping(now=0.0, timeout=1.0), session.probe("full", now=0.0, timeout=0.1)
    nonce = sent(session)[0]["nonce"]
    session.expire(now=0.5)
    assert late.failure is not None
    assert late.failure.code == "deadline_exceeded"
    second = session.probe("full", now=0.5, timeout=1.0)
    sent(session)
    hear(session, {"type": "report", **HEALTH, "pid": 1})
    assert not second.over
    hear(session, {"type": "report", **HEALTH, "pid": 2}, {"type": "report", **HEALTH, "pid": 3})
    assert isinstance(second.answer, Report)
    assert second.answer.pid == 2
    hear(session, {"type": "pong", "nonce": nonce, "session": "s", "mono_us": 1, "wall_us": 1})
    assert isinstance(ping.answer, Pong)


def test_an_unreadable_message_about_a_call_fails_that_call_alone() -> None:
    """In a batch too: a `done` without its fields is no answer; unknown types are a newer daemon's, and ignored."""
    session = connected()
    call, other = opened(session), opened(session)
    bad = {"type": "done", "id": call.id, "finish": "because"}
    news = {"type": "news", "id": other.id}
    session.receive(msgspec.msgpack.encode([accepted(other), bad, news, delta(other, 0, "ok"), 5]), now=0)
    assert code(call) == "internal"
    assert (other.ended, other.text) == (None, "ok")


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_garbage_never_raises_and_never_ends_a_call(payloads: list[bytes]) -> None:
    """Bytes that are no message: the call goes on to its deadline."""
    session = connected()
    call = opened(session)
    for payload in payloads:
        session.receive(payload, now=0)
    assert call.ended is None


STEPS = ["accepted", "delta", "hole", "done", "failed", "refusal", "lost", "made", "cancel", "abandon", "late"]


@given(st.lists(st.sampled_from(STEPS), max_size=25))
def test_exactly_one_terminal_whatever_happens(steps: list[str]) -> None:
    """In any order of events the first terminal stays, one call never travels twice, and the deadline ends the rest."""
    session = connected()
    call = session.open("p", {"timeout_ms": 1000}, now=0.0, mono_us=0)
    travelled, seq = 0, 0
    first: object = None
    for step in [*steps, "late"]:
        match step:
            case "accepted":
                hear(session, accepted(call))
            case "delta":
                hear(session, delta(call, seq))
                seq += 1
            case "hole":
                hear(session, delta(call, seq + 1))
            case "done":
                hear(session, done(call, seq))
            case "failed":
                hear(session, failed(call))
            case "refusal":
                hear(session, failed(call, call_id=None))
            case "lost":
                session.connection_lost()
            case "made":
                session.connection_made()
            case "cancel":
                session.cancel(call)
            case "abandon":
                session.abandon(call)
            case "late":
                session.expire(now=99.0)
        first = first or call.ended
        assert call.ended is first
        travelled += sum(message["type"] == "call" for message in sent(session))
    assert first is not None
    assert travelled <= 1
    assert session.next_wakeup_at() is None


def test_ended_calls_with_far_deadlines_do_not_pile_up() -> None:
    """A day's timeout on each of many short calls keeps no memory of them."""
    session = connected()
    opened(session, timeout_ms=1)
    for _ in range(2000):
        call = opened(session, timeout_ms=86_400_000)
        hear(session, accepted(call), done(call))
        session.changed.clear()
    assert len(session._alarms) < 200
