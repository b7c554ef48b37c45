"""`sidecar halt`, `resume`, `upstream`, `drain` and `show clients` at a real control socket, and without one."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sidecar.cli import drain, halt, resume, show, upstream
from sidecar.config import Client, Config, Frontend, Route, Target, Upstream
from sidecar.core.halt import EVERY_LANE, Halt
from sidecar.logs import get_logger
from sidecar.service import orders
from sidecar.service.brakes import Brakes
from sidecar.service.clients import Clients
from sidecar.service.control import Control, Handler
from sidecar.service.control import show as shown
from sidecar.service.shown import clients_now
from sidecar.transport import halt_file
from sidecar.transport.zmq_socket import RouterPort
from sidecar.wire import Lane

ENTRY = Halt(frozenset({"entry"}), "bad prices")
CONFIGURATION = """
[frontend]
endpoint = "ipc://{folder}/sidecar.sock"
halt_file = "halt"

[[upstream]]
name = "a"
url = "ws://127.0.0.1:1/"
dialect = "chat"

[[route]]
name = "default"
targets = [ {{ upstream = "a", model = "m" }} ]
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine steers the commands."""
    for name in ("SIDECAR_ENDPOINT", "SIDECAR_FRONTEND__HALT_FILE", "STATE_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sidecar.config.source.DEFAULT_PATH", tmp_path / "etc" / "sidecar.toml")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one, as sockets want it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as made:
        yield Path(made)


class Switch:
    """A pool, as far as operators go."""

    enabled = True

    def set_enabled(self, enabled: bool) -> None:
        """Remember it."""
        self.enabled = enabled


class House:
    """What a daemon has for its operators, behind a real socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = f"ipc://{folder}/sidecar.sock"
        self.ended: list[frozenset[Lane]] = []
        self.drains = 0
        self.pool = Switch()
        self.brakes = Brakes(folder / "halt", end=self._end, log=get_logger())
        config = Config(
            frontend=Frontend(),
            upstream=[Upstream(name="a", url="wss://a.example", dialect="chat")],
            route=[Route(name="default", targets=[Target(upstream="a", model="m")])],
            client=[Client(user=0, lanes=("exit",)), Client(user=4_200_000_000)],
        )
        clients = Clients(config, jitter=lambda: 0.0)
        self.handlers: dict[str, Handler] = {
            "show": shown({"clients": lambda: clients_now(clients, [], 0.0)}),
            **orders.halting(self.brakes),
            **orders.switching({"a": self.pool}, config.route, get_logger()),
            **orders.draining(self._drain, lambda: 2, 30.0),
        }

    def _end(self, lanes: frozenset[Lane], message: str) -> int:
        self.ended.append(lanes)
        return 1

    def _drain(self) -> None:
        self.drains += 1

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Answering."""
        port = RouterPort(max_message_bytes=1 << 16)
        try:
            port.bind(f"ipc://{self.folder}/sidecar.control.sock")
            (self.folder / "sidecar.sock").touch()  # for patterns; nobody connects to it
            control = Control(port, self.handlers, session="s", mono_us=lambda: 7, wall_us=lambda: 8)
            async with trio.open_nursery() as nursery:
                await nursery.start(control.run)
                yield
                nursery.cancel_scope.cancel()
        finally:
            port.close()


Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a thread; its status, stdout and stderr."""

    async def ran(command: Callable[[list[str]], int], *argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = await trio.to_thread.run_sync(command, list(argv))
        out, err = capsys.readouterr()
        return status, out, err

    return ran


async def test_halt_and_resume_by_the_daemon(folder: Path, run: Run) -> None:
    """It acts, says how many calls it ended and where the halt is kept; resuming is as plain."""
    house = House(folder)
    async with house.served():
        where = ("--endpoint", house.endpoint)
        status, out, err = await run(halt.run, "--lane", "entry,research", "--reason", "bad prices", *where)
        assert (status, err) == (0, "")
        assert out == f"halted: entry, research; 1 call ended; reason: bad prices; kept in {folder}/halt\n"
        assert house.ended == [{"entry", "research"}]
        status, out, _ = await run(resume.run, "--lane", "research", "--json", *where)
        said = json.loads(out)
        assert (status, said["ok"], said["by"], said["lanes"]) == (0, True, "daemon", ["entry"])
        assert (await run(resume.run, *where))[:2] == (0, "nothing is halted\n")
        status, out, _ = await run(halt.run, "--lane", "exit", "--lane", "entry", *where)
        assert out.startswith("halted: exit, entry; ")
        assert (await run(halt.run, *where))[1].startswith("halted: exit, entry, research; ")


async def test_a_halt_that_is_not_kept_is_done_and_said(folder: Path, run: Run) -> None:
    """Status 0: it is halted. What a restart would do stands on stderr."""
    house = House(folder)
    (folder / "halt").mkdir()
    house.brakes = Brakes(None, end=house._end, log=get_logger())
    house.handlers.update(orders.halting(house.brakes))
    async with house.served():
        status, out, err = await run(halt.run, "--endpoint", house.endpoint)
    assert status == 0
    assert "kept" not in out
    assert "NOT KEPT over a restart: there is no place for a halt file" in err


async def test_what_cannot_be_resumed_is_refused(folder: Path, run: Run) -> None:
    """With what to do; the status says that it is not done."""
    (folder / "halt").mkdir()
    house = House(folder)
    async with house.served():
        status, _, err = await run(resume.run, "--endpoint", house.endpoint)
        assert status == 1
        assert "still halted" in err
        assert "Remove it yourself" in err
        status, out, _ = await run(resume.run, "--endpoint", house.endpoint, "--json")
        assert (status, json.loads(out)["ok"], json.loads(out)["exit"]) == (1, False, 1)


async def test_an_older_daemon_refuses_and_nothing_is_done_behind_its_back(folder: Path, run: Run) -> None:
    """It lives, so its word counts: what it does not know, its file would not do either."""
    house = House(folder)
    house.handlers.clear()
    async with house.served():
        status, _, err = await run(halt.run, "--endpoint", house.endpoint)
    assert status == 1
    assert "type: expected one of ping" in err
    assert not (folder / "halt").exists()


async def test_a_daemon_that_does_not_answer_is_halted_by_its_file(folder: Path, run: Run) -> None:
    """Within the timeout, and said; the daemon finds the file when it looks again."""
    house = House(folder)
    (folder / "sidecar.toml").write_text(CONFIGURATION.format(folder=folder))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(f"{folder}/sidecar.control.sock")
        silent.listen()
        began = time.monotonic()
        way = ("-c", str(folder / "sidecar.toml"), "--timeout-ms", "200")
        status, out, err = await run(halt.run, "--lane", "entry", "--reason", "bad prices", *way)
        assert time.monotonic() - began < 5
        assert (status, out) == (0, f"halted: entry; reason: bad prices; kept in {folder}/halt\n")
        assert "did not answer (no answer within 200 ms)" in err
        assert halt_file.read(folder / "halt") == ENTRY
        house.brakes.look()
        assert house.ended == [{"entry"}]
        status, out, _ = await run(halt.run, "--lane", "research", "--json", *way)
        said = json.loads(out)
        assert (said["by"], said["lanes"], said["reason"]) == ("file", ["entry", "research"], "bad prices")
        assert (await run(resume.run, "--lane", "entry", *way))[0] == 0
        assert halt_file.read(folder / "halt") == Halt(frozenset({"research"}), "bad prices")
        status, out, err = await run(resume.run, *way)
        assert (status, out) == (0, "nothing is halted\n")
        assert not (folder / "halt").exists()


async def test_a_file_by_name_asks_nobody(folder: Path, run: Run) -> None:
    """For the day on which nothing answers, and for whoever knows better."""
    file = folder / "stop"
    status, out, err = await run(halt.run, "--file", str(file))
    assert (status, out, err) == (0, f"halted: exit, entry, research; kept in {file}\n", "")
    file.write_text("what is this")
    assert (await run(resume.run, "--lane", "exit", "--file", str(file)))[0] == 0
    assert halt_file.read(file) == Halt(EVERY_LANE - {"exit"}, "what is this")
    assert (await run(resume.run, "--file", str(file)))[0] == 0
    assert (await run(resume.run, "--file", str(file)))[0] == 0


async def test_a_file_that_cannot_be_written_is_no_halt(folder: Path, run: Run) -> None:
    """Status 1, and why: a folder that is not there is probably not the daemon's."""
    status, out, err = await run(halt.run, "--file", str(folder / "nowhere" / "halt"))
    assert (status, out) == (1, "")
    assert "is no folder; is this the daemon's halt file?" in err
    (folder / "halt").mkdir()
    status, _, err = await run(halt.run, "--file", str(folder / "halt"))
    assert status == 1
    assert "could not be changed" in err


async def test_where_nobody_answers_and_no_file_is_known_nothing_is_guessed(folder: Path, run: Run) -> None:
    """Status 3, as of every command without a daemon; a file somewhere would be a halt that halts nobody."""
    for way in (("--endpoint", f"ipc://{folder}/sidecar.sock"), ("--control", f"ipc://{folder}/c.sock")):
        status, _, err = await run(halt.run, *way)
        assert status == 3
        assert "its halt file is not known" in err
        assert "--file" in err
    (folder / "sidecar.toml").write_text("nonsense")
    status, _, err = await run(halt.run, "-c", str(folder / "sidecar.toml"))
    assert status == 3
    assert "TOML" in err
    status, _, err = await run(halt.run, "--endpoint", "tcp://127.0.0.1:1")
    assert status == 3
    assert list(folder.iterdir()) == [folder / "sidecar.toml"]


async def test_every_daemon_at_once(folder: Path, run: Run) -> None:
    """Each that a client would find, one by one; the worst of them is the status."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    houses = [House(folder / name) for name in ("a", "b")]
    pattern = f"ipc://{folder}/*/sidecar.sock"
    async with houses[0].served():
        async with houses[1].served():
            status, out, _ = await run(halt.run, "--all", "--endpoint", pattern)
            assert status == 0
            assert [line.partition(": ")[0] for line in out.splitlines()] == [house.endpoint for house in houses]
            assert all(house.brakes.halted == EVERY_LANE for house in houses)
        status, out, _ = await run(resume.run, "--all", "--endpoint", pattern, "--json")
        assert status == 3
        assert [(each["ok"], each["exit"]) for each in json.loads(out)] == [(True, 0), (False, 3)]
    status, _, err = await run(halt.run, "--all", "--endpoint", f"ipc://{folder}/*/nobody.sock")
    assert status == 3
    assert "no daemon" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["--lane", "vip"],
        ["--lane", ""],
        ["--lane", "entry research exits"],
        ["--timeout-ms", "0"],
        ["--timeout-ms", "nan"],
        ["--all", "--file", "/x"],
        ["--all", "--instance", "a"],
        ["entry"],
    ],
)
def test_what_is_no_command_is_refused_before_anybody_is_asked(argv: list[str]) -> None:
    """Status 2, as argparse has it: somebody who misspelt a lane must not believe that it is halted."""
    with pytest.raises(SystemExit) as caught:
        halt.run(argv)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({}, ["--endpoint", "/run/sidecar/sidecar.sock"], "/var/lib/sidecar/halt"),
        ({}, ["--endpoint", "ipc:///run/sidecar-a/sidecar.control.sock"], "/var/lib/sidecar-a/halt"),
        ({}, ["--instance", "no-such-one"], "/s/sidecar-no-such-one/halt"),
        ({"SIDECAR_ENDPOINT": "/run/sidecar-b/sidecar.sock"}, [], "/var/lib/sidecar-b/halt"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, ["--endpoint", "/run/user/7/sidecar/s.sock"], "/s/sidecar/halt"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, ["--endpoint", "/run/user/7/sidecar-a/s.sock"], "/s/sidecar-a/halt"),
        ({}, ["--endpoint", f"/tmp/sidecar-{os.getuid()}/sidecar.sock"], "/s/sidecar/halt"),
        ({}, ["--endpoint", f"/tmp/sidecar-{os.getuid()}-a/sidecar.sock"], "/s/sidecar-a/halt"),
        ({}, ["--endpoint", "/tmp/sidecar-4200000000/sidecar.sock"], None),
        ({}, ["--endpoint", "/run/user/7/sidecar/s.sock"], None),
        ({}, ["--endpoint", "/srv/s.sock"], None),
        ({}, ["--control", "/run/sidecar/sidecar.control.sock"], None),
        ({"XDG_STATE_HOME": "", "HOME": ""}, ["--endpoint", f"/tmp/sidecar-{os.getuid()}/sidecar.sock"], None),
    ],
)
def test_where_the_halt_file_lies(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], argv: list[str], expected: str | None
) -> None:
    """The folder of the socket tells it, for units and for daemons of one's own; else it is not guessed."""
    import argparse

    from sidecar.cli import asking

    for name, value in {"XDG_STATE_HOME": "/s", **environ}.items():
        monkeypatch.setenv(name, value)
    parser = argparse.ArgumentParser()
    asking.add_options(parser)
    options = parser.parse_args(argv)
    if expected is None:
        with pytest.raises(halt.NotKnown):
            halt.place_of(options)
    else:
        assert halt.place_of(options) == Path(expected)


@pytest.mark.parametrize(
    ("named", "argv"),
    [(True, ["-c", "FILE"]), (False, []), (False, ["--instance", "a"]), (True, ["-c", "FILE", "--instance", "a"])],
)
@pytest.mark.parametrize("says", [True, False])
def test_the_configuration_says_where_the_halt_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool, argv: list[str], says: bool
) -> None:
    """The one that is named, or the one every daemon of this machine reads; else the place that is the default."""
    import argparse

    from sidecar.cli import asking

    file = tmp_path / ("mine" if named else "etc") / "sidecar.toml"
    file.parent.mkdir()
    text = CONFIGURATION.format(folder=tmp_path)
    file.write_text(text if says else text.replace('halt_file = "halt"', ""))
    parser = argparse.ArgumentParser()
    asking.add_options(parser)
    found = halt.place_of(parser.parse_args([str(file) if word == "FILE" else word for word in argv]))
    name = "sidecar-a" if "a" in argv else "sidecar"
    if says:
        assert found == file.parent / "halt"
    else:
        assert found in {tmp_path / "state" / name / "halt", Path(f"/var/lib/{name}/halt")}


