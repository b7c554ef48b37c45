"""`sidecar ask`, `probe` and `show`, as an operator runs them, against a scripted daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli import asking, probe, show
from sidecar.client import zmtp
from sidecar.client.dealer import OPENING
from tests.fakes.fake_daemon import FakeDaemon, report

SHOWN = [
    {"name": "a_total", "help": "A\\ 1\n2", "type": "counter", "samples": [{"labels": {"x": 'q"\\'}, "value": 3}]},
    {
        "name": "h",
        "help": "H",
        "type": "histogram",
        "samples": [
            {"labels": {"le": "0.1"}, "value": 1, "suffix": "_bucket"},
            {"labels": {"le": "+Inf"}, "value": 2, "suffix": "_bucket"},
            {"labels": {}, "value": 0.25, "suffix": "_sum"},
            {"value": 2, "suffix": "_count"},
        ],
    },
    {"name": "g", "help": "", "type": "gauge", "samples": [{"value": float("inf")}]},
]


def sidecar(*argv: str, endpoint: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command."""
    environ = {**os.environ, "SIDECAR_ENDPOINT": endpoint}
    command = [sys.executable, "-m", "sidecar", *argv]
    return subprocess.run(command, env=environ, input=stdin, capture_output=True, text=True, timeout=20, check=False)


@contextmanager
def listener(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something at a socket that is not the daemon: one connection, served by a function."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(5)

        def run() -> None:
            with server.accept()[0] as peer:
                peer.settimeout(5)
                try:
                    serve(peer)
                except OSError:
                    pass

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"ipc://{path}"
        finally:
            thread.join()


def test_ask_prints_the_text_and_how_it_ended(daemon: FakeDaemon) -> None:
    """Text to stdout, a summary to stderr, exit 0; "-" reads the prompt from stdin."""
    ran = sidecar(
        "ask", "-r", "default", "--timeout-ms", "5000", "--lane", "exit", "-", endpoint=daemon.endpoint, stdin="hello"
    )
    assert (ran.returncode, ran.stdout) == (0, "hello\n")
    assert ran.stderr.startswith("done: fake m")
    assert daemon.received()[0]["lane"] == "exit"


def test_ask_says_the_code_of_a_failure(daemon: FakeDaemon) -> None:
    """Exit 1, the partial text kept; wrong arguments too."""
    steps = json.dumps(["accept", {"delta": "BU"}, {"failed": {"code": "upstream_lost"}}])
    ran = sidecar("ask", steps, endpoint=daemon.endpoint)
    assert (ran.returncode, ran.stdout) == (1, "BU\n")
    assert ran.stderr.startswith("upstream_lost: ")
    assert sidecar("ask", "--timeout-ms", "-1", "p", endpoint=daemon.endpoint).returncode == 1


def test_ask_json_is_one_line_a_message(daemon: FakeDaemon) -> None:
    """First accepted, then deltas, then the terminal."""
    ran = sidecar(
        "ask", "--json", json.dumps(["accept", {"delta": "a"}, {"delta": "b"}, {"done": {}}]), endpoint=daemon.endpoint
    )
    messages = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [message["type"] for message in messages] == ["accepted", "delta", "delta", "done"]
    assert [message.get("seq") for message in messages[1:3]] == [0, 1]


def test_without_a_daemon(no_daemon: FakeDaemon) -> None:
    """Exit 3 from ask and show, from probe 1 or 2; each names the socket."""
    for argv, status in (
        (["ask", "p"], 3),
        (["ask", "--json", "p"], 3),
        (["show", "calls"], 3),
        (["probe"], 1),
        (["probe", "--live"], 1),
        (["probe", "--ready", "--format", "json"], 1),
        (["probe", "--format", "nagios"], 2),
        (["probe", "--endpoint", "tcp://nowhere"], 1),
        (["ask", "--endpoint", "tcp://nowhere", "p"], 3),
    ):
        ran = sidecar(*argv, endpoint=no_daemon.endpoint)
        assert ran.returncode == status, argv
        assert "ENOENT" in ran.stdout + ran.stderr or "daemon_unavailable" in ran.stdout or "tcp" in ran.stderr, argv


def test_probe_of_a_healthy_daemon(daemon: FakeDaemon) -> None:
    """Exit 0 in every form."""
    for argv in (["probe"], ["probe", "--live"], ["probe", "--ready"], ["probe", "--format=nagios"]):
        ran = sidecar(*argv, endpoint=daemon.endpoint)
        assert ran.returncode == 0, ran.stderr
    assert json.loads(sidecar("probe", "--format", "json", endpoint=daemon.endpoint).stdout)["ready"] is True
    daemon.signal(signal.SIGSTOP)
    assert sidecar("probe", "--timeout-ms", "50", endpoint=daemon.endpoint).returncode == 1
    daemon.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("fields", "live", "ready", "nagios", "word"),
    [
        ({}, 0, 0, 0, "OK - ready"),
        ({"degraded": True, "reasons": ["one down"]}, 0, 0, 1, "WARNING - degraded: one down"),
        ({"ready": False}, 0, 1, 2, "CRITICAL - not ready"),
        ({"ready": False, "draining": True}, 0, 1, 2, "CRITICAL - draining"),
        ({"live": False}, 1, 1, 2, "CRITICAL - not live"),
    ],
)
def test_exit_statuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    live: int,
    ready: int,
    nagios: int,
    word: str,
) -> None:
    """A degraded daemon is ready; nagios: 0 ok, 1 degraded, 2 not ready."""
    routes = {"routes": [{"name": "default", "ready": True, "target": "u"}]}
    upstreams = {
        "upstreams": [{"name": "u", "connections": {"READY": 2}, "breaker": "closed", "rtt_us": 5, "last_error": "e"}]
    }
    monkeypatch.setattr(
        probe, "fetch", lambda *_, **__: {**report("s"), **routes, **upstreams, "halted": ["entry"], **fields}
    )
    assert probe.run(["--live"]) == live
    assert probe.run(["--ready"]) == ready
    assert probe.run([]) == ready
    assert "upstream u: 2 READY, breaker closed" in capsys.readouterr().out
    assert probe.run(["--format", "nagios"]) == nagios
    assert word in capsys.readouterr().out


