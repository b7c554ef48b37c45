"""Rows 9 to 14, 16, 22 and 23 of the fault table: answers that stall, are malformed, or are none."""

from __future__ import annotations

import time

from tests.end_to_end.score_bot import Told, Trader
from tests.end_to_end.score_calls import row
from tests.end_to_end.score_case import Case, Pair
from tests.end_to_end.score_stage import Stage

#: What comes before the first token, frames of it: so many more make the tenth.
_BEFORE = {"responses": 3, "chat": 1, "messages": 3}


@row(9, "stall after 20 tokens with keep-alives flowing", "idle timeout; connection retired; healthy afterwards")
def stall(stage: Stage) -> None:
    """Idle timeout; the connection is retired (over HTTP/2 when the others on it are over); the next call goes on."""
    pairs = [stage.pair(d, d) for d in stage.dialects]
    again = stage.pair("again", one="stall", query="after=20")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, "", "idle_timeout after 0.3 s of no content, partial; stopped upstream", pair) as case:
                call = bot.send(pair.name, words=60, idle_timeout_ms=300, steering="scenario=stall after=20")
                bot.until(lambda call=call: call.deltas > 0, 2.0)  # type: ignore[misc]
                beside = case.share() + bot.steady(pair.name, 0.6, 0.05)
                bot.gather(call)
                case.outcome(call, "idle_timeout|upstream_lost", by=pair.primary)
                case.must(
                    call.partial and len(call.text.split()) == 20, f"{call.deltas} deltas, partial {call.partial}"
                )
                case.must(0.3 <= call.seconds < 0.9 * stage.slack, f"told after {call.seconds:.2f} s")
                case.unharmed(beside)
                _given_up(case, call)
        with stage.case(bot, 'on_lost "restart"', "restarted, done by the next", again) as case:
            call = bot.ask("again", words=60, idle_timeout_ms=300, on_lost="restart")
            case.outcome(call, "done", by=again.secondary, attempts=2)
            case.bounded(one=1, two=1)


def _given_up(case: Case, call: Told) -> None:
    """An answer that cannot be trusted is not read on, and its connection is not used again.

    Where calls share one, it ends when the others on it are over, and it is the answer that is stopped at once.
    """
    case.within(lambda: case.stopped(0, call) and bool(case.events(0, "gone")), 1.0)
    case.must(case.stopped(0, call), "the upstream was not told that nobody reads it")
    case.must(bool(case.events(0, "gone")), "the connection was not retired")


@row(
    10,
    "the tenth frame is not JSON",
    "attempt lost: failed, or replaced where not committed; never done with a hole; daemon and other calls unharmed",
)
def malformed(stage: Stage) -> None:
    """The attempt is lost: failed, or replaced where nothing was forwarded. Never done with a hole; others unharmed."""
    pairs = [stage.pair(d, d) for d in stage.dialects]
    first = [stage.pair(f"first-{d}", d, one="malformed", query="after=0") for d in stage.dialects]
    whole = stage.pair("whole", one="malformed", query="after=6")
    with stage.playing() as bot:
        for pair in pairs:
            with stage.case(bot, "forwarded", "upstream_lost, partial, no hole", pair) as case:
                after = 9 - _BEFORE[pair.dialect]
                call = bot.send(pair.name, words=250, steering=f"scenario=malformed after={after}")
                others = case.share()  # now: the fault is milliseconds away
                bot.until(lambda call=call: call.deltas > 0, 2.0)  # type: ignore[misc]
                beside = [*others, *bot.steady(pair.name, 0.4, 0.05)]
                bot.gather(call)
                case.outcome(call, "upstream_lost", by=pair.primary)
                case.must(call.partial, "not said to be partial")
                came = len(call.text.split())
                case.must(came == after, f"{came} tokens came: not those before the fault")
                case.unharmed(beside)
                _given_up(case, call)
        for pair in first:
            with stage.case(bot, "before the first token", "replaced: done by the next", pair) as case:
                case.outcome(bot.ask(pair.name, words=60), "done", by=pair.secondary, attempts=2)
                case.bounded(one=1, two=1)
        with stage.case(bot, "stream: false", "replaced: done by the next", whole) as case:
            case.outcome(bot.ask("whole", words=60, stream=False), "done", by=whole.secondary, attempts=2)
            case.bounded(one=1, two=1)


