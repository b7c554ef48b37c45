"""`sidecar show`: what is going on, asked at the control endpoint.

The exchange is one JSON message each way: ``{"type": "show", "what": "upstreams" | "calls" | "clients" | "stats"}`` and
``{"type": "shown", "what": ..., "data": [...]}``, or ``{"type": "failed", ...}`` as a refusal.

The data of ``upstreams``, ``calls`` and ``clients`` is a list of maps: one row of a table each, columns in the order of
their keys.
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
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from sidecar.cli import asking

WHAT: Final = ("upstreams", "calls", "clients", "stats")
_WIDEST: Final = 160


def run(argv: list[str]) -> int:
    """Ask, print, and return the exit status: 0, 1 when the daemon refuses, 3 when there is none."""
    parser = argparse.ArgumentParser(prog="sidecar show", description="What is going on in the daemon, now.")
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--json", action="store_true", help="the data as it came")
    parser.add_argument("--format", choices=("text", "prometheus"), default="text", help="prometheus: stats only")
    asking.add_options(parser)
    options = parser.parse_args(argv)
    if options.format == "prometheus" and options.what != "stats":
        parser.error("--format prometheus is for stats")
    timeout = asking.timeout_of(parser, options)
    question = partial(fetch, what=options.what, timeout=timeout, named=options.control is not None)
    return asking.put("sidecar show", options, question, partial(_tell, options))


def _tell(options: argparse.Namespace, data: list[dict[str, Any]]) -> None:
    if options.what == "clients":
        data = with_names(data)
    if options.json:
        print(json.dumps(data, indent=2))
    elif options.what == "stats":
        print(prometheus(data) if options.format == "prometheus" else table(flat(data)), end="")
    else:
        print(table(data), end="")


def fetch(control: str, what: str, *, timeout: float, named: bool = False) -> list[dict[str, Any]]:
    """The data, asked at this control endpoint; `named`: by the operator.

    Raises:
        UnansweredError: nobody there.
        RefusedError: the daemon refused, or its answer cannot be read.
    """
    answer = asking.request(control, {"type": "show", "what": what}, answer="shown", timeout=timeout, named=named)
    data = answer.get("data")
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise asking.RefusedError(f"the daemon showed no {what} that can be read")
    return data


def with_names(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `clients` with the users' names, which this command looks up: a directory of users may be slow."""
    import pwd

    def name_of(uid: object) -> str | None:
        if not isinstance(uid, int):
            return "everybody else" if uid == "*" else None
        try:
            return pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            return None

    return [{"uid": row.get("uid"), "user": name_of(row.get("uid")), **row} for row in rows]


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
