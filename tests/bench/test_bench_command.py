"""`sidecar bench` as it is run: simulator, daemon and bots as processes, and nothing of them left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.bench.histogram import Histogram
from sidecar.bench.result import read

SHORT = ("--for-s", "1", "--warm-up-s", "0.3")


def command(*argv: str, timeout: float = 50) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar", "bench", *argv], capture_output=True, text=True, timeout=timeout, check=False
    )


def of(*argv: str) -> Any:
    """Its JSON; every call had its terminal."""
    done = command("--json", *argv)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert done.stderr == ""  # no terminal, no progress
    return json.loads(done.stdout)


def folder_of(pid: int) -> Path:
    """Where the bench lives that started this process: its arguments say so. Other benches may run meanwhile."""
    arguments = Path(f"/proc/{pid}/cmdline").read_text()
    (folder,) = set(re.findall(r"/tmp/sidecar-bench-[^/\0]+", arguments))
    return Path(folder)


@pytest.mark.parametrize("client", ["async", "blocking", "wire"])
def test_every_kind_of_bot_measures_every_token(client: str, tmp_path: Path) -> None:
    """A stream of stamped tokens: each begun call ends, each token has its one-way time, each process its cost."""
    out = tmp_path / "result.json"
    found = of("--rate", "20", "--tokens", "5", "--cadence-ms", "5", "--client", client, "--out", str(out), *SHORT)
    counted = found["repetitions"][0]["counted"]
    assert counted["started"] == counted["scheduled"] == sum(counted["terminals"].values()) > 0
    assert set(counted["terminals"]) == {"done stop"}
    assert counted["unfinished"] == counted["fused"] == counted["unlike"] == 0
    histograms = {name: Histogram.decode(text) for name, text in counted["histograms"].items()}
    assert histograms["token_us"].n == 5 * counted["started"]
    assert histograms["first_us"].n == histograms["total_us"].n == histograms["start_us"].n == counted["started"]
    assert {cost["name"] for cost in found["repetitions"][0]["costs"]} == {"simulator", "daemon", "bot 0"}
    assert all(cost["cpu_s"] > 0 and cost["rss_end_mib"] > 5 for cost in found["repetitions"][0]["costs"])
    assert found["load"]["client"] == client
    assert found["machine"]["cores"] >= 1
    assert read(out).ok


def test_several_bots_share_the_load_and_their_histograms_are_one() -> None:
    """Two processes, evenly spread calls, two repetitions: exactly the calls that the schedule has."""
    found = of(
        "--short", "--rate", "40", "--arrivals", "constant", "--clients", "2", "--repetitions", "2",
        "--for-s", "1", "--warm-up-s", "0.5",
    )  # fmt: skip
    for repetition in found["repetitions"]:
        assert repetition["counted"]["started"] == 40
        assert repetition["counted"]["warm_up"] == 20
        assert Histogram.decode(repetition["counted"]["histograms"]["total_us"]).n == 40
    assert found["histograms"]["total_us"]["n"] == 80
    assert len(found["figures"]["total_us.p50"]) == 2
    assert [repetition["seed"] for repetition in found["repetitions"]] == [1, 2]


def test_repetitions_are_added_so_that_two_builds_can_take_turns(tmp_path: Path) -> None:
    """The second run goes on with the next seed; another load is not added, and nothing is overwritten."""
    out = tmp_path / "a.json"
    shape = ("--short", "--arrivals", "constant", *SHORT, "--out", str(out), "--append")
    of("--rate", "20", *shape)
    of("--rate", "20", *shape)
    kept = read(out)
    assert [one.seed for one in kept.repetitions] == [1, 2]
    assert kept.counted.started == 40
    refused = command("--rate", "30", *shape)
    assert refused.returncode == 2
    assert "rate: 20.0 and 30.0" in refused.stderr
    assert read(out) == kept


def test_a_deadline_that_cannot_be_met_is_measured_and_never_early() -> None:
    """Answers of a second under a deadline of 100 ms: every call ends deadline_exceeded, and by how much is known."""
    found = of("--rate", "20", "--timeout-ms", "100", *SHORT)
    counted = found["repetitions"][0]["counted"]
    assert set(counted["terminals"]) == {"failed deadline_exceeded"}
    assert Histogram.decode(counted["histograms"]["late_us"]).n == counted["started"]
    assert counted["early"] == 0


def test_the_fuse_is_told() -> None:
    """With one call open at most, others are not begun, and the result is not to be trusted."""
    found = of("--rate", "40", "--tokens", "20", "--max-open", "1", *SHORT)
    counted = found["repetitions"][0]["counted"]
    assert counted["fused"] > 0
    assert counted["started"] < counted["scheduled"]
    assert found["trustworthy"] is False


def test_with_a_configuration_of_ones_own(tmp_path: Path) -> None:
    """A daemon started with the file, on an endpoint of its own; nothing asks for money on loopback."""
    port_file = tmp_path / "port"
    simulator = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "sim", "--port-file", str(port_file), "--tokens", "4", "--ttft-ms", "0",
         "--cadence-ms", "2", "--for-s", "60"], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (port_file.exists() and port_file.read_text().strip()):
            assert simulator.poll() is None
            time.sleep(0.02)
        file = tmp_path / "mine.toml"
        file.write_text(
            f'[[upstream]]\nname = "mine"\nurl = "ws://127.0.0.1:{int(port_file.read_text())}/v1/chat?stamp=1"\n'
            'dialect = "chat"\n[[route]]\nname = "r"\ntargets = [ { upstream = "mine", model = "m" } ]\n'
        )
        found = of("-c", str(file), "--route", "r", "--rate", "20", "--stamps", *SHORT)
    finally:
        simulator.terminate()
        simulator.wait()
    counted = found["repetitions"][0]["counted"]
    assert Histogram.decode(counted["histograms"]["token_us"]).n == 4 * counted["started"] > 0
    assert {cost["name"] for cost in found["repetitions"][0]["costs"]} == {"daemon", "bot 0"}


FAR = """
[[upstream]]
name = "far"
url = "wss://example.invalid/v1/responses"
dialect = "responses"
[[route]]
name = "default"
max_output_tokens = 100
targets = [ { upstream = "far", model = "m" } ]
"""


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--rate", "-1"], 2, "--rate -1.0"),
        (["--rate", "x"], 2, "--rate"),
        (["--for-s", "0"], 2, "--for-s"),
        (["--repetitions", "0"], 2, "--repetitions"),
        (["--stamps", "--short"], 2, "--stamps"),
        (["--fail-above", "1.1"], 2, "--compare"),
        (["--append"], 2, "--out"),
        (["--out", "/nonexistent/x"], 2, "--out"),
        (["--out", "/"], 2, "--out"),
        (["--endpoint", "tcp://127.0.0.1:1", "--rate", "1", "--yes"], 2, "ipc:///PATH"),
        (["--endpoint", "/nonexistent/s.sock", "--rate", "1", "--yes"], 3, "no daemon at /nonexistent/s.sock"),
        (["--endpoint", "/nonexistent/s.sock", "--rate", "1"], 2, "--yes"),
        (["--endpoint", "/nonexistent/s.sock"], 2, "give --rate"),
        (["--endpoint", "/x", "-c", "y", "--rate", "1"], 2, "one of them"),
        (["--endpoint", "/x", "--rate", "1", "--cadence-ms", "5"], 2, "--cadence-ms"),
        (["-c", "/nonexistent.toml", "--rate", "1"], 78, "/nonexistent.toml"),
        (
            ["-c", "FAR", "--rate", "10", "--for-s", "8"],
            2,
            "100 calls: about 5,000 tokens of prompts and at most 10,000",
        ),
        (["-c", "FAR", "--rate", "10", "--tokens", "20"], 2, "at most 2,400"),
        (["-c", "FAR", "--rate", "10", "--route", "nix"], 2, "one of default"),
        (["--compare", "/nonexistent/a", "/nonexistent/b"], 2, "/nonexistent/a"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    argv: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Wrong values, missing files, nobody there, money: one line that says the mend, and the status."""
    from sidecar.cli import bench

    file = tmp_path / "far.toml"
    file.write_text(FAR)
    make, made = tempfile.mkdtemp, []
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *where: made.append(make(*where)) or made[-1])
    try:
        found = bench.run([str(file) if word == "FAR" else word for word in argv])
    except SystemExit as left:  # argparse's own
        found = int(left.code or 0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert found == status
    assert said in capsys.readouterr().err
    assert not any(Path(folder).exists() for folder in made)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_interrupted(how: signal.Signals) -> None:
    """All processes end, also when it is killed; told to stop, it takes its folder away and says so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "bench", "--for-s", "60"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    children: list[int] = []
    deadline = time.monotonic() + 30
    while len(children) < 3:  # simulator, daemon, bot
        assert process.poll() is None
        assert time.monotonic() < deadline
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        time.sleep(0.02)
    folder = folder_of(children[0])
    assert folder.is_dir()
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while any(runs(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if how is signal.SIGKILL:
        shutil.rmtree(folder)  # nobody was left who could
    else:
        assert process.returncode == 130
        assert "interrupted" in said
        assert not folder.exists()


def runs(pid: int) -> bool:
    """The process is there and no zombie that its new parent has not buried yet."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def begun(*argv: str) -> tuple[subprocess.Popen[str], int]:
    """Run it in the background; returns once its bot has begun to call, with the pid of the daemon."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "bench", "--json", "--warm-up-s", "0", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    children: list[int] = []
    while len(children) < 3 or not connected(children[2]):  # simulator, daemon, bot
        assert process.poll() is None
        assert time.monotonic() < deadline
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        time.sleep(0.02)
    return process, children[1]


def test_a_stall_is_felt_by_every_call_that_was_due_meanwhile() -> None:
    """The daemon is stopped for a second: no coordinated omission. A closed loop would have shown one slow call."""
    process, daemon = begun("--short", "--rate", "50", "--arrivals", "constant", "--for-s", "3")
    time.sleep(0.3)
    os.kill(daemon, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(daemon, signal.SIGCONT)
    out, _ = process.communicate(timeout=40)
    counted = json.loads(out)["repetitions"][0]["counted"]
    total = Histogram.decode(counted["histograms"]["total_us"])
    assert total.n == counted["started"] == 150
    assert total.between(500_000, float("inf")) >= 20  # 25 were due in the first half of that second
    assert total.max >= 950_000


def test_a_daemon_that_dies_is_told() -> None:
    """Calls end daemon_lost or daemon_unavailable by the client's own promise; the result says who died."""
    process, daemon = begun("--rate", "20", "--for-s", "2", "--timeout-ms", "1000")
    os.kill(daemon, signal.SIGKILL)
    out, _ = process.communicate(timeout=40)
    assert process.returncode == 0  # every call had its terminal, if only the client's own
    found = json.loads(out)
    assert found["trustworthy"] is False
    assert any("the daemon ended with -9" in problem for problem in found["repetitions"][0]["problems"])
    assert any(name.startswith("failed daemon_") for name in found["repetitions"][0]["counted"]["terminals"])


def connected(pid: int) -> bool:
    """The bot has opened its timer, which it does once it is told when to begin."""
    with contextlib.suppress(OSError):
        return any("timerfd" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return False
