"""The log: only fields from the list, one line each, never blocking."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar import logs
from sidecar.config import Log
from sidecar.credentials import Secret

CANARY = "sk-proj-CANARY0123456789abcdef"
PROMPT = "BUY the CANARY now"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """The log is one per process: leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    kept = {name: getattr(logs._State, name) for name in ("sink", "threshold", "calls", "text", "journal", "captured")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in kept.items():
        setattr(logs._State, name, value)


class Pipe:
    """Where a log goes, and what came."""

    def __init__(self, log: Log | None = None, environ: dict[str, str] | None = None) -> None:
        self.reader, self.writer = os.pipe()
        self.sink = logs.configure(log or Log(), environ=environ or {}, descriptor=self.writer)

    def text(self) -> str:
        """All that was written so far."""
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def lines(self) -> list[dict[str, object]]:
        """The JSON lines written so far."""
        return [json.loads(line) for line in self.text().splitlines()]

    def close(self) -> None:
        """Both ends."""
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A configured log into a pipe."""
    made = Pipe()
    yield made
    made.close()


def test_one_call_is_one_line(pipe: Pipe) -> None:
    """JSON, with every field of the canonical line."""
    fields = {
        "outcome": "success", "code": "done", "upstream": "openai", "model": "gpt-5-mini",
        "transport": "websocket", "route": "default",
        "lane": "exit", "attempts": 1, "queued_us": 41, "first_delta_us": 38211, "total_us": 52310, "overhead_us": 211,
        "phase": None, "call_id": "01K", "uid": 1000, "pid": 4711,
    }  # fmt: skip
    logs.get_logger().info("call", **fields)
    (line,) = pipe.lines()
    assert {name: line[name] for name in fields} == fields
    assert (line["event"], line["level"]) == ("call", "info")
    assert str(line["timestamp"]).endswith("+00:00")


def test_what_is_not_on_the_list_is_dropped(pipe: Pipe) -> None:
    """A prompt, a delta, a header or a secret gets in by no keyword, and a strange value not by a good one."""
    log = logs.get_logger()
    log.warning("x", prompt=PROMPT, text=PROMPT, headers={"a": CANARY}, api_key=CANARY)
    log.warning("x", upstream={"a": CANARY}, model=Secret(CANARY), code=CANARY.encode(), routes=[object()])
    log.warning(f"answer was {PROMPT}")
    log.warning("answer was %s", PROMPT)
    log.warning("x", reason=f"Incorrect API key provided: {CANARY}", error=f"Bearer {CANARY}")
    log.warning("x", event_=PROMPT, level_=PROMPT, timestamp=PROMPT)
    text = pipe.text()
    assert "CANARY" not in text
    assert "[redacted]" in text
    assert '"model":"<Secret>"' in text
    assert text.count('"unnamed"') == 2


def test_an_exception_shows_types_and_places_only(pipe: Pipe) -> None:
    """Neither its message nor a local variable, of its causes and members neither."""

    def fail() -> None:
        prompt = PROMPT
        try:
            json.loads(prompt)
        except ValueError as error:
            raise ExceptionGroup(prompt, [RuntimeError(prompt)]) from error

    try:
        fail()
    except ExceptionGroup:
        logs.get_logger().exception("loop.failed")
        logs.get_logger().error("loop.failed", exc_info=True)
    text = pipe.text()
    assert "CANARY" not in text
    first = json.loads(text.splitlines()[0])
    assert first["level"] == "error"
    assert first["exception"][0] == "ExceptionGroup"
    assert any(line.endswith(" fail") for line in first["exception"])
    assert "JSONDecodeError" in first["exception"]


def test_other_peoples_loggers_are_quiet(pipe: Pipe) -> None:
    """Warnings and worse, as a template without its arguments."""
    logging.getLogger("trio-websocket").info("%s", PROMPT)
    logging.getLogger("trio-websocket").debug(PROMPT)
    assert pipe.text() == ""
    logging.getLogger("library").warning("got %s", PROMPT)
    try:
        raise ValueError(PROMPT)
    except ValueError:
        logging.getLogger("library").exception("failed with %r", PROMPT)
    text = pipe.text()
    assert "CANARY" not in text
    first, second = map(json.loads, text.splitlines())
    assert (first["event"], first["logger"], first["reason"]) == ("library", "library", "got %s")
    assert second["exception"][0] == "ValueError"


def test_level_and_calls_are_obeyed() -> None:
    """Below the level nothing is written; `calls = false` keeps the canonical lines out."""
    pipe = Pipe(Log(level="warning"))
    logs.get_logger().info("x")
    assert pipe.text() == ""
    pipe.close()
    pipe = Pipe(Log(calls=False))
    logs.get_logger().info("call", code="done")
    logs.get_logger().info("breaker.opened")
    assert [line["event"] for line in pipe.lines()] == ["breaker.opened"]
    pipe.close()


def test_text_is_one_line_that_cannot_be_forged() -> None:
    """Control characters and line breaks are made visible."""
    pipe = Pipe(Log(format="text"))
    logs.get_logger().warning("breaker.opened", upstream="openai", reason="a\n12:00:00 error forged \x1b[31m")
    text = pipe.text()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "warning breaker.opened upstream=openai reason='a\\n12:00:00 error forged \\x1b[31m'" in text
    pipe.close()


def test_under_the_journal_a_line_has_a_priority_and_no_time() -> None:
    """The journal adds the time; `<4>` is its warning. Another stream's JOURNAL_STREAM changes nothing."""
    left, right = socket.socketpair()
    with left, right:
        status = os.fstat(left.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        logs.configure(Log(), environ=environ, descriptor=left.fileno())
        logs.get_logger().warning("x")
        assert right.recv(1000) == b'<4>{"event":"x","level":"warning"}\n'
        logs.configure(Log(), environ={"JOURNAL_STREAM": "1:2"}, descriptor=left.fileno())
        logs.get_logger().warning("x")
        assert right.recv(1000).startswith(b'{"event":"x","level":"warning","timestamp":')


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_does_not_read_costs_lines_and_no_time(kind: str) -> None:
    """Ten thousand lines into a full pipe or journal socket return; later the number lost is said. Lines are whole."""
    if kind == "pipe":
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16_384)
    else:
        ends = socket.socketpair()
        reader, writer = (end.detach() for end in ends)
    sink = logs.configure(Log(), environ={}, descriptor=writer)
    log = logs.get_logger()
    for number in range(10_000):
        log.info("x", count=number)
    assert 0 < sink.dropped < 10_000
    os.set_blocking(reader, False)
    received = b""
    for _ in range(2):
        while True:
            try:
                received += os.read(reader, 1 << 16)
            except BlockingIOError:
                break
        log.info("back")
    lines = [json.loads(line) for line in received.splitlines()]
    events = [line["event"] for line in lines]
    assert events[-2:] == ["log.dropped", "back"]
    assert lines[-2]["count"] == sink.dropped
    assert events.count("x") == 10_000 - sink.dropped
    os.close(reader)
    log.info("nobody")
    os.close(writer)
    log.info("nobody")


def test_giants_and_oddities_make_one_short_line(pipe: Pipe) -> None:
    """Half surrogate pairs, huge integers, long texts, infinities: always one JSON line of 4 KiB at most."""
    log = logs.get_logger()
    log.info("x", upstream="\ud800", count=1 << 80)
    log.info("x", upstream="u" * 100_000)
    log.info("x", **{name: "u" * 1000 for name in sorted(logs.FIELDS) if name != "event" and name != "level"})
    log.info("x", delay_s=float("inf"), permits=float("nan"), routes=["r" * 1000] * 1000)
    text = pipe.text()
    assert all(len(line) <= logs.MAX_LINE for line in text.splitlines())
    assert [json.loads(line)["event"] for line in text.splitlines()].count("x") == 4
    assert json.loads(text.splitlines()[0])["upstream"] == "\\ud800"


def test_capture_shows_what_would_be_logged() -> None:
    """Every level, after the allow-list, and nothing is written."""
    with logs.capture() as events:
        logs.get_logger().debug("x", upstream="a", prompt=PROMPT)
    assert events == [{"event": "x", "level": "debug", "upstream": "a"}]


def test_capture_ends_with_its_block(pipe: Pipe) -> None:
    """Afterwards lines are written again."""
    with logs.capture():
        logs.get_logger().warning("inside")
    logs.get_logger().warning("outside")
    assert [line["event"] for line in pipe.lines()] == ["outside"]


def call_line() -> dict[str, Any]:
    """The fields of a call's line."""
    return {
        "outcome": "success", "code": "done", "finish": "stop", "call_id": "01K", "route": "default", "lane": "exit",
        "upstream": "openai", "model": "gpt-5-mini", "transport": "sse", "attempts": 1, "backup_used": False,
        "queued_us": 41, "attempt_us": None, "first_delta_us": 38211, "total_us": 52310, "overhead_us": 211,
        "uid": 1000, "pid": 4711,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_quick_way_of_a_call_says_what_the_usual_one_does(form: Any) -> None:
    """The same fields in the same order, with the same look of the time, for a file as for a terminal."""
    pipe = Pipe(Log(format=form))
    logs.log_call(logs.CallLine(**call_line()), 1_800_000_000_000_042)
    logs.get_logger().info("call", **call_line())
    quick, usual = pipe.text().splitlines()
    if form == "json":
        assert list(json.loads(quick)) == list(json.loads(usual))
        stamp = json.loads(quick).pop("timestamp")
        assert stamp == "2027-01-15T08:00:00.000042+00:00"
        assert quick.replace(stamp, "") == usual.replace(json.loads(usual)["timestamp"], "")
    else:
        assert quick.partition(" ")[2] == usual.partition(" ")[2]
    pipe.close()


def test_the_quick_way_under_the_journal() -> None:
    """With a priority, without a time."""
    left, right = socket.socketpair()
    with left, right:
        status = os.fstat(left.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        logs.configure(Log(), environ=environ, descriptor=left.fileno())
        logs.log_call(logs.CallLine(**call_line()), 1)
        quick = right.recv(1000)
        logs.get_logger().info("call", **call_line())
        assert quick == right.recv(1000)
        assert quick.startswith(b'<6>{"event":"call"')


def test_the_time_of_a_line_follows_its_second() -> None:
    """What is kept of a second is not used for another one."""
    pipe = Pipe(Log(format="json"))
    for wall_us in (1_000_000, 1_999_999, 2_000_000, 0, 1_000_001):
        logs.log_call(logs.CallLine(**call_line()), wall_us)
    seconds = [str(line["timestamp"])[17:26] for line in pipe.lines()]
    assert seconds == ["01.000000", "01.999999", "02.000000", "00.000000", "01.000001"]
    pipe.close()


def test_nobody_makes_a_line_that_is_not_wanted() -> None:
    """`calls = false` and a level above info say so beforehand; a capture wants every line."""
    for log, wanted in ((Log(), True), (Log(calls=False), False), (Log(level="warning"), False)):
        Pipe(log).close()
        assert logs.logs_calls() is wanted
    with logs.capture() as events:
        assert logs.logs_calls()
        logs.log_call(logs.CallLine(**call_line()), 1)
    assert events == [{"event": "call", "level": "info", **call_line()}]
