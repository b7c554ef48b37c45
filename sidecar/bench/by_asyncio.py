"""A bot made of one `AsyncClient`, a task per call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.bench.alarm import Alarm, mono_us
from sidecar.bench.job import GRACE, Job
from sidecar.bench.recorder import Recorder
from sidecar.client.asynchronous import AsyncClient
from sidecar.errors import CallFailed


def drive(job: Job, ready: Callable[[], tuple[int, Recorder]]) -> Recorder:
    """Connect, say `ready`, make the calls, wait for their ends."""
    return asyncio.run(_main(job, ready))


async def _main(job: Job, ready: Callable[[], tuple[int, Recorder]]) -> Recorder:
    async with AsyncClient(job.endpoint, name=f"bench {job.index}") as client:
        await client.ping(timeout_ms=10_000)
        start_us, recorder = await asyncio.to_thread(ready)
        running: set[asyncio.Task[None]] = set()
        dues = job.dues(start_us)
        over = asyncio.Event()
        alarm = Alarm()
        loop = asyncio.get_running_loop()
        due = next(dues, None)

        def ring() -> None:
            nonlocal due
            alarm.heard()
            while due is not None and due <= mono_us():
                if recorder.open + len(starting) < job.max_open:
                    starting.add(due)
                    task = loop.create_task(_call(client, job, recorder, due, starting))
                    running.add(task)
                    task.add_done_callback(running.discard)
                else:
                    recorder.fuse(due)
                due = next(dues, None)
            if due is None:
                over.set()
            else:
                alarm.set(due)

        starting: set[int] = set()
        loop.add_reader(alarm.descriptor, ring)
        ring()
        await over.wait()
        loop.remove_reader(alarm.descriptor)
        alarm.close()
        if running:
            await asyncio.wait(running, timeout=job.load.timeout_ms / 1000 + GRACE)
        for task in list(running):
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1)
    return recorder


async def _call(client: AsyncClient, job: Job, recorder: Recorder, due: int, starting: set[int]) -> None:
    starting.discard(due)
    held = recorder.begin(due, mono_us())
    handle = None
    try:
        handle = client.submit(job.prompt, stream=job.load.stream, **job.wishes)
        if job.load.stream:
            times, pieces = held.times.append, held.pieces.append
            async for piece in handle:
                times(mono_us())
                pieces(piece)
        else:
            await handle.result()
    except CallFailed:
        pass  # the terminal tells
    finally:
        terminal, accepted = (None, None) if handle is None else (handle.terminal, handle.accepted)
        recorder.end(held, terminal, accepted, mono_us())
