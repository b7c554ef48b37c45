"""Bad input of an upstream: frames in both dialects, and handshakes, with TLS and without."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.end_to_end.borders import Bot, Table, default_ready, told
from tests.end_to_end.processes import Processes, route, until, upstream

DONE = r"^done stop"
LOST = r"^(\d+ deltas · )?failed upstream_lost"
LOST_PARTIAL = r"^\d+ deltas · failed upstream_lost \(with id, partial"
LATE = r"^failed deadline_exceeded"
IDLE = r"^\d+ deltas · failed (idle_timeout|upstream_lost) \(with id, partial"
#: A retry that waits for a connection until the deadline: so says the local wire, and the error of before is not said.
RETRIED = r"|^failed deadline_exceeded \(with id, \d attempts"
BIG = "size_bytes=16777216"

#: scenario -> (steering, the answers documented). A stream that was cut, stalled or malformed is never `done`.
FRAMES: dict[str, tuple[str, str]] = {
    "reset": ("", LOST),
    "silent": ("", LATE),
    "silent_after_created": ("", LATE),
    "late": ("late_s=0.3", DONE),
    "cut": ("", LOST_PARTIAL),
    "cut_rst": ("", LOST_PARTIAL),
    "close_1000": ("", LOST),
    "close_1001": ("", LOST),
    "close_1003": ("after=3", LOST_PARTIAL),
    "close_1008": ("", r"^failed (upstream_auth|upstream_refused|upstream_lost)"),
    "close_1011": ("", LOST + r"|^failed upstream_error"),
    "close_1012": ("", LOST),
    "close_1013": ("", LOST + r"|^failed upstream_(error|rate_limited)"),
    "close_4402": ("", r"^failed (upstream_lost|insufficient_quota|upstream_refused)"),
    "stall": ("", IDLE),
    "stall_silent": ("", IDLE),
    "malformed": ("", LOST_PARTIAL),
    "bad_utf8": ("", LOST_PARTIAL),
    "giant_frame": (BIG, LOST_PARTIAL),
    "endless_fragments": (BIG, LOST_PARTIAL),
    "empty_fragments": (BIG, LOST_PARTIAL),
    "masked_frame": ("", LOST_PARTIAL),
    "binary_garbage": ("", LOST_PARTIAL),
    "zstd_bomb": (BIG, LOST),
    "error_401": ("", r"^failed upstream_auth"),
    "error_403": ("", r"^failed upstream_auth"),
    "error_404": ("", r"^failed model_not_found"),
    "error_429": ("", r"^failed upstream_rate_limited \(with id.*retry_after_ms \d+"),
    "error_quota": ("", r"^failed insufficient_quota"),
    "error_500": ("", r"^failed upstream_error"),
    "error_503": ("", r"^failed upstream_error"),
    "error_529": ("", r"^failed upstream_error"),
    "error_context_length": ("", r"^failed context_length_exceeded"),
    "error_content_filter": ("", r"^failed content_filter"),
    "error_after_created": ("", r"^failed upstream_error"),
    "error_midway": ("", r"^\d+ deltas · failed upstream_error \(with id, partial"),
    "failed": ("", r"^failed upstream_error"),
    "incomplete_length": ("", r"^done length"),
    "incomplete_filter": ("", r"failed content_filter"),
    "refusal": ("", r"failed content_filter"),
    "empty": ("", r"^done stop, 0 deltas"),
    "no_usage": ("", DONE),
    "no_done": ("", DONE),
    "usage_late": ("", DONE),
    "duplicate_terminal": ("", DONE),
    "tokens_after_terminal": ("", DONE),
    "unknown_events": ("", DONE),
    "stray": ("", DONE + "|" + LOST),
    "reasoning_first": ("late_s=0.2", DONE),
    "surrogate_split": ("", DONE),
    "empty_deltas": ("", DONE),
}
QUICK_FRAMES = {
    "cut",
    "stall",
    "malformed",
    "masked_frame",
    "giant_frame",
    "error_quota",
    "duplicate_terminal",
    "silent",
}
DIALECTS = {"responses": "/v1/responses", "chat": "/v1/chat"}
CALL = {"type": "call", "id": "a", "timeout_ms": 1500, "idle_timeout_ms": 300, "first_delta_timeout_ms": 1400}


def ask(processes: Processes, where: str, prompt: str = "BUY, SELL or HOLD?", **fields: Any) -> str:
    """One call by that route, from its `accepted` to its end; deltas must be without a hole, one terminal."""
    with Bot(processes.endpoint) as bot:
        came = bot.converse({**CALL, "route": where, "input": prompt, **fields})
    numbers = [message["seq"] for message in came if message["type"] == "delta"]
    ends = [message for message in came if message["type"] in ("done", "failed")]
    holes = "" if numbers == list(range(len(numbers))) else "A HOLE IN seq: "
    second = "" if len(ends) == 1 else f"{len(ends)} TERMINALS: "
    return holes + second + told(came).removeprefix("accepted · ")


def upstream_frames(table: Table) -> None:
    """Each scenario of the simulator at an upstream of its own, in both dialects, eight at once."""
    chosen = {n: v for n, v in FRAMES.items() if not table.quick or n in QUICK_FRAMES}
    with Processes() as processes:
        port = processes.relay("--ttft-ms", "5", "--cadence-ms", "2", "--tokens", "12", "--for-s", "300")
        text = upstream("good", f"ws://127.0.0.1:{port}/v1/responses") + route("good")
        rows = []
        for name, (steering, expected) in chosen.items():
            for dialect, path in DIALECTS.items():
                more = 'compression = "zstd-stream"' if name == "zstd_bomb" else ""
                if (name, dialect) in {("no_done", "responses"), ("failed", "chat"), ("silent_after_created", "chat")}:
                    continue
                label = f"{name}-{dialect}"
                text += upstream(label, f"ws://127.0.0.1:{port}{path}", dialect, more=more).replace("= 2", "= 1")
                text += route(label).replace('"default"', f'"{label}"')
                rows.append((label, name, dialect, f"x [[scenario={name} {steering}]]", expected))
        daemon = processes.daemon(text, ready=False)
        until(lambda: (processes.report() or {}).get("ready"), daemon, processes.folder / "daemon.log")

        def one(row: tuple[str, str, str, str, str]) -> None:
            label, name, dialect, prompt, expected = row
            if expected.startswith(("^failed", LOST)):
                expected += RETRIED
            table.try_("upstream frames", f"{name} ({dialect})", lambda: ask(processes, label, prompt), expected)

        with table.beside(processes.endpoint, lambda: daemon.poll() is None), ThreadPoolExecutor(6) as pool:
            list(pool.map(one, rows))


# ---------------------------------------------------------------------------------------------- handshakes

NOT_REACHED = r"^failed (no_connection|breaker_open|upstream_lost|deadline_exceeded)"
#: scenario -> (what a call is told, what `check --connect` says)
HANDSHAKES: dict[str, tuple[str, str]] = {
    "handshake_eof": (NOT_REACHED, "upgrade"),
    "handshake_garbage": (NOT_REACHED, "upgrade"),
    "handshake_301": (r"^failed (no_connection|breaker_open|upstream_refused|upstream_error|deadline_exceeded)", "301"),
    "handshake_drip": (NOT_REACHED, "upgrade"),
    "handshake_silent": (NOT_REACHED, "upgrade"),
    "handshake_wrong_accept": (NOT_REACHED, "upgrade"),
    "handshake_reset": (NOT_REACHED, "upgrade"),
    "refuse": (NOT_REACHED, "upgrade|tcp"),
    "deaf": (r"^failed (upstream_lost|deadline_exceeded)", ""),
    "expiry": ("^done stop", ""),
    "expiring": ("^done stop", ""),
    "http_401": (r"^failed upstream_auth", "exit 77"),
    "http_403": (r"^failed upstream_auth", "exit 77"),
    "http_404": (r"^failed (no_connection|breaker_open|upstream_refused|model_not_found|deadline_exceeded)", "404"),
    "http_429": (
        r"^failed (no_connection|breaker_open|upstream_rate_limited|deadline_exceeded).*retry_after_ms",
        "429",
    ),
    "http_500": (r"^failed (no_connection|breaker_open|upstream_error|deadline_exceeded)", "500"),
    "http_503": (r"^failed (no_connection|breaker_open|upstream_error|deadline_exceeded)", "503"),
}
QUICK_HANDSHAKES = {"handshake_eof", "handshake_301", "handshake_wrong_accept", "http_401", "http_429"}
#: Connects to one failing upstream in the ten seconds or so of its rows; more is a hot loop.
MOST_CONNECTS = 60


@contextlib.contextmanager
def tls_door(context: ssl.SSLContext | None) -> Iterator[int]:
    """A port that takes TLS handshakes and nothing else; without a context, one that says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        listening.settimeout(0.1)
        stop = threading.Event()
        kept: list[socket.socket] = []

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                connection.settimeout(2.0)
                kept.append(connection)
                if context is not None:
                    with contextlib.suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        stop.set()
        thread.join(5)
        for connection in kept:
            connection.close()


