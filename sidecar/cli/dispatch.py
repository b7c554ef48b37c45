"""The table of commands: a command's file is imported only when it is asked for, so that `probe` stays light."""

from __future__ import annotations

import importlib
import sys
from typing import Final

#: command -> one line for people. The file is `sidecar/cli/<command>.py`, with `run(argv: list[str]) -> int`.
COMMANDS: Final = {
    "demo": "a relay, the daemon and a bot on this machine; no key, no network, under 30 s",
    "serve": "the daemon",
    "check": "validate the configuration and say what it adds up to",
    "ask": "one call; the text to stdout as it comes",
    "probe": "health, over ZeroMQ",
    "sim": "the simulated relay alone: answers in every dialect, misbehaves on demand",
    "bench": "open-loop load: percentiles, costs, comparison of two results",
    "show": "what is going on: upstreams, calls, clients, stats",
    "halt": "stop lanes at once: their calls fail, running ones are ended; holds over restarts",
    "resume": "let halted lanes go on",
    "upstream": "take an upstream out of service, and in again",
    "drain": "finish what is in flight, take nothing new, end",
}


def run(argv: list[str]) -> int:
    """Run the command that `argv` names; returns its exit status (2: no such command)."""
    from sidecar.version import __version__

    if argv[:1] in (["--version"], ["-V"]):
        print(f"sidecar {__version__}")
        return 0
    if not argv or argv[0] in {"-h", "--help", "help"}:
        width = max(map(len, COMMANDS))
        print("usage: sidecar COMMAND [options]     (sidecar COMMAND --help for its options)\n")
        for name, line in COMMANDS.items():
            print(f"  {name:<{width}}  {line}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"sidecar: no command {argv[0]!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"sidecar.cli.{argv[0]}")
    status: int = module.run(argv[1:])
    return status
