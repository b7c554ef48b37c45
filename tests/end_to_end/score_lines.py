"""Rows 18, 20 and 21 of the fault table: connections that end, lines that are bad, bytes that no server may send."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.score_bot import PATIENT_MS, Told, Trader
from tests.end_to_end.score_calls import row
from tests.end_to_end.score_case import Case, Pair
from tests.end_to_end.score_stage import Stage


@row(18, "60-minute expiry during a burst", "rotated before, or retried; no call lost")
def expiry(stage: Stage) -> None:
    """Rotated before, or retried; no call lost. The simulator ends each connection at 3 s, in the way's own form."""
    stage.simulators()
    stage.simulator(2, "--max-age-s", "3")
    seconds = 4.0 if stage.quick else 6.5  # two lives of a connection
    pairs = [stage.pair(f"told-{d}", d, targets=1, more="max_age_s = 1", sides=(2, 1)) for d in stage.some_dialects]
    pairs += [stage.pair(f"surprised-{d}", d, targets=1, sides=(2, 1)) for d in stage.some_dialects]
    twice = [stage.pair(f"twice-{d}", d, targets=1, one="expired*2,ok") for d in stage.some_dialects]
    announced = _announced(stage) if stage.way.over_http else []
    # After close 1012 nobody connects for up to 5 s, so as not to be one of a herd: that takes another target.
    leaving = stage.pair("leaving", targets=1 if stage.way.over_http else 2)
    idle = _short_of_patience(stage)
    with stage.playing() as bot:
        for pair in twice:
            with stage.case(bot, "told on two connections in a row", "done at once", pair) as case:
                told = bot.ask(pair.name)
                case.outcome(told, "done", attempts=3)
                case.must(told.seconds < 1.0 * stage.slack, f"done after {told.seconds:.2f} s")
                case.bounded(one=3)
        for pair in pairs:
            told_before = pair.name.startswith("told")
            said = "all done, none cut upstream" if told_before else "all done, those that were cut again"
            words = f"one target, max_age_s {'known' if told_before else 'not known'}"
            with stage.case(bot, words, said, pair) as case:
                calls = bot.steady(pair.name, seconds, 0.04, words=20, stream=told_before)
                cut = _burst_answered(case, calls)
                case.must(not told_before or cut == 0, f"{cut} calls were cut upstream")
                case.bounded(one=len(calls) + (0 if told_before else 40), connects=60)
        for kind, again, pair in announced:
            said = "all done, none asked twice" if not again else "all done, those that were not looked at again"
            with stage.case(bot, f"one target, {kind}", said, pair) as case:
                calls = bot.steady(pair.name, seconds / 4, 0.02, words=20)
                _burst_answered(case, calls)
                case.must(again or case.asked(0) == len(calls), "a call was asked twice")
                case.bounded(one=2 * len(calls), connects=2 * len(calls))
        words = f"{leaving.targets} target(s), all connections ended three times"
        with stage.case(bot, words, "all done, those that were cut again", leaving) as case:
            calls = _burst_that_is_left(stage, bot, leaving)
            _burst_answered(case, calls)
            case.bounded(one=len(calls) + 40, connects=60)
        if idle is not None:
            words = "one target, idle connections ended after 3 s"
            with stage.case(bot, words, "all done, none asked twice", idle) as case:
                calls = []
                for _ in range(1 if stage.quick else 3):
                    calls += bot.steady(idle.name, 0.3, 0.02)
                    bot.until(lambda: False, 3.3)
                calls += bot.steady(idle.name, 0.3, 0.02)
                _burst_answered(case, calls)
                case.must(case.asked(0) == len(calls), "a call was asked twice")


def _announced(stage: Stage) -> list[tuple[str, bool, Pair]]:
    """The server says itself that the connection ends: (how, whether calls are to be sent again, by which route)."""
    kinds = {"Connection: close in every third answer": (False, "goaway@0.34+ok@0.66")}
    if stage.way.shared:
        kinds = {
            "GOAWAY with every tenth answer": (False, "goaway@0.1+ok@0.9"),
            "GOAWAY before every tenth call": (True, "goaway_now@0.1+ok@0.9"),
            "REFUSED_STREAM for every tenth call": (True, "refused_stream@0.1+ok@0.9"),
        }
    return [
        (kind, again, stage.pair(f"announced{number}", targets=1, one=scenario))
        for number, (kind, (again, scenario)) in enumerate(kinds.items())
    ]


