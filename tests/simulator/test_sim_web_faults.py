"""What may go wrong over HTTP, by scenario, over both versions: seen from outside, byte by byte where it matters."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import trio

from sidecar.simulator import SCENARIOS
from sidecar.simulator.fates import FATES
from tests.simulator.harness import QUICK, Talk, chat, relaying, request, until
from tests.simulator.web import PATHS, Answer, Browser, Multiplex, asked, content

DIALECTS = ["responses", "chat", "messages"]
VERSIONS = ["1.1", "2"]
ENDS = {"responses": "response.completed", "chat": "[DONE]", "messages": "message_stop"}


async def client(version: str, port: int) -> Browser | Multiplex:
    """A connection of that version."""
    return await (Browser.open(port) if version == "1.1" else Multiplex.open(port))


async def asking(version: str, port: int, dialect: str, prompt: str = "hello", **fields: Any) -> Answer:
    """One request on a connection of its own."""
    wire = await client(version, port)
    answer = await wire.ask(PATHS[dialect], asked(dialect, prompt, **fields))
    await wire.goodbye()
    return answer


def whole(answer: Answer, dialect: str) -> bool:
    """It has the dialect's end."""
    return ENDS[dialect] in answer.body.decode(errors="replace")


def tokens(answer: Answer) -> int:
    """How many words of content came."""
    return len(content(answer.events).split())


pytestmark = pytest.mark.parametrize("version", VERSIONS)


# ------------------------------------------------------------------------------------------------ the answer's end


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("name", "came", "lost"),
    [
        ("cut", 3, "eof"),
        ("close_1011", 3, "eof"),
        ("cut_rst", 3, "reset"),
        ("reset", 0, "reset"),
        ("cut_clean", 3, None),
        ("rst_stream", 3, {"1.1": "eof", "2": "INTERNAL_ERROR"}),
        ("goaway_now", 0, "eof"),
        ("expired", 0, "eof"),
        ("refused_stream", 0, {"1.1": "eof", "2": "REFUSED_STREAM"}),
    ],
)
async def test_cuts(name: str, came: int, lost: Any, dialect: str, version: str) -> None:
    """So many tokens, then the end as named, without the dialect's own; the call counts as cut."""
    async with relaying(name) as relay:
        answer = await asking(version, relay.port, dialect)
        await until(lambda: relay.counters.open == 0)
    assert answer.status == (200 if came else None)
    assert tokens(answer) == came
    assert not whole(answer, dialect)
    assert answer.lost == (lost[version] if isinstance(lost, dict) else lost)
    assert (relay.counters.calls_cut, relay.counters.calls_stopped, relay.counters.in_flight) == (1, 0, 0)


async def test_the_others_on_the_connection(version: str) -> None:
    """HTTP/2: a stream that is reset or refused ends alone; after either the connection goes on."""
    if version == "1.1":
        pytest.skip("one answer at a time")
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        other = await wire.send(PATHS["chat"], asked("chat", "[[tokens=40 cadence_ms=2]]"))
        for name, lost in (("rst_stream", "INTERNAL_ERROR"), ("refused_stream", "REFUSED_STREAM")):
            assert (await wire.ask(PATHS["chat"], asked("chat", f"[[scenario={name}]]"))).lost == lost
        assert tokens(await wire.receive(other)) == 40
        assert (await wire.ask(PATHS["chat"], asked("chat"))).lost is None
    assert (relay.counters.calls_cut, relay.counters.calls_finished, relay.counters.accepted) == (2, 2, 1)


async def test_goaway(version: str) -> None:
    """The answer is whole and its head, or a GOAWAY, says that it is the last; streams before it finish, too."""
    async with relaying() as relay:
        wire = await client(version, relay.port)
        if isinstance(wire, Browser):
            answer = await wire.ask(PATHS["chat"], asked("chat", "[[scenario=goaway]]"))
            assert answer.headers["connection"] == "close"
        else:
            other = await wire.send(PATHS["chat"], asked("chat", "[[tokens=50 cadence_ms=2]]"))
            number = await wire.send(PATHS["chat"], asked("chat", "[[scenario=goaway]]"))
            answer = await wire.receive(number)
            assert wire.last_id == number
            late = await wire.send(PATHS["chat"], asked("chat"))
            assert tokens(await wire.receive(other)) == 50
            assert (await wire.receive(late)).status is None
        assert (answer.lost, whole(answer, "chat")) == (None, True)
        assert await wire.gone() == "eof"
    assert (relay.counters.calls_cut, relay.counters.calls_stopped) == (0, 0)
    assert relay.counters.calls_finished == relay.counters.calls_started


