"""`Client` against a scripted daemon over real ipc. Bounds on time are generous: see `measure_choose`."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from typing import Any

import pytest

from sidecar import errors
from sidecar.client import Client
from sidecar.errors import CODES, CallFailed, DaemonGone, RequestRefused, SidecarError, TimedOut
from sidecar.wire import Done, Failed
from tests.fakes.fake_daemon import FakeDaemon

SIDES = ["BUY", "SELL", "HOLD"]
#: Against "never". How exact it is, benchmarks say, which compare: a test only asks whether the caller was let go, on a
#: machine where a process may be held for a second.
LATE_S = 10.0


def script(*steps: Any) -> str:
    """The prompt that makes the fake daemon do these steps."""
    return json.dumps(steps)


def ended(handle: Any) -> CallFailed:
    """The failure a call ends with."""
    with pytest.raises(CallFailed) as caught:
        handle.result()
    return caught.value


def test_a_stream_arrives_in_pieces_with_its_terminal_after(daemon: FakeDaemon) -> None:
    """Every piece in order, then the answer."""
    with Client(daemon.endpoint, name="t") as client:
        with client.stream(script("accept", {"delta": "HO"}, {"delta": "LD"}, {"done": {}})) as stream:
            assert list(stream) == ["HO", "LD"]
        assert stream.answer.text == "HOLD"
        assert stream.answer.complete
        assert isinstance(stream.terminal, Done)
        assert list(stream) == []
        assert client.welcome is not None
        assert client.welcome.routes == ["default"]
    assert daemon.received("hello")[0]["batch"] is True


def test_ask_sends_its_wishes_by_their_wire_names(daemon: FakeDaemon) -> None:
    """`stream: false`, only what was wished for, and always `sent_mono_us`."""
    before = time.monotonic_ns() // 1000
    with Client(daemon.endpoint) as client:
        answer = client.ask(
            "hello",
            route="fast",
            instructions="be",
            options={"top_p": 1},
            timeout_ms=900,
            idle_timeout_ms=70,
            lane="exit",
        )
    assert str(answer) == answer.text == "hello"
    (call,) = daemon.received()
    assert before <= call.pop("sent_mono_us") <= time.monotonic_ns() // 1000
    del call["session"], call["id"]
    assert call == {
        "type": "call",
        "input": "hello",
        "stream": False,
        "route": "fast",
        "instructions": "be",
        "options": {"top_p": 1},
        "timeout_ms": 900,
        "idle_timeout_ms": 70,
        "lane": "exit",
    }


def test_messages_in_place_of_a_prompt(daemon: FakeDaemon) -> None:
    """A conversation goes as it is."""
    turns = [{"role": "user", "content": "hi"}]
    with Client(daemon.endpoint) as client:
        client.ask(messages=turns)
    assert daemon.received()[0]["messages"] == turns


def test_every_code_has_its_class_and_keeps_the_text(daemon: FakeDaemon) -> None:
    """One class per group of codes; an unknown code is an InternalFailure; partial text stays."""
    with Client(daemon.endpoint) as client:
        for code in [*CODES, "invented_tomorrow"]:
            more = {"code": code, "retry_after_ms": 7, "retryable": True, "partial": True}
            failure = ended(client.submit(script("accept", {"delta": "BU"}, {"failed": more}), timeout_ms=5000))
            assert type(failure) is type(CallFailed.of(code, ""))
            assert (failure.code, failure.text, failure.retry_after_ms, failure.retryable) == (code, "BU", 7, True)
            assert isinstance(failure.terminal, Failed)
    assert type(CallFailed.of("invented_tomorrow", "")) is errors.InternalFailure


def test_iterating_a_failing_stream_gives_its_text_first(daemon: FakeDaemon) -> None:
    """The pieces, then the error, which keeps them."""
    with Client(daemon.endpoint) as client, client.stream(script("accept", {"delta": "a"}, {"failed": {}})) as stream:
        assert next(stream) == "a"
        for _ in range(2):
            with pytest.raises(CallFailed, match="as scripted") as caught:
                next(stream)
    assert caught.value.text == "a"


def test_an_incomplete_answer_is_marked(daemon: FakeDaemon) -> None:
    """`finish: length` is an answer, and not complete."""
    with Client(daemon.endpoint) as client:
        answer = client.ask(script("accept", {"done": {"finish": "length", "text": "BU"}}))
    assert (answer.text, answer.complete) == ("BU", False)


def test_a_restart_shows_as_an_empty_piece(daemon: FakeDaemon) -> None:
    """Forget the text so far; `text` is always right."""
    steps = script("accept", {"delta": "BU"}, {"restarted": {}}, {"delta": "SELL"}, {"done": {}})
    with Client(daemon.endpoint) as client, client.stream(steps, on_lost="restart") as stream:
        pieces = list(stream)
    assert "".join(pieces[pieces.index("") :]) == "SELL" == stream.text
    assert stream.restarts == 1


def test_a_silent_daemon_ends_at_the_deadline(daemon: FakeDaemon) -> None:
    """`deadline_exceeded`, the partial text kept, and the daemon told to stop."""
    with Client(daemon.endpoint) as client:
        started = time.monotonic()
        failure = ended(client.submit(script("accept", {"delta": "BU"}, "silence"), timeout_ms=120))
        took = time.monotonic() - started
        client.ping()
    assert isinstance(failure, TimedOut)
    assert (failure.text, failure.terminal) == ("BU", None)
    assert 0.12 <= took < 0.12 + LATE_S
    assert len(daemon.received("cancel")) == 1


def test_without_a_timeout_the_accepted_deadline_is_kept(daemon: FakeDaemon) -> None:
    """The fake route's 700 ms, which only `accepted` tells."""
    with Client(daemon.endpoint) as client:
        started = time.monotonic()
        failure = ended(client.submit(script("accept", "silence")))
    assert failure.code == "deadline_exceeded"
    assert 0.65 <= time.monotonic() - started < 0.7 + LATE_S + 0.1


