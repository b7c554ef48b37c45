"""The flags of `sidecar bench`. What is not given is not in the namespace: profiles decide the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from sidecar.bench.load import PROFILES


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    profiles = "; ".join(f"{name}: {line}" for name, (line, _) in PROFILES.items())
    made = argparse.ArgumentParser(
        prog="sidecar bench",
        description="Open-loop load: calls begin at their instants whether or not earlier ones have ended. Without "
        "--endpoint or -c, against a simulator and a daemon that are started here and ended again.",
        epilog="docs/bench.md says how it measures and how to read it.",
        argument_default=argparse.SUPPRESS,
    )
    load = made.add_argument_group("load")
    load.add_argument(
        "--profile",
        choices=("stream", "classify", "flood"),
        help=f"where the other flags start (default: stream). {profiles}",
    )
    load.add_argument("--rate", type=float, metavar="R", help="calls begun per second")
    load.add_argument("--streams", type=float, metavar="N", help="instead of --rate: so many calls open on average")
    load.add_argument("--arrivals", choices=("poisson", "constant"), help="default: poisson")
    load.add_argument("--for-s", type=float, metavar="S", help="the measured window (default: 10)")
    load.add_argument("--warm-up-s", type=float, metavar="W", help="the same before it, not measured (default: 2)")
    load.add_argument("--repetitions", type=int, metavar="N", help="the whole of it so many times (default: 1)")
    load.add_argument("--seed", type=int, help="of arrivals and answers (default: 1); each repetition has the next one")
    load.add_argument(
        "--max-open", type=int, metavar="N", help="a fuse: no more calls are open at once (default: 4096)"
    )
    answers = made.add_argument_group("calls and answers")
    answers.add_argument(
        "--tokens", type=int, metavar="N", help="of an answer; elsewhere than here, its max_output_tokens"
    )
    answers.add_argument(
        "--cadence-ms", type=float, metavar="X", help="from token to token, 0: a flood (default: 16.667)"
    )
    answers.add_argument("--jitter", type=float, metavar="J", help="share of the cadence (default: 0.3)")
    answers.add_argument("--ttft-ms", type=float, metavar="X", help="the simulator's time to first token (default: 0)")
    answers.add_argument("--short", action="store_true", help="two tokens, not streamed")
    answers.add_argument("--prompt-bytes", type=int, metavar="N", help="default: 200")
    answers.add_argument("--timeout-ms", type=float, metavar="X", help="of each call (default: 10,000)")
    answers.add_argument(
        "--stamps",
        action=argparse.BooleanOptionalAction,
        help="tokens carry the instant of their sending (default: with the simulator, at a cadence)",
    )
    bots = made.add_argument_group("bots")
    bots.add_argument(
        "--clients", type=int, metavar="K", help="bot processes, each with its share of the rate (default: 1)"
    )
    bots.add_argument(
        "--client",
        choices=("async", "blocking", "wire"),
        help="AsyncClient, threads with a Client each, or a bare DEALER (default: async)",
    )
    target = made.add_argument_group("against what")
    target.add_argument("--endpoint", metavar="IPC", help="a daemon that runs")
    target.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="a daemon started here with this configuration"
    )
    target.add_argument("-r", "--route", help="which route is called (default: default)")
    target.add_argument("--yes", action="store_true", help="send it to an upstream that may cost money")
    output = made.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object, histograms included")
    output.add_argument("--out", type=Path, metavar="FILE", help="save that object, for --compare")
    output.add_argument("--append", action="store_true", help="with --out: add to the repetitions that are there")
    output.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="run nothing: set B against A")
    output.add_argument(
        "--fail-above", type=float, metavar="RATIO", help="with --compare: status 1 when a figure is slower by more"
    )
    output.add_argument("--force", action="store_true", help="with --compare: although the loads differ")
    return made