async def test_goaway_now_leaves_the_earlier_streams(version: str) -> None:
    """HTTP/2: GOAWAY names the stream before; what came before is answered, then EOF."""
    if version == "1.1":
        pytest.skip("one answer at a time")
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        earlier = await wire.send(PATHS["chat"], asked("chat", "[[tokens=30 cadence_ms=2]]"))
        number = await wire.send(PATHS["chat"], asked("chat", "[[scenario=goaway_now]]"))
        assert tokens(await wire.receive(earlier)) == 30
        assert await wire.gone() == "eof"
        assert wire.last_id == earlier
        assert wire.answer(number).status is None
    assert (relay.counters.calls_cut, relay.counters.calls_finished) == (1, 1)


async def test_linger(version: str) -> None:
    """The dialect's end comes at once, that of the body late_s after it."""
    async with relaying("linger") as relay:
        wire = await client(version, relay.port)
        if isinstance(wire, Browser):
            await wire.send(PATHS["chat"], asked("chat", "[[late_ms=100]]"))
            assert whole(await wire.receive(until=b"[DONE]"), "chat")
            start = trio.current_time()
            assert (await wire.receive()).lost is None
        else:
            number = await wire.send(PATHS["chat"], asked("chat", "[[late_ms=100]]"))
            while not whole(wire.answer(number), "chat"):
                await wire.pump()
            start = trio.current_time()
            assert wire.answer(number).lost == "open"
            assert (await wire.receive(number)).lost is None
        assert trio.current_time() - start >= 0.09


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_stall(dialect: str, version: str) -> None:
    """After some tokens comments (and in `messages` pings) flow, without an end; content does not."""
    async with relaying("stall") as relay:
        wire = await client(version, relay.port)
        await wire.send(PATHS[dialect], asked(dialect))
        if isinstance(wire, Browser):
            seen = b'ping"}\n\n: keep-alive' if dialect == "messages" else b": keep-alive\n\n" * 3
            answer = await wire.receive(until=seen)
        else:
            while wire.answer(1).comments < 3:
                await wire.pump()
            answer = wire.answer(1)
        pings = sum(event.name == "ping" for event in answer.events)
        assert tokens(answer) == 3
        assert answer.comments >= 1
        assert (pings > 1) == (dialect == "messages")
        assert relay.counters.in_flight == 1
        await wire.goodbye()
        await until(lambda: relay.counters.calls_stopped == 1)


@pytest.mark.parametrize(
    ("name", "status", "came"),
    [("silent", None, 0), ("stall_silent", 200, 3), ("silent_after_created", 200, 0)],
)
async def test_silence(name: str, status: int | None, came: int, version: str) -> None:
    """Nothing, from the start or from there on; the client's going is noticed."""
    async with relaying(name) as relay:
        wire = await client(version, relay.port)
        await wire.send(PATHS["chat"], asked("chat"))
        with trio.move_on_after(0.1):
            if isinstance(wire, Browser):
                await wire.receive()
            else:
                await wire.receive(1)
        if isinstance(wire, Multiplex):
            answer = wire.answer(1)
            assert (answer.status, tokens(answer), answer.lost) == (status, came, "open")
        assert relay.counters.in_flight == 1
        assert relay.counters.tokens == came
        await wire.goodbye()
        await until(lambda: relay.counters.calls_stopped == 1)


# ------------------------------------------------------------------------------------------------------ the head


async def test_drip_head(version: str) -> None:
    """The head comes a byte at a time, in late_s in all; the answer is whole."""
    async with relaying("drip_head") as relay:
        start = trio.current_time()
        answer = await asking(version, relay.port, "chat", "[[late_ms=100]]")
        assert (answer.status, answer.lost, whole(answer, "chat")) == (200, None, True)
        assert trio.current_time() - start >= 0.1


