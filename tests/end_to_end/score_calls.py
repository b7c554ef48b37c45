"""Rows 1 to 14, 16, 22 and 23 of the fault table: what befalls a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tests.end_to_end.score_bot import Told, Trader
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
            case.must(all(call.outcome == "done" for call in calls), "a call was not answered")
            case.bounded(one=0, connects=4)
        with stage.case(
            bot, "two targets", "the next target at once; the throttled one left alone for 2 s", two
        ) as case:
            case.outcome(bot.ask("two"), "done", by=two.secondary, attempts=2)
            calls = bot.steady("two", 1.5, 0.1)
            case.saw(*calls)
            case.must(all(call.outcome == "done" for call in calls), "a call beside it was not answered")
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
            case.must(all(call.outcome == "done" for call in calls), "a call was not answered")
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
                case.must(all(call.outcome == "done" for call in calls), "a call was not answered")
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


@row(9, "stall after 20 tokens with keep-alives flowing")
def stall(stage: Stage) -> None:
    """Idle timeout; the connection is retired; other calls of the same upstream go on, and so does the next."""
    pairs = [stage.pair(d, d, one="stall*1,ok", query="after=20") for d in DIALECTS]
    again = stage.pair("again", one="stall", query="after=20")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, pair.dialect, "idle_timeout after 0.3 s of no content, partial", pair) as case:
                call = bot.send(pair.name, words=60, idle_timeout_ms=300)
                bot.until(lambda call=call: call.deltas > 0, 2.0)  # type: ignore[misc]
                beside = bot.steady(pair.name, 0.6, 0.05)
                bot.gather(call)
                case.outcome(call, "idle_timeout|upstream_lost")
                case.must(
                    call.partial and len(call.text.split()) == 20, f"{call.deltas} deltas, partial {call.partial}"
                )
                case.must(call.seconds < 0.9 * stage.slack, f"told after {call.seconds:.2f} s")
                case.saw(*beside)
                case.must(all(one.outcome == "done" for one in beside), "another call of this upstream was harmed")
                bot.until(lambda case=case: bool(case.events(0, "stopped")), 1.0)  # type: ignore[misc]
                case.must(bool(case.events(0, "gone")), "the connection was not retired")
        with stage.case(bot, 'on_lost "restart"', "restarted, done by the next", again) as case:
            call = bot.ask("again", words=60, idle_timeout_ms=300, on_lost="restart")
            case.outcome(call, "done", by=again.secondary, attempts=2)
            case.bounded(one=1, two=1)


@row(10, "the tenth frame is not JSON")
def malformed(stage: Stage) -> None:
    """The attempt is lost: failed, or replaced where nothing was forwarded. Never done with a hole; others unharmed."""
    after = {"responses": 6, "chat": 8}  # what comes before the first token counts as well
    pairs = [stage.pair(d, d, one="malformed*1,ok", query=f"after={after[d]}") for d in DIALECTS]
    first = [stage.pair(f"first-{d}", d, one="malformed", query="after=0") for d in DIALECTS]
    whole = stage.pair("whole", one="malformed", query="after=6")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, f"{pair.dialect}, forwarded", "upstream_lost, partial, no hole", pair) as case:
                call = bot.send(pair.name, words=60)
                bot.until(lambda call=call: call.deltas > 0, 2.0)  # type: ignore[misc]
                beside = bot.steady(pair.name, 0.4, 0.05)
                bot.gather(call)
                case.outcome(call, "upstream_lost")
                case.must(call.partial, "not said to be partial")
                case.saw(*beside)
                case.must(all(one.outcome == "done" for one in beside), "another call of this upstream was harmed")
        for pair in first:
            with stage.case(bot, f"{pair.dialect}, before the first token", "replaced: done by the next", pair) as case:
                case.outcome(bot.ask(pair.name, words=60), "done", by=pair.secondary, attempts=2)
                case.bounded(one=1, two=1)
        with stage.case(bot, "stream: false", "replaced: done by the next", whole) as case:
            case.outcome(bot.ask("whole", words=60, stream=False), "done", by=whole.secondary, attempts=2)
            case.bounded(one=1, two=1)


@row(11, "ends without the end marker")
def no_end(stage: Stage) -> None:
    """Done promptly, with usage if it came; content without any end at all is never done."""
    usage = stage.pair("usage", "chat", one="no_done")
    bare = stage.pair("bare", "chat", one="no_done", query="usage=false")
    ends = [stage.pair(f"endless-{d}", d, one="stall_silent", query="after=12") for d in DIALECTS]
    with stage.playing() as bot:
        for pair, said in ((usage, True), (bare, False)):
            with stage.case(bot, f"chat, {'with' if said else 'without'} usage", "done promptly", pair) as case:
                call = bot.ask(pair.name)
                case.outcome(call, "done", by=pair.primary, attempts=1)
                case.must(call.seconds < 1.0 * stage.slack, f"done after {call.seconds:.2f} s")
                estimated = ((call.terminal or {}).get("usage") or {}).get("estimated")
                case.must(estimated is not said, f"usage estimated: {estimated}")
                case.bounded(one=1, two=0)
        for pair in ends:
            with stage.case(bot, f"{pair.dialect}, no finish either", "idle_timeout, partial; not done", pair) as case:
                call = bot.ask(pair.name, words=12, idle_timeout_ms=300)
                case.outcome(call, "idle_timeout|upstream_lost")
                case.must(call.partial and call.text == call.expected, "what came was not forwarded")
                case.bounded(one=1, two=0)


@row(12, "context length exceeded")
def context_length(stage: Stage) -> None:
    """One attempt, said clearly."""
    _own_fault(stage, {"error frame": "error_context_length"}, "context_length_exceeded")


@row(13, "content filter")
def content_filter(stage: Stage) -> None:
    """One attempt, the upstream's reason passed on."""
    kinds = {"error frame": "error_content_filter", "ends early": "incomplete_filter", "refusal": "refusal"}
    _own_fault(stage, kinds, "content_filter")


