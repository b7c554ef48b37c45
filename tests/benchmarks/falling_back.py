"""WebSockets fail for a while in the middle of a load: what goes by HTTPS meanwhile, and how it comes back.

One daemon with one upstream that has both ways (`url` and `fallback_url`), each a door of its own at one relay. Calls
come at a steady rate, each a short stream. At the beginning of the outage every WebSocket is reset, in the middle of
its stream, and every upgrade is refused (503) until its end; POSTs are answered all along. The calls ask for
`on_lost = "restart"`, so that a stream that was cut may begin anew.

Promised: every offered call is served; after the first second of the outage by HTTPS; after it, WebSockets get their
share back gradually, and are connected without a burst. `--svg FILE` draws time to first delta and the share over
HTTPS.
"""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, Final

from common import Bench, Bot, Relay, Verdicts, finish, mono_us, parser, percentile, table

TIMEOUT_MS: Final = 5000
#: Seconds of the picture's steps.
STEP: Final = 0.5
#: New WebSockets in a tenth of a second that are no burst: what the pool's policy opens at once at a healthy start.
CALM: Final = 8


class Record:
    """One call as the bot saw it; seconds since the beginning of the load."""

    __slots__ = ("attempts", "code", "first_s", "sent_s", "way")

    def __init__(self, sent_s: float) -> None:
        self.sent_s = sent_s
        self.first_s: float | None = None
        self.code = self.way = ""
        self.attempts = 0


def configuration(relay: Relay, warm: int) -> str:
    """One upstream with two ways."""
    over_websocket = relay.url().replace("/v1/", "/u/ws/v1/")
    over_https = over_websocket.replace("ws://", "http://").replace("/u/ws/", "/u/https/")
    return (
        f'[[upstream]]\nname = "a"\nurl = "{over_websocket}"\nfallback_url = "{over_https}"\ndialect = "responses"\n'
        f"warm_connections = {warm}\nmax_connections = 128\npong_timeout_s = 30\n"
        '[[route]]\nname = "default"\ntargets = [ { upstream = "a", model = "gpt-5-mini" } ]\n'
        "first_delta_timeout_ms = 1000\nidle_timeout_ms = 2000\n"
    )


def steer(relay: Relay, what: str) -> Any:
    """One request to the relay's control."""
    with urllib.request.urlopen(f"http://127.0.0.1:{relay.port}/{what}", timeout=10) as answer:
        return json.load(answer)


def play(
    bot: Bot, relay: Relay, *, per_second: float, phases: tuple[float, float, float], dice: random.Random
) -> tuple[list[Record], int]:
    """The load through the outage. Returns the calls, and the instant of its beginning (CLOCK_MONOTONIC, us)."""
    before, outage, _ = phases
    records: dict[str, Record] = {}
    begun_us = mono_us()
    begun = time.monotonic()
    due = ended = 0.0
    steps = [(before, "_scenario?name=http_503&upstream=ws"), (before, "_kill?upstream=ws"),
             (before + outage, "_scenario?name=ok&upstream=ws")]  # fmt: skip
    last_heard = begun
    while due < sum(phases) or ended < len(records):
        now = time.monotonic() - begun
        while steps and now >= steps[0][0]:
            steer(relay, steps.pop(0)[1])
        while due <= now and due < sum(phases):
            name = f"c{len(records)}"
            records[name] = Record(time.monotonic() - begun)
            bot.call(name, "hello", TIMEOUT_MS, lane="entry", on_lost="restart")
            due += dice.expovariate(per_second)
        messages = bot.receive(max(0.0, min(due - now, 0.02)))
        at = time.monotonic() - begun
        if messages:
            last_heard = at
        elif due >= sum(phases) and at - last_heard > 2 * TIMEOUT_MS / 1000:
            raise SystemExit(f"{len(records) - ended:.0f} calls have no end")
        for message in messages:
            record = records.get(message.get("id", ""))
            if record is not None:
                ended += take(record, message, at)
    return list(records.values()), begun_us


def take(record: Record, message: dict[str, Any], at: float) -> int:
    """Note a message; 1 for a terminal."""
    kind = message["type"]
    if kind == "delta" and record.first_s is None:
        record.first_s = at - record.sent_s
    elif kind in ("done", "failed"):
        record.code = message.get("code", "done") if kind == "failed" else "done"
        record.way = message.get("transport", "")
        record.attempts = message["attempts"]
        return 1
    return 0


