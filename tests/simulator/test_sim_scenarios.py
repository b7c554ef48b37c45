"""Each scenario does what its line says, seen from outside: by `websockets`, or on the bare socket."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import trio
import zstandard

from sidecar.simulator import SCENARIOS, Plan
from sidecar.simulator.fates import FATES
from sidecar.simulator.voices import FAULTS
from tests.simulator.harness import QUICK, Talk, chat, http_get, relaying, request, said, until

UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


# ------------------------------------------------------------------------------------------------------ calls


@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_error_frames(name: str) -> None:
    """One error frame with the status and code of its kind, nothing before it; the connection goes on."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port)
        (error,) = await talk.answer(request(stream_id="s"))
        assert (error["status"], error["error"]["code"]) == (FAULTS[name].status, FAULTS[name].code)
        assert error["stream_id"] == "s"
        assert ("headers" in error["error"]) == (name in ("error_429", "error_503"))
        relay.set_scenario("ok")
        assert (await talk.answer(request()))[-1]["type"] == "response.completed"
    assert relay.counters.calls_finished == 2


@pytest.mark.parametrize("shape", ["nested", "headers_top", "flat", "no_status", "no_type"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat"])
async def test_error_shapes(shape: str, path: str) -> None:
    """The five shapes in the wild, in both dialects; `chat` has one without a type, too."""
    async with relaying("error_429") as relay:
        talk = await Talk.open(relay.port, f"{path}?shape={shape}&retry_after_s=1.5")
        await talk.send(request() if "responses" in path else chat())
        error = await talk.event()
    assert error is not None
    assert (error.get("type") == "error") == (path == "/v1/responses" or shape != "no_status")
    assert ("status" in error) == (shape not in ("flat", "no_status"))
    assert ("error" in error) == (shape != "flat")
    inner = error.get("error", error)
    assert inner["code"] == "rate_limit_exceeded"
    assert ("type" in inner) == (shape != "no_type")
    if shape != "flat":
        assert (error if shape == "headers_top" else inner)["headers"] == {"retry-after": "1.5"}


@pytest.mark.parametrize(
    ("name", "tokens", "lost"), [("cut", 3, "eof"), ("cut_rst", 3, "reset"), ("reset", 0, "reset")]
)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat"])
async def test_cuts(name: str, tokens: int, lost: str, path: str) -> None:
    """So many tokens, then EOF or RST without a close frame; the call counts as cut, not as stopped."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port, path)
        texts = await talk.chunks(request() if "responses" in path else chat())
        await talk.goodbye()
        await until(lambda: relay.counters.open == 0)
    content = [text for text in texts if "output_text.delta" in text or '"delta":{"content":"' in text]
    assert len([text for text in content if '"role"' not in text]) == tokens
    assert talk.lost == lost
    assert talk.code is None
    assert (relay.counters.calls_cut, relay.counters.calls_stopped) == (1, 0)


@pytest.mark.parametrize("code", [1001, 1008, 1011, 1012, 1013, 4402])
async def test_close_codes(code: int) -> None:
    """A close frame at once, or after some tokens when asked; the connection then ends."""
    async with relaying(f"close_{code}") as relay:
        early, late = await Talk.open(relay.port, "/v1/responses?after=0"), await Talk.open(relay.port)
        assert await early.answer(request()) == []
        events = await late.answer(request("[[after=2]]"))
        await until(lambda: relay.counters.open == 0)
    assert early.code == late.code == code
    assert len([event for event in events if event["type"] == "response.output_text.delta"]) == 2


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("silent", 0), ("silent_after_created", 2), ("stall_silent", 7)],
)
async def test_silences(name: str, kinds: int) -> None:
    """Nothing more comes, yet a ping is answered; when the client goes, the call counts as stopped, with its time."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request("[[id=quiet]]"))
        for _ in range(kinds):
            assert await talk.event()
        talk.protocol.send_ping(b"there?")
        await talk.flush()
        while not talk.frames:
            await talk.pump()
        assert talk.frames.pop(0).data == b"there?"
        before = relay.mono_us()
        await talk.goodbye(rst=True)
        await until(lambda: relay.counters.calls_stopped == 1)
        (stop,) = relay.counters.stops
    assert stop.id == "quiet"
    assert stop.tokens == (3 if name == "stall_silent" else 0)
    assert stop.started_us < before <= stop.at_us
    assert relay.counters.pings == 1


async def test_stall_keeps_the_connection_busy() -> None:
    """After the tokens pings and metadata go on and on, and never a terminal."""
    async with relaying("stall") as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request())
        events = [await talk.event() for _ in range(20)]
        assert talk.pings > 5
        await until(lambda: relay.counters.pongs > 0)
    assert [event["type"] for event in events if event][7:] == ["response.in_progress"] * 13


async def test_slow_first_is_late() -> None:
    """Created at once, the first token no sooner than `late_s` later (the harness has 50 ms)."""
    async with relaying("slow_first") as relay:
        talk = await Talk.open(relay.port)
        start = trio.current_time()
        await talk.send(request())
        for _ in range(4):
            await talk.event()
        await talk.event()
        assert trio.current_time() - start >= 0.05


@pytest.mark.parametrize(
    ("name", "code"), [("malformed", None), ("bad_utf8", 1007), ("masked_frame", 1002), ("binary_garbage", None)]
)
async def test_wrong_frames(name: str, code: int | None) -> None:
    """After some tokens a frame that is wrong; `websockets` refuses what breaks the protocol."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request())
        for _ in range(7):
            await talk.event()
        if name == "masked_frame":
            while talk.protocol.parser_exc is None:
                await talk.pump()
            assert talk.protocol.close_sent is not None
            assert talk.protocol.close_sent.code == code
            return
        while not talk.frames:
            await talk.pump()
        with pytest.raises((ValueError, zstandard.ZstdError)):
            await talk.event()


async def test_giant_frame_is_one_frame() -> None:
    """size_bytes of x in one text frame."""
    async with relaying("giant_frame") as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request("[[size_bytes=3000000]]"))
    giants = [event for event in events if len(event.get("delta", "")) > 1000]
    assert [len(event["delta"]) for event in giants] == [3_000_000]


async def test_a_flood_of_pings() -> None:
    """64 KiB of pings at least, in the middle of an answer that is whole."""
    async with relaying("flood") as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request("[[size_bytes=1000]]"))
        assert events[-1]["type"] == "response.completed"
        assert relay.counters.bytes_out > 64_000


@pytest.mark.parametrize("name", ["endless_fragments", "empty_fragments"])
async def test_fragments_never_end(name: str) -> None:
    """A message begins and is continued without end; the relay itself stops at size_bytes."""
    async with relaying(name) as relay:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stream.send_all(UPGRADE % b"/v1/responses?size_bytes=200000&after=0")
        talk_body = json.dumps(request()).encode()
        await stream.send_all(bytes((0x81, 0x80 | 126)) + len(talk_body).to_bytes(2, "big") + bytes(4) + talk_body)
        data = b""
        with trio.fail_after(5):
            while len(data) < 190_000:
                data += await stream.receive_some()
        continuation = (
            bytes((0x00, 126)) + (1024).to_bytes(2, "big") if name == "endless_fragments" else b"\x00\x00" * 9
        )
        assert continuation in data
        await stream.aclose()
        await until(lambda: relay.counters.calls_stopped == 1)
        assert relay.counters.bytes_out < 300_000


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("incomplete_length", "response.incomplete", "max_output_tokens"),
        ("incomplete_filter", "response.incomplete", "content_filter"),
        ("failed", "response.failed", "server_error"),
        ("error_after_created", "error", "server_error"),
        ("error_midway", "error", "server_error"),
        ("refusal", "response.completed", "refusal"),
        ("empty", "response.completed", ""),
        ("no_usage", "response.completed", ""),
        ("usage_late", "response.completed", ""),
    ],
)
async def test_terminals(name: str, kind: str, reason: str) -> None:
    """The terminal is the one that the name says, after a response.created."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port)
        events = await talk.answer(request("[[usage_late_ms=5]]"))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == kind
    assert reason in json.dumps(events[-1])
    assert (said(events) == "") == (name in ("failed", "error_after_created", "refusal", "empty"))
    if name == "no_usage":
        assert events[-1]["response"]["usage"] is None


@pytest.mark.parametrize(
    ("name", "end"), [("incomplete_length", "length"), ("incomplete_filter", "content_filter"), ("refusal", "stop")]
)
async def test_chat_terminals(name: str, end: str) -> None:
    """The finish_reason of `chat` says the same."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port, "/v1/chat")
        chunks = [json.loads(text) for text in (await talk.chunks(chat()))[:-1]]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == end


@pytest.mark.parametrize(("name", "more"), [("no_done", False), ("no_usage", True)])
async def test_chat_without_its_end(name: str, more: bool) -> None:
    """no_done: usage, no [DONE]. no_usage: [DONE], no usage. Then nothing."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port, "/v1/chat")
        await talk.send(chat())
        await until(lambda: relay.counters.calls_finished == 1)
        relay.close_all(1000)
        texts = [text async for text in _rest(talk)]
    assert ("[DONE]" in texts) == more
    assert any('"completion_tokens"' in text for text in texts) != more


async def _rest(talk: Talk) -> Any:
    while (text := await talk.text()) is not None:
        yield text


async def test_after_the_terminal() -> None:
    """A second terminal, or more tokens: on the wire after the first, before the next answer."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        await talk.answer(request("[[scenario=duplicate_terminal]]"))
        again = [(await talk.event() or {})["type"] for _ in range(4)]
        assert again[-1] == "response.completed"
        await talk.answer(request("[[scenario=tokens_after_terminal]]"))
        assert [(await talk.event() or {})["delta"] for _ in range(2)] == [" LATE", " TOKENS"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat"])
@pytest.mark.parametrize("name", ["unknown_events", "stray", "empty_deltas", "reasoning_first"])
async def test_noise_does_not_change_the_answer(name: str, path: str) -> None:
    """Frames between those of the answer; its own text is whole."""
    async with relaying(name) as relay:
        talk = await Talk.open(relay.port, path + "?text=a+b+c&tokens=3&after=1")
        if path == "/v1/responses":
            events = await talk.answer(request(stream_id="s"))
            mine = [event for event in events if event.get("stream_id") == "s"]
            assert said(mine) == events[-1]["response"]["output"][-1]["content"][0]["text"] == "a b c"
            assert len(events) > 12
        else:
            chunks = [json.loads(text) for text in (await talk.chunks(chat()))[:-1]]
            own = [c for c in chunks if c.get("id") != "chatcmpl-" + "0" * 32 and c.get("choices")]
            assert "".join(c["choices"][0]["delta"].get("content", "") for c in own) == "a b c"
            assert len(chunks) > 6


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat"])
async def test_half_a_character_at_a_time(path: str) -> None:
    """Two frames hold half a surrogate pair each, as JSON escapes; together they are one character."""
    async with relaying("surrogate_split") as relay:
        talk = await Talk.open(relay.port, path)
        texts = await talk.chunks(request() if "responses" in path else chat(), "[DONE]") if "chat" in path else None
        if texts is None:
            texts = [json.dumps(event) for event in await talk.answer(request())]
    joined = "".join(texts)
    assert joined.count("\\ud83d") >= 1
    assert "\\ude80 to the moon" in joined


async def test_zstd_bomb_is_small_on_the_wire() -> None:
    """One binary frame that unpacks to size_bytes."""
    async with relaying("zstd_bomb") as relay:
        talk = await Talk.open(relay.port, "/v1/responses?compress=zstd-stream&size_bytes=4000000")
        await talk.send(request())
        while sum(len(frame.data) > 0 for frame in talk.frames) < 8:
            await talk.pump()
        sizes = []
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        for frame in talk.frames[:8]:
            sizes.append((len(frame.data), len(unpacker.decompress(frame.data))))
    wire, unpacked = max(sizes, key=lambda pair: pair[1])
    assert unpacked == 4_000_000
    assert wire < 4000


# ------------------------------------------------------------------------------------------------- connections


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 418])
async def test_refused_upgrades(status: int) -> None:
    """The HTTP status; Retry-After with 429 and 503; nothing counts as a handshake."""
    async with relaying(f"http_{status}") as relay:
        talk = await Talk.open(relay.port)
        assert talk.response is not None
        assert talk.response.status_code == status
        assert ("Retry-After" in talk.response.headers) == (status in (429, 503))
    assert (relay.counters.refused, relay.counters.handshakes) == (1, 0)


@pytest.mark.parametrize(
    ("name", "lost"),
    [("refuse", None), ("handshake_reset", "reset"), ("handshake_eof", "eof"), ("handshake_garbage", None)],
)
async def test_handshakes_that_die(name: str, lost: str | None) -> None:
    """The connection ends in place of a 101, at once."""
    async with relaying(name) as relay:
        with trio.fail_after(2):
            talk = await Talk.open(relay.port)
        assert talk.response is None or talk.response.status_code != 101
        assert lost is None or talk.lost == lost
    assert relay.counters.refused == 1


async def test_a_redirect_and_a_wrong_accept() -> None:
    """301 has a Location; a wrong Sec-WebSocket-Accept looks well but for that."""
    async with relaying() as relay:
        moved = await Talk.open(relay.port, "/s/handshake_301/v1/responses")
        assert moved.response is not None
        assert moved.response.status_code == 301
        assert moved.response.headers["Location"]
        wrong = await Talk.open(relay.port, "/s/handshake_wrong_accept/v1/responses")
        assert wrong.response is not None
        assert wrong.response.status_code == 101
        assert "Sec-WebSocket-Accept" in str(wrong.protocol.handshake_exc)


@pytest.mark.parametrize(("name", "begun"), [("handshake_drip", b"H"), ("handshake_silent", b"")])
async def test_handshakes_that_drag_on(name: str, begun: bytes) -> None:
    """A byte a second, or none: the relay holds the socket until the client gives up, and notices that at once."""
    async with relaying(name) as relay:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stream.send_all(UPGRADE % b"/v1/chat")
        if begun:
            assert await stream.receive_some() == begun
        await until(lambda: relay.counters.refused == 1)
        await trio.aclose_forcefully(stream)
        await until(lambda: not relay.links)


async def test_deaf_reads_nothing() -> None:
    """The handshake is done, then not even a ping is answered; the client's going is still noticed."""
    async with relaying("deaf") as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request())
        talk.protocol.send_ping(b"?")
        await talk.flush()
        assert relay.counters.open == 1
        await talk.goodbye()
        await until(lambda: relay.counters.open == 0)
    assert (relay.counters.pings, relay.counters.calls_started) == (0, 0)


