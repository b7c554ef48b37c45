"""The daemon against servers that other people wrote, over each way that they have. No model, no network.

    python tests/third_party/run.py [--litellm VENV/bin/litellm] [--aimock FOLDER/node_modules/.bin/llmock]
                                    [--nginx /usr/sbin/nginx]

None is installed by this command: `pip install 'litellm[proxy]' hypercorn` into a virtual environment of its own,
`npm install @copilotkit/aimock`, `apt-get install nginx-light`. Each server is started on loopback and ended
(`servers.py`), and beside it runs a daemon of its own with one upstream for each way. What comes of each check is
printed as it is: nothing here is judged but that every call ended, once, by its deadline.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import trustme  # noqa: E402

from tests.end_to_end.processes import Processes  # noqa: E402
from tests.third_party.servers import AIMOCK, KEY, LITELLM, LITELLM_HTTP2, NGINX, Place, Server, Way  # noqa: E402

#: Calls one after another: more than nginx takes on one connection.
SEQUENCE: Final = 60


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str, ca: Path, process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait until something answers HTTP there."""
    deadline, context = time.monotonic() + patience, ssl.create_default_context(cafile=str(ca))
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health/liveliness", timeout=2, context=context).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not come up (exit status {process.poll()})")


def configuration(ways: list[Way], place: Place, good: Path, bad: Path) -> str:
    """An upstream and a route for each way; two without warm connections, and one with a key that is none."""
    parts = []
    for number, way in enumerate(ways):
        tls = f'tls = {{ ca_file = "{place.ca}" }}\n' if way.scheme in ("https", "wss") else ""
        for name, key in (
            (f"way{number}", good),
            (f"cold{number}", good),
            (f"new{number}", good),
            (f"bad{number}", bad),
        ):
            parts.append(
                f'[[upstream]]\nname = "{name}"\nurl = "{way.scheme}://localhost:{place.port}{way.path}"\n'
                f'dialect = "{way.dialect}"\ncredential = {{ file = "{key}" }}\n{way.keys}'
                f"warm_connections = {2 if name[0] == 'w' else 0}\nmax_connections = 32\n"
                f'{tls}[[route]]\nname = "{name}"\n'
                f'targets = [ {{ upstream = "{name}", model = "mock" }} ]\nfirst_delta_timeout_ms = 15000\n'
                f'[[route]]\nname = "no-model-{name}"\ntargets = [ {{ upstream = "{name}", model = "nobody" }} ]\n'
            )
    return "\n".join(parts)


def ask(
    processes: Processes, route: str, count: int = 1, *, prompt: str = "BUY, SELL or HOLD?", hup: int = 0, **fields: Any
) -> list[dict[str, Any]]:
    """`count` calls at once; their terminals. With `hup`, that process gets a SIGHUP while they run."""
    calls = [
        {"type": "call", "id": f"c{number}", "route": route, "input": prompt, "timeout_ms": 20_000,
         "stream": False, **fields}
        for number in range(count)
    ]  # fmt: skip
    ended, accepted = [], 0
    for message in processes.talk(*calls, last=("nothing",), timeout=25):
        accepted += message["type"] == "accepted"
        if hup and accepted == count:
            time.sleep(0.5)  # their answers have begun
            os.kill(hup, signal.SIGHUP)
            hup = 0
        if message["type"] in ("done", "failed"):
            ended.append(message)
            if len(ended) == count:
                break
    return ended


def told(ended: list[dict[str, Any]], count: int) -> str:
    """What came of some calls, in a few words."""
    seen = Counter(one["type"] if one["type"] == "done" else one["code"] for one in ended)
    words = ", ".join(f"{number} {what}" if count > 1 else what for what, number in seen.items())
    first = next((one for one in ended if one["type"] == "failed"), ended[0] if ended else {})
    if first.get("type") == "done" and count == 1:
        usage = first["usage"]
        length = len((first.get("text") or "").split())
        words += f" by {first.get('transport')}: {length} words, {usage['output_tokens']} tokens out"
        words += " (estimated)" if usage["estimated"] else ""
    elif first.get("type") == "failed":
        words += f" ({first.get('upstream_status') or '-'}: {first['message'][:90]})"
    again = sum(max(0, one.get("attempts", 1) - 1) for one in ended)
    words += f", {again} further attempts" if again else ""
    return words + ("" if len(ended) == count else f"; {count - len(ended)} WITHOUT AN END")


def checks(processes: Processes, number: int, idle_s: float, hup: int) -> Iterator[tuple[str, str]]:
    """What is asked of one way, and what came of it."""
    route = f"way{number}"
    yield "a call", told(ask(processes, route), 1)
    yield "20 at once", told(ask(processes, route, 20), 20)
    sequence = [one for _ in range(SEQUENCE) for one in ask(processes, route)]
    yield f"{SEQUENCE} one after another", told(sequence, SEQUENCE)
    yield "20 at once, nothing warm", told(ask(processes, f"cold{number}", 20), 20)
    if hup:
        long = "[[tokens=60 cadence_ms=25]] BUY, SELL or HOLD?"
        yield "reloaded while 16 are answered", told(ask(processes, route, 16, prompt=long, hup=hup), 16)
        yield "a call after that", told(ask(processes, route), 1)
    yield "unknown model", told(ask(processes, f"no-model-new{number}"), 1)
    yield "unknown model, after others", told(ask(processes, f"no-model-{route}"), 1)
    yield "wrong key", told(ask(processes, f"bad{number}", timeout_ms=5000), 1)
    time.sleep(idle_s)
    yield f"after {idle_s:g} s without a call", told(ask(processes, route), 1)


