"""`sidecar check --connect`: the way to each upstream, step by step, with times. Asks for no answer of a model."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
import trio
from msgspec import Struct

from sidecar.cli.check_http import ask_for_nothing
from sidecar.config import Config, Upstream
from sidecar.config.ways import ways_of
from sidecar.core.classifier import classify
from sidecar.credentials import CredentialReader
from sidecar.dialects import DIALECTS
from sidecar.errors import ConnectFailed, CredentialError, UpgradeRefused, UpstreamFault
from sidecar.transport.dial import dial, parse_url, tls_context_of
from sidecar.transport.pump import Pump
from sidecar.transport.tls import TlsStream
from sidecar.transport.websocket import open_websocket

#: Some services take the upgrade and refuse the credential by a close frame right after it, seconds.
REFUSAL_GRACE: Final = 0.3

Tell = Callable[[str], None]


class Step(Struct, frozen=True):
    """One step that was taken: how long it took, and what there is to say of it."""

    name: str
    ms: float
    detail: str = ""


class Report(Struct, kw_only=True):
    """One upstream's way. `status` is the exit status it asks for: 0, 69 or 77; `failed` names the step it ended at."""

    upstream: str
    steps: list[Step] = []
    status: int = 0
    failed: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


class _Steps:
    """A stop watch that says each step as it is done."""

    def __init__(self, report: Report, tell: Tell | None) -> None:
        self.report, self._tell, self._last = report, tell, trio.current_time()

    def done(self, name: str, detail: str = "") -> None:
        now = trio.current_time()
        step = Step(name, round((now - self._last) * 1000, 1), detail)
        self._last = now
        self.report.steps.append(step)
        if self._tell is not None:
            self._tell(f"{self.report.upstream}: {name:<13} {step.ms:8.1f} ms  {detail}".rstrip())

    def failed(self, name: str, error: str, status: int) -> None:
        ms = (trio.current_time() - self._last) * 1000
        self.report.failed, self.report.error, self.report.status = name, error, status
        if self._tell is not None:
            self._tell(f"{self.report.upstream}: {name:<13} {ms:8.1f} ms  FAILED: {error}")


def check_all(config: Config, *, environ: Mapping[str, str], tell: Tell | None) -> list[Report]:
    """Connect to each upstream in turn; `tell` gets a line per step as it happens."""

    async def main() -> list[Report]:
        ways = [way for upstream in config.upstream for way in ways_of(upstream)]
        return [await check_one(way.upstream, name=way.name, environ=environ, tell=tell) for way in ways]

    return trio.run(main)


async def check_one(
    upstream: Upstream, *, environ: Mapping[str, str], tell: Tell | None = None, name: str | None = None
) -> Report:
    """Credential, name, TCP (or proxy), TLS, upgrade, was the credential taken? A fault is in the report.

    Over HTTPS there is no upgrade: an empty request is sent instead (`check_http`).
    """
    steps = _Steps(Report(upstream=name or upstream.name), tell)
    dialect = DIALECTS[upstream.dialect]
    given = {**dict(dialect.headers), **upstream.headers}
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    if upstream.credential is not None:
        try:
            secret = await CredentialReader(upstream.credential, environ=environ).fetch()
        except CredentialError as error:
            steps.failed("credential", str(error), 77)
            return steps.report
        header, prefix = (part.encode() for part in dialect.credential_header)
        headers.append((header, prefix + secret.reveal().encode()))
        steps.done("credential", "read")
    address = parse_url(upstream.url)
    if upstream.transport == "sse":
        await _check_http(upstream, steps, headers)
        return steps.report
    ended: list[UpstreamFault] = []
    over = trio.Event()

    def lost(fault: UpstreamFault, _ours: bool) -> None:  # noqa: FBT001
        ended.append(fault)
        over.set()

    pump = Pump(flush=_nothing, clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(pump.run)
        try:
            websocket, _ = await open_websocket(
                partial(_dial, upstream, steps),
                address.host_header,
                address.resource,
                _ignore,
                pump=pump,
                headers=headers,
                ended=lost,
                upgrade_timeout=upstream.upgrade_timeout_s,
            )
        except (ConnectFailed, UpgradeRefused) as fault:
            stage = fault.stage if isinstance(fault, ConnectFailed) else "upgrade"
            steps.failed(stage, str(fault), _status_of(fault))
        else:
            steps.done("upgrade", "101")
            websocket.start()
            with trio.move_on_after(REFUSAL_GRACE):
                await over.wait()
            if ended:
                steps.failed("authenticated", str(ended[0]), _status_of(ended[0]))
                websocket.abort()
            else:
                steps.done("authenticated", "nothing refused")
                await websocket.close(1000, "checked", timeout=1.0)
        nursery.cancel_scope.cancel()
    return steps.report


async def _check_http(upstream: Upstream, steps: _Steps, headers: list[tuple[bytes, bytes]]) -> None:
    """TCP and TLS as the daemon's, then an empty request: see `check_http`."""

    def opened(version: str) -> None:
        steps.done("opened", version)

    try:
        verdict = await ask_for_nothing(upstream, partial(_dial, upstream, steps), headers, opened)
    except ConnectFailed as fault:
        steps.failed(fault.stage, str(fault), _status_of(fault))
        return
    if verdict.status:
        steps.failed(verdict.name, verdict.detail, verdict.status)
    else:
        steps.done(verdict.name, verdict.detail)


def _nothing() -> None:
    """What ends a pass where nobody waits for anything."""


def _ignore(payloads: list[bytes], binary: list[int], now: float) -> None:
    """Nothing was asked, so whatever is said is no answer."""


def _status_of(fault: UpstreamFault) -> int:
    return 77 if classify(fault).credential_refused else 69


async def _dial(upstream: Upstream, steps: _Steps) -> trio.abc.Stream:
    """As the daemon dials, with a mark after each step."""
    address = parse_url(upstream.url)
    if upstream.proxy is None:
        with trio.move_on_after(upstream.connect_timeout_s):
            try:
                found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            except socket.gaierror as error:
                raise ConnectFailed("resolve", f"{address.host}: {error.strerror or error}") from None
            steps.done("resolve", ", ".join(dict.fromkeys(str(each[4][0]) for each in found)))
    # TCP alone first, so that it has a time of its own; TLS then runs on the same stream.
    plain = msgspec.structs.replace(address, secure=False)
    stream = await dial(plain, tls=None, proxy=upstream.proxy, tcp_timeout=upstream.connect_timeout_s)
    steps.done("tcp" if upstream.proxy is None else "proxy", f"port {address.port}")
    if not address.secure:
        return stream
    try:
        context = tls_context_of(upstream)
        assert context is not None
        secured = TlsStream(stream, context, address.host)
        with trio.fail_after(upstream.tls_timeout_s):
            await secured.handshake()
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)
        reason = f"no handshake in {upstream.tls_timeout_s:g} s"
        raise ConnectFailed("tls", reason, timed_out=True) from None
    except (ssl.SSLError, trio.BrokenResourceError) as error:
        await trio.aclose_forcefully(stream)
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else str(error)
        raise ConnectFailed("tls", reason) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    steps.done("tls", secured.alpn or "")
    return secured
