"""A tiny scripted daemon: a ROUTER that does what the prompt says. Answers, streams, goes silent, lies, dies, restarts.

A prompt that starts with ``[`` is a script, a JSON list of steps run in order:

- ``"accept"``; ``{"accept": {...fields}}``; ``{"delta": "text"}``; ``{"done": {...}}``; ``{"failed": {...}}``;
  ``{"restarted": {}}``: messages, with the fields a real daemon would fill in (given ones win);
- ``{"message": {...}}``: any map, `id` filled in when missing; ``{"raw": "hex"}``: any bytes;
- ``{"flood": n}``: so many deltas; ``{"batch": [steps]}``: the messages of these steps as one array;
- ``"silence"``: nothing more; ``"die"``: SIGKILL to itself; ``"stop"``: SIGSTOP to itself.

Any other prompt is answered at once with its own text. Every message received is one line of the log, so that a test
can count what reached a daemon, over restarts.

As a program it is a keeper: it reads ``start`` from its standard input, forks a daemon (no import in the child, so that
a restart takes milliseconds), and prints the child's pid once it is bound. The test kills and stops that pid itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"max_message_bytes": 1 << 20, "max_batch": 256, "max_calls_in_flight": 256, "queue_max": 512}


def serve(endpoint: str, log: str, ready: int) -> None:
    """Bind and answer until killed; one byte to `ready` once bound. Never returns."""
    session = os.urandom(4).hex()
    refusing = Path(endpoint.removeprefix("ipc://") + ".refusing")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket, Path(log).open("a") as lines:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDTIMEO, 5000)
        socket.bind(endpoint)
        os.write(ready, b"1")
        os.close(ready)
        while True:
            if not socket.poll(2000):
                if os.getppid() == 1:  # the keeper is gone: stop by ourselves
                    return
                continue
            peer, payload = socket.recv_multipart()
            is_json = payload[:1] == b"{"
            message = msgspec.json.decode(payload) if is_json else msgspec.msgpack.decode(payload)
            lines.write(json.dumps({"session": session, **message}) + "\n")
            lines.flush()
            refusal = refusing.read_text() if message["type"] == "call" and refusing.exists() else ""
            for answer in [refused(message, refusal)] if refusal else answers(message, session):
                if is_json:
                    answer = msgspec.json.encode(msgspec.msgpack.decode(answer))
                with contextlib.suppress(zmq.ZMQError):
                    socket.send_multipart([peer, answer])


def answers(message: dict[str, Any], session: str) -> Any:
    """The payloads that answer one message."""
    now = time.monotonic_ns() // 1000
    kind = message["type"]
    clock = {"session": session, "mono_us": now, "wall_us": now}
    if kind == "hello":
        yield pack({"type": "welcome", "version": "0", "wire": 1, "limits": LIMITS, "routes": ["default"], **clock})
    elif kind == "ping":
        yield pack({"type": "pong", "nonce": message["nonce"], **clock})
    elif kind == "probe":
        yield pack(report(session))
    elif kind == "call":
        prompt = message.get("input") or ""
        if prompt.startswith("["):
            yield from play(json.loads(prompt), message, session, now)
        elif message.get("stream", True):
            yield from play(["accept", {"delta": prompt}, {"done": {}}], message, session, now)
        else:
            yield from play(["accept", {"done": {"text": prompt}}], message, session, now)


def refused(call: dict[str, Any], code: str) -> bytes:
    """The refusal of a call on receipt."""
    return pack({"type": "failed", "id": call["id"], "code": code, "message": "as told", "retryable": True})


def report(session: str, **fields: Any) -> dict[str, Any]:
    """A `report` of a healthy daemon."""
    health = {"live": True, "ready": True, "degraded": False, "draining": False, "version": "0", "session": session}
    numbers = {"pid": os.getpid(), "uptime_us": 1, "in_flight": 0, "queued": 0, "loop_lag_us": 0}
    return {"type": "report", **health, **numbers, **fields}


def play(steps: list[Any], call: dict[str, Any], session: str, now: int, batch: bool = False) -> Any:
    """The payloads of a script."""
    seq = 0
    for step in steps:
        name, value = (step, {}) if isinstance(step, str) else next(iter(step.items()))
        base = {"type": name, "id": call["id"], "call_id": f"d-{call['id']}"}
        match name:
            case "accept":
                timeout_us = int(call.get("timeout_ms", 700) * 1000)
                times = {"recv_mono_us": now, "deadline_mono_us": call["sent_mono_us"] + timeout_us}
                made = {**base, "type": "accepted", "session": session, "route": "default", **times, **value}
            case "delta":
                made = {"type": "delta", "id": call["id"], "seq": seq, "text": value}
                seq += 1
            case "restarted":
                made, seq = {**base, "attempt": 2, "upstream": "second", "model": "m", **value}, 0
            case "done":
                fixed = {"usage": {}, "timing": {}, "route": "default", "upstream": "fake", "model": "m", "attempts": 1}
                made = {**base, "finish": "stop", "deltas": seq, "wall_us": now, **fixed, **value}
            case "failed":
                made = {**base, "code": "internal", "message": "as scripted", "retryable": False, **value}
            case "message":
                made = {"id": call["id"], **value}
            case "raw":
                yield bytes.fromhex(value)
                continue
            case "flood":
                for seq in range(value):
                    yield pack({"type": "delta", "id": call["id"], "seq": seq, "text": "x" * 50})
                continue
            case "batch":
                yield pack(list(play(value, call, session, now, batch=True)))
                continue
            case "silence":
                return
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                continue
            case _:
                raise ValueError(f"no such step: {step!r}")
        yield made if batch else pack(made)


def pack(message: Any) -> bytes:
    """As the real daemon would send it."""
    return msgspec.msgpack.encode(message)


def keep(endpoint: str, log: str) -> None:
    """The keeper's loop: a child for every ``start`` line, until the standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    child = 0
    for line in sys.stdin:
        assert line == "start\n"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.close(0)
            serve(endpoint, log, writer)
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        print(child, flush=True)
    if child:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