@contextmanager
def running(server: Server, processes: Processes, program: Path) -> Iterator[tuple[Place, subprocess.Popen[bytes]]]:
    """The server, its backend and its certificate."""
    authority, files = trustme.CA(), processes.folder
    ca, certificate, key = files / "ca.pem", files / "certificate.pem", files / "key.pem"
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(ca))
    issued.private_key_pem.write_to_path(str(key))
    certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    tls = ["--tls-cert", str(certificate), "--tls-key", str(key)] if server.backend_tls else []
    backend = processes.relay(
        "--ttft-ms", "20", "--cadence-ms", "5", "--tokens", "8", "--for-s", "600", *tls, *server.relay
    )
    place = Place(
        folder=files, port=free_port(), backend=backend, program=program, ca=ca, certificate=certificate, key=key
    )
    with (files / "server.log").open("wb") as log:
        process = subprocess.Popen(
            server.command(place), stdout=log, stderr=log, cwd=files, env={**os.environ, **server.environ(place)}
        )
    try:
        scheme = next(iter(server.ways.values())).scheme
        answers(f"{scheme}://localhost:{place.port}", ca, process, 120)
        yield place, process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def play(server: Server, program: Path, *, idle_s: float) -> Iterator[dict[str, str]]:
    """All the checks at one server."""
    with Processes() as processes, running(server, processes, program) as (place, process):
        good, bad = processes.folder / "good", processes.folder / "bad"
        for path, key in ((good, KEY), (bad, "sk-wrong")):
            path.write_text(key)
            path.chmod(0o600)
        processes.daemon(configuration(list(server.ways.values()), place, good, bad), ready=False)
        time.sleep(2)
        for number, way in enumerate(server.ways):
            before = noted(server, place)
            for check, came in checks(processes, number, idle_s, process.pid if server.reloads else 0):
                yield {"server": server.name, "way": way, "check": check, "came": came}
            if server.log:
                lines = noted(server, place)[len(before) :]
                by = Counter(line.split()[0] for line in lines)
                connections = len({line.split()[1] for line in lines})
                seen = ", ".join(f"{count} by {protocol}" for protocol, count in by.items())
                came = f"{seen}, over {connections} connections"
                yield {"server": server.name, "way": way, "check": "requests that it noted", "came": came}


def noted(server: Server, place: Place) -> list[str]:
    """The lines of its log so far."""
    return (place.folder / server.log).read_text().splitlines() if server.log else []


def table(rows: list[dict[str, str]]) -> str:
    """Ways of one server to which the same came share a line."""
    ways: dict[tuple[str, str, str], list[str]] = {}
    every: dict[str, list[str]] = {}
    for row in rows:
        ways.setdefault((row["server"], row["check"], row["came"]), []).append(row["way"])
        if row["way"] not in every.setdefault(row["server"], []):
            every[row["server"]].append(row["way"])
    order = {key: (list(every).index(key[0]), place_of(rows, key[1])) for key in ways}
    lines = ["| server | check | way | what came |", "|---|---|---|---|"]
    for server, check, came in sorted(ways, key=order.__getitem__):
        by = ways[server, check, came]
        others = [way for way in every[server] if way not in by]
        which = "each" + (f" but {'; '.join(others)}" if others else "") if len(others) < len(by) else "; ".join(by)
        lines.append(f"| {server} | {check} | {which} | {came} |")
    return "\n".join(lines)


def place_of(rows: list[dict[str, str]], check: str) -> int:
    """Where a check comes among the others."""
    return list(dict.fromkeys(row["check"] for row in reversed(rows)))[::-1].index(check)


def main() -> int:
    """Returns 0 when every call had its end."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--litellm", type=Path, help="the program of that name in its virtual environment")
    arguments.add_argument("--aimock", type=Path, help="the program of @copilotkit/aimock")
    arguments.add_argument("--nginx", type=Path, help="the program of that name")
    arguments.add_argument("--idle-s", type=float, default=7.0)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    chosen = [(LITELLM, options.litellm), (LITELLM_HTTP2, options.litellm), (AIMOCK, options.aimock)]
    rows: list[dict[str, str]] = []
    for server, program in [*chosen, (NGINX, options.nginx)]:
        if program is not None:
            for row in play(server, program.absolute(), idle_s=options.idle_s):
                rows.append(row)
                print(" | ".join(row.values()), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rows))
    else:
        print(table(rows))
    return int(any("WITHOUT AN END" in row["came"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