def _short_of_patience(stage: Stage) -> Pair | None:
    """An HTTP server that keeps nobody who asks nothing for 3 s: HTTP/1.1 says so in each head."""
    if not stage.way.over_http:
        return None
    stage.simulator(3, "--keepalive-timeout-s", "3")
    return stage.pair("idle", targets=1, sides=(3, 1))


def _burst_that_is_left(stage: Stage, bot: Trader, pair: Pair) -> list[Told]:
    """A burst in which the service ends all connections three times, as one does that is deployed anew."""
    calls: list[Told] = []
    for _ in range(3):
        calls += [bot.send(pair.name, words=20, stream=False) for _ in range(6)]
        bot.listen(0.03)
        stage.control(pair.sides[0], "_close", code=1012, upstream=pair.label)
        calls += bot.steady(pair.name, 0.5, 0.04, words=20, stream=False)
    bot.gather(*calls)
    return calls


def _burst_answered(case: Case, calls: list[Told]) -> int:
    """All of them done; how many were cut upstream."""
    case.saw(*calls)
    cut = len(case.events(0, "cut"))
    case.score.seen += f"; {cut} cut upstream"
    case.answered(calls)
    return cut


@row(
    20,
    "8 link toxics (latency, jitter, bandwidth, slow close, silence, reset, slicer, data limit) in any mix",
    "invariants of wire.md hold",
)
def toxics(stage: Stage) -> None:
    """Each alone and several mixes: whatever comes keeps the wire's promises, and what was not forwarded is rescued."""
    from sidecar.simulator.toxics import TOXICS

    dice = random.Random(20)
    mixes = [(name,) for name in TOXICS]
    ends = ("silence", "reset", "limit")
    slow = [name for name in TOXICS if name not in ends]
    number = 3 if stage.quick or stage.way.shared else 8
    mixes += [(*dice.sample(slow, dice.randint(1, 4)), dice.choice(ends)) for _ in range(number)]
    mixes.append(tuple(slow))
    if stage.quick:
        mixes = [("silence",), ("reset",), *mixes[8:]]
    pairs = []
    for place, mix in enumerate(mixes):
        query = (
            f"link_latency_ms=40&link_jitter_ms=40&link_slow_close_ms=500&link_after_bytes={dice.randint(300, 9000)}"
        )
        name = f"line{place}"
        dialect = stage.dialects[place % len(stage.dialects)]
        pairs.append((mix, stage.pair(name, dialect, one=f"toxic_{'-'.join(mix)}", query=query)))
    with stage.playing(ready=False) as bot:
        for mix, pair in pairs:
            with stage.case(bot, " + ".join(mix), "promises kept; stream: false all done", pair) as case:
                calls = []
                for wave in range(2):
                    calls += [
                        bot.send(
                            pair.name, words=40, stream=stream, timeout_s=4.0,
                            first_delta_timeout_ms=600, idle_timeout_ms=500,
                        )
                        for stream in (True, False) * (3 - wave)
                    ]  # fmt: skip
                    bot.gather(*calls)
                case.saw(*calls)
                case.kills = True  # a line that was bad stays so
                whole = [call for call in calls if not call.stream]
                case.answered(whole)
                torn = {c.outcome for c in calls if c.stream and c.outcome != "done"}
                case.must(torn <= {"upstream_lost", "idle_timeout"}, f"streams ended {', '.join(sorted(torn))}")
                case.must(all(c.partial for c in calls if c.stream and c.outcome != "done"), "lost without a delta")
                case.bounded(one=3 * len(calls), two=2 * len(calls), connects=40)