def handshakes(table: Table) -> None:
    """Each scenario at the door, TLS that cannot be trusted: a call's answer, `check --connect`'s, and no hot loop."""
    chosen = {n: v for n, v in HANDSHAKES.items() if not table.quick or n in QUICK_HANDSHAKES}
    with Processes() as processes, contextlib.ExitStack() as stack:
        port = processes.relay(
            "--ttft-ms", "5", "--cadence-ms", "1", "--tokens", "6", "--max-age-s", "2", "--for-s", "300"
        )
        good = processes.relay("--ttft-ms", "5", "--cadence-ms", "1", "--tokens", "6", "--for-s", "300", name="good")
        rows = [(name, f"ws://127.0.0.1:{port}/s/{name}/v1/responses", "", *words) for name, words in chosen.items()]
        if not table.quick:
            rows += _tls_rows(processes, stack, good)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            rows.append(("a port nobody listens at", f"ws://127.0.0.1:{unused.getsockname()[1]}/", "",
                         NOT_REACHED, "tcp|refused"))  # fmt: skip
        text = upstream("good", f"ws://127.0.0.1:{good}/v1/responses") + route("good")
        for number, (_, url, more, _, _) in enumerate(rows):
            text += upstream(f"u{number}", url, more=f"upgrade_timeout_s = 1\ntls_timeout_s = 1\n{more}")
            text += route(f"u{number}").replace('"default"', f'"r{number}"')
        daemon = processes.daemon(text, ready=False)
        until(lambda: default_ready(processes), daemon, processes.folder / "daemon.log")
        done = processes.run("check", "-c", str(processes.folder / "sidecar.toml"), "--connect", "--json", timeout=60)
        checked = {report["upstream"]: report for report in json.loads(done.stdout)["connect"]}

        def one(item: tuple[int, tuple[str, str, str, str, str]]) -> None:
            number, (name, _, _, expected, words) = item
            table.try_("handshake", name,
                       lambda: f"{ask(processes, f'r{number}')}; check: {_checked(checked[f'u{number}'])}",
                       f"{expected}.*check: .*({words})")  # fmt: skip

        with table.beside(processes.endpoint, lambda: daemon.poll() is None):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(one, enumerate(rows)))
            began = time.monotonic()
            lines = processes.log().splitlines()
            most = max(sum("connect.failed" in line and f'"u{n}"' in line for line in lines) for n in range(len(rows)))
            table.note("handshake", "connects to any one of these upstreams meanwhile (no hot loop)",
                       f"{most} at most" if most <= MOST_CONNECTS else f"{most}: A HOT LOOP", "at most$",
                       began)  # fmt: skip


