"""`sidecar upstream disable|enable NAME`: take an upstream out of service, and in again."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

from sidecar.cli import asking


def run(argv: list[str]) -> int:
    """Exit status: 0 done, 1 refused, 3 no daemon."""
    parser = argparse.ArgumentParser(
        prog="sidecar upstream",
        description="Take an upstream out of service or in again. Disabled, it gets no further calls; those it answers "
        "now go on. The daemon forgets this when it restarts: for good, change the configuration.",
    )
    parser.add_argument("what", choices=("disable", "enable"))
    parser.add_argument("name", metavar="NAME", help="as the configuration has it")
    parser.add_argument("--json", action="store_true", help="the answer as it came")
    asking.add_options(parser)
    options = parser.parse_args(argv)
    timeout = asking.timeout_of(parser, options)
    fields = {"type": "upstream", "name": options.name, "enabled": options.what == "enable"}
    question = partial(asking.request, fields=fields, answer="upstream", timeout=timeout)
    return asking.put("sidecar upstream", options, question, partial(_tell, options))


def _tell(options: argparse.Namespace, answer: Any) -> None:
    if options.json:
        print(json.dumps(answer))
        return
    until = "" if options.what == "enable" else ", until it is enabled or the daemon restarts"
    print(asking.printable(f"{options.name}: {options.what}d{until}"))
    without = answer.get("without")
    if isinstance(without, list) and without:
        routes = ", ".join(map(str, without))
        print(asking.printable(f"note: nothing is left to serve route {routes}"), file=sys.stderr)
