"""The end of a way over HTTPS: is a request taken there, and the key? Asked as the daemon asks, and for nothing.

The request is empty (`{}`), on the very path and in the version of HTTP that calls will use. A service looks at the key
first, and then refuses a request without a model and a prompt: it costs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from msgspec import Struct

from sidecar.config import Upstream
from sidecar.core.classifier import classify
from sidecar.dialects.facts import http_error
from sidecar.errors import ConnectionLost, MalformedFrame, UpstreamFault
from sidecar.transport.dial import parse_url
from sidecar.transport.http import Headers, open_http
from sidecar.transport.http2_link import Http2Link
from sidecar.transport.pump import Pump

#: Said by gateways of what stands behind them, and by services in trouble: not of the request.
_DOWN: Final = (502, 503, 504, 529)


class Verdict(Struct, frozen=True):
    """What came of the empty request.

    Args:
        name: the step.
        detail: what there is to say of it.
        status: the exit status that it asks for: 0, 69, 77.
    """

    name: str
    detail: str
    status: int = 0


class _Answer:
    """`transport.exchange.Exchanges`: what the one request has brought so far."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.fault: UpstreamFault | None = None

    def on_head(self, slot: int, headers: dict[str, str]) -> None:  # noqa: ARG002
        self.status, self.headers = 200, headers
        self.over.set()

    def on_events(self, slot: int, payloads: list[bytes], now: float) -> None:
        """An answer, and none was asked for: its head has said it all."""

    def on_refused(self, slot: int, status: int, headers: dict[str, str], body: bytes, now: float) -> None:  # noqa: ARG002
        self.status, self.headers, self.body = status, headers, body
        self.over.set()

    def on_over(self, slot: int, fault: ConnectionLost | MalformedFrame | None, now: float) -> None:  # noqa: ARG002
        self.fault = self.fault or fault
        self.over.set()

    def on_going_away(self) -> None:
        """Nothing follows this request anyway."""

    def on_room(self) -> None:
        """There is but one request."""

    def on_ended(self, fault: UpstreamFault, _ours: bool) -> None:  # noqa: FBT001
        """See `link.Ended`."""
        self.fault = self.fault or fault
        self.over.set()


async def ask_for_nothing(
    upstream: Upstream,
    dialer: Callable[[], Awaitable[trio.abc.Stream]],
    headers: Headers,
    opened: Callable[[str], None],
) -> Verdict:
    """Open a connection as the daemon does, and send an empty request.

    Args:
        upstream: over HTTPS.
        dialer: gives the connected stream.
        headers: of the request, the credential's among them.
        opened: told the version of HTTP once requests may be sent.

    Raises:
        ConnectFailed: as `open_http`.
    """
    address = parse_url(upstream.url)
    answer = _Answer()
    pump = Pump(flush=_nothing, clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        try:
            link = await open_http(
                dialer,
                address.host_header,
                address.resource,
                answer,
                pump=pump,
                headers=headers,
                ended=answer.on_ended,
                prior_knowledge=upstream.http_version == "2",
                opening_timeout=upstream.upgrade_timeout_s,
            )
            opened("HTTP/2" if isinstance(link, Http2Link) else "HTTP/1.1")
            link.start()
            try:
                link.send(0, b"{}")
            except ConnectionLost as fault:
                answer.on_ended(fault, False)
            with trio.move_on_after(upstream.upgrade_timeout_s):
                await answer.over.wait()
            verdict = _judged(answer, address.resource, upstream.upgrade_timeout_s)
            link.abort()
        finally:
            nursery.cancel_scope.cancel()
    return verdict


def _judged(answer: _Answer, resource: str, waited: float) -> Verdict:
    status = answer.status
    if not status:
        return Verdict("request", f"no answer in {waited:g} s" if answer.fault is None else str(answer.fault), 69)
    if status == 200:
        return Verdict("answered", "even an empty request is answered: whether the key is taken cannot be told")
    error = http_error(status, answer.headers, answer.body)
    outcome = classify(error)
    if outcome.credential_refused:
        return Verdict("authenticated", f"HTTP {status}: {error.message}", 77)
    if status in (404, 405) and outcome.code != "model_not_found":
        path = resource.partition("?")[0]
        return Verdict("request", f"HTTP {status}: nothing takes a POST at {path}; is the URL right?", 69)
    said = error.message if error.message.startswith("HTTP ") else f"HTTP {status}: {error.message}"
    if status < 400 or status == 429 or status in _DOWN:
        return Verdict("request", said, 69)
    if status >= 500:
        return Verdict("answered", f"HTTP {status} to an empty request: whether the key is taken cannot be told")
    return Verdict("authenticated", f"refused was the empty request, not the key (HTTP {status})")


def _nothing() -> None:
    """What ends a pass where nobody waits for anything."""
