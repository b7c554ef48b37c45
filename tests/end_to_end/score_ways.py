"""Rows 17 to 21 of the fault table: what befalls an upstream's door, its line, its connections."""

from __future__ import annotations

import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.score_bot import PATIENT_MS
from tests.end_to_end.score_calls import row
from tests.end_to_end.score_stage import DIALECTS, Case, Pair, Stage


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
                    case.must(slowest < 1.5 * stage.slack, f"told after {slowest:.1f} s")
                    lost = [call for call in settled if call.outcome != "done"]
                case.answered(lost)
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
    twice = [stage.pair(f"twice-{d}", d, targets=1, one="expired*2,ok") for d in DIALECTS]
    with stage.playing() as bot:
        for pair in twice:
            with stage.case(bot, f"{pair.dialect}, told on two connections in a row", "done at once", pair) as case:
                told = bot.ask(pair.name)
                case.outcome(told, "done", attempts=3)
                case.must(told.seconds < 1.0 * stage.slack, f"done after {told.seconds:.2f} s")
                case.bounded(one=3)
        for pair in pairs:
            told = pair.name.startswith("told")
            said = "all done, none cut upstream" if told else "all done, those that were cut again"
            words = f"{pair.dialect}, one target, max_age_s {'known' if told else 'not known'}"
            with stage.case(bot, words, said, pair) as case:
                calls = bot.steady(pair.name, seconds, 0.04, words=20, stream=told)
                case.saw(*calls)
                cut = len(case.events(0, "cut"))
                case.score.seen += f"; {cut} cut upstream"
                case.answered(calls)
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
    began = time.monotonic()
    with stage.playing(ready=False) as bot:
        for kind, pair in pairs:
            capped = kind in ("drip", "never answered")
            said = f"all done by the next; given up {'at the cap of 1 s' if capped else 'at once'}; no hot loop"
            with stage.case(bot, kind, said, pair) as case:
                case.since_us = 0
                calls = bot.steady(pair.name, 0.5 if stage.quick else 1.5, 0.1)
                case.saw(*calls)
                case.must({c.upstream for c in calls} == {pair.secondary}, "not all answered by the next")
                took = _doors(case)
                case.score.seen += f"; {len(took)} doors, the slowest {max(took, default=0):.2f} s"
                case.must(bool(took), "the fault was never met")
                low, high = (0.8, 1.5) if capped else (0.0, 0.5)
                if capped and stage.over_http:
                    high = 2.5  # it is a call that waits: its first-delta clock starts the next, whose content ends it
                usual = statistics.median(took) if took else 0.0
                case.must(low <= usual <= high * stage.slack, f"usually given up after {usual:.2f} s")
                case.must(
                    max(took, default=0.0) <= (high + 1.5) * stage.slack,
                    f"once given up after {max(took, default=0.0):.2f} s",
                )
                case.bounded(one=0, connects=8 + int(time.monotonic() - began))
        for pair in alone:
            said = "no_connection or breaker_open, with retry_after, before the deadline"
            with stage.case(bot, f"{pair.name.removeprefix('alone-handshake_')}, one target", said, pair) as case:
                call = bot.ask(pair.name, timeout_s=1.0)
                # Over HTTPS the request was sent before the fault: that is what there is to say.
                sent = "|upstream_lost" if stage.over_http else ""
                case.outcome(call, "no_connection|breaker_open|deadline_exceeded" + sent)
                if call.outcome not in ("deadline_exceeded", "upstream_lost"):  # else a connect was due in time
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
                case.answered(whole)
                torn = {c.outcome for c in calls if c.stream and c.outcome != "done"}
                case.must(torn <= {"upstream_lost", "idle_timeout"}, f"streams ended {', '.join(sorted(torn))}")
                case.must(all(c.partial for c in calls if c.stream and c.outcome != "done"), "lost without a delta")
                case.bounded(one=3 * len(calls), two=2 * len(calls), connects=40)


@row(21, "frames that no server may send")
def frames(stage: Stage) -> None:
    """The connection is retired, memory stays bounded, and what was not forwarded is rescued."""
    kinds = ["giant_frame", "endless_fragments", "empty_fragments", "bad_utf8", "masked_frame"]
    if not stage.over_http:
        kinds.append("zstd_bomb")
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
    # What a slow machine must not end is 16 MiB on their way, and read.
    patience: dict[str, Any] = {"timeout_s": 3.0 * stage.slack, "idle_timeout_ms": PATIENT_MS * int(stage.slack)}
    with stage.playing() as bot:
        for kind, pair in pairs:
            said = "upstream_lost, partial; stream: false done by the next; below 12 MiB more"
            with stage.case(bot, f"{kind}, {pair.dialect}", said, pair) as case:
                before = _peak(stage)
                told = bot.ask(pair.name, words=20, **patience)
                case.outcome(told, "upstream_lost")
                case.must(told.partial, "not said to be partial")
                case.outcome(
                    bot.ask(pair.name, words=20, stream=False, **patience), "done", by=pair.secondary, attempts=2
                )
                bot.until(lambda case=case: len(case.events(0, "gone")) >= 2, 3.0 * stage.slack)  # type: ignore[misc]
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
