"""The relay over HTTP/1.1: the answers, whole and streamed; keep-alive; what it counts when a client goes."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from sidecar.simulator.voices import FAULTS
from tests.simulator.harness import QUICK, Talk, http_get, relaying, request, until
from tests.simulator.web import PATHS, Browser, asked, content, once

DIALECTS = ["responses", "chat", "messages"]


def _exact(counters: Any) -> bool:
    whole = counters.calls_finished + counters.calls_stopped + counters.calls_cut + counters.in_flight
    return counters.calls_started == whole


async def test_responses_stream() -> None:
    """Named events, numbered, the same as over a WebSocket; the last says the whole answer."""
    async with relaying() as relay:
        answer = await once(relay.port, "responses", '[[text="BUY at open" tokens=3]]')
    assert (answer.status, answer.lost) == (200, None)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert [event.name for event in answer.events] == [event.json["type"] for event in answer.events]
    assert [event.json["sequence_number"] for event in answer.events] == list(range(len(answer.events)))
    assert content(answer.events) == "BUY at open"
    last = answer.events[-1].json
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "BUY at open"
    assert last["response"]["usage"]["output_tokens"] == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat"])
async def test_chat_stream(path: str) -> None:
    """Unnamed events: the role, the content, a finish_reason, the usage as asked for, ``[DONE]``."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        answer = await browser.ask(path, asked("chat", '[[text="BUY at open" tokens=3]]'))
    assert {event.name for event in answer.events} == {None}
    assert content(answer.events) == "BUY at open"
    finish, usage, done = answer.events[-3:]
    assert finish.json["choices"][0]["finish_reason"] == "stop"
    assert (usage.json["choices"], usage.json["usage"]["completion_tokens"]) == ([], 3)
    assert done.data == "[DONE]"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_answer_that_is_not_streamed(dialect: str) -> None:
    """Without `stream` one JSON object comes, after as long as the stream would have taken, usage included."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        body = asked(dialect, "[[text=BUY tokens=2]]")
        del body["stream"]
        body.pop("stream_options", None)
        answer = await browser.ask(PATHS[dialect], body)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    if dialect == "responses":
        assert answer.json["object"] == "response"
        assert answer.json["output"][0]["content"][0]["text"] == "BUY BUY"
        assert answer.json["usage"]["output_tokens"] == 2
    elif dialect == "messages":
        assert (answer.json["type"], answer.json["stop_reason"]) == ("message", "end_turn")
        assert answer.json["content"] == [{"type": "text", "text": "BUY BUY"}]
        assert answer.json["usage"]["output_tokens"] == 2
    else:
        assert answer.json["object"] == "chat.completion"
        assert answer.json["choices"][0]["message"]["content"] == "BUY BUY"
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        assert answer.json["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_flood_is_the_same_answer(dialect: str) -> None:
    """Rendered ahead, across blocks and large writes: the events of one that comes token by token."""
    async with relaying() as relay:
        answer = await once(relay.port, dialect, "[[tokens=5000 cadence_ms=0]]")
        stamped = await once(relay.port, dialect, "[[tokens=50 cadence_ms=0 stamp=1]]")
        slow = await once(relay.port, dialect, "[[tokens=50 cadence_ms=0.01]]", before="/u/other")
    assert len(content(answer.events).split()) == 5000
    assert len(content(stamped.events).split()) == 50
    assert content(answer.events).split()[:3] != []
    assert len(slow.events) == len(stamped.events)
    if dialect == "responses":
        assert [event.json["sequence_number"] for event in answer.events] == list(range(len(answer.events)))
        assert answer.events[-1].json["response"]["output"][0]["content"][0]["text"] == content(answer.events)


async def test_keep_alive_and_pipelining() -> None:
    """Many requests on one connection, some sent before the answers to others: answered in order, counted by way."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        for number in range(3):
            answer = await browser.ask(PATHS["chat"], asked("chat", f"[[text=n{number} tokens=1]]"))
            assert content(answer.events) == f"n{number}"
        batch = [browser.wire(PATHS["responses"], asked("responses", f"[[text=p{n} tokens=2]]")) for n in range(4)]
        await browser.stream.send_all(b"".join(batch))
        said = [content((await browser.receive()).events) for _ in batch]
        counters = relay.counters
        assert said == ["p0 p0", "p1 p1", "p2 p2", "p3 p3"]
        assert (counters.accepted, counters.standing, counters.open, counters.calls_finished) == (1, 1, 1, 7)
        assert (counters.connections, counters.requests) == ({"http/1.1": 1}, {"http/1.1": 7})
        assert counters.max_in_flight == 1
        await browser.goodbye()
        await until(lambda: counters.open == 0 and counters.standing == 0)