def test_a_killed_daemon_is_told_at_once_and_nothing_is_sent_twice(daemon: FakeDaemon) -> None:
    """`daemon_lost` long before the deadline, text kept; the next daemon sees the next call and not the lost one."""
    with Client(daemon.endpoint) as client:
        handle = client.submit(script("accept", {"delta": "BU"}, "silence"), timeout_ms=30_000)
        while not handle.text:
            handle.poll(50)
        started = time.monotonic()
        daemon.kill()
        failure = ended(handle)
        assert time.monotonic() - started < 5
        assert isinstance(failure, DaemonGone)
        assert (failure.code, failure.text) == ("daemon_lost", "BU")
        daemon.start()
        assert client.ask("again", timeout_ms=10_000).text == "again"
    assert len(daemon.received()) == 2
    assert len(daemon.received("hello")) == 2


def test_a_call_waits_for_a_restarting_daemon(daemon: FakeDaemon) -> None:
    """A client that was connected waits until its deadline, and is answered when the daemon is back in time."""
    with Client(daemon.endpoint) as client:
        client.ask("one")
        daemon.kill()
        os.unlink(daemon.endpoint.removeprefix("ipc://"))
        while client._pump.session.connected:
            client._pump.turn(0.1)
        handle = client.submit("two", timeout_ms=20_000)
        assert handle.poll(60) is None
        daemon.start()
        assert handle.result().text == "two"
    assert [call["input"] for call in daemon.received()] == ["one", "two"]


def test_nothing_unsent_is_sent_after_its_deadline(daemon: FakeDaemon) -> None:
    """Calls that ended `daemon_unavailable` never reach the daemon that comes later."""
    with Client(daemon.endpoint) as client:
        client.ask("first")
        daemon.kill()
        while client._pump.session.connected:
            client._pump.turn(0.1)
        for number in range(5):
            failure = ended(client.submit(f"late {number}", timeout_ms=20))
            assert (failure.code, failure.retryable) == ("daemon_unavailable", True)
        daemon.start()
        client.ask("second", timeout_ms=10_000)
    assert [call["input"] for call in daemon.received()] == ["first", "second"]