def figures(records: list[Record]) -> dict[str, Any]:
    """Of one phase."""
    ordered = sorted(record.first_s for record in records if record.first_s is not None)
    return {
        "calls": len(records),
        "codes": dict(Counter(record.code for record in records)),
        "ways": dict(Counter(record.way for record in records)),
        "attempts_per_call": sum(record.attempts for record in records) / max(1, len(records)),
        "p50_ms": 1000 * percentile(ordered, 0.5),
        "p99_ms": 1000 * percentile(ordered, 0.99),
        "max_ms": 1000 * percentile(ordered, 1.0),
    }


def steps_of(records: list[Record], length: float) -> list[dict[str, float]]:
    """The picture's steps: time to first delta, and the share that went by HTTPS."""
    found = []
    for number in range(int(length / STEP)):
        some = [record for record in records if STEP * number <= record.sent_s < STEP * (number + 1)]
        ordered = sorted(record.first_s for record in some if record.first_s is not None)
        found.append({
            "at_s": STEP * number,
            "p50_ms": 1000 * percentile(ordered, 0.5),
            "max_ms": 1000 * percentile(ordered, 1.0),
            "sse": sum(record.way == "sse" for record in some) / max(1, len(some)),
        })  # fmt: skip
    return found


def connects(relay: Relay, since_us: int) -> list[float]:
    """When a WebSocket stood after that instant, seconds after it."""
    notes = steer(relay, f"_journal?upstream=ws&since_us={since_us}")["journal"]
    return [
        (note["at_us"] - since_us) / 1e6 for note in notes if note["event"] == "connect" and note["scenario"] == "ok"
    ]


def peak(instants: list[float], window: float) -> int:
    """The most of them within so many seconds."""
    return max((sum(at <= other < at + window for other in instants) for at in instants), default=0)


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--per-second", type=float, default=64.0)
    arguments.add_argument("--outage-s", type=float, default=30.0)
    arguments.add_argument("--warm", type=int, default=16)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--svg", type=Path)
    options = arguments.parse_args()
    before, outage, after = (2.0, 3.0, 25.0) if options.quick else (10.0, options.outage_s, 40.0)
    with Bench() as bench:
        relay = bench.relay("--ttft-ms", "20", "--cadence-ms", "10", "--tokens", "20", "--seed", str(options.seed))
        bench.daemon(configuration(relay, options.warm))
        with Bot(bench.endpoint) as bot:
            records, begun_us = play(
                bot, relay, per_second=options.per_second, phases=(before, outage, after),
                dice=random.Random(options.seed),
            )  # fmt: skip
        back = connects(relay, begun_us + int(1e6 * (before + outage)))
    over = before + outage
    phases = {
        "before": [one for one in records if one.sent_s < before],
        "first second": [one for one in records if before <= one.sent_s < before + 1],
        "outage": [one for one in records if before + 1 <= one.sent_s < over],
        "return": [one for one in records if over <= one.sent_s < over + after - 5],
        "afterwards": [one for one in records if one.sent_s >= over + after - 5],
    }
    result: dict[str, Any] = {
        "phases": {name: figures(some) for name, some in phases.items()},
        "peak_connects_per_second": peak(back, 1.0),
        "peak_connects_per_tenth": peak(back, 0.1),
        "first_connect_after_s": min(back, default=None),
        "steps": steps_of(records, before + outage + after),
        "outage_s": [before, over],
    }
    if options.svg is not None:
        from falling_back_plot import plot

        options.svg.write_text(plot(result, per_second=options.per_second))
    return judge(result, as_json=options.json)


def judge(result: dict[str, Any], *, as_json: bool) -> int:
    """Figures and verdicts."""
    phases = result["phases"]
    verdicts = Verdicts()
    verdicts.judge("every offered call was served", all(set(one["codes"]) <= {"done"} for one in phases.values()))
    verdicts.judge("in the outage by HTTPS", set(phases["outage"]["ways"]) == {"sse"})
    last = phases["afterwards"]
    share = last["ways"].get("websocket", 0) / max(1, last["calls"])
    verdicts.judge(f"afterwards by WebSocket again (95 % or more: {share:.1%})", share >= 0.95)
    burst, second = result["peak_connects_per_tenth"], result["peak_connects_per_second"]
    promise = f"without a burst of connects (at most {CALM} in 0.1 s: {burst}; in 1 s {second})"
    verdicts.judge(promise, burst <= CALM)
    rows = [
        [name, one["calls"], one["ways"].get("websocket", 0), one["ways"].get("sse", 0), one["attempts_per_call"],
         one["p50_ms"], one["p99_ms"], one["max_ms"]]
        for name, one in phases.items()
    ]  # fmt: skip
    head = ["", "calls", "WebSocket", "HTTPS", "attempts/call", "first delta p50 ms", "p99 ms", "max ms"]
    return finish(result, verdicts, as_json=as_json, text=table(rows, head=head))


if __name__ == "__main__":
    sys.exit(main())