@pytest.mark.parametrize("name", ["expiry", "expiring"])
async def test_age_limit(name: str) -> None:
    """The error frame, then close 1000; with `expiring` a warning before. A call in flight is cut."""
    async with relaying(name, max_age_s=0.1) as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request("[[scenario=silent]]"))
        codes = [(await talk.event() or {})["error"]["code"] for _ in range(1 + (name == "expiring"))]
        assert await talk.event() is None
    assert codes == ["connection_expiring"] * (name == "expiring") + ["websocket_connection_limit_reached"]
    assert talk.code == 1000
    assert relay.counters.calls_cut == 1


async def test_max_age_of_a_healthy_relay() -> None:
    """max_age_s applies to every connection."""
    async with relaying(max_age_s=0.02) as relay:
        talk = await Talk.open(relay.port)
        error = await talk.event()
        assert error is not None
        assert error["error"]["code"] == "websocket_connection_limit_reached"


# -------------------------------------------------------------------------------------------------------- mixes


def test_a_row_counts_what_it_applies_to() -> None:
    """Three doors refused, two calls cut, then all is well; each step waits for its own kind."""
    plan = Plan("http_503*3,cut*2,ok")
    assert [plan.fate(), plan.fate()] == ["ok", "ok"]  # a call takes a door step for ok, and does not use it up
    assert [plan.door() for _ in range(4)] == ["http_503"] * 3 + ["ok"]
    assert [plan.fate() for _ in range(4)] == ["cut", "cut", "ok", "ok"]


