"""From a seed to a schedule: everything that a run is given, as data, drawn before it begins.

Nothing here knows the daemon's inside. What happens while it runs (which script a request meets) is drawn from dice
of their own, so a schedule can be made smaller piece by piece (`shrink`) and still fails for the same reason.
"""

from __future__ import annotations

import random
from typing import Any

from msgspec import Struct, structs

from tests.simulation.http2_plan import Http2Plan, draw_http2
from tests.simulation.moods import FINE, HTTP2_MOODS, HTTP_MOODS, MOODS, RESTLESS, Mood
from tests.simulation.network import GOOD, Toxics


class Phase(Struct, frozen=True, kw_only=True):
    """From an instant on: how an upstream answers, what connects meet (by either way), and on what networks."""

    at: float
    mood: Mood = FINE
    connects: tuple[str, ...] = ("fine",)
    fallback_connects: tuple[str, ...] = ("fine",)
    toxics: tuple[Toxics, ...] = (GOOD,)


class Blow(Struct, frozen=True, kw_only=True):
    """Something that happens once to an upstream: cut, reset, go_away, silence, rotate.

    `wait`: for how long the old key is good as well.
    """

    at: float
    what: str
    wait: float = 0.0


class UpstreamPlan(Struct, frozen=True, kw_only=True):
    """One upstream.

    Args:
        keeps: seconds for which its HTTP server keeps a connection without a request; None: for ever.
        says_keeps: it says so in its answers' heads. says_408: it says so when it closes.
        late: it has just closed whatever a request comes to after a second without one, every other time.
    """

    name: str
    config: dict[str, Any]
    key: str
    rtt: float
    phases: list[Phase]
    blows: list[Blow]
    keeps: float | None = None
    says_keeps: bool = False
    says_408: bool = False
    late: bool = False
    http2: Http2Plan = Http2Plan()


class Step(Struct, frozen=True, kw_only=True):
    """What a bot does, after a pause: call, cancel, leave, ping, hello, probe, garbage, duplicate, stop, read."""

    after: float
    do: str
    call: dict[str, Any] = {}
    which: int = 0


class BotPlan(Struct, frozen=True, kw_only=True):
    """One bot, on one connection at a time.

    Args:
        capacity: messages it takes unread before it is full; None: any number.
        reads_every: seconds between two reads where `capacity` is given.
        request: a REQ socket: an envelope before each message, `stream` is false.
    """

    number: int
    uid: int
    pid: int
    encoding: str
    batch: bool
    request: bool
    capacity: int | None
    reads_every: float
    starts_at: float
    steps: list[Step]


class Deed(Struct, frozen=True, kw_only=True):
    """What an operator does: drain or kill (the daemon comes back after `wait`), halt or resume lanes, disable or
    enable upstreams (`names`).
    """

    at: float
    what: str
    wait: float = 0.0
    names: tuple[str, ...] = ()


class Schedule(Struct, frozen=True, kw_only=True):
    """A run. `calm_at`: from then on every upstream and network is well."""

    seed: int
    frontend: dict[str, Any]
    route: dict[str, Any]
    clients: list[dict[str, Any]]
    upstreams: list[UpstreamPlan]
    bots: list[BotPlan]
    deeds: list[Deed]
    calm_at: float


#: Toxics and the values that are drawn for them.
TOXICS: list[tuple[str, list[Any]]] = [
    ("latency", [0.01, 0.1, 0.4]), ("jitter", [0.01, 0.2]), ("bandwidth", [500.0, 5_000.0, 100_000.0]),
    ("slices", [1, 3, 50]), ("silent_after", [0.05, 0.5, 2.0]), ("reset_after", [0.05, 0.5, 2.0]),
    ("limit", [50, 300, 2000]), ("slow_close", [0.1, 3.0]),
]  # fmt: skip
#: What connects meet when they do not work.
CONNECTS = [
    ("refused",), ("tls",), ("503",), ("401",), ("429",), ("301",), ("garbage",), ("eof",), ("reset",), ("mute",),
    ("black_hole",), ("fine", "refused"), ("fine", "fine", "503", "mute"),
    ("fine", "refused", "401", "429", "garbage", "eof"),
]  # fmt: skip
#: The same, and a server that goes away as it comes.
CONNECTS_HTTP2 = [*CONNECTS, ("goaway",), ("fine", "goaway")]

