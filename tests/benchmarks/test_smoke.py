"""The benchmarks still run: their quick modes, judged by counts and never by times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
#: Seconds each, of what changes rarely: run when those benchmarks do, and by whoever asks for all.
LONG = pytest.mark.skipif(not os.environ.get("SIDECAR_ALL_SMOKE"), reason="long: set SIDECAR_ALL_SMOKE=1")
COMMANDS = (
    "backup", "choose_chaos", "client_cost", "control_lag", "deadlines", "exit_lane", "footprint", "growth", "guard",
    "herd", "hostile", "hot_path", "hundred_million", "million_tokens", "peers", "ports", "probe_under_load", "restart",
    "short_call", "two_ways", "warmth", "workers",
)  # fmt: skip


def run(name: str, *argv: str) -> Any:
    """The JSON of `python tests/benchmarks/NAME.py --quick --json ARGV`, which must end with 0."""
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), "--quick", "--json", *argv],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str) -> None:
    """`--help` names the flags that all of them share, and starts nothing."""
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), "--help"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--json" in done.stdout


def test_a_burst_on_warm_connections_pays_no_handshake() -> None:
    """The simulator's own count; and a rotation loses no call."""
    found = run("warmth")
    assert found["burst"]["handshakes_during"] == 0
    assert found["burst"]["codes"] == {"done": found["burst"]["calls"]}
    assert found["rotation"]["handshakes"] > 0
    assert found["rotation"]["codes"] == {"done": found["rotation"]["calls"]}


