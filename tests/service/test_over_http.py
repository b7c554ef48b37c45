"""What the daemon makes of HTTP: which version is spoken, what that carries, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.clockwork import clockwork, virtual
from tests.fakes.http_upstream import HttpUpstream

CHAT = {"url": "https://a.test/v1", "dialect": "chat", "transport": "sse", "warm_connections": 4, "max_connections": 4}


@virtual
async def test_where_http_2_is_not_spoken_a_connection_carries_one_call() -> None:
    """Eight were configured: shown, warned of once, and no more is given to the upstream than it has connections."""
    async with clockwork({"a": {**CHAT, "calls_per_connection": 8}}, service=HttpUpstream, warm=False) as house:
        pool = house.daemon.pools["a"]
        bot = house.bot()
        assert {(await bot.ask())["type"] for _ in range(20)} == {"done"}
        shown = pool.statistics()
        assert (shown.http, shown.attempts_at_once) == ("1.1", 4)
        said: list[dict[str, Any]] = [entry for entry in house.log if entry["event"] == "http2.not_spoken"]
        assert len(said) == 1
        assert (said[0]["upstream"], said[0]["calls_per_connection"], said[0]["configured"]) == ("a", 1, 8)


@virtual
async def test_one_call_each_needs_no_http_2() -> None:
    """Nothing is said where nothing is missing."""
    async with clockwork({"a": CHAT}, service=HttpUpstream, warm=False) as house:
        assert (await house.bot().ask())["type"] == "done"
        assert house.daemon.pools["a"].statistics().http == "1.1"
        assert not [entry for entry in house.log if entry["event"] == "http2.not_spoken"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("307 Temporary Redirect", "a request failed: upstream_refused, status 307"),
        ("404 Not Found", "a request failed: upstream_refused, status 404"),
        ("400 Bad Request", None),
    ],
)
@virtual
async def test_what_refuses_every_request_is_shown(status: str, said: str | None) -> None:
    """Over HTTPS connects work whatever the path: the last error is a request's, in none of the upstream's words."""
    async with clockwork({"a": CHAT}, service=HttpUpstream, warm=False) as house:
        server: Any = house["a"]
        body = b'{"error": {"message": "no: my secret prompt"}}'
        server.answer = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
        assert (await house.bot().ask("my secret prompt"))["type"] == "failed"
        assert house.daemon.pools["a"].statistics().last_error == said
