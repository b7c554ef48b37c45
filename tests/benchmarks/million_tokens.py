"""1,000,000 tokens through one daemon: its resident memory after the first 100,000 and at the end.

Answers come as fast as the simulator can write, on several streams at once; one bot reads them all.
"""

from __future__ import annotations

import sys
import time

from common import (
    Bench,
    Bot,
    Verdicts,
    cpu_seconds,
    finish,
    histogram,
    parser,
    percentiles,
    route,
    rss_mib,
    table,
    upstream,
)


def main() -> int:
    """Returns 0 when every promise was kept."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tokens", type=int, default=1_000_000)
    arguments.add_argument("--first", type=int, default=100_000, help="tokens before the first look")
    arguments.add_argument("--per-call", type=int, default=2_000)
    arguments.add_argument("--in-flight", type=int, default=16)
    options = arguments.parse_args()
    total, first = (60_000, 20_000) if options.quick else (options.tokens, options.first)
    per_call, in_flight = options.per_call, options.in_flight
    calls = -(-total // per_call)
    with Bench() as bench:
        relay = bench.relay("--cadence-ms", "0", "--ttft-ms", "0", "--tokens", str(per_call))
        daemon = bench.daemon(
            upstream("sim", relay.url(), warm=in_flight, maximum=in_flight)
            + route("sim", timeout_ms=60_000, first_delta_timeout_ms=60_000, idle_timeout_ms=60_000)
        )
        bench.until_connected(in_flight, "sim")
        before = rss_mib(daemon.pid)
        samples: list[tuple[int, float]] = []
        characters = output_tokens = done = failed = sent = 0
        with Bot(bench.endpoint) as bot:
            began, cpu = time.monotonic(), cpu_seconds(daemon.pid)
            silence = 0
            while done + failed < calls and silence < 3:
                while sent < calls and sent - done - failed < in_flight:
                    bot.call(str(sent), "a million", 60_000)
                    sent += 1
                messages = bot.receive(5.0)
                silence = 0 if messages else silence + 1
                for message in messages:
                    if message["type"] == "delta":
                        characters += len(message["text"])
                    elif message["type"] == "done":
                        done += 1
                        output_tokens += message["usage"]["output_tokens"]
                        if not samples or output_tokens - samples[-1][0] >= total // 50:
                            samples.append((output_tokens, rss_mib(daemon.pid)))
                    elif message["type"] == "failed":
                        failed += 1
            took, used = time.monotonic() - began, cpu_seconds(daemon.pid) - cpu
            at_end = rss_mib(daemon.pid)
    early = next((rss for tokens, rss in samples if tokens >= first), samples[0][1])
    growth = at_end / early - 1
    verdicts = Verdicts()
    verdicts.judge("every call is done, every token arrived", done == calls and output_tokens == calls * per_call)
    if not options.quick:
        verdicts.judge(f"memory at the end within 10 % of that after the first {first:,}", abs(growth) <= 0.10)
    result = {
        "tokens": output_tokens, "characters": characters, "calls": calls, "failed": failed, "seconds": took,
        "daemon_cpu_s": used, "rss_mib": {"warm": before, f"after_{first}": early, "end": at_end},
        "growth": growth, "samples": samples,
    }  # fmt: skip
    rows = [["warm, idle", before], [f"after {first:,} tokens", early], [f"after {output_tokens:,} tokens", at_end]]
    resident = [rss for _, rss in samples]
    text = (
        f"{output_tokens:,} tokens, {characters:,} characters, {calls} calls, {in_flight} at once: {took:.1f} s, "
        f"{used:.1f} s of the daemon's CPU\n\n"
        + table(rows, head=["resident", "MiB"])
        + f"\n\ngrowth {100 * growth:+.1f} %; samples {percentiles(resident)}\n"
        + histogram(resident, unit="MiB", rows=5)
    )
    return finish(result, verdicts, as_json=options.json, text=text)


if __name__ == "__main__":
    sys.exit(main())
