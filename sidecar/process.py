"""The daemon as a process of this host: endpoint and lock, sockets, signals, systemd. `daemon` is what runs inside."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import trio

import sidecar.daemon as composition
from sidecar.config import Config
from sidecar.core.halt import in_order
from sidecar.logs import configure, get_logger
from sidecar.service.control import Control
from sidecar.service.pulse import feed_watchdog
from sidecar.transport import endpoint as places
from sidecar.transport import halt_file
from sidecar.transport.endless import INTERVAL, EndlessGuard
from sidecar.transport.sd_notify import Notifier, watchdog_interval
from sidecar.transport.zmq_ping import Pinger
from sidecar.transport.zmq_socket import RouterPort
from sidecar.transport.zmtp_port import ZmtpPort
from sidecar.upstreams import real_dial

#: Control messages are short.
CONTROL_MESSAGE_BYTES: Final = 65_536
#: Seconds queued messages get to leave after the loop has ended.
LINGER: Final = 0.2
_PR_SET_DUMPABLE: Final = 4


def first_line(config: Config, endpoint: str) -> str:
    """What an operator wants to see first: where, who may connect, how many calls at once."""
    who = f"group {config.frontend.group}" if config.frontend.group else f"uid {os.geteuid()} only"
    return f"sidecar: {endpoint} · {who} · {config.frontend.max_calls_in_flight} calls at once"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


async def serve(
    config: Config,
    *,
    environ: Mapping[str, str],
    instance: str | None = None,
    shutdown: trio.Event | None = None,
    say: Callable[[str], None] = lambda _: None,
    handle_signals: bool = True,
    dumpable: bool = False,
) -> None:
    """Bind, say READY, serve until SIGTERM, SIGINT or `shutdown`, drain.

    Args:
        config: checked.
        environ: of the process.
        instance: which of several daemons on this host; it names the socket's folder where systemd does not.
        shutdown: set by others to end it; signals set it too.
        say: gets the first line, once the socket is bound.
        handle_signals: not when another program runs this in its own process.
        dumpable: leave the process open to debuggers and core dumps (it holds credentials).

    Raises:
        EndpointHeld: another daemon holds the endpoint.
        EndpointError, ConfigurationError: the endpoint cannot be used.
    """
    if not dumpable:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    configure(config.log, environ=environ)
    shutdown = shutdown or trio.Event()
    frontend = config.frontend
    endpoint = places.resolve(frontend.endpoint, environ, uid=os.geteuid(), instance=instance)
    control_endpoint = places.control_of(endpoint, frontend.control_endpoint)
    advice = places.advice(frontend.endpoint, frontend.control_endpoint, environ, instance=instance)
    notifier = Notifier(environ)
    log = get_logger()
    with contextlib.ExitStack() as stack:
        stack.callback(notifier.close)
        stack.enter_context(places.held(endpoint, group=frontend.group, advice=advice))
        stack.enter_context(places.held(control_endpoint, advice=advice))
        # Bots cannot tell which of the two serves them.
        port = (ZmtpPort if frontend.zmtp == "native" else RouterPort)(max_message_bytes=frontend.max_message_bytes)
        stack.callback(port.close, linger=LINGER)
        control_port = RouterPort(max_message_bytes=CONTROL_MESSAGE_BYTES)
        stack.callback(control_port.close)
        with places.closed_umask():
            port.bind(endpoint)
            control_port.bind(control_endpoint)
        places.open_to_group(endpoint, frontend.group)
        places.open_to_group(control_endpoint, None)
        seams = composition.real_clocks()
        halts = place_of_halts(config, environ, instance, log)
        daemon = composition.Daemon(config, port, environ=dict(environ), dial=real_dial, halt_file=halts, **seams)
        daemon.pump.heed(port.fileno())
        control = Control(
            control_port, daemon.handlers(), session=daemon.session, mono_us=seams["mono_us"], wall_us=seams["wall_us"]
        )
        async with trio.open_nursery() as nursery:
            if handle_signals:
                await nursery.start(_signals, shutdown, notifier, log)
            await nursery.start(control.run)
            await nursery.start(_run, daemon, shutdown, nursery)
            if isinstance(port, RouterPort):  # our own bounds a message while it comes in
                nursery.start_soon(_watch_memory, EndlessGuard(port), log)
            # What exists now stays for good: the collector need not walk it again and stop the loop meanwhile.
            gc.collect()
            gc.freeze()
            say(first_line(config, endpoint))
            halted = ", ".join(in_order(daemon.brakes.halted))
            if halted:
                say(f"sidecar: HALTED: {halted}, by {halts}{_because(daemon.brakes.reason)} · sidecar resume")
            notifier.ready(f"serving {endpoint}" + (f", HALTED: {halted}" if halted else ""))
            log.info(
                "ready",
                endpoint=endpoint,
                group=frontend.group,
                calls_at_once=frontend.max_calls_in_flight,
                halt_file=None if halts is None else str(halts),
            )
            interval = watchdog_interval(environ)
            if interval is not None:
                pinger = Pinger(endpoint)
                stack.callback(pinger.close)
                nursery.start_soon(feed_watchdog, notifier, interval, lambda: pinger.round_trip(interval))
        log.info("stopped")


def place_of_halts(config: Config, environ: Mapping[str, str], instance: str | None, log: Any) -> Path | None:
    """The halt file, in a folder that is made where it is not there.

    One that cannot be written is said, and is looked at all the same: somebody else may write it. One that cannot even
    be looked at halts everything if it was chosen; a mere default is done without (None).
    """
    place = halt_file.place(config.frontend.halt_file, environ, instance=instance)
    problem = "no state directory is known" if place is None else halt_file.prepare(place)
    if problem:
        log.warning("halt.not_kept", reason=f"a halt will not outlive this daemon: {problem}")
    chosen = config.frontend.halt_file is not None or environ.get("STATE_DIRECTORY")
    return None if place is not None and not chosen and isinstance(halt_file.look(place), int) else place


async def _run(
    daemon: composition.Daemon,
    shutdown: trio.Event,
    nursery: trio.Nursery,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The daemon; when it has drained, everything beside it ends too."""
    await daemon.run(shutdown, task_status=task_status)
    nursery.cancel_scope.cancel()


async def _watch_memory(guard: EndlessGuard, log: Any) -> NoReturn:
    """Part with whoever sends a message that never ends."""
    while True:
        await trio.sleep(INTERVAL)
        dropped = guard.look()
        if dropped:
            log.warning("bots.dropped", count=dropped, reason="a message without an end")


async def _signals(
    shutdown: trio.Event,
    notifier: Notifier,
    log: Any,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGTERM or SIGINT drains; a second one ends at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if shutdown.is_set():
                log.warning("stopping.now", signal=signal.Signals(number).name)
                raise KeyboardInterrupt
            log.info("stopping", signal=signal.Signals(number).name)
            notifier.stopping("draining")
            shutdown.set()
