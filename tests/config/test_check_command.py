"""`sidecar check`: statuses for scripts, sums for people, and the way to an upstream step by step."""

import base64
import hashlib
import json
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from sidecar.cli import check
from sidecar.cli.check_connect import check_one
from sidecar.config import CredentialSource, Tls, Upstream
from tests.simulator.harness import relaying

CANARY = "sk-proj-CANARY0123456789abcdef"
ROUTE = '[[route]]\nname = "default"\ntargets = [ { upstream = "a", model = "m" } ]\n'


def upstream(port: int, *, scheme: str = "ws", host: str = "127.0.0.1", **more: object) -> Upstream:
    """One upstream at that port, with a credential from the environment."""
    fields: dict[str, object] = {"credential": CredentialSource(env="KEY"), "tls_timeout_s": 1, "upgrade_timeout_s": 1}
    return Upstream(name="a", url=f"{scheme}://{host}:{port}/v1", dialect="responses", **(fields | more))  # type: ignore[arg-type]


async def serve(
    nursery: trio.Nursery, answer: bytes | None, *, after: bytes = b"", context: ssl.SSLContext | None = None
) -> tuple[int, list[bytes]]:
    """A server on loopback that answers every request alike; its port, and the requests it saw."""
    seen: list[bytes] = []

    async def handle(plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, context, server_side=True) if context else plain
        try:
            request = b""
            while b"\r\n\r\n" not in request:
                piece = await stream.receive_some(4096)
                if not piece:
                    return
                request += piece
            seen.append(request)
            if answer is None:
                await trio.sleep_forever()
            upgraded = answer.replace(b"ACCEPT", _accept_for(request)) if b"ACCEPT" in answer else answer
            await stream.send_all(upgraded + after)
            while await stream.receive_some(4096):
                pass
        except (trio.BrokenResourceError, ssl.SSLError):
            pass
        finally:
            await trio.aclose_forcefully(plain)

    listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
    return listeners[0].socket.getsockname()[1], seen


def _accept_for(request: bytes) -> bytes:
    """The answer to Sec-WebSocket-Key, RFC 6455."""
    key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split(
        b": ", 1
    )[1]
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


UPGRADE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: ACCEPT\r\n\r\n"
)


async def test_each_step_has_its_time(nursery: trio.Nursery) -> None:
    """Credential, resolve, tcp, upgrade, authenticated; the credential went out and is in no line said."""
    port, seen = await serve(nursery, UPGRADE)
    told: list[str] = []
    report = await check_one(upstream(port), environ={"KEY": CANARY}, tell=told.append)
    assert (report.status, report.failed) == (0, None)
    assert [step.name for step in report.steps] == ["credential", "resolve", "tcp", "upgrade", "authenticated"]
    assert all(step.ms >= 0 for step in report.steps)
    assert f"authorization: bearer {CANARY}".lower().encode() in seen[0].lower()
    assert CANARY not in "\n".join(told) + json.dumps(report.as_dict())