def test_shares_are_kept_and_seeded() -> None:
    """In the long run each has its share; the same seed throws the same dice, another seed others."""
    first, second, other = (Plan("ok@0.5+cut@0.3+http_401@0.2", seed) for seed in (1, 1, 2))
    fates = [first.fate() for _ in range(2000)]
    assert fates == [second.fate() for _ in range(2000)]
    assert fates != [other.fate() for _ in range(2000)]
    assert 0.25 < fates.count("cut") / 2000 < 0.35
    doors = [first.door() for _ in range(2000)]
    assert 0.15 < doors.count("http_401") / 2000 < 0.25
    assert set(doors) == {"ok", "http_401"}


def test_half_is_half() -> None:
    """Of every two calls one is ok, which one by seed; the others are silent, late, cut in turn."""
    fates = [Plan("half", 7).fate() for _ in range(1)]
    plan = Plan("half", 7)
    fates = [plan.fate() for _ in range(600)]
    assert all(fates[i : i + 2].count("ok") == 1 for i in range(0, 600, 2))
    assert [fate for fate in fates if fate != "ok"] == ["silent", "late", "cut"] * 100
    again = Plan("half", 8)
    assert fates != [again.fate() for _ in range(600)]
    assert plan.door() == "ok"


@pytest.mark.parametrize(
    "expression",
    ["", "nonsense", "ok*0", "ok*x", "ok@x", "ok@-1", "ok@0", "half*2,ok", "ok+half", "close_99", "ok@inf+cut"],
)
def test_wrong_expressions(expression: str) -> None:
    """Refused with a reason; a running relay keeps what it had."""
    with pytest.raises(ValueError, match=r"."):
        Plan(expression)


