"""`sidecar ask`: one call; the text to standard output as it comes, how it ended to standard error.

Exit status: 0 done, 1 failed (the code on standard error), 3 no daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

import msgspec

from sidecar.client.blocking import Client, Handle
from sidecar.client.calls import Wishes
from sidecar.errors import CallFailed, EndpointError
from sidecar.wire import Delta, Done, Failed

NO_DAEMON: Final = 3


def run(argv: list[str]) -> int:
    """Send the prompt, print what comes, and return the exit status."""
    parser = argparse.ArgumentParser(prog="sidecar ask", description="One call; the text to stdout as it comes.")
    parser.add_argument("prompt", metavar="PROMPT", help='the prompt; "-" reads it from standard input')
    parser.add_argument("-r", "--route", help="a route of the daemon's configuration")
    parser.add_argument("--timeout-ms", type=float, help="the whole call; else the route's")
    parser.add_argument("--lane", choices=("exit", "entry", "research"), help="who goes first, and who is shed first")
    parser.add_argument("--instructions", help="system text")
    parser.add_argument("--endpoint", help="ipc:///PATH; else $SIDECAR_ENDPOINT, else where the daemon usually is")
    parser.add_argument("--json", action="store_true", help="every message as one line of JSON")
    options = parser.parse_args(argv)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    wishes: Wishes = {
        "route": options.route,
        "timeout_ms": options.timeout_ms,
        "lane": options.lane,
        "instructions": options.instructions,
    }
    try:
        with Client(options.endpoint, name="sidecar ask") as client, client.stream(prompt, **wishes) as stream:
            return _print_json(stream) if options.json else _print_text(stream)
    except CallFailed as failure:  # refused by the client itself: there is no call
        print(f"{failure.code}: {failure.message}", file=sys.stderr)
        return 1
    except EndpointError as problem:
        print(problem, file=sys.stderr)
        return NO_DAEMON
    except BrokenPipeError:  # the reader of our output left; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130


def _print_text(stream: Handle) -> int:
    written = False
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
            written = True
    except CallFailed as failure:
        if written:
            print()
        print(f"{failure.code}: {failure.message}", file=sys.stderr)
        return NO_DAEMON if failure.code == "daemon_unavailable" else 1
    print()
    print(_summary(stream.terminal), file=sys.stderr)
    return 0


def _print_json(stream: Handle) -> int:
    """The messages as they came, one a line."""
    seq, accepted = 0, False
    try:
        for piece in stream:
            if not accepted and stream.accepted is not None:
                accepted = True
                _line(stream.accepted)
            _line(Delta(id=stream.id, seq=seq, text=piece))
            seq += 1
    except CallFailed:
        pass  # the terminal tells
    if not accepted and stream.accepted is not None:
        _line(stream.accepted)
    _line(stream.terminal)
    if isinstance(stream.terminal, Failed):
        return NO_DAEMON if stream.terminal.code == "daemon_unavailable" else 1
    return 0


def _line(message: object) -> None:
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


def _summary(terminal: object) -> str:
    if not isinstance(terminal, Done):
        return ""
    end = "done" if terminal.finish == "stop" else f"done, but incomplete ({terminal.finish})"
    first = terminal.timing.first_delta_us
    spent = f"first text after {first / 1000:.1f} ms, " if first is not None else ""
    tries = f", attempt {terminal.attempts}" if terminal.attempts > 1 else ""
    return (
        f"{end}: {terminal.upstream} {terminal.model}{tries}, {spent}{terminal.timing.total_us / 1000:.1f} ms in all, "
        f"{terminal.usage.input_tokens}+{terminal.usage.output_tokens} tokens"
    )
