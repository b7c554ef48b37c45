"""The relay as a whole: doors and keys, counters, steering at run time, killing, closing, stopping."""

from __future__ import annotations

import pytest
import trio

from sidecar.simulator import Behaviour, Relay
from sidecar.simulator.behaviour import steer, steering_of
from sidecar.simulator.frames import Reader, Violation
from sidecar.simulator.metronome import Metronome
from tests.simulator.harness import QUICK, Talk, chat, http_get, relaying, request, said, until


async def test_keys() -> None:
    """Only a key that is accepted opens the door; the set may be changed while serving (a rotation)."""
    async with relaying(keys={"old"}) as relay:
        statuses = []
        for key in ("old", "new", None):
            talk = await Talk.open(relay.port, key=key)
            statuses.append(talk.response.status_code if talk.response else None)
        relay.keys = {"new"}
        for key in ("old", "new"):
            talk = await Talk.open(relay.port, key=key)
            statuses.append(talk.response.status_code if talk.response else None)
    assert statuses == [101, 401, 401, 401, 101]
    assert (relay.counters.handshakes, relay.counters.refused) == (2, 3)


async def test_wrong_doors() -> None:
    """Unknown paths and scenarios 404, a plain GET 426, a wrong query 400, not HTTP 400."""
    async with relaying(dialects=["responses"]) as relay:
        for path, status in (
            ("/", 404),
            ("/v1/chat", 404),
            ("/s/nonsense/v1/responses", 404),
            ("/v1/responses", 426),
            ("/_nonsense", 400),
            ("/_kill?how=softly", 400),
            ("/_close?code=7", 400),
            ("/_scenario?name=nonsense", 400),
        ):
            assert (await http_get(relay.port, path))[0] == status, path
        talk = await Talk.open(relay.port, "/v1/responses?tokens=many")
        assert talk.response is not None
        assert talk.response.status_code == 400
        for garbage in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 100_000):
            stream = await trio.open_tcp_stream("127.0.0.1", relay.port)
            await stream.send_all(garbage)
            try:
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
            except trio.BrokenResourceError:
                pass  # closed with bytes of ours unread
            await stream.aclose()
        assert said(await (await Talk.open(relay.port)).answer(request("[[text=x tokens=1]]"))) == "x"


async def test_counters_are_exact() -> None:
    """Handshakes, calls, tokens, pings and attempts are what the client did."""
    async with relaying() as relay:
        one, two = await Talk.open(relay.port), await Talk.open(relay.port, "/v1/chat")
        for _ in range(3):
            await one.answer(request("[[id=a tokens=4]]"))
        await two.chunks(chat("[[id=b tokens=5]]"))
        await one.answer(request("[[scenario=error_500]]"))
        one.protocol.send_ping(b"1")
        await one.flush()
        await until(lambda: relay.counters.pings == 1)
        counters = relay.counters
        assert (counters.accepted, counters.handshakes, counters.open, counters.max_open) == (2, 2, 2, 2)
        assert (counters.calls_started, counters.calls_finished, counters.tokens) == (5, 5, 17)
        assert (counters.calls_stopped, counters.calls_cut, counters.in_flight, counters.max_in_flight) == (0, 0, 0, 1)
        assert counters.attempts == {"a": 3, "b": 1, "[[scenario=error_500]]": 1}
        assert counters.scenarios == {"ok": 4, "error_500": 1}
        assert counters.bytes_in > 0
        status, stats = await http_get(relay.port, "/_stats")
        assert (status, stats["tokens"], stats["scenario"], stats["groups"]) == (200, 17, "ok", {"": 5})


async def test_a_client_that_closes_politely_stops_its_calls_too() -> None:
    """A close frame with a call in flight counts as stopped, and is answered."""
    async with relaying("silent") as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request())
        await until(lambda: relay.counters.in_flight == 1)
        talk.protocol.send_close(1000)
        await talk.flush()
        while not talk.lost:
            await talk.pump()
        assert talk.code == 1000
        await until(lambda: relay.counters.open == 0)
    assert (relay.counters.calls_stopped, relay.counters.in_flight) == (1, 0)


