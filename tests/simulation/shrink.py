"""Makes a failing schedule smaller, piece by piece, for as long as it fails for the same reason.

What a request or a connect meets depends on the seed and on that request alone, so that leaving out one bot changes
nothing for the others but what they have to do with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import structs

from tests.simulation.network import GOOD
from tests.simulation.schedule import Schedule
from tests.simulation.world import play

#: Runs after which what was reached has to do.
MAX_RUNS = 400


def shrink(schedule: Schedule) -> Schedule:
    """The smallest schedule found that breaks the invariant which `schedule` breaks first.

    Raises:
        ValueError: it breaks none.
    """
    broken = play(schedule).broken
    if not broken:
        raise ValueError("every invariant holds in this schedule")
    wanted = broken[0].invariant
    runs = 0
    smaller = True
    while smaller and runs < MAX_RUNS:
        smaller = False
        for candidate in _smaller(schedule):
            runs += 1
            if any(each.invariant == wanted for each in play(candidate).broken):
                schedule, smaller = candidate, True
                break
            if runs >= MAX_RUNS:
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules with one thing less, the biggest first."""
    for bots in _less(schedule.bots):
        yield structs.replace(schedule, bots=bots)
    for deeds in _less(schedule.deeds):
        yield structs.replace(schedule, deeds=deeds)
    if len(schedule.clients) > 1:
        yield structs.replace(schedule, clients=schedule.clients[:1])
    for upstreams in _less(schedule.upstreams):
        if upstreams:
            yield structs.replace(schedule, upstreams=upstreams)
    for index, bot in enumerate(schedule.bots):
        for steps in _less(bot.steps):
            yield structs.replace(schedule, bots=_with(schedule.bots, index, structs.replace(bot, steps=steps)))
    for index, plan in enumerate(schedule.upstreams):
        simpler = [structs.replace(plan, blows=blows) for blows in _less(plan.blows)]
        simpler += [structs.replace(plan, phases=[plan.phases[0], *phases]) for phases in _less(plan.phases[1:])]
        simpler += [
            structs.replace(plan, phases=_with(plan.phases, number, structs.replace(phase, toxics=(GOOD,))))
            for number, phase in enumerate(plan.phases)
            if phase.toxics != (GOOD,)
        ]
        for plain in simpler:
            yield structs.replace(schedule, upstreams=_with(schedule.upstreams, index, plain))


def _less(things: list[Any]) -> Iterator[list[Any]]:
    """The list without its halves, quarters ... single things."""
    size = len(things)
    while size:
        for start in range(0, len(things), size):
            yield things[:start] + things[start + size :]
        size //= 2


def _with(things: list[Any], index: int, thing: Any) -> list[Any]:
    return [*things[:index], thing, *things[index + 1 :]]
