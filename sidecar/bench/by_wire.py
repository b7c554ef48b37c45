"""A bot on the bare wire: one DEALER, batches, typed decoding, no client library of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import zmq

from sidecar.bench.alarm import Alarm, mono_us
from sidecar.bench.job import GRACE, Job
from sidecar.bench.recorder import Held, Recorder
from sidecar.errors import SidecarError
from sidecar.wire import MSGPACK, Accepted, Call, Delta, Done, Failed, FromDaemon, Hello, Welcome

#: Messages read before the schedule is looked at again.
_PASS: Final = 16


class _Bot:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        # A full queue here would be a call that was due and not sent: the daemon, not this bot, must say no.
        self.socket.setsockopt(zmq.SNDHWM, job.max_open + 1)
        self.socket.connect(job.endpoint)
        self.alarm = Alarm()
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.alarm.descriptor, zmq.POLLIN)
        self.calls: dict[str, Held] = {}
        self.promised: dict[str, Accepted] = {}
        self.number = 0
        self.recorder: Recorder | None = None

    def greet(self) -> None:
        """Be known, with batches.

        Raises:
            SidecarError: nobody answered.
        """
        until = time.monotonic() + 10
        while not self.socket.poll(50, zmq.POLLOUT):
            if time.monotonic() > until:
                raise SidecarError(f"nobody listens on {self.job.endpoint}")
        self.socket.send(MSGPACK.encode(Hello(name=f"bench {self.job.index}", batch=True)))
        if not self.socket.poll(10_000) or not isinstance(MSGPACK.decode_from_daemon(self.socket.recv()), Welcome):
            raise SidecarError(f"no welcome from {self.job.endpoint}")

    def begin(self, due: int) -> None:
        """Send one call."""
        recorder, job = self.recorder, self.job
        assert recorder is not None
        if len(self.calls) >= job.max_open:
            recorder.fuse(due)
            return
        self.number += 1
        name = str(self.number)
        sent = mono_us()
        held = recorder.begin(due, sent)
        wishes = job.wishes
        call = Call(
            id=name, input=job.prompt, stream=job.load.stream, timeout_ms=job.load.timeout_ms, sent_mono_us=sent,
            route=job.route or "default", options=dict(wishes.get("options") or {}),
        )  # fmt: skip
        try:
            self.socket.send(MSGPACK.encode(call), zmq.NOBLOCK)
        except zmq.Again:  # nobody there: it has no terminal, and the verdict says so
            recorder.end(held, None, None, mono_us())
            return
        self.calls[name] = held

    def read(self) -> None:
        """Take what there is, up to a pass."""
        socket = self.socket
        for _ in range(_PASS):
            try:
                payload = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            now = mono_us()
            found = MSGPACK.decode_from_daemon(payload)
            if isinstance(found, list):
                for message in found:
                    self.take(message, now)
            else:
                self.take(found, now)

    def take(self, message: FromDaemon, now: int) -> None:
        """One message."""
        if isinstance(message, Delta):
            held = self.calls.get(message.id)
            if held is not None:
                held.times.append(now)
                held.pieces.append(message.text)
        elif isinstance(message, Accepted):
            self.promised[message.id] = message
        elif isinstance(message, (Done, Failed)) and message.id is not None:
            held = self.calls.pop(message.id, None)
            if held is not None:
                assert self.recorder is not None
                self.recorder.end(held, message, self.promised.pop(message.id, None), now)

    def wait(self) -> None:
        """Until the schedule's next instant, or something to read."""
        for found, _ in self.poller.poll(1000):
            if found == self.alarm.descriptor:
                self.alarm.heard()


def drive(job: Job, ready: Callable[[], tuple[int, Recorder]]) -> Recorder:
    """Connect, say `ready`, make the calls, wait for their ends."""
    bot = _Bot(job)
    bot.greet()
    start_us, recorder = ready()
    bot.recorder = recorder
    for due in job.dues(start_us):
        bot.alarm.set(due)
        while mono_us() < due:
            bot.wait()
            bot.read()
        bot.begin(due)
        bot.read()
    until = time.monotonic() + job.load.timeout_ms / 1000 + GRACE
    while bot.calls and time.monotonic() < until:
        bot.wait()
        bot.read()
    for held in bot.calls.values():
        recorder.end(held, None, None, mono_us())
    bot.socket.close()
    bot.alarm.close()
    return recorder
