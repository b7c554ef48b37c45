"""`sidecar probe`: health over ZeroMQ. It loads neither pyzmq nor msgspec, to be back in under 100 ms.

Exit status: with ``--live`` or ``--ready`` 0 or 1 (no answer: 1; degraded is ready); with ``--format nagios`` 0 ok,
1 degraded, 2 not ready or no answer. Without either as ``--ready``. 2 also for wrong usage.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from sidecar.client.endpoint import find_endpoint, find_places, look, socket_path
from sidecar.client.zmtp import UnansweredError, ask
from sidecar.errors import EndpointError

USAGE: Final = """\
usage: sidecar probe [--live | --ready] [--format text|json|nagios] [--endpoint E] [--all] [--timeout-ms 1000]

  --live          exit 0 when the daemon answers and says it lives, else 1
  --ready         exit 0 when every route has a target to go to (degraded is ready), else 1; the default
  --format F      text (for people), json (the report as it came), nagios (one line; exit 0 ok, 1 degraded, 2 not ready)
  --endpoint E    ipc:///PATH; else $SIDECAR_ENDPOINT, else where the daemon usually is
  --all           every daemon that a client would find there, or that E names (a list with commas, or a pattern);
                  the exit status is that of the worst, and 1 (nagios: 2) when there is none
  --timeout-ms N  how long to wait for an answer, for each"""


def run(argv: list[str]) -> int:
    """Ask once, print, and return the exit status."""
    try:
        options = _options(argv)
    except ValueError as problem:
        print(f"sidecar probe: {problem}\n{USAGE}", file=sys.stderr)
        return 2
    if options is None:
        print(USAGE)
        return 0
    check, style = options["check"], options["format"]
    timeout = float(options["timeout_ms"]) / 1000
    if options["all"]:
        return _run_all(options["endpoint"], check, style, timeout)
    report, reason = _asked(options["endpoint"], check, timeout)
    if style == "json":
        print(json.dumps(_plain(report, reason)))
    elif style == "nagios":
        print(_nagios(report, reason))
    elif report is None:
        print(f"no answer: {reason}", file=sys.stderr)
    else:
        print(_text(report))
    return _status(report, check, style)


def _run_all(endpoint: str, check: str, style: str, timeout: float) -> int:
    """One report for each daemon; the worst decides."""
    try:
        found = find_places(endpoint).look()
        reason = "" if found else f"no daemon at {find_places(endpoint)}"
    except EndpointError as problem:
        found, reason = [], str(problem)
    each = [(one, *_asked(one, check, timeout)) for one in found] or [(endpoint, None, reason)]
    statuses = [_status(report, check, style) for _, report, _ in each]
    if style == "json":
        print(json.dumps([{"endpoint": one, "report": _plain(report, why)} for one, report, why in each]))
    elif style == "nagios":
        print(_nagios_of_all(each, statuses))
    else:
        for one, report, why in each:
            print(f"{one or 'nowhere'}: {_text(report) if report is not None else 'no answer: ' + why}")
    return max(statuses)


def _nagios_of_all(each: list[tuple[str, dict[str, Any] | None, str]], statuses: list[int]) -> str:
    """A monitor reads one line: the worst word, those that are not well by name, and sums."""
    word = ("OK", "WARNING", "CRITICAL")[max(statuses)]
    reports = [report for _, report, _ in each if report is not None]
    ill = [
        f"{one or 'nowhere'} {_nagios(report, why).partition(' - ')[2].partition(' | ')[0]}"
        for (one, report, why), status in zip(each, statuses, strict=True)
        if status
    ]
    sums = " ".join(f"{name}={sum(int(one.get(name) or 0) for one in reports)}" for name in ("in_flight", "queued"))
    lag = max((int(one.get("loop_lag_us") or 0) for one in reports), default=0)
    said = f"{len(each) - len(ill)} of {len(each)} ok{': ' + '; '.join(ill) if ill else ''}"
    return f"SIDECAR {word} - {said} | instances={len(reports)} {sums} loop_lag={lag}us"


def _asked(endpoint: str, check: str, timeout: float) -> tuple[dict[str, Any] | None, str]:
    """The report, or None and why not."""
    try:
        return fetch(endpoint, check, timeout=timeout), ""
    except (UnansweredError, EndpointError) as problem:
        return None, str(problem)


def _plain(report: dict[str, Any] | None, reason: str) -> dict[str, Any]:
    return report or {"type": "report", "live": False, "ready": False, "reasons": [reason]}


def fetch(endpoint: str | None, check: str, *, timeout: float) -> dict[str, Any]:
    """The report, as the map that came.

    Raises:
        UnansweredError: none came, or none that can be read.
        EndpointError: the endpoint is unusable.
    """
    found = find_endpoint(endpoint)
    obstacle = look(found)
    if obstacle is not None:
        raise UnansweredError(obstacle.message)
    payload = ask(socket_path(found), json.dumps({"type": "probe", "check": check}).encode(), timeout=timeout)
    try:
        report = json.loads(payload)
    except (ValueError, RecursionError):
        raise UnansweredError("the answer cannot be read") from None
    if not isinstance(report, dict) or report.get("type") != "report":
        raise UnansweredError(f"the answer is no report: {str(report)[:200]}")
    return report


def _options(argv: list[str]) -> dict[str, str] | None:
    """By hand: argparse costs 10 ms. None for --help."""
    options = {"check": "full", "format": "text", "endpoint": "", "timeout_ms": "1000", "all": ""}
    rest = list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag in {"-h", "--help"}:
            return None
        if flag in {"--live", "--ready"} and not equals:
            options["check"] = flag[2:]
        elif flag == "--all" and not equals:
            options["all"] = "yes"
        elif flag in {"--format", "--endpoint", "--timeout-ms"}:
            if not equals:
                if not rest:
                    raise ValueError(f"{flag} needs a value")
                value = rest.pop(0)
            options[flag[2:].replace("-", "_")] = value
        else:
            raise ValueError(f"no such option: {flag}")
    if options["format"] not in {"text", "json", "nagios"}:
        raise ValueError(f"no such format: {options['format']}")
    try:
        good = 0 < float(options["timeout_ms"]) <= 86_400_000
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"--timeout-ms must be a positive number, not {options['timeout_ms']}")
    return options


def _status(report: dict[str, Any] | None, check: str, style: str) -> int:
    live = report is not None and report.get("live") is True
    ready = live and report is not None and report.get("ready") is True
    if style == "nagios":
        passed = live if check == "live" else ready
        return 2 if not passed else 1 if report is not None and report.get("degraded") and check != "live" else 0
    return 0 if (live if check == "live" else ready) else 1


def _state(report: dict[str, Any]) -> str:
    if not report.get("live"):
        return "not live"
    if not report.get("ready"):
        return "draining" if report.get("draining") else "not ready"
    return "degraded" if report.get("degraded") else "ready"


def _nagios(report: dict[str, Any] | None, reason: str) -> str:
    if report is None:
        return f"SIDECAR CRITICAL - no answer: {reason}"
    state = _state(report)
    word = {"ready": "OK", "degraded": "WARNING"}.get(state, "CRITICAL")
    why = "; ".join(map(str, report.get("reasons") or []))
    figures = " ".join(f"{name}={report.get(name, 0)}" for name in ("in_flight", "queued"))
    return f"SIDECAR {word} - {state}{': ' + why if why else ''} | {figures} loop_lag={report.get('loop_lag_us', 0)}us"


def _text(report: dict[str, Any]) -> str:
    seconds = int(report.get("uptime_us") or 0) // 1_000_000
    head = f"{_state(report)}: version {report.get('version')}, pid {report.get('pid')}, up {seconds} s, "
    load = (
        f"{report.get('in_flight')} in flight, {report.get('queued')} queued, loop lag {report.get('loop_lag_us')} us"
    )
    lines = [head + load]
    lines += [f"  because {reason}" for reason in report.get("reasons") or []]
    if report.get("halted"):
        lines.append(f"  halted lanes: {', '.join(report['halted'])}")
    for route in report.get("routes") or []:
        where = f"-> {route['target']}" if route.get("target") else "has no target"
        lines.append(f"  route {route.get('name')}: {'ready' if route.get('ready') else 'NOT READY'} {where}")
    for upstream in report.get("upstreams") or []:
        states = ", ".join(f"{count} {state}" for state, count in (upstream.get("connections") or {}).items())
        rtt = f", rtt {upstream['rtt_us']} us" if upstream.get("rtt_us") is not None else ""
        error = f", last error: {upstream['last_error']}" if upstream.get("last_error") else ""
        name, breaker = upstream.get("name"), upstream.get("breaker")
        lines.append(f"  upstream {name}: {states or 'no connections'}, breaker {breaker}{rtt}{error}")
    return "\n".join(lines)
