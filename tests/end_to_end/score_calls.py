"""Rows 1 to 8 of the fault table: a call that is refused, not answered, answered late, or cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.end_to_end.score_case import Case, Pair
from tests.end_to_end.score_stage import Stage

Play = Callable[[Stage], None]


class Row(NamedTuple):
    """One of the fault table: the fault, what is right, and the play."""

    fault: str
    right: str
    play: Play


ROWS: Final[dict[int, Row]] = {}


def row(number: int, fault: str, right: str) -> Callable[[Play], Play]:
    """Enter a play into the table."""

    def enter(play: Play) -> Play:
        ROWS[number] = Row(fault, right, play)
        return play

    return enter


@row(
    1,
    "429 with Retry-After 2 on the first attempt, then fine",
    "wait about 2 s if it fits, or next target; no tight loop",
)
def throttled_once(stage: Stage) -> None:
    """Two targets: the next one, at once. One: waits about 2 s if that fits, else says so at once."""
    two = stage.pair("two", one="error_429*1,ok", query="retry_after_s=2")
    alone = stage.pair("alone", targets=1, one="error_429*1,ok", query="retry_after_s=2")
    hasty = stage.pair("hasty", targets=1, one="error_429*1,ok", query="retry_after_s=2")
    door = stage.pair("door", one="http_429")
    with stage.playing(ready=False) as bot:
        where = "in place of an answer" if stage.way.over_http else "in the handshake"
        with stage.case(bot, where, "the next target at once; not asked again before it is time", door) as case:
            case.since_us = 0
            case.heal_within = 8.0
            calls = bot.steady("door", 1.5, 0.1)
            case.saw(*calls)
            case.answered(calls)
            refused = [note["at_us"] for note in case.events(0, "refused")]
            late = [at for at in refused if at > refused[0] + 0.5e6]  # before, it had perhaps not been heard
            case.must(not late, f"asked {len(late)} times more before it was time")
            case.bounded(one=len(refused), connects=4)
        with stage.case(
            bot, "two targets", "the next target at once; the throttled one left alone for 2 s", two
        ) as case:
            case.outcome(bot.ask("two"), "done", by=two.secondary, attempts=2)
            calls = bot.steady("two", 1.5, 0.1)
            case.saw(*calls)
            case.answered(calls)
            case.bounded(one=1)
        with stage.case(bot, "one target, 5 s left", "done after 2 to 2.9 s, 2 attempts", alone) as case:
            told = bot.ask("alone", timeout_s=5.0)
            case.outcome(told, "done", attempts=2)
            case.must(2.0 <= told.seconds <= 2.9 * stage.slack, f"answered after {told.seconds:.2f} s")
            case.bounded(one=2)
        with stage.case(bot, "one target, 1 s left", "upstream_rate_limited at once, with retry_after", hasty) as case:
            told = bot.ask("hasty", timeout_s=1.0)
            case.outcome(told, "upstream_rate_limited", attempts=1)
            case.must(told.seconds < 0.5 * stage.slack, f"told after {told.seconds:.2f} s")
            case.must((told.terminal or {}).get("retry_after_ms", 0) >= 1500, "no retry_after of 2 s")
            case.bounded(one=1)


@row(2, "429 without Retry-After, for ever", "backoff with jitter, next target; at most 4 attempts in 3 s")
def throttled_for_ever(stage: Stage) -> None:
    """Backoff with jitter, next target, at most four attempts of a call in 3 s, and not many more of many calls."""
    two = stage.pair("two", one="error_429", query="retry_after_s=null")
    alone = stage.pair("alone", targets=1, one="error_429", query="retry_after_s=null")
    many = stage.pair("many", one="error_429", query="retry_after_s=null")
    crowd = stage.pair("crowd", targets=1, one="error_429", query="retry_after_s=null")
    with stage.playing() as bot:
        with stage.case(bot, "two targets", "the next target at once", two) as case:
            case.outcome(bot.ask("two"), "done", by=two.secondary, attempts=2)
            case.bounded(one=1, two=1)
        with stage.case(bot, "one target, 3 s", "upstream_rate_limited, at most 4 attempts", alone) as case:
            case.outcome(bot.ask("alone", timeout_s=3.0), "upstream_rate_limited|deadline_exceeded|breaker_open")
            case.bounded(one=4)
        with stage.case(bot, "two targets, 30 calls in 3 s", "all done, at most 6 of them ask it first", many) as case:
            calls = bot.steady("many", 3.0, 0.1)
            case.saw(*calls)
            case.answered(calls)
            case.bounded(one=6, two=len(calls))
        said = "a clean error each, asked less than once a call, at intervals that differ"
        with stage.case(bot, "one target, 30 calls in 3 s", said, crowd) as case:
            calls = bot.steady("crowd", 3.0, 0.1)
            case.saw(*calls)
            codes = {call.outcome for call in calls}
            case.must(codes <= {"upstream_rate_limited", "deadline_exceeded", "deadline_unreachable", "breaker_open"},
                      f"ended {', '.join(sorted(codes))}")  # fmt: skip
            at = [note["at_us"] for note in case.events(0, "call")]
            gaps = {round((after - before) / 1e4) for before, after in itertools.pairwise(at)}
            case.must(len(at) < 4 or len(gaps) > 1, "asked as by a clock: no jitter")
            case.bounded(one=len(calls))


@row(3, "error once, then healthy", "answered, one retry")
def error_once(stage: Stage) -> None:
    """Answered, one retry."""
    pairs = [
        stage.pair(f"{dialect}-{targets}", dialect, targets=targets, one=f"{_busy(dialect, 'error_500')}*1,ok")
        for dialect in stage.dialects
        for targets in (2, 1)
    ]
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, _targets(pair), "done, 2 attempts", pair) as case:
                by = pair.secondary if pair.targets > 1 else pair.primary
                told = bot.ask(pair.name)
                case.outcome(told, "done", by=by, attempts=2)
                case.must(told.restarts == 0, "restarted was said without a delta before it")
                case.bounded(one=3 - pair.targets, two=1)


@row(4, "503 for ever", "next target; bounded attempts; with one target: the original error")
def unavailable(stage: Stage) -> None:
    """The next target, bounded attempts; with one target the original error."""
    pairs = [stage.pair(f"{dialect}-2", dialect, one=_busy(dialect, "error_503")) for dialect in stage.dialects]
    alone = [
        stage.pair(f"{dialect}-1", dialect, targets=1, one=_busy(dialect, "error_503")) for dialect in stage.dialects
    ]
    hinted = stage.pair("unhinted", "responses", targets=1, one="error_503", query="retry_after_s=null")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, "two targets, 30 calls", "all done; 10 of them ask it", pair) as case:
                calls = bot.steady(pair.name, 1.5, 0.05)
                case.saw(*calls)
                case.answered(calls)
                case.must(max(call.attempts for call in calls) <= 3, "more than 3 attempts of a call")
                case.bounded(one=10, two=len(calls))
        for pair in [*alone, hinted]:
            status = 529 if pair.scenarios[0] == "error_529" else 503
            hint = "one target, without Retry-After" if pair is hinted else "one target"
            with stage.case(bot, hint, f"upstream_error, status {status}, at most 3 attempts", pair) as case:
                told = bot.ask(pair.name, timeout_s=3.0)
                case.outcome(told, "upstream_error")
                case.must((told.terminal or {}).get("upstream_status") == status, "the original status is not said")
                case.must(told.attempts == case.asked(0, told), f"{told.attempts} attempts said")
                case.bounded(one=3)


def _busy(dialect: str, otherwise: str) -> str:
    """What a service says of itself that can take no more: Anthropic's has a status of its own."""
    return "error_529" if dialect == "messages" else otherwise