@row(11, "ends without the end marker", "done promptly with usage if it came")
def no_end(stage: Stage) -> None:
    """Done promptly, with usage if it came; content without any end at all is never done."""
    marked = [d for d in stage.dialects if d != "responses"]  # whose last event is its end marker
    usage = [(d, True, stage.pair(f"usage-{d}", d, one="no_done")) for d in marked]
    bare = [(d, False, stage.pair(f"bare-{d}", d, one="no_done", query="usage=false")) for d in marked]
    open_ended = [stage.pair(f"linger-{d}", d, one="linger", query="late_s=3") for d in stage.dialects]
    ends = [stage.pair(f"endless-{d}", d, one="stall_silent", query="after=12") for d in stage.dialects]
    with stage.playing() as bot:
        for _, said, pair in (*usage, *bare):
            with stage.case(bot, f"{'with' if said else 'without'} usage", "done promptly", pair) as case:
                _promptly(case, bot)
                case.must(_estimated(case) is not said, f"usage estimated: {_estimated(case)}")
        for pair in open_ended if stage.way.over_http else ():
            with stage.case(bot, "the body does not end for 3 s", "done promptly, with usage", pair) as case:
                _promptly(case, bot)
                case.must(_estimated(case) is False, "the usage is an estimate")
        for pair in ends:
            with stage.case(bot, "no finish either", "idle_timeout, partial; not done", pair) as case:
                call = bot.ask(pair.name, words=12, idle_timeout_ms=300)
                case.outcome(call, "idle_timeout|upstream_lost")
                case.must(call.partial and call.text == call.expected, "what came was not forwarded")
                case.bounded(one=1, two=0)


def _promptly(case: Case, bot: Trader) -> None:
    call = bot.ask(case.pair.name)
    case.outcome(call, "done", by=case.pair.primary, attempts=1)
    case.must(call.seconds < 1.0 * case.stage.slack, f"done after {call.seconds:.2f} s")
    case.bounded(one=1, two=0)


def _estimated(case: Case) -> bool | None:
    terminal = case.calls[-1].terminal or {}
    return (terminal.get("usage") or {}).get("estimated")


@row(12, "context length exceeded", "one attempt, said clearly")
def context_length(stage: Stage) -> None:
    """One attempt, said clearly."""
    _own_fault(stage, {"error frame": "error_context_length"}, "context_length_exceeded")


@row(13, "content filter", "one attempt, upstream's reason passed on")
def content_filter(stage: Stage) -> None:
    """One attempt, the upstream's reason passed on."""
    kinds = {"error frame": "error_content_filter", "ends early": "incomplete_filter", "refusal": "refusal"}
    _own_fault(stage, kinds, "content_filter")


#: How the services word it.
_REASONS = {
    "context_length_exceeded": ("context window", "context length", "prompt is too long"),
    "content_filter": ("filter", "policy"),
}


def _own_fault(stage: Stage, kinds: dict[str, str], code: str) -> None:
    pairs = [(k, stage.pair(f"{name}-{d}", d, one=name)) for k, name in kinds.items() for d in stage.dialects]
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(bot, kind, f"{code}, 1 attempt, the reason said", pair) as case:
                call = bot.ask(pair.name)
                said = call.terminal or {}
                call.foreign = kind == "refusal"  # the words of the model are its text here
                case.outcome(call, code, by=pair.primary, attempts=1)
                reason = said.get("message", "")
                if kind == "error frame":
                    known = any(words in reason.lower() for words in _REASONS[code])
                    case.must(known, f"the reason is not passed on: {reason}")
                    case.must(said.get("upstream_status") == 400, f"status {said.get('upstream_status')}")
                if kind == "refusal":
                    words = f"{reason} {call.text}"
                    case.must("can't help with that" in words, f"the refusal is not passed on: {words}")
                case.must(bool(reason), "no reason at all is said")
                case.must(said.get("retryable") is False, "said to be retryable")
                case.bounded(one=1, two=0)


