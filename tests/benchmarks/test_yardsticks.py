"""The yardsticks in C do what they are measured by. Without a compiler there is nothing to test."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from sidecar import Client
from tests.benchmarks.common import Bench, Bot, route, upstream
from tests.benchmarks.yardsticks.build import Missing, build
from tests.benchmarks.yardsticks.relay import CRelay
from tests.benchmarks.yardsticks.upstream import CUpstream

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="the yardsticks need a C compiler: no cc on the PATH"
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Ends what was started in it."""
    with Bench() as started:
        yield started


@pytest.fixture
def service(bench: Bench) -> CUpstream:
    """Three tokens at once, unless told otherwise."""
    return CUpstream(bench, for_s=60, tokens=3, cadence_us=0, ttft_us=0)


def prompt(**fields: Any) -> str:
    """A request."""
    return json.dumps({"type": "response.create", "model": "gpt-5-mini", "input": "hold?", **fields})


async def answer(url: str, request: str, last: str) -> list[str]:
    """Every frame up to the one that contains `last`."""
    found: list[str] = []
    async with asyncio.timeout(20), connect(url, compression=None, max_size=None) as websocket:
        await websocket.send(request)
        while not found or last not in found[-1]:
            found.append(str(await websocket.recv()))
    return found


def plain(frames: list[str]) -> list[str]:
    """Without what differs between two answers: names, and the count of the prompt's tokens."""
    text = "\n".join(frames)
    text = re.sub(r"_[0-9a-f]{32}|-[0-9a-f]{32}", "_", text)
    return re.sub(r'"(input|prompt|total)_tokens":\d+', r'"\1_tokens":0', text).split("\n")


RESPONSES: tuple[dict[str, Any], ...] = (
    {},
    {"stream_id": "s-1"},
    {"max_output_tokens": 2, "instructions": 'say "no"\\'},
    {"stream_options": {"include_obfuscation": False}, "store": False},
)
CHAT: dict[str, Any] = {
    "model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}],
    "stream_options": {"include_usage": True},
}  # fmt: skip


def test_frames_are_the_simulators_byte_for_byte(bench: Bench, service: CUpstream) -> None:
    """The same requests to both, in both dialects: no byte differs but names and the prompt's count."""
    relay = bench.relay("--cadence-ms", "0", "--ttft-ms", "0")
    for fields in RESPONSES:
        frames = asyncio.run(answer(service.url(), prompt(**fields), '"usage":{'))
        said = "".join(json.loads(frame).get("delta", "") for frame in frames)
        words = said + " more" if "max_output_tokens" in fields else said
        url = relay.url(tokens=3, text=words.replace(" ", "+"))
        assert plain(frames) == plain(asyncio.run(answer(url, prompt(**fields), '"usage":{')))
        assert len([frame for frame in frames if ".delta" in frame]) == (2 if "max_output_tokens" in fields else 3)
    for request in (CHAT, {**CHAT, "max_tokens": 2}, {**CHAT, "stream_options": None}):
        frames = asyncio.run(answer(service.url("/v1/chat"), json.dumps(request), "[DONE]"))
        chunks = [json.loads(frame) for frame in frames[:-1]]
        said = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        words = said + " more" if "max_tokens" in request else said
        url = relay.url(tokens=3, text=words.replace(" ", "+")).replace("responses", "chat")
        assert plain(frames) == plain(asyncio.run(answer(url, json.dumps(request), "[DONE]")))


def test_tls_serves_wss_and_https(bench: Bench, tmp_path: Path) -> None:
    """A certificate given, everything is encrypted; a client that speaks plain text is let go."""
    try:
        build("upstream", tls=True)
    except Missing as missing:
        pytest.skip(f"no TLS: {str(missing).splitlines()[0]}")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    service = CUpstream(bench, cert=tmp_path / "both.pem", key=tmp_path / "both.pem", cadence_us=0, ttft_us=0)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def main() -> int:
        found = 0
        url = service.url(tokens=5000)
        async with asyncio.timeout(20), connect(url, ssl=context, compression=None, max_size=None) as websocket:
            await websocket.send(prompt())
            while "completed_at" not in (frame := str(await websocket.recv())):
                found += "_text.delta" in frame
        return found

    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as peer:
        peer.sendall(HANDSHAKE)
        try:
            while peer.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert asyncio.run(main()) == 5000
    assert service.counters()["tokens"] == 5000


