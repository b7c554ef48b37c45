"""Rows 15 and 24 of the fault table: an upstream that is down for a while."""

from __future__ import annotations

import statistics
import time
from typing import Any, Final

from tests.end_to_end.score_bot import Told, Trader
from tests.end_to_end.score_calls import row
from tests.end_to_end.score_case import Case
from tests.end_to_end.score_stage import Stage

#: Row 15: seconds of outage, and until all calls are the primary's again: the longest time open, and the ramp.
OUTAGE_S, QUICK_OUTAGE_S = 60.0, 5.0
RETURN_S, QUICK_RETURN_S = 50.0, 20.0
#: That a pair's upstream may have.
_CONNECTIONS: Final = 8
SHORT_BREAKER: Final = "breaker = { open_min_s = 0.5, open_max_s = 2 }"
SHORT_RAMP: Final = "return_ramp_s = 2"


@row(
    15,
    "down 60 s, then healthy, calls all along",
    "breaker opens, secondary serves, one trial at a time, returns to the primary",
)
def outage(stage: Stage) -> None:
    """The breaker opens, the secondary serves, one trial at a time, then back to the primary."""
    seconds, patience = (QUICK_OUTAGE_S, QUICK_RETURN_S) if stage.quick else (OUTAGE_S, RETURN_S)
    more, ramp = (SHORT_BREAKER, SHORT_RAMP) if stage.quick else ("", "")
    stage.simulators()
    stage.simulator(2)
    failing = stage.pair("failing", more=more, route_more=ramp, query="retry_after_s=null")
    dead = stage.pair("dead", more=more, route_more=ramp, sides=(2, 1))
    with stage.playing() as bot:
        said = f"all done; at most {_most_trials(seconds)} asked, one at a time; back within {patience:.0f} s"
        with stage.case(bot, f"{seconds:.0f} s of 503 to every call", said, failing) as one:
            said = f"all done; few connects; back within {patience:.0f} s"
            with stage.case(bot, f"{seconds:.0f} s of no process at all", said, dead) as two:
                cases = {"failing": one, "dead": two}
                calls = {name: _offer(bot, name, 2.0) for name in cases}
                began = time.monotonic()
                stage.steer(failing, "error_503")
                stage.sims[2].kill()
                _offer_both(bot, calls, began + seconds)
                bot.during(lambda: stage.simulator(2, port=stage.ports[2]))
                stage.steer(failing, "ok")
                healed = time.monotonic()
                returned = _until_returned(bot, calls, cases, healed + patience)
                bot.gather()
                for name, case in cases.items():
                    _judge_outage(stage, case, calls[name], began, healed, returned.get(name), seconds)


def _most_trials(seconds: float) -> int:
    """Five that trip it, what was in flight then, and trials at intervals of half the time open, which grows."""
    return 20 + int(seconds / 5)


def _offer(bot: Trader, name: str, seconds: float) -> list[Told]:
    calls: dict[str, list[Told]] = {name: []}
    _offer_both(bot, calls, time.monotonic() + seconds)
    return calls[name]


def _offer_both(bot: Trader, calls: dict[str, list[Told]], until: float) -> None:
    """Four calls by each route every quarter of a second; half of those of `dead` may not be cut: stream false."""
    while time.monotonic() < until:
        for name, sent in calls.items():
            sent += [
                bot.send(name, words=40, timeout_s=3.0, stream=name == "failing" or number % 2 == 0)
                for number in range(4)
            ]
        bot.until(lambda: False, 0.25)


def _until_returned(
    bot: Trader, calls: dict[str, list[Told]], cases: dict[str, Case], until: float
) -> dict[str, float]:
    """Go on until the last 20 calls of each route were answered by its primary; when that was."""
    returned: dict[str, float] = {}
    while time.monotonic() < until and len(returned) < len(cases):
        _offer_both(bot, calls, time.monotonic() + 0.25)
        for name, case in cases.items():
            ended = [call for call in calls[name] if call.terminal is not None][-20:]
            if name not in returned and all(call.upstream == case.pair.primary for call in ended):
                returned[name] = time.monotonic()
    return returned


def _judge_outage(
    stage: Stage, case: Case, calls: list[Told], began: float, healed: float, returned: float | None, seconds: float
) -> None:
    case.saw(*calls)
    # What had been forwarded in part when the process died can only be told as lost.
    lost = [call for call in calls if call.outcome != "done"]
    torn = [
        call for call in lost if call.partial and call.outcome == "upstream_lost" and abs(call.ended_at - began) < 1
    ]
    case.answered([call for call in lost if call not in torn], since=began)
    during = [call for call in calls if began + 2 < call.sent_at < healed]
    by = {call.upstream for call in during}
    case.must(by == {case.pair.secondary}, f"during the outage answered by {', '.join(sorted(by))}")
    if case.must(returned is not None, "the primary did not get its calls back"):
        assert returned is not None
        case.score.seen += f"; back after {returned - healed:.1f} s"
    if case.pair.name == "failing":
        asked = spans(case.events(0, "call", "finished", "stopped", "cut"))
        first, last = 1e6 * began, 1e6 * healed
        outage = [span for span in asked if first <= span[0] <= last]
        case.must(len(outage) <= _most_trials(seconds), f"{len(outage)} calls asked it during the outage")
        # Five failures trip it; what had been sent until those were heard of is no trial.
        tripped = sorted(end for _, end in outage)[4] if len(outage) > 4 else last
        trials = [span for span in outage if span[0] > tripped + 0.1e6 * stage.slack]
        case.must(most_at_once(trials) <= 1, f"{most_at_once(trials)} trials at once")
        again = [span for span in asked if span[0] > last][:2]
        case.must(most_at_once(again) <= 1, "the first calls after it came at once: no trial")
        case.score.seen += f"; {len(outage)} asked it meanwhile, {len(trials)} as trials"
    else:
        _few_connects(case, seconds)
        case.bounded(connects=2 * _CONNECTIONS)  # once it was there again: no herd