class FakeDaemon:
    """The keeper and its daemon, for a test. `endpoint` is bound after `start()`."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/fake.sock"
        self.log = folder / "received.jsonl"
        self.log.touch()
        self.pid = 0
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, self.endpoint, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> Self:
        """Start a daemon, bound when this returns."""
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.write("start\n")
        self._keeper.stdin.flush()
        self.pid = int(self._keeper.stdout.readline())
        return self

    def signal(self, number: signal.Signals) -> None:
        """SIGKILL, SIGSTOP or SIGCONT to the daemon."""
        if self.pid > 0:  # 0 would be our own process group
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it was killed, and is gone by now
                os.kill(self.pid, number)
                if number == signal.SIGSTOP:
                    self._until_stopped()

    def _until_stopped(self) -> None:
        """A signal is sent before it is heeded: until then libzmq's thread may still shake hands."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            stats = [(task / "stat").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
            if all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats):
                return
            time.sleep(0.001)

    def refuse(self, code: str) -> None:
        """From now on refuse every call with this code; with "" answer again."""
        path = Path(self.endpoint.removeprefix("ipc://") + ".refusing")
        path.with_suffix(".new").write_text(code)
        path.with_suffix(".new").replace(path)

    def kill(self) -> None:
        """As a crash: the socket file stays."""
        self.signal(signal.SIGKILL)

    def received(self, kind: str = "call") -> list[dict[str, Any]]:
        """Every message of one type that reached any of the daemons, in order."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["type"] == kind]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._keeper.stdin.close()
        self._keeper.wait(5)
        self._keeper.stdout.close()


if __name__ == "__main__":
    keep(sys.argv[1], sys.argv[2])