def test_three_streams_on_one_connection(service: CUpstream) -> None:
    """Side by side, each whole and in its order; one lane's calls wait for each other."""

    async def main() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {"a": [], "b": [], "c": []}
        ended = 0
        async with asyncio.timeout(20), connect(service.url(cadence_us=500, jitter=0.5, tokens=40)) as websocket:
            for name in ("a", "b", "c", "a"):
                await websocket.send(prompt(stream_id=name))
            while ended < 4:
                event = json.loads(await websocket.recv())
                found[event["stream_id"]].append(event)
                ended += event["type"] == "response.completed"
        return found

    for name, events in asyncio.run(main()).items():
        kinds = [event["type"] for event in events]
        assert kinds.count("response.output_text.delta") == (80 if name == "a" else 40)
        numbers = [event["sequence_number"] for event in events]
        assert numbers == list(range(48)) * (2 if name == "a" else 1)
        whole = "".join(event.get("delta", "") for event in events[:48])
        assert events[47]["response"]["output"][0]["content"][0]["text"] == whole
    assert service.counters()["max_in_flight"] == 4


def test_stamps_are_this_hosts_monotonic_clock(service: CUpstream) -> None:
    """Each token is the instant of its sending; the prompt overrides the URL."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    frames = asyncio.run(
        answer(service.url(stamp=1, tokens=7), prompt(input="[[tokens=5 cadence_us=10]]"), "completed_at")
    )
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    stamps = [int(json.loads(frame)["delta"]) for frame in frames if "_text.delta" in frame]
    assert len(stamps) == 5
    assert stamps == sorted(stamps)
    assert before <= stamps[0]
    assert stamps[-1] <= after


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_http_keeps_alive_and_streams(service: CUpstream, path: str) -> None:
    """Events and whole answers on one connection; a chunked body is read too."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    body = json.dumps({"model": "m", "stream": True, "messages": [], "input": "x"})
    connection.request("POST", path, body)
    with connection.getresponse() as found:
        assert found.headers["content-type"].startswith("text/event-stream")
        events = [block for block in found.read().decode().split("\n\n") if block]
    data = [event.partition("data: ")[2] for event in events]
    if path.endswith("responses"):
        assert [event.split("\n")[0] for event in events] == [f"event: {json.loads(one)['type']}" for one in data]
        assert json.loads(data[-1])["type"] == "response.completed"
    else:
        assert data[-1] == "[DONE]"
        assert sum('"content":"' in one and '"role"' not in one for one in data) == 3
    halves = (part for part in (body[:20].encode(), body[20:].replace("true", "false").encode()))
    connection.request("POST", path, halves, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    with connection.getresponse() as found:
        whole = json.loads(found.read())
    assert whole["usage"]["total_tokens"] > 3
    counters = service.counters()
    assert counters["calls_finished"] == 2
    assert counters["tokens"] == 6
    connection.close()


HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01SSH-2.0 220 mail ready\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /v1/responses\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/responses HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 40_000,
        HANDSHAKE + b"\x81\x05hello",  # not masked
        HANDSHAKE + b"\xff\x85aaaahello",  # reserved bits
        HANDSHAKE + b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xffaaaa",  # too long
        HANDSHAKE + b"\x80\x81\x00\x00\x00\x00{",  # continues nothing
        HANDSHAKE + b'\x81\x83\x00\x00\x00\x00{"a',
        HANDSHAKE + b"\x81\x82\x00\x00\x00\x00[]",
        HANDSHAKE + b"\x89\xfe\x01\x00aaaa" + bytes(256),  # a long ping
    ],
)
def test_garbage_ends_its_connection_and_nothing_else(service: CUpstream, garbage: bytes) -> None:
    """It is told, if at all, and closed; the next client is served."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as peer:
        peer.sendall(garbage)
        try:
            while peer.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert service.counters()["bad_requests"] == 1
    assert len(asyncio.run(answer(service.url(), prompt(), "completed_at"))) == 11
    assert service.process.poll() is None


def test_pings_fragments_and_farewells(service: CUpstream) -> None:
    """A ping is answered, a fragmented request understood, a close answered with its own code."""

    async def main() -> int | None:
        async with asyncio.timeout(20), connect(service.url()) as websocket:
            await (await websocket.ping(b"here"))
            text = prompt()
            await websocket.send([text[:1], text[1:30], text[30:]])
            while "completed_at" not in str(await websocket.recv()):
                pass
            await websocket.close(4001)
            with pytest.raises(ConnectionClosed):
                await websocket.recv()
            return websocket.close_code

    assert asyncio.run(main()) == 4001
    assert service.counters()["pings"] == 1


def test_a_client_that_does_not_read_holds_up_nobody(service: CUpstream) -> None:
    """Its flood stops at a bound; another's goes through; gone, it is counted as stopped."""
    body = prompt(input="[[tokens=1000000]]").encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as deaf:
        deaf.sendall(HANDSHAKE + bytes((0x81, 0x80 | len(body) if len(body) < 126 else 0xFE)))
        deaf.sendall((b"" if len(body) < 126 else len(body).to_bytes(2, "big")) + bytes(4) + body)
        found = asyncio.run(answer(service.url(tokens=20_000), prompt(), "completed_at"))
        assert len(found) == 20_008
        counters = service.counters()
        assert counters["calls_finished"] == 1
        assert counters["tokens"] < 1_000_000
    deadline = time.monotonic() + 10
    while service.counters()["calls_stopped"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert service.counters()["in_flight"] == 0


def test_the_daemon_is_served(bench: Bench, service: CUpstream) -> None:
    """A call through the product ends with `done`."""
    bench.daemon(upstream("c", service.url(), warm=1, maximum=2) + route("c"))
    bench.until_connected(1, "c")
    with Bot(bench.endpoint) as bot:
        bot.call("one", "[[tokens=100]]", 10_000)
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["type"] not in ("done", "failed"):
            messages += bot.receive(10)
    assert messages[-1]["type"] == "done"
    assert messages[-1]["usage"]["output_tokens"] == 100
    assert "".join(one.get("text", "") for one in messages if one["type"] == "delta").count(" ") == 99


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the message names it."""
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(Missing, match="no-such-compiler"):
        build("upstream")


# ------------------------------------------------------------------------------------------------ the relay


@pytest.fixture
def relay_built() -> None:
    """Skips where libzmq's headers are missing."""
    try:
        build("relay")
    except Missing as missing:
        pytest.skip(f"no relay: {str(missing).splitlines()[0]}")


def ended(bot: Bot, number: int) -> list[dict[str, Any]]:
    """All messages until so many terminals came."""
    messages: list[dict[str, Any]] = []
    while sum(one["type"] in ("done", "failed") for one in messages) < number:
        received = bot.receive(10)
        assert received, messages[-3:]
        messages += received
    return messages


@pytest.mark.parametrize("batch", [True, False])
def test_the_relay_answers_more_calls_than_it_has_connections(
    bench: Bench, service: CUpstream, relay_built: None, batch: bool
) -> None:
    """Every token of every call, in order, `accepted` before and `done` behind; the rest wait for a connection."""
    CRelay(bench, bench.endpoint, service.url(tokens=500), connections=3)
    assert service.counters()["open"] == 3
    with Bot(bench.endpoint, batch=batch) as bot:
        for index in range(8):
            bot.call(str(index), "hold?", 10_000)
        messages = ended(bot, 8)
    for index in range(8):
        mine = [one for one in messages if one["id"] == str(index)]
        assert [mine[0]["type"], mine[-1]["type"]] == ["accepted", "done"]
        deltas = mine[1:-1]
        assert [one["seq"] for one in deltas] == list(range(mine[-1]["deltas"]))
        assert "".join(one["text"] for one in deltas).count(" ") == 499
        assert mine[-1]["usage"]["output_tokens"] == 500
    assert service.counters()["tokens"] == 4000


def test_our_client_takes_the_relay_for_a_daemon(bench: Bench, service: CUpstream, relay_built: None) -> None:
    """Streamed and whole."""
    CRelay(bench, bench.endpoint, service.url(), connections=1)
    with Client(bench.endpoint) as client:
        with client.stream("hold?", timeout_ms=10_000) as stream:
            assert "".join(stream).count(" ") == 2
        assert client.ask("hold?", timeout_ms=10_000).text.count(" ") == 2


FRAMES = (
    [r'{"delta":"a\"\\\n\u00e9\ud83d\ude00\/","x":{"type":"no","delta":["}"]},"type":"response.output_text.delta"}'],
    [r'{"type":"response.', 'output_text.delta", "de', 'lta" : "b"}'],
    ['{"type":"response.function_call_arguments.delta","delta":"no"}'],
    [r'{"type":"response.output_text.delta","delta":"\ud800é€"}'],
    ['{"type":"response.completed","response":{"usage":{"output_tokens":7,"input_tokens":3}}}'],
)


@pytest.mark.parametrize("garbage", ["", '{"type', '{"type":"response.output_text.delta","delta":7}'])
def test_the_relay_reads_what_is_legal_and_gives_up_on_the_rest(bench: Bench, relay_built: None, garbage: str) -> None:
    """Escapes, fields in any order, fragments, a ping; broken JSON ends the call as failed."""
    asked: list[str] = []

    def handle(websocket: ServerConnection) -> None:
        for request in websocket:
            asked.append(str(request))
            websocket.ping()
            for frame in FRAMES:
                websocket.send(iter(frame) if len(frame) > 1 else frame[0])
                if garbage:
                    websocket.send(garbage)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        CRelay(bench, bench.endpoint, f"ws://127.0.0.1:{port}/v1/responses", connections=1)
        with Bot(bench.endpoint) as bot:
            bot.call("one", 'say "é"\n\x01\\', 10_000)
            messages = ended(bot, 1)
        server.shutdown()
        thread.join()
    assert json.loads(asked[0])["input"] == 'say "é"\n\x01\\'
    text = "".join(one["text"] for one in messages if one["type"] == "delta")
    if garbage:
        assert messages[-1]["code"] == "upstream_lost"
        assert text == 'a"\\\né😀/'
    else:
        assert messages[-1]["usage"] == {
            "input_tokens": 3, "output_tokens": 7, "cached_tokens": 0, "reasoning_tokens": 0, "estimated": False,
        }  # fmt: skip
        assert text == 'a"\\\né😀/b\ufffdé€'


def test_garbage_from_a_bot_harms_no_other(bench: Bench, service: CUpstream, relay_built: None) -> None:
    """It is dropped."""
    relay = CRelay(bench, bench.endpoint, service.url(), connections=1)
    with Bot(bench.endpoint) as rude, Bot(bench.endpoint) as bot:
        for payload in (
            b"",
            b"\xc1",
            b"{}",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xa4type",
            b"\xdb\xff\xff\xff\xffa",
            b"\x91" * 5000,
        ):
            rude.socket.send(payload)
        rude.socket.send_multipart([b"", b"envelope"])
        rude.send({"type": "call", "id": "x" * 65, "input": "too long a name"})
        rude.send({"type": "call", "id": 7, "input": None})
        bot.call("one", "hold?", 10_000)
        assert ended(bot, 1)[-1]["type"] == "done"
    assert relay.process.poll() is None


def test_the_ratio_runs(relay_built: None) -> None:
    """The quick mode of the command, judged by counts."""
    command = [sys.executable, str(Path(__file__).parent / "yardsticks/ratio.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {"1", "4", "short 1", "short 8", "paced 1", "paced 4", "p50 1", "p99 4"} <= set(found["ratio"])
    assert all(found["promises"].values())
