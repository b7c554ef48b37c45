"""Rows 9 to 14, 16, 22 and 23 of the fault table: answers that stall, are malformed, or are none."""

from __future__ import annotations

import time

from tests.end_to_end.score_bot import Told, Trader
from tests.end_to_end.score_calls import row
from tests.end_to_end.score_stage import DIALECTS, Pair, Stage


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
    kinds = ["duplicate_terminal", "tokens_after_terminal", "unknown_events"]
    if not stage.over_http:  # there each answer has a byte stream of its own: all that comes on it is its
        kinds.append("stray")
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


def _chain(bot: Trader, pair: Pair, number: int) -> list[Told]:
    """Calls one after another: the same connection, most likely."""
    calls = []
    for _ in range(number):
        calls.append(bot.ask(pair.name, words=9))
        time.sleep(0.005)
    return calls
