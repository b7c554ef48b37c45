"""The relay over HTTP/2: many answers at once, windows obeyed, streams that end alone; by ALPN and by the preface."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme

from sidecar.simulator import Relay
from tests.simulator.harness import Talk, http_get, relaying, request, until
from tests.simulator.web import PATHS, Browser, Multiplex, asked, content

DIALECTS = ["responses", "chat", "messages"]


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The relay's context and a client's."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_same_answers(dialect: str) -> None:
    """Streams of events, and whole answers, as over HTTP/1.1; one connection, counted by way."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        answer = await wire.ask(PATHS[dialect], asked(dialect, '[[text="BUY at open" tokens=3]]'))
        whole = await wire.ask(PATHS[dialect], {**asked(dialect), "stream": False})
        assert (answer.status, answer.lost, content(answer.events)) == (200, None, "BUY at open")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert int(whole.headers["content-length"]) == len(whole.body)
        assert whole.json["model"] == "m"
        counters = relay.counters
        assert (counters.connections, counters.requests) == ({"h2": 1}, {"h2": 2})
        assert (counters.calls_finished, counters.open) == (2, 1)
        await wire.goodbye()
        await until(lambda: counters.open == 0 and counters.standing == 0)
        assert counters.calls_stopped == 0


async def test_many_at_once() -> None:
    """Fifty streams on one connection, in every dialect, side by side, none mixed with another."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        numbers = []
        for index in range(50):
            dialect = DIALECTS[index % 3]
            prompt = f"[[text=w{index} tokens=20 ttft_ms=400 cadence_ms=2]]"
            numbers.append(await wire.send(PATHS[dialect], asked(dialect, prompt)))
        answers = [await wire.receive(number) for number in numbers]
        assert [content(answer.events) for answer in answers] == [" ".join([f"w{n}"] * 20) for n in range(50)]
        assert relay.counters.max_in_flight == 50
        assert relay.counters.accepted == 1


@pytest.mark.parametrize("steering", ["tokens=3000 cadence_ms=0", "tokens=300 cadence_ms=0.01"])
async def test_windows_are_obeyed(steering: str) -> None:
    """Not a byte more than the window, of the stream and of the connection; all of it when they open."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port, window=1000)
        one = await wire.send(PATHS["chat"], asked("chat", f"[[{steering}]]"))
        two = await wire.send(PATHS["chat"], asked("chat", f"[[{steering}]]"))
        for number in (one, two):
            while len(wire.answer(number).body) < 1000:
                await wire.pump()
        with trio.move_on_after(0.05):
            await wire.pump()
        assert (len(wire.answer(one).body), len(wire.answer(two).body)) == (1000, 1000)
        wire.peer.increment_flow_control_window(1 << 30)
        wire.peer.increment_flow_control_window(1 << 30, one)
        await wire.flush()
        assert len(content((await wire.receive(one)).events).split()) in (300, 3000)
        assert len(wire.answer(two).body) == 1000
        wire.peer.increment_flow_control_window(5, two)
        await wire.flush()
        while len(wire.answer(two).body) < 1005:
            await wire.pump()
        wire.peer.increment_flow_control_window(1 << 30, two)
        await wire.flush()
        assert (await wire.receive(two)).events[-1].data == "[DONE]"