def test_a_stopped_daemon_is_late_and_cancelled(daemon: FakeDaemon) -> None:
    """SIGSTOP: the deadline holds here; what was handed over is followed by its cancel when the daemon wakes."""
    with Client(daemon.endpoint) as client:
        client.ping()
        daemon.signal(signal.SIGSTOP)
        started = time.monotonic()
        failure = ended(client.submit("stopped", timeout_ms=100))
        assert failure.code == "deadline_exceeded"
        assert time.monotonic() - started < 0.1 + LATE_S
        daemon.signal(signal.SIGCONT)
        client.ping(timeout_ms=10_000)
    assert [call["timeout_ms"] for call in daemon.received()] == [100]
    assert len(daemon.received("cancel")) == 1


def test_connecting_to_a_stopped_daemon_is_bounded(daemon: FakeDaemon) -> None:
    """The kernel accepts, nobody shakes hands: the default, by the deadline."""
    daemon.signal(signal.SIGSTOP)
    with Client(daemon.endpoint) as client:
        started = time.monotonic()
        choice = client.choose("p", SIDES, default="HOLD", timeout_ms=100)
        assert time.monotonic() - started < 0.1 + LATE_S
    assert (choice, choice.reason) == ("HOLD", "daemon_unavailable")


def test_a_missing_socket_is_named_at_once(no_daemon: FakeDaemon) -> None:
    """ENOENT and its mend, without waiting for the deadline; the client works once the daemon is there."""
    with Client(no_daemon.endpoint) as client:
        started = time.monotonic()
        failure = ended(client.submit("p", timeout_ms=60_000))
        assert time.monotonic() - started < 10
        assert failure.code == "daemon_unavailable"
        assert "ENOENT" in failure.message
        assert "sidecar serve" in failure.message
        with pytest.raises(DaemonGone):
            client.ping()
        no_daemon.start()
        assert client.ask("there", timeout_ms=10_000).text == "there"


def test_leaving_early_cancels(daemon: FakeDaemon) -> None:
    """A `with` left before the end: cancelled at the daemon, and late pieces harm no other call."""
    with Client(daemon.endpoint) as client:
        with client.stream(script("accept", {"delta": "a"}, {"delta": "b"}, "silence"), timeout_ms=5000) as stream:
            for _ in stream:
                break
        assert stream.ended
        assert client.ask("next").text == "next"
        with pytest.raises(ZeroDivisionError), client.stream(script("accept", "silence"), timeout_ms=5000):
            raise ZeroDivisionError
        client.ping()
    assert len(daemon.received("cancel")) == 2


def test_submit_poll_and_cancel(daemon: FakeDaemon) -> None:
    """Many at once; `poll` gives the answer or None; `cancel` brings the daemon's own terminal or the deadline's."""
    with Client(daemon.endpoint) as client:
        handles = [client.submit(f"n{number}", timeout_ms=10_000) for number in range(300)]
        assert [handle.result().text for handle in handles] == [f"n{number}" for number in range(300)]
        open_one = client.submit(script("accept", "silence"), timeout_ms=200)
        assert open_one.poll() is None
        with pytest.raises(ValueError, match="not ended"):
            _ = open_one.answer
        open_one.cancel()
        assert ended(open_one).code == "deadline_exceeded"  # the fake daemon does not answer a cancel
        open_one.cancel()
        open_one.leave()
        client.ping()
    assert len(daemon.received("cancel")) == 2


@pytest.mark.parametrize(
    "steps",
    [
        [{"raw": "c1"}],
        [{"raw": "00"}, {"raw": ""}],
        [{"raw": "7b22"}],
        [{"raw": "dd00ffffff"}],
        ["accept", {"message": {"type": "delta", "seq": "zero", "text": 5}}],
        ["accept", {"message": {"type": "delta", "seq": 7, "text": "BUY"}}],
        ["accept", {"done": {"text": "BUY", "call_id": "d-another"}}],
        ["accept", {"done": {"text": 17}}],
        ["accept", {"done": {"text": None}}],
        ["accept", {"done": {"text": "BUY", "finish": "length"}}],
        ["accept", {"done": {"text": "BUY", "finish": "why not"}}],
        ["accept", {"batch": [{"message": {"type": "done", "id": "c999"}}, {"message": {"type": 3}}]}],
        [{"message": {"type": "done", "id": None}}],
        [{"message": {"type": "welcome", "session": 3}}],
        [{"failed": {"call_id": None, "code": "unknown_route"}}],
        ["die"],
        ["accept", "die"],
        ["accept", {"delta": "BUY"}, "die"],
    ],
    ids=str,
)
def test_choose_survives_whatever_a_daemon_does(daemon: FakeDaemon, steps: list[Any]) -> None:
    """Garbage, lies, cuts: the default with a reason, in time."""
    with Client(daemon.endpoint) as client:
        client.ping()
        started = time.monotonic()
        choice = client.choose(script(*steps), SIDES, default="HOLD", timeout_ms=80)
        assert time.monotonic() - started < 0.08 + LATE_S
    assert (choice, choice.answered) == ("HOLD", False)
    assert choice.reason not in {"answered", "invalid_arguments"}