@row(5, "reset before any byte", "retried or next target; answered")
def reset(stage: Stage) -> None:
    """Retried or next target; answered. What HTTP says was not looked at is no failure, and asked again at once."""
    kinds = {"RST": "reset"}
    if stage.way.shared:
        kinds |= {"REFUSED_STREAM": "refused_stream", "GOAWAY before it": "goaway_now"}
    elif stage.way.over_http:
        kinds |= {"EOF": "goaway_now"}
    pairs = [
        (kind, stage.pair(f"{name}-{d}-{targets}", d, targets=targets, one=name if targets > 1 else f"{name}*1,ok"))
        for kind, name in kinds.items()
        for d in (stage.some_dialects if name == "reset" else (stage.usual,))
        for targets in (2, 1)
    ]
    ever = stage.pair("for-ever", targets=1, one="reset")
    with stage.playing() as bot:
        for kind, pair in pairs:
            unread = kind in ("REFUSED_STREAM", "GOAWAY before it")
            said = "done" if unread else "done, 2 attempts"
            with stage.case(bot, f"{kind}, {_targets(pair)}", said, pair) as case:
                by = pair.secondary if pair.targets > 1 else pair.primary
                told = bot.ask(pair.name)
                case.outcome(told, "done", by=by, attempts=None if unread else 2)
                case.must(told.attempts == case.asked(0, told) + case.asked(1, told), f"{told.attempts} attempts said")
                case.bounded(one=2 if unread else 3 - pair.targets, two=1)
        with stage.case(bot, "one target, for ever", "upstream_lost, at most 3 attempts", ever) as case:
            case.outcome(bot.ask(ever.name), "upstream_lost")
            case.bounded(one=3, connects=12)