async def test_both_ways_on_one_port() -> None:
    """WebSockets go on beside it, and the counters tell them apart."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        assert (await talk.answer(request()))[-1]["type"] == "response.completed"
        assert (await once(relay.port, "chat")).status == 200
        counters = relay.counters
        assert counters.connections == {"websocket": 1, "http/1.1": 1}
        assert counters.requests == {"websocket": 1, "http/1.1": 1}
        assert [note.way for note in counters.journal if note.event == "call"] == ["websocket", "http/1.1"]


@pytest.mark.parametrize("dialect", ["responses", "chat"])
@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_errors_are_statuses(name: str, dialect: str) -> None:
    """An error before the stream is an HTTP status with the service's body; the connection goes on."""
    async with relaying(name, behaviour=QUICK) as relay:
        browser = await Browser.open(relay.port)
        answer = await browser.ask(PATHS[dialect], asked(dialect))
        fault = FAULTS[name]
        assert (answer.status, answer.headers["content-type"]) == (fault.status, "application/json")
        assert answer.json["error"] == {
            "type": fault.type,
            "code": fault.code,
            "message": fault.message,
            "param": fault.param,
        }
        waits = name in ("error_429", "error_503")
        assert (answer.headers.get("retry-after"), answer.headers.get("retry-after-ms")) == (
            ("2", "2000") if waits else (None, None)
        )
        assert answer.headers["x-request-id"].startswith("req_")
        left = "0" if fault.status == 429 else "9999"
        assert answer.headers["x-ratelimit-remaining-requests"] == left
        relay.set_scenario("ok")
        assert (await browser.ask(PATHS[dialect], asked(dialect))).status == 200
    assert relay.counters.calls_finished == 2


async def test_door_statuses_are_asked_for_each_request() -> None:
    """http_NNN*2,ok: two requests of one connection are refused, the third is answered; refusals are no calls."""
    async with relaying("http_503*2,ok") as relay:
        browser = await Browser.open(relay.port)
        statuses = [(await browser.ask(PATHS["chat"], asked("chat"))).status for _ in range(3)]
        counters = relay.counters
        assert statuses == [503, 503, 200]
        assert (counters.refused, counters.calls_started, counters.accepted) == (2, 1, 1)
        events = [(note.event, note.scenario) for note in counters.journal]
    assert events == [
        ("connect", "http_503"),
        ("refused", "http_503"),
        ("refused", "http_503"),
        ("call", "ok"),
        ("finished", "ok"),
    ]


