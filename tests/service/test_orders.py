"""What operators may order, through the control socket's own reading: what it does, and what it answers to nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import Client, Config, Frontend, Route, Target, Upstream
from sidecar.logs import get_logger
from sidecar.service import orders
from sidecar.service.brakes import Brakes
from sidecar.service.clients import Clients
from sidecar.service.control import Control
from sidecar.service.ports import Peer
from sidecar.service.shown import clients_now
from sidecar.transport.bot_port import Incoming
from sidecar.wire import Call, Failed, Lane
from tests.fakes.bot_port import FakeBotPort


class Switch:
    """A pool, as far as operators go."""

    def __init__(self) -> None:
        self.enabled = True

    def set_enabled(self, enabled: bool) -> None:
        """Remember it."""
        self.enabled = enabled


class Desk:
    """A control socket with every order, over a halt file, two pools and two routes."""

    def __init__(self, folder: Path) -> None:
        self.ended: list[frozenset[Lane]] = []
        self.drains = 0
        self.pools = {"openai": Switch(), "xai": Switch()}
        self.brakes = Brakes(folder / "halt", end=self.end, log=get_logger())
        both = [Target(upstream="openai", model="m"), Target(upstream="xai", model="m")]
        routes = [Route(name="default", targets=both), Route(name="one", targets=both[:1])]
        handlers = {
            **orders.halting(self.brakes),
            **orders.switching(self.pools, routes, get_logger()),
            **orders.draining(self.drain, lambda: 12, 30.0),
        }
        self.control = Control(FakeBotPort(), handlers, session="s", mono_us=lambda: 7, wall_us=lambda: 8)

    def end(self, lanes: frozenset[Lane], message: str) -> int:
        """Two calls of each lane."""
        self.ended.append(lanes)
        return 2 * len(lanes)

    def drain(self) -> None:
        """Count it."""
        self.drains += 1

    def ask(self, **fields: Any) -> Any:
        """The answer, as the operator would read it."""
        return self.send(json.dumps(fields).encode())

    def send(self, payload: bytes) -> Any:
        """The answer to any bytes."""
        incoming = Incoming(b"r", (), payload, None)
        encoding, answer = self.control.answer(incoming)
        return json.loads(encoding.encode(answer)) if encoding.name == "json" else answer


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """One, over a folder of its own."""
    return Desk(tmp_path)


def test_halt_and_resume(desk: Desk, tmp_path: Path) -> None:
    """What is halted now, how many calls it ended, where it is kept."""
    answer = desk.ask(type="halt", lanes=["research", "entry"], reason="bad prices")
    assert answer == {
        "type": "halted",
        "lanes": ["entry", "research"],
        "reason": "bad prices",
        "ended": 4,
        "sticky": True,
        "file": str(tmp_path / "halt"),
        "problem": "",
    }
    assert desk.ask(type="resume", lanes=["research"])["lanes"] == ["entry"]
    assert desk.ask(type="resume")["lanes"] == []
    assert desk.ask(type="halt")["lanes"] == ["exit", "entry", "research"]


def test_a_halt_that_is_not_kept_says_so(desk: Desk, tmp_path: Path) -> None:
    """It holds, and a restart would forget it."""
    tmp_path.rmdir()
    answer = desk.ask(type="halt")
    assert (answer["lanes"], answer["ended"], answer["sticky"]) == (["exit", "entry", "research"], 6, False)
    assert "could not be written" in answer["problem"]
    tmp_path.mkdir()


def test_a_halt_that_cannot_be_undone_is_refused(desk: Desk, tmp_path: Path) -> None:
    """The file goes on to say it."""
    (tmp_path / "halt").mkdir()
    answer = desk.ask(type="resume")
    assert (answer["type"], answer["code"]) == ("failed", "invalid_request")
    assert "still halted" in answer["message"]


def test_upstreams_are_taken_out_and_in(desk: Desk) -> None:
    """The answer names the routes that nothing is left of; twice is once."""
    answer = desk.ask(type="upstream", name="openai", enabled=False)
    assert answer == {"type": "upstream", "name": "openai", "enabled": False, "without": ["one"]}
    assert desk.ask(type="upstream", name="openai", enabled=False) == answer
    assert desk.ask(type="upstream", name="xai", enabled=False)["without"] == ["default", "one"]
    assert [pool.enabled for pool in desk.pools.values()] == [False, False]
    assert desk.ask(type="upstream", name="openai", enabled=True)["without"] == []


def test_drain(desk: Desk) -> None:
    """Told what it waits for."""
    assert desk.ask(type="drain") == {"type": "draining", "in_flight": 12, "timeout_s": 30.0}
    assert desk.drains == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"type": "halt", "lanes": []}, "lanes: a list of some of exit, entry, research"),
        ({"type": "halt", "lanes": "entry"}, "lanes:"),
        ({"type": "halt", "lanes": ["entry", "vip"]}, "lanes:"),
        ({"type": "halt", "lanes": [["entry"]]}, "lanes:"),
        ({"type": "halt", "lanes": {"entry": 1}}, "lanes:"),
        ({"type": "halt", "reason": 7}, "reason: text"),
        ({"type": "halt", "reason": "x" * 5000}, "reason: text"),
        ({"type": "resume", "lanes": [None]}, "lanes:"),
        ({"type": "upstream"}, "enabled: true or false"),
        ({"type": "upstream", "name": "openai", "enabled": 1}, "enabled: true or false"),
        ({"type": "upstream", "name": "openai", "enabled": "no"}, "enabled: true or false"),
        ({"type": "upstream", "name": "opnai", "enabled": False}, "did you mean openai?"),
        ({"type": "upstream", "name": ["openai"], "enabled": False}, "expected one of openai, xai"),
        ({"type": "upstream", "enabled": False}, "expected one of openai, xai"),
        ({"type": "upstream", "name": "z" * 5000, "enabled": False}, "expected one of"),
        ({"type": "stop"}, "expected one of drain, halt, ping, resume, upstream"),
    ],
)
def test_what_is_no_order_changes_nothing(desk: Desk, tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    """A halt that is misspelt is refused, to somebody who reads the answer, and nothing is half done."""
    answer = desk.ask(**fields)
    assert (answer["type"], answer["code"]) == ("failed", "invalid_request")
    assert says in answer["message"]
    assert not desk.ended
    assert not desk.drains
    assert list(tmp_path.iterdir()) == []
    assert all(pool.enabled for pool in desk.pools.values())


KINDS = st.sampled_from(["halt", "resume", "upstream", "drain", "ping", "show", "", "HALT"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(["lanes", "reason", "name", "enabled", "nonce", "what"]), VALUES, max_size=5)


@given(KINDS, FIELDS)
@settings(max_examples=200)
def test_any_order_has_one_answer(tmp_path_factory: pytest.TempPathFactory, kind: str, fields: dict[str, Any]) -> None:
    """Whatever the fields hold: done, or refused in words; and the next one is served."""
    desk = Desk(tmp_path_factory.getbasetemp())
    answer = desk.ask(type=kind, **fields)
    assert answer["type"] in {"failed", "halted", "upstream", "draining", "pong"}
    assert desk.ask(type="resume")["lanes"] == []


@given(st.binary(max_size=200))
def test_any_bytes_have_one_answer(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    """Not one of them stops anything."""
    desk = Desk(tmp_path_factory.getbasetemp())
    assert desk.send(payload) is not None
    assert not desk.ended


class Held:
    """A call of somebody."""

    def __init__(self, uid: int, admitted: bool | None) -> None:
        self.peer, self.admitted = Peer(uid=uid, gid=0, pid=1), admitted


def test_show_clients_says_what_users_may_and_do() -> None:
    """In flight, waiting, started of late; a user who is over its limit can be told from one who is not."""
    config = Config(
        frontend=Frontend(max_calls_per_minute=100),
        upstream=[Upstream(name="a", url="wss://a.example", dialect="chat")],
        route=[Route(name="default", targets=[Target(upstream="a", model="m")])],
        client=[Client(user=7, lanes=("exit",), max_calls_in_flight=5)],
    )
    clients = Clients(config, jitter=lambda: 0.0)
    refused = clients.examine(Call(id="c", input="x", lane="research"), Peer(uid=7, gid=0, pid=1), 0.0)
    assert isinstance(refused, Failed)
    clients.examine(Call(id="c", input="x"), Peer(uid=8, gid=0, pid=1), 0.0)
    calls = [Held(8, admitted=True), Held(8, admitted=False), Held(8, admitted=None), Held(7, admitted=True)]
    bad = {"pid": 1, "upstream": "a", "model": "m", "for_ms": 700}
    rows = clients_now(clients, calls, 1.0, {8: [bad]})
    assert [row["barred"] for row in rows] == [[], [bad], []]
    assert [(row["uid"], row["in_flight"], row["queued"]) for row in rows] == [(7, 1, 0), (8, 1, 1), ("*", 0, 0)]
    assert rows[0] == {
        "uid": 7,
        "lanes": ["exit"],
        "in_flight": 1,
        "queued": 0,
        "max_calls_in_flight": 5,
        "calls_last_minute": 0,
        "max_calls_per_minute": 100,
        "refused": 1,
        "barred": [],
    }
