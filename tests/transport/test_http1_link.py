"""An HTTP/1.1 connection: whole answers however they are cut, exchanges one after another, and every kind of end."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sidecar.errors import ConnectFailed, ConnectionLost, MalformedFrame
from sidecar.transport.exchange import END_GRACE, MAX_REFUSAL, REFUSAL_GRACE
from sidecar.transport.http import open_http
from sidecar.transport.stream_wire import StreamWire
from tests.fakes.http_owner import Owner, linked
from tests.fakes.raw_upstream import IDLE

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(number: int) -> bytes:
    """One event."""
    return b"data: %d\n\n" % number


async def requested(server: trio.abc.Stream, body: bytes = b"{}") -> bytes:
    """Read one request, whose body is this."""
    received = b""
    with trio.fail_after(30):
        while not received.endswith(b"\r\n\r\n" + body):
            received += bytes(await server.receive_some())  # type: ignore[arg-type]
    return received


async def test_a_request_and_its_answer(autojump_clock: trio.testing.MockClock) -> None:
    """The bytes of the request, and the events of the answer in order; the connection carries the next one."""
    async with linked() as (owner, server):
        for number in range(3):
            owner.link.send(0, b"{}")
            asked = await requested(server)
            await server.send_all(HEAD + chunk(event(number)))
            await server.send_all(chunk(event(9)) + LAST)
            await owner.until("over", number + 1)
    assert asked.startswith(
        b"POST /v1/x?q=1 HTTP/1.1\r\nHost: host:1\r\nAccept: text/event-stream, application/json\r\n"
    )
    for line in (b"\r\nX-A: 1\r\n", b"\r\nAuthorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}"):
        assert line in asked
    assert owner.payloads() == [b"0", b"9", b"1", b"9", b"2", b"9"]
    assert owner.of("over") == [(0, None)] * 3


async def test_any_cutting_gives_the_same(autojump_clock: trio.testing.MockClock) -> None:
    """A byte at a time, informational responses before it, the next request from within the end of the one before."""
    whole = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + HEAD
        + chunk(event(1))
        + chunk(b"data: 2\n")
        + chunk(b"\n")
        + LAST
    )
    async with linked() as (owner, server):
        owner.then.append((0, b"{}"))
        owner.link.send(0, b"{}")
        for _ in range(2):
            await requested(server)
            for at in range(len(whole)):
                await server.send_all(whole[at : at + 1])
        await owner.until("over", 2)
    assert owner.payloads() == [b"1", b"2"] * 2


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 9\r\n", event(1)),
        (b"Content-Length: 9, 9\r\n", event(1)),
        (b"Connection: close\r\n", event(1)),
        (b"Connection: close\r\nTransfer-Encoding: chunked\r\n", chunk(event(1)) + LAST),
    ],
)
async def test_other_ends_of_a_body(autojump_clock: trio.testing.MockClock, head: bytes, body: bytes) -> None:
    """By its length, or with the connection: then that is its end, and no loss."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
        if b"close" in head:
            await server.aclose()
            assert await owner.until("ended") == [("idle",)]
            assert ("going away",) in owner.told
        await owner.until("over")
    assert owner.payloads() == [b"1"]
    assert owner.of("over") == [(0, None)]


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "malformed"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", "malformed"),
        (HEAD + b"zz\r\n", "malformed"),
        (HEAD + chunk(b"x" * 10)[:-2] + b"yy", "malformed"),
        (HEAD + chunk(event(1)) + b"EOF", "eof"),
        (HEAD[:20] + b"EOF", "eof"),
        (b"EOF", "eof"),
    ],
)
async def test_what_is_no_answer_ends_the_connection(
    autojump_clock: trio.testing.MockClock, answer: bytes, how: str
) -> None:
    """Garbage, a body whose end cannot be told, packing, an end in the middle: told once, as the connection's end."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(answer.removesuffix(b"EOF"))
        if answer.endswith(b"EOF"):
            await server.aclose()
        assert await owner.until("ended") == [(how,)]
        with pytest.raises(ConnectionLost):
            owner.link.send(0, b"{}")
    assert owner.of("over") == []


async def test_idle_connections_that_close_are_no_loss(autojump_clock: trio.testing.MockClock) -> None:
    """EOF or 408 while nothing is asked; anything else that nobody asked for is malformed."""
    for said, how in (
        (b"", "idle"),
        (b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", "idle"),
        (b"hello", "malformed"),
    ):
        async with linked() as (owner, server):
            if said:
                await server.send_all(said)
                await trio.sleep(0.1)
            if how == "idle":
                await server.aclose()
            assert await owner.until("ended") == [(how,)]


@pytest.mark.parametrize(("idle", "how"), [(5.0, "unprocessed"), (0.1, "eof")])
async def test_a_request_that_meets_the_idle_close(
    autojump_clock: trio.testing.MockClock, idle: float, how: str
) -> None:
    """EOF before any byte, on a connection that was idle: nobody has read the request. On a fresh one: a loss."""
    async with linked() as (owner, server):
        await trio.sleep(idle)
        owner.link.send(0, b"{}")
        await requested(server)
        await server.aclose()
        assert await owner.until("ended") == [(how,)]


@pytest.mark.parametrize(
    ("idle", "takes", "head", "ends"),
    [
        (0.1, 0.01, b"Connection: close\r\n", ["unprocessed"]),
        (9.0, 0.01, b"Connection: close\r\n", ["unprocessed"]),
        (9.0, 30.0, b"Connection: close\r\n", ["idle"]),
        (9.0, 0.01, b"", []),
    ],
)
async def test_a_request_that_crosses_a_408(
    autojump_clock: trio.testing.MockClock, idle: float, takes: float, head: bytes, ends: list[str]
) -> None:
    """It was said of the idle time before, however short: nobody has read the request. Later, or kept: an answer."""
    async with linked() as (owner, server):
        await trio.sleep(idle)
        owner.link.send(0, b"{}")
        await requested(server)
        await trio.sleep(takes)
        await server.send_all(b"HTTP/1.1 408 Request Timeout\r\n" + head + b"Content-Length: 0\r\n\r\n")
        await owner.until("ended" if ends else "over")
        assert [how for (how,) in owner.of("ended")] == ends
        assert owner.of("refused") == ([] if ends == ["unprocessed"] else [(0, 408, b"")])


@pytest.mark.parametrize(("lies", "how"), [(10_000, "unprocessed"), (0, "eof")])
async def test_a_request_that_never_left(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, lies: int, how: str
) -> None:
    """The connection ended with all of it still here: nobody has looked at that, however short it had been idle."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        monkeypatch.setattr(StreamWire, "pending_bytes", lies)
        await server.aclose()
        assert await owner.until("ended") == [(how,)]


