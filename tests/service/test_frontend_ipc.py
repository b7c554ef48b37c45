"""The frontend over real ipc: a bot that is stopped by a signal and goes on, and one that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from sidecar import wire
from sidecar.service.frontend import Frontend
from sidecar.service.ports import Peer, Reply
from sidecar.transport.zmq_socket import RouterPort
from sidecar.wire import Accepted, Call, Failed

BOT = """
import sys, json, zmq
bot = zmq.Context().socket(zmq.DEALER)
bot.connect(sys.argv[1])
bot.send_json({"type": "call", "id": "a", "input": "x"})
text, seqs, kind = "", [], ""
while kind not in ("done", "failed"):
    message = bot.recv_json()
    kind = message["type"]
    if kind == "delta":
        text += message["text"]
        seqs.append(message["seq"])
print(json.dumps([text, seqs, message["code"], message["deltas"]]), flush=True)
"""


class Held:
    """The one call in flight."""

    call_id = "01"

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.ended = ""
        self.abandoned = False
        self.admitted: bool | None = True

    def end(self, code: str, message: str) -> None:
        """The terminal, as a dispatcher gives it."""
        self.ended = code
        self.reply.finish(Failed(id="a", code=code, message=message, retryable=False, call_id="01"))

    def abandon(self) -> None:
        """The bot is gone."""
        self.abandoned = True


class Handler:
    """Accepts."""

    def __init__(self) -> None:
        self.held: list[Held] = []

    def submit(self, call: Call, reply: Reply, peer: Peer, *, recv_mono_us: int, ignored: list[str]) -> Held | Failed:
        """See `CallHandler`."""
        reply.accept(
            Accepted(
                id=call.id, call_id="01", session="s", recv_mono_us=recv_mono_us, deadline_mono_us=9, route="default"
            )
        )
        self.held.append(Held(reply))
        return self.held[-1]


@asynccontextmanager
async def bot_in_a_call(stall_timeout: float) -> AsyncIterator[tuple[Frontend, Held, subprocess.Popen[bytes]]]:
    """A frontend on a real socket, and a bot in its own process with a call in flight."""
    handler = Handler()
    with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as folder, RouterPort(max_message_bytes=4096) as port:
        port.bind(f"ipc://{folder}/s")
        frontend = Frontend(
            port, handler, session="s", version="0", routes=["default"], clock=trio.current_time,
            limits=wire.Limits(max_message_bytes=4096, max_calls_in_flight=8, queue_max=8),
            mono_us=lambda: time.monotonic_ns() // 1000, wall_us=lambda: 1, jitter=lambda: 0.5,
            report=lambda: pytest.fail("nobody asked"), max_message_bytes=4096, stall_timeout=stall_timeout,
        )  # fmt: skip
        bot = subprocess.Popen([sys.executable, "-c", BOT, f"ipc://{folder}/s"], stdout=subprocess.PIPE)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(frontend.run)
                await until(lambda: handler.held)
                yield frontend, handler.held[0], bot
                nursery.cancel_scope.cancel()
        finally:
            bot.kill()
            bot.communicate()


async def until(check: Callable[[], Any], within: float = 8.0) -> None:
    """Poll until `check` gives something true."""
    with trio.fail_after(within):
        while not check():
            await trio.sleep(0.005)


async def test_a_stopped_bot_ends_its_call_and_still_gets_what_was_kept() -> None:
    """SIGSTOP while few tokens flow: slow_reader within a second of the timeout; after SIGCONT all of it, in order."""
    async with bot_in_a_call(stall_timeout=1.0) as (frontend, held, bot):
        held.reply.text("0,")
        frontend.flush()
        bot.send_signal(signal.SIGSTOP)
        started, number = trio.current_time(), 1
        while not held.ended:
            held.reply.text(f"{number},")
            frontend.flush()
            number += 1
            await trio.sleep(0.02)
            assert trio.current_time() - started < 2.0
        assert trio.current_time() - started >= 0.9
        assert held.ended == "slow_reader"
        frontend.flush()
        bot.send_signal(signal.SIGCONT)
        output, _ = await trio.to_thread.run_sync(lambda: bot.communicate(timeout=8))
        text, seqs, code, deltas = json.loads(output)
        assert text == "".join(f"{n}," for n in range(number))
        assert seqs == list(range(len(seqs)))
        assert (code, deltas) == ("slow_reader", len(seqs))
        assert len(seqs) < number  # merged meanwhile


async def test_a_bot_that_reads_is_never_taken_for_stopped() -> None:
    """A stream twice as long as the timeout goes through whole."""
    async with bot_in_a_call(stall_timeout=0.6) as (frontend, held, bot):
        for number in range(600):
            held.reply.text(f"{number},")
            frontend.flush()
            await trio.sleep(0.002)
        assert held.ended == ""
        held.end("cancelled", "enough")
        frontend.flush()
        output, _ = await trio.to_thread.run_sync(lambda: bot.communicate(timeout=8))
        text, seqs, _, _ = json.loads(output)
        assert text == "".join(f"{n}," for n in range(600))
        assert seqs == list(range(len(seqs)))


async def test_a_killed_bot_is_abandoned_at_once() -> None:
    """SIGKILL: given up without waiting for a send to fail (the 100 ms of the promise are measured end to end)."""
    async with bot_in_a_call(stall_timeout=5.0) as (frontend, held, bot):
        bot.kill()
        killed = trio.current_time()
        await until(lambda: held.abandoned)
        assert trio.current_time() - killed < 1.0
        assert frontend.statistics().peers == 0