async def test_scenarios_change_under_open_connections() -> None:
    """set_scenario befalls the next call of connections that stand; a wrong one changes nothing."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        relay.set_scenario("error_503*1,ok")
        with pytest.raises(ValueError, match="nonsense"):
            relay.set_scenario("nonsense")
        assert (await talk.answer(request()))[-1]["type"] == "error"
        assert (await talk.answer(request()))[-1]["type"] == "response.completed"


async def test_one_relay_plays_several_upstreams() -> None:
    """/s/ names a scenario of its own; /u/ a label that can be steered, killed and closed by itself."""
    async with relaying() as relay:
        bad = await Talk.open(relay.port, "/s/error_500*1,ok/v1/responses")
        first = await Talk.open(relay.port, "/u/first/v1/responses")
        second = await Talk.open(relay.port, "/u/second/v1/responses")
        relay.set_scenario("error_401", upstream="first")
        ends = [(await talk.answer(request()))[-1]["type"] for talk in (bad, bad, first, second)]
        assert ends == ["error", "response.completed", "error", "response.completed"]
        assert relay.counters.groups == {"s/error_500*1,ok": 2, "u/first": 1, "u/second": 1}
        assert relay.kill_all(upstream="first") == 1
        assert await first.event() is None
        assert first.lost == "reset"
        assert relay.close_all(1012, upstream="second") == 1
        assert await second.event() is None
        assert second.code == 1012
        await until(lambda: relay.counters.open == 1)


@pytest.mark.parametrize(("how", "lost"), [("rst", "reset"), ("eof", "eof")])
async def test_kill_by_http(how: str, lost: str) -> None:
    """Another process may kill: every connection ends, their calls are cut, new ones are let in."""
    async with relaying("silent") as relay:
        talks = [await Talk.open(relay.port) for _ in range(3)]
        for talk in talks:
            await talk.send(request())
        await until(lambda: relay.counters.in_flight == 3)
        assert await http_get(relay.port, f"/_kill?how={how}") == (200, {"killed": 3})
        for talk in talks:
            assert await talk.event() is None
            assert talk.lost == lost
        assert (relay.counters.calls_cut, relay.counters.in_flight) == (3, 0)
        assert (await http_get(relay.port, "/_scenario?name=ok"))[0] == 200
        assert (await (await Talk.open(relay.port)).answer(request()))[-1]["type"] == "response.completed"


async def test_close_and_keys_by_http() -> None:
    """/_close with a code; /_keys replaces what is accepted, without one anything is."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        assert await http_get(relay.port, "/_close?code=1013") == (200, {"closed": 1})
        assert await talk.event() is None
        assert talk.code == 1013
        assert (await http_get(relay.port, "/_keys?accept=a,b"))[1] == {"keys": 2}
        refused = await Talk.open(relay.port, key="c")
        assert refused.response is not None
        assert refused.response.status_code == 401
        assert (await http_get(relay.port, "/_keys"))[1] == {"keys": None}


async def test_stopping_says_1001_and_leaves_no_call() -> None:
    """Cancelled, the relay closes what is open with 1001 and counts its calls as cut."""
    async with relaying("silent") as relay:
        talk = await Talk.open(relay.port)
        await talk.send(request())
        await until(lambda: relay.counters.in_flight == 1)
        async with trio.open_nursery() as nursery:
            other = Relay("silent", behaviour=QUICK)
            port = await nursery.start(other.serve)
            left = await Talk.open(port)
            await left.send(request())
            await until(lambda: other.counters.in_flight == 1)
            nursery.cancel_scope.cancel()
        assert await left.event() is None
        assert left.code == 1001
        assert (other.counters.calls_cut, other.counters.in_flight, other.counters.open) == (1, 0, 0)


async def test_a_client_that_does_not_read_holds_nothing_up() -> None:
    """A flood to one that reads nothing waits in bounded memory, while another is answered."""
    async with relaying() as relay:
        stuck, other = await Talk.open(relay.port), await Talk.open(relay.port)
        await stuck.send(request("[[tokens=500000 cadence_ms=0]]"))
        await until(lambda: any(link.backlog for link in _links(relay)))
        assert (await other.answer(request()))[-1]["type"] == "response.completed"
        assert max(link.backlog for link in _links(relay)) < 2 << 20
        await stuck.goodbye(rst=True)
        await until(lambda: relay.counters.calls_stopped == 1)


