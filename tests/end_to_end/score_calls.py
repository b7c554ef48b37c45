"""Rows 1 to 8 of the fault table: a call that is refused, not answered, answered late, or cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.end_to_end.score_stage import DIALECTS, Pair, Stage

#: row -> (fault, play)
ROWS: Final[dict[int, tuple[str, Callable[[Stage], None]]]] = {}
Play = Callable[[Stage], None]


def row(number: int, fault: str) -> Callable[[Play], Play]:
    """Enter a play into the table."""

    def enter(play: Play) -> Play:
        ROWS[number] = (fault, play)
        return play

    return enter


@row(1, "429 with Retry-After 2 on the first attempt, then fine")
def throttled_once(stage: Stage) -> None:
    """Two targets: the next one, at once. One: waits about 2 s if that fits, else says so at once."""
    two = stage.pair("two", one="error_429*1,ok", query="retry_after_s=2")
    alone = stage.pair("alone", targets=1, one="error_429*1,ok", query="retry_after_s=2")
    hasty = stage.pair("hasty", targets=1, one="error_429*1,ok", query="retry_after_s=2")
    door = stage.pair("door", one="http_429")
    with stage.playing(ready=False) as bot:
        with stage.case(
            bot, "in the handshake", "the next target at once; no connects before it is time", door
        ) as case:
            case.since_us = 0
            case.heal_within = 8.0
            calls = bot.steady("door", 1.5, 0.1)
            case.saw(*calls)
            case.answered(calls)
            case.bounded(one=0, connects=4)
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


@row(2, "429 without Retry-After, for ever")
def throttled_for_ever(stage: Stage) -> None:
    """Backoff with jitter, next target, at most four attempts of a call in 3 s, and not many more of many calls."""
    two = stage.pair("two", one="error_429", query="retry_after_s=null")
    alone = stage.pair("alone", targets=1, one="error_429", query="retry_after_s=null")
    many = stage.pair("many", one="error_429", query="retry_after_s=null")
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


@row(3, "error once, then healthy")
def error_once(stage: Stage) -> None:
    """Answered, one retry."""
    pairs = [
        stage.pair(f"{dialect}-{targets}", dialect, targets=targets, one="error_500*1,ok")
        for dialect in DIALECTS
        for targets in (2, 1)
    ]
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, f"{pair.dialect}, {_targets(pair)}", "done, 2 attempts", pair) as case:
                by = pair.secondary if pair.targets > 1 else pair.primary
                case.outcome(bot.ask(pair.name), "done", by=by, attempts=2)
                case.bounded(one=3 - pair.targets, two=1)


@row(4, "503 for ever")
def unavailable(stage: Stage) -> None:
    """The next target, bounded attempts; with one target the original error."""
    pairs = [stage.pair(f"{dialect}-2", dialect, one="error_503") for dialect in DIALECTS]
    alone = [stage.pair(f"{dialect}-1", dialect, targets=1, one="error_503") for dialect in DIALECTS]
    hinted = stage.pair("unhinted", targets=1, one="error_503", query="retry_after_s=null")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, f"{pair.dialect}, two targets, 30 calls", "all done; 10 of them ask it", pair) as case:
                calls = bot.steady(pair.name, 1.5, 0.05)
                case.saw(*calls)
                case.answered(calls)
                case.bounded(one=10, two=len(calls))
        for pair in [*alone, hinted]:
            hint = "without Retry-After" if pair is hinted else f"{pair.dialect}"
            with stage.case(bot, f"{hint}, one target", "upstream_error, status 503, at most 3 attempts", pair) as case:
                told = bot.ask(pair.name, timeout_s=3.0)
                case.outcome(told, "upstream_error")
                case.must((told.terminal or {}).get("upstream_status") == 503, "the original status is not said")
                case.bounded(one=3)


@row(5, "reset before any byte")
def reset(stage: Stage) -> None:
    """Retried or next target; answered."""
    pairs = [
        stage.pair(f"{dialect}-{targets}", dialect, targets=targets, one="reset" if targets > 1 else "reset*1,ok")
        for dialect in DIALECTS
        for targets in (2, 1)
    ]
    ever = stage.pair("for-ever", targets=1, one="reset")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, f"{pair.dialect}, {_targets(pair)}", "done, 2 attempts", pair) as case:
                by = pair.secondary if pair.targets > 1 else pair.primary
                case.outcome(bot.ask(pair.name), "done", by=by, attempts=2)
                case.bounded(one=3 - pair.targets, two=1)
        with stage.case(bot, "one target, for ever", "upstream_lost, at most 3 attempts", ever) as case:
            case.outcome(bot.ask(ever.name), "upstream_lost")
            case.bounded(one=3, connects=12)


@row(6, "accepts, never answers")
def silent(stage: Stage) -> None:
    """The next target is started at the first-delta timeout; the silent one is not asked again for this call."""
    pairs = [stage.pair(f"{dialect}-2", dialect, one="silent") for dialect in DIALECTS]
    alone = stage.pair("alone", targets=1, one="silent")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(
                bot, f"{pair.dialect}, two targets", "done at 0.3 s and a little; asked once", pair
            ) as case:
                told = bot.ask(pair.name, first_delta_timeout_ms=300)
                case.outcome(told, "done", by=pair.secondary, attempts=2)
                case.must(0.3 <= told.seconds < 0.9 * stage.slack, f"answered after {told.seconds:.2f} s")
                case.must(case.asked(0, told) == 1, f"asked {case.asked(0, told)} times")
        with stage.case(bot, "one target", "deadline_exceeded at the deadline, 1 attempt", alone) as case:
            case.outcome(bot.ask("alone", first_delta_timeout_ms=300, timeout_s=1.0), "deadline_exceeded")
            case.bounded(one=1)


@row(7, "first token after 20 s")
def slow_first(stage: Stage) -> None:
    """The next target is started, the first content wins, the loser is stopped upstream."""
    pairs = [stage.pair(f"{d}-2", d, one="slow_first", query="late_s=20") for d in DIALECTS]
    race = stage.pair("race", one="slow_first", query="late_s=0.6", two="slow_first", query_two="late_s=5")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(
                bot, f"{pair.dialect}, two targets", "done by the next; the slow one stopped", pair
            ) as case:
                told = bot.ask(pair.name, first_delta_timeout_ms=300)
                case.outcome(told, "done", by=pair.secondary, attempts=2)
                bot.until(lambda case=case: bool(case.events(0, "stopped")), 1.0)  # type: ignore[misc]
                case.must(len(case.events(0, "stopped")) == 1, "the loser was not stopped upstream")
                case.bounded(one=1, two=1)
        with stage.case(bot, "first at 0.6 s, second at 5 s", "the first's content wins all the same", race) as case:
            told = bot.ask("race", first_delta_timeout_ms=300)
            case.outcome(told, "done", by=race.primary, attempts=2)
            bot.until(lambda: bool(case.events(1, "stopped")), 1.0)
            case.must(len(case.events(1, "stopped")) == 1, "the loser was not stopped upstream")
            case.bounded(one=1, two=1)


@row(8, "cut after 40 of 60 tokens")
def cut(stage: Stage) -> None:
    """Told as lost, with what came; replaced only where nothing was forwarded or the bot asked for it. Never done."""
    kinds = {"EOF": "cut", "RST": "cut_rst", "close 1011": "close_1011", "error frame": "error_midway"}
    told = [
        (kind, stage.pair(f"{scenario}-{dialect}", dialect, one=f"{scenario}*1,ok", query="after=40"))
        for kind, scenario in kinds.items()
        for dialect in DIALECTS
        if dialect == "responses" or scenario in ("cut", "error_midway")
    ]
    again = [stage.pair(f"restart-{dialect}", dialect, one="cut", query="after=40") for dialect in DIALECTS]
    whole = stage.pair("whole", one="cut", query="after=40")
    alone = stage.pair("alone", targets=1, one="cut*1,ok", query="after=40")
    with stage.playing() as bot:
        for kind, pair in told:
            expected = "failed, partial, the 40 that came"
            with stage.case(bot, f"{kind}, {pair.dialect}", expected, pair) as case:
                call = bot.ask(pair.name, words=60)
                case.outcome(call, "upstream_error" if kind == "error frame" else "upstream_lost|upstream_error")
                case.must(call.partial, "not said to be partial")
                exact = 40 if kind != "RST" else 1  # a reset may overtake what was sent
                case.must(exact <= len(call.text.split()) <= 40, f"{len(call.text.split())} tokens came")
                case.bounded(one=1, two=0)
        for pair in again:
            with stage.case(bot, f'{pair.dialect}, on_lost "restart"', "restarted, done by the next", pair) as case:
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