def test_choose_with_wrong_arguments_is_the_default(daemon: FakeDaemon) -> None:
    """Never raises; nothing is sent."""
    with Client(daemon.endpoint) as client:
        good: dict[str, Any] = {"default": "HOLD", "timeout_ms": 500}
        attempts: list[tuple[Any, Any, dict[str, Any]]] = [
            ("p", "BUY", good),
            ("p", [], good),
            ("p", None, good),
            ("p", ["BUY", "buy"], good),
            (None, SIDES, good),
            (object(), SIDES, good),
            ("p", SIDES, {**good, "timeout_ms": None}),
            ("p", SIDES, {**good, "timeout_ms": -1}),
            ("p", SIDES, {**good, "timeout_ms": "soon"}),
            ("p", SIDES, {**good, "timeout_ms": float("nan")}),
            ("p", SIDES, {**good, "colour": "red"}),
            ("p", SIDES, {**good, "options": {"x": object()}}),
        ]
        for prompt, choices, arguments in attempts:
            choice = client.choose(prompt, choices, **arguments)
            assert (choice, choice.reason) == ("HOLD", "invalid_arguments"), (prompt, choices, arguments)
            assert choice.detail
        client.ping()
    assert daemon.received() == []
    closed = client.choose("p", SIDES, default="HOLD", timeout_ms=50)
    assert (closed, closed.reason) == ("HOLD", "unusable_client")


def test_choose_tells_the_model_its_choices(daemon: FakeDaemon) -> None:
    """Instructions of its own unless some are given."""
    with Client(daemon.endpoint) as client:
        assert client.choose("sell.", SIDES, default="HOLD", timeout_ms=5000) == "SELL"
        assert client.choose("buy", SIDES, default="HOLD", timeout_ms=5000, instructions="mine") == "BUY"
        assert client.choose("maybe", SIDES, default="HOLD", timeout_ms=5000).reason == "not_a_choice"
    first, second, _ = daemon.received()
    assert "BUY, SELL, HOLD" in first["instructions"]
    assert second["instructions"] == "mine"


def test_choose_lets_a_keyboard_interrupt_pass_and_cancels(daemon: FakeDaemon) -> None:
    """Ctrl-C is not an answer."""
    with Client(daemon.endpoint) as client:
        client.ping()
        timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.choose(script("accept", "silence"), SIDES, default="HOLD", timeout_ms=20_000)
        timer.join()
        client.ping()
    assert len(daemon.received("cancel")) == 1


def test_choose_under_random_kills_and_stops(daemon: FakeDaemon) -> None:
    """Always a choice and a reason, never much later than its deadline, no call on the wire twice."""
    dice = random.Random(7)
    reasons = set()
    with Client(daemon.endpoint) as client:
        for _ in range(60):
            match dice.randrange(4):
                case 0:
                    daemon.kill()
                    daemon.start()
                case 1:
                    daemon.signal(signal.SIGSTOP)
            prompt = dice.choice(["BUY", "no", script("accept", "silence"), script("accept", "die"), script("stop")])
            started = time.monotonic()
            choice = client.choose(prompt, SIDES, default="HOLD", timeout_ms=30)
            assert time.monotonic() - started < 0.03 + LATE_S
            assert choice in SIDES
            reasons.add(choice.reason)
            daemon.signal(signal.SIGCONT)
            if client._pump.session.connected is False and dice.random() < 0.7:
                daemon.kill()
                daemon.start()
    assert len(reasons) > 2
    ids = [call["id"] for call in daemon.received()]
    assert len(ids) == len(set(ids))