#: How the upstreams of one schedule are reached; of several, each draws its own.
WORLDS = [
    ("websocket",), ("sse",), ("both",), ("http2",), ("http2",), ("websocket", "sse", "both", "both2", "http2"),
]  # fmt: skip


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    dice = random.Random(f"schedule {seed}")
    length = dice.choice([0.5, 1.0, 2.0, 2.0, 4.0, 8.0])
    names = "abc"[: dice.choices([1, 2, 3], [2, 3, 1])[0]]
    ways = dice.choice(WORLDS)
    upstreams = [_upstream(name, dice, length, dice.choice(ways)) for name in names]
    most = dice.choice([1, 2, 4, 256, 256])
    return Schedule(
        seed=seed,
        frontend={
            "max_calls_in_flight": most,
            "exit_reserved_calls": dice.choice([None, 0, most // 2]),
            "queue_max": dice.choice([0, 2, 16, 512]),
            "drain_timeout_s": dice.choice([0.0, 0.3, 5.0]),
            "stall_timeout_s": dice.choice([0.5, 5.0]),
            "max_calls_per_minute": dice.choice([None, None, None, 5]),
        },
        route={
            "timeout_ms": 2000,
            "first_delta_timeout_ms": dice.choice([30, 150, 500, 5000]),
            "idle_timeout_ms": dice.choice([20, 120, 800]),
            "max_attempts": dice.choice([1, 2, 3, 3, 5]),
            "backup_lanes": dice.choice([["exit"], ["exit", "entry", "research"], []]),
            "backup_quantile": dice.choice([0.5, 0.95]),
            "backup_min_ms": dice.choice([5, 50]),
            "return_ramp_s": dice.choice([0, 1, 10]),
        },
        clients=_clients(dice),
        upstreams=upstreams,
        bots=[_bot(number, dice, length) for number in range(dice.choice([1, 1, 2, 2, 3, 5]))],
        deeds=_deeds(dice, length, names),
        calm_at=length,
    )


def _clients(dice: random.Random) -> list[dict[str, Any]]:
    prober = {"user": 4242, "max_calls_per_minute": 100_000}
    if dice.random() < 0.7:
        return [prober]
    return [
        prober,
        {"user": 1000, "lanes": dice.choice([["research"], ["exit", "entry"]])},
        {"user": dice.choice([1001, "*"]), "max_calls_in_flight": dice.choice([1, 3]), "max_calls_per_minute": 30},
    ]


def _upstream(name: str, dice: random.Random, length: float, ways: str) -> UpstreamPlan:
    warm = dice.choice([0, 1, 2, 3])
    over_http2 = ways in ("http2", "both2")
    slots = dice.choice([1, 2, 4, 8] if over_http2 else [1, 1, 1, 3])
    config = {
        "dialect": dice.choice(
            ["responses", "chat", "messages"] if ways in ("sse", "http2") else ["responses", "chat"]
        ),
        "warm_connections": warm,
        "max_connections": max(warm, dice.choice([1, 2, 4, 8])) or 1,
        "calls_per_connection": slots,
        "max_age_s": dice.choice([1, 5, 3300, 3300]),
        "connect_timeout_s": dice.choice([0.3, 2.0]),
        "upgrade_timeout_s": dice.choice([0.3, 5.0]),
        "ping_interval_s": dice.choice([0.3, 2.0, 10.0]),
        "pong_timeout_s": dice.choice([0.2, 5.0]),
        "adaptive_concurrency": dice.random() < 0.8,
        **_ways(name, ways, dice),
    }
    if dice.random() < 0.6:
        failures = dice.choice([1, 2, 5])
        shortest = dice.choice([0.02, 0.2, 1.0])
        config["breaker"] = {
            "consecutive_failures": failures,
            "minimum_calls": dice.choice([2, 10, 1000]),
            "slow_rate": dice.choice([0.3, 0.8]),
            "open_min_s": shortest,
            "open_max_s": shortest * dice.choice([1, 4, 20]),
            "trials": dice.choice([1, 2, 3]),
        }
        config["retry_budget"] = {
            "attempts": dice.choice([2, 4, 10]) if failures == 1 else max(4, 2 * failures),
            "per_second": dice.choice([0, 0, 5]),
            "per_call": dice.choice([0, 0, 0.5]),
        }
    phases = [_phase(0.0, dice, ways)]
    for _ in range(dice.choice([0, 1, 1, 2])):
        phases.append(_phase(dice.uniform(0, length), dice, ways))
    phases.sort(key=lambda phase: phase.at)
    blows = [
        Blow(
            at=dice.uniform(0, length),
            what=dice.choice(["cut", "reset", "go_away", "silence", "rotate", "rotate"]),
            wait=dice.choice([0.0, 0.0, 0.5]),
        )
        for _ in range(dice.choice([0, 0, 1, 2]))
    ]
    peaceful = ways != "websocket" and dice.random() < (
        0.4 if over_http2 else 0.2
    )  # nothing happens here that could be held against anybody
    if peaceful:
        phases, blows = [Phase(at=0.0, mood=dice.choice([FINE, RESTLESS]) if over_http2 else FINE)], []
        config["breaker"] = {"consecutive_failures": 1, "minimum_calls": 2, "open_min_s": 0.2, "open_max_s": 1.0}
    return UpstreamPlan(
        name=name,
        config=config,
        key=f"key-{name}-0",
        rtt=dice.choice([0.0, 0.001, 0.02]),
        phases=phases,
        blows=sorted(blows, key=lambda blow: blow.at),
        keeps=None if ways == "websocket" else dice.choice([None, 0.3, 1.2, 1.2, 2.5]),
        says_keeps=dice.random() < 0.3,
        says_408=dice.random() < 0.3,
        late=peaceful or dice.random() < 0.3,
        http2=draw_http2(dice, peaceful=peaceful) if over_http2 else Http2Plan(),
    )


def _ways(name: str, ways: str, dice: random.Random) -> dict[str, Any]:
    """The part of an upstream's configuration that says how it is reached."""
    if ways == "websocket":
        return {"url": f"wss://{name}.test/v1"}
    if ways == "sse":
        return {"url": f"https://{name}.test/v1", "transport": "sse"}
    if ways == "http2":
        return {"url": f"https://{name}.test/v1", "transport": "sse", "http_version": "2"}
    return {
        "http_version": "2" if ways == "both2" else "1.1",
        "url": f"wss://{name}.test/v1",
        "fallback_url": f"https://{name}.test/v1",
        "fallback_warm_connections": dice.choice([0, 1, 2]),
    }


def _phase(at: float, dice: random.Random, ways: str) -> Phase:
    kind = dice.random()
    unnoticed = HTTP_MOODS + HTTP2_MOODS if ways == "websocket" else () if "2" in ways else HTTP2_MOODS
    names = sorted(name for name in MOODS if name not in unnoticed)
    mood = MOODS[dice.choice(names + list(HTTP2_MOODS) * 3 if "2" in ways else names)] if kind < 0.6 else FINE
    if dice.random() < 0.1:
        mood = structs.replace(mood, poison=f"b{dice.randrange(3)}.")
    met = CONNECTS_HTTP2 if ways == "http2" else CONNECTS
    connects = ("fine",) if dice.random() < (0.4 if "both" in ways else 0.65) else dice.choice(met)
    fallback_connects = ("fine",) if dice.random() < 0.8 else dice.choice(CONNECTS_HTTP2 if "2" in ways else CONNECTS)
    toxics = (GOOD,) if dice.random() < 0.6 else (_toxics(dice), _toxics(dice))
    return Phase(at=at, mood=mood, connects=connects, fallback_connects=fallback_connects, toxics=toxics)


def _toxics(dice: random.Random) -> Toxics:
    """One to three of them at once."""
    fields: dict[str, Any] = {}
    for _ in range(dice.choice([1, 1, 2, 3])):
        name, values = dice.choice(TOXICS)
        fields[name] = dice.choice(values)
    return Toxics(**fields)


def _bot(number: int, dice: random.Random, length: float) -> BotPlan:
    request = dice.random() < 0.1
    slow = dice.random() < 0.15 and not request
    steps = []
    count = dice.choice([1, 2, 3, 3, 6, 6, 6, 12, 12, 24, 60])
    pauses = [0.0, 0.0, 0.0, 0.01, 0.05, length / 8] if count < 60 else [0.0, 0.01, length / 60, length / 30]
    for _ in range(count):
        kind = dice.random()
        after = dice.choice(pauses)
        if kind < 0.78:
            steps.append(Step(after=after, do="call", call=_call(dice, request)))
        elif kind < 0.87:
            steps.append(Step(after=after, do="cancel", which=dice.randrange(8)))
        elif kind < 0.90:
            steps.append(Step(after=after, do="leave"))
        elif kind < 0.92 and slow:
            steps.append(Step(after=after, do=dice.choice(["stop", "read"])))
        else:
            steps.append(
                Step(after=after, do=dice.choice(["ping", "probe", "garbage", "duplicate"]), which=dice.randrange(8))
            )
    user = dice.randrange(3)
    return BotPlan(
        number=number,
        uid=1000 + user,
        pid=4000 + number,
        encoding=dice.choice(["json", "msgpack"]),
        batch=dice.random() < 0.3 and not request,
        request=request,
        capacity=dice.choice([1, 2, 5]) if slow else None,
        reads_every=dice.choice([0.01, 0.1, 0.6]) if slow else 0.0,
        starts_at=dice.choice([0.0, 0.0, 0.05, length / 4]),
        steps=steps,
    )


def _call(dice: random.Random, request: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "timeout_ms": dice.choice([1, 30, 200, 700, 700, 1500, 2500]),
        "lane": dice.choice(["exit", "entry", "entry", "research"]),
    }
    if request or dice.random() < 0.2:
        fields["stream"] = False
    if dice.random() < 0.4:
        fields["on_lost"] = "restart"
    if dice.random() < 0.2:
        fields["first_delta_timeout_ms"] = dice.choice([10, 50, 300])
    if dice.random() < 0.1:
        fields["idle_timeout_ms"] = dice.choice([10, 50, 300])
    if dice.random() < 0.04:
        fields["long"] = dice.choice([3_000, 30_000, 100_000])
    if dice.random() < 0.05:
        fields["route"] = "nowhere"
    if dice.random() < 0.1:
        fields["late"] = dice.choice([0.01, 0.5])  # it was sent so many seconds ago
    return fields


def _deeds(dice: random.Random, length: float, names: str) -> list[Deed]:
    deeds = []
    for _ in range(dice.choice([0, 0, 0, 0, 1, 2, 4])):
        what = dice.choice(["drain", "kill", "halt", "halt", "resume", "disable", "disable", "enable"])
        some: tuple[str, ...] = ()
        if what in ("halt", "resume"):
            some = dice.choice([("entry",), ("research",), ("entry", "research"), ("exit", "entry", "research")])
        elif what in ("disable", "enable"):
            some = (dice.choice(names),)
        deeds.append(Deed(at=dice.uniform(0, length), what=what, wait=dice.choice([0.0, 0.05, 1.0]), names=some))
    return sorted(deeds, key=lambda deed: deed.at)
