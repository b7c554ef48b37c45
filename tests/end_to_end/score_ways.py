"""Rows 15, 17 to 21 and 24 of the fault table: what befalls an upstream, its door, its line, its connections."""

from __future__ import annotations

import os
import random
import statistics
import time
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.score_bot import Told, Trader
from tests.end_to_end.score_calls import ROWS, row
from tests.end_to_end.score_stage import DIALECTS, Case, Pair, Stage

#: Row 15: seconds of outage, and until all calls are the primary's again: the longest time open, and the ramp.
OUTAGE_S, QUICK_OUTAGE_S = 60.0, 5.0
RETURN_S, QUICK_RETURN_S = 50.0, 20.0
SHORT_BREAKER: Final = "breaker = { open_min_s = 0.5, open_max_s = 2 }"
SHORT_RAMP: Final = "return_ramp_s = 2"


@row(15, "down, then healthy, calls all along")
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
    case.must(len(lost) == len(torn), f"{len(lost) - len(torn)} calls were not answered")
    during = [call for call in calls if began + 2 < call.sent_at < healed]
    by = {call.upstream for call in during}
    case.must(by == {case.pair.secondary}, f"during the outage answered by {', '.join(sorted(by))}")
    if case.must(returned is not None, "the primary did not get its calls back"):
        assert returned is not None
        case.score.seen += f"; back after {returned - healed:.1f} s"
    if case.pair.name == "failing":
        asked = _spans(case.events(0, "call", "finished", "stopped", "cut"))
        first, last = 1e6 * began, 1e6 * healed
        outage = [span for span in asked if first <= span[0] <= last]
        case.must(len(outage) <= _most_trials(seconds), f"{len(outage)} calls asked it during the outage")
        # Five failures trip it; what had been sent until those were heard of is no trial.
        tripped = sorted(end for _, end in outage)[4] if len(outage) > 4 else last
        trials = [span for span in outage if span[0] > tripped + 0.1e6 * stage.slack]
        case.must(_most_at_once(trials) <= 1, f"{_most_at_once(trials)} trials at once")
        again = [span for span in asked if span[0] > last][:2]
        case.must(_most_at_once(again) <= 1, "the first calls after it came at once: no trial")
        case.score.seen += f"; {len(outage)} asked it meanwhile, {len(trials)} as trials"
    else:
        connects = stage.log().count("connect.failed")
        case.must(connects <= 10 + seconds, f"{connects} connects failed in {seconds:.0f} s")
        case.score.seen += f"; {connects} connects failed"