async def test_json_error_and_html(version: str) -> None:
    """A 200 with an error in JSON; a proxy's 502 with a page of HTML, which is no call."""
    async with relaying("json_error") as relay:
        answer = await asking(version, relay.port, "chat")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json["error"]["code"] == "server_error"
        relay.set_scenario("html")
        page = await asking(version, relay.port, "chat")
        assert (page.status, page.headers["content-type"], page.lost) == (502, "text/html", None)
        assert page.body.startswith(b"<html>")
        talk = await Talk.open(relay.port)
        assert talk.response is not None
        assert (talk.response.status_code, talk.response.headers["Content-Type"]) == (502, "text/html")
    assert (relay.counters.calls_finished, relay.counters.refused) == (1, 2)


async def test_what_is_packed_and_what_does_not_end(version: str) -> None:
    """A small body that says gzip and unpacks to size_bytes; a 200 with JSON that is size_bytes long and goes on."""
    async with relaying("packed") as relay:
        answer = await asking(version, relay.port, "chat", "[[size_bytes=3000000]]")
        assert (answer.status, answer.lost, answer.headers["content-encoding"]) == (200, None, "gzip")
        assert len(answer.body) < 10_000
        assert gzip.decompress(answer.body) == bytes(3_000_000)
        relay.set_scenario("endless_json")
        wire = await client(version, relay.port)
        await wire.send(PATHS["chat"], asked("chat", "[[size_bytes=300000]]"))
        if isinstance(wire, Browser):
            answer = await wire.receive(until=b" " * 30_000)
            assert answer.headers["content-type"] == "application/json"
        else:
            while len(wire.answer(1).body) < 300_000:
                await wire.pump()
            assert wire.answer(1).headers["content-type"] == "application/json"
        assert (relay.counters.calls_finished, relay.counters.in_flight) == (1, 1)


async def test_redirects_and_what_is_not_http(version: str) -> None:
    """301 with a Location; garbage; half a head; RST; nothing at all, and the client's going is noticed."""
    async with relaying() as relay:
        for name, status, lost in (
            ("handshake_301", 301, None),
            ("handshake_garbage", None, {"1.1": "nonsense", "2": "eof"}[version]),
            ("handshake_eof", None, "eof"),
            ("handshake_reset", None, "reset"),
            ("refuse", None, "eof"),
            ("handshake_wrong_accept", 200, None),
        ):
            wire = await client(version, relay.port)
            answer = await wire.ask(f"/s/{name}{PATHS['chat']}", asked("chat"))
            if version == "2" and name == "handshake_garbage":
                assert isinstance(wire, Multiplex)
                assert wire.broken or wire.lost
            else:
                assert (answer.status, answer.lost) == (status, lost), name
            if name == "handshake_301":
                assert answer.headers["location"]
            await wire.goodbye()
        assert (relay.counters.calls_started, relay.counters.refused) == (1, 5)
        for name in ("handshake_silent", "handshake_drip", "deaf"):
            wire = await client(version, relay.port)
            await wire.send(f"/s/{name}{PATHS['chat']}", asked("chat"))
            await until(lambda name=name: relay.counters.scenarios.get(name))
            await wire.goodbye()
            await until(lambda: relay.counters.standing == 0)


async def test_deaf_reads_nothing(version: str) -> None:
    """Not even a ping is answered, and no window opened."""
    if version == "1.1":
        pytest.skip("1.1 has no pings")
    async with relaying("deaf") as relay:
        wire = await Multiplex.open(relay.port)
        await wire.send(PATHS["chat"], asked("chat"))
        await until(lambda: relay.counters.refused == 1)
        wire.peer.ping(b"12345678")
        await wire.flush()
        await trio.sleep(0.05)
        assert relay.counters.pings == 0


