"""The product as its users meet it: processes, files, exit statuses, and bots that know nothing but ZeroMQ and JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.processes import Processes, route, until, upstream

BOTS = Path(__file__).parent / "bots"
TEXT = "HOLD until the press conference."


@pytest.fixture
def processes() -> Iterator[Processes]:
    """A fresh folder; whatever is started in it ends with the test."""
    with Processes() as started:
        yield started


@pytest.fixture
def running(processes: Processes) -> Processes:
    """A relay that answers `TEXT` quickly, and a daemon ready beside it."""
    port = processes.relay("--text", TEXT, "--ttft-ms", "5", "--cadence-ms", "2")
    processes.daemon(upstream("sim", f"ws://127.0.0.1:{port}/v1/responses") + route("sim"))
    return processes


def test_the_demo_keeps_every_promise_it_shows(processes: Processes) -> None:
    """`sidecar demo` ends with 0, and only because everything it shows happened."""
    demo = processes.run("demo", "--json", timeout=45)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    summary = json.loads(demo.stdout)
    assert summary["ok"]
    assert summary["seconds"] < 30
    promised = [row["promised"] for row in summary["promises"]]
    for words in ("token by token", "dead relay", "deadline", "choose()", "drain"):
        assert any(words in line for line in promised), promised


@pytest.mark.parametrize("zmtp", ["native", "libzmq"])
def test_three_bots_get_the_same_answer(processes: Processes, zmtp: str) -> None:
    """`sidecar ask`, a bot of 30 lines without our library, and a REQ bot of six: one text, whoever serves ZMTP."""
    running = processes
    port = running.relay("--text", TEXT, "--ttft-ms", "5", "--cadence-ms", "2")
    running.daemon(f'zmtp = "{zmtp}"\n' + upstream("sim", f"ws://127.0.0.1:{port}/v1/responses") + route("sim"))
    ask = running.run("ask", "--endpoint", running.endpoint, "BUY, SELL or HOLD?")
    assert (ask.returncode, ask.stdout.strip()) == (0, TEXT), ask.stderr
    bot = running.run_script(str(BOTS / "bot_json.py"), running.endpoint, "BUY, SELL or HOLD?")
    assert (bot.returncode, bot.stdout.strip()) == (0, TEXT), bot.stderr
    req = running.run_script(str(BOTS / "req_bot.py"), running.endpoint)
    assert (req.returncode, req.stdout.strip()) == (0, TEXT), req.stderr


def test_ask_streams_and_says_why_not(running: Processes) -> None:
    """`--json` shows every message in order; a failure has its code on stderr and exit 1; no daemon is exit 3."""
    ask = running.run("ask", "--json", "--endpoint", running.endpoint, "hello")
    lines = [json.loads(line) for line in ask.stdout.splitlines()]
    assert [line["type"] for line in lines][-1] == "done"
    assert "".join(line["text"] for line in lines if line["type"] == "delta") == TEXT
    silent = running.run("ask", "--endpoint", running.endpoint, "--timeout-ms", "200", "x [[scenario=silent]]")
    assert silent.returncode == 1
    assert "deadline_exceeded" in silent.stderr
    nobody = running.run("ask", "--endpoint", f"ipc://{running.folder}/nobody.sock", "x")
    assert nobody.returncode == 3
    assert "nobody.sock" in nobody.stderr


def test_probe_and_show(running: Processes) -> None:
    """Exit statuses for monitoring systems; tables for people; prometheus for machines."""
    probe = running.run("probe", "--ready", "--endpoint", running.endpoint)
    assert probe.returncode == 0, probe.stderr
    assert running.run("probe", "--live", "--endpoint", f"ipc://{running.folder}/nobody.sock").returncode == 1
    assert running.run("probe", "--format", "nagios", "--endpoint", running.endpoint).returncode == 0
    running.run("ask", "--endpoint", running.endpoint, "hello")
    shown = running.run("show", "stats", "--format", "prometheus", "--endpoint", running.endpoint)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r'sidecar_calls_total\{.*code="done".*\} 1', shown.stdout), shown.stdout
    for what in ("upstreams", "calls", "stats"):
        table = running.run("show", what, "--endpoint", running.endpoint)
        assert table.returncode == 0, table.stderr
    upstreams = json.loads(running.run("show", "upstreams", "--json", "--endpoint", running.endpoint).stdout)
    assert "READY" in json.dumps(upstreams)


def test_sigterm_drains_and_leaves_nothing_behind(running: Processes) -> None:
    """A call in flight is finished, then the daemon ends with 0 and its socket is gone."""
    conversation = running.talk({"type": "call", "id": "a", "input": "x [[ttft_ms=400]]", "timeout_ms": 5000})
    assert next(conversation)["type"] == "accepted"
    daemon = next(p for p in running._running if "serve" in p.args)  # type: ignore[operator]
    daemon.send_signal(signal.SIGTERM)
    assert [message["type"] for message in conversation][-1] == "done"
    assert daemon.wait(10) == 0
    assert not list(running.folder.glob("*.sock*"))


def test_a_second_daemon_is_refused_and_a_killed_one_replaced(running: Processes) -> None:
    """Exit 75 while the first lives; after its SIGKILL the stale socket is no obstacle."""
    second = running.run("serve", "-c", str(running.folder / "sidecar.toml"))
    assert second.returncode == 75
    assert "another daemon" in second.stderr
    daemon = next(p for p in running._running if "serve" in p.args)  # type: ignore[operator]
    daemon.kill()
    daemon.wait()
    assert (running.folder / "s.sock").exists()
    third = running.start("serve", "-c", str(running.folder / "sidecar.toml"), log="third.log")
    until(lambda: running.report(timeout=0.5) is not None, third, running.folder / "third.log")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "upstream"),
        ("[[upstream]]\nname = 1", "name"),
        ("nonsense = 1\n", "nonsense"),
        ("[frontend]\nendpiont = 'x'", "endpoint"),
        ("\x00", "TOML"),
    ],
)
def test_a_bad_configuration_is_exit_78_and_says_where(processes: Processes, text: str, words: str) -> None:
    """`serve` and `check` refuse it alike, naming file, key and mend."""
    path = processes.folder / "bad.toml"
    path.write_text(text)
    for command in ("serve", "check"):
        refused = processes.run(command, "-c", str(path))
        assert refused.returncode == 78, refused.stderr
        assert "bad.toml" in refused.stderr
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr


def test_no_configuration_at_all_says_what_to_write(processes: Processes) -> None:
    """`serve` without any file explains itself."""
    if Path("/etc/sidecar/sidecar.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    refused = processes.run("serve")
    assert refused.returncode == 78
    assert "[[upstream]]" in refused.stderr
    assert "/etc/sidecar/sidecar.toml" in refused.stderr


def test_failover_to_the_other_dialect(processes: Processes) -> None:
    """The first relay is dead: the second, of another dialect, answers; the terminal says so."""
    port = processes.relay("--text", TEXT, "--ttft-ms", "5", "--cadence-ms", "2")
    processes.daemon(
        upstream("dead", f"ws://127.0.0.1:{port}/s/error_503/v1/responses")
        + upstream("alive", f"ws://127.0.0.1:{port}/v1/chat", "chat")
        + route("dead", "alive")
    )
    *_, done = processes.talk({"type": "call", "id": "a", "input": "x", "timeout_ms": 5000})
    assert done["type"] == "done", done
    assert (done["upstream"], done["attempts"]) == ("alive", 2)


def test_a_dead_bot_stops_its_upstream_work(running: Processes) -> None:
    """SIGKILL of a bot in the middle of a stream: the relay sees the call stopped, and nothing is left in flight."""
    code = (
        "import json,sys,zmq\n"
        "s=zmq.Context().socket(zmq.DEALER); s.connect(sys.argv[1])\n"
        "call = {'type':'call','id':'a','input':'x [[tokens=5000 cadence_ms=20]]','timeout_ms':60000}\n"
        "s.send(json.dumps(call).encode())\n"
        "while True:\n    print(json.loads(s.recv())['type'], flush=True)\n"
    )
    import sys

    bot = subprocess.Popen([sys.executable, "-c", code, running.endpoint], stdout=subprocess.PIPE, text=True)
    assert bot.stdout is not None
    while bot.stdout.readline().strip() != "delta":
        pass
    bot.kill()
    bot.wait()
    bot.stdout.close()
    daemon = next(p for p in running._running if "serve" in p.args)  # type: ignore[operator]
    until(lambda: running.counters()["calls_stopped"] == 1, daemon, running.folder / "daemon.log")
    until(lambda: (running.report() or {})["in_flight"] == 0, daemon, running.folder / "daemon.log")


def test_a_canary_key_and_a_canary_prompt_are_nowhere(processes: Processes) -> None:
    """Neither the credential nor a prompt nor an answer is in a log, a report, an error, a status or /proc."""
    key, prompt, answer = "sk-canary-0123456789abcdef", "canary-prompt-8271", "canary-answer-5512"
    port = processes.relay("--text", answer, "--ttft-ms", "2", "--key", key)
    credential = processes.folder / "key"
    credential.write_text(key)
    credential.chmod(0o600)
    daemon = processes.daemon(
        upstream("sim", f"ws://127.0.0.1:{port}/v1/responses", more=f'credential = {{ file = "{credential}" }}')
        + route("sim")
        + '[log]\nlevel = "debug"\n'
    )
    for wish in (prompt, f"{prompt} [[scenario=malformed]]", f"{prompt} [[scenario=error_401]]", prompt * 3):
        said = list(processes.talk({"type": "call", "id": "a", "input": wish, "timeout_ms": 400, "extra": prompt}))
        assert said[-1]["type"] in {"done", "failed"}
    list(processes.talk({"type": "call", "id": "a", "input": prompt, "options": {prompt: 1}, "temperature": prompt}))
    seen = processes.log()
    for command in ("probe", "show upstreams --json", "show calls --json", "show stats --json"):
        result = processes.run(*command.split(), "--endpoint", processes.endpoint)
        seen += result.stdout + result.stderr
    proc = Path(f"/proc/{daemon.pid}")
    seen += (proc / "cmdline").read_text()
    if os.access(proc / "environ", os.R_OK):
        seen += (proc / "environ").read_text()
    for canary in (key, prompt, answer):
        assert canary not in seen