def test_wrong_usage_of_probe(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and the usage; --help is 0."""
    for argv in (
        ["--lively"],
        ["--format", "xml"],
        ["--format"],
        ["--timeout-ms", "x"],
        ["--timeout-ms=-1"],
        ["--live=1"],
        ["x"],
    ):
        assert probe.run(argv) == 2, argv
        assert "usage:" in capsys.readouterr().err
    assert probe.run(["--help"]) == 0


def test_what_is_not_the_daemon_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Garbage, silence, an early end, a drip, a giant frame: told, by the timeout."""
    folder = tmp_path_factory.mktemp("z")
    greeting = OPENING[:64]

    def drip(peer: socket.socket) -> None:
        for byte in greeting:
            peer.sendall(bytes((byte,)))
            if peer.recv(64) == b"":
                return

    def silent(peer: socket.socket) -> None:
        while peer.recv(4096):
            pass

    def giant(peer: socket.socket) -> None:
        peer.sendall(greeting + b"\x02" + b"\xff" * 8)
        silent(peer)

    def commands(peer: socket.socket) -> None:
        peer.sendall(greeting + b"\x04\x01x" * 3)
        silent(peer)

    cases: list[tuple[Callable[[socket.socket], None], str]] = [
        (lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n" + bytes(64)), "not the daemon|closed"),
        (lambda peer: peer.sendall(b"\xff\0"), "closed"),
        (silent, "no answer within"),
        (drip, "no answer within"),
        (giant, "bytes"),
        (commands, "no answer within"),
    ]
    for number, (serve, told) in enumerate(cases):
        path = folder / f"{number}.sock"
        with listener(path, serve), pytest.raises(zmtp.UnansweredError, match=told):
            zmtp.ask(str(path), b"{}", timeout=0.2)
    stale = folder / "0.sock"
    with pytest.raises(zmtp.UnansweredError, match="nobody listens"):
        zmtp.ask(str(stale), b"{}", timeout=0.2)


def test_long_questions_and_answers(daemon: FakeDaemon) -> None:
    """Frames over 255 bytes, both ways."""
    payload = json.dumps(
        {"type": "call", "id": "a", "input": "x" * 70_000, "stream": False, "sent_mono_us": 0}
    ).encode()
    path = daemon.endpoint.removeprefix("ipc://")
    assert json.loads(zmtp.ask(path, payload, timeout=10))["type"] == "accepted"
    assert (
        json.loads(zmtp.ask(path, b'{"type":"ping","nonce":"' + b"n" * 999 + b'"}', timeout=10))["nonce"] == "n" * 999
    )


@pytest.mark.parametrize("answer", [b"nonsense", b"[1]", b'{"type":"failed","message":"no"}', b"[" * 50_000])
def test_an_answer_that_is_no_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, answer: bytes
) -> None:
    """No traceback: exit 1 from probe, 1 from show."""
    path = tmp_path_factory.mktemp("r") / "x.control.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    for module in (probe, asking):
        monkeypatch.setattr(module, "ask", lambda *_, **__: answer)
    assert probe.run(["--endpoint", str(path)]) == 1
    assert show.run(["stats", "--endpoint", str(path)]) == 1


def test_prometheus_text() -> None:
    """HELP, TYPE, escaped labels, suffixes, infinities."""
    assert show.prometheus(SHOWN).splitlines() == [
        "# HELP a_total A\\\\ 1\\n2",
        "# TYPE a_total counter",
        'a_total{x="q\\"\\\\"} 3',
        "# HELP h H",
        "# TYPE h histogram",
        'h_bucket{le="0.1"} 1',
        'h_bucket{le="+Inf"} 2',
        "h_sum 0.25",
        "h_count 2",
        "# HELP g ",
        "# TYPE g gauge",
        "g +Inf",
    ]


def test_tables_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Aligned, missing cells as "-", and no control characters of an upstream reach the terminal."""
    rows: list[dict[str, Any]] = [
        {"name": "a", "n": 5, "states": {"READY": 2}},
        {"name": "\x1b[2Jlonger", "n": None, "up": True, "l": ["x", "y"]},
    ]
    assert show.table(rows).splitlines() == [
        "NAME        N  STATES   UP   L",
        "a           5  READY=2  -    -",
        "?[2Jlonger  -  -        yes  x, y",
    ]
    assert show.table([]) == "nothing\n"
    wide = [{"name": "a", "breakers": [{"state": "closed", "why": "x" * 90}, {"state": "open", "why": "y" * 90}]}]
    assert show.table(wide).splitlines()[1] == f"breakers  state=closed why={'x' * 90} | state=open why={'y' * 90}"
    monkeypatch.setattr(show, "fetch", lambda *_, **__: SHOWN)
    assert show.run(["stats"]) == 0
    assert "h_bucket" not in capsys.readouterr().out
    assert show.run(["stats", "--format", "prometheus"]) == 0
    assert "h_bucket" in capsys.readouterr().out
    assert show.run(["stats", "--json"]) == 0
    with pytest.raises(SystemExit):
        show.run(["calls", "--format", "prometheus"])