def test_several_daemons_are_not_asked_by_accident(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of several must be named, or all of them."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "s.sock").touch()
    assert halt.run(["--endpoint", f"ipc://{folder}/*/s.sock"]) == 3
    assert "--all" in capsys.readouterr().err


async def test_an_upstream_is_taken_out_and_in(folder: Path, run: Run) -> None:
    """What no route is left without is said; an unknown name is refused."""
    house = House(folder)
    async with house.served():
        where = ("--endpoint", house.endpoint)
        status, out, err = await run(upstream.run, "disable", "a", *where)
        assert (status, house.pool.enabled) == (0, False)
        assert out == "a: disabled, until it is enabled or the daemon restarts\n"
        assert err == "note: nothing is left to serve route default\n"
        status, out, _ = await run(upstream.run, "enable", "a", "--json", *where)
        assert (status, house.pool.enabled, json.loads(out)["without"]) == (0, True, [])
        assert (await run(upstream.run, "enable", "a", *where))[1] == "a: enabled\n"
        status, _, err = await run(upstream.run, "disable", "b\x1b[2J", *where)
        assert (status, house.pool.enabled) == (1, True)
        assert "expected one of a" in err
    assert (await run(upstream.run, "disable", "a", *where))[0] == 3


async def test_a_drain_is_ordered(folder: Path, run: Run) -> None:
    """As SIGTERM does; without a daemon there is nothing to drain."""
    house = House(folder)
    async with house.served():
        status, out, _ = await run(drain.run, "--endpoint", house.endpoint)
        assert (status, house.drains) == (0, 1)
        assert out == "draining: 2 calls have 30.0 s to end; then the daemon ends\n"
        assert json.loads((await run(drain.run, "--endpoint", house.endpoint, "--json"))[1])["in_flight"] == 2
    assert (await run(drain.run, "--endpoint", house.endpoint))[0] == 3


async def test_clients_are_shown_with_their_names(folder: Path, run: Run) -> None:
    """Looked up here: the daemon knows uids; one without an account stays a number."""
    house = House(folder)
    async with house.served():
        status, out, _ = await run(show.run, "clients", "--json", "--endpoint", house.endpoint)
        rows = json.loads(out)
        assert status == 0
        assert [(row["uid"], row["user"]) for row in rows] == [
            (0, "root"), (4_200_000_000, None), ("*", "everybody else"),
        ]  # fmt: skip
        status, out, _ = await run(show.run, "clients", "--endpoint", house.endpoint)
        assert status == 0
        assert "root" in out
        status, _, err = await run(show.run, "calls", "--endpoint", house.endpoint)
        assert (status, err) == (1, "sidecar show: what: expected one of clients\n")


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff", b"{}", b'{"type":"pong"}', b'{"type":"failed","message":7}', b"["
     * 5000, b'{"type":"shown"}', b'{"type":"shown","data":{}}', b'{"type":"shown","data":[1]}'],
)  # fmt: skip
async def test_an_answer_that_is_none_is_a_refusal(folder: Path, run: Run, answer: bytes) -> None:
    """Whatever answers: a status and a sentence, no traceback, and no halt behind the back of what lives."""
    port = RouterPort(max_message_bytes=1 << 16)
    port.bind(f"ipc://{folder}/sidecar.control.sock")
    commands = [
        (halt.run, []), (resume.run, []), (upstream.run, ["disable", "a"]), (drain.run, []), (show.run, ["clients"]),
    ]  # fmt: skip

    async def talk_nonsense() -> None:
        while True:
            for incoming in await port.receive_batch(16):
                port.send(incoming.routing_id, answer, incoming.envelope)
            port.departures()
            port.settle()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk_nonsense)
            for command, argv in commands:
                status, out, err = await run(command, *argv, "--endpoint", f"ipc://{folder}/sidecar.sock")
                assert (status, out) == (1, "")
                assert err.startswith("sidecar ")
            nursery.cancel_scope.cancel()
    finally:
        port.close()