# ------------------------------------------------------------------------------------------------------ the events


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_wrong_events(dialect: str, version: str) -> None:
    """An event that is no JSON, or no UTF-8; then on as if nothing were."""
    async with relaying() as relay:
        malformed = await asking(version, relay.port, dialect, "[[scenario=malformed]]")
        not_utf8 = await asking(version, relay.port, dialect, "[[scenario=bad_utf8]]")
    bad = []
    for event in malformed.events:
        try:
            json.loads(event.data)
        except ValueError:
            bad.append(event.data)
    assert [one for one in bad if one != "[DONE]"] == ['{"type":"response.output_text.delta","delta":oops']
    assert (tokens(malformed), malformed.lost, whole(malformed, dialect)) == (6, None, True)
    with pytest.raises(UnicodeDecodeError):
        not_utf8.body.decode()
    assert whole(not_utf8, dialect)


@pytest.mark.parametrize("name", ["masked_frame", "binary_garbage", "zstd_bomb"])
async def test_garbage_below_the_events(name: str, version: str) -> None:
    """Bytes that break HTTP's own framing after some tokens; a parser of HTTP refuses them."""
    async with relaying(name) as relay:
        wire = await client(version, relay.port)
        answer = await wire.ask(PATHS["chat"], asked("chat"))
        assert answer.status == 200
        assert tokens(answer) == 3
        assert answer.lost == "nonsense" if isinstance(wire, Browser) else wire.broken is not None


async def test_a_flood(version: str) -> None:
    """64 KiB and more of what brings nothing, then a whole answer: heads before the head, or pings."""
    async with relaying("flood") as relay:
        wire = await client(version, relay.port)
        await wire.send(PATHS["chat"], asked("chat", "[[size_bytes=1000]]"))
        if isinstance(wire, Browser):
            data = b""
            while b"[DONE]" not in data:
                data += bytes(await wire.stream.receive_some(65536))
            assert data.count(b"HTTP/1.1 103 ") > 2000
            assert data.index(b"HTTP/1.1 200 ") > 60_000
        else:
            answer = await wire.receive(1)
            assert (answer.lost, tokens(answer)) == (None, 6)
        assert relay.counters.bytes_out > 64_000


async def test_a_head_without_end(version: str) -> None:
    """Field after field; the call stays in flight."""
    async with relaying("endless_head") as relay:
        wire = await client(version, relay.port)
        await wire.send(PATHS["chat"], asked("chat", "[[size_bytes=300000]]"))
        if isinstance(wire, Browser):
            data = b""
            while len(data) < 250_000:
                data += bytes(await wire.stream.receive_some(65536))
            assert data.startswith(b"HTTP/1.1 200 OK\r\nx-filler: ")
            assert b"\r\n\r\n" not in data
        else:
            while wire.broken is None:
                await wire.pump()
            assert "continuation" in str(wire.broken)
            assert wire.answer(1).status is None
        assert relay.counters.in_flight == 1


async def test_content_of_another_stream(version: str) -> None:
    """HTTP/2: the second answer brings some for the first, which is over; the third for a stream that nobody opened."""
    if version == "1.1":
        pytest.skip("one answer at a time")
    async with relaying("stray") as relay:
        wire = await Multiplex.open(relay.port)
        for _ in range(2):
            answer = await wire.ask(PATHS["chat"], asked("chat"))
            assert (answer.lost, tokens(answer), b"STRAY" in answer.body) == (None, 6, False)
        answer = await wire.ask(PATHS["chat"], asked("chat"))
        assert wire.broken is not None


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_giant_event(dialect: str, version: str) -> None:
    """One event of size_bytes, well formed."""
    async with relaying("giant_frame") as relay:
        answer = await asking(version, relay.port, dialect, "[[size_bytes=3000000]]")
    giants = [event for event in answer.events if len(event.data) > 1000000]
    assert (len(giants), answer.lost, whole(answer, dialect)) == (1, None, True)
    assert content(giants) == "x" * 3_000_000


