"""A bot made of threads, each with a blocking `Client` of its own: an idle one takes the next call."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from sidecar.bench.alarm import mono_us
from sidecar.bench.job import GRACE, Job
from sidecar.bench.recorder import Recorder
from sidecar.client.blocking import Client
from sidecar.errors import CallFailed


class _Worker:
    """One thread, one connection."""

    def __init__(self, job: Job, nth: int, idle: deque[_Worker]) -> None:
        self.job, self.idle = job, idle
        self.todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.recorder: Recorder | None = None
        self.connected = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"bot-{nth}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with Client(self.job.endpoint, name=f"bench {self.job.index}") as client:
            try:
                client.ping(timeout_ms=10_000)
            except CallFailed:
                pass  # its calls will say so
            self.idle.append(self)
            self.connected.set()
            while (due := self.todo.get()) is not None:
                self._call(client, due)
                self.idle.append(self)

    def _call(self, client: Client, due: int) -> None:
        recorder, job = self.recorder, self.job
        assert recorder is not None
        held = recorder.begin(due, mono_us())
        handle = None
        try:
            handle = client.submit(job.prompt, stream=job.load.stream, **job.wishes)
            if job.load.stream:
                for piece in handle:
                    held.times.append(mono_us())
                    held.pieces.append(piece)
            else:
                handle.result()
        except CallFailed:
            pass  # the terminal tells
        terminal, accepted = (None, None) if handle is None else (handle.terminal, handle.accepted)
        recorder.end(held, terminal, accepted, mono_us())


def drive(job: Job, ready: Callable[[], tuple[int, Recorder]]) -> Recorder:
    """Connect, say `ready`, make the calls, wait for their ends."""
    idle: deque[_Worker] = deque()
    first = min(job.max_open, -(-job.load.open_calls // job.load.clients))
    workers = [_Worker(job, nth, idle) for nth in range(first)]
    for worker in workers:
        worker.connected.wait(15)
    start_us, whole = ready()
    for worker in workers:
        worker.recorder = _own(whole)
    for due in job.dues(start_us):
        wait = due - mono_us()
        if wait > 0:
            time.sleep(wait / 1e6)
        if idle:
            idle.pop().todo.put(due)
        elif len(workers) < job.max_open:
            worker = _Worker(job, len(workers), idle)
            worker.recorder = _own(whole)
            workers.append(worker)
            worker.todo.put(due)
        else:
            whole.fuse(due)
    until = time.monotonic() + job.load.timeout_ms / 1000 + GRACE
    for worker in workers:
        worker.todo.put(None)
    for worker in workers:
        worker.thread.join(max(0.0, until - time.monotonic()))
    for worker in workers:
        assert worker.recorder is not None
        whole.take(worker.recorder)
    return whole


def _own(whole: Recorder) -> Recorder:
    """One per thread: no lock on the way of a token."""
    return Recorder(whole.begins_us, whole.ends_us, stamps=whole.stamps)
