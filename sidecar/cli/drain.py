"""`sidecar drain`: as SIGTERM does, for those who may not send one."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from sidecar.cli import asking


def run(argv: list[str]) -> int:
    """Exit status: 0 it drains, 1 refused, 3 no daemon."""
    parser = argparse.ArgumentParser(
        prog="sidecar drain",
        description="Take no new calls, finish those in flight for at most drain_timeout_s, and end, as SIGTERM does. "
        "A service manager that restarts the daemon whenever it ends will start it anew: to stop it there, use that.",
    )
    parser.add_argument("--json", action="store_true", help="the answer as it came")
    asking.add_options(parser)
    options = parser.parse_args(argv)
    timeout = asking.timeout_of(parser, options)
    question = partial(asking.request, fields={"type": "drain"}, answer="draining", timeout=timeout)
    return asking.put("sidecar drain", options, question, partial(_tell, options))


def _tell(options: argparse.Namespace, answer: Any) -> None:
    if options.json:
        print(json.dumps(answer))
        return
    print(f"draining: {answer.get('in_flight')} calls have {answer.get('timeout_s')} s to end; then the daemon ends")
