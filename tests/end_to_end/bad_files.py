"""Bad input of the operator and of the machine: configuration, credentials, the endpoint's path."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.end_to_end.borders import Bot, Table, default_ready, told
from tests.end_to_end.processes import Processes, route, until, upstream

CANARY = "sk-canary-9f3b7c1d5e"
NOBODY = 65534
T = TypeVar("T")

UP = '[[upstream]]\nname = "u"\nurl = "wss://api.example.com/v1/responses"\ndialect = "responses"\n'
ROUTE = '[[route]]\nname = "default"\ntargets = [ { upstream = "u", model = "m" } ]\n'

#: (tried, the file, words of the answer). Every one of them is exit 78, by `check` and by `serve`.
CONFIGURATIONS: list[tuple[str, str | bytes, str]] = [
    ("an empty file", "", "missing required field `upstream`"),
    ("not TOML", "[[upstream\nname = ", "TOML"),
    ("bytes that are not UTF-8", b"\xff\xfe[\x00f\x00", "UTF-8"),
    ("1 MB of brackets", "a = " + "[" * 1_000_000, ""),
    ("5 MB of comments", "# x\n" * 1_250_000 + UP + ROUTE, ""),
    ("an unknown table", UP + ROUTE + "[frontned]\n", "Did you mean `frontend`"),
    ("an unknown key", "[frontend]\nendpiont = 'x'\n" + UP + ROUTE, "Did you mean `endpoint`"),
    ("a wrong type", UP + "warm_connections = '8'\n" + ROUTE, "warm_connections"),
    ("a negative number", UP + "max_connections = -1\n" + ROUTE, "max_connections"),
    ("not a number", UP + "max_age_s = nan\n" + ROUTE, "max_age_s"),
    ("an integer beyond 64 bits", "[frontend]\nqueue_max = 99999999999999999999\n" + UP + ROUTE, "queue_max"),
    ("more warm than there may be", UP + "warm_connections = 9\nmax_connections = 3\n" + ROUTE, "more than max_conn"),
    ("an unknown dialect", UP.replace('"responses"', '"smtp"') + ROUTE, "dialect"),
    ("a scheme that is not spoken", UP.replace("wss:", "ftp:") + ROUTE, "is not spoken"),
    ("https:// and a WebSocket", UP.replace("wss:", "https:") + 'transport = "websocket"\n' + ROUTE, "contradicts"),
    ("ws:// to another machine", UP.replace("wss:", "ws:") + ROUTE, "loopback"),
    ("a password in the URL", UP.replace("api.", f"me:{CANARY}@api.") + ROUTE, "credential"),
    ("a key in the URL's query", UP.replace("responses\"\nd", f"responses?api_key={CANARY}\"\nd") + ROUTE, "secret"),
    ("a key as `credential`", UP + f'credential = "{CANARY * 4}"\n' + ROUTE, "looks like a secret"),
    ("an Authorization header", UP + f'headers = {{ Authorization = "Bearer {CANARY}" }}\n' + ROUTE, "credential"),
    ("a line break in a header", UP + 'headers = { X = "a\\r\\nHost: evil" }\n' + ROUTE, "line break"),
    ("a route to nowhere", UP + ROUTE.replace('"u"', '"v"'), "no upstream is named"),
    ("a route without targets", UP + '[[route]]\nname = "default"\ntargets = []\n', "targets"),
    ("two upstreams of one name", UP + UP + ROUTE, "is taken"),
    ("an option of no dialect", UP + ROUTE.replace('"m"', '"m", options = { temprature = 1 }'), "temperature"),
    ("a CA file that is missing", UP + '[upstream.tls]\nca_file = "/nowhere/ca.pem"\n' + ROUTE, "ca.pem"),
    ("a CA file that is no certificate", UP + '[upstream.tls]\nca_file = "/etc/passwd"\n' + ROUTE, "passwd"),
    ("a timeout of 0", UP + ROUTE + "timeout_ms = 0\n", "timeout_ms"),
]  # fmt: skip
QUICK_CONFIGURATIONS = {"not TOML", "an unknown key", "a password in the URL", "a route to nowhere"}


def parallel(act: Callable[[T], tuple[str, float]], items: Iterable[T]) -> Iterable[tuple[T, str, float]]:
    """`act` on each, two at once: a process start is all of it. The answers in order, with the time each took."""
    listed = list(items)
    with ThreadPoolExecutor(2) as pool:
        yield from ((item, *answer) for item, answer in zip(listed, pool.map(act, listed), strict=True))


def ended(done: subprocess.CompletedProcess[str]) -> str:
    """Exit status and what was said: as text and, when there is none, nothing."""
    said = " ".join((done.stderr or done.stdout).split()).removeprefix("sidecar: ")
    if CANARY in done.stderr + done.stdout:
        said = "THE SECRET WAS SAID"
    if "Traceback" in done.stderr:
        said = "Traceback: " + done.stderr.strip().splitlines()[-1]
    return f"exit {done.returncode}: {said}"


def configuration(table: Table, processes: Processes) -> None:
    """`check` and `serve` refuse each of them alike, and say where and what to write."""
    folder = processes.folder / "configurations"
    folder.mkdir()

    def one(item: tuple[str, str | bytes, str]) -> tuple[str, float]:
        _, text, _ = item
        path = folder / f"{CONFIGURATIONS.index(item)}.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        began = time.monotonic()
        answers = [ended(processes.run(command, "-c", str(path), XDG_RUNTIME_DIR=str(folder))) for command in
                   (("check",) if table.quick else ("check", "serve"))]  # fmt: skip
        took = 1000 * (time.monotonic() - began) / len(answers)
        same = answers[0].replace(str(folder) + "/", "")
        return same if len(set(answers)) == 1 else f"check: {same}; serve: {answers[-1]}", took

    chosen = [c for c in CONFIGURATIONS if not table.quick or c[0] in QUICK_CONFIGURATIONS]
    began = time.monotonic()
    for (tried, _, words), answered, took in parallel(one, chosen):
        table.note("configuration", tried, _short(answered), f"^exit 78: .*{words}", began, took)
        began = time.monotonic()
    if table.quick:
        return
    for tried, path, words in (
        ("a file that is missing", folder / "nowhere.toml", "nowhere.toml"),
        ("a directory for a file", folder, "configurations"),
    ):
        table.try_("configuration", tried, lambda path=path: _short(ended(processes.run("check", "-c", str(path)))),
                   f"^exit 78: .*{words}")  # fmt: skip
    good = folder / "good.toml"
    good.write_text(UP + ROUTE)
    for name, value, expected in (
        ("SIDECAR_FRONTEND__QUEUE_MAX", "many", "^exit 78: .*QUEUE_MAX"),
        ("SIDECAR_UPSTREAM__URL", "wss://x/", "^exit 78: .*file only"),
        ("SIDECAR_FRONTED__GROUP", "x", "^exit 78: .*no table"),
    ):
        table.try_("configuration", f"the environment: {name}={value}",
                   lambda env={name: value}: _short(ended(processes.run("check", "-c", str(good), **env))),
                   expected)  # fmt: skip
    for number, argv in enumerate((("--endpoint",), ("--frobnicate",), ("-c",))):
        table.try_("configuration", f"the command line: serve {' '.join(argv)}",
                   lambda argv=argv: ended(processes.run("serve", *argv)).partition("error: ")[2] + " (exit 2)",
                   r"argument.*exit 2" if number != 1 else r"unrecognized.*exit 2")  # fmt: skip


def _short(text: str) -> str:
    text = text.replace(str(Path.cwd()), ".")
    return text if len(text) < 260 else text[:240] + " ..."


# ---------------------------------------------------------------------------------------------- endpoint path


def endpoints(table: Table, processes: Processes) -> None:
    """`serve` at a path that cannot be used: an exit status and a line; the daemon beside lives on."""
    place = processes.folder / "endpoints"
    place.mkdir(mode=0o755)
    for name in ("directory.sock", "full"):
        (place / name).mkdir()
    (place / "regular").mkdir()
    (place / "regular/s.sock").write_text("mine")
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    (place / "loop").mkdir()
    (place / "loop/s.sock").symlink_to(place / "loop/s.sock")
    (place / "open").mkdir()
    (place / "open/other").write_text("")
    (place / "open").chmod(0o777)
    (place / "locked").mkdir()
    (place / "locked/s.sock.lock").symlink_to("/etc/passwd")
    (place / "file").write_text("")
    rows = [
        ("a path of 200 bytes", f"ipc:///tmp/{'x' * 200}.sock", "^exit 78: .*107 bytes"),
        ("100 bytes, but its control socket would have 108", f"ipc:///tmp/{'x' * 90}.sock", "^exit 78: .*control"),
        ("a relative path", "ipc://s.sock", "^exit 78: .*absolute"),
        ("an empty path", "ipc://", "^exit 78: .*absolute"),
        ("an abstract socket", "ipc://@sidecar", "^exit 78: .*absolute"),
        ("tcp://", "tcp://127.0.0.1:5555", "^exit 78: .*ipc"),
        ("a directory lies there", f"ipc://{place}/directory.sock", "^exit 78: .*not a socket"),
        ("a regular file lies there", f"ipc://{place}/regular/s.sock", "^exit 78: .*not a socket"),
        ("a symbolic link lies there", f"ipc://{place}/loop/s.sock", "^exit 78: .*not a socket"),
        ("the folder is a symbolic link", f"ipc://{place}/link/s.sock", "^exit 78: .*symbolic link"),
        ("the folder is a file", f"ipc://{place}/file/s.sock", "^exit 78: .*file"),
        ("the folder's folder is missing", f"ipc://{place}/a/b/s.sock", "^exit 78: .*cannot be made"),
        ("a folder where everybody may write", f"ipc://{place}/open/s.sock", "^exit 78: .*others may write|^serves"),
        ("/tmp itself", "ipc:///tmp/sidecar-bad-input.sock", "^exit 78: .*others may write"),
        ("a folder nothing can be made in", "ipc:///proc/sidecar/s.sock", "^exit 78: .*cannot be made"),
        ("the lock file is a symbolic link to another's file", f"ipc://{place}/locked/s.sock", "^exit 78: .*lock"),
        ("held by another daemon", processes.endpoint, r"^exit 75: .*another daemon holds it \(pid \d+\)"),
    ]
    if os.geteuid() == 0:
        (place / "theirs").mkdir()
        os.chown(place / "theirs", NOBODY, NOBODY)
        rows.append(("a folder of another user", f"ipc://{place}/theirs/s.sock", "^exit 78: .*belongs to uid"))
    else:
        (place / "read-only").mkdir()
        (place / "read-only/other").write_text("")
        (place / "read-only").chmod(0o500)
        rows.append(("a read-only folder", f"ipc://{place}/read-only/s.sock", "^exit 78: .*cannot be opened"))
    if table.quick:
        rows = [
            row for row in rows if row[0] in {"a relative path", "a regular file lies there", "held by another daemon"}
        ]
    configured = place / "c.toml"
    configured.write_text(UP + "warm_connections = 0\n" + ROUTE)

    def one(row: tuple[str, str, str]) -> tuple[str, float]:
        began = time.monotonic()
        return _serve_for_a_moment(processes, configured, row[1]).replace(str(place), "..."), 1000 * (
            time.monotonic() - began
        )

    began = time.monotonic()
    for (tried, _, expected), answered, took in parallel(one, rows):
        table.note("endpoint path", tried, _short(answered), expected, began, took)
        began = time.monotonic()
    if not table.quick:
        group = place / "group.toml"
        group.write_text(f'[frontend]\nendpoint = "ipc://{place}/g/s.sock"\ngroup = "no-such-group"\n' + UP + ROUTE)
        table.try_("endpoint path", "a group that does not exist",
                   lambda: _short(ended(processes.run("serve", "-c", str(group)))), "^exit 78: .*no group")  # fmt: skip
        table.try_("endpoint path", "a stale socket, nobody behind it", lambda: _stale(processes, configured, place),
                   "^serves, mode 0600")  # fmt: skip
    assert (place / "regular/s.sock").read_text() == "mine", "somebody's file was touched"


def _serve_for_a_moment(processes: Processes, configured: Path, endpoint: str) -> str:
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "serve", "-c", str(configured), "--endpoint", endpoint],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=processes.environ(),
    )  # fmt: skip
    path = Path(endpoint.removeprefix("ipc://"))
    deadline = time.monotonic() + 15
    serving = False
    while process.poll() is None and time.monotonic() < deadline and not serving:
        time.sleep(0.02)
        serving = endpoint != processes.endpoint and path.exists() and path.is_socket() and _listens(path)
    if serving:
        mode = stat.S_IMODE(path.lstat().st_mode)
        folder = stat.S_IMODE(path.parent.lstat().st_mode)
        process.terminate()
        process.communicate(timeout=10)
        return f"serves, mode {mode:04o}, folder {folder:04o}"
    if process.poll() is None:
        process.kill()
    out, err = process.communicate(timeout=10)
    return ended(subprocess.CompletedProcess([], process.returncode, out, err))


def _listens(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _stale(processes: Processes, configured: Path, place: Path) -> str:
    import socket

    (place / "stale").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(place / "stale/s.sock"))
    return _serve_for_a_moment(processes, configured, f"ipc://{place}/stale/s.sock")


# ---------------------------------------------------------------------------------------------- credentials


def credentials(table: Table) -> None:
    """One daemon, an upstream for each bad credential: what a call to it is told, and what the log says."""
    with Processes() as processes:
        place = processes.folder / "keys"
        place.mkdir(mode=0o700)

        def key(name: str, content: bytes = CANARY.encode(), mode: int = 0o600) -> str:
            path = place / name
            path.write_bytes(content)
            path.chmod(mode)
            return f'{{ file = "{path}" }}'

        (place / "symlink").symlink_to(place / "fine")
        (place / "directory").mkdir()
        os.mkfifo(place / "fifo", 0o600)
        key("fine")
        sources = {
            "missing": (f'{{ file = "{place}/nowhere" }}', "cannot be opened"),
            "empty": (key("empty", b""), "is empty"),
            "blanks and a newline": (key("blank", b" \n\n"), "is empty"),
            "world readable": (key("readable", mode=0o604), "everybody can read"),
            "group writable": (key("writable", mode=0o620), "others can write"),
            "a symbolic link": (f'{{ file = "{place}/symlink" }}', "symbolic link"),
            "two lines": (key("two", f"{CANARY}\n{CANARY}\n".encode()), "not one line"),
            "a control character in it": (key("control", f"{CANARY}\x07x".encode()), "not one line"),
            "a directory": (f'{{ file = "{place}/directory" }}', "not a regular file"),
            "a FIFO nobody writes to": (f'{{ file = "{place}/fifo" }}', "not a regular file"),
            "10 MB": (key("large", b"k" * 10_000_000), "larger than 64 KiB"),
            "/dev/zero": ('{ file = "/dev/zero" }', "not a regular file"),
            "an environment variable that is not set": ('{ env = "NO_SUCH_KEY" }', "is not set"),
            "an environment variable that is empty": ('{ env = "EMPTY_KEY" }', "is empty"),
            "a name, without $CREDENTIALS_DIRECTORY": ('"openai"', "CREDENTIALS_DIRECTORY is not set"),
            "a command that does not exist": ('{ command = ["/nowhere/pass"] }', "cannot be run"),
            "a command that fails, with the key on stderr": (
                f'{{ command = ["/bin/sh", "-c", "cat {place}/fine >&2; exit 3"] }}', "ended with status 3"),
            "a command that prints nothing": ('{ command = ["/bin/true"] }', "is empty"),
            "a command that prints without end": ('{ command = ["/bin/sh", "-c", "yes"] }', "said more than"),
            "a command that hangs": ('{ command = ["/bin/sleep", "60"] }', "took longer than 10 s"),
            "a key the upstream refuses": ('{ env = "WRONG_KEY" }', "401"),
        }  # fmt: skip
        if os.geteuid() == 0:
            theirs = key("theirs")
            os.chown(place / "theirs", NOBODY, NOBODY)
            sources["of another user"] = (theirs, "belongs to uid")
        if table.quick:
            sources = {name: sources[name] for name in ("missing", "world readable", "a symbolic link", "two lines")}
        port = processes.relay("--ttft-ms", "5", "--cadence-ms", "1", "--tokens", "6", "--key", CANARY)
        url = f"ws://127.0.0.1:{port}/v1/responses"
        text = upstream("good", url, more=f"credential = {key('good')}") + route("good")
        for number, (source, _) in enumerate(sources.values()):
            text += upstream(f"u{number}", url, more=f"credential = {source}")
            text += route(f"u{number}").replace('"default"', f'"r{number}"')
        secrets = {"EMPTY_KEY": "", "WRONG_KEY": CANARY + "-old"}
        daemon = processes.daemon(text, ready=False, **secrets)
        log = processes.folder / "daemon.log"
        until(lambda: default_ready(processes), daemon, log)
        checked = processes.run("check", "-c", str(processes.folder / "sidecar.toml"), "--json", **secrets)
        notes = json.loads(checked.stdout)["notes"]
        with table.beside(processes.endpoint, lambda: daemon.poll() is None):
            for number, (tried, (_, words)) in enumerate(sources.items()):
                table.try_("credentials", tried, lambda n=number, words=words: _refused(processes, n, words, notes),
                           rf"^failed (upstream_auth|no_connection|deadline_exceeded).*log: .*{words}")  # fmt: skip
        said = processes.log() + checked.stdout + checked.stderr
        table.note("credentials", "is the secret in the log or in what `check` says?",
                   "YES" if CANARY in said else "nowhere", "^nowhere$", time.monotonic())  # fmt: skip


def _refused(processes: Processes, number: int, words: str, notes: list[str]) -> str:
    with Bot(processes.endpoint) as bot:
        answer = told(
            bot.converse({"type": "call", "id": "a", "input": "x", "route": f"r{number}", "timeout_ms": 1500})
        )
    name = f"u{number}"

    def lines() -> list[str]:
        return [line for line in processes.log().splitlines() if name in _words(line) and words in line]

    deadline = time.monotonic() + 25  # a command that hangs is given 10 s, and 10 more when it is read again
    while not lines() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = lines()
    line = found[0] if found else "NOTHING of it"
    noted = "; check notes it" if any(f"upstream {name}:" in note for note in notes) else ""
    return f"{answer.removeprefix('accepted · ')}; log: {_plain(line, processes)}{noted}"


def _words(line: str) -> set[str]:
    return set(line.replace('"', " ").replace("=", " ").replace(",", " ").split())


def _plain(line: str, processes: Processes) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    kept = {
        k: v for k, v in fields.items() if k in ("event", "error", "reason", "problem", "stage", "status", "detail")
    }
    return ", ".join(f"{k} {v}" for k, v in kept.items()).replace(str(processes.folder), "...")