def test_random_expressions_never_surprise() -> None:
    """Garbage is a ValueError or a plan, nothing else."""
    dice = random.Random(5)
    for _ in range(3000):
        text = "".join(
            dice.choice(["ok", "cut", "half", "http_503", "*", "@", "+", ",", "0", "3", ".5", "e9", "x"])
            for _ in range(6)
        )
        try:
            plan = Plan(text)
        except ValueError:
            continue
        for _ in range(5):
            assert plan.fate() in SCENARIOS
            assert plan.door() in SCENARIOS


def test_the_table_is_whole() -> None:
    """Every call scenario can be played, every play is in the table, every mix parses."""
    calls = {name for name, one in SCENARIOS.items() if one.kind == "call"}
    assert {name for name in calls if not name.startswith("close_")} == set(FATES)
    for name in SCENARIOS:
        Plan(name)


async def test_every_scenario_survives_both_dialects() -> None:
    """No scenario breaks the relay itself: after each of them a healthy call is answered, and the sums add up."""
    behaviour = QUICK
    async with relaying(behaviour=behaviour, max_age_s=5) as relay:
        for name, one in SCENARIOS.items():
            for path in ("/v1/responses", "/v1/chat"):
                talk = await Talk.open(relay.port, path) if one.kind == "call" else None
                if talk is not None:
                    await talk.send((request if "responses" in path else chat)(f"[[scenario={name} late_ms=1]]"))
                    with trio.move_on_after(0.02):
                        while not talk.lost:
                            await talk.pump()
                    await talk.goodbye()
        await until(lambda: relay.counters.in_flight == 0)
        status, stats = await http_get(relay.port, "/_stats")
    assert status == 200
    assert stats["calls_started"] == stats["calls_finished"] + stats["calls_stopped"] + stats["calls_cut"]
    assert stats["open"] <= 2


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat"])
async def test_a_connection_may_expire_as_a_call_comes(path: str) -> None:
    """`expired`: the age limit's error frame in answer to the call, then close 1000; the call counts as cut."""
    async with relaying("expired*1,ok") as relay:
        talk = await Talk.open(relay.port, path)
        await talk.send(request() if path == "/v1/responses" else chat())
        event = await talk.event()
        assert event is not None
        assert event["error"]["code"] == "websocket_connection_limit_reached"
        assert await talk.event() is None
        assert talk.code == 1000
        await until(lambda: relay.counters.in_flight == 0)
        assert relay.counters.calls_cut == 1
        assert said(await (await Talk.open(relay.port)).answer(request("[[text=x tokens=1]]"))) == "x"
