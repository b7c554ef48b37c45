"""The daemon against servers that other people wrote, over each way that they have. No model, no network.

    python tests/third_party/run.py --litellm VENV/bin/litellm [--aimock FOLDER/node_modules/.bin/llmock]

Neither is installed by this command: `pip install 'litellm[proxy]'` into a virtual environment of its own, and
`npm install @copilotkit/aimock`. Each server is started on loopback and ended. aimock answers by itself; LiteLLM asks a
`sidecar sim` as its backend, over HTTP (its own `mock_response` answers no Responses calls). Beside each runs a daemon
of its own with one upstream for each way. What comes of each check is printed as it is: nothing here is judged but that
every call ended, once, by its deadline.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.end_to_end.processes import Processes  # noqa: E402

#: way -> (dialect, scheme, path)
WAYS: Final = {
    "chat, HTTPS": ("chat", "http", "/v1/chat/completions"),
    "responses, HTTPS": ("responses", "http", "/v1/responses"),
    "responses, WebSocket": ("responses", "ws", "/v1/responses"),
    "messages, HTTPS": ("messages", "http", "/v1/messages"),
}
KEY: Final = "sk-not-a-secret"
LITELLM: Final = f"""
model_list:
  - model_name: mock
    litellm_params: {{ model: openai/gpt-5-mini, api_key: none, api_base: "http://127.0.0.1:BACKEND/v1" }}
general_settings: {{ master_key: {KEY} }}
"""
FIXTURES: Final = {"fixtures": [{"match": {}, "response": {"content": "Hold the position and wait"}}]}


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait until something answers HTTP there."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not come up (exit status {process.poll()})")


def configuration(port: int, key_file: Path, bad_key: Path) -> str:
    """An upstream and a route for each way; one more with a key that is none."""
    parts = []
    for number, (dialect, scheme, path) in enumerate(WAYS.values()):
        for name, key in ((f"way{number}", key_file), (f"bad{number}", bad_key)):
            parts.append(
                f'[[upstream]]\nname = "{name}"\nurl = "{scheme}://127.0.0.1:{port}{path}"\ndialect = "{dialect}"\n'
                f'credential = {{ file = "{key}" }}\nwarm_connections = {2 if name[0] == "w" else 0}\n'
                f'max_connections = 32\n[[route]]\nname = "{name}"\n'
                f'targets = [ {{ upstream = "{name}", model = "mock" }} ]\nfirst_delta_timeout_ms = 15000\n'
                f'[[route]]\nname = "no-model-{name}"\ntargets = [ {{ upstream = "{name}", model = "nobody" }} ]\n'
            )
    return "\n".join(parts)


def ask(processes: Processes, route: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """`count` calls at once; their terminals."""
    calls = [
        {"type": "call", "id": f"c{number}", "route": route, "input": "BUY, SELL or HOLD?", "timeout_ms": 20_000,
         "stream": False, **fields}
        for number in range(count)
    ]  # fmt: skip
    ended = []
    for message in processes.talk(*calls, last=("nothing",), timeout=25):
        if message["type"] in ("done", "failed"):
            ended.append(message)
            if len(ended) == count:
                break
    return ended


def told(ended: list[dict[str, Any]], count: int) -> str:
    """What came of some calls, in a few words."""
    seen = Counter(one["type"] if one["type"] == "done" else one["code"] for one in ended)
    words = ", ".join(f"{number} {what}" if count > 1 else what for what, number in seen.items())
    first = ended[0] if ended else {}
    if first.get("type") == "done" and count == 1:
        usage = first["usage"]
        words += f" by {first.get('transport')}: {first.get('text') or ''!r}, {usage['output_tokens']} tokens out"
        words += " (estimated)" if usage["estimated"] else ""
    elif first.get("type") == "failed":
        words += f" ({first.get('upstream_status') or '-'}: {first['message'][:90]})"
    return words + ("" if len(ended) == count else f"; {count - len(ended)} WITHOUT AN END")


def play(name: str, command: list[str], port: int, *, idle_s: float) -> list[dict[str, str]]:
    """All the checks at one server. Where its configuration says BACKEND, a simulator of ours is."""
    rows: list[dict[str, str]] = []
    with Processes() as processes:
        backend = processes.relay("--ttft-ms", "20", "--cadence-ms", "5", "--tokens", "8", "--for-s", "300")
        for path in (Path(word) for word in command if word.endswith(".yaml")):
            path.write_text(path.read_text().replace("BACKEND", str(backend)))
        with (processes.folder / "server.log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=processes.folder)
        try:
            answers(port, server, 120)
            good, bad = processes.folder / "key", processes.folder / "bad"
            for path, key in ((good, KEY), (bad, "sk-wrong")):
                path.write_text(key)
                path.chmod(0o600)
            processes.daemon(configuration(port, good, bad), ready=False)
            time.sleep(2)
            for number, way in enumerate(WAYS):
                route = f"way{number}"
                checks = [
                    ("a call", ask(processes, route), 1),
                    ("20 at once", ask(processes, route, 20), 20),
                    ("unknown model", ask(processes, f"no-model-{route}"), 1),
                    ("wrong key", ask(processes, f"bad{number}", timeout_ms=5000), 1),
                ]
                time.sleep(idle_s)
                checks.append((f"after {idle_s:g} s without a call", ask(processes, route), 1))
                for check, ended, count in checks:
                    rows.append({"server": name, "way": way, "check": check, "came": told(ended, count)})
                    print(" | ".join(rows[-1].values()), file=sys.stderr, flush=True)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    return rows


def main() -> int:
    """Returns 0 when every call had its end."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--litellm", type=Path, help="the program of that name in its virtual environment")
    arguments.add_argument("--aimock", type=Path, help="the program of @copilotkit/aimock")
    arguments.add_argument("--idle-s", type=float, default=7.0)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    rows: list[dict[str, str]] = []
    with Processes() as files:
        if options.litellm is not None:
            port, config = free_port(), files.folder / "litellm.yaml"
            config.write_text(LITELLM)
            command = [str(options.litellm), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
            rows += play("LiteLLM", command, port, idle_s=options.idle_s)
        if options.aimock is not None:
            port, config = free_port(), files.folder / "fixtures.json"
            config.write_text(json.dumps(FIXTURES))
            command = [str(options.aimock), "--fixtures", str(config), "--port", str(port), "--host", "127.0.0.1"]
            rows += play("aimock", command, port, idle_s=options.idle_s)
    if options.json:
        print(json.dumps(rows))
    else:
        print("| server | way | check | what came |\n|---|---|---|---|")
        print("\n".join(f"| {row['server']} | {row['way']} | {row['check']} | {row['came']} |" for row in rows))
    return int(any("WITHOUT AN END" in row["came"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