@row(14, "the secondary also fails, differently", "the primary's reason is not masked")
def both_fail(stage: Stage) -> None:
    """The primary's reason is not masked."""
    mixes = {
        "500, then cut": ("error_500", "reset", "upstream_error", 500),
        "cut, then 500": ("reset", "error_500", "upstream_lost", None),
        "429, then 500": ("error_429", "error_500", "upstream_rate_limited", 429),
        "401, then 503": ("error_401", "error_503", "upstream_auth", 401),
        "500, then no such model": ("error_500", "error_404", "upstream_error", 500),
        "malformed, then quota": ("malformed", "error_quota", "upstream_lost", None),
    }
    pairs = [
        (mix, stage.pair(f"mix{number}", one=mixes[mix][0], two=mixes[mix][1], query="after=0&retry_after_s=30"))
        for number, mix in enumerate(mixes)
    ]
    with stage.playing() as bot:
        for mix, pair in pairs:
            _, _, code, status = mixes[mix]
            with stage.case(bot, mix, f"{code}, at most 3 attempts", pair) as case:
                case.heal_within = 35.0 if mix.startswith("429") else 12.0
                call = bot.ask(pair.name, timeout_s=2.0)
                case.outcome(call, code, by=pair.primary)
                said = (call.terminal or {}).get("upstream_status")
                case.must(said == status, f"status {said}: not the primary's")
                case.must(case.asked(0, call) + case.asked(1, call) <= 3, "more than 3 attempts")
                case.must(case.asked(1, call) >= 1, "the secondary was not asked")


@row(16, "failover accounting", "model, upstream, usage, attempts reported are those that answered")
def accounting(stage: Stage) -> None:
    """Model, upstream, usage and attempts reported are those of the attempt that answered."""
    pairs = [stage.pair(f"{d}-error", d, one="error_500") for d in stage.dialects]
    again = [stage.pair(f"{d}-cut", d, one="cut", query="after=5") for d in stage.dialects]
    with stage.playing() as bot:
        for pair in [*pairs, *again]:
            restart = pair in again
            with stage.case(bot, "restart" if restart else "retry", "those of the second", pair) as case:
                call = bot.ask(pair.name, words=17, on_lost="restart" if restart else "fail")
                case.outcome(call, "done", by=pair.secondary, attempts=2)
                said = call.terminal or {}
                case.must(said["model"] == "model-2", f"model {said['model']}")
                case.must(said["model_reported"] == "model-2", f"model_reported {said['model_reported']}")
                case.must(said["usage"]["output_tokens"] == 17, f"usage {said['usage']}")
                case.must(said["usage"]["estimated"] is False, "the usage is an estimate")
                case.must(case.asked(0, call) + case.asked(1, call) == said["attempts"], "attempts are not those seen")
                case.bounded(one=1, two=1)


@row(
    22,
    "duplicate terminal, tokens after it, another call's id, unknown events",
    "ignored or retired; no leak across calls",
)
def strange(stage: Stage) -> None:
    """Ignored or retired; never in a done, and the next calls get their own words only."""
    kinds = ["duplicate_terminal", "tokens_after_terminal", "unknown_events", "stray"]
    pairs = [(kind, stage.pair(f"{kind}-{d}", d, one=kind)) for kind in kinds for d in stage.dialects]
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(bot, kind, "each call its own words, whole", pair) as case:
                calls = _chain(bot, pair, 8)
                for call in calls:
                    if kind == "stray" and call.outcome == "upstream_lost" and not stage.way.shared:
                        call.foreign = True  # it came first, and was found out before the end
                case.saw(*calls)
                done = [call for call in calls if call.outcome == "done"]
                lost = [call for call in calls if call.outcome not in ("done", "upstream_lost")]
                case.must(not lost, f"ended {', '.join(call.outcome for call in lost)}")
                case.must(kind == "stray" or len(done) == 8, f"only {len(done)} of 8 done")
                case.bounded(one=16, two=8)


@row(23, "error frame inside a response that already said created", "still retriable: no content yet")
def error_after_created(stage: Stage) -> None:
    """Still retriable: there was no content yet."""
    kinds = ["error_after_created", "failed"]
    if stage.way.over_http:
        kinds[1:] = ["json_error"]  # the error of a 200 that is no stream
    pairs = [(kind, stage.pair(f"{kind}-{d}", d, one=kind)) for kind in kinds for d in stage.dialects]
    if stage.way.over_http:  # the only dialect whose answer can say that it failed
        pairs.append(("failed", stage.pair("failed", "responses", one="failed")))
    alone = stage.pair("alone", targets=1, one="error_after_created*1,ok")
    with stage.playing() as bot:
        for kind, pair in pairs:
            with stage.case(bot, kind, "done by the next, 2 attempts", pair) as case:
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