async def test_the_window_of_the_connection_is_shared() -> None:
    """Streams that wait get a frame each in turn when the connection's window opens."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port, window=1 << 20)
        prompt = "[[tokens=5000 cadence_ms=0]]"
        numbers = [await wire.send(PATHS["chat"], asked("chat", prompt)) for _ in range(3)]
        while sum(len(wire.answer(number).body) for number in numbers) < 65535:
            await wire.pump()
        (talk,) = relay.speaking
        await until(lambda: all(call.act.line.backlog > 32768 for call in talk.calls))
        wire.peer.increment_flow_control_window(3 * 16384)
        await wire.flush()
        before = {number: len(wire.answer(number).body) for number in numbers}
        while sum(len(wire.answer(number).body) for number in numbers) < 65535 + 3 * 16384:
            await wire.pump()
        assert {len(wire.answer(number).body) - before[number] for number in numbers} == {16384}


async def test_a_client_that_takes_nothing_holds_nothing_up() -> None:
    """A flood into a window that is shut waits in bounded memory; other streams are answered."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port, window=0)
        await wire.send(PATHS["chat"], asked("chat", "[[tokens=500000 cadence_ms=0]]"))
        other = await Multiplex.open(relay.port)
        assert (await other.ask(PATHS["chat"], asked("chat"))).status == 200
        (call,) = [call for talk in relay.speaking for call in talk.calls]
        assert 0 < call.act.line.backlog < 2 << 20
        assert call.act.sent < 20_000


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_that_the_client_resets_is_stopped(dialect: str) -> None:
    """RST_STREAM: generation stops at once, the instant and the way are noted, the others go on."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        left = await wire.send(PATHS[dialect], asked(dialect, "[[tokens=90000 cadence_ms=1 id=left]]"))
        other = await wire.send(PATHS[dialect], asked(dialect, "[[tokens=40 cadence_ms=2]]"))
        await until(lambda: relay.counters.tokens > 5)
        wire.peer.reset_stream(left, 8)
        before = relay.mono_us()
        await wire.flush()
        await until(lambda: relay.counters.calls_stopped == 1)
        (stop,) = relay.counters.stops
        assert (stop.id, stop.way, stop.by_reset, relay.counters.stream_resets) == ("left", "h2", True, 1)
        assert before <= stop.at_us < before + 1_000_000
        assert len(content((await wire.receive(other)).events).split()) == 40
        assert relay.counters.tokens == stop.tokens + 40
        assert (relay.counters.calls_finished, relay.counters.in_flight) == (1, 0)


@pytest.mark.parametrize("how", ["eof", "goaway"])
async def test_a_client_that_goes_stops_all_its_calls(how: str) -> None:
    """EOF, or a GOAWAY of the client's: every stream of the connection is stopped, none by a reset."""
    async with relaying("silent") as relay:
        wire = await Multiplex.open(relay.port)
        for _ in range(3):
            await wire.send(PATHS["chat"], asked("chat"))
        await until(lambda: relay.counters.in_flight == 3)
        if how == "goaway":
            wire.peer.close_connection()
            await wire.flush()
        else:
            await wire.goodbye()
        await until(lambda: relay.counters.open == 0)
    assert (relay.counters.calls_stopped, relay.counters.stream_resets, relay.counters.in_flight) == (3, 0, 0)


async def test_streams_beyond_the_limit_are_refused_alone() -> None:
    """max_streams is announced; who does not heed it, or asks before it was read, hears REFUSED_STREAM for the rest."""
    async with relaying("silent", max_streams=2) as relay:
        wire = await Multiplex.open(relay.port, greet=False)
        numbers = [await wire.send(PATHS["chat"], asked("chat")) for _ in range(4)]
        refused = [(await wire.receive(number)).lost for number in numbers[2:]]
        assert refused == ["REFUSED_STREAM", "REFUSED_STREAM"]
        assert wire.peer.remote_settings.max_concurrent_streams == 2
        assert relay.counters.in_flight == 2
        relay.set_scenario("ok")
        wire.peer.reset_stream(numbers[0], 8)
        assert (await wire.ask(PATHS["chat"], asked("chat"))).status == 200