def _own_fault(stage: Stage, kinds: dict[str, str], code: str) -> None:
    pairs = [(k, stage.pair(f"{name}-{d}", d, one=name)) for k, name in kinds.items() for d in DIALECTS]
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(bot, f"{kind}, {pair.dialect}", f"{code}, 1 attempt, the reason said", pair) as case:
                call = bot.ask(pair.name)
                said = call.terminal or {}
                if kind == "refusal":  # the words of the model are its text here
                    call.broken.clear()
                case.outcome(call, code, attempts=1)
                if kind == "error frame":
                    words = "context window" if code == "context_length_exceeded" else "filtered"
                    case.must(words in said.get("message", ""), f"the reason is not passed on: {said.get('message')}")
                    case.must(said.get("upstream_status") == 400, f"status {said.get('upstream_status')}")
                case.must(said.get("retryable") is False, "said to be retryable")
                case.bounded(one=1, two=0)


@row(14, "the secondary also fails, differently")
def both_fail(stage: Stage) -> None:
    """The primary's reason is not masked."""
    mixes = {
        "500, then cut": ("error_500", "reset", "upstream_error"),
        "cut, then 500": ("reset", "error_500", "upstream_lost"),
        "429, then 500": ("error_429", "error_500", "upstream_rate_limited"),
        "401, then 503": ("error_401", "error_503", "upstream_auth"),
        "500, then no such model": ("error_500", "error_404", "upstream_error"),
        "malformed, then quota": ("malformed", "error_quota", "upstream_lost"),
    }
    pairs = [
        (mix, stage.pair(f"mix{number}", one=mixes[mix][0], two=mixes[mix][1], query="after=0&retry_after_s=30"))
        for number, mix in enumerate(mixes)
    ]
    with stage.playing() as bot:
        for mix, pair in pairs:
            code = mixes[mix][2]
            with stage.case(bot, mix, f"{code}, at most 3 attempts", pair) as case:
                case.heal_within = 35.0 if mix.startswith("429") else 12.0
                call = bot.ask(pair.name, timeout_s=2.0)
                case.outcome(call, code)
                case.must(case.asked(0, call) + case.asked(1, call) <= 3, "more than 3 attempts")
                case.must(case.asked(1, call) >= 1, "the secondary was not asked")