@row(
    6,
    "accepts, never answers",
    "the next target is started at the first-delta timeout; the silent one not asked again for this call",
)
def silent(stage: Stage) -> None:
    """The next target is started at the first-delta timeout; the silent one is not asked again for this call."""
    kinds = {"nothing": "silent", "created, then nothing": "silent_after_created"}
    pairs = [
        (kind, stage.pair(f"{name}-{d}-2", d, one=name))
        for kind, name in kinds.items()
        for d in stage.some_dialects
        if name == "silent" or d != "chat"  # which has nothing to say before its first token
    ]
    alone = stage.pair("alone", targets=1, one="silent")
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(
                bot, f"{kind}, two targets", "done at 0.3 s and a little; asked once, and stopped", pair
            ) as case:
                told = bot.ask(pair.name, first_delta_timeout_ms=300)
                case.outcome(told, "done", by=pair.secondary, attempts=2)
                case.must(0.3 <= told.seconds < 0.9 * stage.slack, f"answered after {told.seconds:.2f} s")
                one, two = case.began_us(0, told), case.began_us(1, told)
                if case.must(len(one) == len(two) == 1, f"asked {len(one)} and {len(two)} times"):
                    case.must(two[0] - one[0] >= 290_000, f"the next was asked after {(two[0] - one[0]) / 1e6:.3f} s")
                _loser_stopped(case, 0, lambda case=case, told=told: case.stopped(0, told))  # type: ignore[misc]
        with stage.case(bot, "one target", "deadline_exceeded at the deadline, 1 attempt", alone) as case:
            told = bot.ask("alone", first_delta_timeout_ms=300, timeout_s=1.0)
            case.outcome(told, "deadline_exceeded", attempts=1)
            case.bounded(one=1)
            _loser_stopped(case, 0, lambda: case.stopped(0, told))


