"""`sidecar sim` as a process: what it prints, how it is steered, how it stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from sidecar.cli import sim
from sidecar.config import load
from sidecar.simulator import SCENARIOS
from sidecar.simulator.door import knock
from tests.end_to_end.processes import Processes


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sidecar", "sim", "--for-s", "30", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _ask(url: str) -> str:
    with connect(url + "/v1/responses") as socket:
        socket.send(json.dumps({"type": "response.create", "model": "m", "input": "hi"}))
        for message in socket:
            event = json.loads(message)
            if event["type"] == "response.completed":
                return event["response"]["output"][0]["content"][0]["text"]
    raise AssertionError("no answer")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_told_and_says_what_it_saw(tmp_path: Path, how: signal.Signals) -> None:
    """The first line says where; a snippet is valid TOML; the port file has the port; counts come at the end."""
    port_file = tmp_path / "port"
    process = _start("--text", "BUY at open", "--cadence-ms", "1", "--port-file", str(port_file))
    assert process.stdout is not None
    first = process.stdout.readline()
    url = first.split()[2]
    snippet = "".join(
        iter(process.stdout.readline, 'targets = [ { upstream = "sim-responses", model = "simulated" } ]\n')
    )
    assert [one["url"] for one in tomllib.loads(snippet)["upstream"]][:2] == [url + "/v1/responses", url + "/v1/chat"]
    assert url.endswith(":" + port_file.read_text().strip())
    assert _ask(url) == "BUY at open"
    process.send_signal(how)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert "calls_finished 1" in out


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_the_tables_to_paste_are_right(scheme: str, key: bool, tmp_path: Path) -> None:
    """The daemon takes them as they stand: each dialect by each way that it has, at a path that the simulator knows."""
    file = tmp_path / "sidecar.toml"
    file.write_text(sim._snippet(f"{scheme}://127.0.0.1:8787", key=key))
    upstreams = load(file, environ={"SIM_KEY": "made-up"}).upstream
    assert {(one.dialect, one.transport) for one in upstreams} == {
        *[("responses", "websocket"), ("chat", "websocket")],
        *[("responses", "sse"), ("chat", "sse"), ("messages", "sse")],
    }
    for one in upstreams:
        parts = urlsplit(one.url)
        secure = {"websocket": "wss", "sse": "https"}[one.transport] == parts.scheme
        assert secure is (scheme == "wss")
        assert knock(b"POST", parts.path.encode(), []).dialect == one.dialect
        assert (one.credential is not None) is key


def test_the_tables_to_paste_work() -> None:
    """The HTTPS ones, too: a daemon that was given them answers by each."""
    with Processes() as processes:
        url = f"ws://127.0.0.1:{processes.relay('--ttft-ms', '1', '--cadence-ms', '1', '--tokens', '3')}"
        names = [name for name, *_ in sim._UPSTREAMS]
        routes = "".join(
            f'[[route]]\nname = "{name}"\ntargets = [ {{ upstream = "{name}", model = "m" }} ]\n' for name in names
        )
        processes.daemon(sim._snippet(url, key=False) + "\n" + routes)
        for name in names:
            call = {"type": "call", "id": "c", "route": name, "input": "hi", "timeout_ms": 5000, "stream": False}
            done = list(processes.talk(call))[-1]
            assert (done["type"], done["upstream"]) == ("done", name), done


def test_it_stops_by_itself_and_speaks_json(tmp_path: Path) -> None:
    """--for-s; --json; the settings of a file, a flag above them; steered over HTTP by another process."""
    config = tmp_path / "sim.toml"
    config.write_text('scenario = "silent"\ntokens = 2\nttft_ms = 1\ncadence_ms = 0\ntext = "a b"\nfor_s = 60\n')
    process = _start("-c", str(config), "--json", "--for-s", "1.5", "--tokens", "3")
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert said["scenario"] == "silent"
    with urllib.request.urlopen(f"http://127.0.0.1:{said['port']}/_scenario?name=ok") as answer:
        assert json.load(answer)["scenario"] == "ok"
    assert _ask(said["url"]) == "a b a"
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["calls_finished"] == 1


def test_the_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """--list, for people and as JSON: a line each."""
    assert sim.run(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in SCENARIOS)
    assert sim.run(["--list", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} == set(SCENARIOS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "loopback"),
        (["--host", "example.org"], "example.org"),
        (["--port", "99999"], "99999"),
        (["--scenario", "nonsense"], "nonsense"),
        (["--tokens", "-1"], "tokens"),
        (["--jitter", "2"], "jitter"),
        (["--tls-cert", "x.pem"], "--tls-key"),
        (["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"], "No such file"),
        (["--for-s", "-1"], "--for-s"),
        (["--port-file", "/nonexistent/port"], "/nonexistent/port"),
        (["-c", "/nonexistent"], "/nonexistent"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and one line that names what is wrong."""
    assert sim.run(arguments) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("text", ["scenari = 'ok'", "tokens = 'many'", "tokens = true", "x", "host = 7"])
def test_wrong_files(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2; the message names the file."""
    path = tmp_path / "sim.toml"
    path.write_text(text)
    assert sim.run(["-c", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 75, as for the daemon's endpoint."""
    process = _start("--json")
    assert process.stdout is not None
    port = json.loads(process.stdout.readline())["port"]
    assert sim.run(["--port", str(port)]) == 75
    assert str(port) in capsys.readouterr().err
    process.terminate()
    process.communicate(timeout=10)