def _spans(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """When each call at an upstream began and ended, in the order of their beginnings."""
    began = {note["number"]: note["at_us"] for note in events if note["event"] == "call"}
    ended = {note["number"]: note["at_us"] for note in events if note["event"] != "call"}
    return sorted((at, ended.get(number, at + 1e9)) for number, at in began.items())


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


@row(17, "401 after a credential's rotation")
def rotation(stage: Stage) -> None:
    """The new credential is picked up, no call is lost."""
    stage.simulators()
    pairs = []
    for number, name in enumerate(("together", "late-two", "late-one")):
        stage.simulator(2 + number, "--key", "old-key")
        file = stage.folder / f"{name}.key"
        _write_key(file, "old-key")
        targets = 2 if name == "late-two" else 1
        pairs.append(
            stage.pair(name, targets=targets, more=f'credential = {{ file = "{file}" }}', sides=(2 + number, 1))
        )
    with stage.playing() as bot:
        for pair, late, said in zip(
            pairs,
            (0.0, 1.0, 1.0),
            (
                "all done, by the new key",
                "all done, the next target serves meanwhile, then the new key",
                "upstream_auth at once meanwhile, done within 2 s of the new key",
            ),
            strict=True,
        ):
            words = "at once" if not late else f"{late:.0f} s later"
            with stage.case(bot, f"the new key {words}, {pair.targets} target(s)", said, pair) as case:
                calls = bot.steady(pair.name, 0.5, 0.05, stream=False)
                at, file = pair.sides[0], stage.folder / f"{pair.name}.key"
                if not late:
                    _write_key(file, "new-key")
                stage.control(at, "_keys", accept="new-key")
                stage.control(at, "_close", code=1008)
                calls += bot.steady(pair.name, max(late, 0.5), 0.05, stream=False)
                if late:
                    _write_key(file, "new-key")
                written = time.monotonic()
                later = bot.steady(pair.name, 3.5, 0.05, stream=False)
                case.saw(*calls, *later)
                settled = [call for call in later if call.sent_at > written + 2.0]
                lost = [c for c in (*calls, *later) if c.outcome != "done"]
                if late and pair.targets == 1:
                    case.must({c.outcome for c in lost} <= {"upstream_auth"}, "ended otherwise than upstream_auth")
                    slowest = max((call.seconds for call in lost), default=0.0)
                    case.must(slowest < 0.5 * stage.slack, f"told after {slowest:.1f} s")
                    lost = [call for call in settled if call.outcome != "done"]
                case.must(not lost, f"{len(lost)} calls were lost")
                by = {call.upstream for call in settled}
                case.must(pair.primary in by, f"in the end answered by {', '.join(sorted(by))}")
                case.bounded(connects=20)


def _write_key(file: Path, key: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.touch(0o600)
    fresh.write_text(key + "\n")
    os.replace(fresh, file)


@row(18, "the connection's time is over during a burst")
def expiry(stage: Stage) -> None:
    """Rotated before, or retried; no call lost. The simulator ends each connection at 3 s."""
    stage.simulators()
    stage.simulator(2, "--max-age-s", "3")
    seconds = 4.0 if stage.quick else 8.0
    pairs = [stage.pair(f"told-{d}", d, targets=1, more="max_age_s = 1", sides=(2, 1)) for d in DIALECTS]
    pairs += [stage.pair(f"surprised-{d}", d, targets=1, sides=(2, 1)) for d in DIALECTS]
    with stage.playing() as bot:
        for pair in pairs:
            told = pair.name.startswith("told")
            said = "all done, none cut upstream" if told else "all done, those that were cut again"
            words = f"{pair.dialect}, one target, max_age_s {'known' if told else 'not known'}"
            with stage.case(bot, words, said, pair) as case:
                calls = bot.steady(pair.name, seconds, 0.04, words=20, stream=told)
                case.saw(*calls)
                cut = len(case.events(0, "cut"))
                case.score.seen += f"; {cut} cut upstream"
                case.must(all(call.outcome == "done" for call in calls), "a call was lost")
                case.must(not told or cut == 0, f"{cut} calls were cut upstream")
                case.bounded(one=len(calls) + (0 if told else 40), connects=60)


@row(19, "a handshake that fails")
def handshakes(stage: Stage) -> None:
    """Fails at its cap (EOF, RST and TLS at once), no hot loop; the other target serves, or a clean error comes."""
    kinds = {
        "EOF": "handshake_eof",
        "RST": "handshake_reset",
        "garbage": "handshake_garbage",
        "301": "handshake_301",
        "drip": "handshake_drip",
        "never answered": "handshake_silent",
    }
    more = "upgrade_timeout_s = 1\ntls_timeout_s = 1"
    pairs = [(kind, stage.pair(f"door-{name}", one=name, more=more)) for kind, name in kinds.items()]
    alone = [
        stage.pair(f"alone-{name}", targets=1, one=name, more=more) for name in ("handshake_eof", "handshake_drip")
    ]
    stage.simulators()
    pairs += _untrusted(stage, more)
    with stage.playing(ready=False) as bot:
        for kind, pair in pairs:
            capped = kind in ("drip", "never answered")
            said = f"all done by the next; given up {'at the cap of 1 s' if capped else 'at once'}; at most 12 connects"
            with stage.case(bot, kind, said, pair) as case:
                case.since_us = 0
                calls = bot.steady(pair.name, 0.5 if stage.quick else 1.5, 0.1)
                case.saw(*calls)
                case.must({c.upstream for c in calls} == {pair.secondary}, "not all answered by the next")
                took = _doors(case)
                case.score.seen += f"; {len(took)} doors, the slowest {max(took, default=0):.2f} s"
                case.must(bool(took), "the fault was never met")
                low, high = (0.8, 1.5) if capped else (0.0, 0.5)
                usual = statistics.median(took) if took else 0.0
                case.must(low <= usual <= high * stage.slack, f"usually given up after {usual:.2f} s")
                case.must(
                    max(took, default=0.0) <= (high + 1.5) * stage.slack,
                    f"once given up after {max(took, default=0.0):.2f} s",
                )
                case.bounded(one=0, connects=12)
        for pair in alone:
            said = "no_connection or breaker_open, with retry_after, before the deadline"
            with stage.case(bot, f"{pair.name.removeprefix('alone-handshake_')}, one target", said, pair) as case:
                call = bot.ask(pair.name, timeout_s=1.0)
                case.outcome(call, "no_connection|breaker_open|deadline_exceeded")
                if call.outcome != "deadline_exceeded":  # it waited for a connect that was due in time
                    case.must((call.terminal or {}).get("retry_after_ms") is not None, "no retry_after")
                case.bounded(one=0, connects=12)


def _doors(case: Case) -> list[float]:
    """How long each connect lasted that the simulator has seen the end of, seconds."""
    events = case.events(0, "connect", "gone")
    came = {note["number"]: note["at_us"] for note in events if note["event"] == "connect"}
    return [(note["at_us"] - came[note["number"]]) / 1e6 for note in events if note["event"] == "gone"]


def _untrusted(stage: Stage, more: str) -> list[tuple[str, Pair]]:
    import trustme

    ours, others = trustme.CA(), trustme.CA()
    ca_file = stage.folder / "ca.pem"
    ours.cert_pem.write_to_path(str(ca_file))
    pairs = []
    for side, (kind, name, issued) in enumerate(
        (
            ("bad certificate", "authority", others.issue_cert("localhost")),
            ("wrong name", "name", ours.issue_cert("elsewhere.example")),
        ),
        start=2,
    ):
        pem = stage.folder / f"{name}.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
        stage.simulator(side, "--tls-cert", str(pem), "--tls-key", str(pem))
        stage.secured.add(side)
        tls = f'{more}\n[upstream.tls]\nca_file = "{ca_file}"'
        pairs.append((kind, stage.pair(f"tls-{name}", more=tls, sides=(side, 1))))
    return pairs


@row(20, "toxics of the line")
def toxics(stage: Stage) -> None:
    """Each alone and several mixes: whatever comes keeps the wire's promises, and what was not forwarded is rescued."""
    from sidecar.simulator.toxics import TOXICS

    dice = random.Random(20)
    mixes = [(name,) for name in TOXICS]
    ends = ("silence", "reset", "limit")
    slow = [name for name in TOXICS if name not in ends]
    number = 3 if stage.quick else 8
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
        dialect = list(DIALECTS)[place % 2]
        pairs.append((mix, stage.pair(name, dialect, one=f"toxic_{'-'.join(mix)}", query=query)))
    with stage.playing(ready=False) as bot:
        for mix, pair in pairs:
            with stage.case(
                bot, f"{' + '.join(mix)}, {pair.dialect}", "promises kept; stream: false all done", pair
            ) as case:
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
                case.must(all(c.outcome == "done" for c in whole), "a call that could be rescued was not")
                torn = {c.outcome for c in calls if c.stream and c.outcome != "done"}
                case.must(torn <= {"upstream_lost", "idle_timeout"}, f"streams ended {', '.join(sorted(torn))}")
                case.must(all(c.partial for c in calls if c.stream and c.outcome != "done"), "lost without a delta")
                case.bounded(one=3 * len(calls), two=2 * len(calls), connects=40)


@row(21, "frames that no server may send")
def frames(stage: Stage) -> None:
    """The connection is retired, memory stays bounded, and what was not forwarded is rescued."""
    kinds = ("giant_frame", "endless_fragments", "empty_fragments", "bad_utf8", "masked_frame", "zstd_bomb")
    size = 16 << 20
    pairs = [
        (
            kind,
            stage.pair(
                f"{kind}-{dialect}", dialect, one=kind, query=f"size_bytes={size}",
                more='compression = "zstd-stream"' if kind == "zstd_bomb" else "",
            ),
        )
        for kind in kinds
        for dialect in DIALECTS
        if dialect == "responses" or not stage.quick
    ]  # fmt: skip
    with stage.playing() as bot:
        for kind, pair in pairs:
            said = "upstream_lost, partial; stream: false done by the next; below 12 MiB more"
            with stage.case(bot, f"{kind}, {pair.dialect}", said, pair) as case:
                before = _peak(stage)
                told = bot.ask(pair.name, words=20)
                case.outcome(told, "upstream_lost")
                case.must(told.partial, "not said to be partial")
                case.outcome(bot.ask(pair.name, words=20, stream=False), "done", by=pair.secondary, attempts=2)
                bot.until(lambda case=case: len(case.events(0, "gone")) >= 2, 3.0)  # type: ignore[misc]
                case.must(len(case.events(0, "gone")) >= 2, "a connection was not retired")
                grown = (_peak(stage) - before) / 2**20
                case.score.seen += f"; {grown:.1f} MiB more"
                case.must(grown < 12, f"the daemon grew by {grown:.0f} MiB")
                case.bounded(one=2, two=1)


def _peak(stage: Stage) -> int:
    """Bytes: the most memory the daemon has had."""
    assert stage.serving is not None
    for line in Path(f"/proc/{stage.serving.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@row(24, "one target only, hard down")
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
            _down(case, bot, seconds)
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
    spans = [span for span in _spans(case.events(0, "call", "finished", "stopped", "cut")) if span[0] > 1e6 * began]
    if one_trial:
        case.must(_most_at_once(spans[:2]) <= 1, "the first calls after it came at once: no trial")
    if answered:
        case.score.seen += f"; the first done {min(answered) - began:.1f} s after"


__all__ = ["ROWS"]