def _links(relay: Relay) -> list[object]:
    return [session.link for session in relay.speaking]


def _masked(first: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
    return head + b"\x01\x02\x03\x04" + bytes(byte ^ (1, 2, 3, 4)[i % 4] for i, byte in enumerate(payload))


def test_client_frames_in_any_slices() -> None:
    """Masked, fragmented, with a ping in between, byte by byte: the same messages."""
    wire = (
        _masked(0x01, b"hel")
        + _masked(0x89, b"?")
        + _masked(0x80, b"lo")
        + _masked(0x81, b"x" * 300)
        + _masked(0x81, b"")
    )
    reader = Reader()
    found = [one for i in range(len(wire)) for one in reader.feed(wire[i : i + 1])]
    assert found == Reader().feed(wire) == [(9, b"?"), (1, b"hello"), (1, b"x" * 300), (1, b"")]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x81\x05hello", 1002),
        (_masked(0xC1, b"x"), 1002),
        (_masked(0x83, b"x"), 1002),
        (_masked(0x80, b"x"), 1002),
        (_masked(0x01, b"x") + _masked(0x81, b"y"), 1002),
        (_masked(0x09, b"x"), 1002),
        (_masked(0x89, b"x" * 200), 1002),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"1234", 1009),
        (_masked(0x01, b"x" * 600) + _masked(0x80, b"x" * 600), 1009),
    ],
)
def test_what_no_client_may_send(wire: bytes, code: int) -> None:
    """Unmasked, reserved bits, out of order, too long: a violation with its close code."""
    with pytest.raises(Violation) as caught:
        Reader(limit=1000).feed(wire)
    assert caught.value.code == code


async def test_a_violation_closes_the_connection() -> None:
    """An unmasked frame is answered with close 1002."""
    async with relaying() as relay:
        talk = await Talk.open(relay.port)
        await talk.stream.send_all(b"\x81\x05hello")
        assert await talk.event() is None
        assert talk.code == 1002
        await until(lambda: relay.counters.open == 0)


def test_steering() -> None:
    """Milliseconds or seconds, quotes, several brackets; the later word counts; wrong ones say what is wrong."""
    scenario, given = steering_of('a [[tokens=3 text="BUY now"]] b [[scenario=cut tokens=4 cadence_ms=2]]')
    behaviour = steer(Behaviour(), given)
    assert (scenario, behaviour.tokens, behaviour.text, behaviour.cadence_s) == ("cut", 4, "BUY now", 0.002)
    assert steer(Behaviour(), {"stamp": "true", "usage": "0"}).stamp is True
    assert steering_of("no brackets [here]") == (None, {})
    for wrong in (
        {"nonsense": 1},
        {"tokens": "x"},
        {"ttft_ms": "x"},
        {"ttft_s": -1},
        {"shape": "round"},
        {"jitter": "nan"},
    ):
        with pytest.raises(ValueError, match=r"."):
            steer(Behaviour(), wrong)
    with pytest.raises(ValueError, match="name=value"):
        steering_of("[[tokens]]")


async def test_the_metronome_keeps_order_and_forgets_the_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Steps come at their times, an earlier newcomer first; a cancelled stream's never again."""
    metronome, beats, start = Metronome(), [], trio.current_time()

    def stepper(name: str, every: float, times: int) -> object:
        left = times

        def step() -> float | None:
            nonlocal left
            left -= 1
            beats.append((name, round(trio.current_time() - start, 3)))
            return trio.current_time() + every if left else None

        return step

    async def play(name: str, at: float, every: float, times: int) -> None:
        await metronome.play(start + at, stepper(name, every, times))
        beats.append((name, "end"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(metronome.run)
        nursery.start_soon(play, "slow", 10.0, 1.0, 2)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(play, "quick", 1.0, 4.0, 2)
        with trio.move_on_after(3):
            await play("cancelled", 2.0, 2.0, 5)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert beats == [
        *[("quick", 1.0), ("cancelled", 2.0), ("quick", 5.0), ("quick", "end")],
        *[("slow", 10.0), ("slow", 11.0), ("slow", "end")],
    ]
