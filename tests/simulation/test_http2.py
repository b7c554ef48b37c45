"""What was doubted of HTTP/2, each as a small schedule of its own."""

from __future__ import annotations

from typing import Any

from tests.simulation.http2_plan import Http2Plan
from tests.simulation.moods import Mood
from tests.simulation.mutants import MUTANTS, applied
from tests.simulation.schedule import BotPlan, Phase, Schedule, Step, UpstreamPlan
from tests.simulation.world import Result, play


def many(seed: int, mood: Mood, http2: Http2Plan, steps: list[Step], **config: Any) -> Schedule:
    """One upstream over HTTP/2, on two connections, and a bot's calls."""
    settings = {
        "url": "https://a.test/v1", "transport": "sse", "http_version": "2", "dialect": "messages", "max_age_s": 3300,
        "warm_connections": 2, "max_connections": 2, "calls_per_connection": 8, "adaptive_concurrency": False, **config,
    }  # fmt: skip
    return Schedule(
        seed=seed,
        frontend={},
        route={
            "timeout_ms": 5000, "first_delta_timeout_ms": 500, "idle_timeout_ms": 800, "backup_lanes": [],
            "max_attempts": 5,
        },
        clients=[{"user": 4242, "max_calls_per_minute": 100_000}],
        upstreams=[
            UpstreamPlan(
                name="a", config=settings, key="k", rtt=0.001, phases=[Phase(at=0.0, mood=mood)], blows=[], http2=http2
            )
        ],
        bots=[
            BotPlan(
                number=0, uid=1000, pid=4000, encoding="json", batch=False, request=False, capacity=None,
                reads_every=0.0, starts_at=0.0, steps=steps,
            )
        ],
        deeds=[],
        calm_at=8.0,
    )  # fmt: skip


def told(result: Result, what: str) -> list[float]:
    """The instants of the trace's lines with these words."""
    return [float(line.split()[0]) for line in result.trace if what in line]


def test_calls_wait_for_a_server_that_takes_none_yet() -> None:
    """It allows no stream at first, and one on each connection after 0.6 s: two of three calls go there at once."""
    steps = [Step(after=0.1, do="call", call={"timeout_ms": 3000})] + 2 * [
        Step(after=0.0, do="call", call={"timeout_ms": 3000})
    ]
    schedule = many(5, Mood({"answers": 1}), Http2Plan(max_streams=0, changes=((0.6, 1),)), steps)
    result = play(schedule, tracing=True)
    assert not result.broken
    assert len(told(result, "is told done c")) == 3
    assert all(0.6 <= at < 0.65 for at in told(result, "is sent b0.")[:2])
    with applied(MUTANTS["room unheard of"]):
        assert {broken.invariant for broken in play(schedule).broken} >= {"in time", "nothing left"}


def test_one_goaway_that_leaves_several_calls_is_nobodys_fault() -> None:
    """Twelve calls at once, and the server goes away before it has looked at most: each is answered elsewhere."""
    steps = [Step(after=0.1, do="call", call={"timeout_ms": 4000})] + 11 * [
        Step(after=0.0, do="call", call={"timeout_ms": 4000})
    ]
    breaker = {"consecutive_failures": 1, "minimum_calls": 2, "open_min_s": 5.0, "open_max_s": 5.0}
    mood = Mood({"ponders": 3, "leaves_unlooked": 1})
    schedule = many(2, mood, Http2Plan(), steps, breaker=breaker)
    result = play(schedule, tracing=True)
    assert not result.broken
    assert result.counts["replays"] >= 3
    assert len(told(result, "is told done c")) == 12
    with applied(MUTANTS["each request of a GOAWAY counts"]):
        assert {broken.invariant for broken in play(schedule).broken} >= {"no blame"}


def test_connections_on_which_calls_die_are_not_kept() -> None:
    """One answers pings and nothing else, the other takes no prompt: the third call of each kind is answered."""
    steps = [Step(after=1.5, do="call", call={"timeout_ms": 1200}) for _ in range(4)]
    for plan in (Http2Plan(dumb_after=0.0), Http2Plan(window=0, opens_after=None)):
        calm = many(5, Mood({"answers": 1}), plan, steps, warm_connections=1, max_connections=1)
        result = play(calm, tracing=True)
        assert not result.broken
        assert result.counts["end deadline_exceeded"] >= 2
        assert len(told(result, "a dialled")) >= 2