@row(16, "failover accounting")
def accounting(stage: Stage) -> None:
    """Model, upstream, usage and attempts reported are those of the attempt that answered."""
    pairs = [stage.pair(f"{d}-error", d, one="error_500") for d in DIALECTS]
    again = [stage.pair(f"{d}-cut", d, one="cut", query="after=5") for d in DIALECTS]
    with stage.playing() as bot:
        for pair in [*pairs, *again]:
            restart = pair in again
            with stage.case(
                bot, f"{pair.dialect}, {'restart' if restart else 'retry'}", "those of the second", pair
            ) as case:
                call = bot.ask(pair.name, words=17, on_lost="restart" if restart else "fail")
                case.outcome(call, "done", by=pair.secondary, attempts=2)
                said = call.terminal or {}
                case.must(said["model"] == "model-2", f"model {said['model']}")
                case.must(said["model_reported"] == "model-2", f"model_reported {said['model_reported']}")
                case.must(said["usage"]["output_tokens"] == 17, f"usage {said['usage']}")
                case.must(said["usage"]["estimated"] is False, "the usage is an estimate")
                case.must(case.asked(0, call) + case.asked(1, call) == said["attempts"], "attempts are not those seen")
                case.bounded(one=1, two=1)


@row(22, "duplicate terminal, tokens after it, another call's id, unknown events")
def strange(stage: Stage) -> None:
    """Ignored or retired; never in a done, and the next calls get their own words only."""
    kinds = ("duplicate_terminal", "tokens_after_terminal", "stray", "unknown_events")
    pairs = [(kind, stage.pair(f"{kind}-{d}", d, one=kind)) for kind in kinds for d in DIALECTS]
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(bot, f"{kind}, {pair.dialect}", "each call its own words, whole", pair) as case:
                calls = _chain(bot, pair, 8)
                for call in calls:
                    if kind == "stray" and call.outcome == "upstream_lost":
                        call.foreign = True  # it came first, and was found out before the end
                case.saw(*calls)
                done = [call for call in case._calls if call.outcome == "done"]
                lost = [call for call in case._calls if call.outcome not in ("done", "upstream_lost")]
                case.must(not lost, f"ended {', '.join(call.outcome for call in lost)}")
                case.must(kind == "stray" or len(done) == 8, f"only {len(done)} of 8 done")
                case.bounded(one=16, two=8)


@row(23, "error frame inside a response that already said created")
def error_after_created(stage: Stage) -> None:
    """Still retriable: there was no content yet."""
    kinds = ("error_after_created", "failed")
    pairs = [(kind, stage.pair(f"{kind}-{d}", d, one=kind)) for kind in kinds for d in DIALECTS]
    alone = stage.pair("alone", targets=1, one="error_after_created*1,ok")
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(bot, f"{kind}, {pair.dialect}", "done by the next, 2 attempts", pair) as case:
                call = bot.ask(pair.name)
                case.outcome(call, "done", by=pair.secondary, attempts=2)
                case.must(call.restarts == 0, "restarted was said without a delta before it")
                case.bounded(one=1, two=1)
        with stage.case(bot, "one target, once", "done, 2 attempts", alone) as case:
            case.outcome(bot.ask("alone"), "done", attempts=2)
            case.bounded(one=2)


def _targets(pair: Pair) -> str:
    return "two targets" if pair.targets > 1 else "one target"


def _chain(bot: Trader, pair: Pair, number: int) -> list[Told]:
    """Calls one after another: the same connection, most likely."""
    calls = []
    for _ in range(number):
        calls.append(bot.ask(pair.name, words=9))
        time.sleep(0.005)
    return calls
