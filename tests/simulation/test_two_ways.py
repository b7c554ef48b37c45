"""What the simulation found of upstreams with two ways, each as the small schedule that shows it."""

from __future__ import annotations

from tests.simulation.moods import Mood
from tests.simulation.schedule import BotPlan, Phase, Schedule, Step, UpstreamPlan
from tests.simulation.world import play

#: The first call goes by the second way and is answered; the second call goes by the first way.
TOLD = ("a is sent b0.0 #1 on a/sse#", "is told done c0", "a is sent b0.1 #1 on a#")


def two_ways(seed: int) -> Schedule:
    """Room for one call at an upstream whose WebSocket comes a little later than its second way; two calls."""
    config = {
        "url": "wss://a.test/v1", "fallback_url": "https://a.test/v1", "dialect": "responses",
        "warm_connections": 1, "fallback_warm_connections": 0, "max_connections": 1, "max_age_s": 3300,
    }  # fmt: skip
    slow = Mood({"slow": 1})
    phases = [Phase(at=0.0, mood=slow, connects=("refused",)), Phase(at=0.1, mood=slow, fallback_connects=("refused",))]
    calls = [
        Step(after=0.05, do="call", call={"timeout_ms": 5000}),
        Step(after=0.1, do="call", call={"timeout_ms": 4000}),
    ]
    return Schedule(
        seed=seed,
        frontend={},
        route={"timeout_ms": 5000, "first_delta_timeout_ms": 5000, "backup_lanes": [], "max_attempts": 1},
        clients=[{"user": 4242, "max_calls_per_minute": 100_000}],
        upstreams=[UpstreamPlan(name="a", config=config, key="k", rtt=0.001, phases=phases, blows=[])],
        bots=[
            BotPlan(
                number=0, uid=1000, pid=4000, encoding="json", batch=False, request=False, capacity=None,
                reads_every=0.0, starts_at=0.0, steps=calls,
            )
        ],
        deeds=[],
        calm_at=8.0,
    )  # fmt: skip


def test_room_that_one_way_gives_back_is_for_calls_that_wait_for_the_other() -> None:
    """A call waits for room under the limit, beside a WebSocket that is free: it goes as soon as there is room."""
    result = play(two_ways(9), tracing=True)
    assert not result.broken
    said = {what: float(line.split()[0]) for line in result.trace for what in TOLD if what in line}
    assert said[TOLD[1]] > said[TOLD[0]] + 1.0, "the first is long"
    assert said[TOLD[2]] == said[TOLD[1]]
