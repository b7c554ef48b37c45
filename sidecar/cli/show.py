"""`sidecar show`: what is going on, asked at the control endpoint.

The exchange is one JSON message each way: ``{"type": "show", "what": "upstreams" | "calls" | "stats"}`` and
``{"type": "shown", "what": ..., "data": [...]}``, or ``{"type": "failed", ...}`` as a refusal.

The data of ``upstreams`` and ``calls`` is a list of maps: one row of a table each, columns in the order of their keys.
The data of ``stats`` is a flat list of metrics::

    {"name": "sidecar_calls_total", "help": "Calls ended, by outcome.", "type": "counter" | "gauge" | "histogram",
     "samples": [{"labels": {"outcome": "done"}, "value": 17, "suffix": ""}, ...]}

`suffix` is optional: a histogram's samples have ``_bucket`` (with the label ``le``, the last one ``+Inf``), ``_sum``
and ``_count``. Names, units and label values are the daemon's; `prometheus()` only renders them,
as text exposition format 0.0.4.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from sidecar.client.endpoint import control_endpoint, find_endpoint, look, socket_path
from sidecar.client.zmtp import UnansweredError, ask
from sidecar.errors import ConfigurationError, EndpointError

WHAT: Final = ("upstreams", "calls", "stats")
_WIDEST: Final = 160
#: Where the template unit puts an instance.
_UNIT_ENDPOINT: Final = "ipc:///run/sidecar-{}/sidecar.sock"


def run(argv: list[str]) -> int:
    """Ask, print, and return the exit status: 0, 1 when the daemon refuses, 3 when there is none."""
    parser = argparse.ArgumentParser(prog="sidecar show", description="What is going on in the daemon, now.")
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--json", action="store_true", help="the data as it came")
    parser.add_argument("--format", choices=("text", "prometheus"), default="text", help="prometheus: stats only")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--endpoint", help="the bots' endpoint, or the control endpoint itself (*.control.sock)")
    where.add_argument("--control", metavar="IPC", help="the control endpoint, whatever its name")
    where.add_argument("-c", "--config", type=Path, metavar="FILE", help="the daemon's file: where it fixes a path")
    parser.add_argument("--instance", metavar="NAME", help="with -c: as `sidecar serve --instance` takes it")
    parser.add_argument("--timeout-ms", type=float, default=1000)
    options = parser.parse_args(argv)
    if options.format == "prometheus" and options.what != "stats":
        parser.error("--format prometheus is for stats")
    if options.instance is not None and options.config is None:
        parser.error("--instance goes with -c")
    try:
        control = options.control
        if options.config is not None:
            control = _control_in(options.config, options.instance)
        data = fetch(options.endpoint, options.what, timeout=options.timeout_ms / 1000, control=control)
    except (UnansweredError, EndpointError, ConfigurationError) as problem:
        print(f"sidecar show: {problem}", file=sys.stderr)
        return 3
    except ValueError as problem:
        print(f"sidecar show: {problem}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(data, indent=2))
    elif options.what == "stats":
        print(prometheus(data) if options.format == "prometheus" else table(flat(data)), end="")
    else:
        print(table(data), end="")
    return 0


def _control_in(path: Path, instance: str | None) -> str:
    """The control endpoint of a daemon that reads this file, in this environment but for systemd's folder.

    Raises:
        ConfigurationError: the file is wrong.
    """
    from sidecar.config import load, path_of
    from sidecar.transport.endpoint import control_of

    frontend = load(path_of(path, instance), environ=os.environ).frontend
    if frontend.control_endpoint is not None:
        return frontend.control_endpoint
    endpoint = frontend.endpoint or os.environ.get("SIDECAR_ENDPOINT")
    if endpoint is None and instance is not None:
        endpoint = _UNIT_ENDPOINT.format(instance)
    return control_of(find_endpoint(endpoint))


def fetch(endpoint: str | None, what: str, *, timeout: float, control: str | None = None) -> Any:
    """The data; asked at `control` if given, else at the control endpoint beside the bots' `endpoint`.

    Raises:
        UnansweredError: nobody there.
        EndpointError: the endpoint is unusable.
        ValueError: the daemon refused, or its answer cannot be read.
    """
    found = find_endpoint(control or endpoint)
    if control is None and not found.endswith(".control.sock"):
        found = control_endpoint(found)
    obstacle = look(found)
    if obstacle is not None:
        hint = "" if control else ". Is control_endpoint configured? Then name it with --control, or the file with -c"
        raise UnansweredError(obstacle.message + hint)
    payload = ask(socket_path(found), json.dumps({"type": "show", "what": what}).encode(), timeout=timeout)
    try:
        answer = json.loads(payload)
    except RecursionError:
        raise ValueError("the answer cannot be read") from None
    if not isinstance(answer, dict) or answer.get("type") != "shown" or not isinstance(answer.get("data"), list):
        reason = answer.get("message") if isinstance(answer, dict) else answer
        raise ValueError(f"the daemon did not show {what}: {reason}")
    return answer["data"]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as aligned columns, numbers to the right, or one below the other when too wide; "nothing" without rows."""
    rows = list(rows)
    if not rows:
        return "nothing\n"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)]
    if sum(widths) + 2 * len(widths) > _WIDEST:
        return _cards(columns, cells)
    right = [all(_is_number(row.get(column)) for row in rows) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in ([column.upper() for column in columns], *cells)
    ]
    return "\n".join(lines) + "\n"


def _cards(columns: list[str], cells: list[list[str]]) -> str:
    """What is too wide for a table: one line a field, one block a row."""
    width = max(map(len, columns))
    blocks = ("".join(f"{name:<{width}}  {cell}\n" for name, cell in zip(columns, row, strict=True)) for row in cells)
    return "\n".join(blocks)


def flat(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics as rows for people: without the buckets of histograms."""
    return [
        {
            "metric": metric["name"] + sample.get("suffix", ""),
            "labels": ", ".join(f"{key}={value}" for key, value in (sample.get("labels") or {}).items()),
            "value": sample["value"],
        }
        for metric in metrics
        for sample in metric["samples"]
        if sample.get("suffix") != "_bucket"
    ]


def prometheus(metrics: Iterable[dict[str, Any]]) -> str:
    """The text exposition format, 0.0.4."""
    lines: list[str] = []
    for metric in metrics:
        name = metric["name"]
        lines.append(f"# HELP {name} {_escaped(str(metric.get('help', '')), quotes=False)}")
        lines.append(f"# TYPE {name} {metric['type']}")
        for sample in metric["samples"]:
            labels = ",".join(f'{key}="{_escaped(str(value))}"' for key, value in (sample.get("labels") or {}).items())
            where = f"{name}{sample.get('suffix', '')}" + (f"{{{labels}}}" if labels else "")
            lines.append(f"{where} {_number(sample['value'])}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{key}={_cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return (" | " if any(isinstance(item, dict) for item in value) else ", ").join(map(_cell, value)) or "-"
    # What a daemon passes on from an upstream must not move the terminal's cursor.
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))