async def test_tls_agrees_on_the_version(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """By ALPN h2 or http/1.1, as the client offers; a WebSocket, which offers nothing, goes on working."""
    server, client = tls
    async with relaying(tls=server) as relay:
        client.set_alpn_protocols(["h2", "http/1.1"])
        wire = await Multiplex.open(relay.port, tls=client)
        assert (await wire.ask(PATHS["chat"], asked("chat"))).events[-1].data == "[DONE]"
        client.set_alpn_protocols(["http/1.1"])
        browser = await Browser.open(relay.port, tls=client)
        assert (await browser.ask(PATHS["chat"], asked("chat"))).events[-1].data == "[DONE]"
        for offered in (["http/1.1"], None):
            context = client
            if offered is None:
                context = ssl.create_default_context()
                context.load_verify_locations(cadata="".join(_pem(client)))
            talk = await Talk.open(relay.port, tls=context)
            assert (await talk.answer(request()))[-1]["type"] == "response.completed"
        assert relay.counters.connections == {"h2": 1, "http/1.1": 1, "websocket": 2}


def _pem(context: ssl.SSLContext) -> list[str]:
    return [ssl.DER_cert_to_PEM_cert(one) for one in context.get_ca_certs(binary_form=True)]


@pytest.mark.parametrize(("versions", "agreed"), [(["1.1"], "http/1.1"), (["2"], "h2"), (["1.1", "2"], "h2")])
async def test_versions_by_tls(versions: list[str], agreed: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """http_versions is what ALPN offers; h2 is preferred."""
    server, client = tls
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with relaying(tls=server, http_versions=versions) as relay:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", relay.port, ssl_context=_named(client))
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == agreed
        await trio.aclose_forcefully(stream)


def _named(context: ssl.SSLContext) -> ssl.SSLContext:
    context.check_hostname = False
    return context


async def test_versions_by_the_preface() -> None:
    """Without TLS: HTTP/2 alone refuses requests of 1.1, 1.1 alone the preface, by 505; commands always come in."""
    async with relaying(http_versions=["2"]) as relay:
        browser = await Browser.open(relay.port)
        assert (await browser.ask(PATHS["chat"], asked("chat"))).status == 505
        assert (await http_get(relay.port, "/_stats"))[0] == 200
    async with relaying(http_versions=["1.1"]) as relay:
        stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 505")
        await stream.aclose()
    with pytest.raises(ValueError, match="2 or both"):
        Relay(http_versions=["3"])


async def test_an_idle_connection_is_closed() -> None:
    """keepalive_timeout_s: GOAWAY and EOF, when no stream was open for so long, the first included."""
    async with relaying(keepalive_timeout_s=0.05) as relay:
        wire, fresh = await Multiplex.open(relay.port), await Multiplex.open(relay.port)
        answer = await wire.ask(PATHS["chat"], asked("chat", "[[tokens=20 cadence_ms=5]]"))
        assert (answer.status, answer.lost) == (200, None)
        with trio.fail_after(2):
            assert (await wire.gone(), wire.last_id) == ("eof", 1)
            assert (await fresh.gone(), fresh.last_id) == ("eof", 0)


async def test_closing_lets_streams_finish() -> None:
    """close_all: GOAWAY, the streams that came are answered, then EOF; a stream that comes later is not looked at."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        one = await wire.send("/u/a/v1/chat", asked("chat", "[[tokens=30 cadence_ms=2]]"))
        await until(lambda: relay.counters.in_flight == 1)
        assert relay.close_all(upstream="b") == 0
        assert relay.close_all(upstream="a") == 1
        await wire.send("/u/a/v1/chat", asked("chat"))
        while wire.lost is None:
            await wire.pump()
        assert (wire.last_id, wire.lost) == (one, "eof")
        assert (relay.counters.calls_started, relay.counters.calls_finished) == (1, 1)


async def test_killing_cuts_all_streams() -> None:
    """kill_all: RST, all calls of the connection are cut."""
    async with relaying("silent") as relay:
        wire = await Multiplex.open(relay.port)
        for _ in range(2):
            await wire.send(PATHS["chat"], asked("chat"))
        await until(lambda: relay.counters.in_flight == 2)
        assert relay.kill_all() == 1
        assert await wire.gone() == "reset"
        assert relay.counters.calls_cut == 2


async def test_commands_and_wrong_requests() -> None:
    """Commands are answered on a stream; another method is 405, an unknown path 404, a body too large is reset."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        stats = await wire.receive(await wire.send("/_stats", b"", method="GET"))
        assert (stats.status, stats.json["accepted"]) == (200, 1)
        assert (await wire.receive(await wire.send("/_nonsense", b"", method="GET"))).status == 400
        assert (await wire.receive(await wire.send(PATHS["chat"], b"", method="GET"))).status == 405
        assert (await wire.ask("/v1/nonsense", asked("chat"))).status == 404
        number = wire.peer.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", PATHS["chat"]), (":scheme", "http"), (":authority", "localhost")]
        wire.peer.send_headers(number, head)
        for _ in range(17 << 6):
            while wire.peer.local_flow_control_window(number) < 16384 and number not in wire.ends:
                await wire.flush()
                await wire.pump()
            if number in wire.ends:
                break
            wire.peer.send_data(number, bytes(16384))
        assert (await wire.receive(number)).lost == "ENHANCE_YOUR_CALM"
        assert (await wire.ask(PATHS["chat"], asked("chat"))).status == 200


async def test_what_is_no_http2() -> None:
    """A frame against the protocol is answered with GOAWAY, and the connection ends; pings are answered and counted."""
    async with relaying() as relay:
        wire = await Multiplex.open(relay.port)
        wire.peer.ping(b"12345678")
        await wire.flush()
        await until(lambda: relay.counters.pings == 1)
        await wire.stream.send_all(b"\x00\x00\x04\x00\x00\x00\x00\x00\x00oops")
        assert await wire.gone() in ("eof", "reset")
        assert wire.last_id is not None
        await until(lambda: relay.counters.open == 0)