def test_a_lost_call_is_never_run_by_the_next_daemon(daemon: FakeDaemon) -> None:
    """Handed to ZeroMQ as the daemon dies, many times over: no id twice, none of them in the next daemon."""
    with Client(daemon.endpoint) as client:
        for _ in range(25):
            client.ping(timeout_ms=20_000)
            daemon.signal(signal.SIGSTOP)
            handles = [client.submit("x" * 5000, timeout_ms=20_000) for _ in range(20)]
            sent_before = {handle.id for handle in handles if handle._call.handed_over}
            count = len(daemon.received())
            daemon.kill()
            daemon.start()
            while not all(handle.ended for handle in handles):
                client._pump.turn(1)
            for handle in handles:
                if handle.id in sent_before:
                    assert ended(handle).code == "daemon_lost"
            later = {call["id"] for call in daemon.received()[count:]}
            assert not later & sent_before
    ids = [call["id"] for call in daemon.received()]
    assert len(ids) == len(set(ids))


def test_a_flood_does_not_hold_the_caller_past_its_deadline(daemon: FakeDaemon) -> None:
    """A daemon that never stops talking."""
    with Client(daemon.endpoint) as client:
        client.ping()
        started = time.monotonic()
        choice = client.choose(script("accept", {"flood": 100_000}), SIDES, default="HOLD", timeout_ms=100)
        assert time.monotonic() - started < 0.1 + LATE_S
        assert choice.reason == "deadline_exceeded"
        daemon.kill()


def test_a_fork_must_make_its_own(daemon: FakeDaemon) -> None:
    """In the child every use says so, and closing harms nothing of the parent's."""
    with Client(daemon.endpoint) as client:
        client.ping()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            told = b"no"
            try:
                client.ask("p", timeout_ms=100)
            except SidecarError as problem:
                choice = client.choose("p", SIDES, default="HOLD", timeout_ms=100)
                told = b"ok" if "fork" in str(problem) and choice.reason == "unusable_client" else b"no"
            client.close()
            os.write(writer, told)
            os._exit(0)
        os.close(writer)
        assert os.read(reader, 2) == b"ok"
        os.close(reader)
        os.waitpid(pid, 0)
        assert client.ask("still", timeout_ms=10_000).text == "still"


def test_two_threads_at_once_are_told(daemon: FakeDaemon) -> None:
    """A clear error instead of a crash in libzmq, and no wait for a lock."""
    with Client(daemon.endpoint) as client:
        inside = threading.Event()
        handle = client.submit(script("accept", "silence"), timeout_ms=1000)

        def wait() -> None:
            inside.set()
            handle._pump.run(lambda: handle.ended)

        thread = threading.Thread(target=wait)
        thread.start()
        inside.wait()
        seen = {client.choose("p", SIDES, default="HOLD", timeout_ms=500).reason for _ in range(3)}
        thread.join()
        assert seen == {"unusable_client"}


def test_closing_ends_what_is_open(daemon: FakeDaemon) -> None:
    """`cancelled`, locally; closing twice is nothing; a closed client says so."""
    client = Client(daemon.endpoint)
    handle = client.submit(script("accept", "silence"), timeout_ms=5000)
    client.close()
    client.close()
    assert ended(handle).code == "cancelled"
    handle.leave()
    with pytest.raises(SidecarError, match="closed"):
        client.ask("p")


def test_wrong_arguments_of_a_call_raise(daemon: FakeDaemon) -> None:
    """Ours at once, as RequestRefused; unknown names as Python says it."""
    with Client(daemon.endpoint) as client:
        with pytest.raises(RequestRefused):
            client.ask("p", timeout_ms=0)
        with pytest.raises(TypeError, match="timeout"):
            client.ask("p", timeout=5)  # type: ignore[call-arg]


def test_probe_and_ping(daemon: FakeDaemon) -> None:
    """Round trips, bounded."""
    with Client(daemon.endpoint) as client:
        assert client.probe("ready").ready
        assert client.ping().session == client.probe().session
        daemon.signal(signal.SIGSTOP)
        with pytest.raises(TimedOut):
            client.ping(timeout_ms=30)
        daemon.signal(signal.SIGCONT)
        assert client.ping(timeout_ms=10_000).session
