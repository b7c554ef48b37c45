"""Rows 17 and 19 of the fault table: what befalls an upstream's door, and who knocks there."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.score_bot import Told
from tests.end_to_end.score_calls import row
from tests.end_to_end.score_case import Case, Pair
from tests.end_to_end.score_doorman import Doorman
from tests.end_to_end.score_stage import Stage

#: Of row 19, seconds.
CAP_S = 1.0


@row(17, "401 after credential rotation", "new credential picked up, no call lost")
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
                if not late:  # whenever the daemon looks: the key that it finds is one that is accepted
                    stage.control(at, "_keys", accept="old-key,new-key")
                    _write_key(file, "new-key")
                stage.control(at, "_keys", accept="new-key")
                if not stage.way.over_http:  # where each request brings its key, and no connect does
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
                # Over HTTP each call could be sent with the old key; a WebSocket's key is judged with its connect.
                refused = [*case.events(0, "refused"), *_refused_connects(case)]
                case.score.seen += f"; the old key refused {len(refused)} times"
                case.must(len(refused) <= 12, f"the old key was tried {len(refused)} times: no end of it")


def _write_key(file: Path, key: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.touch(0o600)
    fresh.write_text(key + "\n")
    os.replace(fresh, file)


def _refused_connects(case: Case) -> list[dict[str, Any]]:
    return [note for note in case.events(0, "connect") if note["scenario"] == "http_401" and note["way"] == "websocket"]


@row(
    19,
    "handshake: EOF, RST, bad certificate, wrong name, garbage, 301, drip",
    "fails at its cap (EOF, RST, TLS at once), no hot loop",
)
def handshakes(stage: Stage) -> None:
    """Fails at its cap (EOF, RST and TLS at once), no hot loop; the other target serves, or a clean error comes.

    Over a WebSocket this is the upgrade. HTTP has no handshake of its own but HTTP/2's preface: there it is what
    comes in place of an answer, too.
    """
    kinds = {
        "EOF": "handshake_eof",
        "RST": "handshake_reset",
        "garbage": "handshake_garbage",
        "301": "handshake_301",
        "drip": "handshake_drip",
        "never answered": "handshake_silent",
    }
    if stage.way.shared:  # what drips in one answer of several is garbage: HTTP/2's preface drips, below
        del kinds["drip"]
    more = f"upgrade_timeout_s = {CAP_S}\ntls_timeout_s = {CAP_S}"
    pairs = [(kind, stage.pair(f"door-{name}", one=name, more=more)) for kind, name in kinds.items()]
    alone = [
        stage.pair(f"alone-{name}", targets=1, one=name, more=more) for name in ("handshake_eof", "handshake_silent")
    ]
    stage.simulators()
    with contextlib.ExitStack() as ending:
        doormen = _doormen(stage, more, ending)
        pairs += _untrusted(stage, more)
        began = time.monotonic()
        with stage.playing(ready=False) as bot:
            for kind, pair in [*pairs, *((kind, pair) for kind, pair, _ in doormen)]:
                doorman = next((one for _, its, one in doormen if its is pair), None)
                capped = kind.endswith(("drip", "never answered"))
                said = f"all done by the next; given up {f'at the cap of {CAP_S:g} s' if capped else 'at once'}"
                with stage.case(bot, kind, f"{said}; no hot loop", pair) as case:
                    case.since_us = 0
                    waits = doorman is None and stage.way.over_http and kind in kinds
                    # A call that waits is given to the next at its first-delta timeout, for as many as the budget of
                    # the next has room for: not for more than ten at once.
                    every = 0.2 if waits and capped else 0.1
                    calls = bot.steady(
                        pair.name, 0.5 if stage.quick else 1.5, every, first_delta_timeout_ms=1000 * CAP_S
                    )
                    case.saw(*calls)
                    case.must({c.upstream for c in calls} == {pair.secondary}, "not all answered by the next")
                    if waits:
                        _judge_waits(case, calls, capped=capped)
                    else:
                        took = _doors(case) if doorman is None else doorman.took
                        # The row has EOF, RST and TLS fail at once; what is no HTTP/2 may take until the cap.
                        soon = 0.0 if kind in ("preface: garbage", "preface: HTTP/1.1") else 0.8 * CAP_S
                        _judge_doors(case, took, low=soon if capped or not soon else 0.0, capped=capped or not soon)
                    limit = 8 + int(time.monotonic() - began)
                    case.bounded(one=limit if stage.way.over_http else 0, connects=limit)
                    if doorman is not None:
                        case.must(doorman.came <= limit, f"{doorman.came} connects, more than {limit}")
            for pair in alone:
                kind = pair.name.removeprefix("alone-handshake_")
                said = "no_connection or breaker_open, with retry_after, before the deadline"
                with stage.case(bot, f"{kind}, one target", said, pair) as case:
                    call = bot.ask(pair.name, timeout_s=1.0)
                    # Over HTTPS the request was sent before the fault: that is what there is to say.
                    sent = "|upstream_lost" if stage.way.over_http else ""
                    case.outcome(call, "no_connection|breaker_open|deadline_exceeded" + sent)
                    if call.outcome not in ("deadline_exceeded", "upstream_lost"):  # else a connect was due in time
                        case.must((call.terminal or {}).get("retry_after_ms") is not None, "no retry_after")
                    case.bounded(one=3 if stage.way.over_http else 0, connects=12)


def _judge_doors(case: Case, took: list[float], *, low: float, capped: bool) -> None:
    """How long each connect lasted."""
    slack = case.stage.slack
    case.score.seen += f"; {len(took)} doors, the slowest {max(took, default=0):.2f} s"
    if not case.must(bool(took), "the fault was never met"):
        return
    high = 1.5 * CAP_S if capped else 0.5
    usual = statistics.median(took)
    case.must(low <= usual <= high * slack, f"usually given up after {usual:.2f} s")
    case.must(max(took) <= (high + 1.5) * slack, f"once given up after {max(took):.2f} s")


def _judge_waits(case: Case, calls: list[Told], *, capped: bool) -> None:
    """How long the calls that met it waited: at most for their first-delta timeout, which is the cap here."""
    met = [call for call in calls if call.attempts > 1]
    slack, slowest = case.stage.slack, max((call.seconds for call in met), default=0.0)
    case.score.seen += f"; {case.asked(0)} met it, the slowest {slowest:.2f} s"
    if not case.must(bool(met), "the fault was never met"):
        return
    low, high = (CAP_S, 1.5 * CAP_S) if capped else (0.0, 0.5)
    usual = statistics.median(call.seconds for call in met)
    case.must(low <= usual <= high * slack, f"usually answered after {usual:.2f} s")
    case.must(slowest <= (high + 1.5) * slack, f"the slowest took {slowest:.2f} s")


def _doors(case: Case) -> list[float]:
    """How long each connect lasted that the simulator has seen the end of, seconds."""
    events = case.events(0, "connect", "gone")
    came = {note["number"]: note["at_us"] for note in events if note["event"] == "connect"}
    return [(note["at_us"] - came[note["number"]]) / 1e6 for note in events if note["event"] == "gone"]


def _doormen(stage: Stage, more: str, ending: contextlib.ExitStack) -> list[tuple[str, Pair, Doorman]]:
    """Faults before a simulator could tell whom it has before it: of TLS, and of HTTP/2's preface."""
    kinds = [("TLS", kind) for kind in ("EOF", "never answered")]
    if stage.way.shared:
        kinds += [("preface", kind) for kind in ("EOF", "RST", "garbage", "HTTP/1.1", "drip", "never answered")]
    found = []
    for number, (where, kind) in enumerate(kinds):
        doorman = ending.enter_context(Doorman(kind))
        url = f"{stage.scheme(tls=where == 'TLS')}://127.0.0.1:{doorman.port}/v1/{stage.usual}"
        pair = stage.pair(f"doorman{number}", more=more, url=url)
        found.append((f"{where}: {kind}", pair, doorman))
    return found


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
        stage.unlabelled.add(side)
        tls = f'{more}\n[upstream.tls]\nca_file = "{ca_file}"'
        pairs.append((kind, stage.pair(f"tls-{name}", more=tls, sides=(side, 1))))
    return pairs