def _checked(report: dict[str, Any]) -> str:
    if not report["status"]:
        return "exit 0"
    return f"exit {report['status']}, {report['failed']}: {report['error']}"


def _tls_rows(
    processes: Processes, stack: contextlib.ExitStack, plain_port: int
) -> list[tuple[str, str, str, str, str]]:
    import trustme

    ours, others = trustme.CA(), trustme.CA()
    ca_file = processes.folder / "ca.pem"
    ours.cert_pem.write_to_path(str(ca_file))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)

    def door(authority: trustme.CA, name: str, **options: Any) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name, **options).configure_cert(context)
        return stack.enter_context(tls_door(context))

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("localhost").configure_cert(old)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("NULL:@SECLEVEL=0")
    more = f'[upstream.tls]\nca_file = "{ca_file}"'
    ports = [
        ("TLS: a certificate of another authority", door(others, "localhost"), "certificate|unable to get"),
        ("TLS: a certificate for another name", door(ours, "elsewhere.example"), "certificate|Hostname"),
        ("TLS: an expired certificate", door(ours, "localhost", not_after=past), "certificate|expired"),
        ("TLS: only a cipher without encryption", stack.enter_context(tls_door(old)), "tls"),
        ("TLS: a server that never answers", stack.enter_context(tls_door(None)), "no handshake in 1 s"),
        ("plain HTTP on a wss port", plain_port, "tls"),
    ]
    rows = [(name, f"wss://localhost:{port}/v1/responses", more, NOT_REACHED, words) for name, port, words in ports]
    return [
        *rows,
        ("TLS on a ws port", f"ws://localhost:{door(ours, 'localhost')}/v1/responses", "", NOT_REACHED, "upgrade"),
    ]