async def test_rate_limits_are_steered() -> None:
    """The head says what is left: as the behaviour says, spans as OpenAI writes them."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        path = PATHS["chat"] + "?rate_limit_requests=60&rate_remaining_requests=2&rate_reset_s=90"
        headers = (await browser.ask(path, asked("chat"))).headers
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "2"
    assert headers["x-ratelimit-reset-requests"] == "1m30s"
    assert headers["x-ratelimit-limit-tokens"] == "2000000"


async def test_keys() -> None:
    """Bearer and x-api-key; another or none is 401."""
    async with relaying(keys={"right"}) as relay:
        browser = await Browser.open(relay.port)
        statuses = [
            (await browser.ask(PATHS["chat"], asked("chat"), **headers)).status
            for headers in (
                {"authorization": "Bearer right"},
                {"x_api_key": "right"},
                {"authorization": "Bearer wrong"},
                {},
            )
        ]
    assert statuses == [200, 200, 401, 401]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "wrong",
    [
        b"no json",
        b"[]",
        {"model": ""},
        {"id": "x", "type": "response.create"},
        {"messages": [], "input": 7},
        {"max_tokens": -1, "max_output_tokens": -1},
    ],
)
async def test_wrong_bodies(dialect: str, wrong: Any) -> None:
    """400 with the service's words, counted as bad; the connection goes on."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        body = wrong if isinstance(wrong, bytes) else {**asked(dialect), **wrong}
        answer = await browser.ask(PATHS[dialect], body)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
        assert (await browser.ask(PATHS[dialect], asked(dialect, "[[tokens]]"))).status == 400
        assert (await browser.ask(PATHS[dialect] + "?tokens=x", asked(dialect))).status == 400
        assert (await browser.ask(PATHS[dialect], asked(dialect))).status == 200
    assert (relay.counters.bad_requests, relay.counters.calls_started) == (3, 1)


async def test_wrong_paths() -> None:
    """Unknown paths, dialects and scenarios 404, and the connection goes on; another method 405 or 426."""
    async with relaying(dialects=["chat"]) as relay:
        browser = await Browser.open(relay.port)
        for path in ("/v1/nonsense", "/v1/responses", "/s/nonsense/v1/chat"):
            assert (await browser.ask(path, asked("chat"))).status == 404
        assert (await browser.ask("/s/error_401/v1/chat", asked("chat"))).status == 401
        await browser.send("/v1/chat", b"", method="PUT")
        assert (await browser.receive()).status == 405
        assert await browser.gone() == "eof"
        assert (await http_get(relay.port, "/v1/chat"))[0] == 426