@pytest.mark.parametrize(("name", "piece"), [("endless_fragments", b"xxx"), ("empty_fragments", b":\n\n:\n\n")])
async def test_endless_lines(name: str, piece: bytes, version: str) -> None:
    """A line, or comments, of size_bytes that lead to no event; then nothing, the call still in flight."""
    async with relaying(name) as relay:
        wire = await client(version, relay.port)
        await wire.send(PATHS["chat"], asked("chat", "[[size_bytes=300000]]"))
        answer = Answer(None, {}, b"", None)
        if isinstance(wire, Browser):
            with trio.move_on_after(0.3):
                answer = await wire.receive(until=piece * 90_000 if len(piece) == 3 else piece * 49_000)
        else:
            while len(wire.answer(1).body) < 300_000:
                await wire.pump()
            answer = wire.answer(1)
        assert tokens(answer) == 3
        assert piece * 1000 in answer.body
        assert relay.counters.in_flight == 1


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("name", "came"),
    [
        *[("unknown_events", 6), ("empty_deltas", 6), ("reasoning_first", 6), ("slow_first", 6), ("late", 6)],
        *[("usage_late", 6), ("no_usage", 6), ("no_done", 6), ("empty", 0), ("duplicate_terminal", 6)],
        *[("tokens_after_terminal", 8), ("incomplete_length", 3), ("incomplete_filter", 3), ("ok", 6)],
    ],
)
async def test_odd_answers(name: str, came: int, dialect: str, version: str) -> None:
    """Each comes with its tokens and its end, over either version the same."""
    async with relaying(name) as relay:
        answer = await asking(version, relay.port, dialect)
    assert (answer.status, answer.lost, tokens(answer)) == (200, None, came)
    end = "response.incomplete" if dialect == "responses" and name.startswith("incomplete") else ENDS[dialect]
    expected = 0 if name == "no_done" and dialect != "responses" else 2 if name == "duplicate_terminal" else 1
    said = [event.name or event.data for event in answer.events]
    assert said.count(end) == expected
    if name == "no_usage":
        assert b'tokens":' not in answer.body.replace(b'max_output_tokens":', b"")
    assert relay.counters.calls_finished == 1


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_split_surrogates(dialect: str, version: str) -> None:
    """Half an escape in each of two deltas, as JSON allows; joined they are one character."""
    async with relaying("surrogate_split") as relay:
        answer = await asking(version, relay.port, dialect)
    halves = content(answer.events)
    assert "\ud83d\ude80" in halves
    assert "\U0001f680 to the moon" in halves.encode("utf-16", "surrogatepass").decode("utf-16")


@pytest.mark.parametrize("dialect", ["responses", "chat"])
@pytest.mark.parametrize("name", ["error_after_created", "error_midway", "failed"])
async def test_errors_within_the_stream(name: str, dialect: str, version: str) -> None:
    """An error in the dialect's own words inside a 200; what is not streamed fails by status, or says failed."""
    async with relaying(name) as relay:
        answer = await asking(version, relay.port, dialect)
        unstreamed = await asking(version, relay.port, dialect, stream=False)
    assert (answer.status, answer.lost, tokens(answer)) == (200, None, 3 if name == "error_midway" else 0)
    last = answer.events[-1].json
    if dialect == "chat":
        assert last["error"]["code"] == "server_error"
    elif name == "failed":
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    else:
        assert (last["type"], last["code"], answer.events[-1].name) == ("error", "server_error", "error")
        assert last["sequence_number"] == len(answer.events) - 1
    if (name, dialect) == ("failed", "responses"):
        assert (unstreamed.status, unstreamed.json["status"]) == (200, "failed")
    else:
        assert (unstreamed.status, unstreamed.json["error"]["code"]) == (500, "server_error")


# ------------------------------------------------------------------------------------------------- bad lines, ages


@pytest.mark.parametrize("names", ["latency", "jitter-slicer", "bandwidth", "slow_close", "latency-bandwidth-slicer"])
async def test_bad_lines(names: str, version: str) -> None:
    """Decided at the connection's first request; the answers are whole, the next one's too, later."""
    query = "?link_latency_ms=5"
    behaviour = QUICK.__class__(tokens=6, ttft_s=0.001, cadence_s=0.0005, link_latency_s=0.03, link_slow_close_s=0.05)
    async with relaying(f"toxic_{names}*1,ok", behaviour=behaviour) as relay:
        wire = await client(version, relay.port)
        for _ in range(2):
            start = trio.current_time()
            answer = await wire.ask(PATHS["chat"] + query, asked("chat"))
            assert (answer.status, answer.lost, tokens(answer)) == (200, None, 6)
            if "latency" in names:
                assert trio.current_time() - start >= 0.03
        await wire.goodbye()
        await until(lambda: relay.counters.standing == 0)
    assert relay.counters.scenarios == {f"toxic_{names}": 1, "ok": 2}