@row(7, "first token after 20 s", "next target started, first content wins")
def slow_first(stage: Stage) -> None:
    """The next target is started, the first content wins, the loser is stopped upstream."""
    pairs = [stage.pair(f"{d}-2", d, one="slow_first", query="late_s=20") for d in stage.some_dialects]
    race = stage.pair("race", one="slow_first", query="late_s=0.6", two="slow_first", query_two="late_s=5")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, "two targets", "done by the next; the slow one stopped", pair) as case:
                told = bot.ask(pair.name, first_delta_timeout_ms=300)
                case.outcome(told, "done", by=pair.secondary, attempts=2)
                _loser_stopped(case, 0, lambda case=case, told=told: case.stopped(0, told))  # type: ignore[misc]
                case.bounded(one=1, two=1)
        with stage.case(bot, "first at 0.6 s, second at 5 s", "the first's content wins all the same", race) as case:
            told = bot.ask("race", first_delta_timeout_ms=300)
            case.outcome(told, "done", by=race.primary, attempts=2)
            _loser_stopped(case, 1, lambda: case.stopped(1, told))
            case.bounded(one=1, two=1)


def _loser_stopped(case: Case, side: int, stopped: Callable[[], bool]) -> None:
    """Nobody pays for an answer that nobody wants: the upstream has heard of it, and but once."""
    case.within(stopped, 1.0)
    case.must(stopped(), "the loser was not stopped upstream")
    case.must(len(case.events(side, "stopped")) == 1, f"{len(case.events(side, 'stopped'))} calls were stopped there")


@row(8, "cut after 40 of 60 tokens", "upstream_lost partial, or a clean restart if asked for; never done")
def cut(stage: Stage) -> None:
    """Told as lost, with what came; replaced only where nothing was forwarded or the bot asked for it. Never done."""
    kinds = {"EOF": "cut", "RST": "cut_rst", "error frame": "error_midway"}
    if stage.way.over_http:
        kinds["the body ends properly"] = "cut_clean"
    else:
        kinds["close 1011"] = "close_1011"
    if stage.way.shared:
        kinds["RST_STREAM"] = "rst_stream"
    told = [
        (kind, scenario, stage.pair(f"{scenario}-{dialect}", dialect))
        for kind, scenario in kinds.items()
        for dialect in stage.dialects
        if dialect == stage.usual or (not stage.quick and scenario in ("cut", "cut_clean", "error_midway"))
    ]
    again = [stage.pair(f"restart-{dialect}", dialect, one="cut", query="after=40") for dialect in stage.dialects]
    whole = stage.pair("whole", one="cut", query="after=40")
    alone = stage.pair("alone", targets=1, one="cut*1,ok", query="after=40")
    with stage.playing() as bot:
        for kind, scenario, pair in told:
            expected = "failed, partial, the 40 that came"
            with stage.case(bot, kind, expected, pair) as case:
                call = bot.send(pair.name, words=60, steering=f"scenario={scenario} after=40")
                others = case.share() if kind == "RST_STREAM" else []
                bot.gather(call)
                case.outcome(call, "upstream_error" if kind == "error frame" else "upstream_lost|upstream_error")
                case.must(call.partial, "not said to be partial")
                exact = 40 if kind != "RST" else 1  # a reset may overtake what was sent
                case.must(exact <= len(call.text.split()) <= 40, f"{len(call.text.split())} tokens came")
                if others:  # that answer's end, not the connection's
                    case.unharmed(others)
                case.bounded(one=1 + len(others), two=0)
        for pair in again:
            with stage.case(bot, 'on_lost "restart"', "restarted, done by the next", pair) as case:
                call = bot.ask(pair.name, words=60, on_lost="restart")
                case.outcome(call, "done", by=pair.secondary, attempts=2)
                case.must(call.restarts == 1, f"{call.restarts} restarts said")
                case.bounded(one=1, two=1)
        with stage.case(bot, "stream: false", "replaced: done by the next", whole) as case:
            case.outcome(bot.ask("whole", words=60, stream=False), "done", by=whole.secondary, attempts=2)
            case.bounded(one=1, two=1)
        with stage.case(bot, 'one target, on_lost "restart"', "restarted, done by the same", alone) as case:
            case.outcome(bot.ask("alone", words=60, on_lost="restart"), "done", by=alone.primary, attempts=2)
            case.bounded(one=2)


def _targets(pair: Pair) -> str:
    return "two targets" if pair.targets > 1 else "one target"