def test_every_call_has_one_terminal_and_none_is_early() -> None:
    """Deadlines beside a failing half; the breaker may open in so short a run, so what they end with is not asked."""
    done = subprocess.run(
        [sys.executable, str(HERE / "deadlines.py"), "--quick", "--json", "--calls", "300"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["terminals"] == found["calls"]
    assert found["early"] == 0
    assert found["promises"]["exactly one terminal for each call"]


def test_the_two_relays_forward_every_token() -> None:
    """Both, so that the comparison is one of equal work."""
    found = run("hot_path", "--only", "saturation")
    assert found["saturation"]["failed"] == 0
    assert set(found["saturation"]["ratio"]) == {"1", "4"}


def test_tokens_are_all_there_at_the_end() -> None:
    """60,000 of them; the memory they cost is the full run's matter."""
    found = run("million_tokens")
    assert found["tokens"] == 60_000
    assert found["failed"] == 0


def test_choose_always_chooses() -> None:
    """Killed, stopped, restarted: each call has a choice and a reason."""
    found = run("choose_chaos", "--calls", "100")
    assert sum(sum(reasons.values()) for reasons in found["reasons"].values()) == sum(found["calls"].values())
    assert found["bad"] == []


def test_each_short_call_is_answered() -> None:
    """With and without a log line per call; and the stages of the table add up to something."""
    found = run("short_call", "--calls", "100", "--stages")
    measured = {(one["log"], one["in_flight"]) for one in found["runs"]}
    assert measured == {(log, in_flight) for log in ("on", "off") for in_flight in (1, 8, 32)}
    assert {"intake: read a call", "codec: decode", "log line", "glue", "sum", "whole"} <= set(found["stages_us"])


@LONG
def test_two_daemons_and_pinned_ones_serve_every_call() -> None:
    """One file, two daemons: nothing is lost, and every token of every paced stream is timed."""
    found = run("workers")
    assert found["throughput"]["bad"] == 0
    assert set(found["throughput"]["flood"]) == {"1", "2", "2 pinned"}
    assert found["pinning"]["every_token_arrived"]


def test_each_client_gets_every_token_and_call() -> None:
    """AsyncClient, Client and the bare wire, each in a process of its own."""
    found = run("client_cost")
    assert set(found["medians"]) == {"wire", "asyncio", "blocking"}
    assert all(found["promises"].values())


@LONG
def test_timers_probes_and_deadlines_are_measured_beside_a_flood() -> None:
    """At both levels, with an end for every short call; how late they were is the full run's matter."""
    found = run("control_lag")
    levels = found["runs"]["here"][0]["levels"]
    assert all(one["lag_ms"]["n"] > 0 and one["probe_ms"]["n"] > 0 for one in levels.values())
    assert all(set(one["codes"]) == {"deadline_exceeded"} for one in levels.values())


def test_memory_of_connections_and_streams_is_read() -> None:
    """Over TLS, which brings a certificate authority along; no connection is lost, every stream flows."""
    found = run("footprint", "--schemes", "wss")
    here = found["runs"]["here"]
    assert all(one["memory"]["uss"] > 0 and one["lost"] == 0 for runs in here["wss"].values() for one in runs)
    assert [one["flowing"] for one in here["streams"]] == [8]


@LONG
def test_every_token_of_every_number_of_streams_came() -> None:
    """Each way to flow, by our client."""
    found = run("growth", "--bot", "asyncio")["runs"]["here"]
    assert set(found) == {"cadence", "total", "flood"}
    assert all(one["whole"] for by in found.values() for runs in by.values() for one in runs)


def test_the_long_run_counts_every_token() -> None:
    """60,000 of its hundred million, with samples on the way."""
    found = run("hundred_million")
    assert found["tokens"] == 60_000
    assert len(found["samples"]) > 5


def test_the_guard_counts_the_same_as_the_suite() -> None:
    """Its command agrees with the committed budget."""
    found = run("guard")
    assert found["complaints"] == []
    assert found["counts"]["responses one"]["python"] > 0


@LONG
def test_direct_clients_and_ours_are_compared_without_any_peer() -> None:
    """Nothing is installed; rows that need a peer say so, the others have a ratio."""
    found = run("peers")
    rows = {row["what"]: row for row in found["rows"]}
    assert all(row["ratios"] or row["verdict"].startswith("not measured: ") for row in rows.values())
    assert rows["token p50, sidecar + AsyncClient / direct `websockets`, 4 streams"]["ratios"]
    assert rows["CPU per short request, sidecar / nginx"]["verdict"] == "not measured: nginx: not asked for"


def test_every_token_came_over_both_sockets() -> None:
    """Those of libzmq and of our own, to pyzmq and to our client."""
    found = run("ports")["medians"]
    assert len(found["stages"]) == 6
    assert all(set(by) == {"libzmq", "native"} for by in found["stages"].values())


def test_late_first_tokens_are_rescued_by_backups() -> None:
    """Over another connection and over another upstream; only routes with backups make attempts beyond one per call."""
    found = run("backup")["routes"]
    assert {name: one["codes"] for name, one in found.items()} == {name: {"done": 100} for name in found}
    assert {name for name, one in found.items() if one["backup_used"]} == {"one target, with", "two targets, with"}
    assert set(found["two targets, with"]["upstreams"]) == {"d1", "d2"}


def test_exit_calls_are_answered_beside_ten_times_the_research() -> None:
    """All of them, while research is shed; how soon is the full run's matter."""
    found = run("exit_lane")
    assert all(set(codes) == {"done"} for codes in found["exit"].values())
    assert found["research"]["beside research"]["overloaded"] > found["research"]["beside research"]["done"]


def test_a_restart_loses_no_call() -> None:
    """Of one daemon, or of two one after the other: each call has its one terminal, and here all are answered."""
    found = run("restart")
    assert {row: one["codes"] for row, one in found["rows"].items()} == {
        row: {"done": one["offered"]} for row, one in found["rows"].items()
    }
    assert {row: one["restarts"] for row, one in found["rows"].items()} == {"one, SIGTERM": 1, "two, SIGTERM": 2}


def test_a_herd_meets_an_outage() -> None:
    """One daemon and three, in virtual time: each call ends, and a healthy second target answers all of them."""
    rows = run("herd")["rows"]
    assert {row["hosts"] for row in rows} == {1, 3}
    assert all(row["unended"] == 0 and row["connects"]["outage"]["mean"] > 0 for row in rows)
    assert all(row["served"] == 1 for row in rows if row["scenario"] == "two targets")
    assert all(row["served"] == 0 for row in rows if row["scenario"] == "dark")


@LONG
def test_each_way_is_asked_over_each_line() -> None:
    """Cold and warm, with TLS and without: as many calls as were to be."""
    found = run("two_ways")
    assert len(found["ways"]) == 6
    for way in found["ways"].values():
        assert {state: [way[state][trip]["n"] for trip in ("0", "20", "80")] for state in ("warm", "cold")} == {
            "warm": [4, 4, 2], "cold": [1, 1, 1],
        }  # fmt: skip


def test_every_file_here_is_told_of() -> None:
    """In docs/benchmarks.md, as a command or as a part of one."""
    told = (HERE.parents[1] / "docs" / "benchmarks.md").read_text()
    files = {path.name for path in HERE.glob("*.py")} - {path.name for path in HERE.glob("test_*.py")}
    assert not {name for name in files if f"`{name}`" not in told}