async def test_tls_is_a_step_of_its_own(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Against a private authority: taken with its file, refused without it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    port, _ = await serve(nursery, UPGRADE, context=context)
    trusted = upstream(port, scheme="wss", host="localhost", tls=Tls(ca_file=str(tmp_path / "ca.pem")))
    report = await check_one(trusted, environ={"KEY": CANARY})
    assert [step.name for step in report.steps][-3:] == ["tls", "upgrade", "authenticated"]
    report = await check_one(upstream(port, scheme="wss", host="localhost"), environ={"KEY": CANARY})
    assert (report.status, report.failed) == (69, "tls")
    assert "certificate" in (report.error or "") or "issuer" in (report.error or "")


@pytest.mark.parametrize(
    ("answer", "after", "status", "failed"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", b"", 77, "upgrade"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"", 77, "upgrade"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"", 69, "upgrade"),
        (b"HTTP/1.1 301 Elsewhere\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", b"", 69, "upgrade"),
        (b"SSH-2.0-OpenSSH\r\n", b"", 69, "upgrade"),
        (None, b"", 69, "upgrade"),
        (UPGRADE, b"\x88\x02" + (1008).to_bytes(2, "big"), 77, "authenticated"),
        (UPGRADE, b"\x88\x02" + (1011).to_bytes(2, "big"), 69, "authenticated"),
    ],
)
async def test_a_refusal_has_a_step_and_a_status(
    nursery: trio.Nursery, answer: bytes | None, after: bytes, status: int, failed: str
) -> None:
    """77 when it is the credential, 69 otherwise; a server that says nothing ends at its cap."""
    port, _ = await serve(nursery, answer, after=after)
    with trio.fail_after(10):
        report = await check_one(upstream(port), environ={"KEY": CANARY})
    assert (report.status, report.failed) == (status, failed)
    assert report.error
    assert CANARY not in report.error


def over_http(port: int, path: str, **more: object) -> Upstream:
    """The same over HTTP; the dialect is the path's last word."""
    dialect = {"completions": "chat"}.get(path.rpartition("/")[2], path.rpartition("/")[2])
    fields: dict[str, object] = {"credential": CredentialSource(env="KEY"), "upgrade_timeout_s": 1, **more}
    return Upstream(name="a", url=f"http://127.0.0.1:{port}{path}", dialect=dialect, transport="sse", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1/messages"])
async def test_over_https_the_key_is_told_by_an_empty_request(path: str, version: str) -> None:
    """In the version that calls will use, and at their path: a good key is taken, another one is 77."""
    async with relaying(keys=("good",)) as relay:
        good = await check_one(over_http(relay.port, path, http_version=version), environ={"KEY": "good"})
        bad = await check_one(over_http(relay.port, path, http_version=version), environ={"KEY": CANARY})
        assert relay.counters.calls_started == 0
    assert (good.status, good.failed) == (0, None)
    assert [step.name for step in good.steps][-2:] == ["opened", "authenticated"]
    assert good.steps[-2].detail == f"HTTP/{version}"
    assert (bad.status, bad.failed) == (77, "authenticated")
    assert CANARY not in (bad.error or "")


@pytest.mark.parametrize(
    ("scenario", "status", "failed", "says"),
    [
        ("handshake_301", 69, "request", "redirects are not followed"),
        ("http_429", 69, "request", "HTTP 429"),
        ("http_503", 69, "request", "HTTP 503"),
        ("html", 69, "request", "HTTP 502"),
        ("http_403", 77, "authenticated", "HTTP 403"),
        ("handshake_silent", 69, "request", "no answer in 1 s"),
        ("handshake_reset", 69, "request", "reset"),
        ("handshake_eof", 69, "request", "lost"),
        ("handshake_garbage", 69, "request", ""),
    ],
)
async def test_what_befalls_a_request_over_https(scenario: str, status: int, failed: str, says: str) -> None:
    """Each has its step, its status and its word, and ends by itself."""
    async with relaying(scenario, keys=("good",)) as relay:
        with trio.fail_after(10):
            report = await check_one(over_http(relay.port, "/v1/responses"), environ={"KEY": "good"})
    assert (report.status, report.failed) == (status, failed)
    assert says in (report.error or "")


async def test_a_path_where_nothing_is() -> None:
    """An upstream whose URL has the wrong path is not taken for one that works."""
    async with relaying() as relay:
        url = f"http://127.0.0.1:{relay.port}/v1/nowhere"
        wrong = Upstream(name="a", url=url, dialect="responses", transport="sse")
        report = await check_one(wrong, environ={})
    assert (report.status, report.failed) == (69, "request")
    assert "/v1/nowhere; is the URL right?" in (report.error or "")


async def test_what_an_answer_cannot_tell(nursery: trio.Nursery) -> None:
    """A service that answers an empty request, or fails over it, is there, and its step is not called authenticated."""
    for answer in (b"200 OK\r\nContent-Type: application/json", b"500 Oops"):
        port, seen = await serve(nursery, b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")
        report = await check_one(over_http(port, "/v1/responses"), environ={"KEY": CANARY})
        assert (report.status, report.steps[-1].name) == (0, "answered")
        assert "cannot be told" in report.steps[-1].detail
        assert seen[0].startswith(b"POST /v1/responses HTTP/1.1\r\n")


async def test_nobody_there_and_no_such_name() -> None:
    """A closed port fails at tcp, a name of nobody's at resolve, an unreadable credential before any of it."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        report = await check_one(upstream(port), environ={"KEY": CANARY})
    assert (report.status, report.failed) == (69, "tcp")
    report = await check_one(upstream(443, scheme="wss", host="nobody.invalid"), environ={"KEY": CANARY})
    assert report.status == 69
    assert report.failed in {"resolve", "tcp"}
    report = await check_one(upstream(port), environ={})
    assert (report.status, report.failed) == (77, "credential")


def test_a_right_file_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0; text for people, one JSON object for scripts; a credential that cannot be read here is a note."""
    path = tmp_path / "sidecar.toml"
    path.write_text('[[upstream]]\nname = "a"\nurl = "ws://localhost"\ndialect = "chat"\ncredential = "a"\n' + ROUTE)
    assert check.run(["-c", str(path)]) == 0
    text = capsys.readouterr().out
    assert "default: 64 calls at once" in text
    assert "note: upstream a: credential 'a'" in text
    assert check.run(["-c", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["ok"], result["routes"][0]["calls_at_once"]) == (True, 64)


@pytest.mark.parametrize(
    ("keys", "odd"),
    [
        ('url = "https://a.example"\ndialect = "messages"', "url does not end in /messages"),
        ('url = "https://a.example/v1/responses"\ndialect = "chat"', "url does not end in /chat/completions"),
        ('url = "https://a.example/v1/chat/completions?api-version=1"\ndialect = "chat"', ""),
        ('url = "https://a.example/v1/messages/"\ndialect = "messages"', ""),
        ('url = "wss://a.example/own"\ndialect = "responses"', ""),
        (
            'url = "wss://a.example/own"\nfallback_url = "https://a.example/v1"\ndialect = "responses"',
            "fallback_url does not end in /responses",
        ),
    ],
)
def test_a_path_where_nobody_speaks_the_dialect_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: str, odd: str
) -> None:
    """Over HTTPS the path says the dialect to most services; one that has its own is legal, so it is a note."""
    path = tmp_path / "sidecar.toml"
    path.write_text(f'[[upstream]]\nname = "a"\n{keys}\n' + ROUTE)
    assert check.run(["-c", str(path)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "does not end in" in line]
    assert len(notes) == bool(odd)
    assert all(line.startswith(f"note: upstream a: {odd}") for line in notes)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("[frontend]\nqueue = 1\n", "Did you mean `queue_max`?"),
        ('[frontend]\ngroup = "no-such-group-here"\n', "groupadd"),
        ("", "ca.pem"),
    ],
)
def test_a_wrong_file_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, says: str) -> None:
    """What the file names on this machine counts, too; in JSON the words are the same."""
    path = tmp_path / "sidecar.toml"
    tls = "" if head else 'tls = { ca_file = "ca.pem" }\n'
    path.write_text(head + '[[upstream]]\nname = "a"\nurl = "wss://localhost"\ndialect = "chat"\n' + tls + ROUTE)
    assert check.run(["-c", str(path)]) == 78
    assert says in capsys.readouterr().err
    assert check.run(["-c", str(path), "--json"]) == 78
    result = json.loads(capsys.readouterr().out)
    assert (result["ok"], result["exit"]) == (False, 78)
    assert says in result["error"]


def test_connect_exits_by_the_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused credential is told before an upstream that is merely away."""
    path = tmp_path / "sidecar.toml"
    entry = '[[upstream]]\nname = "{}"\nurl = "ws://127.0.0.1:1"\ndialect = "chat"\n'
    path.write_text(entry.format("a") + ROUTE)
    assert check.run(["-c", str(path), "--connect"]) == 69
    assert "FAILED" in capsys.readouterr().out
    path.write_text(entry.format("a") + entry.format("b") + 'credential = { env = "NO_SUCH_VARIABLE" }\n' + ROUTE)
    assert check.run(["-c", str(path), "--connect", "--json"]) == 77
    result = json.loads(capsys.readouterr().out)
    assert [report["failed"] for report in result["connect"]] == ["tcp", "credential"]