@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_client_that_goes_stops_its_call(dialect: str, rst: bool) -> None:
    """EOF or RST in the middle: generation stops, the instant is noted."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        await browser.send(PATHS[dialect], asked(dialect, "[[tokens=100000 cadence_ms=1 id=left]]"))
        await browser.receive(until=b"\n\n")
        await until(lambda: relay.counters.tokens > 3)
        before = relay.mono_us()
        await browser.goodbye(rst=rst)
        await until(lambda: relay.counters.calls_stopped == 1)
        tokens = relay.counters.tokens
        await trio.sleep(0.02)
        (stop,) = relay.counters.stops
        assert relay.counters.tokens == tokens == stop.tokens
        assert (stop.id, stop.way, stop.by_reset) == ("left", "http/1.1", False)
        assert before <= stop.at_us < before + 1_000_000
        await until(lambda: relay.counters.open == 0)
        assert _exact(relay.counters)


async def test_a_client_that_does_not_read_holds_nothing_up() -> None:
    """A flood to one that reads nothing waits in bounded memory, while another is answered."""
    async with relaying() as relay:
        stuck = await Browser.open(relay.port)
        await stuck.send(PATHS["chat"], asked("chat", "[[tokens=500000 cadence_ms=0]]"))
        await until(lambda: any(talk.link.backlog for talk in relay.speaking))
        assert (await once(relay.port, "chat")).status == 200
        assert max(talk.link.backlog for talk in relay.speaking) < 2 << 20
        await stuck.goodbye(rst=True)
        await until(lambda: relay.counters.calls_stopped == 1)


async def test_idle_connections_are_closed() -> None:
    """keepalive_timeout_s after the last answer, and for one that never asked; not while an answer is under way."""
    async with relaying(keepalive_timeout_s=0.05) as relay:
        fresh = await Browser.open(relay.port)
        browser = await Browser.open(relay.port)
        answer = await browser.ask(PATHS["chat"], asked("chat", "[[tokens=20 cadence_ms=5]]"))
        assert (answer.status, answer.lost) == (200, None)
        with trio.fail_after(2):
            assert await browser.gone() == "eof"
            assert await fresh.gone() == "eof"


async def test_steering_reaches_http() -> None:
    """kill_all and close_all by label: RST in the middle of an answer; a close waits for its end."""
    async with relaying() as relay:
        killed, closed = await Browser.open(relay.port), await Browser.open(relay.port)
        await killed.send("/u/a/v1/chat", asked("chat", "[[tokens=100000]]"))
        await closed.send("/u/b/v1/chat", asked("chat", "[[tokens=20 cadence_ms=2]]"))
        await until(lambda: relay.counters.in_flight == 2)
        assert (relay.kill_all(upstream="a"), relay.close_all(upstream="b")) == (1, 1)
        assert (await killed.receive()).lost == "reset"
        assert (await closed.receive()).events[-1].data == "[DONE]"
        assert await closed.gone() == "eof"
        idle = await Browser.open(relay.port)
        await idle.ask("/u/c/v1/chat", asked("chat"))
        assert await http_get(relay.port, "/_close?upstream=c") == (200, {"closed": 1})
        assert await idle.gone() == "eof"
        assert relay.counters.calls_cut == 1
        assert _exact(relay.counters)


@pytest.mark.parametrize(("how", "ends"), [("rst", "reset"), ("eof", "eof")])
async def test_kill_ends_connections_without_a_request_too(how: str, ends: str) -> None:
    """As it says, and all of them are counted; nobody knows whose they are, so a label leaves them alone."""
    async with relaying() as relay:
        warm = [await Browser.open(relay.port) for _ in range(3)]
        await warm[0].ask("/u/a/v1/chat", asked("chat"))
        await until(lambda: relay.counters.standing == 3)
        assert await http_get(relay.port, f"/_kill?how={how}&upstream=b") == (200, {"killed": 0})
        assert await http_get(relay.port, f"/_kill?how={how}") == (200, {"killed": 3})
        assert [await browser.gone() for browser in warm] == [ends] * 3
        await until(lambda: relay.counters.standing == 0)


async def test_commands_over_a_connection_that_was_used() -> None:
    """A command may come by the connection of a call: it is answered, `_kill` too, and the connection ends."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        await browser.ask(PATHS["chat"], asked("chat"))
        await browser.send("/_kill", b"", method="GET")
        answer = await browser.receive()
        assert (answer.status, answer.json) == (200, {"killed": 0})
        assert await browser.gone() == "eof"


async def test_not_http_in_the_middle() -> None:
    """What is no HTTP after a good request is told so; the connection ends."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        await browser.ask(PATHS["chat"], asked("chat"))
        await browser.stream.send_all(b"\x00\xff\r\n\r\n")
        assert (await browser.receive()).status == 400
        assert await browser.gone() == "eof"
        other = await Browser.open(relay.port)
        head = b"POST /v1/chat HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
        await other.stream.send_all(head)
        assert (await other.receive()).status == 400


async def test_http_1_0_is_refused() -> None:
    """It has no chunks: 505."""
    async with relaying() as relay:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stream.send_all(b"POST /v1/chat HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 505")
        await stream.aclose()


async def test_a_large_body() -> None:
    """Chunked or not, with or without a 100-continue; beyond 16 MiB it is 413."""
    async with relaying() as relay:
        browser = await Browser.open(relay.port)
        answer = await browser.ask(PATHS["chat"], asked("chat", "x" * (4 << 20)))
        assert answer.status == 200
        await browser.stream.send_all(
            b"POST /v1/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        assert (await browser.stream.receive_some(1000)).startswith(b"HTTP/1.1 100")
        await browser.stream.send_all(b"{}")
        assert (await browser.receive()).status == 400
        other = await Browser.open(relay.port)
        with trio.move_on_after(3):
            try:
                await other.send(PATHS["chat"], b"x" * (17 << 20))
            except trio.BrokenResourceError:
                pass
        assert (await other.receive()).status in (413, None)