def _few_connects(case: Case, seconds: float) -> None:
    """How often the daemon has tried to connect in vain, which nobody but itself can count."""
    lines, name = case.stage.log().splitlines(), case.pair.primary
    failed = [line for line in lines if '"connect.failed"' in line and f'"{name}"' in line]
    case.must(len(failed) <= 10 + seconds, f"{len(failed)} connects failed in {seconds:.0f} s")
    case.score.seen += f"; {len(failed)} connects failed"


def spans(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """When each call at an upstream began and ended, in the order of their beginnings."""
    began = {note["number"]: note["at_us"] for note in events if note["event"] == "call"}
    ended = {note["number"]: note["at_us"] for note in events if note["event"] != "call"}
    return sorted((at, ended.get(number, at + 1e9)) for number, at in began.items())


def most_at_once(times: list[tuple[float, float]]) -> int:
    """How many of these overlap, at most."""
    edges = sorted([(start, 1) for start, _ in times] + [(end, -1) for _, end in times])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


@row(
    24,
    "one target only, hard down",
    "breaker refuses in under 1 ms with retry_after; recovers by one trial",
)
def hard_down(stage: Stage) -> None:
    """The breaker refuses in under a millisecond with retry_after; recovers by one trial."""
    stage.simulators()
    stage.simulator(2)
    short = SHORT_BREAKER
    dead = stage.pair("dead", targets=1, sides=(2, 1), more=short)
    failing = stage.pair("failing", targets=1, more=short, query="retry_after_s=null")
    with stage.playing() as bot:
        said = "breaker_open in < 1 ms, retry_after; recovers by one trial"
        with stage.case(bot, "every call is answered 503", said, failing) as case:
            stage.steer(failing, "error_503")
            _down(case, bot, 1.0)
            asked = case.asked(0)
            case.must(asked <= 30, f"{asked} calls asked it")
            stage.steer(failing, "ok")
            _recover(case, bot, one_trial=True)
        # Connects that fail open the breaker as well, but five of them take their backoff's time: too long for --quick,
        # where the connect that succeeds is the trial.
        seconds = 1.0 if stage.quick else 15.0
        said = f"{'no_connection' if stage.quick else 'breaker_open'} in < 1 ms, retry_after; recovers"
        said += "" if stage.quick else " by one trial"
        with stage.case(bot, f"no process at all for {seconds:.0f} s and more", said, dead) as case:
            stage.sims[2].kill()
            stage.sims[2].wait()
            began = time.monotonic()
            _down(case, bot, seconds)
            _few_connects(case, time.monotonic() - began)
            bot.during(lambda: stage.simulator(2, port=stage.ports[2]))
            _recover(case, bot, one_trial=not stage.quick)


def _down(case: Case, bot: Trader, seconds: float) -> None:
    """Trip the breaker, then measure its refusals beside pings, one after the other."""
    tripping = bot.steady(case.pair.name, seconds, 0.05, timeout_s=1.0)
    refusals: list[Told] = []
    pings: list[float] = []
    end = time.monotonic() + 10
    while len(refusals) < 100 and time.monotonic() < end:
        pings.append(bot.ping())
        call = bot.ask(case.pair.name, timeout_s=1.0)
        if call.outcome in ("breaker_open", "no_connection"):
            refusals.append(call)
        else:  # a trial, or it waited for the end of one
            tripping.append(call)
    case.saw(*tripping, *refusals)
    if not case.must(len(refusals) >= 100, f"only {len(refusals)} refusals"):
        return
    waits = [(call.terminal or {}).get("retry_after_ms") for call in refusals]
    case.must(all(isinstance(wait, int) and wait > 0 for wait in waits), "a refusal without retry_after_ms")
    refused, ping = (statistics.median(found) for found in ([call.seconds for call in refusals], pings))
    case.score.seen += f"; refused in {1e6 * refused:.0f} us, {refused / ping:.1f} of a ping's {1e6 * ping:.0f} us"
    case.must(
        refused < 0.001 or refused < 3 * ping or case.stage.slack > 1,
        f"refused in {1000 * refused:.2f} ms, a ping {1000 * ping:.2f} ms",
    )


def _recover(case: Case, bot: Trader, *, one_trial: bool) -> None:
    """Bursts until calls are answered again: the first call that comes through comes alone."""
    began = time.monotonic()
    calls: list[Told] = []
    while time.monotonic() < began + 20:
        calls += [bot.send(case.pair.name, words=30, timeout_s=3.0) for _ in range(8)]
        bot.until(lambda: False, 0.1)
        if sum(call.outcome == "done" for call in calls) >= 30:
            break
    bot.gather(*calls)
    for call in calls:
        found = call.problems(case.stage.slack)
        case.must(not found, f"{call.id}: {found}")
    case.must(any(call.outcome == "done" for call in calls), "it did not recover in 20 s")
    codes = {call.outcome for call in calls} - {"done", "breaker_open", "no_connection", "deadline_unreachable"}
    case.must(not codes, f"while it recovered: {', '.join(sorted(codes))}")
    answered = [call.ended_at for call in calls if call.outcome == "done"]
    asked = [span for span in spans(case.events(0, "call", "finished", "stopped", "cut")) if span[0] > 1e6 * began]
    if one_trial:
        case.must(most_at_once(asked[:2]) <= 1, "the first calls after it came at once: no trial")
    if answered:
        case.score.seen += f"; the first done {min(answered) - began:.1f} s after"
