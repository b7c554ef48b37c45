"""One run: N hosts through an outage and a recovery, in virtual time, and what was seen of it at the service."""

from __future__ import annotations

import gc
import math
import os
import random
import time
from typing import Any, Final

import trio
import trio.testing
from herd_host import Design, Host, Manners, Wish
from herd_service import Bucket, Service, State
from msgspec import Struct

from sidecar.config import Log
from sidecar.logs import configure

#: Seconds of virtual time. The outage begins at 0: connections have stood for long by then, and calls come for a while.
WARM_UP: Final = 70.0
CALLS_BEFORE: Final = 10.0
OUTAGE: Final = 30.0
RECOVERY: Final = 40.0
#: Seconds over which hosts are started.
STARTS: Final = 10.0
#: Handshakes per second and host that are admitted after the recovery: 200 for a thousand hosts.
HANDSHAKES: Final = 0.2
#: Calls per second and host; and how many times of all of them the service admits.
RATE: Final = 0.5
HEADROOM: Final = 1.5
#: In a brown-out the service admits so many of the calls that are offered.
BROWN: Final = 0.6
WARM: Final = 2
MAXIMUM: Final = 4


class Scenario(Struct, frozen=True, kw_only=True):
    """What happens to the first service, and what else there is."""

    name: str
    hosts: int
    design: Design = "this design"
    #: during the outage: connects refused and connections cut, or every call answered with 503
    fault: State = "dark"
    targets: int = 1
    manners: Manners = "once"
    seed: int = 1
    #: calls per second of each host
    rate: float = RATE
    #: what a call beyond the rate is told in a brown-out
    refusal: tuple[int, str] = (429, "rate_limit_exceeded")
    outage: float = OUTAGE
    recovery: float = RECOVERY


class Seen(Struct, kw_only=True):
    """Of one run: instants relative to the beginning of the outage."""

    scenario: Scenario
    #: seconds of CPU that it took
    cpu_s: float
    dials: list[float]
    upgrades: list[float]
    upgrades_refused: list[float]
    attempts: list[float]
    attempts_refused: list[float]
    #: at the second service, when there is one
    second_dials: list[float]
    second_attempts: list[float]
    #: host -> when it had its first connection, and all its spare ones, after the recovery
    connected: list[float]
    warm: list[float]
    wishes: list[Wish]
    unended: int
    most_attempts: int


def run(scenario: Scenario) -> Seen:
    """In virtual time; the same scenario gives the same figures."""
    began = time.process_time()
    descriptor = os.open(os.devnull, os.O_WRONLY)
    configure(Log(level="error", calls=False), environ={})
    inner: Any = trio._core._run
    before = inner._ALLOW_DETERMINISTIC_SCHEDULING
    inner._ALLOW_DETERMINISTIC_SCHEDULING = True
    inner._r.seed(scenario.seed)
    thresholds = gc.get_threshold()
    gc.set_threshold(50_000, 20, 1000)
    try:
        seen: Seen = trio.run(_main, scenario, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        inner._ALLOW_DETERMINISTIC_SCHEDULING = before
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.collect()
        os.close(descriptor)
    seen.cpu_s = time.process_time() - began
    return seen


async def _main(scenario: Scenario) -> Seen:
    hosts_n, seed = scenario.hosts, scenario.seed
    services = [
        Service(name, seed + index, handshakes=Bucket(math.inf), calls=Bucket(math.inf))
        for index, name in enumerate("ab"[: scenario.targets])
    ]
    first = services[0]
    admitted = HEADROOM * scenario.rate * hosts_n
    first.calls = Bucket(admitted, max(3.0, admitted / 2))  # as many at once as chance brings
    offset = trio.current_time() + WARM_UP
    recovered_at = offset + scenario.outage
    connected = [math.inf] * hosts_n
    warm = [math.inf] * hosts_n

    def opened(host: int, standing: int) -> None:
        now = trio.current_time()
        if now >= recovered_at:
            if connected[host] == math.inf:
                connected[host] = now - offset
            if standing >= WARM and warm[host] == math.inf:
                warm[host] = now - offset

    first.opened = opened
    ends_at = recovered_at + scenario.recovery
    hosts = [
        Host(
            number, services, design=scenario.design, seed=seed, rate=scenario.rate, manners=scenario.manners,
            restart=scenario.targets > 1, warm=WARM, maximum=MAXIMUM,
        )
        for number in range(hosts_n)
    ]  # fmt: skip
    starts = random.Random(f"starts {seed}")
    shutdown = trio.Event()

    async def live(host: Host, delay: float) -> None:
        await trio.sleep(delay)
        await host.daemon.run(shutdown)

    async with trio.open_nursery() as nursery:
        for service in services:
            await nursery.start(service.run)
        for host in hosts:
            nursery.start_soon(live, host, starts.uniform(0, STARTS))
            nursery.start_soon(host.ask, offset - CALLS_BEFORE, ends_at)
        await trio.sleep_until(offset)
        gc.collect()
        gc.freeze()
        first.state = scenario.fault
        calls = first.calls
        if scenario.fault == "dark":
            first.cut_all()
        elif scenario.fault == "brown":
            first.calls = Bucket(BROWN * scenario.rate * hosts_n)
            first.refusal = scenario.refusal
        await trio.sleep_until(recovered_at)
        first.state, first.calls = "up", calls
        first.handshakes = Bucket(HANDSHAKES * hosts_n)
        for host in hosts:
            if first.standing(host.number):
                opened(host.number, first.standing(host.number))
        await trio.sleep_until(ends_at)
        await trio.sleep(8 if scenario.manners == "once" else 20)  # longer than any bot's patience
        unended = sum(len(host.open) for host in hosts)
        nursery.cancel_scope.cancel()

    def since(instants: list[float]) -> list[float]:
        return [at - offset for at in instants]

    wishes = [wish for host in hosts for wish in host.wishes]
    for wish in wishes:
        wish.at -= offset
        wish.ended_at -= offset
    second = services[1] if len(services) > 1 else None
    most: dict[str, int] = {}
    for service in services:
        for prompt, count in service.attempts_of.items():
            most[prompt] = most.get(prompt, 0) + count
    return Seen(
        scenario=scenario,
        cpu_s=0.0,
        dials=since(first.dials),
        upgrades=since(first.upgrades),
        upgrades_refused=since(first.upgrades_refused),
        attempts=since(first.attempts),
        attempts_refused=since(first.attempts_refused),
        second_dials=since(second.dials) if second else [],
        second_attempts=since(second.attempts) if second else [],
        connected=connected,
        warm=warm,
        wishes=wishes,
        unended=unended,
        most_attempts=max(most.values(), default=0),
    )
