"""HTTPS beside WebSockets, as processes and real sockets: every dialect, every version of HTTP, and falling back."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sidecar.transport.http2_link import EARLY_STREAMS
from tests.end_to_end.processes import PATIENCE, Processes
from tests.fakes.websockets_server import Authority

QUICK = ("--ttft-ms", "5", "--cadence-ms", "2", "--tokens", "5")


def configuration(port: int) -> str:
    """An upstream and a route for each dialect over HTTPS, one over HTTP/2, and one with two ways."""
    ways = {
        "responses": ("/v1/responses", "responses", ""),
        "chat": ("/v1/chat/completions", "chat", ""),
        "messages": ("/v1/messages", "messages", ""),
        "h2": ("/v1/responses", "responses", 'http_version = "2"\ncalls_per_connection = 4\n'),
    }
    text = "".join(
        f'[[upstream]]\nname = "{name}"\nurl = "http://127.0.0.1:{port}{path}"\ndialect = "{dialect}"\n'
        f"warm_connections = 1\nmax_connections = 2\n{more}"
        for name, (path, dialect, more) in ways.items()
    )
    text += (
        f'[[upstream]]\nname = "two"\nurl = "ws://127.0.0.1:{port}/u/ws/v1/responses"\ndialect = "responses"\n'
        f'fallback_url = "http://127.0.0.1:{port}/u/https/v1/responses"\nwarm_connections = 1\nmax_connections = 4\n'
    )
    text += (
        f'[[upstream]]\nname = "other"\nurl = "ws://127.0.0.1:{port}/u/other/v1/responses"\ndialect = "responses"\n'
        "warm_connections = 1\nmax_connections = 2\n"
        '[[route]]\nname = "rescue"\nmax_attempts = 2\nidle_timeout_ms = 200\n'
        'targets = [ { upstream = "two", model = "m" }, { upstream = "other", model = "m" } ]\n'
    )
    return text + "".join(
        f'[[route]]\nname = "{name}"\ntargets = [ {{ upstream = "{name}", model = "m" }} ]\nreturn_ramp_s = 0\n'
        for name in (*ways, "two")
    )


def ask(processes: Processes, route: str, prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    """One call; its terminal."""
    call = {"type": "call", "id": "c", "route": route, "input": prompt, "timeout_ms": 5000, "stream": False, **fields}
    terminal: dict[str, Any] = list(processes.talk(call))[-1]
    return terminal


@pytest.mark.parametrize("route", ["responses", "chat", "messages", "h2"])
def test_every_dialect_over_https(route: str) -> None:
    """Answers whole, with usage, one after another on a connection; errors as their status says; a cut is no answer."""
    with Processes() as processes:
        processes.daemon(configuration(processes.relay(*QUICK)), ready=False)
        for _ in range(3):
            done = ask(processes, route)
            assert (done["type"], done["finish"], done["transport"]) == ("done", "stop", "sse"), done
            assert len(done["text"].split()) == 5
            assert (done["usage"]["output_tokens"], done["usage"]["estimated"]) == (5, False)
        refused = ask(processes, route, "[[scenario=error_context_length]] hello")
        assert (refused["code"], refused["attempts"]) == ("context_length_exceeded", 1)
        late = ask(processes, route, "[[scenario=silent]] hello", timeout_ms=200)
        assert late["code"] == "deadline_exceeded", late
        assert ask(processes, route)["type"] == "done"
        cut = ask(processes, route, "[[scenario=cut after=2]] hello", timeout_ms=1000)
        assert cut["type"] == "failed", cut


def test_a_cold_burst_over_http2(tmp_path: Path) -> None:
    """The first few go out before the server's settings, the others as soon as those say that there is room.

    The first eight take a second each: the others, on the same connection, are answered before them, at once.
    """
    authority = Authority(tmp_path)
    certificate = authority.ca.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    tls = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.pem"))
    with Processes() as processes:
        port = processes.relay(*QUICK, *tls)
        processes.daemon(
            f'[[upstream]]\nname = "h2"\nurl = "https://localhost:{port}/v1/responses"\ndialect = "responses"\n'
            f"warm_connections = 0\nmax_connections = 1\ncalls_per_connection = 32\n"
            f'tls = {{ ca_file = "{authority.ca_file}" }}\n'
            '[[route]]\nname = "default"\ntargets = [ { upstream = "h2", model = "m" } ]\n',
            ready=False,
        )
        prompts = ["[[ttft_ms=1000]] slow"] * EARLY_STREAMS + ["quick"] * EARLY_STREAMS
        calls = [
            {"type": "call", "id": f"{number:02}", "input": prompt, "timeout_ms": 20_000, "stream": False}
            for number, prompt in enumerate(prompts)
        ]
        ended: list[dict[str, Any]] = []
        for message in processes.talk(*calls, last=("nothing",)):
            if message["type"] in ("done", "failed"):
                ended.append(message)
                if len(ended) == len(calls):
                    break
        assert [(one["type"], one["attempts"]) for one in ended] == [("done", 1)] * len(calls)
        assert min(one["id"] for one in ended[:EARLY_STREAMS]) == calls[EARLY_STREAMS]["id"]


def steer(processes: Processes, what: str) -> None:
    """One request to the relay's control."""
    urllib.request.urlopen(f"http://127.0.0.1:{processes.port}/{what}", timeout=5).close()


def until_by(processes: Processes, transport: str) -> None:
    """Calls are answered this way again; meanwhile each is answered."""
    deadline = time.monotonic() + PATIENCE
    while (done := ask(processes, "two")).get("transport") != transport:
        assert done["type"] == "done", done
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_falling_back_and_coming_back() -> None:
    """WebSockets first; over HTTPS while upgrades fail, nobody failing for it; an operator's word is for both ways."""
    with Processes() as processes:
        processes.daemon(configuration(processes.relay(*QUICK)))
        until_by(processes, "websocket")  # ready is who has either way
        steer(processes, "_scenario?name=http_503&upstream=ws")
        steer(processes, "_kill?upstream=ws")
        until_by(processes, "sse")
        assert [ask(processes, "two")["transport"] for _ in range(10)] == ["sse"] * 10
        report = processes.report() or {}
        assert {one["name"]: one["transport"] for one in report["upstreams"]}["two/sse"] == "sse"
        steer(processes, "_scenario?name=ok&upstream=ws")
        until_by(processes, "websocket")
        environ = {"SIDECAR_ENDPOINT": processes.endpoint}
        assert processes.run("upstream", "disable", "two", **environ).returncode == 0
        assert ask(processes, "two")["code"] == "no_connection"
        assert processes.run("upstream", "enable", "two", **environ).returncode == 0
        until_by(processes, "websocket")


@pytest.mark.parametrize("fault", ["error_500", "error_529", "silent", "stall", "cut"])
def test_what_a_service_fails_in_another_service_is_asked_for(fault: str) -> None:
    """Not the same one by its other way: two attempts are enough, as they are without a `fallback_url`."""
    with Processes() as processes:
        processes.daemon(configuration(processes.relay(*QUICK)))
        for way in ("ws", "https"):
            steer(processes, f"_scenario?name={fault}&upstream={way}")
        done = ask(processes, "rescue")
        assert (done["type"], done.get("upstream"), done["attempts"]) == ("done", "other", 2), done