async def test_refusals(autojump_clock: trio.testing.MockClock) -> None:
    """Status and body are told, however the body ends; a redirect is one; the connection goes on where it can."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(
            b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: 4\r\nKeep-Alive: timeout=5\r\n\r\nslow"
        )
        await owner.until("over")
        assert owner.of("refused") == [(0, 429, b"slow")]
        assert owner.link.keepalive_timeout == 5.0
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(
            b"HTTP/1.1 307 Go\r\nLocation: http://elsewhere/\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        began = trio.current_time()
        await owner.until("over", 2)  # the body never ends
        assert trio.current_time() - began == pytest.approx(REFUSAL_GRACE)
        assert owner.of("refused")[1] == (0, 307, b"abc")
        assert await owner.until("ended") == [("idle",)]
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(b"HTTP/1.1 502 Bad\r\n\r\n" + b"x" * (MAX_REFUSAL + 1))
        await owner.until("over")
        assert len(owner.of("refused")[0][2]) == MAX_REFUSAL


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(1), True),
        (b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nbusy", False),
    ],
)
async def test_an_end_without_bytes_has_an_instant_of_its_own(
    autojump_clock: trio.testing.MockClock, answer: bytes, ends: bool
) -> None:
    """A body that the connection ends, and a refusal given up waiting for: over now, not when bytes came last."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(answer)
        if ends:
            await trio.sleep(5)
            await server.aclose()
        await owner.until("over")
        assert owner.over_at == [trio.current_time()]
        assert owner.over_at[0] > owner.link.last_inbound_at


async def test_a_cut_refusal_still_says_its_status(autojump_clock: trio.testing.MockClock) -> None:
    """EOF in its body hides nothing."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nbusy")
        await server.aclose()
        await owner.until("ended")
        assert owner.of("refused") == [(0, 503, b"busy")]


async def test_an_answer_that_is_no_event_stream_is_given_whole(autojump_clock: trio.testing.MockClock) -> None:
    """There are services that do not heed `stream`; one without end is malformed."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a"')
        await server.send_all(b":1}")
        await owner.until("over")
        assert owner.payloads() == [b'{"a":1}']
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b"x" * ((1 << 20) + 1))
        assert await owner.until("ended") == [("malformed",)]


async def test_an_exchange_that_does_not_end_after_its_answer(autojump_clock: trio.testing.MockClock) -> None:
    """The owner has all it wants: the connection is given up after a moment, unless the end comes."""
    async with linked() as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(HEAD + chunk(event(1)))
        await owner.until("events")
        owner.link.finish(0)
        began = trio.current_time()
        assert await owner.until("ended") == [("local",)]
        assert trio.current_time() - began == pytest.approx(END_GRACE)


async def test_one_exchange_at_a_time_and_none_is_stopped_alone(autojump_clock: trio.testing.MockClock) -> None:
    """A second request is the caller's mistake; only closing stops an answer; there is nothing to ping."""
    async with linked() as (owner, _):
        owner.link.send(0, b"{}")
        with pytest.raises(ValueError, match="under way"):
            owner.link.send(0, b"{}")
        assert owner.link.stop(0) is False
        assert await owner.link.ping(1) is None
        await owner.link.close()
        assert owner.ends[0][1] is True


async def test_a_header_that_http_does_not_allow_is_refused_before_dialling() -> None:
    """Its value, perhaps a secret, is in no error."""

    async def never() -> trio.abc.Stream:
        raise AssertionError("dialled")

    for where in ("headers", "secrets"):
        with pytest.raises(ConnectFailed) as caught:
            await open_http(never, "h", "/", Owner(), pump=IDLE, **{"headers": [], where: [(b"X", b"hunter2\r\nY: z")]})  # type: ignore[arg-type]
        assert "hunter2" not in str(caught.value)


async def test_too_long_an_event_is_malformed(autojump_clock: trio.testing.MockClock) -> None:
    """Memory is bounded."""
    async with linked(max_event_bytes=1000) as (owner, server):
        owner.link.send(0, b"{}")
        await requested(server)
        await server.send_all(HEAD + chunk(b"data: " + b"x" * 2000))
        await owner.until("ended")
        assert isinstance(owner.ends[0][0], MalformedFrame)
