"""The operators' door over a port in memory: one answer to each request, whatever is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from sidecar.errors import ConfigurationError
from sidecar.service.control import Control, show
from tests.fakes.bot_port import FakeBot, FakeBotPort
from tests.fakes.clockwork import clockwork, virtual


def broken(request: dict[str, Any]) -> dict[str, Any]:
    """A handler that refuses."""
    raise ConfigurationError("line 3 is wrong", where="sidecar.toml")


@asynccontextmanager
async def control() -> AsyncIterator[FakeBotPort]:
    """A running control socket."""
    port = FakeBotPort()
    served = Control(
        port,
        {"show": show({"calls": lambda: [{"id": "a"}], "stats": lambda: {"done": 1}}), "reload": broken},
        session="s",
        mono_us=lambda: 7,
        wall_us=lambda: 8,
        max_message_bytes=1000,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(served.run)
        yield port
        nursery.cancel_scope.cancel()


async def ask(operator: FakeBot, *frames: bytes) -> Any:
    """One request, its one answer."""
    operator.send(*frames)
    await trio.testing.wait_all_tasks_blocked()
    ((envelope, payload),) = operator.take()
    assert envelope == frames[:-1]
    return (msgspec.json if payload[:1] == b"{" else msgspec.msgpack).decode(payload)


@pytest.mark.parametrize("head", [(), (b"",), (b"\0\0\0\1", b"")])
async def test_show_answers_in_the_encoding_and_envelope_of_the_request(head: tuple[bytes, ...]) -> None:
    """`show {what}` -> `shown {what, data}`, for DEALER and REQ, JSON and MessagePack."""
    async with control() as port:
        operator = port.connect()
        for encode in (msgspec.json.encode, msgspec.msgpack.encode):
            answer = await ask(operator, *head, encode({"type": "show", "what": "calls"}))
            assert answer == {"type": "shown", "what": "calls", "data": [{"id": "a"}]}
        pong = await ask(operator, *head, b'{"type":"ping","nonce":"n"}')
        assert pong == {"type": "pong", "nonce": "n", "session": "s", "mono_us": 7, "wall_us": 8}


@pytest.mark.parametrize(
    ("payload", "code", "part"),
    [
        (b"", "invalid_request", "empty"),
        (b"garbage", "invalid_request", ""),
        (b"[]", "invalid_request", ""),
        (b"{", "invalid_request", ""),
        (b"{}", "invalid_request", "ping, reload, show"),
        (b'{"type":"halt"}', "invalid_request", "ping, reload, show"),
        (b'{"type":["show"]}', "invalid_request", "type"),
        (b'{"type":"show"}', "invalid_request", "calls, stats"),
        (b'{"type":"show","what":{}}', "invalid_request", "calls, stats"),
        (b'{"type":"ping","nonce":[1]}', "invalid_request", "nonce"),
        (b'{"type":"ping","nonce":1e300}', "invalid_request", "nonce"),
        (b'{"type":"reload"}', "invalid_request", "sidecar.toml: line 3 is wrong"),
        (b'{"type":"show","what":"' + b"x" * 2000 + b'"}', "too_large", "1000"),
        (b'{"type":"show","what":' + b"[" * 900, "invalid_request", ""),
    ],
)
async def test_what_cannot_be_answered_is_failed(payload: bytes, code: str, part: str) -> None:
    """Garbage, unknown types and a handler's refusal: `failed` saying what is expected, and the next one is served."""
    async with control() as port:
        operator = port.connect()
        answer = await ask(operator, payload)
        assert (answer["type"], answer["code"]) == ("failed", code)
        assert part in answer["message"]
        assert (await ask(operator, b'{"type":"ping"}'))["type"] == "pong"


async def test_an_operator_who_left_or_does_not_read_harms_nobody() -> None:
    """Full and gone are dropped."""
    async with control() as port:
        stuck, gone, other = port.connect(capacity=0), port.connect(), port.connect()
        stuck.send(b'{"type":"ping"}')
        gone.send(b'{"type":"ping"}')
        gone.leave()
        assert (await ask(other, b'{"type":"ping"}'))["type"] == "pong"


@virtual
async def test_the_daemon_shows_what_it_has_and_refuses_what_it_has_not() -> None:
    """The real daemon's own handlers: lists of what may be shown; for anything else a refusal, which ends nothing."""
    async with clockwork(upstreams={"a": {}}) as house:
        show = house.daemon.handlers()["show"]
        for what in ("upstreams", "calls", "clients", "stats"):
            answer = show({"type": "show", "what": what})
            assert (answer["type"], answer["what"], type(answer["data"])) == ("shown", what, list)
        for strange in ("nothing", "", 7, None, {}, ["calls"]):
            with pytest.raises(ValueError, match="upstreams"):
                show({"type": "show", "what": strange})


@virtual
async def test_the_daemon_does_what_operators_order() -> None:
    """Its own handlers: a halt ends calls of its lane and refuses new ones, others go on; upstreams out and in."""
    async with clockwork(upstreams={"a": {}, "b": {}}) as house:
        handlers = house.daemon.handlers()
        bot = house.bot()
        entry = bot.call("a", timeout_ms=5000)
        await trio.sleep(0.01)
        said = handlers["halt"]({"type": "halt", "lanes": ["entry"], "reason": "bad prices"})
        assert (said["lanes"], said["ended"], said["sticky"]) == (["entry"], 1, False)
        ended = await bot.terminal(entry)
        assert (ended["code"], ended["message"]) == ("halted", "halted by the operator: bad prices")
        refused = await bot.terminal(bot.call("b", timeout_ms=500))
        assert (refused["code"], refused["call_id"]) == ("halted", None)
        assert house.daemon.report().halted == ["entry"]
        assert handlers["resume"]({"type": "resume"})["lanes"] == []
        assert handlers["upstream"]({"type": "upstream", "name": "a", "enabled": False})["without"] == []
        assert not house.daemon.pools["a"].enabled
        assert handlers["upstream"]({"type": "upstream", "name": "a", "enabled": True})["enabled"] is True