#: Row 21, by way: what comes, as what the simulator has it. "before": it comes in place of content, so that a call is
#: replaced even where it is streamed.
_FRAMES: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "websocket": {
        "a giant frame": ("giant_frame", ""),
        "endless fragments": ("endless_fragments", ""),
        "empty fragments": ("empty_fragments", ""),
        "bad UTF-8": ("bad_utf8", ""),
        "a masked frame": ("masked_frame", ""),
        "zstd bomb": ("zstd_bomb", ""),
    },
    "http1": {
        "a giant event": ("giant_frame", ""),
        "a line without end": ("endless_fragments", ""),
        "comments without end": ("empty_fragments", ""),
        "bad UTF-8": ("bad_utf8", ""),
        "a chunk of no size": ("masked_frame", ""),
        "a chunk of negative size": ("zstd_bomb", ""),
        "a gzip bomb nobody asked for": ("packed", "before"),
        "JSON without end": ("endless_json", "before"),
        "a head without end": ("endless_head", "before"),
        "103 without end": ("flood", "before"),
    },
    "http2": {
        "a giant event": ("giant_frame", ""),
        "a line without end": ("endless_fragments", ""),
        "comments without end": ("empty_fragments", ""),
        "bad UTF-8": ("bad_utf8", ""),
        "WINDOW_UPDATE of a wrong length": ("masked_frame", ""),
        "SETTINGS of a wrong length": ("binary_garbage", ""),
        "DATA for no stream": ("zstd_bomb", ""),
        "a flood of PINGs": ("flood", "before"),
        "a gzip bomb nobody asked for": ("packed", "before"),
        "JSON without end": ("endless_json", "before"),
        "CONTINUATION without end": ("endless_head", "before"),
    },
}
#: Content that cannot be trusted is so in each dialect's own way.
_BY_DIALECT: Final = ("giant_frame", "bad_utf8")


@row(
    21,
    "giant frame, endless fragments, empty fragments, bad UTF-8, masked server frame, zstd bomb",
    "connection retired, bounded memory",
)
def frames(stage: Stage) -> None:
    """The connection is retired, memory stays bounded, and what was not forwarded is rescued."""
    size = 16 << 20
    pairs = [
        (
            kind,
            where,
            stage.pair(
                f"{scenario}-{dialect}", dialect, one=scenario,
                query=f"size_bytes={size}{'&after=0' if where else ''}",
                more='compression = "zstd-stream"' if scenario == "zstd_bomb" and not stage.way.over_http else "",
            ),
        )
        for kind, (scenario, where) in _FRAMES[stage.way_name].items()
        for dialect in stage.dialects
        if dialect == stage.usual or (not stage.quick and (scenario in _BY_DIALECT or not stage.way.over_http))
    ]  # fmt: skip
    with stage.playing() as bot:
        for kind, where, pair in pairs:
            said = "done by the next" if where == "before" else "upstream_lost, partial; stream: false done by the next"
            with stage.case(bot, kind, f"{said}; below 12 MiB more", pair) as case:
                before = _peak(stage)
                _hostile(case, bot, where)
                grown = (_peak(stage) - before) / 2**20
                case.score.seen += f"; {grown:.1f} MiB more"
                case.must(grown < 12, f"the daemon grew by {grown:.0f} MiB")
                case.bounded(one=2, two=2 if where == "before" else 1)


def _hostile(case: Case, bot: Trader, where: str) -> None:
    """A call that is streamed and one that is not; then nothing of it may go on."""
    pair, slack = case.pair, case.stage.slack
    # What a slow machine must not end is 16 MiB on their way, and read.
    patience: dict[str, Any] = {"timeout_s": 3.0 * slack, "idle_timeout_ms": PATIENT_MS * int(slack)}
    told = bot.ask(pair.name, words=20, **patience)
    if where == "before":
        case.outcome(told, "done", by=pair.secondary, attempts=2)
    else:
        case.outcome(told, "upstream_lost", by=pair.primary)
        case.must(told.partial, "not said to be partial")
    whole = bot.ask(pair.name, words=20, stream=False, **patience)
    case.outcome(whole, "done", by=pair.secondary, attempts=2)
    case.within(lambda: len(case.events(0, "gone")) >= 2 and not _running(case), 3.0)
    case.must(len(case.events(0, "gone")) >= 2, "a connection was not retired")
    case.must(not _running(case), f"{_running(case)} answers are still read")


def _running(case: Case) -> int:
    """Calls at the primary that nobody has ended."""
    return len(case.events(0, "call")) - len(case.events(0, "finished", "stopped", "cut"))


def _peak(stage: Stage) -> int:
    """Bytes: the most memory the daemon has had."""
    assert stage.serving is not None
    for line in Path(f"/proc/{stage.serving.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