@pytest.mark.parametrize(("name", "lost"), [("reset", "reset"), ("limit", "eof")])
async def test_lines_that_end(name: str, lost: str, version: str) -> None:
    """After so many bytes RST or EOF, wherever that is; the call counts as cut."""
    behaviour = QUICK.__class__(tokens=60, ttft_s=0.001, cadence_s=0.0005, link_after_bytes=3000, link_slow_close_s=0)
    async with relaying(f"toxic_{name}", behaviour=behaviour) as relay:
        answer = await asking(version, relay.port, "chat")
        await until(lambda: relay.counters.open == 0)
    assert (answer.status, answer.lost) == (200, lost)
    assert len(answer.body) < 3000
    assert relay.counters.calls_cut == 1


@pytest.mark.parametrize("by_scenario", [True, False])
async def test_ages(by_scenario: bool, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its age a connection takes no new request, and ends when the answer under way is whole."""
    monkeypatch.setattr("sidecar.simulator.web.talk._EXPIRY", 0.05)
    settings = {} if by_scenario else {"max_age_s": 0.05}
    async with relaying("expiry" if by_scenario else "ok", **settings) as relay:
        wire = await client(version, relay.port)
        answer = await wire.ask(PATHS["chat"], asked("chat", "[[tokens=30 cadence_ms=5]]"))
        assert (answer.lost, tokens(answer)) == (None, 30)
        assert await wire.gone() == "eof"
    assert (relay.counters.calls_finished, relay.counters.calls_cut) == (1, 0)


# --------------------------------------------------------------------------------------------------------- for all


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_scenario_ends_in_the_books(dialect: str, version: str) -> None:
    """Every scenario there is, streamed or not, side by side: nothing breaks the relay, the counters add up."""
    ends = ("endless_fragments", "empty_fragments", "giant_frame", "zstd_bomb", "flood", "endless_head")
    async with relaying() as relay:

        async def one(name: str, stream: bool) -> None:
            wire = await client(version, relay.port)
            with trio.move_on_after(0.3):
                body = asked(dialect, "[[size_bytes=100000]]" if name in ends else "hi", stream=stream)
                if not stream:
                    body.pop("stream_options", None)
                await wire.ask(f"/s/{name}{PATHS[dialect]}", body)
            await wire.goodbye()

        async with trio.open_nursery() as nursery:
            for name in SCENARIOS:
                nursery.start_soon(one, name, True)
                nursery.start_soon(one, name, False)
        await until(lambda: relay.counters.standing == 0)
        counters = relay.counters
        assert counters.in_flight == 0
        assert counters.calls_started == counters.calls_finished + counters.calls_stopped + counters.calls_cut
        assert counters.calls_started >= 2 * len(FATES)
        assert (await asking(version, relay.port, dialect)).lost is None


async def test_what_is_of_http_has_its_kin_over_websockets(version: str) -> None:
    """Each of the scenarios of HTTP is taken over a WebSocket for what its line says."""
    if version == "2":
        pytest.skip("asked once")
    async with relaying() as relay:
        for name, last in (
            *[("goaway", "response.completed"), ("linger", "response.completed"), ("drip_head", "response.completed")],
            *[("json_error", "error"), ("cut_clean", None), ("goaway_now", None), ("rst_stream", None)],
            *[("refused_stream", None), ("packed", None), ("endless_json", None), ("endless_head", None)],
        ):
            talk = await Talk.open(relay.port)
            events = await talk.answer(request(f"[[scenario={name}]]"))
            assert (events[-1]["type"] if talk.lost is None else None) == last, name
        assert (await (await Talk.open(relay.port, "/v1/chat")).chunks(chat()))[-1] == "[DONE]"
